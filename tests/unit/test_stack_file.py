"""docker-stack.yml says what docker-compose.yml says wherever both can; and nothing that Swarm passes over."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from config.groups import DatabaseSettings
from fleet.plan import Demand, Plan, Pooler, Supply, Verdict
from tests.compose_file import COMPOSE, COMPOSED, load, seconds
from tests.shell_script import run

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "docker-stack.yml"
PGBOUNCER = ROOT / "docker-stack.pgbouncer.yml"
# Swarm says "Ignoring unsupported options", or nothing at all, and goes on without.
PASSED_OVER = (
    "build cgroup_parent container_name depends_on devices expose extends external_links links mac_address mem_limit"
    " network_mode pid pids_limit privileged profiles restart security_opt shm_size tmpfs userns_mode"
)
SAME = (
    *("image", "user", "init", "read_only", "cap_drop", "entrypoint"),
    *("ulimits", "logging", "stop_grace_period", "stop_signal"),
)
NOT_IN_SWARM = {
    "COMPOSE_PROFILES",  # its switch is the second file
    "WORKERS",  # would start every process anew when there are to be more
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """What `-c base -c over` makes of services."""
    services = {name: dict(service) for name, service in base["services"].items()}
    for name, service in over["services"].items():
        kept = services.setdefault(name, {})
        kept |= service | {"environment": {**kept.get("environment", {}), **service["environment"]}}
    return services


STACKED = merged(load(STACK), load(PGBOUNCER))
every_service = pytest.mark.parametrize("name", COMPOSED)


def mounted_files(service: dict[str, Any]) -> dict[str, str]:
    """Which file of this repository is where in the container."""
    binds = [mount.split(":") for mount in service.get("volumes", []) if isinstance(mount, str)]
    files = {target: source for source, target, *_ in binds if source.startswith("./")}
    configs = load(STACK)["configs"]
    return files | {each["target"]: configs[each["source"]]["file"] for each in service.get("configs", [])}


def memory_folders(service: dict[str, Any]) -> set[str]:
    """Where in the container memory is mounted."""
    short = {entry.partition(":")[0] for entry in service.get("tmpfs", [])}
    return short | {
        mount["target"]
        for mount in service.get("volumes", [])
        if isinstance(mount, dict) and mount["type"] == "tmpfs" and mount["target"] != "/dev/shm"
    }


def test_services() -> None:
    """The same services, secrets, volumes."""
    assert set(STACKED) == set(COMPOSED)
    assert load(STACK)["secrets"] == load(COMPOSE)["secrets"]
    assert load(STACK)["volumes"] == load(COMPOSE)["volumes"]


@every_service
def test_same_container(name: str) -> None:
    """Image, user, secrets, mounted files, restrictions, log, time to stop: as in compose."""
    composed, stacked = COMPOSED[name], STACKED[name]
    for key in SAME:
        assert stacked.get(key) == composed.get(key), key
    assert sorted(stacked["secrets"]) == sorted(composed["secrets"])
    assert mounted_files(stacked) == mounted_files(composed)
    assert memory_folders(stacked) == memory_folders(composed)


@every_service
def test_same_limits(name: str) -> None:
    """Memory and pids as in compose; PostgreSQL's pids are a number here, because Swarm takes no variable there."""
    limits = dict(STACKED[name]["deploy"]["resources"]["limits"])
    composed = dict(COMPOSED[name]["deploy"]["resources"]["limits"])
    if name == "postgres":
        most = limits.pop("pids")
        assert isinstance(most, int)
        assert most >= 10 * Supply().max_connections
        del composed["pids"]
    assert limits == composed


@every_service
def test_same_environment(name: str) -> None:
    """Every setting reaches the container as in compose: to add one, write it into the file's x-settings."""
    composed = {key: value for key, value in COMPOSED[name].get("environment", {}).items() if key not in NOT_IN_SWARM}
    stacked = {key: value for key, value in STACKED[name].get("environment", {}).items() if key not in NOT_IN_SWARM}
    if name == "worker":
        assert stacked.pop("DB_APPLICATION_NAME") == "worker-{{.Task.Slot}}"
        del composed["DB_APPLICATION_NAME"]
    assert stacked == composed


def test_same_workers() -> None:
    """As many workers and as much of a check as compose has, unless the shell says otherwise."""
    replicas = COMPOSED["worker"]["deploy"]["replicas"]
    assert STACKED["worker"]["deploy"]["replicas"] == replicas
    assert STACKED["migrate"]["environment"]["WORKERS"] == replicas
    for name in ("worker", "bot"):
        assert "WORKERS" not in STACKED[name]["environment"]


@pytest.mark.parametrize("name", ["postgres", "redis", "migrate"])
def test_same_command(name: str) -> None:
    """What is started is what compose starts."""
    assert STACKED[name].get("command") == COMPOSED[name].get("command")


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_recovering_server_is_left_alone(name: str) -> None:
    """The same check as in compose, but minutes of patience: Swarm replaces a task that is not healthy."""
    stacked, composed = STACKED[name]["healthcheck"], COMPOSED[name]["healthcheck"]
    assert stacked["test"] == composed["test"]
    assert seconds(stacked["start_period"]) >= 600
    assert stacked["retries"] * seconds(stacked["interval"]) >= 300


@pytest.mark.parametrize("name", ["worker", "bot"])
def test_a_process_outlives_redis(name: str, tmp_path: Path) -> None:
    """The same check as in compose, except that exit 3, Redis away, is no reason to replace the process."""
    kind, command = STACKED[name]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert command.startswith(" ".join(COMPOSED[name]["healthcheck"]["test"][1:]))
    codes = {code: run(command, tmp_path, entrypoint=f"exit {code}").returncode for code in range(4)}
    assert {code for code, ended in codes.items() if ended == 0} == {0, 3}


@pytest.mark.parametrize("name", ["worker", "bot"])
def test_a_process_waits_for_the_schema(name: str, tmp_path: Path) -> None:
    """While `poolctl check` exits with 3 it waits, then becomes the process; another code is the process's affair."""
    shell, option, script, *words = STACKED[name]["command"]
    assert (shell, option, words[1:]) == ("sh", "-c", COMPOSED[name]["command"])
    for code in range(3):
        called = tmp_path / f"calls-{code}"
        check = f'echo x >>{called}; [ "$(wc -l <{called})" -lt 3 ] && exit 3; exit {code}'
        done = run(script, tmp_path, *words, poolctl=check, sleep=":", python='echo "$@"')
        assert called.read_text().count("x") == 3
        assert (done.stdout, done.returncode) == (f"-m {name}\n", 0)


@pytest.mark.parametrize("name", ["worker", "bot", "pgbouncer"])
def test_bad_settings_do_not_loop_for_ever(name: str) -> None:
    """Restarts are bounded, within a window that ten quick failures fit into."""
    policy = STACKED[name]["deploy"]["restart_policy"]
    quick = seconds(policy["delay"]) + 20  # s; a process that ends at once, on a busy machine
    assert policy["max_attempts"] * quick <= seconds(policy["window"])


def test_one_at_a_time() -> None:
    """No two servers on the same data, and no two bots with one token."""
    for name in ("postgres", "redis", "bot"):
        assert STACKED[name]["deploy"]["update_config"]["order"] == "stop-first"
        assert STACKED[name]["deploy"].get("replicas", 1) == 1
    for name in ("postgres", "redis"):
        assert STACKED[name]["deploy"]["placement"]["constraints"] == ["node.labels.poolctl.data == true"]


def test_an_update_fits() -> None:
    """New workers start before the old ones end, so each counts twice; so does PgBouncer. The defaults fit so."""
    for name in ("worker", "pgbouncer"):
        assert STACKED[name]["deploy"]["update_config"]["order"] == "start-first"
        assert STACKED[name]["deploy"]["update_config"]["failure_action"] == "rollback"
    pool_max = DatabaseSettings().pool_max
    demand = Demand(workers=2, pool_max=pool_max, surge=2)
    assert STACKED["worker"]["deploy"]["replicas"] == "${WORKERS:-2}"
    assert Plan(demand, Supply()).verdict_deploy is Verdict.FITS
    two_poolers = Pooler(default_pool_size=2 * Pooler().default_pool_size, reserve_pool_size=2 * 5)
    assert Plan(Demand(workers=10, pool_max=5), Supply(), two_poolers).verdict is Verdict.FITS


def test_the_largest_fleets_whose_update_fits() -> None:
    """docs/swarm.md names them: with each worker counted twice so many fit, and not one more."""
    document = " ".join((ROOT / "docs" / "swarm.md").read_text(encoding="utf-8").split())
    shown = re.search(
        r"`max_connections=(\d+)` that is up to (\d+) workers with pools of (\d+), or (\d+) with pools of (\d+);"
        r" through PgBouncer up to (\d+) with pools of (\d+)",
        document,
    )
    assert shown is not None
    max_connections, *fleets = map(int, shown.groups())
    assert max_connections == Supply().max_connections
    for workers, pool_max, pooler in zip(fleets[::2], fleets[1::2], (None, None, Pooler()), strict=True):
        plans = (Plan(Demand(workers=n, pool_max=pool_max, surge=2), Supply(), pooler) for n in (workers, workers + 1))
        assert [plan.verdict_deploy is Verdict.FITS for plan in plans] == [True, False], (workers, pool_max)


def test_the_second_file_is_the_switch() -> None:
    """Without it nobody is sent to a PgBouncer that does not run; with it worker, bot and migrations are."""
    first = load(STACK)["services"]
    assert "pgbouncer" not in first
    for name in ("worker", "bot", "migrate"):
        assert "COMPOSE_PROFILES" not in first[name]["environment"]
        assert STACKED[name]["environment"]["COMPOSE_PROFILES"] == "pgbouncer"


@pytest.mark.parametrize("path", [STACK, PGBOUNCER], ids=lambda path: path.name)
def test_nothing_that_swarm_passes_over(path: Path) -> None:
    """No option that Swarm does not know, and no default inside a default, which would arrive as it is written."""
    for name, service in load(path)["services"].items():
        assert set(service) & set(PASSED_OVER.split()) == set(), name
    text = re.sub(r"(^|\s)#.*", "", path.read_text(encoding="utf-8")).replace("$$", "")
    whole = re.findall(r"\$\{[A-Z_]+:-[^${}]*\}", text)
    assert len(whole) == text.count("$"), "every variable has a default, and that is plain text"


def test_configs_are_named_for_their_contents() -> None:
    """Swarm never changes a config: when a script changes, its name here must, or the next deployment fails."""
    stack = load(STACK)
    for name, config in stack["configs"].items():
        digest = hashlib.sha256((ROOT / config["file"]).read_bytes()).hexdigest()[:8]
        stem = name.rpartition("-")[0]
        assert name == f"{stem}-{digest}", f"write {stem}-{digest} instead of {name} in {STACK.name}, twice"
    used = {each["source"] for service in stack["services"].values() for each in service.get("configs", [])}
    assert used == set(stack["configs"])
