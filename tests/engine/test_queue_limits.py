"""The limit of a queue: at most so many of its jobs run at the same time, on all workers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import override_settings

from django_jobs import Concurrency, clock, ids, run_job, run_jobs, task
from django_jobs.models import Job, Permit, Queue
from django_jobs.observe import health
from django_jobs.outcomes import Completed, HandedBack
from django_jobs.store import catalogue, claims, leases, permits, record
from django_jobs.store.claims import Claim
from django_jobs.store.exchange import exchange
from django_jobs.store.record import Finish
from django_jobs.store.session import Session
from tests.app import jobs

pytestmark = pytest.mark.django_db(transaction=True)
LEASE = 15.0


def limited(limit: int | None, name: str = "mail") -> None:
    Queue.objects.update_or_create(name=name, defaults={"limit": limit})


def claim(limit: int = 10, chosen: list[claims.Lane] | None = None) -> list[Claim]:
    """One round of a worker, by the lanes it knows."""
    session = Session()
    known = session.committed(claims.lanes) if chosen is None else chosen
    return exchange(session, [], known, worker=ids.worker_id(), limit=limit, lease=LEASE)[1]


def finish(held: Claim) -> None:
    [answer] = Session().committed(lambda s: record.record(s, [Finish(held, Completed("1"))]))
    assert answer == "written"


def mail(count: int) -> list[Job]:
    return [jobs.echo.using(queue_name="mail").enqueue() for _ in range(count)]


def test_no_more_than_the_limit_are_claimed_whoever_asks() -> None:
    limited(2)
    mail(5)
    other = jobs.echo.enqueue()
    first = claim()
    assert len(first) == 3
    assert other.pk in {held.job_id for held in first}
    assert claim() == []
    finish(next(held for held in first if held.queue_name == "mail"))
    assert len(claim()) == 1
    assert Permit.objects.count() == 2
    waiting = list(Job.objects.filter(status="pending").values_list("pk", flat=True))
    by_name = Session().committed(
        lambda s: claims.take(s, waiting, worker=ids.worker_id(), lease=LEASE)
    )
    assert (len(waiting), by_name) == (2, [])


def test_a_worker_that_has_not_heard_of_the_limit_keeps_it() -> None:
    """The statement that takes jobs at once leaves limited queues out, whatever the worker knew."""
    mail(5)
    stale = Session().committed(claims.lanes)
    assert not any(lane.limited for lane in stale)
    limited(2)
    assert len(claim(chosen=stale)) <= 2
    assert len(claim()) + Permit.objects.count() >= 2
    assert Job.objects.filter(status="running").count() == 2


def test_jobs_that_began_before_their_queue_had_a_limit_count() -> None:
    mail(5)
    assert len(claim(limit=3)) == 3
    limited(3)
    assert claim() == []
    limited(4)
    assert len(claim()) == 1


def test_a_change_acts_at_once_both_ways() -> None:
    limited(3)
    mail(9)
    held = claim()
    assert len(held) == 3
    limited(2)
    finish(held[0])
    assert claim() == []
    finish(held[1])
    assert len(claim()) == 1
    limited(None)
    assert len(claim()) == 5


def test_a_full_queue_leaves_its_jobs_where_they_are_and_others_pass() -> None:
    """It is its lane that is left alone: no row is written for a job that waits."""
    limited(1)
    mail(30)
    for _ in range(3):
        jobs.add.enqueue(a=1, b=1)
    assert len(claim(limit=4)) == 4
    assert Job.objects.filter(gate="open", status="pending").count() == 29


def test_priority_holds_within_a_limited_queue_and_among_queues() -> None:
    limited(1)
    mail(1)
    urgent = jobs.echo.using(queue_name="mail", priority=5).enqueue()
    most_urgent = jobs.echo.using(priority=9).enqueue()
    assert [held.job_id for held in claim(limit=1)] == [most_urgent.pk]
    assert [held.job_id for held in claim(limit=1)] == [urgent.pk]


def test_a_unit_ends_with_its_lease_and_is_cleared_away() -> None:
    clock.freeze(clock.now())
    limited(1)
    first, second = mail(2)
    assert [held.job_id for held in claim()] == [first.pk]
    clock.travel(timedelta(seconds=LEASE + 1))
    # Nobody has swept yet: the expired unit is nobody's.
    Job.objects.filter(pk=first.pk).update(status="paused")
    assert [held.job_id for held in claim()] == [second.pk]
    run_jobs(limit=0)
    assert [unit.job_id for unit in Permit.objects.all()] == [second.pk]


def test_whatever_ends_a_claim_frees_its_unit() -> None:
    limited(1)
    for outcome in (Completed("1"), HandedBack("test")):
        mail(1)
        [held] = claim()
        end = Finish(held, outcome)
        Session().committed(lambda s, end=end: record.record(s, [end]))  # type: ignore[misc]
        assert not Permit.objects.exists()
    [held] = claim()
    session = Session()
    [expired] = leases.held_by(session, held.worker)
    session.committed(
        lambda s: leases.take_back(s, expired, message="gone", crash_limit=3, dead=True)
    )
    assert not Permit.objects.exists()


def test_a_canceled_job_keeps_its_unit_until_its_handler_has_stopped() -> None:
    """C2: the unit is renewed under the old fence, and freed by the worker."""
    limited(1)
    first, _second = mail(2)
    [held] = claim()
    first.cancel()
    assert claim() == []
    Session().committed(lambda s: leases.renew(s, [held], LEASE))
    assert claim() == []
    [answer] = Session().committed(lambda s: record.record(s, [Finish(held, Completed("1"))]))
    assert answer == "lost"
    assert len(claim()) == 1


def test_a_holder_whose_unit_went_to_another_is_told_to_stop() -> None:
    """P6: thawed before anybody swept its job, it must not go on beside the new holder."""
    clock.freeze(clock.now())
    late = jobs.echo.using(concurrency_key="account:7").enqueue()
    follower = jobs.echo.using(concurrency_key="account:7").enqueue()
    [frozen] = claim(limit=1)
    assert frozen.job_id == late.pk
    clock.travel(timedelta(seconds=LEASE + 1))
    Session().committed(permits.let_in_where_free)
    assert [held.job_id for held in claim()] == [follower.pk]
    assert Session().committed(lambda s: leases.renew(s, [frozen], LEASE)) == {}
    late.refresh_from_db()
    assert late.lease_expires_at is not None
    assert late.lease_expires_at < clock.now()


def test_a_key_and_a_limit_are_both_kept() -> None:
    limited(2)

    @task("test.both", queue_name="mail", concurrency=Concurrency(key=lambda n: f"n{n}", limit=1))
    def both(n: int) -> None: ...

    for n in (1, 1, 2, 3):
        both.enqueue(n=n)
    held = claim()
    assert len(held) == 2
    assert {one.held for one in held} == {
        (Job.objects.get(pk=one.job_id).key_hash, permits.queue_hash("mail")) for one in held
    }
    for one in held:
        finish(one)
    assert len(claim()) == 2


def test_a_parked_run_that_holds_its_key_frees_its_place_in_the_queue() -> None:
    limited(1)
    clock.freeze(clock.now())

    @task("test.holder", queue_name="mail", concurrency=Concurrency(key="k", hold=True))
    def holder() -> None: ...

    holder.enqueue()
    [held] = claim()
    Session().committed(lambda s: permits.hold(s, held.job_id, held.fence, held.key_hash))
    assert [unit.key_name for unit in Permit.objects.all()] == ["k"]


def test_run_job_and_run_jobs_report_what_a_limit_holds_back() -> None:
    limited(1)
    first, second = mail(2)
    [held] = claim()
    assert held.job_id == first.pk
    assert run_job(second.pk).completed == 0
    report = run_jobs(queue_name="mail")
    assert (report.completed, report.blocked) == (0, 1)
    [gate] = [gate for gate in second.explain() if gate.name == "queue_limit"]
    assert gate.about == {"queue": "mail", "limit": 1, "running": 1}
    assert "'mail'" in gate.why
    finish(held)
    assert run_jobs(queue_name="mail").completed == 1


def test_what_is_saved_by_hand_outlives_the_start_of_a_worker_and_what_is_set_up_does_not() -> None:
    Queue.objects.create(name="mail", limit=2)
    Queue.objects.get_or_create(name="plain")
    with override_settings(DJANGO_JOBS={"QUEUES": {"plain": {"limit": 3}, "mail": {"limit": 9}}}):
        catalogue.sync()
        assert dict(Queue.objects.values_list("name", "limit")) == {"mail": 2, "plain": 3}
        plain = Queue.objects.get(name="plain")
        plain.limit = 5
        plain.save(update_fields=["limit"])
        catalogue.sync()
    catalogue.sync()
    assert dict(Queue.objects.values_list("name", "limit")) == {"mail": 2, "plain": 5}


def test_jobs_check_knows_the_units_of_queues_and_finds_what_must_not_be() -> None:
    limited(1)
    mail(2)
    [held] = claim()
    assert health.check().findings == []
    unit = Permit.objects.get()
    Permit.objects.create(
        key_hash=unit.key_hash, key_name=unit.key_name, number=2, most=1, job_id=held.job_id,
        fence=held.fence, lease_expires_at=unit.lease_expires_at,
    )  # fmt: skip
    told = [str(finding) for finding in health.check().findings]
    assert any("lies beyond the limit 1" in line for line in told)
    assert any("2 jobs hold 'mail'" in line for line in told)
