"""The fleet that compose makes of its variables, and its plan. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from config import Settings
from config.variables import secret_names
from fleet.plan import Plan, Pooler
from fleet.plan_inputs import demand_of, from_settings, goes_through_pooler, pooler_from, supply_from
from fleet.ways_out import ways_out
from poolctl.dotenv_changes import DIRECT, POOLED, Order, Variables, has_pgbouncer, ports, url_variable

DEFAULT_WORKERS = 2  # docker-compose.yml's, where WORKERS is not set


@dataclass(frozen=True, slots=True)
class Deployment:
    """The fleet that compose makes of its variables: those of `.env`, and of the shell."""

    plan: Plan
    pgbouncer: Pooler = field(compare=False)  # as it is, or as it would be
    redis_max_connections: int
    warnings: tuple[str, ...] = field(compare=False)

    @classmethod
    def of(cls, values: Variables) -> Deployment:
        """Raises SettingsError for settings that no process would start with, and PlanError for what is no plan."""
        environ = _in_container(values)
        worker, bot = Settings.load("worker", environ), Settings.load("bot", environ)
        workers = DEFAULT_WORKERS if worker.fleet.workers is None else worker.fleet.workers
        demand = demand_of({"workers": workers, **from_settings(worker, bot)}, legacy=worker.legacy)
        pgbouncer = pooler_from(worker)
        pooler = pgbouncer if goes_through_pooler(worker) else None
        plan = Plan(demand, supply_from(worker), pooler, profiles=worker.stack.compose_profiles)
        return cls(plan, pgbouncer, worker.redis.max_connections, worker.warnings)

    def __str__(self) -> str:
        """`10 workers, pools of 5, through PgBouncer`."""
        demand = self.plan.demand
        workers = "1 worker" if demand.workers == 1 else f"{demand.workers} workers"
        where = "straight to the database" if self.plan.pooler is None else "through PgBouncer"
        return f"{workers}, pools of {demand.pool_max}, {where}"

    def orders_out(self, order: Order) -> Iterator[Order]:
        """The order with one thing changed so that it may fit. Not every way out is an order."""
        for way in ways_out(self.plan):
            demand = way.plan.demand
            other = replace(order, workers=demand.workers, pool_max=demand.pool_max)
            if way.plan == replace(self.plan, demand=demand):
                yield other
            elif way.plan == replace(self.plan, demand=demand, pooler=self.pgbouncer):
                yield replace(other, pgbouncer=True)


def _in_container(values: Variables) -> dict[str, str]:
    """The variables as a process gets them: with what the image's entrypoint fills in, and without files of there."""
    environ = {name: value for name, value in values.items() if value.strip()}
    for name in secret_names():
        if name not in environ:
            environ.pop(f"{name}_FILE", None)
    if url_variable(values) is not None:
        environ.setdefault("DATABASE_URL", f"postgres://{DIRECT}/app")  # what is in the file is not known here
        return environ
    environ.setdefault("DB_HOST", POOLED if has_pgbouncer(environ) else DIRECT)
    if environ["DB_HOST"] == POOLED:
        environ.setdefault("DB_PORT", ports(environ)[POOLED])
    return environ
