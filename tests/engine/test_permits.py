"""Units of a concurrency key: RELIABILITY P6, L8."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_jobs import clock, ids, run_jobs
from django_jobs.models import Job, Permit
from django_jobs.outcomes import Completed
from django_jobs.store import claims, permits, record
from django_jobs.store.record import Finish
from django_jobs.store.session import Session
from tests.app import jobs

pytestmark = pytest.mark.django_db(transaction=True)
LEASE = 15.0


def claim(session: Session) -> list[claims.Claim]:
    return session.committed(
        lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=10, lease=LEASE)
    )


def finish(session: Session, held: claims.Claim) -> str:
    items = [Finish(held, Completed("1"))]
    [answer] = session.committed(lambda s: record.record(s, items))
    return answer


def test_p6_of_one_key_one_job_is_claimed_at_a_time() -> None:
    """P6, L8: the unit is a unique row, so a second claim, in a batch or later, finds it taken."""
    session = Session()
    for _ in range(3):
        jobs.echo.using(concurrency_key="account:7").enqueue()
    other = jobs.echo.using(concurrency_key="account:8").enqueue()
    # As where they came at the same time: none of them behind a gate yet.
    Job.objects.update(gate="open")
    first = claim(session)
    assert len(first) == 2
    assert other.pk in {held.job_id for held in first}
    assert claim(session) == []
    assert Permit.objects.count() == 2
    [mine] = [held for held in first if held.job_id != other.pk]
    assert finish(session, mine) == "written"
    assert len(claim(session)) == 1


def test_p6_a_key_holds_over_slugs_and_queues() -> None:
    """P6: one key is one key, whoever uses it."""
    session = Session()
    jobs.echo.using(concurrency_key="account:7").enqueue()
    jobs.add.using(concurrency_key="account:7", queue_name="other").enqueue(a=1, b=1)
    assert len(claim(session)) == 1
    assert claim(session) == []


def test_p6_a_unit_whose_lease_ended_is_free() -> None:
    """L8: a unit lives as long as its lease, no longer."""
    clock.freeze(clock.now())
    session = Session()
    jobs.echo.using(concurrency_key="account:7").enqueue()
    second = jobs.echo.using(concurrency_key="account:7", priority=-1).enqueue()
    assert len(claim(session)) == 1
    assert claim(session) == []
    clock.travel(timedelta(seconds=LEASE + 1))
    session.committed(permits.let_in_where_free)
    assert [held.job_id for held in claim(session)] == [second.pk]


def test_l8_a_late_release_frees_nobody_elses_unit() -> None:
    """L8: a release deletes only its own (job, fence), so two releases let in only one."""
    clock.freeze(clock.now())
    session = Session()
    job = jobs.echo.using(concurrency_key="account:7").enqueue()
    jobs.echo.using(concurrency_key="account:7", priority=-1).enqueue()
    [late] = claim(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    run_jobs(limit=0)  # the sweep
    [holder] = claim(session)
    assert (holder.job_id, holder.fence > late.fence) == (job.pk, True)
    assert finish(session, late) == "lost"
    session.committed(lambda s: permits.release(s, late.job_id, late.fence, late.key_hash))
    unit = Permit.objects.get()
    assert (unit.job_id, unit.fence) == (job.pk, holder.fence)
    assert claim(session) == []


def test_l8_every_unit_is_given_back() -> None:
    """L8: when all is done no unit is left over."""
    for _ in range(5):
        jobs.echo.using(concurrency_key="account:7").enqueue()
    for _ in range(5):
        run_jobs()
    assert set(Job.objects.values_list("status", flat=True)) == {"completed"}
    assert not Permit.objects.exists()
