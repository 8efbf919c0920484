"""Pool settings for common situations, as they are written into `.env`: variables, values, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """A situation's pool settings: for each variable its value and the reason for it."""

    name: str
    title: str
    values: dict[str, tuple[str, str]]

    @property
    def lines(self) -> dict[str, str]:
        """The variables and their values."""
        return {variable: value for variable, (value, _) in self.values.items()}

    def as_env(self) -> str:
        """A complete block for `.env`, each setting with its reason."""
        lines = [f"# {self.name}: {self.title}"]
        for variable, (value, why) in self.values.items():
            lines += [f"# {why}", f"{variable}={value}"]
        return "\n".join(lines)


def _preset(
    name: str, title: str, floor: int, ceiling: int, *, idle_s: int = 300, lifetime_s: int = 3600, **others: str
) -> Preset:
    values = {
        "DB_POOL_MIN": (str(floor), "connections of each process that stay open"),
        "DB_POOL_MAX": (str(ceiling), "connections of each process at most; all processes must fit max_connections"),
        "DB_POOL_TIMEOUT": ("30", "s; longest wait for a connection"),
        "DB_POOL_PRE_PING": ("true", "a connection that was idle is checked before use"),
        "DB_MAX_QUERIES": ("50000", "queries after which a connection is replaced"),
        "DB_MAX_IDLE_TIME": (str(idle_s), "s; above the floor an idle connection is closed after this"),
        "DB_MAX_LIFETIME": (str(lifetime_s), "s; a connection older than this is replaced"),
    }
    values |= {variable: (value, "every statement is logged") for variable, value in others.items()}
    return Preset(name, title, values)


def _cloud(name: str, provider: str, idle_limit_s: int, idle_s: int, lifetime_s: int) -> Preset:
    # Strictly below: a connection that the provider cuts first is an error for whoever takes it next.
    title = f"{provider}, which cuts connections that are idle for {idle_limit_s} s"
    return _preset(name, title, 2, 10, idle_s=idle_s, lifetime_s=lifetime_s)


IDLE_LIMITS_S = {"cloud-rds": 900, "cloud-sql": 600, "azure": 900}
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset("dev", "one machine, all statements shown", 3, 8, DB_ECHO="true"),
        _preset("small", "1 to 3 workers", 2, 10),
        _preset("medium", "4 to 8 workers", 2, 8),
        _preset("large", "9 workers and more", 2, 5),
        _cloud("cloud-rds", "Amazon RDS", IDLE_LIMITS_S["cloud-rds"], 600, 840),
        _cloud("cloud-sql", "Google Cloud SQL", IDLE_LIMITS_S["cloud-sql"], 300, 540),
        _cloud("azure", "Azure Database for PostgreSQL", IDLE_LIMITS_S["azure"], 600, 840),
    )
}
