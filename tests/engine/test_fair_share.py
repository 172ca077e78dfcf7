"""Fair share between the groups of a queue, ageing, debounce, and the gates of new jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.test import override_settings

from django_jobs import Concurrency, InvalidInput, clock, ids, run_job, run_jobs, task
from django_jobs.definitions.task import Definition
from django_jobs.models import Job, Permit, Queue
from django_jobs.store import ageing, claims, fairness, permits
from django_jobs.store.session import Session
from tests.app import jobs

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
FAIR = {"QUEUES": {"mail": {"fair_by": "tenant"}}, "TENANT_FIELDS": ["org"]}
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def noon() -> None:
    clock.freeze(NOON)
    fairness.forget()


def letters(**options: object) -> Definition:
    @task("test.letter", queue_name="mail", **options)
    def letter(org: str, n: int = 0) -> None: ...

    return letter


def order(count: int = 1000) -> list[str]:
    """The tenants of what waits, in the order in which they are claimed."""
    session = Session()
    taken = session.committed(
        lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=count, lease=15.0)
    )
    return [str(Job.objects.get(pk=one.job_id).input.get("org")) for one in taken]


@override_settings(DJANGO_JOBS=FAIR)
def test_a_tenant_with_many_jobs_does_not_delay_one_with_few() -> None:
    letter = letters()
    letter.enqueue_many([{"org": "big", "n": n} for n in range(300)])
    for n in range(3):
        letter.enqueue(org="small", n=n)
    assert order(7) == ["big", "small"] * 3 + ["big"]


@override_settings(DJANGO_JOBS=FAIR)
def test_who_comes_later_gets_no_credit_for_the_time_before() -> None:
    letter = letters()
    letter.enqueue_many([{"org": "big", "n": n} for n in range(40)])
    assert order(20) == ["big"] * 20
    letter.enqueue_many([{"org": "late", "n": n} for n in range(40)])
    assert order(10).count("late") == 5


@override_settings(DJANGO_JOBS=FAIR)
def test_a_priority_still_comes_first() -> None:
    letter = letters()
    letter.enqueue_many([{"org": "big", "n": n} for n in range(5)])
    letter.enqueue(org="small")
    letter.using(priority=1).enqueue_many([{"org": "big", "n": n} for n in range(2)])
    assert order(4) == ["big", "big", "big", "small"]


@override_settings(DJANGO_JOBS=FAIR)
def test_fair_share_goes_over_the_tasks_of_a_queue() -> None:
    letter = letters()

    @task("test.parcel", queue_name="mail")
    def parcel(org: str) -> None: ...

    letter.enqueue_many([{"org": "big", "n": n} for n in range(20)])
    parcel.enqueue_many([{"org": "big"} for _ in range(20)])
    parcel.enqueue(org="small")
    assert order(2) == ["big", "small"]


@override_settings(DJANGO_JOBS=FAIR)
def test_many_delayed_to_one_moment_queue_up_behind_the_others_too() -> None:
    letter = letters()
    letter.using(delay=60).enqueue_many([{"org": "big", "n": n} for n in range(30)])
    letter.enqueue_many([{"org": "busy", "n": n} for n in range(50)])
    assert order(40) == ["busy"] * 40
    clock.travel(timedelta(seconds=60))
    Session().committed(claims.open_gates)
    assert order(10).count("busy") == 5


@override_settings(DJANGO_JOBS={"TENANT_FIELDS": ["org"]})
def test_an_operator_makes_a_queue_fair_and_a_call_names_its_group() -> None:
    letter = letters()
    Queue.objects.create(name="mail", fair_by="n", edited=True)
    letter.enqueue_many([{"org": "big", "n": 1} for _ in range(9)])
    letter.enqueue(org="small", n=2)
    assert order(2) == ["big", "small"]
    letter.using(fair_by="bulk").enqueue_many([{"org": "bulk", "n": n} for n in range(9)])
    letter.using(fair_by="org").enqueue(org="one")
    assert order(9).index("one") < 8


def test_an_unfair_queue_pays_nothing() -> None:
    job = jobs.echo.enqueue()
    assert (job.turn, job.share) == (0, None)
    assert order(1) == ["None"]
    assert Queue.objects.get(name="default").turn == 0


def test_ageing_raises_what_waits_longest_and_is_off_by_default() -> None:
    old = jobs.echo.using(priority=-2).enqueue()
    clock.travel(timedelta(seconds=35))
    new = jobs.echo.using(priority=0).enqueue()
    run_jobs(limit=0)
    assert Job.objects.get(pk=old.pk).precedence == 2
    session = Session()
    assert session.committed(lambda s: ageing.age(s, 10.0)) == 1
    assert [Job.objects.get(pk=pk).precedence for pk in (old.pk, new.pk)] == [-1, 0]
    assert session.committed(lambda s: ageing.age(s, 10.0)) == 0
    with override_settings(DJANGO_JOBS={"AGEING": 5}):
        run_jobs(limit=0)
    old.refresh_from_db()
    assert (old.precedence, old.priority) == (-5, -2)
    clock.travel(timedelta(days=1))
    session.committed(lambda s: ageing.age(s, 10.0))
    assert set(Job.objects.values_list("precedence", flat=True)) == {-100}


def test_debounce_replaces_the_waiting_twin_and_leaves_others() -> None:
    first = jobs.add.using(debounce=10).enqueue(a=1, b=1)
    other = jobs.add.using(debounce=10).enqueue(a=2, b=2)
    clock.travel(timedelta(seconds=6))
    second = jobs.add.using(debounce=10).enqueue(a=1, b=1)
    first.refresh_from_db()
    assert (first.status, first.error["code"], first.superseded_by) == (
        "canceled", "superseded", second.pk,
    )  # fmt: skip
    clock.travel(timedelta(seconds=6))
    assert run_jobs().completed == 1
    other.refresh_from_db()
    assert other.status == "completed"
    clock.travel(timedelta(seconds=4))
    assert run_jobs().completed == 1


def test_debounce_by_a_key_of_the_call_and_not_of_another_task() -> None:
    same = jobs.echo.using(debounce=10, concurrency_key="doc:7").enqueue(value=1)
    foreign = jobs.add.using(concurrency_key="doc:7").enqueue(a=1, b=1)
    last = jobs.echo.using(debounce=10, concurrency_key="doc:7").enqueue(value=2)
    statuses = dict(Job.objects.values_list("pk", "status"))
    assert statuses == {same.pk: "canceled", foreign.pk: "pending", last.pk: "pending"}
    with pytest.raises(InvalidInput, match="debounce or delay"):
        jobs.echo.using(debounce=10, delay=5).enqueue()


def test_a_started_twin_is_left_alone() -> None:
    first = jobs.add.using(debounce=1).enqueue(a=1, b=1)
    clock.travel(timedelta(seconds=1))
    assert run_jobs().completed == 1
    jobs.add.using(debounce=1).enqueue(a=1, b=1)
    first.refresh_from_db()
    assert first.status == "completed"


# --- gates of new jobs ------------------------------------------------------------------------


def gates() -> list[str]:
    return list(Job.objects.order_by("id").values_list("gate", flat=True))


def test_of_one_key_only_those_that_could_start_stand_open() -> None:
    limited = jobs.echo.using(concurrency_key="k")
    for _ in range(3):
        limited.enqueue()
    limited.enqueue_many([{} for _ in range(5)])
    assert gates() == ["open"] + ["permit"] * 7
    limited.using(priority=1).enqueue()
    limited.using(delay=60).enqueue()
    assert gates()[8:] == ["open", "timer"]
    jobs.echo.using(concurrency_key="k", queue_name="other").enqueue()
    assert gates()[-1] == "open"


def test_each_that_leaves_the_line_lets_the_next_one_in() -> None:
    def limited() -> Job:
        return jobs.echo.using(concurrency_key="k", expires=60).enqueue()

    canceled, paused, expired, last = limited(), limited(), limited(), limited()
    assert gates() == ["open", "permit", "permit", "permit"]
    canceled.cancel()
    assert gates()[1:] == ["open", "permit", "permit"]
    paused.pause()
    assert gates()[2:] == ["open", "permit"]
    Job.objects.filter(pk=last.pk).update(expires_at=None)
    clock.travel(timedelta(seconds=61))
    assert run_job(last.pk).completed == 1
    expired.refresh_from_db()
    paused.refresh_from_db()


def test_jobs_that_were_gated_by_one_that_is_gone_by_the_commit_are_let_in() -> None:
    from django.db import transaction

    first = jobs.echo.using(concurrency_key="k").enqueue()
    with transaction.atomic():
        second = jobs.echo.using(concurrency_key="k").enqueue()
        assert second.gate == "permit"
        # Within this transaction for a test of one connection; in life another worker does it.
        Job.objects.filter(pk=first.pk).update(status="completed", finished_at=clock.now())
    second.refresh_from_db()
    assert second.gate == "open"


def test_a_superseding_job_takes_the_place_of_those_before_it() -> None:
    @task("test.super", concurrency=Concurrency(key="s", supersedes=True))
    def newest(n: int) -> None: ...

    for n in range(3):
        job = newest.enqueue(n=n)
    assert (job.gate, Job.objects.get(status="pending").pk) == ("open", job.pk)


def test_delayed_jobs_of_one_key_come_due_behind_their_gate() -> None:
    jobs.echo.using(concurrency_key="k", delay=60).enqueue_many([{} for _ in range(20)])
    clock.travel(timedelta(seconds=60))
    Session().committed(claims.open_gates)
    assert sorted(gates()) == ["open"] + ["permit"] * 19


def test_a_job_of_another_queue_is_not_held_up_by_one_of_a_paused_queue() -> None:
    jobs.echo.using(concurrency_key="k", queue_name="slow").enqueue_many([{} for _ in range(3)])
    Queue.objects.get(name="slow").pause()
    free = jobs.echo.using(concurrency_key="k").enqueue_many([{} for _ in range(2)])
    assert run_jobs().completed + run_jobs().completed == 2
    assert {Job.objects.get(pk=job.pk).status for job in free} == {"completed"}


def test_a_job_asked_for_by_name_runs_although_another_stands_before_it() -> None:
    from django.db.models import Q

    jobs.echo.using(concurrency_key="k").enqueue(value=1)
    second = jobs.echo.using(concurrency_key="k").enqueue(value=2)
    third = jobs.echo.using(concurrency_key="k").enqueue(value=3)
    assert run_job(second.pk).completed == 1
    assert run_jobs(where=Q(input__value=3)).completed == 1
    third.refresh_from_db()
    assert third.status == "completed"


def test_the_sweep_looks_at_all_blocked_keys_in_turn() -> None:
    for n in range(7):
        for _ in range(2):
            jobs.echo.using(concurrency_key=f"k{n}").enqueue()
    Job.objects.update(gate="permit")
    session = Session()
    opened = [session.committed(lambda s: permits.let_in_where_free(s, 3)) for _ in range(3)]
    assert sum(opened) == 7
    assert Job.objects.filter(gate="open").count() == 7
    permits._place.clear()


@override_settings(DJANGO_JOBS={"TENANT_FIELDS": ["org"], "TENANT_CONCURRENCY": 2})
def test_a_tenant_has_a_default_concurrency() -> None:
    letter = letters()
    letter.enqueue_many([{"org": "big", "n": n} for n in range(5)])
    letter.enqueue(org="small")
    jobs.echo.enqueue()
    assert sorted(order(10)) == ["None", "big", "big", "small"]
    assert Permit.objects.count() == 3


@override_settings(DJANGO_JOBS={"TENANT_FIELDS": ["org"], "TENANT_CONCURRENCY": 2})
def test_a_key_of_its_own_wins_over_the_tenants() -> None:
    letter = letters(concurrency=Concurrency(key=lambda n: f"n{n}", limit=1))
    letter.enqueue_many([{"org": "big", "n": n} for n in range(4)])
    assert len(order(10)) == 4
