"""Define, enqueue, claim, execute, record: the ordinary path."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from django.db import transaction

from django_jobs import run_job, run_jobs
from django_jobs.models import Attempt, HistoryEntry, Job, LogLine
from tests.app import jobs

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("sequential", [True, False])
def test_a_job_runs_and_keeps_its_output(sequential: bool) -> None:
    job = jobs.add.enqueue(a=1, b=2)
    assert job.status == "pending"
    report = run_jobs(sequential=sequential)
    assert (report.completed, report.failed, report.waiting, report.blocked) == (1, 0, 0, 0)
    job.refresh_from_db()
    assert (job.status, job.output, job.attempts, job.error) == ("completed", 3, 1, None)
    assert job.finished_at >= job.started_at >= job.created_at
    assert job.result() == 3


def test_the_ordinary_path_writes_no_row_besides_the_job() -> None:
    jobs.add.enqueue(a=1, b=2)
    run_jobs()
    assert HistoryEntry.objects.count() == Attempt.objects.count() == 0


def test_typed_output_comes_back_typed() -> None:
    job = jobs.price.enqueue(amount="9.90")
    run_jobs()
    assert job.result() == Decimal("19.80")
    assert job.output == "19.80"


@pytest.mark.parametrize("sequential", [True, False])
def test_an_async_task_runs(sequential: bool) -> None:
    job = jobs.slow_add.enqueue(a=2, b=3)
    run_jobs(sequential=sequential)
    assert job.result() == 5


@pytest.mark.parametrize("sequential", [True, False])
def test_a_workflow_records_each_step(tmp_path: Path, sequential: bool) -> None:
    marks = tmp_path / "marks"
    job = jobs.three_steps.enqueue(marks=str(marks))
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert job.error is None
    assert job.output == {"steps": ["first", "second", "third"]}
    assert marks.read_text().split() == ["first", "second", "third"]
    status = job.task_status
    assert status["mark"]["first"]["complete"] is True
    assert status["inline"]["second"]["output"] == "second"
    assert status["mark"]["third"]["total_tried"] == 1
    assert (job.progress, job.progress_note) == (1.0, "all done")
    assert [line.message for line in LogLine.objects.all()] == ["ran first"]


@pytest.mark.parametrize("sequential", [True, False])
def test_an_async_workflow_runs(sequential: bool) -> None:
    job = jobs.async_steps.enqueue(n=4)
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert job.error is None
    assert job.output == 10


@pytest.mark.parametrize("sequential", [True, False])
def test_a_failed_job_keeps_its_error(sequential: bool) -> None:
    job = jobs.fail.enqueue(text="no luck")
    report = run_jobs(sequential=sequential)
    assert report.failed == 1
    job.refresh_from_db()
    assert job.status == "failed"
    assert job.error["type"] == "builtins.ValueError"
    assert job.error["message"] == "no luck"
    assert "raise ValueError(text)" in job.error["traceback"]
    assert [attempt.status for attempt in Attempt.objects.filter(job=job)] == ["failed"]


@pytest.mark.parametrize("sequential", [True, False])
def test_a_flaky_job_is_tried_again(tmp_path: Path, sequential: bool) -> None:
    job = jobs.flaky.enqueue(marks=str(tmp_path / "marks"), failures=2)
    for expected in ("pending", "pending", "completed"):
        run_jobs(sequential=sequential)
        job.refresh_from_db()
        assert job.status == expected
    assert job.attempts == 3
    assert [row.event for row in HistoryEntry.objects.order_by("n")] == [
        "retrying", "claimed", "retrying", "claimed",
    ]  # fmt: skip


def test_a_rolled_back_enqueue_never_existed() -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        jobs.add.enqueue(a=1, b=1)
        raise RuntimeError
    with transaction.atomic():
        try:
            with transaction.atomic():
                jobs.add.enqueue(a=2, b=2)
                raise RuntimeError
        except RuntimeError:
            kept = jobs.add.enqueue(a=3, b=3)
    assert [job.pk for job in Job.objects.all()] == [kept.pk]


def test_order_is_priority_then_due_time_then_id() -> None:
    low = jobs.echo.using(priority=-5).enqueue(value="low")
    first = jobs.echo.enqueue(value="first")
    second = jobs.echo.enqueue(value="second")
    high = jobs.add.using(priority=5).enqueue(a=1, b=1)
    started = []
    for _ in range(4):
        run_jobs(limit=1)
        started.append(Job.objects.exclude(pk__in=started).get(status="completed").pk)
    assert started == [high.pk, first.pk, second.pk, low.pk]


def test_run_job_takes_only_a_due_job() -> None:
    later = jobs.add.using(delay=60).enqueue(a=1, b=1)
    assert run_job(later.pk).completed == 0
    now = jobs.add.using(queue_name="other").enqueue(a=1, b=1)
    assert run_job(now.pk).completed == 1
    assert run_job(now.pk).completed == 0
    assert run_job("no id").completed == 0


def test_enqueue_many_stores_all_or_nothing() -> None:
    from django_jobs import InvalidInput

    made = jobs.add.enqueue_many([{"a": n, "b": 1} for n in range(1200)])
    assert len(made) == Job.objects.count() == 1200
    with pytest.raises(InvalidInput, match="Item 1"):
        jobs.add.enqueue_many([{"a": 1, "b": 1}, {"a": "x", "b": 1}])
    assert Job.objects.count() == 1200
