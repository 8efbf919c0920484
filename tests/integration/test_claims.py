from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as QueuedJob
from arq.jobs import JobStatus
from redis.exceptions import ConnectionError as RedisConnectionError

from config import Settings
from fleet.claims import Claim, Claims, Look
from fleet.dead_letters import read_dead, retry_dead
from fleet.jobs import PRUNE_SAMPLES, Arguments, Job, NoArguments, abort, enqueue
from fleet.queue import open_queue
from tests.proxy import Proxy, open_proxy
from tests.waiting import until

LEASE_S = 1.0
LATER = Job("later", NoArguments, int, unique_key=lambda _: "one")


class Named(Arguments):
    """Of any size."""

    name: str


@pytest.fixture
async def queue(environ: dict[str, str]) -> AsyncIterator[ArqRedis]:
    async with open_queue(Settings.load("worker", environ)) as opened:
        yield opened


def _claims(queue: ArqRedis, owner: str = "a", **changes: float) -> Claims:
    return Claims(queue, owner, **{"lease_s": LEASE_S} | changes)  # type: ignore[arg-type]


async def _enqueue(queue: ArqRedis, count: int = 1) -> list[QueuedJob]:
    return [await enqueue(queue, PRUNE_SAMPLES, NoArguments()) for _ in range(count)]


async def _claim(claims: Claims) -> Claim:
    (claim,) = (await claims.claim(10)).claims
    return claim


async def test_a_job_is_claimed_once(queue: ArqRedis) -> None:
    """Of ten workers that look at the same moment each gets other jobs, and together they get all of them."""
    await queue.script_flush()  # as with the first workers ever
    jobs = await _enqueue(queue, 30)
    looks = await asyncio.gather(*(_claims(queue, f"w{number}").claim(3) for number in range(10)))
    claimed = [claim.id for look in looks for claim in look.claims]
    assert sorted(claimed) == sorted(job.job_id.encode() for job in jobs)


async def test_the_first_come_are_the_first_served(queue: ArqRedis) -> None:
    """Jobs are claimed in the order in which they became due, and a look tells how many are left."""
    past = datetime.now(UTC) - timedelta(seconds=1)  # within one millisecond there is no order
    jobs = [await enqueue(queue, PRUNE_SAMPLES, NoArguments(), at=past + timedelta(milliseconds=n)) for n in range(5)]
    look = await _claims(queue).claim(3)
    assert [claim.name for claim in look.claims] == [job.job_id for job in jobs[:3]]
    assert look.left == 2


async def test_arqs_client_sees_where_a_job_is(queue: ArqRedis) -> None:
    """arq's own status is right through the life of a job: deferred, queued, in progress, queued again, complete."""
    claims = _claims(queue)
    job = await enqueue(queue, PRUNE_SAMPLES, NoArguments(), after_s=0.2)
    seen = [await job.status()]
    look = await claims.claim(1)
    assert look.claims == ()
    assert look.again_s is not None
    assert 0 < look.again_s <= 0.2
    claim = await until(lambda: _claimed(claims))
    seen.append(await job.status())
    await claims.put_back(claim)
    seen.append(await job.status())
    await claims.finish(await _claim(claims), b"{}", kept_s=10, failed=False)
    seen.append(await job.status())
    assert seen == [JobStatus.deferred, JobStatus.in_progress, JobStatus.queued, JobStatus.complete]
    assert await queue.keys(f"*{job.job_id}*") == [f"arq:result:{job.job_id}".encode()]
    assert await queue.hlen("arq:queue:claims") == await queue.zcard("arq:queue") == 0


async def test_a_lease_that_is_renewed_lasts(queue: ArqRedis) -> None:
    """A job whose lease is renewed is nobody else's, for several times its length; then it is, and the try counts."""
    mine, other = _claims(queue), _claims(queue, "b")
    await _enqueue(queue)
    claim = await _claim(mine)
    end = time.monotonic() + 2.5 * LEASE_S
    while time.monotonic() < end:
        await mine.renew({claim.id: claim.mark})
        await other.renew({})
        assert (await other.claim(1)).claims == ()
        await asyncio.sleep(0.05)  # between two heartbeats, while the lease would run out
    silent = time.monotonic()
    orphan = await until(lambda: _claimed(other, beat=True), timeout_s=5)
    assert LEASE_S * 0.9 < time.monotonic() - silent < LEASE_S + 1
    assert (orphan.id, orphan.orphan_of, claim.tries, orphan.tries) == (claim.id, "a", 1, 2)


async def test_a_late_end(queue: ArqRedis) -> None:
    """An end that comes when another runs the job counts if it is a success, and is that other's to tell if not."""
    for failed in (True, False):
        mine, other = _claims(queue), _claims(queue, "b")
        (job,) = await _enqueue(queue)
        claim = await _claim(mine)
        orphan = await until(lambda other=other: _claimed(other, beat=True), timeout_s=5)
        assert not await mine.put_back(claim)
        assert await mine.finish(claim, b"mine", kept_s=10, failed=failed, reason=b"{}" * failed) is not failed
        renewal = await other.renew({orphan.id: orphan.mark})
        assert renewal.gone == (() if failed else (orphan.id,))
        assert await other.finish(orphan, b"other", kept_s=10, failed=False) is failed
        assert await queue.get(f"arq:result:{job.job_id}") == (b"other" if failed else b"mine")
    assert await queue.hlen("arq:queue:claims") == 0


async def test_every_step_may_be_repeated(queue: ArqRedis) -> None:
    """A finish or put-back whose answer was lost changes nothing when it is told once more."""
    claims = _claims(queue)
    await _enqueue(queue)
    claim = await _claim(claims)
    assert await claims.put_back(claim, counts="excused")
    assert not await claims.put_back(claim, counts="excused")
    await claims.renew({claim.id: claim.mark})  # as of a heartbeat that was under way
    again = await _claim(claims)
    assert (again.tries, again.excused) == (1, 1)
    assert not await claims.put_back(claim), "that claim is over, though the job is this worker's again"
    assert await claims.finish(again, b"{}", kept_s=10, failed=True, reason=b'{"type":"E"}')
    assert not await claims.finish(again, b"{}", kept_s=10, failed=True, reason=b'{"type":"E"}')
    assert (await read_dead(queue))[0] == 1


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("runs", [False, True], ids=["waits", "runs elsewhere"])
async def test_a_repeated_end_spares_a_later_job(queue: ArqRedis, failed: bool, runs: bool) -> None:
    """An end whose answer was lost, told once more when its id was enqueued anew, leaves the new job alone."""
    mine, other = _claims(queue), _claims(queue, "b")
    end = {"kept_s": 10, "failed": failed, "reason": b"{}" * failed}
    await enqueue(queue, LATER, NoArguments())
    claim = await _claim(mine)
    assert await mine.finish(claim, b"first", **end)
    await asyncio.sleep(0.002)  # its payload has the millisecond of its enqueueing
    again = await enqueue(queue, LATER, NoArguments())
    if runs:
        later = await _claim(other)
    assert not await mine.finish(claim, b"first", **end)
    assert await queue.get(f"arq:result:{again.job_id}") is None, "the new one's callers wait for its own result"
    if not runs:
        later = await _claim(other)
    assert (later.problem, later.tries) == ("", 1)
    assert (await read_dead(queue))[0] == failed
    assert await other.finish(later, b"second", kept_s=10, failed=False)
    assert await queue.get(f"arq:result:{again.job_id}") == b"second"


async def test_a_repeated_failure_spares_a_dead_job_that_is_tried_again(queue: ArqRedis) -> None:
    """A failure whose answer was lost, told once more when somebody put the dead job back, does not bury it again."""
    claims = _claims(queue)
    (job,) = await _enqueue(queue)
    claim = await _claim(claims)
    assert await claims.finish(claim, b"{}", kept_s=10, failed=True, reason=b"{}")
    assert await retry_dead(queue, job.job_id) is None
    assert not await claims.finish(claim, b"{}", kept_s=10, failed=True, reason=b"{}")
    assert (await read_dead(queue))[0] == 0
    again = await _claim(claims)
    assert (again.id, again.tries) == (claim.id, 1)
    # Nor where it was put back uncounted: that leaves no count of tries.
    assert await claims.put_back(again)
    assert not await claims.finish(claim, b"{}", kept_s=10, failed=True, reason=b"{}")
    assert (await read_dead(queue))[0] == 0
    assert (await _claim(claims)).tries == 1


async def test_a_job_that_goes_back_is_not_held(queue: ArqRedis) -> None:
    """A heartbeat under way while a job is put back does not claim it again, though Redis has just failed over."""
    claims = _claims(queue)
    await _enqueue(queue)
    claim = await _claim(claims)
    await queue.set("arq:queue:hold", "all", px=60_000)
    assert await claims.put_back(claim)
    await claims.renew({claim.id: claim.mark}, {claim.id})
    await queue.delete("arq:queue:hold")
    assert (await _claim(claims)).tries == 1


async def test_a_claim_whose_answer_was_lost(environ: dict[str, str], queue: ArqRedis) -> None:
    """What a worker claimed without knowing goes back at its next heartbeat, the try not counted."""
    jobs = await _enqueue(queue, 3)
    async with _cut_off(environ) as (claims, proxy):
        kept = (await claims.claim(1)).claims[0]
        proxy.cut_after(0, "client")
        with pytest.raises(RedisConnectionError):
            await claims.claim(5)
        assert await queue.hlen("arq:queue:claims") == 3
        assert claims.doubtful
        renewal = await claims.renew({kept.id: kept.mark})
        assert set(renewal.put_back) == {job.job_id.encode() for job in jobs} - {kept.id}  # of one moment, any is first
        assert [claim.tries for claim in (await claims.claim(5)).claims] == [1, 1]


async def test_a_claim_under_way_is_left_alone(environ: dict[str, str], queue: ArqRedis) -> None:
    """A heartbeat that comes between a claim and its answer does not put back what was just claimed."""
    async with _cut_off(environ) as (claims, proxy):
        await claims.claim(1)
        proxy.cut_after(0, "client")
        with pytest.raises(RedisConnectionError):  # from now on every heartbeat looks for lost claims
            await claims.claim(1)
        for _ in range(20):
            await _enqueue(queue, 5)
            look, renewal = await asyncio.gather(claims.claim(5), claims.renew({}))
            assert (len(look.claims), renewal.put_back) == (5, ())
            for claim in look.claims:
                await claims.finish(claim, b"{}", kept_s=0, failed=False)
        assert claims.doubtful


async def test_after_an_outage_owners_come_first(queue: ArqRedis) -> None:
    """When no heartbeat was heard for a while, orphans wait for one and a half heartbeats more; new jobs do not."""
    mine, other = _claims(queue), _claims(queue, "b")
    await _enqueue(queue)
    claim = await _claim(mine)
    await mine.renew({claim.id: claim.mark})

    async def expired() -> bool:
        return await queue.exists(f"arq:in-progress:{claim.name}", "arq:queue:alive") == 0

    await until(expired, what="the lease is over, as after an outage")
    assert (await other.claim(5)).claims == ()
    await other.renew({})
    (new,) = await _enqueue(queue)
    look = await other.claim(5)
    assert [found.name for found in look.claims] == [new.job_id]
    assert look.left == 1
    assert await mine.renew({claim.id: claim.mark}) == await mine.renew({claim.id: claim.mark})
    await asyncio.sleep(1.5 * LEASE_S / 4)  # until holding back is over, of which there is no sign here
    assert (await other.claim(5)).claims == ()
    assert await mine.finish(claim, b"{}", kept_s=10, failed=False)


async def test_a_restarted_redis_is_left_alone_at_first(queue: ArqRedis) -> None:
    """A Redis that is not the one of before gives nobody a job for one and a half heartbeats."""
    mine, other = _claims(queue), _claims(queue, "b")
    await mine.meet()
    await _enqueue(queue)
    claim = await _claim(mine)
    await queue.script_flush()
    await queue.set("arq:queue:server", "the run id of before")
    await queue.hdel("arq:queue:claims", claim.id)  # what a replica had not heard of yet
    await queue.delete(f"arq:in-progress:{claim.name}")
    await queue.zadd("arq:queue", {claim.id: 1})
    await mine.renew({})
    restarted = time.monotonic()
    look = await other.claim(5)
    assert (look.claims, look.left) == ((), 1)
    assert look.again_s is not None
    renewal = await mine.renew({claim.id: claim.mark})
    assert (renewal.gone, renewal.others) == ((), ())
    while time.monotonic() - restarted < LEASE_S * 0.6:
        assert (await other.claim(5)).claims == ()
    assert await mine.finish(claim, b"{}", kept_s=10, failed=False)


async def test_a_restarted_redis_that_knows_no_claim(queue: ArqRedis) -> None:
    """It is left alone at first, too: a claim may be among what it lost, the last heartbeat long ago."""
    await queue.set("arq:queue:server", "the run id of before")
    await _enqueue(queue)
    claims = _claims(queue)
    await claims.meet()
    look = await claims.claim(5)
    assert (look.claims, look.left) == ((), 1)
    assert await until(lambda: _claimed(claims), timeout_s=LEASE_S, what="the end of holding back")
    await claims.meet()
    await _enqueue(queue)
    assert await _claimed(claims), "the same Redis is met once more"


async def test_a_fresh_redis_is_used_at_once(queue: ArqRedis) -> None:
    """Nobody holds back where no worker was before, though Redis does not know the script."""
    await queue.script_flush()
    await _enqueue(queue)
    claims = _claims(queue)
    await claims.meet()
    await claims.renew({})
    assert len((await claims.claim(1)).claims) == 1


async def test_an_emptied_redis(queue: ArqRedis) -> None:
    """A worker notices at its next heartbeat that Redis was emptied, and its job's result is kept all the same."""
    claims = _claims(queue, lease_s=20.0)
    (job,) = await _enqueue(queue)
    claim = await _claim(claims)
    assert not (await claims.renew({claim.id: claim.mark})).forgotten
    assert not (await claims.renew({claim.id: claim.mark})).forgotten
    await queue.flushall()
    renewal = await claims.renew({claim.id: claim.mark})
    assert (renewal.forgotten, renewal.gone) == (True, (claim.id,))
    assert not await claims.finish(claim, b"result", kept_s=10, failed=False)
    assert await queue.get(f"arq:result:{job.job_id}") == b"result"
    assert not (await claims.renew({})).forgotten


async def test_waiting_ends_with_the_next_job(queue: ArqRedis) -> None:
    """An idle worker is woken by a job, one worker for one job, and what it leaves wakes the next."""
    claims, other = _claims(queue), _claims(queue, "b")
    waiting = [asyncio.create_task(each.wait(4.0)) for each in (claims, other)]

    async def blocked() -> bool:
        return int((await queue.info("clients"))["blocked_clients"]) == 2

    await until(blocked)
    await _enqueue(queue)
    done, pending = await asyncio.wait(waiting, timeout=2, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(pending)) == (1, 1)
    await _enqueue(queue)  # one more, before anybody looked
    await asyncio.wait(pending, timeout=2)
    assert all(task.done() for task in waiting)
    waiting = [asyncio.create_task(claims.wait(4.0))]
    await until(lambda: _blocked(queue, 1))
    assert len((await other.claim(1)).claims) == 1
    done, _ = await asyncio.wait(waiting, timeout=2)
    assert done, "a look that leaves something wakes another"


async def test_waiting_ends_by_itself(queue: ArqRedis) -> None:
    """Without a job waiting takes as long as it may."""
    started = time.monotonic()
    await _claims(queue).wait(0.3)
    assert 0.25 < time.monotonic() - started < 2


async def test_an_arq_workers_job_is_left_alone(queue: ArqRedis) -> None:
    """A job that a worker of stock arq has in progress is not claimed while its key lasts."""
    (job,) = await _enqueue(queue)
    await queue.psetex(f"arq:in-progress:{job.job_id}", 300, b"1")  # type: ignore[no-untyped-call]
    claims = _claims(queue)
    assert (await claims.claim(1)).claims == ()
    assert await until(lambda: _claimed(claims), timeout_s=3)


async def test_arqs_abort_of_a_running_job_starts_it_nowhere(queue: ArqRedis) -> None:
    """What arq's client does to a running job's time in the queue gives it to nobody, and reaches its worker."""
    mine, other = _claims(queue), _claims(queue, "b")
    (job,) = await _enqueue(queue)
    claim = await _claim(mine)
    with pytest.raises(asyncio.TimeoutError):
        await job.abort(timeout=0.01, poll_delay=0.02)
    assert (await other.claim(1)).claims == ()
    assert (await mine.renew({claim.id: claim.mark})).aborted == (claim.id,)


async def test_abort(queue: ArqRedis) -> None:
    """A job that waits is claimed at once to be aborted, though it was deferred; an unknown one is refused."""
    claims = _claims(queue)
    job = await enqueue(queue, PRUNE_SAMPLES, NoArguments(), after_s=3600)
    assert await abort(queue, job.job_id)
    claim = await _claim(claims)
    assert claim.aborted
    assert await claims.put_back(claim)
    claim = await _claim(claims)
    assert claim.aborted, "it is to be ended, wherever it goes"
    assert await claims.finish(claim, b"{}", kept_s=10, failed=True)
    again = await enqueue(queue, PRUNE_SAMPLES, NoArguments(), job_id=f"{job.job_id}-again")
    assert (await _claim(claims)).name == again.job_id
    assert not await abort(queue, "unknown")
    assert await queue.zcard("arq:abort") == 0


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (["DEL", "arq:job:{id}"], "expired"),
        (["LPUSH", "arq:job:{id}", "x"], "wrong type"),
        (["SET", "arq:job:{id}", "x" * 2_001], "too large"),
        (["LPUSH", "arq:retry:{id}", "x"], ""),
        (["SET", "arq:retry:{id}", "no number"], ""),
        (["LPUSH", "arq:excused:{id}", "x"], ""),
        (["LPUSH", "arq:in-progress:{id}", "x"], ""),
    ],
    ids=lambda value: value[1] + " " + value[0] if isinstance(value, list) else None,
)
async def test_spoiled_keys(queue: ArqRedis, spoil: list[str], problem: str) -> None:
    """Whatever lies where a job's keys should be, the job can be claimed, put back and finished, or has a problem."""
    (job,) = await _enqueue(queue)
    key = spoil[1].format(id=job.job_id)
    await queue.delete(key)
    await queue.execute_command(spoil[0], key, *spoil[2:])  # type: ignore[no-untyped-call]
    claims = _claims(queue, largest_payload=2_000)
    claim = await _claim(claims)
    assert (claim.problem, claim.tries, claim.payload == b"") == (problem, 1, problem != "")
    assert await claims.put_back(claim, counts="excused")
    claim = await _claim(claims)
    assert await claims.finish(claim, b"{}", kept_s=0, failed=True, reason=b"{}")
    assert (await read_dead(queue))[0] == (problem != "expired")
    assert await queue.keys(f"*{job.job_id}*") == ([] if problem == "expired" else [f"arq:dead:{job.job_id}".encode()])


async def test_arguments_that_are_too_large(environ: dict[str, str]) -> None:
    """They are refused at the caller, with the bound, and nothing is put on the queue."""
    settings = Settings.load("bot", environ | {"WORKER_MAX_PAYLOAD": "1000"})
    named = Job("named", Named, int)
    async with open_queue(settings) as queue:
        with pytest.raises(ValueError, match=r"^job named with .* 1\d{3} bytes, .* WORKER_MAX_PAYLOAD=1000:"):
            await enqueue(queue, named, Named(name="x" * 1_000), job_id="large")
        assert await queue.keys("*large*") == []
        assert await queue.zcard("arq:queue") == 0
        await enqueue(queue, named, Named(name="x" * 800))
        assert (await _claim(_claims(queue, largest_payload=1_000))).problem == ""


async def test_an_id_that_is_no_text(queue: ArqRedis) -> None:
    """A job whose id is not UTF-8 is claimed with that problem, dies, and can be tried again by its escaped id."""
    await queue.zadd("arq:queue", {b"caf\xe9": 1})
    await queue.set(b"arq:job:caf\xe9", b"{}")
    claims = _claims(queue)
    claim = await _claim(claims)
    assert (claim.id, claim.name, claim.problem) == (b"caf\xe9", "caf\\xe9", "not UTF-8")
    assert await claims.finish(claim, b"", kept_s=10, failed=True, reason=b"{}")
    _, (dead,) = await read_dead(queue)
    assert dead.id == "caf\\xe9"
    assert await retry_dead(queue, dead.id) is None
    assert (await _claim(claims)).id == b"caf\xe9"


async def test_the_dead_come_back(queue: ArqRedis) -> None:
    """A dead job keeps its arguments and the reason, and is tried again with all its tries; an unknown one is told."""
    claims = _claims(queue)
    (job,) = await _enqueue(queue)
    claim = await _claim(claims)
    reason = b'{"type":"ValueError","message":"no","traceback":"where","tries":1}'
    await claims.finish(claim, b"{}", kept_s=10, failed=True, reason=reason)
    count, (dead,) = await read_dead(queue)
    assert (count, dead.id, dead.job, dead.arguments) == (1, job.job_id, "prune_samples", {})
    assert (dead.type, dead.message, dead.traceback, dead.tries) == ("ValueError", "no", "where", 1)
    assert await retry_dead(queue, job.job_id) is None
    assert await retry_dead(queue, job.job_id) == "not among the dead"
    assert await read_dead(queue) == (0, [])
    assert await queue.exists(f"arq:result:{job.job_id}") == 0
    again = await _claim(claims)
    assert (again.id, again.tries, again.payload) == (claim.id, 1, claim.payload)


async def test_so_many_dead_are_kept(queue: ArqRedis) -> None:
    """Of more dead jobs than are kept the oldest go, with all that was theirs."""
    claims = _claims(queue, most_dead=3)
    jobs = await _enqueue(queue, 5)
    for claim in (await claims.claim(5)).claims:
        await claims.finish(claim, b"", kept_s=0, failed=True, reason=b"{}")
    count, dead = await read_dead(queue)
    assert (count, len(dead)) == (3, 3)
    assert {each.id for each in dead} < {job.job_id for job in jobs}
    assert len(await queue.keys("arq:dead:*")) == await queue.hlen("arq:queue:dead:reasons") == 3


@asynccontextmanager
async def _cut_off(environ: dict[str, str]) -> AsyncIterator[tuple[Claims, Proxy]]:
    """A worker's claims, and the proxy through which they go."""
    async with open_proxy(environ["REDIS_HOST"], environ["REDIS_PORT"]) as proxy:
        settings = Settings.load("worker", environ | {"REDIS_PORT": str(proxy.listens_on)})
        async with open_queue(settings) as redis:
            claims = _claims(redis, lease_s=20.0)
            await claims.meet()
            yield claims, proxy


async def _claimed(claims: Claims, *, beat: bool = False) -> Claim | None:
    if beat:
        await claims.renew({})
    look: Look = await claims.claim(1)
    return look.claims[0] if look.claims else None


async def _blocked(queue: ArqRedis, count: int) -> bool:
    return int((await queue.info("clients"))["blocked_clients"]) == count
