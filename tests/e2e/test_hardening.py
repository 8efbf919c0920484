"""What an intruder, or a curious colleague, finds: no secret, no root, nothing to write to, no open port."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.e2e.conftest import PLANTED
from tests.e2e.stack import Images, Stack

SERVICES = ("postgres", "redis", "worker", "bot", "pgbouncer")


@pytest.fixture(scope="module")
def up(stack: Stack) -> Stack:
    """A small stack with all services."""
    stack.set(WORKERS=1, COMPOSE_PROFILES="pgbouncer")
    stack.up()
    stack.wait_for_processes(2)
    stack.load(20).wait().check(units=16)
    return stack


def everything_said(stack: Stack) -> dict[str, str]:
    """What the engine and compose tell whoever may ask them, by the command that asks."""
    ids = [container.id for container in stack.containers()]
    volumes = stack.run(
        "docker", "volume", "ls", "-q", "--filter", f"label=com.docker.compose.project={stack.folder.name}"
    )
    images = [stack.images.poolctl, stack.images.pgbouncer]
    history = ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}} {{.Comment}}"]
    said = {
        "docker inspect": stack.run("docker", "inspect", *ids, *volumes.stdout.split(), *images),
        "docker compose config": stack.compose("--profile", "*", "config"),
        "docker compose logs": stack.compose("logs", "--no-color"),
        "docker compose ps": stack.compose("ps", "-a", "--no-trunc", "--format", "json"),
        "docker top": stack.compose("top"),
        **{f"docker history {image}": stack.run(*history, image) for image in images},
    }
    return {command: done.stdout + done.stderr for command, done in said.items()}


def test_no_secret_is_shown(up: Stack) -> None:
    """No password is in inspect, config, logs, process lists or the images' history."""
    secrets = up.secrets()
    assert {"db_password", "redis_password", "postgres_password", "pgbouncer_password"} <= set(secrets)
    for command, said in everything_said(up).items():
        assert len(said) > 20, command
        assert [name for name, secret in secrets.items() if secret in said] == [], command


@pytest.mark.parametrize("image", ["poolctl", "pgbouncer"])
def test_images_are_small(images: Images, image: str) -> None:
    """Both are under 250 MB."""
    inspect = ["docker", "image", "inspect", "--format", "{{.Size}}", getattr(images, image)]
    size = int(subprocess.run(inspect, capture_output=True, text=True, timeout=30, check=True).stdout)
    assert 10_000_000 < size < 250_000_000


@pytest.mark.parametrize("image", ["poolctl", "pgbouncer"])
def test_no_secret_is_in_the_image(images: Images, image: str) -> None:
    """An image built where `.env` and `secrets/` lie holds neither; tests and the repository's history stay out too."""
    tag = getattr(images, image)
    created = subprocess.run(["docker", "create", tag], capture_output=True, text=True, check=True).stdout.strip()
    try:
        export = subprocess.run(["docker", "export", created], stdout=subprocess.PIPE, check=True).stdout
    finally:
        subprocess.run(["docker", "rm", created], capture_output=True, check=True)
    assert len(export) > 50_000_000
    assert PLANTED.encode() not in export
    for name in (b"app/.env", b"app/.git", b"app/secrets", b"app/tests"):
        assert name + b"/" not in export
        assert name + b"\0" not in export


@pytest.mark.parametrize("service", SERVICES)
def test_no_process_is_root(up: Stack, service: str) -> None:
    """Every process of every service has another user, no capability, and can get none."""
    for container in up.running(service):
        top = up.run("docker", "top", container.id, "-eo", "uid,pid,comm").stdout.splitlines()[1:]
        assert top
        assert [line for line in top if line.split()[0] == "0"] == []
    status = up.compose("exec", "-T", service, "cat", "/proc/1/status").stdout
    status_of = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "0" not in status_of["Uid"].split()
    assert int(status_of["CapEff"], 16) == int(status_of["CapPrm"], 16) == int(status_of["CapBnd"], 16) == 0
    assert status_of["NoNewPrivs"] == "1"


@pytest.mark.parametrize("service", SERVICES)
def test_file_system_is_read_only(up: Stack, service: str) -> None:
    """Nothing can be written but data, where there are some, and temporary files."""
    (container,) = up.running(service)
    assert container.inspected["HostConfig"]["ReadonlyRootfs"] is True
    assert container.inspected["HostConfig"]["Privileged"] is False
    root = up.compose("exec", "-T", service, "sh", "-c", "echo x > /written", check=False)
    assert root.returncode != 0
    assert "read-only file system" in root.stderr.lower()
    writable = {mount["Destination"] for mount in container.inspected["Mounts"] if mount["RW"]}
    assert writable <= {"/var/lib/postgresql/data", "/data"}
    up.compose("exec", "-T", service, "sh", "-c", "echo x > /tmp/written || test ! -w /tmp")


@pytest.mark.parametrize("service", SERVICES)
def test_resources_are_bounded(up: Stack, service: str) -> None:
    """Memory, processes and logs have a limit."""
    (container,) = up.running(service)
    host = container.inspected["HostConfig"]
    assert 0 < host["Memory"] <= 2 * 2**30
    assert 0 < host["PidsLimit"] <= 4096
    assert host["LogConfig"]["Config"].keys() >= {"max-size", "max-file"}


def test_no_port_is_open_on_the_host(up: Stack) -> None:
    """Nothing is published, and no service shares a namespace of the host."""
    for container in up.containers():
        assert [ports for ports in container.inspected["NetworkSettings"]["Ports"].values() if ports] == []
        host = container.inspected["HostConfig"]
        assert not host["PortBindings"]
        assert not host["PublishAllPorts"]
        modes = {host[name] for name in ("NetworkMode", "PidMode", "IpcMode", "UTSMode", "UsernsMode")}
        assert "host" not in modes
    published = json.loads("[" + ",".join(up.compose("ps", "--format", "json").stdout.splitlines()) + "]")
    assert {publisher["PublishedPort"] for each in published for publisher in each["Publishers"] or []} <= {0}


def test_the_application_is_no_superuser(up: Stack) -> None:
    """Its role owns its database and reads statistics; no role that anything logs in with by network is more."""
    rows = up.psql("SELECT rolname, rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolcanlogin ORDER BY 1")
    assert rows.splitlines() == ["app|f|f|f", "pgbouncer|f|f|f", "postgres|t|t|t"]
    assert up.psql("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'") == "app"
    assert up.psql("SELECT pg_has_role('app', 'pg_monitor', 'usage')") == "t"
    assert "idle_in_transaction_session_timeout=60s" in up.psql(
        "SELECT unnest(rolconfig) FROM pg_roles WHERE rolname='app'"
    )
