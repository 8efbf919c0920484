"""The job that explains a query, for whoever has the queue and not the database."""

from __future__ import annotations

from db.explain import Explanation, explain_query
from fleet.jobs import ExplainQuery
from fleet.process import Process


async def explain(process: Process, arguments: ExplainQuery) -> Explanation:
    """The query's plan, and what may make it faster. Raises ExplainRefused where the text is not one SELECT."""
    return await explain_query(process.database, arguments.sql)
