"""What a run waits for: sleeps, events, child runs. Begun, looked at and ended under the run's row lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django_jobs import jsonvalues
from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import FINAL, Command, Status, StepKind, StepStatus
from django_jobs.store import commands
from django_jobs.store.claims import Claim
from django_jobs.store.commands import Order
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer, dump_error

if TYPE_CHECKING:
    from django_jobs.models import Job


@dataclass(slots=True)
class Wait:
    """A wait as its run asks for it; what became of it is noted here once it is written.

    ``wake_after`` (seconds) or ``wake_at`` is the end of a sleep and the time limit of another
    wait; ``enqueue`` inserts the child run in the open transaction.
    """

    claim: Claim
    step_key: str
    step_id: str
    slug: str
    kind: StepKind
    input: str
    #: Its place in the order of completion, if it is over.
    done_no: int
    wake_after: float | None = None
    wake_at: datetime | None = None
    event_name: str | None = None
    enqueue: Callable[[Session], Job] | None = None
    #: What undoes it, as JSON text; see StepWrite.
    compensation: str | None = None

    # --- the answer -----------------------------------------------------------------------
    status: StepStatus = StepStatus.SLEEPING
    output: str | None = None
    error: ErrorDict | None = None
    timed_out: bool = False
    child: UUID | None = None
    #: The child run that this very write has inserted.
    enqueued: Job | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The record of a wait as it is stored; ``is_due`` says that its time is over."""

    status: str
    wake_at: datetime | None
    child: UUID | None
    output: str | None
    error: str | None
    failures: int
    is_due: bool


def look(session: Session, wait: Wait, job_status: Status) -> Answer:
    """Begin ``wait`` if it is new, and end it if what it waits for is there.

    The caller has locked the run's row: against an event or a child that comes meanwhile, and
    between event and time limit, this lock alone decides (I4). Safe to repeat after a commit whose
    answer was lost.
    """
    if job_status != Status.RUNNING:
        return "paused"
    wait.status, wait.enqueued = StepStatus.SLEEPING, None
    found = _read(session, wait)
    if found is None or found.status == StepStatus.PENDING:
        _begin(session, wait, found)
        found = _read(session, wait)
        assert found is not None
    wait.child = found.child
    if found.status != StepStatus.SLEEPING:
        wait.status, wait.output = StepStatus(found.status), found.output
        wait.error, wait.timed_out = jsonvalues.loads(found.error), found.failures > 0
    else:
        JUDGES[wait.kind](session, wait, found)
    return "written"


def standing(session: Session, job_id: UUID, keys: frozenset[str]) -> tuple[bool, datetime | None]:
    """Whether one of these waits is over, and when the first of them will be over by itself."""
    row = session.one(
        "SELECT MAX(CASE WHEN s.wake_at <= {now} THEN 1 "
        "WHEN EXISTS (SELECT 1 FROM {event} e WHERE e.job_id = s.job_id AND e.name = s.event_name "
        "AND e.step_key IS NULL) THEN 1 "
        "WHEN EXISTS (SELECT 1 FROM {job} j WHERE j.id = s.child AND j.finished_at IS NOT NULL) THEN 1 "
        "ELSE 0 END), MIN(s.wake_at), COUNT(*) "
        "FROM {taskstatus} s WHERE s.job_id = %(job)s AND s.status = 'sleeping' AND s.step_key {among(keys)}",
        job=job_id, keys=sorted(keys),
    )  # fmt: skip
    assert row is not None
    # A wait that sleeps no more was ended meanwhile, by nobody who could have woken its run.
    return bool(row[0]) or row[2] < len(keys), session.dialect.time(row[1])


# --- beginning --------------------------------------------------------------------------------


def _read(session: Session, wait: Wait) -> Found | None:
    row = session.one(
        "SELECT status, wake_at, child, {text(output)}, {text(error)}, failures, "
        "CASE WHEN wake_at <= {now} THEN 1 ELSE 0 END FROM {taskstatus} "
        "WHERE job_id = %(job)s AND step_key = %(key)s",
        job=wait.claim.job_id, key=wait.step_key,
    )  # fmt: skip
    if row is None:
        return None
    dialect = session.dialect
    status, wake_at, child, output, error, failures, is_due = row
    return Found(
        status, dialect.time(wake_at), dialect.uuid(child), output, error, failures, bool(is_due)
    )


def _begin(session: Session, wait: Wait, before: Found | None) -> None:
    """Record that the run waits, and insert the child it waits for: both or neither."""
    child = None
    if wait.enqueue is not None:
        child = _reopened(session, before.child) if before is not None and before.child else None
        if child is None:
            wait.enqueued = wait.enqueue(session)
            child = wait.enqueued.pk
    values = {
        "job": wait.claim.job_id, "key": wait.step_key, "step_id": wait.step_id, "slug": wait.slug,
        "kind": str(wait.kind), "input": wait.input, "fence": wait.claim.fence, "worker": wait.claim.worker,
        "wake_at": wait.wake_at, "wake_after": wait.wake_after, "event": wait.event_name, "child": child,
        "compensation": wait.compensation,
    }  # fmt: skip
    # An absolute moment: replay, pause and recovery never move it (I6).
    wakes = "COALESCE({moment(wake_at)}, {after(wake_after)})"
    if before is not None:
        session.run(
            f"UPDATE {{taskstatus}} SET status = 'sleeping', wake_at = {wakes}, child = %(child)s, fence = %(fence)s, "
            "worker = %(worker)s WHERE job_id = %(job)s AND step_key = %(key)s",
            **values,
        )
        return
    session.run(
        "INSERT INTO {taskstatus} (job_id, step_key, step_id, slug, kind, status, input, fence, worker, wake_at, "
        "event_name, child, compensation, started_at) VALUES (%(job)s, %(key)s, %(step_id)s, %(slug)s, %(kind)s, "
        f"'sleeping', {{json(input)}}, %(fence)s, %(worker)s, {wakes}, %(event)s, %(child)s, {{json(compensation)}}, "
        "{now})",
        **values,
    )


def _reopened(session: Session, child: UUID) -> UUID | None:
    """The child of a step that an operator's retry opened again, going on where it failed; None for a new one."""
    status = _status(session, child)
    if status in (Status.FAILED, Status.COMPENSATION_FAILED):
        commands.apply(session, Order(Command.RETRY, reason="its parent was retried"), [child])
    elif status is None or status in (Status.CANCELED, Status.COMPENSATED):
        return None
    return child


def _status(session: Session, job_id: UUID) -> str | None:
    row = session.one("SELECT status FROM {job} WHERE id = %(id)s", id=job_id)
    return None if row is None else row[0]


# --- judging ----------------------------------------------------------------------------------


def _judge_sleep(session: Session, wait: Wait, found: Found) -> None:
    if found.is_due:
        _complete(session, wait)


def _judge_event(session: Session, wait: Wait, found: Found) -> None:
    """The oldest event that came in time; each is consumed once, with the end of the wait."""
    event = session.one(
        "SELECT id, {text(payload)} FROM {event} WHERE job_id = %(job)s AND name = %(name)s AND step_key IS NULL "
        "AND ({moment(limit)} IS NULL OR sent_at <= {moment(limit)}) ORDER BY id LIMIT 1",
        job=wait.claim.job_id, name=wait.event_name, limit=found.wake_at,
    )  # fmt: skip
    if event is not None:
        session.run(
            "UPDATE {event} SET step_key = %(key)s WHERE id = %(id)s AND step_key IS NULL",
            id=event[0], key=wait.step_key,
        )  # fmt: skip
        _complete(session, wait, event[1])
    elif found.is_due:
        _complete(session, wait, timed_out=True)


def _judge_child(session: Session, wait: Wait, found: Found) -> None:
    row = session.one(
        "SELECT status, {text(output)}, {text(error)} FROM {job} WHERE id = %(id)s", id=found.child
    )
    if row is None:
        _fail(session, wait, _said(f"Its child run {found.child} does not exist any more."))
    elif row[0] == Status.COMPLETED:
        _complete(session, wait, row[1])
    elif row[0] in FINAL:
        known = jsonvalues.loads(row[2]) or _said(f"Its child run is {row[0]}.")
        _fail(session, wait, {name: known.get(name) for name in _said("")})
    elif found.is_due:
        _fail(
            session, wait,
            _said(f"The wait for the child run {found.child} timed out; it goes on.", "timeout", "builtins.TimeoutError"),
        )  # fmt: skip


def _said(message: str, code: str | None = None, kind: str = "") -> ErrorDict:
    kind = kind or "django_jobs.errors.JobsError"
    return {"type": kind, "message": message, "traceback": "", "code": code}


def _complete(
    session: Session, wait: Wait, output: str | None = None, *, timed_out: bool = False
) -> None:
    """``failures`` of a completed wait tells that its time limit ended it."""
    wait.status, wait.output, wait.error, wait.timed_out = (
        StepStatus.COMPLETED, output, None, timed_out,
    )  # fmt: skip
    _end(session, wait, int(timed_out), wait.done_no)


def _fail(session: Session, wait: Wait, error: ErrorDict) -> None:
    wait.status, wait.output, wait.error = StepStatus.FAILED, None, error
    _end(session, wait, 1, None)


def _end(session: Session, wait: Wait, failures: int, done_no: int | None) -> None:
    session.run(
        "UPDATE {taskstatus} SET status = %(status)s, output = {json(output)}, error = {json(error)}, "
        "total_tried = total_tried + 1, failures = %(failures)s, done_no = %(done_no)s, fence = %(fence)s, "
        "worker = %(worker)s, finished_at = {now} WHERE job_id = %(job)s AND step_key = %(key)s",
        status=str(wait.status), output=wait.output, error=dump_error(wait.error), failures=failures,
        done_no=done_no, fence=wait.claim.fence, worker=wait.claim.worker, job=wait.claim.job_id, key=wait.step_key,
    )  # fmt: skip


JUDGES: dict[Any, Callable[[Session, Wait, Found], None]] = {
    StepKind.SLEEP: _judge_sleep,
    StepKind.EVENT: _judge_event,
    StepKind.CHILD: _judge_child,
}
