"""The stack's files, read as they are: what holds of every service, and numbers that must agree with others'."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config.groups import WorkerSettings
from config.stack import PgBouncerSettings, StackSettings
from config.variables import secret_names, variables_of
from fleet.plan import Supply
from tests.compose_file import load, megabytes, seconds

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "docker-compose.yml"
FILES = sorted(ROOT.glob("docker-compose*.yml"))
ONE_SHOT = {"migrate", "poolctl"}
OWN_IMAGES = {"poolctl:latest": ROOT / "Dockerfile", "poolctl-pgbouncer:latest": ROOT / "pgbouncer" / "Dockerfile"}
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(?::-([^{}]*))?\}")


SERVICES: dict[str, dict[str, Any]] = load(BASE)["services"]
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def filled_in(text: str, **given: str) -> str:
    """`text` with its variables as compose fills them in: given, or by default."""
    return VARIABLE.sub(lambda found: given.get(found[1]) or found[2] or "", text)


# All files.


def test_there_are_files() -> None:
    """These tests read something."""
    assert BASE in FILES
    assert {"postgres", "redis", "migrate", "worker", "bot", "pgbouncer", "poolctl"} == set(SERVICES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema(path: Path) -> None:
    """Each file passes the schema of the Compose Specification, which is asked for nowhere: it is in the package."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_form(path: Path) -> None:
    """No `version:`, which Compose v2 does not read; and every variable has a default, which is no other variable."""
    assert "version" not in load(path)
    code = "\n".join(line.partition(" #")[0] for line in path.read_text().splitlines() if not line.startswith("#"))
    for use in re.findall(r"(?<!\$)\$\{[^}]*\}", code):
        assert VARIABLE.fullmatch(use), use
        assert ":-" in use


def test_a_variable_has_one_default() -> None:
    """Wherever a variable has a default, it is the same."""
    defaults: dict[str, set[str]] = {}
    for path in FILES:
        for name, default in VARIABLE.findall(path.read_text()):
            defaults.setdefault(name, set()).add(default)
    assert {name: values for name, values in defaults.items() if len(values) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_in_an_environment(path: Path) -> None:
    """No service's environment holds a password or takes one from `.env`: `docker inspect` would show it."""
    urls = {"DATABASE_URL", "REDIS_URL"}  # given plainly they work; README says what that shows
    for service in load(path)["services"].values():
        for name, value in (service.get("environment") or {}).items():
            assert name not in secret_names() - urls
            assert value is None or not re.search("PASSWORD(?!_FILE)|TOKEN|URL", name)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name != "docker-compose.dev.yml"], ids=lambda p: p.name
)
def test_nothing_is_published(path: Path) -> None:
    """No port of the host is opened, and no service has a name that only one container can have."""
    for service in load(path)["services"].values():
        assert not {"ports", "expose", "container_name", "hostname", "network_mode", "privileged"} & set(service)


def test_dev_publishes_on_loopback_only() -> None:
    """For development the servers, and nothing else, are on this machine's own address."""
    services = load(ROOT / "docker-compose.dev.yml")["services"]
    assert set(services) == {"postgres", "redis", "pgbouncer"}
    for service in services.values():
        assert list(service) == ["ports"]
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", filled_in(port)) for port in service["ports"])


def test_what_belongs_to_this_machine_is_not_committed() -> None:
    """docker-compose.override.yml, `.env` and the secrets are ignored by git."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker-compose.override.yml", ".env", "secrets/"} <= set(ignored)


# Every service.


@every_service
def test_hardened(service: dict[str, Any]) -> None:
    """Read-only, without capabilities, with bounds for memory, processes, restarts and logs."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges=true"]
    limits = service["deploy"]["resources"]["limits"]
    assert megabytes(filled_in(str(limits["memory"]))) > 0
    assert int(filled_in(str(limits["pids"]))) > 0
    assert service["logging"]["driver"] == "json-file"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_restarts() -> None:
    """A server comes back whatever happened; what its settings keep from working is not tried for ever."""
    for name, service in SERVICES.items():
        if name in ("postgres", "redis"):
            assert service["restart"] == "unless-stopped"
        elif name in ONE_SHOT:
            assert service["restart"] == "no"
        else:
            assert re.fullmatch(r"on-failure:[1-9]\d?", service["restart"])


@every_service
def test_not_root(service: dict[str, Any]) -> None:
    """A service runs as a user that is not root: its own image's, by number, or one that is named here."""
    dockerfile = OWN_IMAGES.get(filled_in(service["image"]))
    if dockerfile is None:
        assert service["user"] in ("postgres", "redis")
    else:
        assert "user" not in service
        (user,) = re.findall(r"^USER (\S+)$", dockerfile.read_text(), re.MULTILINE)
        assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_health_check(name: str) -> None:
    """What runs on has a health check with a start period, here or in its image."""
    service = SERVICES[name]
    check = service.get("healthcheck")
    if check is None:
        dockerfile = OWN_IMAGES[filled_in(service["image"])].read_text()
        assert re.search(r"^HEALTHCHECK .*--start-period=", dockerfile, re.MULTILINE)
    else:
        assert {"test", "interval", "timeout", "retries", "start_period"} == set(check)


@pytest.mark.parametrize("name", ["worker", "bot"])
def test_late_health_check_ends(name: str) -> None:
    """A check of ours ends itself before its time is over, because not every engine ends it."""
    check = SERVICES[name]["healthcheck"]
    kind, program, limit, *command = check["test"]
    assert (kind, program) == ("CMD", "timeout")
    assert float(limit) < seconds(check["timeout"])
    assert command == ["entrypoint", "python", "-m", name, "--health"]


def test_images() -> None:
    """Every image has a tag, and whoever wants to may name another, or a digest."""
    for service in SERVICES.values():
        assert re.fullmatch(r"\$\{(POOLCTL|PGBOUNCER|POSTGRES|REDIS)_IMAGE:-[a-z-]+:[\w.-]+\}", service["image"])
    assert filled_in(SERVICES["postgres"]["image"]) == "postgres:17-alpine"
    assert filled_in(SERVICES["redis"]["image"]) == "redis:8-alpine"
    assert {SERVICES[name]["image"] for name in ("migrate", "worker", "bot", "poolctl")} == {SERVICES["bot"]["image"]}


def test_profiles() -> None:
    """Without a profile there are the servers, the migration and the processes, and no more."""
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "pgbouncer": ["pgbouncer"],
        "poolctl": ["tools"],
    }


def test_secrets() -> None:
    """Every secret is a file in the one folder, and a service has those that its programs read."""
    secrets = load(BASE)["secrets"]
    assert {filled_in(secret["file"]) for secret in secrets.values()} == {f"./secrets/{name}" for name in secrets}
    assert {name: sorted(service["secrets"]) for name, service in SERVICES.items()} == {
        "postgres": ["db_password", "pgbouncer_password", "postgres_password"],
        "redis": ["redis_password"],
        "pgbouncer": ["pgbouncer_password"],
        "migrate": ["db_password", "pgbouncer_password", "redis_password"],
        "poolctl": ["db_password", "pgbouncer_password", "redis_password"],
        "worker": ["db_password", "redis_password"],
        "bot": ["db_password", "redis_password"],
    }


def test_mounted_files_are_there() -> None:
    """Of a file that is missing the engine would make a folder."""
    mounts = [volume for service in SERVICES.values() for volume in service.get("volumes", []) if volume[0] == "."]
    assert len(mounts) == 4
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert (ROOT / source).is_file(), source
        assert mode == "ro"


def test_data_is_kept() -> None:
    """PostgreSQL's and Redis' data are in named volumes, and Redis writes down every job."""
    assert set(load(BASE)["volumes"]) == {"postgres-data", "redis-data"}
    assert "postgres-data:/var/lib/postgresql/data" in SERVICES["postgres"]["volumes"]
    assert "redis-data:/data" in SERVICES["redis"]["volumes"]
    assert " ".join(SERVICES["redis"]["command"]).startswith("--dir /data --appendonly yes ")


# Start and stop.


@pytest.mark.parametrize("name", ["worker", "bot"])
def test_processes_wait(name: str) -> None:
    """Worker and bot wait for the migration's end and for servers that answer; for the pooler only if there is one."""
    assert SERVICES[name]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "postgres": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
        "pgbouncer": {"condition": "service_healthy", "required": False},
    }


def test_worker_scales() -> None:
    """WORKERS says how many workers there are; none of them is started anew because it changed."""
    assert SERVICES["worker"]["deploy"]["replicas"] == "${WORKERS:-2}"
    assert SERVICES["worker"]["init"] is True
    for name in ("worker", "bot"):
        assert SERVICES[name]["environment"]["WORKERS"] == ""


@pytest.mark.parametrize("grace", [None, "0", "2.5", "30", "600"])
def test_a_worker_may_end_its_jobs(grace: str | None) -> None:
    """The engine waits longer than WORKER_SHUTDOWN_GRACE, whatever that is, before it kills a worker."""
    given = {} if grace is None else {"WORKER_SHUTDOWN_GRACE": grace}
    stop = seconds(filled_in(SERVICES["worker"]["stop_grace_period"], **given))
    assert stop >= (WorkerSettings().shutdown_grace if grace is None else float(grace)) + 10


def test_migrate_is_a_step() -> None:
    """The migration runs once, refuses a plan that does not fit, and counts with as many workers as there will be."""
    migrate = SERVICES["migrate"]
    assert migrate["restart"] == "no"
    assert migrate["environment"]["PLAN_CHECK"] == "${PLAN_CHECK:-error}"
    assert migrate["environment"]["WORKERS"] == SERVICES["worker"]["deploy"]["replicas"]


# PostgreSQL against the plan.


def test_max_connections_is_the_plans() -> None:
    """PostgreSQL is started with what `poolctl plan` calculates with."""
    uses = VARIABLE.findall(BASE.read_text())
    default = int(next(default for name, default in uses if name == "POSTGRES_MAX_CONNECTIONS"))
    assert default == Supply().max_connections == StackSettings().postgres_max_connections
    assert "-cmax_connections=${POSTGRES_MAX_CONNECTIONS:-100}" in SERVICES["postgres"]["command"]


@pytest.mark.parametrize("connections", [14, 20, 100, 200, 5000])
def test_limits_follow_max_connections(connections: int) -> None:
    """Memory is the plan's for so many connections, shared buffers are a tenth of it; each may have its process."""
    given = {"POSTGRES_MAX_CONNECTIONS": str(connections)}
    limits = SERVICES["postgres"]["deploy"]["resources"]["limits"]
    memory = megabytes(filled_in(limits["memory"], **given))
    assert memory == Supply(max_connections=connections).memory_mb
    (buffers,) = [option for option in SERVICES["postgres"]["command"] if option.startswith("-cshared_buffers=")]
    assert megabytes(filled_in(buffers, **given).partition("=")[2]) * 10 == memory
    helpers = 30  # its own processes, parallel workers, health checks
    assert int(filled_in(limits["pids"], **given)) >= connections + helpers


def test_statistics_are_preloaded() -> None:
    """pg_stat_statements can be switched on at the start alone."""
    assert "-cshared_preload_libraries=pg_stat_statements" in SERVICES["postgres"]["command"]


# PgBouncer.


def test_pgbouncer_gets_its_settings() -> None:
    """It is handed what its template and its entrypoint read, and no setting of others: those would restart it."""
    template = (ROOT / "pgbouncer" / "pgbouncer.ini.template").read_text()
    read = {name for name in re.findall(r"\$\{([A-Z_]+):-", template) if not name.startswith(("POSTGRES_", "RUNTIME_"))}
    environment = SERVICES["pgbouncer"]["environment"]
    assert set(environment) == read | {"POSTGRES_MAX_CONNECTIONS"}
    assert set(environment.values()) == {None}
    settings = {variable.name for variable in variables_of(PgBouncerSettings)}
    assert settings - set(environment) == {"PGBOUNCER_HOST", "PGBOUNCER_PASSWORD"}


def test_pgbouncer_may_open_files() -> None:
    """Each client is an open file; by default there is room for several times as many as it lets in."""
    pgbouncer = PgBouncerSettings()
    assert SERVICES["pgbouncer"]["ulimits"]["nofile"] >= 4 * (pgbouncer.max_client_conn + pgbouncer.default_pool_size)


# The image.

DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("path", OWN_IMAGES.values(), ids=lambda path: path.parent.name)
def test_dockerfile_needs_no_frontend(path: Path) -> None:
    """No syntax line and no here-document, so that an engine without a registry can build it; bases can be replaced."""
    text = path.read_text()
    assert "syntax=" not in text
    assert "<<" not in text
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert stages
    assert all(re.fullmatch(r"\$\{[A-Z]+_IMAGE\}", stage) for stage in stages)


def test_dependencies_are_a_layer_of_their_own() -> None:
    """The stage that installs knows the lock alone, and takes nothing without its hash."""
    stage = DOCKERFILE.split("\nFROM ")[1]
    assert re.findall(r"^COPY (.*)$", stage, re.MULTILINE) == ["requirements.lock /build/"]
    assert "--require-hashes" in stage
    assert "--only-binary :all:" in stage


def test_image_has_every_package() -> None:
    """Each package of the project is copied, and .dockerignore lets it through."""
    packages = sorted(path.parent.name for path in ROOT.glob("*/py.typed"))
    copied = re.findall(r"^COPY (\w+)/ \1/$", DOCKERFILE, re.MULTILINE)
    assert copied == packages
    allowed = [line[1:] for line in dockerignore() if line.startswith("!")]
    assert allowed == ["requirements.lock", *packages, "deploy/image"]


def test_nothing_else_reaches_the_build() -> None:
    """.dockerignore leaves out everything first: secrets, `.env`, tests and .git come back by no later line."""
    first, *others = dockerignore()
    assert first == "*"
    assert [line for line in others if not line.startswith("!")] == ["**/__pycache__", "**/*.pyc", "**/.env*"]


def dockerignore() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_no_secret_is_built_in() -> None:
    """No build argument and no variable of the image is a secret."""
    names = re.findall(r"^(?:ARG|ENV|    )\s*([A-Z_]+)=", DOCKERFILE, re.MULTILINE)
    assert {"PYTHON_IMAGE", "VERSION", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"} <= set(names)
    assert not [name for name in names if re.search("PASSWORD|TOKEN|SECRET|URL", name)]


def test_version_is_the_projects() -> None:
    """The images' labels say the project's version."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for path in OWN_IMAGES.values():
        assert f"ARG VERSION={version[1]}\n" in path.read_text()
