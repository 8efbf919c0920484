"""What documentation and compose have from the code: tables, `.env.example`, lists of settings, charts.

`python -m poolctl.documentation` writes all of it; a test holds every file against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from config.presets import PRESETS
from config.reference import compose_settings, env_example, markdown_table, swarm_settings
from fleet.plan import Demand, Plan, Pooler, Supply
from poolctl.plan_picture import draw

CHARTS: dict[str, Plan] = {
    "docs/scaling-5x10.svg": Plan(Demand(workers=5, pool_max=10, pool_min=2), Supply()),
    "docs/scaling-10x10.svg": Plan(Demand(workers=10, pool_max=10, pool_min=2), Supply()),
    "docs/scaling-20x5-pgbouncer.svg": Plan(Demand(workers=20, pool_max=5, pool_min=2), Supply(), Pooler()),
}


def scaling_table() -> str:
    """Which pool for how many workers, on a server with its default settings."""
    rows = ["| workers | `.env` | sum | |", "|---|---|---|---|"]
    supply = Supply()
    first = 1
    for name, note in (
        ("small", "the default; nothing to do"),
        ("medium", "`poolctl plan --preset medium --format env`"),
        ("large", "at the end raise `max_connections`, or put a pooler in between: `poolctl plan` shows both"),
    ):
        pool_max = int(PRESETS[name].values["DB_POOL_MAX"][0])
        plan = Plan(Demand(workers=1, pool_max=pool_max), supply)
        # The defaults go further than three workers; from four on the next size leaves room for a deployment.
        last = min(plan.max_workers, {"small": 3}.get(name, plan.max_workers))
        plan = replace(plan, demand=replace(plan.demand, workers=last))
        total = f"{last} × {pool_max} + {plan.demand.overhead} = {plan.total_peak} of {supply.usable}"
        rows.append(f"| {first}–{last} | `DB_POOL_MAX={pool_max}` | {total} | {note} |")
        first = last + 1
    return "\n".join(rows)


def between_marks(text: str, mark: str, content: str, comment: str = "<!-- {} -->") -> str:
    """`text` with what stands between `<!-- mark: begin -->` and `<!-- mark: end -->` replaced."""
    begin, end = comment.format(f"{mark}: begin"), comment.format(f"{mark}: end")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def written(root: Path) -> Iterator[tuple[Path, str]]:
    """Every text file that has something from the code, as it should be."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    readme = between_marks(readme, "settings", markdown_table())
    yield root / "README.md", between_marks(readme, "scaling", scaling_table())
    yield root / ".env.example", env_example()
    yield root / "docker-compose.settings.yml", compose_settings()
    stack = (root / "docker-stack.yml").read_text(encoding="utf-8")
    yield root / "docker-stack.yml", between_marks(stack, "settings", swarm_settings(), comment="  # {}")


def main() -> None:
    """Write all files in the current folder, the project's."""
    for path, text in written(Path()):
        path.write_text(text, encoding="utf-8")
    for name, plan in CHARTS.items():
        draw(plan, Path(name))


if __name__ == "__main__":
    main()
