"""The work that every contender does, and the table it does it on."""

from __future__ import annotations

from enum import StrEnum

import asyncpg

from config import Settings
from config.tortoise import asyncpg_connect_kwargs

TABLE = "benchmark_row"
ROWS = 10_000
READ_ID = 1
NAME = "a name"

# Statements take asyncpg's $1; psycopg and SQLAlchemy spell their own placeholders in the same text.
READ = f"SELECT id, name, value FROM {TABLE} WHERE id = $1"  # noqa: S608 - a constant
INSERT = f"INSERT INTO {TABLE} (name, value) VALUES ($1, $2)"  # noqa: S608 - a constant
INSERT_RETURNING = f"{INSERT} RETURNING id"
UPDATE = f"UPDATE {TABLE} SET value = value + 1 WHERE id = $1"  # noqa: S608 - a constant


class Work(StrEnum):
    """What one operation does."""

    READ = "read"  # one row by its key, raw SQL, a statement of its own
    GET = "get"  # the same row by Tortoise's Model.get
    INSERT = "insert"  # one row, raw SQL, a statement of its own
    TRANSACTION = "transaction"  # read a row, insert one, update that one
    ACQUIRE = "acquire"  # a connection taken and given back, unused


TITLES = {
    Work.READ: "point read",
    Work.GET: "Model.get",
    Work.INSERT: "insert",
    Work.TRANSACTION: "transaction of 3 statements",
    Work.ACQUIRE: "bare acquire and release",
}


async def create_table(settings: Settings) -> None:
    """Makes and fills the table. It is never vacuumed, so that no turn runs beside a vacuum."""
    connection = await asyncpg.connect(**asyncpg_connect_kwargs(settings))
    try:
        await connection.execute(
            f"CREATE TABLE {TABLE} (id bigserial PRIMARY KEY, name varchar(255) NOT NULL, value int NOT NULL)"
            " WITH (autovacuum_enabled = false)"
        )
        await connection.executemany(INSERT, [(NAME, 0)] * ROWS)
        await connection.execute(f"VACUUM ANALYZE {TABLE}")
    finally:
        await connection.close()
