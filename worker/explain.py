"""The job that explains a query, for whoever has the queue and not the database."""

from __future__ import annotations

from db.explain import ExplainRefused, explain_query
from fleet.jobs import ExplainQuery, ExplainResult
from fleet.process import Process


async def explain(process: Process, arguments: ExplainQuery) -> ExplainResult:
    """The query's plan, and what may make it faster."""
    try:
        return ExplainResult(explanation=await explain_query(process.database, arguments.sql))
    except ExplainRefused as error:  # an answer like the other: no dead job for each slip of somebody's hand
        return ExplainResult(refused=str(error))
