"""A worker that returns after its lease writes nothing: RELIABILITY L3."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from django_jobs import clock, ids
from django_jobs.lifecycle import Status, StepStatus
from django_jobs.models import Attempt, HistoryEntry, Job, LogLine, Permit, TaskStatus
from django_jobs.outcomes import (
    Canceled,
    Completed,
    Failed,
    HandedBack,
    Later,
    Outcome,
    Parked,
    Sleeping,
    TryAgain,
)
from django_jobs.store import claims, leases, record
from django_jobs.store.claims import Claim
from django_jobs.store.exchange import exchange
from django_jobs.store.record import Finish, Item, LogWrite, NoteWrite, ProgressWrite
from django_jobs.store.session import Session
from django_jobs.store.steps import StepWrite
from django_jobs.worker.sweep import sweep
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually, freeze, in_thread, lines

pytestmark = pytest.mark.django_db(transaction=True)
START = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = 15.0
ERROR = {"type": "builtins.ValueError", "message": "late", "traceback": "", "code": None}


def take(session: Session) -> Claim:
    """The one job that is due, for one more worker."""
    [taken] = session.committed(
        lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=1, lease=LEASE)
    )
    return taken


def rows(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Everything stored of a job."""
    found = {"job": list(Job.units.filter(pk=job.pk).values())}
    for model in (TaskStatus, Attempt, LogLine, HistoryEntry, Permit):
        found[model.__name__] = list(model.objects.filter(job_id=job.pk).order_by("pk").values())
    return found


def step(claim: Claim, status: StepStatus, step_id: str = "late") -> StepWrite:
    done = status == StepStatus.COMPLETED
    return StepWrite(
        claim=claim, step_key=ids.digest("mark", step_id), step_id=step_id, slug="mark", kind="task",
        status=status, input="{}", output='"late"' if done else None, total_tried=1,
        error=dict(ERROR) if status == StepStatus.FAILED else None,
    )  # fmt: skip


WRITES: dict[str, Callable[[Claim], Item]] = {
    "start of a step": lambda claim: step(claim, StepStatus.RUNNING),
    "result of a step": lambda claim: step(claim, StepStatus.COMPLETED),
    "failure of a step": lambda claim: step(claim, StepStatus.FAILED),
    "log line": lambda claim: LogWrite(claim, [("info", "late", None)]),
    "progress": lambda claim: ProgressWrite(claim, 0.9, "late"),
    "history entry": lambda claim: NoteWrite(claim, "callback_failed", None, {"late": True}),
}
OUTCOMES: list[Outcome] = [
    Completed('"late"'),
    Failed(dict(ERROR)),
    TryAgain(dict(ERROR), 0.0),
    Later(1.0, "late"),
    Canceled(dict(ERROR)),
    Sleeping(START + timedelta(days=1)),
    Parked(dict(ERROR)),
    HandedBack("late"),
]
WRITES |= {
    f"outcome {type(outcome).__name__}": lambda claim, outcome=outcome: Finish(claim, outcome)  # type: ignore[misc]
    for outcome in OUTCOMES
}


def retaken(session: Session, late: Claim) -> None:
    assert take(session).fence > late.fence


def only_taken_back(session: Session, late: Claim) -> None:
    assert Job.objects.get(pk=late.job_id).status == Status.PENDING


def completed_by_another(session: Session, late: Claim) -> None:
    finish = Finish(take(session), Completed('"in time"'))
    assert session.committed(lambda s: record.record(s, [finish])) == ["written"]


SINCE: list[Callable[[Session, Claim], None]] = [retaken, only_taken_back, completed_by_another]


@pytest.mark.parametrize("since", SINCE)
@pytest.mark.parametrize("kind", ["task", "workflow", "keyed task"])
@pytest.mark.parametrize("write", WRITES)
def test_l3_a_zombie_writes_nothing(
    write: str, kind: str, since: Callable[[Session, Claim], None]
) -> None:
    """L3: no outcome, step, attempt, log line, progress or history entry under an old fence."""
    clock.freeze(START)
    session = Session()
    if kind == "workflow":
        job = jobs.three_steps.enqueue(marks="/dev/null")
    else:
        key = "one-at-a-time" if kind == "keyed task" else None
        job = jobs.echo.using(concurrency_key=key).enqueue(value=1)
    late = take(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    assert sweep(session) == 1
    since(session, late)
    before = rows(job)
    nothing = uuid4()
    answers, _ = exchange(session, [WRITES[write](late)], [], worker=nothing, limit=0, lease=LEASE)
    assert answers == ["lost"]
    assert session.committed(lambda s: record.record(s, [WRITES[write](late)])) == ["lost"]
    assert rows(job) == before


@pytest.mark.parametrize("since", SINCE)
@pytest.mark.parametrize("key", ["one-at-a-time", None])
def test_l3_a_zombie_renews_neither_lease_nor_permit(
    since: Callable[[Session, Claim], None], key: str | None
) -> None:
    """L3, L8: a heartbeat under an old fence touches nothing."""
    clock.freeze(START)
    session = Session()
    job = jobs.echo.using(concurrency_key=key).enqueue(value=1)
    late = take(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    sweep(session)
    since(session, late)
    before = rows(job)
    assert session.committed(lambda s: leases.renew(s, [late], LEASE)) == {}
    assert leases.status_of(session, late) is None
    assert rows(job) == before


def test_l3_what_belongs_to_others_is_written_beside_a_zombies_batch() -> None:
    """L3: one lost claim in a batch costs the others of the batch nothing."""
    clock.freeze(START)
    session = Session()
    lost = jobs.echo.enqueue(value=1)
    late = take(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    sweep(session)
    held = [take(session)]
    kept = jobs.echo.enqueue(value=2)
    held.append(take(session))
    items: list[Item] = [Finish(late, Completed('"late"'))]
    items += [Finish(claim, Completed('"in time"')) for claim in held if claim.job_id == kept.pk]
    assert session.committed(lambda s: record.record(s, items)) == ["lost", "written"]
    lost.refresh_from_db()
    assert (lost.status, lost.output) == ("running", None)
    kept.refresh_from_db()
    assert (kept.status, kept.output) == ("completed", "in time")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("write", WRITES)
def test_l3_a_zombies_write_in_one_batch_with_its_successors_is_dropped(
    write: str, order: int
) -> None:
    """L3: a process may take back its own lost job while the old thread still runs."""
    clock.freeze(START)
    session = Session()
    job = jobs.three_steps.enqueue(marks="/dev/null")
    late = take(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    sweep(session)
    holder = take(session)
    kept = step(holder, StepStatus.COMPLETED, "in time")
    items = [WRITES[write](late), kept, ProgressWrite(holder, 0.5)][::order]
    answers = session.committed(lambda s: record.record(s, items))
    assert answers == ["lost", "written", "written"][::order]
    job.refresh_from_db()
    assert (job.status, job.progress, job.output, job.error) == ("running", 0.5, None, None)
    assert list(job.steps.values_list("step_id", flat=True)) == ["in time"]
    assert not LogLine.objects.exists()


def test_l3_steps_of_two_fences_go_in_one_trip_and_only_the_holders_are_kept() -> None:
    """L3: as above on PostgreSQL's way of one round trip."""
    clock.freeze(START)
    session = Session()
    job = jobs.three_steps.enqueue(marks="/dev/null")
    late = take(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    sweep(session)
    holder = take(session)
    items = [step(claim, StepStatus.COMPLETED, "same") for claim in (holder, late, holder)]
    answers, _ = exchange(session, items, [], worker=holder.worker, limit=0, lease=LEASE)
    assert answers == ["written", "lost", "written"]
    assert list(job.steps.values_list("step_id", "fence")) == [("same", holder.fence)]


@pytest.mark.parametrize("status", [StepStatus.RUNNING, StepStatus.COMPLETED])
def test_l3_a_zombies_step_that_has_the_trip_to_itself_is_dropped(status: StepStatus) -> None:
    """L3: as above for the statement of one run alone, which is PostgreSQL's."""
    clock.freeze(START)
    session = Session()
    job = jobs.three_steps.enqueue(marks="/dev/null")
    late = take(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    sweep(session)
    holder = take(session)
    for claim, answer in ((late, "lost"), (holder, "written")):
        items = [step(claim, status)]
        answers, _ = exchange(session, items, [], worker=claim.worker, limit=0, lease=LEASE)
        assert answers == [answer]
    assert list(job.steps.values_list("step_id", "fence")) == [("late", holder.fence)]


@pytest.mark.parametrize("write", WRITES)
def test_l3_a_zombie_that_waited_for_the_row_writes_nothing(write: str) -> None:
    """L3: the fence is compared with the row as the one who took it back has left it."""
    session = Session()
    job = jobs.three_steps.enqueue(marks="/dev/null")
    late = take(session)
    [held] = leases.held_by(session, late.worker)
    answers: list[str] = []

    def return_late() -> None:
        own = Session()
        answers.extend(own.committed(lambda s: record.record(s, [WRITES[write](late)])))

    with session.transaction():
        leases.take_back(session, held, message="gone", crash_limit=3, dead=True)
        zombie = in_thread(return_late)
        zombie.join(0.2)
        assert zombie.is_alive()
    zombie.join()
    assert answers == ["lost"]
    job.refresh_from_db()
    assert (job.status, job.progress, job.attempts) == ("pending", None, 0)
    assert not job.steps.exists()
    assert not LogLine.objects.exists()


def test_l5_an_expired_lease_that_nobody_took_is_renewed() -> None:
    """L5: late, but still the only holder: the result counts."""
    clock.freeze(START)
    session = Session()
    job = jobs.echo.enqueue(value=1)
    late = take(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    assert session.committed(lambda s: leases.renew(s, [late], LEASE)) == {job.pk: "running"}
    assert sweep(session) == 0
    items = [Finish(late, Completed("1"))]
    assert session.committed(lambda s: record.record(s, items)) == ["written"]
    job.refresh_from_db()
    assert (job.status, job.output, job.crashes) == ("completed", 1, 0)


def test_l3_a_frozen_worker_that_thaws_after_its_lease_writes_nothing(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """L3, P5 with real processes: SIGSTOP beyond the lease, another worker, SIGCONT."""
    job = jobs.traces.enqueue(marks=str(marks), release=str(release))
    first = runjobs("--threads", 1)
    eventually(lambda: len(lines(marks)) == 2, "the first worker is within the second step")
    frozen = int(lines(marks)[1].split()[1])
    freeze(frozen)
    second = runjobs("--threads", 1)
    eventually(lambda: len(lines(marks)) == 3, "the second worker has taken over")
    release.touch()
    eventually(lambda: Job.objects.get(pk=job.pk).status == "completed", "the run is completed")
    before = rows(job)
    os.kill(frozen, signal.SIGCONT)
    eventually(lambda: "lease was lost" in first.output(), "the thawed worker gives up")
    assert "Traceback" not in first.output()
    first.terminate()
    assert first.wait() == 0
    assert rows(job) == before
    assert [line.split()[0] for line in lines(marks)] == ["first", "started", "started", "last"]
    job.refresh_from_db()
    assert (job.output, job.attempts, job.crashes) == (int(lines(marks)[2].split()[1]), 1, 1)
    assert [row.message for row in LogLine.objects.filter(job=job)] == [f"held by {job.output}"]
    second.terminate()
    assert second.wait() == 0
