"""deploy/kubernetes: valid by Kubernetes' own schemas, sound in its numbers, in step with the rest of the project."""

from __future__ import annotations

import base64
import itertools
import os
import re
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from config import Settings
from fleet.plan import Demand, Plan, Pooler, Supply, Verdict
from tests.compose_file import COMPOSED, megabytes, seconds
from tests.kustomization import Resource, build
from tests.shell_script import run
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
VERSIONS = ("1.31", "1.37")  # the first with a Job's podFailurePolicy as stable, and the newest known
KEDA = {"ScaledObject", "TriggerAuthentication"}  # whose schemas no package has
HASH = re.compile(r"\b(settings|passwords)-[a-z0-9]{10}\b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/kubernetes, with passwords."""
    copy = tmp_path_factory.mktemp("deploy") / "kubernetes"
    shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("*_password"))
    environ = {"PATH": os.environ["PATH"], "SECRETS_DIR": str(copy / "base" / "secrets")}
    script = ROOT / "deploy" / "secrets.sh"  # elsewhere than in this clone, whose .env it would read
    subprocess.run(["sh", script], env=environ, cwd=copy, check=True, capture_output=True, timeout=30)
    return copy


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def resources(folder: Path, overlay: str) -> list[Resource]:
    return build(folder / "overlays" / overlay)


def one(resources: list[Resource], kind: str, name: str) -> Resource:
    (found,) = [each for each in resources if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(resources: list[Resource]) -> dict[str, dict[str, Any]]:
    """What each Deployment and Job runs."""
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in made_of_pods(resources)}


def made_of_pods(resources: list[Resource]) -> list[Resource]:
    """Deployments and Jobs."""
    return [each for each in resources if "template" in each.get("spec", {})]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(resources: list[Resource], container: dict[str, Any]) -> dict[str, str]:
    """A container's variables; references to a secret that need not exist are left out."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= one(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in container.get("env", []):
        if "value" in entry:
            variables[entry["name"]] = entry["value"]
        elif "configMapKeyRef" in entry["valueFrom"]:
            reference = entry["valueFrom"]["configMapKeyRef"]
            variables[entry["name"]] = one(resources, "ConfigMap", reference["name"])["data"][reference["key"]]
        else:
            assert entry["valueFrom"]["secretKeyRef"]["optional"]
    return variables


def settings_of(resources: list[Resource], name: str, folder: Path) -> Settings:
    """The settings that a process of this deployment finds, with its secrets where they are on this machine."""
    container = pods(resources)[name]["containers"][0]
    variables = environment(resources, container)
    here = {key: value.replace("/run/secrets", f"{folder}/base/secrets") for key, value in variables.items()}
    return Settings.load({"worker": "worker", "bot": "bot"}.get(name, "poolctl"), here)


def most_workers(settings: Settings, supply: Supply, pooler: Pooler | None) -> int:
    """The most that fit even while all are replaced: each counted twice."""
    for workers in itertools.count(1):
        demand = Demand(workers=workers, pool_max=settings.db.pool_max, surge=2)
        if Plan(demand, supply, pooler).verdict_deploy is not Verdict.FITS:
            return workers - 1
    raise AssertionError


def test_there_are_overlays() -> None:
    """These tests read something."""
    assert OVERLAYS == ["direct", "direct-keda", "pgbouncer", "pgbouncer-keda"]


def test_kubectl_makes_the_same(folder: Path, overlay: str, resources: list[Resource]) -> None:
    """The reader that these tests use makes what kubectl makes, where there is one."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on PATH")
    command = [kubectl, "kustomize", folder / "overlays" / overlay]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    without_hash = list(yaml.safe_load_all(HASH.sub(r"\1", done.stdout)))
    assert len(HASH.findall(done.stdout)) > len(without_hash), "the hashes reach whoever refers to them"
    key = lambda each: (each["kind"], each["metadata"]["name"])  # noqa: E731
    assert sorted(without_hash, key=key) == sorted(resources, key=key)


@pytest.mark.parametrize("version", VERSIONS)
def test_schema(resources: list[Resource], version: str) -> None:
    """Each resource passes Kubernetes' schema, which knows every word in it; no cluster and no network is asked."""
    ours = [each for each in resources if each["kind"] not in KEDA]
    assert len(ours) >= 8
    for resource in ours:
        kubernetes_validate.validate(resource, version, strict=True)


def test_schema_refuses(resources: list[Resource]) -> None:
    """A word that Kubernetes does not know would be found."""
    worker = one(resources, "Deployment", "worker")
    worker["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worker, VERSIONS[-1], strict=True)


def test_no_namespace(resources: list[Resource]) -> None:
    """Whoever applies it says where."""
    assert [each for each in resources if "namespace" in each["metadata"]] == []


def test_every_pod_is_confined(resources: list[Resource]) -> None:
    """Not root, nothing to write on but memory, no capabilities, no service account, no variables of services."""
    for name, pod in pods(resources).items():
        assert pod["enableServiceLinks"] is False, name
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        for volume in pod["volumes"]:
            assert volume.get("emptyDir", {"medium": "Memory"})["medium"] == "Memory"


def test_the_user_is_the_images(resources: list[Resource]) -> None:
    """Its number is that of the image, and it may read the secrets."""
    dockerfiles = {"pgbouncer": ROOT / "pgbouncer" / "Dockerfile"}
    for name, pod in pods(resources).items():
        text = dockerfiles.get(name, ROOT / "Dockerfile").read_text()
        context = pod["securityContext"]
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in text
        (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert (context["fsGroup"], secret["defaultMode"]) == (context["runAsGroup"], 0o440)


def test_a_pod_sees_its_own_secrets(resources: list[Resource]) -> None:
    """The application's passwords, and PgBouncer's only for PgBouncer and the migration; no variable holds one."""
    pooled = "pgbouncer" in pods(resources)
    secrets = one(resources, "Secret", "passwords")["data"]
    for name, pod in pods(resources).items():
        (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        names = {item["key"] for item in secret["items"]}
        expected = set() if name == "pgbouncer" else {"db_password", "redis_password"}
        assert names == expected | ({"pgbouncer_password"} if name in ("pgbouncer", "migrate") and pooled else set())
        assert names <= set(secrets)
        for container in containers(pod):
            variables = environment(resources, container)
            files = {Path(value).name for key, value in variables.items() if key.endswith("_PASSWORD_FILE")}
            assert name == "pgbouncer" or files == names - (
                {"pgbouncer_password"} if container["name"] == "wait" else set()
            )
            assert {"DB_PASSWORD", "REDIS_PASSWORD", "PGBOUNCER_PASSWORD"} & set(variables) == set()


def test_no_secret_ends_in_a_line_break(resources: list[Resource]) -> None:
    """KEDA takes the value as it is: with a line break it would be another password."""
    values = [base64.b64decode(value) for value in one(resources, "Secret", "passwords")["data"].values()]
    assert len(values) == 3
    assert all(value and value == value.strip() for value in values)


def test_no_secret_is_committed() -> None:
    """Git passes over the folder of the passwords, which is there only once they are made."""
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    generated = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())["secretGenerator"]
    assert {str(Path(file).parent) for secret in generated for file in secret["files"]} == {"secrets"}


def test_settings(resources: list[Resource], overlay: str, folder: Path) -> None:
    """Every process accepts its variables without a warning, and goes where the overlay's name says."""
    for name in ("worker", "bot", "migrate"):
        settings = settings_of(resources, name, folder)
        assert settings.warnings == ()
        pooled = overlay.startswith("pgbouncer")
        assert settings.db.addresses == ("pgbouncer:6432" if pooled else "postgres:5432")
        assert settings.db.direct_addresses == "postgres:5432"
        assert (settings.pgbouncer.host, settings.pgbouncer.port) == ("pgbouncer" if pooled else None, 6432)
        assert (settings.pgbouncer.password is not None) == (pooled and name == "migrate")


def test_network(resources: list[Resource], folder: Path) -> None:
    """Nobody is let in but PgBouncer's clients, and out only where the settings point to."""
    settings = settings_of(resources, "worker", folder)
    policies = {each["metadata"]["name"]: each["spec"] for each in resources if each["kind"] == "NetworkPolicy"}
    assert policies["processes"]["ingress"] == []
    out = {port["port"] for rule in policies["processes"]["egress"] for port in rule["ports"]}
    assert out == {53, *settings.db.direct_port, *settings.db.port, settings.redis.port}
    selected: set[str] = set()
    for policy in policies.values():
        selector = policy["podSelector"]
        selected.update(selector.get("matchLabels", {}).values())
        selected.update(*(each["values"] for each in selector.get("matchExpressions", [])))
    labels = {
        each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] for each in made_of_pods(resources)
    }
    assert selected == labels == set(pods(resources))


def test_most_workers(resources: list[Resource], overlay: str, folder: Path) -> None:
    """There may be as many workers as the plan allows with each counted twice, and the migration counts with them."""
    settings = settings_of(resources, "migrate", folder)
    supply = Supply(max_connections=settings.stack.postgres_max_connections)
    bouncer = settings.pgbouncer
    pooler = Pooler(
        default_pool_size=bouncer.default_pool_size,
        reserve_pool_size=bouncer.reserve_pool_size,
        max_client_conn=bouncer.max_client_conn,
    )
    most = most_workers(settings, supply, pooler if overlay.startswith("pgbouncer") else None)
    worker = one(resources, "Deployment", "worker")
    if overlay.endswith("-keda"):
        scaled = one(resources, "ScaledObject", "worker")["spec"]
        assert "replicas" not in worker["spec"], "an apply would set the number back"
        assert settings.fleet.workers == scaled["maxReplicaCount"] == most
        assert 1 <= scaled["minReplicaCount"] <= most
        document = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
        assert re.search(
            rf"^\| `{overlay}` \|.* {scaled['minReplicaCount']} to {most}, by the queue", document, re.MULTILINE
        )
    else:
        assert settings.fleet.workers == worker["spec"]["replicas"] <= most
    assert settings.fleet.plan_check == "error"


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.startswith("pgbouncer")], indirect=True)
def test_two_poolers_fit(resources: list[Resource], folder: Path) -> None:
    """While PgBouncer is replaced there are two, and PostgreSQL has room for both."""
    deployment = one(resources, "Deployment", "pgbouncer")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["rollingUpdate"]["maxSurge"]) == (1, 1)
    bouncer = settings_of(resources, "migrate", folder).pgbouncer
    both = Pooler(
        default_pool_size=2 * bouncer.default_pool_size,
        reserve_pool_size=2 * bouncer.reserve_pool_size,
        max_client_conn=bouncer.max_client_conn,
    )
    assert Plan(Demand(workers=99, pool_max=5), Supply(), both).verdict is Verdict.FITS


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith("-keda")], indirect=True)
def test_queue(resources: list[Resource], folder: Path) -> None:
    """KEDA looks at the queue that the workers take from, and wants two jobs for each that a worker runs at once."""
    settings = settings_of(resources, "worker", folder)
    (trigger,) = one(resources, "ScaledObject", "worker")["spec"]["triggers"]
    variables = environment(resources, pods(resources)["worker"]["containers"][0])
    metadata = trigger["metadata"]
    assert trigger["type"] == "redis"
    assert variables[metadata["hostFromEnv"]] == settings.redis.host
    assert variables[metadata["portFromEnv"]] == str(settings.redis.port)
    assert (metadata["listName"], metadata["databaseIndex"]) == (settings.worker.queue, str(settings.redis.db))
    assert int(metadata["listLength"]) == 2 * settings.worker.max_jobs
    authentication = one(resources, "TriggerAuthentication", trigger["authenticationRef"]["name"])
    (parameter,) = authentication["spec"]["secretTargetRef"]
    assert parameter == {"parameter": "password", "name": "passwords", "key": "redis_password"}


def test_time_to_stop(resources: list[Resource], folder: Path) -> None:
    """Jobs that run may finish before the pod is killed; each pod has at least the time that compose gives."""
    grace_s = settings_of(resources, "worker", folder).worker.shutdown_grace
    pod = pods(resources)
    assert pod["worker"]["terminationGracePeriodSeconds"] > grace_s
    for name in set(pod) - {"migrate"}:
        composed = seconds(re.sub(r"\$\{\w+:-(\d+)\}", r"\1", COMPOSED[name]["stop_grace_period"]))
        assert pod[name]["terminationGracePeriodSeconds"] >= composed


def test_limits(resources: list[Resource]) -> None:
    """As much memory as compose gives."""
    for name, pod in pods(resources).items():
        for container in containers(pod):
            composed = megabytes(COMPOSED[name]["deploy"]["resources"]["limits"]["memory"])
            assert container["resources"]["limits"]["memory"] == f"{composed}Mi"


def test_one_bot(resources: list[Resource]) -> None:
    """Two bots with one token would take each other's messages."""
    spec = one(resources, "Deployment", "bot")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("name", ["worker", "bot"])
def test_probes(resources: list[Resource], name: str, tmp_path: Path) -> None:
    """A process is up when it says so, and is killed when it is dead or stuck, but not because Redis is away."""
    (container,) = pods(resources)[name]["containers"]
    assert container["args"] == ["python", "-m", name]
    assert container["startupProbe"]["exec"]["command"] == ["python", "-m", name, "--health"]
    shell, option, script = container["livenessProbe"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    assert script.startswith(f"python -m {name} --health ")
    codes = {code: run(script, tmp_path, python=f"exit {code}").returncode for code in range(4)}
    assert {code for code, ended in codes.items() if ended == 0} == {0, 3}
    # Compose's check has so much time, on the same machines.
    patience_s = seconds(COMPOSED[name]["healthcheck"]["timeout"])
    for probe in (container["startupProbe"], container["livenessProbe"]):
        assert probe["timeoutSeconds"] >= patience_s


@pytest.mark.parametrize("name", ["worker", "bot"])
def test_waits_for_the_schema(resources: list[Resource], name: str, tmp_path: Path) -> None:
    """While `poolctl check` exits with 3 the pod waits; any other code is for the process itself to tell."""
    (container,) = pods(resources)[name]["initContainers"]
    shell, option, script = container["args"]
    assert (shell, option) == ("sh", "-c")
    for code in range(3):
        called = tmp_path / f"calls-{code}"
        check = f'echo x >>{called}; [ "$(wc -l <{called})" -lt 3 ] && exit 3; exit {code}'
        assert run(script, tmp_path, poolctl=check, sleep=":").returncode == 0
        assert called.read_text().count("x") == 3


@pytest.mark.parametrize("name", ["worker", "bot"])
@pytest.mark.parametrize("stuck", ["poolctl", "sleep"])
def test_a_pod_that_waits_can_be_deleted(resources: list[Resource], name: str, stuck: str, tmp_path: Path) -> None:
    """SIGTERM ends the wait at once, by a trap: as process 1 a shell would ignore it."""
    (container,) = pods(resources)[name]["initContainers"]
    called = tmp_path / "called"
    for command, text in {
        "poolctl": "exit 3",
        "sleep": "exit 0",
        stuck: f"touch {called}; exec tail -f /dev/null",
    }.items():
        program = tmp_path / command
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(container["args"], env=environ, start_new_session=True)
    try:
        wait_until(called.exists, timeout_s=10, what=f"{stuck} is called")
        process.terminate()
        assert process.wait(timeout=10) == 143
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def test_migration_gives_up_at_once(resources: list[Resource]) -> None:
    """Bad settings and a fleet that does not fit stay so; an unreachable server is tried again."""
    spec = one(resources, "Job", "migrate")["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "migrate", "operator": "In", "values": [1, 2]}
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy asks for it"


def test_images(resources: list[Resource]) -> None:
    """The project's own two, in its version; a tag that is not `latest` is not pulled where it is there."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for pod in pods(resources).values() for container in containers(pod)}
    assert images <= {f"poolctl:{version}", f"poolctl-pgbouncer:{version}"}


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    """Without the passwords nothing is built, and the file's name is said."""
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("*_password"))
    with pytest.raises(FileNotFoundError, match="db_password"):
        build(copy / "overlays" / "direct")
