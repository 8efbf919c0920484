"""What the server knows of the tables that a query reads: columns, indexes, how many rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Planning a query locks the tables that it reads, until its transaction ends: so no name need be resolved here.
_TABLES_OF_THIS_TRANSACTION = """
    SELECT class.relname::text AS relation,
           format('%I.%I', namespace.nspname, class.relname) AS name,
           class.reltuples::float8 AS planned_rows,
           coalesce(pg_stat_get_live_tuples(class.oid), 0) AS live_rows,
           coalesce(pg_stat_get_last_analyze_time(class.oid), pg_stat_get_last_autoanalyze_time(class.oid)) IS NOT NULL
               AS analyzed,
           array(
               SELECT attname::text FROM pg_attribute WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped
           ) AS columns,
           array(
               SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
               WHERE indrelid = class.oid AND indisvalid
           ) AS indexed
    FROM pg_class AS class JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE class.relkind IN ('r', 'm')
      AND class.oid IN (SELECT relation FROM pg_locks WHERE locktype = 'relation' AND pid = pg_backend_pid())
"""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table. `name` is with its schema, quoted as SQL wants it.

    `planned_rows` is what the planner goes by, from the last ANALYZE, None if there never was one; `live_rows` is what
    the server has counted since it last lost its statistics. `indexed` are the columns with which an index begins.
    """

    name: str
    planned_rows: float | None
    live_rows: int
    columns: frozenset[str]
    indexed: frozenset[str]

    @property
    def rows(self) -> float:
        """About how many rows it has."""
        return max(self.planned_rows or 0.0, self.live_rows)


async def read_table_facts(connection: Any) -> dict[str, TableFacts]:
    """The tables that this transaction has read or planned to read, by name as a plan has it, without schema.

    Where two of different schemas have one name, neither is there.
    """
    facts: dict[str, TableFacts | None] = {}
    for row in await connection.fetch(_TABLES_OF_THIS_TRANSACTION):
        never = row["planned_rows"] < 0 or (row["planned_rows"] == 0 and not row["analyzed"])
        table = TableFacts(
            name=row["name"],
            planned_rows=None if never else row["planned_rows"],
            live_rows=row["live_rows"],
            columns=frozenset(row["columns"]),
            indexed=frozenset(row["indexed"]),
        )
        facts[row["relation"]] = None if row["relation"] in facts else table
    return {name: table for name, table in facts.items() if table is not None}
