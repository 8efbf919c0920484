"""What a statement leaves behind in a session, judged by its text."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.session_state import may_change_session, session_feature

HARMLESS = (
    "SELECT 1",
    'SELECT "id" FROM "subscriber" WHERE "chat"=$1',
    "(SELECT 1) UNION (SELECT 2)",
    "((SELECT 1))",
    "VALUES (1), (2)",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "WITH x AS (INSERT INTO t VALUES (1) RETURNING id) SELECT * FROM x",
    "INSERT INTO t (a) VALUES ($1) ON CONFLICT DO NOTHING RETURNING a",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN DELETE",
    "BEGIN;",
    "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;",
    "COMMIT;",
    "COMMIT AND CHAIN",
    "ROLLBACK;",
    "SAVEPOINT __asyncpg_savepoint_1__;",
    "RELEASE SAVEPOINT __asyncpg_savepoint_1__;",
    "ROLLBACK TO __asyncpg_savepoint_1__;",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT setting FROM pg_settings",
    "SELECT current_setting('jit')",
    "SELECT 1 ; \n;",
)
CHANGES = (
    "",
    "-- nothing",
    "SET jit = off",
    "SET LOCAL jit = off",
    "RESET ALL",
    "LISTEN news",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMP TABLE t (a int)",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DISCARD ALL",
    "LOAD 'plpgsql'",
    "DO $$ BEGIN SET jit = off; END $$",
    "CALL p()",
    "COPY (SELECT set_config('jit', 'off', false)) TO STDOUT",
    "COPY (SELECT 1) TO STDOUT",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT set_config('jit', 'off', false)",
    "SELECT pg_catalog.set_config('jit', 'off', false)",
    "SELECT \"set_config\"('jit', 'off', false)",
    "SELECT set_config/**/('jit', 'off', false)",
    "WITH x AS (SELECT set_config('jit', 'off', false)) SELECT * FROM x",
    "VALUES (set_config('jit', 'off', false))",
    "INSERT INTO t SELECT set_config('jit', 'off', false)",
    "UPDATE t SET a = set_config('jit', 'off', false)",
    "SELECT query_to_xml('SELECT set_con' || 'fig(''jit'', ''off'', false)', false, false, '')",
    "SELECT setseed(0.5)",
    "SELECT set_limit(0.5)",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_lock_shared(1)",
    "SELECT pg_advisory_unlock(1)",
    "SELECT pg_advisory_unlock_all()",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_advisory_xact_lock(1), pg_advisory_lock(1)",
    "SELECT dblink_connect('c', 'dbname=postgres')",
    "UPDATE pg_settings SET setting = 'off' WHERE name = 'jit'",
    "WITH x AS (UPDATE pg_settings SET setting = 'off' WHERE name = 'jit' RETURNING 1) SELECT * FROM x",
    "SELECT U&\"set\\005Fconfig\"('jit', 'off', false)",
    "SELECT u&\"set!005Fconfig\" UESCAPE '!'('jit', 'off', false)",
    "SELECT 1; SET jit = off",
    "BEGIN; SET jit = off; COMMIT",
    "SELECT '--'; SET jit = off",
    "SELECT $$/*$$; SET jit = off; SELECT $$*/$$",
    "/* SELECT */ SET jit = off",
    "/* /* */ SELECT */ SET jit = off",
    "/*/*/ */ SELECT */ SET jit = off",
    "/***/ SET jit = off",
    "-- SELECT\nSET jit = off",
    "-- SELECT\rSET jit = off",
    "SELECTED",
    "select$ 1",
)

blanks = st.text(" \t\r\n\f", min_size=1, max_size=3)
comment_text = st.text(st.characters(codec="utf-8", exclude_characters="*/\0"), max_size=20) | st.sampled_from(
    ("SELECT 1", "SET jit = off", "'", "$$", '"', "--", "* /", "** ", "//")
)
block_comments = st.recursive(comment_text, lambda inner: inner.map(lambda text: f"/*{text} */"), max_leaves=3).map(
    lambda text: f"/*{text} */"
)
line_comments = st.builds(
    lambda text, end: "--" + text.replace("\n", "").replace("\r", "") + end, comment_text, st.sampled_from("\r\n")
)
asides = st.lists(blanks | block_comments | line_comments, max_size=4).map("".join)


def recased(sql: str) -> st.SearchStrategy[str]:
    """The same text in any mixture of cases, for a statement whose case says nothing."""
    return st.lists(st.booleans(), min_size=len(sql), max_size=len(sql)).map(
        lambda raised: "".join(c.upper() if up else c.lower() for c, up in zip(sql, raised, strict=True))
    )


@pytest.mark.parametrize("sql", HARMLESS)
def test_reads_writes_and_transactions_change_nothing(sql: str) -> None:
    """Statements that only read, write or delimit a transaction need no reset."""
    assert not may_change_session(sql)
    assert session_feature(sql) is None


@pytest.mark.parametrize("sql", CHANGES)
def test_what_may_change_the_session_is_seen(sql: str) -> None:
    """Every other statement, function and disguise asks for a reset."""
    assert may_change_session(sql)


@given(st.sampled_from(HARMLESS).flatmap(recased), asides)
def test_comments_blanks_and_case_do_not_hide_a_harmless_statement(sql: str, before: str) -> None:
    """A comment in front, nested or holding SQL, and the case change no verdict for the worse."""
    if not any(word in before for word in ("set_config", ";")):
        assert not may_change_session(before + sql)


@given(st.sampled_from([sql for sql in CHANGES if sql and "--" not in sql]).flatmap(recased), asides, asides)
def test_comments_blanks_and_case_do_not_hide_a_change(sql: str, before: str, after: str) -> None:
    """No wrapping makes a change look harmless."""
    assert may_change_session(before + sql + after)


@given(st.text(), st.sampled_from(("set_config", "pg_advisory_lock", 'U&"', "dblink_exec")), st.text())
def test_a_name_is_found_wherever_it_stands(before: str, name: str, after: str) -> None:
    """In a literal, a comment, a quoted name: a function that changes the session is seen."""
    assert may_change_session(f"SELECT {before}{name}{after}")


@given(st.text(max_size=50), st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=50))
def test_a_second_statement_is_a_change(first: str, second: str) -> None:
    """Whatever the quotes around it say: text after a semicolon may be a statement."""
    assert may_change_session(f"SELECT {first};{second.replace(';', ',')}")


def test_comments_nested_too_deep_are_a_change() -> None:
    """Where a regular expression cannot follow, the doubt is a reset."""
    assert not may_change_session("/*" * 4 + "*/" * 4 + "SELECT 1")
    assert may_change_session("/*" * 40 + "*/" * 40 + "SELECT 1")


@pytest.mark.parametrize(
    "unit", ["/*", "*/", "--", "(", " ", "'", '"', "$$", "$a", "INTO ", "set_config(", ",", "/**/"]
)
@pytest.mark.parametrize("start", ["", "SELECT ", "DECLARE ", "CREATE TEMP "])
def test_hostile_text_takes_linear_time(start: str, unit: str) -> None:
    """100,000 repetitions of what a pattern might backtrack over end; quadratic time would take minutes."""
    may_change_session(start + unit * 100_000)
    session_feature(start + unit * 100_000)


def test_long_statements_are_not_kept() -> None:
    """A hundred statements of 20 kB leave less behind than two of them take."""
    tracemalloc.start()
    try:
        for number in range(100):
            sql = f"SELECT {number}".ljust(20_000)
            may_change_session(sql)
            session_feature(sql)
        del sql
        assert tracemalloc.get_traced_memory()[0] < 40_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("sql", "feature"),
    [
        ("LISTEN news", "LISTEN"),
        ("/* hello */ listen news", "LISTEN"),
        ("SET jit = off", "SET"),
        ("SET SESSION jit = off", "SET"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET"),
        ("SET ROLE reader", "SET"),
        ("BEGIN; SET jit = off; COMMIT", "SET"),
        ("SET LOCAL jit = off", None),
        ("SET TRANSACTION READ ONLY", None),
        ("SET CONSTRAINTS ALL DEFERRED", None),
        ("UPDATE t SET a = 1", None),
        ("SELECT '; SET jit = off'", None),
        ("SELECT E'\\'; SET jit = off'", None),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN; SET jit = off; END $f$", None),
        ("SELECT 1 -- ; SET jit = off", None),
        ("SELECT pg_advisory_lock(1)", "session advisory lock"),
        ("SELECT pg_try_advisory_lock_shared(1)", "session advisory lock"),
        ("SELECT pg_advisory_unlock_all()", "session advisory lock"),
        ("SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(1)", None),
        ("SELECT set_config('jit', 'off', false)", "set_config(…, false)"),
        ("SELECT set_config('app.user', $1, FALSE)", "set_config(…, false)"),
        ("SELECT set_config('jit', 'off', true)", None),
        ("SELECT set_config($1, $2, $3)", None),
        ("PREPARE p AS SELECT 1", "PREPARE"),
        ("PREPARE TRANSACTION 'x'", None),
        ("DEALLOCATE ALL", "DEALLOCATE"),
        ("DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1", "DECLARE … WITH HOLD"),
        ("DECLARE c CURSOR FOR SELECT 1", None),
        ("CREATE TEMP TABLE t (a int)", "temporary table"),
        ("CREATE LOCAL TEMPORARY TABLE t AS SELECT 1", "temporary table"),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", "temporary table"),
        ("SELECT 1 AS a INTO TEMP t", "temporary table"),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", None),
        ("CREATE TABLE temp (a int)", None),
        ("INSERT INTO temperature VALUES (1)", None),
        ("INSERT INTO temp VALUES (1)", None),
        ("LOAD 'auto_explain'", "LOAD"),
        ("", None),
    ],
)
def test_features_of_a_session_are_named(sql: str, feature: str | None) -> None:
    """What needs a session is named for the warning; what ends with the transaction is not."""
    assert session_feature(sql) == feature
