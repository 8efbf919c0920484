"""/explain: the plan of a SELECT, and what may make it faster."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from bot.command import Command, Reply, Request
from bot.errors import BadArguments
from bot.outage import asking_database
from db.explain import ExplainRefused, explain_query
from db.query_plan import PlanNode
from db.suggestions import Suggestion
from fleet.process import Process

MOST_LINES = 30  # of a plan
LONGEST_LINE = 100  # characters
MOST_SUGGESTIONS = 10
LONGEST_SUGGESTION = 400  # characters
NO_SUGGESTIONS = "Nothing in this plan looks slow. It is estimated: the query was not run."


def explain_command(process: Process) -> Command:
    """The command, for a Router."""

    async def explain(request: Request) -> AsyncGenerator[Reply, None]:
        if not request.arguments:
            raise BadArguments("give a SELECT")
        with asking_database(process.settings):
            try:
                explanation = await explain_query(process.database, request.arguments)
            except ExplainRefused as error:
                raise BadArguments(str(error)) from error
        yield Reply(plan_text(explanation.plan), monospace=True)
        yield Reply(suggestions_text(explanation.suggestions))

    return Command(
        "explain",
        "the plan of a query, and what may make it faster",
        explain,
        arguments="<select>",
        details="One SELECT, or WITH … SELECT. It is not run: all numbers are the planner's estimates.",
    )


def plan_text(plan: PlanNode) -> str:
    """The plan, shortened to what a chat shows."""
    return "\n".join(_shortened([_cut(line, LONGEST_LINE) for line in plan.lines()], MOST_LINES, "lines"))


def suggestions_text(suggestions: Iterable[Suggestion]) -> str:
    """One line each."""
    lines = [f"• {_cut(str(suggestion), LONGEST_SUGGESTION)}" for suggestion in suggestions]
    return "\n".join(_shortened(lines, MOST_SUGGESTIONS, "suggestions")) or NO_SUGGESTIONS


def _shortened(lines: list[str], most: int, noun: str) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"… and {len(lines) - most} more {noun}"]


def _cut(line: str, longest: int) -> str:
    line = " ".join(line.splitlines())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
