"""Handlers that raise or leave behind what they should not: RELIABILITY C6."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import Group

from django_jobs import run_jobs
from django_jobs.lifecycle import Status
from django_jobs.models import Job, Worker
from tests.app import jobs
from tests.engine.processes import RunJobs, lines

pytestmark = pytest.mark.django_db(transaction=True)
RAISED = {
    "SystemExit": "builtins.SystemExit",
    "KeyboardInterrupt": "builtins.KeyboardInterrupt",
    "GeneratorExit": "builtins.GeneratorExit",
    "CancelledError": "asyncio.exceptions.CancelledError",
    "StopIteration": "builtins.StopIteration",
    "MemoryError": "builtins.MemoryError",
    "RecursionError": "builtins.RecursionError",
    "Unprintable": "tests.app.jobs.Unprintable",
}
LEFT = [
    "open atomic",
    "open atomic after an error",
    "raw begin",
    "autocommit off",
    "closed connection",
    "broken statement",
]


def check_failures(kinds: dict[str, Job]) -> None:
    for what, job in kinds.items():
        job.refresh_from_db()
        assert (job.status, job.attempts, job.crashes) == (Status.FAILED, 1, 0), what
        # A coroutine may not raise StopIteration; Python makes it a RuntimeError.
        allowed = {RAISED[what]} | ({"builtins.RuntimeError"} if what == "StopIteration" else set())
        assert job.error["type"] in allowed, what


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("kind", [jobs.raises, jobs.araises], ids=["sync", "async"])
def test_c6_whatever_a_handler_raises_is_a_failure_of_its_job(
    kind: object, sequential: bool
) -> None:
    """C6: in process; the caller of run_jobs() gets a report, not the exception."""
    made = {what: kind.enqueue(what=what) for what in RAISED}  # type: ignore[attr-defined]
    good = jobs.add.using(priority=-1).enqueue(a=1, b=1)
    report = run_jobs(limit=20, sequential=sequential)
    assert (report.completed, report.failed) == (1, len(RAISED))
    check_failures(made)
    good.refresh_from_db()
    assert good.status == Status.COMPLETED


def test_c6_a_worker_survives_whatever_handlers_raise(runjobs: Callable[..., RunJobs]) -> None:
    """C6: one process executes them all, and the job after them."""
    made = {what: jobs.raises.enqueue(what=what) for what in RAISED}
    amade = {what: jobs.araises.enqueue(what=what) for what in RAISED}
    good = jobs.add.using(priority=-1).enqueue(a=1, b=1)
    worker = runjobs("--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    check_failures(made)
    check_failures(amade)
    good.refresh_from_db()
    assert (good.status, good.output) == (Status.COMPLETED, 2)
    assert Worker.objects.count() == 1


def test_c6_a_worker_survives_what_handlers_leave_behind(
    runjobs: Callable[..., RunJobs],
) -> None:
    """C6: open transactions end with their handler; the next job in the thread writes for good."""
    for n, what in enumerate(LEFT):
        jobs.leaves_behind.using(priority=100 - 2 * n).enqueue(what=what)
        jobs.makes_group.using(priority=99 - 2 * n).enqueue(name=f"after {what}")
    worker = runjobs("--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    unwell = Job.objects.exclude(status=Status.COMPLETED)
    assert list(unwell.values_list("input", "status", "error__message")) == []
    groups = set(Group.objects.values_list("name", flat=True))
    assert groups == {f"after {what}" for what in LEFT}
    assert Worker.objects.count() == 1


@pytest.mark.parametrize("sequential", [True, False])
def test_c6_a_run_that_swallows_everything_still_ends_as_the_engine_wants(
    marks: Path, sequential: bool
) -> None:
    """C6: ``except BaseException`` around a step that waits for its retry is no completion."""
    job = jobs.swallows.enqueue(marks=str(marks))
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert job.status == Status.SLEEPING
    assert lines(marks) == ["tried", "swallowed"]
    Job.objects.filter(pk=job.pk).update(run_after=job.created_at)
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert (job.status, job.output) == (Status.COMPLETED, "done")
    assert lines(marks) == ["tried", "swallowed", "tried"]


def test_c6_a_task_that_swallows_its_own_exception_is_completed() -> None:
    job = jobs.swallows_its_own.enqueue()
    run_jobs()
    job.refresh_from_db()
    assert (job.status, job.output) == (Status.COMPLETED, "swallowed SystemExit")
