"""Where a task is, and who took a connection: real tasks, at every kind of waiting."""

from __future__ import annotations

import asyncio
import linecache
import os
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pool.stacks import call_site, stack_of

HERE = os.path.relpath(__file__)


async def outer() -> None:
    await inner()  # outer awaits


async def inner() -> None:
    await asyncio.Event().wait()  # inner awaits


class Query:
    """Awaited as Tortoise's query sets are: the coroutine itself is in no attribute that Python shows."""

    def __await__(self) -> Generator[Any, None, None]:
        return inner().__await__()


async def through_a_query() -> None:
    await Query()  # the query


async def rows() -> AsyncIterator[int]:
    await inner()  # the generator
    yield 1


async def through_a_generator() -> None:
    async for _ in rows():  # the loop
        pass


@asynccontextmanager
async def transaction() -> AsyncIterator[None]:
    await inner()  # entering
    yield


async def through_a_context() -> None:
    async with transaction():  # the block
        pass


@types.coroutine
def old_style() -> Generator[Any, None, None]:
    yield from inner().__await__()  # old style


async def through_a_plain_generator() -> None:
    await old_style()  # a plain generator


async def settled(coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
    """A task for it, at its first wait."""
    task = asyncio.create_task(coroutine, name="tested")
    await asyncio.sleep(0)
    return task


async def ended(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.wait([task])


def source(line: str) -> str:
    """The comment at the end of the source line that "path:line in function" names."""
    path, _, number = line.partition(" in ")[0].rpartition(":")
    return linecache.getline(path, int(number)).rpartition("# ")[2].strip()


async def test_every_frame_outermost_first() -> None:
    """Each coroutine on the way is a line: path below the working directory, line of its await, name."""
    task = await settled(outer())
    lines = stack_of(task)
    await ended(task)
    assert [line.partition(":")[0] for line in lines[:2]] == [HERE, HERE]
    assert [line.partition(" in ")[2] for line in lines] == ["outer", "inner", "Event.wait"]
    assert [source(line) for line in lines[:2]] == ["outer awaits", "inner awaits"]


@pytest.mark.parametrize(
    ("function", "comments"),
    [
        (through_a_query, ["the query", "inner awaits"]),
        (through_a_generator, ["the loop", "the generator", "inner awaits"]),
        (through_a_context, ["the block", "entering", "inner awaits"]),
        (through_a_plain_generator, ["a plain generator", "old style", "inner awaits"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_what_hides_a_frame_is_looked_through(
    function: Callable[[], Coroutine[Any, Any, None]], comments: list[str]
) -> None:
    """Neither an `__await__` nor a generator of either kind ends the list."""
    task = await settled(function())
    lines = [line for line in stack_of(task) if line.startswith(HERE)]
    await ended(task)
    assert [source(line) for line in lines] == comments


async def test_a_wait_in_c_ends_the_list() -> None:
    """Futures, other tasks, gather, shield and locks have no frames: the list ends where they are awaited."""
    loop = asyncio.get_running_loop()
    other = await settled(inner())
    lock = asyncio.Lock()
    await lock.acquire()
    queue: asyncio.Queue[None] = asyncio.Queue()
    future: asyncio.Future[None] = loop.create_future()
    waits: list[Callable[[], Any]] = [
        lambda: future,
        lambda: other,
        lambda: asyncio.gather(other, future),
        lambda: asyncio.shield(other),
        lambda: anext(rows(), None),
        lock.acquire,
        queue.get,
        lambda: asyncio.sleep(60),
        lambda: asyncio.wait_for(future, 60),
    ]
    for wait in waits:

        async def waiting(wait: Callable[[], Any] = wait) -> None:
            await wait()  # waits in C

        task = await settled(waiting())
        lines = stack_of(task)
        await ended(task)
        assert source(lines[0]) == "waits in C"
        assert [line for line in lines[1:] if line.startswith(HERE)] == []
        if other.done():  # gather and the plain await cancel what they wait for
            other = await settled(inner())
        if future.done():
            future = loop.create_future()
    await ended(other)


async def test_a_task_that_has_ended_is_nowhere() -> None:
    """Returned, failed or cancelled: an empty list."""

    async def returns() -> None:
        pass

    async def fails() -> None:
        raise ValueError

    for coroutine in (returns(), fails(), inner()):
        task = await settled(coroutine)
        await ended(task)
        assert stack_of(task) == []
        assert task.cancelled() or task.exception() is None or isinstance(task.exception(), ValueError)


async def test_a_task_that_runs_or_has_not_begun_is_in_its_outermost_frame() -> None:
    """No error for the task that asks about itself, nor for one that never ran."""

    async def asks() -> list[str]:
        return await answers()

    async def answers() -> list[str]:
        task = asyncio.current_task()
        assert task is not None
        return stack_of(task)

    (line,) = await asyncio.create_task(asks())
    assert line.endswith(".asks")
    task = asyncio.create_task(outer())
    (line,) = stack_of(task)
    await ended(task)  # type: ignore[arg-type]
    assert line.endswith(" in outer")


# call_site


def library(package: str) -> Callable[..., Coroutine[Any, Any, str]]:
    """`through(function)` of a module in `package`: awaits `function`, or asks for the call site where it is None."""
    code = "async def through(function=None):\n    return call_site() if function is None else await function()\n"
    namespace: dict[str, Any] = {"__name__": f"{package}.client", "call_site": call_site}
    exec(compile(code, f"/opt/{package}/client.py", "exec"), namespace)
    through: Callable[..., Coroutine[Any, Any, str]] = namespace["through"]
    return through


@pytest.mark.parametrize("package", ["asyncio", "asyncpg", "contextlib", "pool", "tortoise"])
async def test_call_site_is_the_application(package: str) -> None:
    """Frames of the pool and of the libraries above it are passed over, however many there are."""
    through = library(package)

    async def send() -> str:
        return await through(through)  # the application

    async def handler() -> str:
        return await send()  # further out

    line = await asyncio.create_task(handler())
    assert line.startswith(f"{HERE}:")
    assert line.endswith(".send")
    assert source(line) == "the application"


async def test_call_site_looks_only_at_whole_names() -> None:
    """A package whose name merely begins as a library's does is the application."""
    assert await library("pooling")() == "/opt/pooling/client.py:2 in through"


async def test_call_site_sees_through_a_context_manager() -> None:
    """With `@asynccontextmanager` it is the line that acquires, not contextlib's."""
    through = library("pool")
    seen = []

    @asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        seen.append(await through())  # acquires
        yield

    async with connection():
        pass
    assert [source(line) for line in seen] == ["acquires"]


async def test_call_site_stays_in_its_task() -> None:
    """Of a task that is a library's coroutine alone it is that coroutine, not the line that runs the event loop."""
    assert await asyncio.create_task(library("tortoise")()) == "/opt/tortoise/client.py:2 in through"


def test_call_site_stays_in_its_task_whoever_runs_the_loop() -> None:
    """The same where the event loop's own frames are not the standard library's, as under uvloop."""

    async def main() -> str:
        return await asyncio.create_task(library("tortoise")(library("asyncpg")))

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        assert runner.run(main()) == "/opt/tortoise/client.py:2 in through"


async def test_call_site_in_a_callback() -> None:
    """Outside any task there is still an answer."""
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: answer.set_result(call_site()))  # a callback
    async with asyncio.timeout(20):
        assert source(await answer) == "a callback"


# Paths


async def test_a_path_outside_the_working_directory_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative when below the working directory, absolute elsewhere, also where the names merely begin alike."""
    inside, beside = tmp_path / "app", tmp_path / "app-other"
    inside.mkdir()
    monkeypatch.chdir(inside)

    async def at(file: Path) -> str:
        namespace: dict[str, Any] = {"__name__": "jobs", "call_site": call_site}
        exec(compile("async def send():\n    return call_site()\n", str(file), "exec"), namespace)
        return str(await namespace["send"]())

    assert await at(inside / "sub" / "jobs.py") == f"{Path('sub') / 'jobs.py'}:2 in send"
    assert await at(beside / "jobs.py") == f"{beside / 'jobs.py'}:2 in send"


async def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are absolute then, and nothing is raised."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert await library("pooled")() == "/opt/pooled/client.py:2 in through"
