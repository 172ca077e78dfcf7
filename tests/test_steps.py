"""Steps inside steps, several at once, and those that commit with their writes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from django_jobs import WorkflowContext, run_jobs, task, workflow
from django_jobs.definitions import registry
from django_jobs.models import Job, Queue
from tests.app import jobs

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def own_registry():
    saved = registry.snapshot()
    yield
    registry.restore(saved)


@pytest.mark.parametrize("sequential", [True, False])
def test_tasks_inside_tasks_are_recorded_under_their_parent(
    tmp_path: Path, sequential: bool
) -> None:
    job = jobs.nested.enqueue(marks=str(tmp_path / "marks"))
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert job.error is None
    assert job.output == [["one", "two"], ["one", "two"]]
    assert set(job.task_status["mark"]) == {"left/one", "right/one"}
    assert set(job.task_status["inline"]) == {"left/two", "right/two"}
    assert set(job.task_status["parent_task"]) == {"left", "right"}


@pytest.mark.parametrize("sequential", [True, False])
def test_a_job_of_a_single_task_may_use_steps(tmp_path: Path, sequential: bool) -> None:
    job = jobs.parent_task.enqueue(marks=str(tmp_path / "marks"))
    run_jobs(sequential=sequential)
    assert job.result() == ["one", "two"]
    assert set(job.task_status["mark"]) == {"one"}


@pytest.mark.parametrize("sequential", [True, False])
def test_gather_and_map_keep_the_order_of_their_input(tmp_path: Path, sequential: bool) -> None:
    job = jobs.gathered.enqueue(marks=str(tmp_path / "marks"))
    run_jobs(sequential=sequential)
    assert job.result() == [["a", "b"], [1, 2, 3], [5, 6]]
    assert set(job.task_status["add"]) == {"page:0", "page:1", "page:2"}


@pytest.mark.parametrize("sequential", [True, False])
def test_the_writes_of_a_transactional_step_commit_with_its_record(sequential: bool) -> None:
    @task("test.writes", transactional=True, retries=1)
    def writes(name: str, broken: bool) -> str:
        Queue.objects.create(name=name)
        if broken:
            raise ValueError("after the write")
        return name

    @workflow("test.transactional")
    def flow(run: WorkflowContext) -> None:
        run.task("good", writes, name="written", broken=False)
        run.task("bad", writes, name="rolled back", broken=True)

    job = flow.enqueue()
    run_jobs(sequential=sequential)
    assert Queue.objects.filter(name="written").exists()
    assert not Queue.objects.filter(name="rolled back").exists()
    job.refresh_from_db()
    assert job.status == "sleeping"
    assert job.task_status["test.writes"]["good"]["complete"] is True
    assert job.task_status["test.writes"]["bad"]["total_tried"] == 1


def test_a_newer_call_supersedes_the_one_that_waits() -> None:
    from django_jobs import Concurrency

    @task("test.index", concurrency=Concurrency(key="index", supersedes=True))
    def index(n: int) -> int:
        return n

    first, second = index.enqueue(n=1), index.enqueue(n=2)
    first.refresh_from_db()
    assert (first.status, first.error["code"], first.superseded_by) == (
        "canceled",
        "superseded",
        second.pk,
    )
    assert str(second.pk) in first.error["message"]
    assert run_jobs().completed == 1


def test_a_full_key_drops_or_raises_as_told() -> None:
    from django_jobs import Concurrency, DuplicateJob

    @task("test.drop", concurrency=Concurrency(key="drop", on_conflict="drop"))
    def drop() -> None: ...

    @task("test.raise", concurrency=Concurrency(key="raise", on_conflict="raise"))
    def refuse() -> None: ...

    holder = drop.enqueue()
    dropped = drop.enqueue()
    assert (dropped.status, dropped.error["code"]) == ("canceled", "canceled")
    assert str(holder.pk) in dropped.error["message"]
    kept = refuse.enqueue()
    with pytest.raises(DuplicateJob) as caught:
        refuse.enqueue()
    assert caught.value.job == kept
    assert Job.objects.filter(slug="test.raise").count() == 1


def test_jobs_of_one_key_run_one_after_the_other() -> None:
    @task("test.single", concurrency="key")
    def single(n: int) -> int:
        return n

    for n in range(3):
        single.enqueue(n=n)
    for left in (2, 1, 0):
        report = run_jobs()
        assert (report.completed, report.blocked) == (1, left)


def test_the_inline_runner_runs_at_enqueue() -> None:
    job = jobs.add.using(runner="inline").enqueue(a=1, b=1)
    assert job.status == "completed"
    assert job.output == 2


def test_jobs_that_wait_for_a_permit_do_not_fill_a_batch() -> None:
    @task("test.blocked", concurrency="one")
    def blocked(n: int) -> int:
        return n

    for n in range(15):
        blocked.enqueue(n=n)
    free = jobs.add.enqueue(a=1, b=1)
    report = run_jobs(limit=5)
    free.refresh_from_db()
    assert (free.status, report.completed, report.blocked) == ("completed", 2, 14)


def test_a_job_that_was_not_started_in_time_expires(jobs_clock: Any) -> None:
    jobs_clock.travel(timedelta(0))
    job = jobs.add.using(expires=60).enqueue(a=1, b=1)
    jobs_clock.travel(timedelta(seconds=61))
    assert run_jobs().completed == 0
    job.refresh_from_db()
    assert (job.status, job.error["code"]) == ("canceled", "expired")


@pytest.mark.parametrize("sequential", [True, False])
def test_signals_tell_of_steps_and_of_the_job(tmp_path: Path, sequential: bool) -> None:
    from django_jobs import signals

    heard: list[tuple[str, Any]] = []

    def step_ended(sender: Any, job: Job, step: Any, **details: Any) -> None:
        heard.append((step.step_id, step.status))

    def job_ended(sender: Any, job: Job, **details: Any) -> None:
        heard.append((job.slug, job.status))

    signals.step_completed.connect(step_ended)
    signals.job_completed.connect(job_ended)
    try:
        jobs.three_steps.enqueue(marks=str(tmp_path / "marks"))
        run_jobs(sequential=sequential)
    finally:
        signals.step_completed.disconnect(step_ended)
        signals.job_completed.disconnect(job_ended)
    steps = [(name, "completed") for name in ("first", "second", "third")]
    assert heard == [*steps, ("three_steps", "completed")]
