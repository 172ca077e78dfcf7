"""kill -9 at every edge of a run that lives for weeks: forked processes, a clock that is moved."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from django_jobs import WorkflowContext, failpoints, run_job, send_event, workflow
from django_jobs.models import Event, Job
from django_jobs.testing import clock, drain
from tests.app.jobs import note
from tests.control.rows import assert_folds, assert_sound
from tests.engine.processes import lines

pytestmark = pytest.mark.django_db(transaction=True)
START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
#: The edges of the engine's transactions.
POINTS = ("claim.before_commit", "record.before_commit", "record.after_commit")
#: Edges from one life to the next; 1 tries every edge, as ``python -m tests.long waits`` does.
STRIDE = int(os.environ.get("TEST_KILL_STRIDE") or 6)
#: Later than any lease that a killed process has left.
LATER = timedelta(minutes=5)


class Killer:
    """Kills this very process when the edges have been reached so many times."""

    def __init__(self, kill_at: int) -> None:
        self.left = kill_at

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def in_process(work: Callable[[], Any], kill_at: int = 0) -> int | None:
    """Run ``work`` in a fork that dies at its edge ``kill_at``; the edges passed, None if it died."""
    connections.close_all()
    pid = os.fork()
    if not pid:
        code = 255
        try:
            killer = Killer(kill_at)
            for point in POINTS:
                failpoints._actions[point] = killer
            work()
            connections.close_all()
            code = kill_at - killer.left
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return None
    assert os.WEXITSTATUS(status) != 255, "the work has failed"
    return os.WEXITSTATUS(status)


def months(marks: Path) -> Any:
    @workflow("test.months", retries=1)
    def flow(run: WorkflowContext) -> list[Any]:
        run.inline("before", lambda: note(str(marks), "before"))
        run.sleep("cool-off", 30 * DAY)
        run.inline("between", lambda: note(str(marks), "between"))
        answer = run.wait_for_event("approval", "go", timeout=7 * DAY, default="nobody")
        bill = run.child("bill", billing)
        run.inline("after", lambda: note(str(marks), "after"))
        return [answer, bill]

    @workflow("test.billing")
    def billing(run: WorkflowContext) -> str:
        run.inline("bill", lambda: note(str(marks), "bill"))
        run.sleep("dunning", DAY)
        return "paid"

    return flow


def live(job: Job, kill_at: int, *, with_event: bool) -> bool:
    """Lead the run through its weeks, with one kill on the way; whether there was one."""
    moment, killed = START, False
    for step in (timedelta(0), 30 * DAY, 2 * DAY, 7 * DAY, DAY):
        moment += step
        clock.freeze(moment)
        if step == 2 * DAY and with_event:
            send_event("go", "yes", to=job, key="once")
        passed = in_process(drain, 0 if killed else kill_at)
        if passed is None:
            killed = True
            clock.freeze(moment + LATER)
            assert in_process(drain) is not None
        elif not killed:
            kill_at -= passed
            if kill_at <= 0:
                break
    return killed


@pytest.mark.parametrize("with_event", [True, False])
def test_a_run_of_weeks_survives_a_kill_at_any_edge(marks: Path, with_event: bool) -> None:
    flow = months(marks)
    edge = 1 + (0 if with_event else STRIDE // 2) - STRIDE
    while True:
        edge += STRIDE
        marks.unlink(missing_ok=True)
        clock.freeze(START)
        job = flow.enqueue()
        if not live(job, edge, with_event=with_event):
            break
        for _ in range(3):
            clock.travel(2 * DAY)
            drain()
        job.refresh_from_db()
        assert job.status == "completed", (edge, job.status, job.error)
        assert job.output == ["yes" if with_event else "nobody", "paid"]
        done = lines(marks)
        assert set(done) == {"before", "between", "bill", "after"}
        # P4: only the step in hand may have been run once more.
        assert len(done) <= 5, (edge, done)
        assert Job.objects.filter(parent=job).count() == 1, edge
        # I6: the first one's moment, however often it was looked at.
        wakes = job.steps.get(step_id="cool-off").wake_at
        assert wakes is not None
        assert START <= wakes - 30 * DAY <= START + LATER
        assert Event.objects.filter(job=job, step_key__isnull=False).count() == int(with_event)
        assert_sound()
        assert_folds(job)
        Job.objects.all().delete()
    assert edge > 20


def test_a_child_is_inserted_with_the_record_of_its_step_or_not_at_all(marks: Path) -> None:
    """Whatever the edge at which the parent dies, it has started one child in the end."""
    flow = months(marks)

    @workflow("test.starts_one")
    def starts_one(run: WorkflowContext) -> Any:
        return run.child("only", flow)

    clock.freeze(START)
    for edge in range(1, 6):
        job = starts_one.enqueue()
        died = in_process(lambda job=job: run_job(job.pk), edge) is None  # type: ignore[misc]
        children = Job.objects.filter(parent=job).count()
        assert children == job.steps.count()
        if died:
            clock.travel(LATER)
            assert in_process(lambda job=job: run_job(job.pk)) is not None  # type: ignore[misc]
        assert Job.objects.filter(parent=job).count() == 1
        assert job.steps.get().child == Job.objects.get(parent=job).pk
