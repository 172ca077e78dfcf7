"""A completed step runs once, whatever comes after it: RELIABILITY P2, P5."""

from __future__ import annotations

from pathlib import Path

import pytest

from django_jobs import WorkflowContext, run_jobs, workflow
from django_jobs.models import Job, TaskStatus
from tests.app import jobs
from tests.engine.processes import lines

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("sequential", [True, False])
def test_p5_a_completed_step_is_answered_from_the_store(marks: Path, sequential: bool) -> None:
    """P2, P5: three passes, and each completed step ran in the first that reached it."""

    @workflow(retries=5)
    def stumbling(run: WorkflowContext) -> list[str]:
        first = run.task("first", jobs.mark, marks=str(marks), word="first")
        second = run.inline("second", lambda: jobs.mark(str(marks), "second"))
        if run.attempt < 3:
            raise RuntimeError("not yet")
        return [first, second, run.task("third", jobs.mark, marks=str(marks), word="third")]

    job = stumbling.using(retries=5).enqueue()
    for _ in range(3):
        Job.objects.filter(status="sleeping").update(run_after=job.created_at)
        run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("completed", 3)
    assert job.output == ["first", "second", "third"]
    assert lines(marks) == ["first", "second", "third"]
    assert set(TaskStatus.objects.values_list("status", "total_tried")) == {("completed", 1)}
