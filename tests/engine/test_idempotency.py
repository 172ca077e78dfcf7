"""Idempotency keys and the caller's transaction: RELIABILITY I1, W5, P1."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext, override_settings

from django_jobs import DuplicateJob, InvalidInput, clock, run_jobs, task
from django_jobs.models import IdempotencyKey, Job, Queue
from tests.app import jobs
from tests.engine.processes import in_thread

pytestmark = pytest.mark.django_db(transaction=True)
START = datetime(2030, 1, 1, tzinfo=UTC)


class Undo(Exception):
    """Raised to roll back."""


# --- the caller's transaction -----------------------------------------------------------------


ENQUEUES: dict[str, Callable[[], Any]] = {
    "one": lambda: jobs.echo.using(queue_name="new").enqueue(value=1),
    "many": lambda: jobs.echo.using(queue_name="new").enqueue_many([{"value": n} for n in range(3)]),
    "with an idempotency key": lambda: jobs.echo.using(
        queue_name="new", idempotency_key="k"
    ).enqueue(value=1),
    "with a concurrency key": lambda: jobs.echo.using(
        queue_name="new", concurrency_key="k"
    ).enqueue(value=1),
    "delayed": lambda: jobs.echo.using(queue_name="new", delay=5).enqueue(value=1),
    "a workflow": lambda: jobs.async_steps.using(queue_name="new").enqueue(n=1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENQUEUES)
def test_p1_an_enqueue_that_is_rolled_back_never_existed(kind: str) -> None:
    """P1, W5: whole transactions."""
    with pytest.raises(Undo), transaction.atomic():
        ENQUEUES[kind]()
        assert Job.objects.exists()
        raise Undo
    assert not Job.objects.exists()
    assert not Queue.objects.filter(name="new").exists()
    assert not IdempotencyKey.objects.exists()
    assert run_jobs(all_queues=True).ended == 0


@pytest.mark.parametrize("kind", ENQUEUES)
def test_w5_an_enqueue_in_a_rolled_back_savepoint_never_existed(kind: str) -> None:
    """W5: savepoints, with what was enqueued before and after them kept."""
    with transaction.atomic():
        before = jobs.add.enqueue(a=1, b=1)
        with pytest.raises(Undo), transaction.atomic():
            ENQUEUES[kind]()
            raise Undo
        after = jobs.add.enqueue(a=2, b=2)
    assert set(Job.objects.values_list("pk", flat=True)) == {before.pk, after.pk}
    assert not Queue.objects.filter(name="new").exists()
    assert run_jobs(all_queues=True).completed == 2


@pytest.mark.parametrize("kind", ENQUEUES)
def test_w5_an_enqueue_after_a_failed_savepoint_is_stored(kind: str) -> None:
    """W5: the caller has recovered from its own error by a savepoint, as Django wants it."""
    Group.objects.create(name="taken")
    with transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic():
            ENQUEUES[kind]()
            Group.objects.create(name="taken")
        ENQUEUES[kind]()
    assert Job.objects.count() == (3 if kind == "many" else 1)


@pytest.mark.parametrize("kind", ENQUEUES)
def test_w5_an_enqueue_in_a_broken_transaction_is_refused_by_django(kind: str) -> None:
    """W5: nothing slips out of a transaction that is doomed."""
    with pytest.raises(transaction.TransactionManagementError), transaction.atomic():
        transaction.set_rollback(True)
        ENQUEUES[kind]()
    assert not Job.objects.exists()


def test_w5_nobody_else_sees_a_job_before_the_commit() -> None:
    """W5: another connection runs it only then."""
    seen: list[int] = []

    def look() -> None:
        seen.append(run_jobs(sequential=True).completed)

    if connection.vendor == "sqlite":
        # There a second writer waits for the first one; so ask without claiming.
        def look() -> None:
            seen.append(Job.objects.count())

    with transaction.atomic():
        jobs.echo.enqueue(value=1)
        in_thread(look).join()
    in_thread(look).join()
    assert seen == [0, 1]


# --- idempotency keys -------------------------------------------------------------------------


def keyed(key: str = "order-7", **options: Any) -> Any:
    return jobs.echo.using(idempotency_key=key, **options)


def test_i1_the_same_key_returns_the_job_that_has_it() -> None:
    """I1: created tells which is which; what the second call asked for is not stored."""
    first = keyed().enqueue(value="first")
    second = keyed(queue_name="elsewhere", delay=60).enqueue(value="second")
    assert (first.created, second.created) == (True, False)
    assert second.pk == first.pk
    assert (second.input, second.queue_name) == ({"value": "first"}, "default")
    assert Job.objects.count() == 1
    assert not Queue.objects.filter(name="elsewhere").exists()


@pytest.mark.parametrize("status", ["pending", "completed", "failed", "canceled"])
def test_i1_a_key_holds_in_its_window_whatever_became_of_its_job(status: str) -> None:
    """I1: 24 h from the making of the job."""
    clock.freeze(START)
    first = keyed().enqueue(value=1)
    finished = None if status == "pending" else START
    Job.objects.filter(pk=first.pk).update(status=status, finished_at=finished)
    clock.travel(timedelta(hours=24, seconds=-1))
    assert keyed().enqueue(value=2).pk == first.pk


def test_i1_after_its_window_a_key_is_free_once_its_job_is_done() -> None:
    """I1: 24 h, to the second."""
    clock.freeze(START)
    first = keyed().enqueue(value=1)
    run_jobs()
    clock.freeze(START + timedelta(hours=24))
    second = keyed().enqueue(value=2)
    assert second.created
    assert second.pk != first.pk
    clock.travel(timedelta(hours=1))
    assert keyed().enqueue(value=3).pk == second.pk
    assert Job.objects.count() == 2


@pytest.mark.parametrize("status", ["pending", "sleeping", "paused"])
def test_i1_a_key_holds_beyond_its_window_while_its_job_lives(status: str) -> None:
    """I1: or while live."""
    clock.freeze(START)
    first = keyed().enqueue(value=1)
    Job.objects.filter(pk=first.pk).update(status=status)
    clock.travel(timedelta(days=30))
    assert keyed().enqueue(value=2).pk == first.pk
    Job.objects.filter(pk=first.pk).update(status="completed", finished_at=clock.now())
    assert keyed().enqueue(value=3).pk != first.pk


def test_i1_a_key_whose_job_was_pruned_is_free() -> None:
    first = keyed().enqueue(value=1)
    Job.objects.filter(pk=first.pk).delete()
    assert keyed().enqueue(value=2).created


def test_i1_a_key_belongs_to_one_slug() -> None:
    """I1: per tenant and slug."""
    first = keyed().enqueue(value=1)
    other = jobs.add.using(idempotency_key="order-7").enqueue(a=1, b=1)
    assert other.created
    assert other.pk != first.pk
    assert keyed("order-8").enqueue(value=1).created
    assert keyed("Order-7").enqueue(value=1).created
    assert Job.objects.count() == 4


def test_i1_a_key_belongs_to_one_tenant() -> None:
    """I1: all fields of TENANT_FIELDS together are the tenant."""

    @task
    def of_tenant(org: str, env: str) -> None: ...

    call = of_tenant.using(idempotency_key="k")
    with override_settings(DJANGO_JOBS={"TENANT_FIELDS": ["org", "env"]}):
        made = [
            call.enqueue(org=org, env=env)
            for org, env in [("a", "live"), ("a", "test"), ("b", "live"), ("al", "ive")]
        ]
        again = call.enqueue(org="a", env="live")
    assert [job.created for job in made] == [True] * 4
    assert (again.pk, again.created) == (made[0].pk, False)


def test_i1_on_duplicate_raise_names_the_job_and_writes_nothing() -> None:
    """FINE-PRINT: DuplicateJob carries .job, its id is in the message."""
    first = keyed().enqueue(value=1)
    with transaction.atomic():
        with pytest.raises(DuplicateJob, match=str(first.pk)) as caught:
            keyed(on_duplicate="raise", queue_name="elsewhere").enqueue(value=2)
        usable = jobs.echo.enqueue(value="still usable")
    assert caught.value.job.pk == first.pk
    assert set(Job.objects.values_list("pk", flat=True)) == {first.pk, usable.pk}
    assert not Queue.objects.filter(name="elsewhere").exists()


def test_i1_a_conflict_leaves_the_callers_transaction_usable() -> None:
    """I1: the conflict is dealt with inside a savepoint."""
    first = keyed().enqueue(value=1)
    with transaction.atomic():
        before = Group.objects.create(name="before")
        again = keyed().enqueue(value=2)
        after = Group.objects.create(name="after")
        other = jobs.echo.enqueue(value=3)
    assert (again.pk, again.created) == (first.pk, False)
    assert set(Group.objects.values_list("pk", flat=True)) == {before.pk, after.pk}
    assert Job.objects.filter(pk=other.pk).exists()


def test_i1_two_calls_of_one_transaction_make_one_job() -> None:
    with transaction.atomic():
        first, second = keyed().enqueue(value=1), keyed().enqueue(value=2)
    assert (second.pk, second.created) == (first.pk, False)
    assert Job.objects.count() == 1


def test_i1_a_rolled_back_holder_leaves_the_key_free() -> None:
    with pytest.raises(Undo), transaction.atomic():
        keyed().enqueue(value=1)
        raise Undo
    assert keyed().enqueue(value=2).created


@pytest.mark.parametrize("before", ["nothing", "a job past its window", "a pruned job"])
def test_i1_of_eight_threads_with_one_key_one_makes_the_job(before: str) -> None:
    """I1: the others get the same job; nobody gets an error."""
    if before != "nothing":
        old = keyed().enqueue(value="old")
        Job.objects.filter(pk=old.pk).update(status="completed", finished_at=clock.now())
        IdempotencyKey.objects.update(expires_at=clock.now())
        if before == "a pruned job":
            Job.objects.all().delete()
    older = Job.objects.count()
    together = threading.Barrier(8)
    got: list[Job] = []

    def race(n: int) -> None:
        together.wait()
        with transaction.atomic():
            got.append(keyed().enqueue(value=n))

    threads = [in_thread(lambda n=n: race(n)) for n in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len({job.pk for job in got}) == 1
    assert [job.created for job in got].count(True) == 1
    assert Job.objects.count() == older + 1
    assert IdempotencyKey.objects.get().job_id == got[0].pk


def test_i1_an_enqueue_waits_for_another_that_holds_the_key_uncommitted() -> None:
    """FINE-PRINT: and takes the key when that one rolls back."""
    got: list[Job] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        got.append(keyed().enqueue(value="second"))

    with pytest.raises(Undo), transaction.atomic():
        keyed().enqueue(value="first")
        rival = in_thread(second)
        entered.wait()
        rival.join(0.3)
        assert rival.is_alive(), "it did not wait"
        raise Undo
    rival.join()
    assert [job.created for job in got] == [True]
    assert Job.objects.get().input == {"value": "second"}


def test_i1_one_key_cannot_stand_for_many() -> None:
    with pytest.raises(InvalidInput, match="idempotency_key"):
        keyed().enqueue_many([{"value": 1}, {"value": 2}])
    assert not Job.objects.exists()


def test_a_plain_enqueue_stays_one_statement_on_postgresql() -> None:
    """W5 with the promise of PERFORMANCE: keys cost nothing where they are not used."""
    jobs.echo.enqueue(value=0)

    def statements() -> int:
        with CaptureQueriesContext(connection) as queries:
            jobs.echo.enqueue(value=1)
        return len(queries)

    # At most once a second a process reads which queues an operator has edited.
    assert min(statements() for _ in range(3)) == (1 if connection.vendor == "postgresql" else 3)
