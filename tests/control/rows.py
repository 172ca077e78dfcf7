"""Real rows in every status, led there by the engine's own statements."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django_jobs import clock
from django_jobs.lifecycle import Status
from django_jobs.models import Attempt, HistoryEntry, Job, Permit, TaskStatus
from django_jobs.observe import health
from django_jobs.observe.history import Entry, entries, fold
from django_jobs.outcomes import Sleeping, TryAgain
from django_jobs.store import history
from django_jobs.store.session import Session
from tests.app import jobs
from tests.observe.life import ERROR, Life

KINDS = ("task", "workflow")
HOUR = 3600.0


def make(status: Status, kind: str) -> Job:
    """A job of ``kind`` in ``status``; one that waits, waits for an hour."""
    delay = HOUR if status == Status.PENDING else None
    if kind == "workflow":
        job = jobs.three_steps.using(delay=delay).enqueue(marks="/dev/null")
    else:
        job = jobs.add.using(delay=delay).enqueue(a=1, b=2)
    life = Life(job)
    match status:
        case Status.PENDING:
            pass
        case Status.RUNNING:
            life.happen("claim")
        case Status.SLEEPING:
            life.happen("claim")
            life.finish(
                TryAgain(ERROR, HOUR)
                if kind == "workflow"
                else Sleeping(clock.now() + timedelta(hours=1))
            )
        case Status.PAUSED:
            life.happen("pause")
        case Status.COMPLETED:
            life.happen("claim")
            life.happen("complete")
        case Status.CANCELED:
            life.happen("cancel")
            Job.objects.filter(pk=job.pk).update(error={**ERROR, "code": "canceled"})
        case _:
            life.happen("claim")
            life.happen("fail")
    if status in (Status.COMPENSATING, Status.COMPENSATED, Status.COMPENSATION_FAILED):
        _move(job, Status.COMPENSATING, "finished_at = NULL")
    if status in (Status.COMPENSATED, Status.COMPENSATION_FAILED):
        _move(job, status, "finished_at = {now}")
    job.refresh_from_db()
    assert job.status == status
    return job


def _move(job: Job, to: Status, sets: str) -> None:
    def work(session: Session) -> int:
        return history.move(session, job.pk, event=str(to), frm=list(Status), to=to, sets=sets)

    assert Session().committed(work)


def stored(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Everything stored of a job."""
    found = {"job": list(Job.units.filter(pk=job.pk).values())}
    for model in (TaskStatus, Attempt, HistoryEntry, Permit):
        found[model.__name__] = list(model.objects.filter(job_id=job.pk).order_by("pk").values())
    return found


def assert_sound() -> None:
    """``jobs_check`` has nothing to say."""
    said = [str(finding) for finding in health.check().findings]
    assert not said, said


def assert_folds(job: Job) -> list[Entry]:
    """The history alone gives the stored state; return it."""
    told = entries(job)
    state = fold(told)
    assert not state.faults, state.faults
    assert (state.status, state.attempts, state.crashes) == (job.status, job.attempts, job.crashes)
    return told
