"""Recording: outcomes, steps, log lines and progress, each written only under its own fence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never
from uuid import UUID

from django_jobs import conf, failpoints, jsonvalues
from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import AttemptStatus, Command, Gate, Status, StepStatus
from django_jobs.outcomes import (
    Canceled,
    Compensated,
    CompensationFailed,
    Completed,
    Failed,
    HandedBack,
    Later,
    Lost,
    Outcome,
    Parked,
    Sleeping,
    TryAgain,
    Undoing,
)
from django_jobs.store import commands, endings, history, jobs, permits, undoing, units, waits
from django_jobs.store.claims import Claim
from django_jobs.store.commands import Order
from django_jobs.store.dialects.mysql import portions
from django_jobs.store.dialects.postgresql import array_of, text_array_of
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer, StepWrite, dump_error, write_steps
from django_jobs.store.undoing import BeginUndo
from django_jobs.store.units import CancelRun, Offer, UnitWrite, Withdraw
from django_jobs.store.waits import Wait


@dataclass(slots=True)
class LogWrite:
    """Lines that a handler logged: (level, message, step key)."""

    claim: Claim
    lines: list[tuple[str, str, str | None]] = field(default_factory=list)
    #: The run to which they belong, where a unit wrote them.
    job: UUID | None = None


@dataclass(slots=True)
class ProgressWrite:
    claim: Claim
    progress: float
    note: str = ""


@dataclass(slots=True)
class NoteWrite:
    """A history entry without a change of status, such as the error of a callback."""

    claim: Claim
    event: str
    step: str | None
    detail: Any
    job: UUID | None = None


@dataclass(slots=True)
class Finish:
    """How a claim ended."""

    claim: Claim
    outcome: Outcome


Item = (
    StepWrite
    | BeginUndo
    | UnitWrite
    | Wait
    | Offer
    | Withdraw
    | CancelRun
    | LogWrite
    | ProgressWrite
    | NoteWrite
    | Finish
)


#: The statuses of jobs whose rows are locked, by id and the fence that they still have.
Owned = dict[tuple[UUID, int], str | None]


def record(session: Session, items: Sequence[Item]) -> list[Answer]:
    """Write a batch in the transaction of the caller; one answer for each item.

    "paused" says of a step's start that the job is no longer to be driven, and nothing was
    written. Safe to repeat after a commit whose answer was lost.
    """
    answers: list[Answer] = ["lost"] * len(items)
    placed = list(enumerate(items))
    # What a claim recorded on its way comes before its end, which gives up the right to write.
    steps = [(place, item) for place, item in placed if isinstance(item, StepWrite)]
    for (place, _), answer in zip(
        steps, write_steps(session, [item for _, item in steps]), strict=True
    ):
        answers[place] = answer
    by_units = [(place, item) for place, item in placed if isinstance(item, UnitWrite)]
    for (place, _), answer in zip(
        by_units, units.write(session, [item for _, item in by_units]), strict=True
    ):
        answers[place] = answer
    owned: Owned = {}
    for place, item in placed:
        if not isinstance(item, StepWrite | UnitWrite | Finish):
            answers[place] = _write(session, item, owned)
    plain = [item for item in items if isinstance(item, Finish) and is_plain(item)]
    completed = _complete_plain(session, plain)
    for place, item in placed:
        if isinstance(item, Finish):
            done = is_plain(item) and item.claim.job_id in completed
            answers[place] = "written" if done else _write(session, item, owned)
    failpoints.reach("record.before_commit")
    return answers


def _owned_status(session: Session, claim: Claim) -> str | None:
    """The job's status if the fence is still ours, its row locked; None otherwise."""
    row = session.one(
        "SELECT status FROM {job} WHERE id = %(id)s AND fence = %(fence)s AND lease_expires_at IS NOT NULL "
        "{lock_rows}",
        id=claim.job_id, fence=claim.fence,
    )  # fmt: skip
    return None if row is None else row[0]


def _write(session: Session, item: Item, owned: Owned) -> Answer:
    # By fence too: a process may have lost a job, and taken it again, with its old thread running.
    held = item.claim.job_id, item.claim.fence
    if held not in owned:
        owned[held] = _owned_status(session, item.claim)
    status = owned[held]
    if status is None:
        if not isinstance(item, Finish) or not _finished_before(session, item):
            if isinstance(item, Finish) and not item.claim.keeps_permit:
                permits.drop(session, item.claim)
            return "lost"
        return "written"
    match item:
        case LogWrite():
            _write_log(session, item)
        case ProgressWrite():
            session.run(
                "UPDATE {job} SET progress = %(progress)s, progress_note = %(note)s WHERE id = %(id)s",
                id=item.claim.job_id, progress=item.progress, note=item.note,
            )  # fmt: skip
        case NoteWrite():
            history.note(
                session, item.job or item.claim.job_id, event=item.event, step=item.step, detail=item.detail,
                worker=item.claim.worker,
            )  # fmt: skip
        case Finish():
            return _finish(session, item.claim, item.outcome, Status(status))
        case Wait():
            return waits.look(session, item, Status(status))
        case Offer():
            return units.offer(session, item, Status(status), notify=conf.get().notify)
        case BeginUndo():
            return undoing.begin(session, item)
        case Withdraw():
            units.withdraw(session, [item.claim.job_id], canceled=True, keep=item.over_failures)
        case CancelRun():
            _cancel_run(session, item)
        case UnitWrite():
            return units.write(session, [item])[0]
        case StepWrite():
            return write_steps(session, [item])[0]
        case _:
            assert_never(item)
    return "written"


def _cancel_run(session: Session, item: CancelRun) -> None:
    """CancelJob is the handler's own decision: it ends the run, and its other units with it."""
    assert item.claim.parent is not None
    reason = str(item.error.get("message") or "") or None
    commands.apply(session, Order(Command.CANCEL, reason=reason), [item.claim.parent])


def _finished_before(session: Session, item: Finish) -> bool:
    """Whether an earlier try of this very write was committed although its answer was lost.

    Every other way to end a claim raises the fence, so a job that nobody drives under our fence
    was ended by us.
    """
    row = session.one(
        "SELECT fence, lease_expires_at FROM {job} WHERE id = %(id)s AND worker = %(worker)s",
        id=item.claim.job_id, worker=item.claim.worker,
    )  # fmt: skip
    return row is not None and row[0] == item.claim.fence and row[1] is None


def ended_here(session: Session, claims: Sequence[Claim]) -> set[tuple[UUID, int]]:
    """Those of ``claims``, as (job, fence), whose end is written; see :func:`_finished_before`."""
    rows = session.rows(
        "SELECT id, fence FROM {job} WHERE id {among(ids)} AND worker = %(worker)s AND lease_expires_at IS NULL",
        ids=[claim.job_id for claim in claims], worker=claims[0].worker,
    )  # fmt: skip
    return {(session.dialect.uuid(row[0]), row[1]) for row in rows}  # type: ignore[misc]


# --- outcomes ---------------------------------------------------------------------------------


COMPLETE_PLAIN = """
    UPDATE {job} SET status = 'completed', output = v.output::jsonb, error = NULL, attempts = attempts + 1,
           finished_at = {now}, lease_expires_at = NULL, deadline_at = NULL
      FROM unnest(%(ids)s::uuid[], %(fences)s::int[], %(outputs)s::text[]) AS v(id, fence, output)
     WHERE {job}.id = v.id AND {job}.fence = v.fence AND {job}.status = 'running'
"""


COMPLETE_LISTED = """
    UPDATE {job} SET status = 'completed', output = v.output, error = NULL, attempts = attempts + 1,
           finished_at = {now}, lease_expires_at = NULL, deadline_at = NULL
      FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS fence,
                   json_extract(value, '$[2]') AS output FROM json_each(%(listed)s)) AS v
     WHERE {job}.id = v.id AND {job}.fence = v.fence AND {job}.status = 'running' RETURNING {job}.id
"""
ANY_SIZE = 1 << 30


def is_plain(item: Item) -> bool:
    """Whether ``item`` is a completion that touches no row but its job's."""
    return isinstance(item, Finish) and item.claim.plain and isinstance(item.outcome, Completed)


def plain_params(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "ids": array_of([item.claim.job_id.hex for item in items]),
        "fences": array_of([item.claim.fence for item in items]),
        "outputs": text_array_of([item.outcome.output for item in items]),  # type: ignore[union-attr]
    }


def _complete_plain(session: Session, items: Sequence[Finish]) -> set[UUID]:
    """Complete many jobs whose end touches no row but their own."""
    if not items:
        return set()
    if session.vendor == "postgresql":
        rows = session.rows(COMPLETE_PLAIN + " RETURNING {job}.id", **plain_params(items))
        return {row[0] for row in rows}
    if session.vendor == "sqlite":
        listed = [
            [item.claim.job_id.hex, item.claim.fence, item.outcome.output]  # type: ignore[union-attr]
            for item in items
        ]
        rows = session.rows(
            COMPLETE_LISTED, listed=jsonvalues.dumps(listed, what="outcomes", limit=ANY_SIZE)
        )
        return {session.dialect.uuid(row[0]) for row in rows}  # type: ignore[misc]
    return {
        job_id
        for portion in portions([_completed(item) for item in items])
        for job_id in _complete_rows(session, portion)
    }


def _completed(item: Finish) -> dict[str, Any]:
    output = item.outcome.output  # type: ignore[union-attr]
    return {"id": item.claim.job_id, "fence": item.claim.fence, "output": output}


def _complete_rows(session: Session, items: list[dict[str, Any]]) -> set[UUID]:
    """MySQL: lock the rows that are ours, then complete these."""
    uuid = session.dialect.uuid
    locked = session.rows(
        "SELECT id, fence FROM {job} {index(primary)} WHERE id {among(ids)} AND status = 'running' FOR UPDATE",
        ids=[item["id"] for item in items],
    )
    ours = {(uuid(row[0]), row[1]) for row in locked}
    done = [item for item in items if (item["id"], item["fence"]) in ours]
    if not done:
        return set()
    outputs = " ".join(f"WHEN %(id_{n})s THEN {{json(output_{n})}}" for n in range(len(done)))
    session.run(
        f"UPDATE {{job}} SET status = 'completed', output = CASE id {outputs} END, error = NULL, "
        "attempts = attempts + 1, finished_at = {now}, lease_expires_at = NULL, deadline_at = NULL "
        "WHERE id {among(ids)}",
        ids=[item["id"] for item in done],
        **{f"{name}_{n}": item[name] for n, item in enumerate(done) for name in ("id", "output")},
    )
    return {item["id"] for item in done}


def _complete(session: Session, claim: Claim, outcome: Completed) -> int:
    return session.run(
        "UPDATE {job} SET status = 'completed', output = {json(output)}, error = NULL, attempts = attempts + 1, "
        "finished_at = {now}, lease_expires_at = NULL, deadline_at = NULL, run_after = "
        "CASE WHEN kind = 'task' THEN run_after END "
        "WHERE id = %(id)s AND fence = %(fence)s AND status = 'running'",
        id=claim.job_id, fence=claim.fence, output=outcome.output,
    )  # fmt: skip


def _finish(session: Session, claim: Claim, outcome: Outcome, status: Status) -> Answer:
    """End a claim whose job row is locked and ours; ``status`` is what the row shows now.

    "paused" says that the outcome is kept for the next claim, and the job has not ended; "undoing"
    that the run has failed, and that somebody undoes it now.
    """
    if status not in (Status.RUNNING, Status.COMPENSATING):
        return _finish_unsteered(session, claim, outcome, status)
    if status == Status.COMPENSATING and not isinstance(
        outcome, Compensated | CompensationFailed | Undoing | Lost
    ):
        # Whatever kept its driver from going on: somebody else does.
        outcome = Undoing(0.0, getattr(outcome, "reason", type(outcome).__name__))
    if isinstance(outcome, Lost):
        return "written"
    if isinstance(outcome, Failed) and claim.is_run and undoing.is_due(session, claim.job_id):
        undoing.fall(session, claim, outcome)
        _end_attempt(session, claim, AttemptStatus.FAILED, outcome.error)
        _free(session, claim, final=False)
        return "undoing"
    _leave_by(session, claim, outcome)
    is_end = isinstance(outcome, Completed | Failed | Canceled | Compensated | CompensationFailed)
    _free(session, claim, final=is_end, busy=isinstance(outcome, Sleeping) and outcome.busy)
    if is_end:
        endings.claim_ended(session, claim)
    return "written"


def _leave_by(session: Session, claim: Claim, outcome: Outcome) -> None:
    """The change of status that ``outcome`` asks for, and the end of the attempt's row."""
    match outcome:
        case Completed():
            _complete(session, claim, outcome)
            _end_attempt(session, claim, AttemptStatus.COMPLETED, None)
        case TryAgain():
            _try_again(session, claim, outcome)
            _end_attempt(session, claim, AttemptStatus.FAILED, outcome.error)
        case Later():
            _leave(
                session, claim, _waiting(claim), event="later", delay=outcome.delay,
                detail={"delay": outcome.delay, "reason": outcome.reason},
            )  # fmt: skip
            _end_attempt(session, claim, AttemptStatus.CANCELED, None)
        case Failed(error=error, counted=counted):
            _end(session, claim, Status.FAILED, event="failed", error=error, counted=counted)
            _end_attempt(session, claim, AttemptStatus.FAILED, error)
        case Canceled(error=error):
            _end(session, claim, Status.CANCELED, event="canceled", error=error, counted=False)
            _end_attempt(session, claim, AttemptStatus.CANCELED, error)
        case Sleeping():
            _fall_asleep(session, claim, outcome)
            _end_attempt(session, claim, AttemptStatus.CANCELED, None)
        case Parked():
            _park(session, claim, outcome.error)
            _end_attempt(session, claim, AttemptStatus.CANCELED, outcome.error)
        case HandedBack():
            hand_back(
                session, claim.job_id, claim.fence, reason=outcome.reason, worker=claim.worker
            )
        case Compensated() | CompensationFailed():
            undoing.end(session, claim, outcome)
            close_attempt(session, claim.job_id, claim.fence, AttemptStatus.FAILED, outcome.error)
        case Undoing():
            undoing.let_go(session, claim, outcome)
            close_attempt(session, claim.job_id, claim.fence, AttemptStatus.FAILED, None)
        case Lost():
            pass
        case _:
            assert_never(outcome)


def _waiting(claim: Claim) -> Status:
    """How a job waits for its next try."""
    return Status.SLEEPING if claim.is_run else Status.PENDING


def _try_again(session: Session, claim: Claim, outcome: TryAgain) -> None:
    first = units.standing(session, claim.job_id).wake_at if outcome.of_steps else None
    _leave(
        session, claim, _waiting(claim), event="retrying", error=outcome.error, counted=True,
        delay=outcome.delay if first is None else None, wake_at=first,
        detail={"error": _brief(outcome.error), "delay": outcome.delay},
    )  # fmt: skip


def _finish_unsteered(session: Session, claim: Claim, outcome: Outcome, status: Status) -> Answer:
    """End a claim whose job was paused (and perhaps resumed) under way: keep the result, let go.

    A task's outcome, and a run's final failure, are kept as a step record of the job's own, so that
    the next claim ends it without running it again.
    """
    if isinstance(outcome, Lost):
        return "written"
    if isinstance(outcome, Canceled):
        # The handler's own decision holds, whatever an operator did meanwhile.
        _end(session, claim, Status.CANCELED, event="canceled", error=outcome.error, counted=False,
             frm=[Status.PAUSED, Status.PENDING])  # fmt: skip
        _end_attempt(session, claim, AttemptStatus.CANCELED, outcome.error)
        _free(session, claim, final=True)
        endings.claim_ended(session, claim)
        return "written"
    if isinstance(outcome, Failed) or (isinstance(outcome, Completed) and not claim.is_run):
        write_steps(session, [own_result(claim, outcome)])
    counted = 1 if isinstance(outcome, TryAgain | Failed) else 0
    error = getattr(outcome, "error", None)
    kept = ", error = {json(error)}" if error else ""
    session.run(
        "UPDATE {job} SET lease_expires_at = NULL, fence = fence + 1, attempts = attempts + %(counted)s"
        f"{kept} WHERE id = %(id)s AND fence = %(fence)s",
        id=claim.job_id, fence=claim.fence, counted=counted, error=dump_error(error),
    )  # fmt: skip
    history.note(
        session, claim.job_id, event="handed_back", worker=claim.worker,
        detail={"reason": f"{status} while {type(outcome).__name__}", "error": _brief(error) if error else None,
                "counted": counted},
    )  # fmt: skip
    _end_attempt(session, claim, AttemptStatus.FAILED if counted else AttemptStatus.CANCELED, error)
    _free(session, claim, final=False)
    if status == Status.PENDING and conf.get().notify:
        # Resumed meanwhile: it could not be claimed before this.
        jobs.wake(session, claim.queue_name)
    return "paused"


def own_result(claim: Claim, outcome: Completed | Failed) -> StepWrite:
    """The record under which a job keeps a result that came while it was being paused."""
    from django_jobs import ids

    own = StepWrite(
        claim=claim, step_key=ids.digest(claim.slug, ""), step_id="", slug=claim.slug, kind="task",
        status=StepStatus.FAILED, input=claim.input, total_tried=claim.attempts + 1,
    )  # fmt: skip
    if isinstance(outcome, Completed):
        own.status, own.output = StepStatus.COMPLETED, outcome.output
    else:
        own.error = outcome.error
    return own


def _fall_asleep(session: Session, claim: Claim, outcome: Sleeping) -> None:
    """running → sleeping, or pending at once where what the run waits for is there already.

    It is looked for under the row's lock, which whoever sends an event or ends a child takes too:
    no wake-up is lost between the last look of the pass and here.
    """
    is_due, wake_at = False, outcome.wake_at
    if outcome.keys:
        is_due, wake_at = waits.standing(session, claim.job_id, outcome.keys)
    if outcome.seen is not None:
        found = units.standing(session, claim.job_id)
        is_due = is_due or found.seen != outcome.seen
        wake_at = min((one for one in (wake_at, found.wake_at) if one is not None), default=None)
    if is_due:
        _leave(
            session, claim, Status.PENDING, event="woken", delay=0.0, gate=Gate.OPEN, clear_error=True,
            detail={"reason": "what it waits for is there"},
        )  # fmt: skip
        if conf.get().notify:
            jobs.wake(session, claim.queue_name)
    else:
        _leave(
            session, claim, Status.SLEEPING, event="sleeping", wake_at=wake_at, gate=Gate.WAIT,
            clear_error=True,
        )  # fmt: skip


def _leave(
    session: Session,
    claim: Claim,
    to: Status,
    *,
    event: str,
    delay: float | None = None,
    wake_at: datetime | None = None,
    error: ErrorDict | None = None,
    clear_error: bool = False,
    counted: bool = False,
    gate: Gate = Gate.TIMER,
    detail: Any = None,
) -> None:
    """running → pending or sleeping, due again later."""
    when = "{moment(wake_at)}" if delay is None else "{after(delay)}"
    due = when
    if claim.is_run and claim.deadline_at is not None:
        # At the end of its time limit it is due too, and fails.
        due = f"CASE WHEN {when} <= {{moment(deadline)}} THEN {when} ELSE {{moment(deadline)}} END"
    sets = f"run_after = {due}, gate = '{gate}', lease_expires_at = NULL, deadline_at = {{moment(deadline)}}"
    if gate == Gate.OPEN:
        sets += f", due_at = {when}"
    if error is not None:
        sets += ", error = {json(error)}"
    elif clear_error:
        sets += ", error = NULL"
    if counted:
        sets += ", attempts = attempts + 1"
    history.move(
        session, claim.job_id, event=event, frm=[Status.RUNNING], to=to, fence=claim.fence, worker=claim.worker,
        attempt=claim.attempts + 1, sets=sets, detail=detail, delay=delay, wake_at=wake_at,
        deadline=claim.deadline_at, error=None if error is None else dump_error(error),
    )  # fmt: skip


def _end(
    session: Session,
    claim: Claim,
    to: Status,
    *,
    event: str,
    error: ErrorDict,
    counted: bool,
    frm: Sequence[Status] = (Status.RUNNING,),
) -> None:
    """running → failed or canceled."""
    history.move(
        session, claim.job_id, event=event, frm=frm, to=to, fence=claim.fence, worker=claim.worker,
        attempt=claim.attempts + 1,
        detail={"error": _brief(error)} if counted else {"error": _brief(error), "counted": 0},
        sets="error = {json(error)}, finished_at = {now}, lease_expires_at = NULL, deadline_at = NULL, "
             "run_after = CASE WHEN kind = 'task' THEN run_after END, "
             f"attempts = attempts + {1 if counted else 0}",
        error=dump_error(error),
    )  # fmt: skip


def _park(session: Session, claim: Claim, error: ErrorDict) -> None:
    history.move(
        session, claim.job_id, event="parked", frm=[Status.RUNNING], to=Status.PAUSED, fence=claim.fence,
        worker=claim.worker, detail={"error": _brief(error)}, error=dump_error(error),
        sets="error = {json(error)}, lease_expires_at = NULL",
    )  # fmt: skip


def hand_back(
    session: Session, job_id: UUID, fence: int, *, reason: str, worker: UUID | None
) -> int:
    """running → pending at once, uncounted, under a raised fence; the job keeps its due time."""
    moved = history.move(
        session, job_id, event="handed_back", frm=[Status.RUNNING], to=Status.PENDING, fence=fence, worker=worker,
        sets="gate = 'open', lease_expires_at = NULL, fence = fence + 1", detail={"reason": reason},
    )  # fmt: skip
    moved = moved or history.move(
        session, job_id, event="handed_back", frm=[Status.COMPENSATING], to=Status.COMPENSATING, fence=fence,
        worker=worker, sets="lease_expires_at = NULL, fence = fence + 1", detail={"reason": reason, "counted": 0},
    )  # fmt: skip
    if moved:
        close_attempt(session, job_id, fence, AttemptStatus.CANCELED, None)
    return moved


def _free(session: Session, claim: Claim, *, final: bool, busy: bool = False) -> None:
    """Slot release with the outcome, in its transaction; a run whose units are under way keeps it."""
    if not claim.held or claim.keeps_permit:
        return
    if (claim.key_hold or busy) and not final:
        permits.hold(session, claim.job_id, claim.fence, claim.key_hash)
    else:
        permits.release(session, claim.job_id, claim.fence, claim.key_hash)


def _end_attempt(
    session: Session, claim: Claim, status: AttemptStatus, error: ErrorDict | None
) -> None:
    """Close the row of this try; a first try has one only if it did not simply succeed."""
    if close_attempt(session, claim.job_id, claim.fence, status, error) or status in (
        AttemptStatus.COMPLETED,
        AttemptStatus.CANCELED,
    ):
        return
    session.run(
        "INSERT INTO {attempt} (job_id, number, status, error, fence, worker, started_at, finished_at) "
        "VALUES (%(job)s, %(number)s, %(status)s, {json(error)}, %(fence)s, %(worker)s, {moment(started)}, {now})",
        job=claim.job_id, number=claim.attempts + 1, status=str(status), error=dump_error(error),
        fence=claim.fence, worker=claim.worker, started=claim.started_at,
    )  # fmt: skip


def close_attempt(
    session: Session, job_id: UUID, fence: int, status: AttemptStatus, error: ErrorDict | None
) -> int:
    """End the running try of this (job, fence), where it has a row."""
    if fence <= 1:
        return 0
    return session.run(
        "UPDATE {attempt} SET status = %(status)s, error = {json(error)}, finished_at = {now} "
        "WHERE job_id = %(job)s AND fence = %(fence)s AND step_id IS NULL AND status = 'running'",
        job=job_id, fence=fence, status=str(status), error=dump_error(error),
    )  # fmt: skip


# --- steps, log -------------------------------------------------------------------------------


def _write_log(session: Session, item: LogWrite) -> None:
    session.many(
        "INSERT INTO {logline} (job_id, step_key, fence, at, level, message) "
        "VALUES (%(job)s, %(step_key)s, %(fence)s, {now}, %(level)s, %(message)s)",
        [
            {
                "job": item.job or item.claim.job_id,
                "step_key": step_key,
                "fence": item.claim.fence,
                "level": level,
                "message": text,
            }
            for level, text, step_key in item.lines
        ],
    )


def _brief(error: ErrorDict) -> ErrorDict:
    """An error without its traceback, for the history."""
    return {
        key: error.get(key) for key in ("type", "message", "code") if error.get(key) is not None
    }
