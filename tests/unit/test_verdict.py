from __future__ import annotations

import pytest
from arq.worker import Retry

from fleet.backoff import Backoff
from fleet.jobs import Job, NoArguments
from pool.errors import PoolTimeout
from worker.verdict import Again, Failed, JobTimeout, Limits, verdict_on

LIMITS = Limits(timeout_s=300, tries=3, excused=2)
STEADY = Backoff(first_s=8.0, longest_s=8.0)


def job(**contract: object) -> Job[NoArguments, int]:
    return Job("job", NoArguments, int, backoff=STEADY, **contract)  # type: ignore[arg-type]


def test_an_error_ends_a_job() -> None:
    """A job that raises is over, unless its contract says otherwise: a second run might do half of it twice."""
    error = ValueError("no")
    assert verdict_on(error, job(), LIMITS, tries=1, excused=0) == Failed(error, buried=True)


def test_a_job_that_nobody_would_try_again() -> None:
    """By its contract it is not kept among the dead, at its last try either."""
    contract = job(dead_kept=False, retry_on=(ValueError,))
    for error, tries in ((KeyError("no"), 1), (ValueError("no"), LIMITS.tries)):
        assert verdict_on(error, contract, LIMITS, tries=tries, excused=0) == Failed(error, buried=False)


def test_an_error_of_the_contract_is_tried_again() -> None:
    """After an error that its contract names, a job is tried again with its own backoff, and this try counts."""
    contract = job(retry_on=(ValueError,))
    again = verdict_on(UnicodeError("a kind of it"), contract, LIMITS, tries=1, excused=0)
    assert isinstance(again, Again)
    assert (again.counts, again.why, 6 <= again.after_s <= 10) == ("counted", "UnicodeError", True)
    assert isinstance(verdict_on(KeyError("another"), contract, LIMITS, tries=1, excused=0), Failed)


@pytest.mark.parametrize(("own", "most"), [(None, 3), (1, 1), (5, 5)])
def test_the_last_try(own: int | None, most: int) -> None:
    """After as many tries as its contract says, or else WORKER_MAX_TRIES, a job is over, whatever it raises."""
    for error in (Retry(defer=1), ValueError("no"), JobTimeout("late")):
        contract = job(tries=own, retry_on=(ValueError,), retry_on_timeout=True)
        if most > 1:
            assert isinstance(verdict_on(error, contract, LIMITS, tries=most - 1, excused=0), Again)
        assert isinstance(verdict_on(error, contract, LIMITS, tries=most, excused=0), Failed)


def test_a_timeout_is_tried_again_if_the_contract_says_so() -> None:
    """By default a job that took too long is over."""
    late = JobTimeout("took longer than 1 s")
    assert isinstance(verdict_on(late, job(), LIMITS, tries=1, excused=0), Failed)
    assert isinstance(verdict_on(late, job(retry_on_timeout=True), LIMITS, tries=1, excused=0), Again)


def test_a_timeout_is_never_excused() -> None:
    """A job that took too long is over, though its clean-up met a database that was away or a full pool."""
    late = JobTimeout("took longer than 1 s")
    late.__cause__ = PoolTimeout("full")
    assert isinstance(verdict_on(late, job(), LIMITS, tries=1, excused=0), Failed)


def test_retry_is_honoured() -> None:
    """arq's Retry says when the next try is due; without a time the contract's backoff does."""
    assert verdict_on(Retry(defer=1.5), job(), LIMITS, tries=1, excused=0) == Again(1.5, "counted", "it asked for it")
    assert verdict_on(Retry(defer=0), job(), LIMITS, tries=1, excused=0) == Again(0.0, "counted", "it asked for it")
    again = verdict_on(Retry(), job(), LIMITS, tries=1, excused=0)
    assert isinstance(again, Again)
    assert 6 <= again.after_s <= 10


def test_what_is_not_the_jobs_fault_has_a_bound_of_its_own() -> None:
    """A full pool takes no try of the job's own, not even the last, until the excused tries are used up."""
    for excused in range(LIMITS.excused):
        again = verdict_on(PoolTimeout("full"), job(), LIMITS, tries=3, excused=excused)
        assert isinstance(again, Again)
        assert again.counts == "excused"
    assert isinstance(verdict_on(PoolTimeout("full"), job(), LIMITS, tries=1, excused=2), Failed)
