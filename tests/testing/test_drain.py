"""drain() and the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from django_jobs import (
    Concurrency,
    InvalidInput,
    Retry,
    RetryLater,
    TaskContext,
    WorkflowContext,
    task,
    workflow,
)
from django_jobs.models import Job, Queue
from django_jobs.testing import DrainLimit, clock, drain, registry
from tests.app import jobs
from tests.testing.helpers import IN_BOTH_TEST_CASES, kill_holder, status_of

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

pytestmark = [*IN_BOTH_TEST_CASES, pytest.mark.usefixtures("jobs_clock", "jobs_registry")]


def test_drain_runs_everything_due_in_all_queues() -> None:
    jobs.add.enqueue(a=1, b=2)
    jobs.add.using(queue_name="other").enqueue(a=1, b=2)
    jobs.fail.enqueue()
    jobs.add.using(delay=60).enqueue(a=1, b=2)
    report = drain()
    assert (report.completed, report.failed, report.waiting, report.blocked) == (2, 1, 1, 0)
    assert drain().ended == 0


def test_drain_goes_on_with_what_jobs_enqueue() -> None:
    @task
    def parent(left: int) -> None:
        if left:
            parent.enqueue(left=left - 1)

    parent.enqueue(left=3)
    assert drain().completed == 4


def test_drain_does_not_move_time() -> None:
    clock.freeze(NOON)
    jobs.add.using(delay=1).enqueue(a=1, b=2)
    assert drain().completed == 0
    assert clock.now() == NOON
    clock.travel(timedelta(seconds=1))
    assert drain().completed == 1


def test_drain_takes_jobs_of_every_runner() -> None:
    job = jobs.add.using(runner="celery").enqueue(a=1, b=2)
    assert drain().completed == 1
    assert status_of(job) == "completed"


def test_drain_until_moves_the_clock_from_due_time_to_due_time() -> None:
    clock.freeze(NOON)
    seen: list[tuple[str, datetime]] = []

    @task
    def note(word: str) -> None:
        seen.append((word, clock.now()))
        if word == "first":
            note.using(delay=30).enqueue(word="between")

    note.using(delay=120).enqueue(word="last")
    note.using(delay=60).enqueue(word="first")
    note.using(delay=601).enqueue(word="beyond")
    report = drain(until=timedelta(minutes=10))
    assert seen == [
        ("first", NOON + timedelta(seconds=60)),
        ("between", NOON + timedelta(seconds=90)),
        ("last", NOON + timedelta(seconds=120)),
    ]
    assert (report.completed, report.waiting) == (3, 1)
    assert report.next_due == NOON + timedelta(seconds=601)
    assert clock.now() == NOON + timedelta(minutes=10)


def test_a_job_due_exactly_at_the_end_runs() -> None:
    clock.freeze(NOON)
    jobs.add.using(run_after=NOON + timedelta(hours=1)).enqueue(a=1, b=2)
    assert drain(until=NOON + timedelta(hours=1)).completed == 1


def test_drain_until_freezes_a_clock_that_runs() -> None:
    jobs.add.using(delay=3600).enqueue(a=1, b=2)
    before = clock.now()
    assert drain(until=timedelta(hours=2)).completed == 1
    assert clock.now() - before >= timedelta(hours=2)
    assert clock.now() == clock.now()


def test_drain_until_waits_out_retries() -> None:
    clock.freeze(NOON)
    tried: list[datetime] = []

    @task(retries=Retry(max_attempts=3, delay=10, backoff="exponential", jitter=0))
    def broken() -> None:
        tried.append(clock.now())
        raise ValueError

    broken.enqueue()
    report = drain(until=timedelta(minutes=5))
    assert [(moment - NOON).total_seconds() for moment in tried] == [0, 10, 30]
    assert (report.retried, report.failed) == (2, 1)


@pytest.mark.parametrize(
    "until", [datetime(2026, 6, 2), NOON - timedelta(1), timedelta(seconds=-1), "tomorrow"]
)
def test_drain_until_refuses_what_is_no_moment_ahead(until: Any) -> None:
    clock.freeze(NOON)
    with pytest.raises(InvalidInput, match="drain"):
        drain(until=until)


def test_jobs_run_in_order_of_priority_even_when_enqueued_meanwhile() -> None:
    ran: list[str] = []

    @task
    def note(word: str) -> None:
        ran.append(word)
        if word == "a":
            note.using(priority=5).enqueue(word="urgent")

    note.enqueue(word="a")
    note.enqueue(word="b")
    drain()
    assert ran == ["a", "urgent", "b"]


def test_an_endless_chain_is_stopped_and_named() -> None:
    @task
    def again() -> None:
        again.enqueue()

    again.enqueue()
    with pytest.raises(DrainLimit, match="again 26 times"):
        drain(limit=25)


def test_an_endless_retry_is_stopped_and_named() -> None:
    @task
    def never_ready() -> None:
        raise RetryLater(0)

    never_ready.enqueue()
    with pytest.raises(DrainLimit, match="never_ready"):
        drain(limit=25)


def test_async_tasks_and_workflows_see_the_transaction_of_the_test() -> None:
    @task
    async def count() -> int:
        return await Job.objects.acount()

    @workflow
    async def run_it(run: WorkflowContext) -> int:
        first = await run.task("count", count)
        second = await run.inline("again", Job.objects.count)
        await count.aenqueue()
        return int(first + second)

    job = run_it.enqueue()
    assert drain().completed == 2
    assert job.result() == 2


def test_steps_of_a_gather_run_one_by_one_in_order() -> None:
    ran: list[int] = []

    @task
    def note(n: int) -> int:
        ran.append(n)
        return n

    @workflow
    def fan_out(run: WorkflowContext) -> list[int]:
        return run.map("page", note, [3, 1, 2])  # type: ignore[no-any-return]

    job = fan_out.enqueue()
    drain()
    assert job.result() == [3, 1, 2]
    assert ran == [3, 1, 2]


def test_cancel_requested_asks_the_row_each_time() -> None:
    answers: list[bool] = []

    @task(takes_context=True)
    def watch(context: TaskContext) -> None:
        answers.append(context.cancel_requested)
        Job.objects.filter(pk=context.job.pk).update(status="canceled", finished_at=clock.now())
        answers.append(context.cancel_requested)

    watch.enqueue()
    drain()
    assert answers == [False, True]


def test_a_paused_queue_is_left_alone() -> None:
    jobs.add.using(queue_name="mail").enqueue(a=1, b=2)
    jobs.add.enqueue(a=1, b=2)
    Queue.objects.get(name="mail").pause()
    report = drain(until=timedelta(hours=1))
    assert (report.completed, report.blocked) == (1, 1)


def test_a_job_that_waits_for_a_permit_does_not_hide_the_others() -> None:
    clock.freeze(NOON)

    @task(concurrency=Concurrency(key="one", limit=1))
    def exclusive(n: int) -> int:
        return n

    held = [exclusive.using(priority=9).enqueue(n=n) for n in range(3)]
    kill_holder(held[0])
    other = jobs.add.enqueue(a=1, b=2)
    assert drain().completed == 1
    assert status_of(other) == "completed"
    # Once the lease of the dead holder ends, all of them run.
    assert drain(until=timedelta(minutes=1)).completed == 3


def test_a_lease_that_its_holder_left_behind_ends_within_until() -> None:
    clock.freeze(NOON)
    job = jobs.add.enqueue(a=1, b=2)
    kill_holder(job)
    assert drain().completed == 0
    assert drain(until=timedelta(minutes=1)).completed == 1
    job.refresh_from_db()
    assert (job.status, job.crashes, job.attempts) == ("completed", 1, 1)


def test_definitions_within_registry_are_forgotten() -> None:
    from django_jobs import UnknownTask
    from django_jobs.enqueueing import enqueue

    with registry():

        @task
        def passing() -> None: ...

        enqueue("passing")
    with pytest.raises(UnknownTask):
        enqueue("passing")


def test_a_workflow_runs_to_its_end(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    job = jobs.three_steps.enqueue(marks=str(marks))
    assert drain().completed == 1
    assert job.result() == {"steps": ["first", "second", "third"]}
