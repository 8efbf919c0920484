"""What the tests on a real Docker engine share: the engine, the two images, stacks of their own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.e2e.stack import Images, Stack, copy_clone, docker_environ
from tests.secrecy import Secrecy

BUILD_S = 15 * 60.0
OPENED = pytest.StashKey[list[Stack]]()
StackFactory = Callable[[str], Stack]


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder is `e2e`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OPENED] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what state the stacks are in, and the end of their logs."""
    report = yield
    if report.failed and call.excinfo is not None and not call.excinfo.errisinstance(KeyboardInterrupt):
        for stack in item.config.stash[OPENED]:
            report.sections.append((f"containers of {stack.folder.name}", str(stack.states())))
            report.sections.append((f"logs of {stack.folder.name}", stack.logs(tail=15)))
    return report


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A reachable Docker engine with compose; the tests are skipped with the reason where there is none."""
    if shutil.which("docker") is None:
        pytest.skip("no docker on PATH")
    for command in (["docker", "version", "--format", "{{.Server.Version}}"], ["docker", "compose", "version"]):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if asked.returncode:
            pytest.skip(f"{' '.join(command[:2])}: {(asked.stderr or asked.stdout).strip().splitlines()[-1]}")

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # so that whatever is up comes down, as at Ctrl-C

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def images(engine: None, stacks_folder: Path, secrecy: Secrecy) -> Iterator[Images]:
    """Both images, built once, from what git knows or would take in: as in a clone."""
    run = uuid.uuid4().hex[:8]
    tags = Images(f"poolctl:e2e-{run}", f"poolctl-pgbouncer:e2e-{run}")
    context = stacks_folder / "build"
    copy_clone(context)
    plant_secrets(context, secrecy)
    names = {"POOLCTL_IMAGE": tags.poolctl, "PGBOUNCER_IMAGE": tags.pgbouncer}
    build = ["docker", "compose", "--profile", "*", "build"]
    built = subprocess.run(
        build,
        cwd=context,
        env=docker_environ() | names,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    (secrecy.folder / "e2e-build.log").write_text(built.stdout)
    assert built.returncode == 0, built.stdout
    yield tags
    subprocess.run(["docker", "image", "rm", "-f", tags.poolctl, tags.pgbouncer], capture_output=True, check=False)


PLANTED = "planted-4f1d"


def plant_secrets(folder: Path, secrecy: Secrecy) -> None:
    """Secrets as they lie in a folder that is in use: nothing that is built there may hold them."""
    secrecy.secrets.add(PLANTED)
    (folder / ".env").write_text(f"DB_PASSWORD={PLANTED}\n")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "db_password").write_text(PLANTED)


@pytest.fixture(scope="session")
def stacks_folder() -> Iterator[Path]:
    """Not one of pytest's own, which it clears away when three other runs have been started."""
    folder = Path(tempfile.mkdtemp(prefix="poolctl-e2e-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def open_stack(name: str, folder: Path, images: Images, secrecy: Secrecy, opened: list[Stack]) -> Iterator[Stack]:
    """A stack of its own, not yet up. Whatever happens inside, nothing of it is left."""
    stack = Stack(folder / f"e2e-{name}-{uuid.uuid4().hex[:8]}", images, secrecy)
    opened.append(stack)
    try:
        stack.create()
        yield stack
    finally:
        opened.remove(stack)
        stack.close()


@pytest.fixture(scope="session")
def opened_stacks(pytestconfig: pytest.Config) -> list[Stack]:
    """Those that are open now."""
    return pytestconfig.stash[OPENED]


@pytest.fixture(scope="module")
def stack(
    request: pytest.FixtureRequest, images: Images, stacks_folder: Path, secrecy: Secrecy, opened_stacks: list[Stack]
) -> Iterator[Stack]:
    """The stack of a module, whose tests go on with what the ones before them left; created, not yet up."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    with open_stack(name, stacks_folder, images, secrecy, opened_stacks) as opened:
        yield opened


@pytest.fixture(scope="session")
def refused(images: Images, stacks_folder: Path, secrecy: Secrecy, opened_stacks: list[Stack]) -> Iterator[Stack]:
    """A stack of two workers whose settings are refused, and of nothing else: they never get as far as a server.

    Of the session, because the engine takes two minutes for the restarts that it grants them.
    """
    with open_stack("refused", stacks_folder, images, secrecy, opened_stacks) as opened:
        opened.set(DATABASE_URL=opened.url(), DB_POOL_MAX=5)
        opened.compose("up", "-d", "--no-deps", "worker")
        yield opened
