"""The verdict on a statement's text against what the statement does to a real session."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg
import pytest

from config import Settings
from config.tortoise import asyncpg_connect_kwargs
from db import connect
from pool.session_state import may_change_session

Environ = dict[str, str]

# All that asyncpg's reset would have to undo, of the session that runs it.
SESSION = """
    SELECT
        ARRAY(SELECT format('%s=%s', name, setting) FROM pg_settings WHERE source = 'session' ORDER BY 1) AS settings,
        ARRAY(SELECT name || '=' || setting FROM pg_settings WHERE name LIKE 'poolctl.%' ORDER BY 1) AS own_settings,
        current_setting('poolctl.probe', true) AS probe,
        ARRAY(SELECT format('%s/%s %s', classid, objid, mode) FROM pg_locks
              WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1) AS advisory_locks,
        ARRAY(SELECT name FROM pg_cursors WHERE statement NOT LIKE '%pg_cursors%' ORDER BY 1) AS cursors,
        ARRAY(SELECT pg_listening_channels() ORDER BY 1) AS channels
"""
PREPARATION = """
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE TABLE thing (id int PRIMARY KEY, name text, parent int REFERENCES thing DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO thing VALUES (1, 'one'), (2, 'two');
    CREATE PROCEDURE sets_jit() LANGUAGE plpgsql AS $$ BEGIN SET jit = off; END $$;
    CREATE FUNCTION sets_jit_hidden() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET jit = off; END $$;
"""

# Each with whether the session is different afterwards: a table that is wrong about PostgreSQL fails too.
CHANGING = (
    "SET jit = off",
    "set SESSION jit to off",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET poolctl.probe = 'x'",
    "/* SELECT */ SET jit = off",
    "/* /* */ SELECT */ SET jit = off",
    "/***/SET jit = off",
    "/*/*/ */ SELECT */SET jit = off",
    "-- SELECT\rSET jit = off",
    "-- SELECT\n\fSET jit = off",
    "SELECT set_config('jit', 'off', false)",
    "SELECT pg_catalog.set_config('jit', 'off', false)",
    "SELECT \"pg_catalog\".\"set_config\"('jit', 'off', false)",
    "SELECT SET_CONFIG /* … */ ('jit', 'off', false)",
    "SELECT U&\"set\\005Fconfig\"('jit', 'off', false)",
    "SELECT u&\"set!005Fconfig\" UESCAPE '!' ('jit', 'off', false)",
    "VALUES (set_config('jit', 'off', false))",
    "(SELECT set_config('jit', 'off', false))",
    "WITH x AS MATERIALIZED (SELECT set_config('jit', 'off', false)) SELECT * FROM x",
    "INSERT INTO thing VALUES (3, set_config('jit', 'off', false))",
    "UPDATE thing SET name = set_config('jit', 'off', false)",
    "DELETE FROM thing WHERE id = 2 AND set_config('jit', 'off', false) = 'on'",
    "DELETE FROM thing WHERE id = 2 RETURNING set_config('jit', 'off', false)",
    "MERGE INTO thing USING (VALUES (1)) v (i) ON set_config('jit', '0', false) = '' WHEN MATCHED THEN DELETE",
    "UPDATE pg_settings SET setting = 'off' WHERE name = 'jit'",
    "UPDATE pg_catalog.\"pg_settings\" SET setting = 'off' WHERE name = 'jit'",
    "EXPLAIN ANALYZE UPDATE pg_settings SET setting = 'off' WHERE name = 'jit'",
    "EXPLAIN ANALYZE SELECT set_config('jit', 'off', false)",
    "COPY (SELECT set_config('jit', 'off', false)) TO '/dev/null'",
    "SELECT query_to_xml('SELECT set_con' || 'fig(''jit'', ''off'', false)', false, false, '')",
    "SELECT ts_stat('SELECT to_tsvector(set_con' || 'fig(''jit'', ''off'', false))')",
    "SELECT set_limit(0.9)",
    "DO $$ BEGIN SET jit = off; END $$",
    "CALL sets_jit()",
    "SELECT 1; SET jit = off",
    "SELECT '--'; SET jit = off; SELECT 1",
    "SELECT $$/*$$; SET jit = off; SELECT $$*/$$",
    "SELECT E'\\''; SET jit = off; --'",
    "BEGIN; SET jit = off; COMMIT",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_lock(1, 2)",
    "SELECT pg_advisory_lock_shared(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1)",
    "SELECT pg_advisory_xact_lock(1), pg_advisory_lock(2)",
    "LISTEN news",
    "DECLARE kept CURSOR WITH HOLD FOR SELECT 1",
    "BEGIN; DECLARE kept CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "PREPARE p AS SELECT set_config('jit', 'off', false); EXECUTE p",
)
UNCHANGING = (
    "SELECT 1",
    "/* /* SET */ SET */ SELECT 1;",
    "((SELECT 1) UNION (SELECT 2))",
    "VALUES (1)",
    "WITH x AS (INSERT INTO thing VALUES (3) RETURNING id) SELECT * FROM x",
    "INSERT INTO thing VALUES (3) ON CONFLICT DO NOTHING",
    "UPDATE thing SET name = 'x'",
    "DELETE FROM thing WHERE id = 2",
    "MERGE INTO thing USING (VALUES (1)) v (i) ON id = i WHEN MATCHED THEN UPDATE SET name = 'y'",
    "SELECT * FROM thing FOR UPDATE",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT current_setting('jit') FROM pg_settings",
    "SELECT pg_notify('news', 'x')",
    "SELECT now() AT TIME ZONE 'Asia/Tokyo'",
    "SELECT 1 AS a INTO made",
)
IN_DOUBT = (
    "RESET ALL",
    "SHOW jit",
    "TABLE thing",
    "EXPLAIN SELECT 1",
    "SELECT ';'",
    "SELECT 'set_config'",
    "SELECT 1 -- ; SELECT 2",
    "SELECT pg_try_advisory_xact_lock(1)",
    "SELECT pg_advisory_unlock_all()",
    "BEGIN; SET LOCAL jit = off; COMMIT",
    "CREATE TEMP TABLE scratch (a int)",
    "UNLISTEN *",
    "CLOSE ALL",
)


@pytest.fixture
async def prepared(environ: Environ) -> Environ:
    """The test's database with a table and functions to try things on."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        await connection.execute(PREPARATION)
    return environ


async def changes(environ: Environ, sql: str) -> bool:
    """Whether a new session is different after the statement."""
    async with connect(Settings.load("poolctl", environ)) as connection:
        await connection.execute("SELECT similarity('a', 'b')")  # the extension's settings are there from its first use
        before = await connection.fetchrow(SESSION)
        await connection.execute(sql)
        return bool(await connection.fetchrow(SESSION) != before)


async def check(environ: Environ, statements: tuple[str, ...], *, differs: bool, verdict: bool) -> None:
    for sql in statements:
        assert await changes(environ, sql) == differs, sql
        assert may_change_session(sql) == verdict, sql


async def test_whatever_changes_a_session_is_seen(prepared: Environ) -> None:
    """No statement that leaves a setting, a lock, a cursor or a listener behind gets away without a reset."""
    await check(prepared, CHANGING, differs=True, verdict=True)


async def test_reads_and_writes_leave_nothing_and_cost_no_reset(prepared: Environ) -> None:
    """The statements that work is made of leave the session as it was, and are known to."""
    await check(prepared, UNCHANGING, differs=False, verdict=False)


async def test_a_doubt_costs_a_reset_only(prepared: Environ) -> None:
    """Harmless statements that are taken for a change; should one become known, this table says so."""
    await check(prepared, IN_DOUBT, differs=False, verdict=True)


async def test_a_function_that_hides_its_effect_is_the_limit(prepared: Environ) -> None:
    """What docs/pool.md says of DB_POOL_RESET=auto: such a function is not seen."""
    sql = "SELECT sets_jit_hidden()"
    assert await changes(prepared, sql)
    assert not may_change_session(sql)


async def test_a_transaction_of_asyncpg_changes_nothing(prepared: Environ) -> None:
    """BEGIN, SAVEPOINT and their ends as asyncpg writes them: seen on the wire, judged harmless, and harmless."""
    async with connect(Settings.load("poolctl", prepared)) as connection:
        sent: list[str] = []
        before = await connection.fetchrow(SESSION)
        with connection.query_logger(lambda record: sent.append(record.query)):
            async with connection.transaction(isolation="serializable", readonly=True, deferrable=True):
                pass
            async with connection.transaction():
                async with connection.transaction():
                    await connection.execute("SELECT 1")
                with contextlib.suppress(ZeroDivisionError):
                    async with connection.transaction():
                        raise ZeroDivisionError
            with contextlib.suppress(ZeroDivisionError):
                async with connection.transaction():
                    raise ZeroDivisionError
        await _until_quiet()
        assert {sql.split()[0].rstrip(";") for sql in sent} == {
            *("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK", "SELECT")
        }
        assert [sql for sql in sent if may_change_session(sql)] == []
        assert await connection.fetchrow(SESSION) == before


async def test_a_listener_of_asyncpg_is_a_change(prepared: Environ) -> None:
    """add_listener sends LISTEN through the connection's own methods, where the verdict is asked for."""

    class Judging(asyncpg.Connection):  # type: ignore[misc]
        changed = False

        async def fetch(self, query: str, *args: Any, **kwargs: Any) -> Any:
            self.changed |= may_change_session(query)
            return await super().fetch(query, *args, **kwargs)

    arguments = asyncpg_connect_kwargs(Settings.load("poolctl", prepared))
    connection: Any = await asyncpg.connect(connection_class=Judging, **arguments)
    try:
        await connection.add_listener("news", lambda *_: None)
        assert connection.changed
    finally:
        await connection.close(timeout=5.0)


async def _until_quiet() -> None:
    """asyncpg calls query loggers from the loop, after the statement."""
    for _ in range(3):
        await asyncio.sleep(0)
