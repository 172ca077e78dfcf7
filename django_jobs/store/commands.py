"""What operators ask of jobs: many at once, each row by its status, each change with its entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django_jobs import conf, jsonvalues
from django_jobs.definitions.graph import Graph
from django_jobs.lifecycle import COMMANDS, KEEP, REFUSE, Command, Kind, Status
from django_jobs.store import endings, history, jobs, permits, rescheduling, undoing, units
from django_jobs.store.rescheduling import Change
from django_jobs.store.session import Session

#: Times that jobs are looked at again because somebody else was faster.
LOOKS = 8
EVENTS = {
    Command.PAUSE: "paused",
    Command.RESUME: "resumed",
    Command.CANCEL: "canceled",
    Command.RETRY: "retried",
    Command.RUN_NOW: "run_now",
    Command.RERUN: "rerun",
    Command.RESCHEDULE: "rescheduled",
    Command.COMPENSATE: "compensating",
}
#: Due at once: a moment to come is now, one that has passed keeps its place in the line.
DUE_NOW = (
    "gate = 'open', "
    "due_at = CASE WHEN run_after IS NULL THEN due_at WHEN run_after > {now} THEN {now} ELSE run_after END, "
    "run_after = CASE WHEN run_after > {now} THEN {now} ELSE run_after END"
)
#: What a command changes besides the status.
SETS = {
    Command.PAUSE: "",
    Command.RESUME: DUE_NOW,
    Command.CANCEL: (
        "error = {json(error)}, fence = fence + 1, finished_at = {now}, lease_expires_at = NULL, "
        "deadline_at = NULL, run_after = CASE WHEN kind = 'task' THEN run_after END"
    ),
    Command.RETRY: (
        "gate = 'open', due_at = {now}, fence = fence + 1, crashes = 0, finished_at = NULL, "
        "lease_expires_at = NULL"
    ),
    Command.COMPENSATE: f"{undoing.ENTERS}, {undoing.LETS_GO}, due_at = {{now}}, finished_at = NULL",
}
#: A cancel that undoes: who has a step of it in hand keeps fence and lease until that is recorded.
SETS_OF_UNDO = f"error = {{json(error)}}, {undoing.ENTERS}"
#: The option in which a retried job keeps how many tries were before, so that its budget is whole again.
ATTEMPTS_BEFORE = "attempts_before"


@dataclass(frozen=True, slots=True)
class Order:
    """A command, who gives it and why.

    A cancel with ``cascade`` is one of the children too, and theirs; with ``compensate`` runs undo
    the steps that they have completed. ``change`` is of a reschedule.
    """

    command: Command
    actor: str | None = None
    reason: str | None = None
    cascade: bool = False
    change: Change | None = None
    compensate: bool = False

    @property
    def detail(self) -> dict[str, Any] | None:
        known: dict[str, Any] = {"reason": self.reason} if self.reason else {}
        if self.command == Command.CANCEL:
            known["error"] = {"message": self.message, "code": "canceled"}
        return known or None

    @property
    def message(self) -> str:
        """The reason of a cancel as the job's error keeps it."""
        return self.reason or (f"Canceled by {self.actor}." if self.actor else "Canceled.")


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as it is found, its row locked."""

    job_id: UUID
    status: str
    held: bool
    gate: str
    queue_name: str
    key_hash: str | None
    key_limit: int | None


@dataclass(slots=True)
class Done:
    """What became of the jobs that were asked for; those that do not exist are in none of these."""

    changed: list[UUID] = field(default_factory=list)
    #: Those of them that are being undone by a cancel.
    undoing: list[UUID] = field(default_factory=list)
    unchanged: list[UUID] = field(default_factory=list)
    #: The status that refused, by job.
    refused: dict[UUID, str] = field(default_factory=dict)


def apply(session: Session, order: Order, job_ids: Iterable[UUID]) -> Done:
    """Carry out ``order`` on these jobs in the transaction of the caller; RERUN is not for here.

    Where somebody else was faster the job is read and judged again (S4).
    """
    done = Done()
    left = sorted(set(job_ids))
    for _ in range(LOOKS):
        seen = look(session, left)
        left = _once(session, order, seen, done)
        if not left:
            break
    if order.command == Command.CANCEL:
        # Not those that failed or completed: a child of theirs has an end of its own.
        _cancel_below(session, order, done)
    return done


def look(session: Session, job_ids: Sequence[UUID]) -> list[Seen]:
    """These jobs as they are now, locked in order of id until the end of the transaction."""
    rows = session.rows(
        "SELECT id, status, lease_expires_at, gate, queue_name, key_hash, key_limit FROM {job} "
        "{index(primary)} WHERE id {among(ids)} ORDER BY id {lock_rows}",
        ids=list(job_ids),
    )
    uuid = session.dialect.uuid
    return [Seen(uuid(row[0]), row[1], row[2] is not None, *row[3:]) for row in rows]  # type: ignore[arg-type]


def effect(command: Command, status: str) -> str:
    """The cell of the table; a damaged status refuses everything."""
    try:
        return COMMANDS[command][Status(status)]
    except ValueError:
        return REFUSE


def _once(session: Session, order: Order, seen: list[Seen], done: Done) -> list[UUID]:
    """One look's worth; those that changed under our eyes are returned."""
    undone: set[UUID] = set()
    if order.command == Command.CANCEL and order.compensate:
        undone = undoing.with_completed_steps(session, [one.job_id for one in seen])
    groups: dict[tuple[str, bool], list[Seen]] = {}
    for one in seen:
        cell = effect(order.command, one.status)
        if cell == REFUSE:
            done.refused[one.job_id] = one.status
        elif cell == KEEP:
            done.unchanged.append(one.job_id)
        else:
            groups.setdefault((one.status, one.job_id in undone), []).append(one)
    if order.command == Command.RUN_NOW:
        for (status, _), group in groups.items():
            _run_now(session, order, Status(status), group, done)
        return []
    if order.command == Command.RESCHEDULE:
        _reschedule(session, order, [one for group in groups.values() for one in group], done)
        return []
    missed: list[UUID] = []
    for (status, undoes), group in groups.items():
        listed = [one.job_id for one in group]
        moved = set(_move(session, order, Status(status), listed, undoes=undoes))
        _follow(session, order, [one for one in group if one.job_id in moved], undoes=undoes)
        done.changed += [job_id for job_id in listed if job_id in moved]
        done.undoing += [job_id for job_id in listed if job_id in moved and undoes]
        missed += [job_id for job_id in listed if job_id not in moved]
    return missed


def _move(
    session: Session, order: Order, status: Status, job_ids: list[UUID], *, undoes: bool
) -> list[UUID]:
    """``undoes`` says that a cancel leaves these runs to be undone."""
    command = order.command
    sets, params = SETS_OF_UNDO if undoes else SETS[command], dict[str, Any]()
    to = Status.COMPENSATING if undoes else Status(COMMANDS[command][status])
    event = EVENTS[Command.COMPENSATE if undoes else command]
    if command == Command.CANCEL:
        params["error"] = jsonvalues.dumps(
            {
                "type": "django_jobs.errors.CancelJob", "message": order.message, "traceback": "",
                "code": "canceled",
            },
            what="error",
        )  # fmt: skip
    if command == Command.RETRY:
        sets += f", options = {session.dialect.json_with('options', ATTEMPTS_BEFORE, 'attempts')}"
    return history.move_many(
        session, job_ids, event=event, frm=status, to=to,
        sets=sets, actor=order.actor, detail=order.detail, **params,
    )  # fmt: skip


# --- what a change brings with it -------------------------------------------------------------


def _follow(session: Session, order: Order, moved: list[Seen], *, undoes: bool) -> None:
    if moved:
        (_after_undo if undoes else FOLLOW[order.command])(session, moved)


def _after_undo(session: Session, moved: list[Seen]) -> None:
    """A cancel that undoes: steps in hand end and are recorded, whoever has them."""
    _make_room(session, [one for one in moved if one.status == Status.PENDING and not one.held])
    undoing.follow(session, [one.job_id for one in moved], [one.queue_name for one in moved])


def _after_pause(session: Session, moved: list[Seen]) -> None:
    units.withdraw(session, [one.job_id for one in moved])
    _make_room(session, [one for one in moved if one.status == Status.PENDING and not one.held])


def _after_cancel(session: Session, moved: list[Seen]) -> None:
    listed = [one.job_id for one in moved]
    session.run(
        "UPDATE {attempt} SET status = 'canceled', finished_at = {now} WHERE job_id {among(ids)} "
        "AND step_id IS NULL AND status = 'running'",
        ids=listed,
    )
    session.run(
        "UPDATE {taskstatus} SET status = 'canceled', finished_at = {now} WHERE job_id {among(ids)} "
        "AND status IN ('pending', 'running', 'sleeping')",
        ids=listed,
    )
    # The handler of a job in hand may still run: its worker frees the permit once it has stopped.
    idle = [one for one in moved if not one.held and one.key_limit is not None]
    if idle:
        session.run(
            "DELETE FROM {permit} WHERE job_id {among(ids)}", ids=[one.job_id for one in idle]
        )
    _make_room(session, idle)
    endings.ended(session, listed)


def _after_retry(session: Session, moved: list[Seen]) -> None:
    undone = [one.job_id for one in moved if one.status == Status.COMPENSATION_FAILED]
    if undone:
        session.run(
            "UPDATE {taskstatus} SET status = 'pending', failures = 0, finished_at = NULL, wake_at = NULL "
            "WHERE job_id {among(ids)} AND kind = 'compensation' AND status = 'failed'",
            ids=undone,
        )
    listed = [one.job_id for one in moved if one.status != Status.COMPENSATION_FAILED]
    reset_failed_steps(session, listed)
    units.reopen(session, listed)
    _wake(session, moved)


def _wake(session: Session, moved: list[Seen]) -> None:
    if conf.get().notify:
        for name in sorted({one.queue_name for one in moved}):
            jobs.wake(session, name)


FOLLOW: dict[Command, Callable[[Session, list[Seen]], None]] = {
    Command.PAUSE: _after_pause,
    Command.RESUME: _wake,
    Command.CANCEL: _after_cancel,
    Command.RETRY: _after_retry,
    Command.COMPENSATE: _wake,
}


def _make_room(session: Session, gone: list[Seen]) -> None:
    """Let in those who wait behind jobs that would have taken, or held, a permit of their key."""
    leaving: dict[str, int] = {}
    for one in gone:
        if one.key_hash is not None and one.key_limit is not None and one.gate != "permit":
            leaving[one.key_hash] = leaving.get(one.key_hash, 0) + 1
    for key_hash in sorted(leaving):
        permits.let_in(session, key_hash, leaving[key_hash])


def _cancel_below(session: Session, order: Order, done: Done) -> None:
    """Units of a run end with it; child runs do where the order says so.

    Of a run that is to be undone no unit is stopped: what it has in hand is recorded.
    """
    above, undone = [*done.changed, *done.unchanged], set(done.undoing)
    while above:
        rows = session.rows(
            "SELECT id, kind, parent_id FROM {job} WHERE parent_id {among(ids)} AND finished_at IS NULL",
            ids=above,
        )
        uuid = session.dialect.uuid
        children: list[UUID] = [
            uuid(row[0])  # type: ignore[misc]
            for row in rows
            if (uuid(row[2]) not in undone if row[1] == Kind.STEP else order.cascade)
        ]
        below = Done()
        _once(session, order, look(session, children), below)
        above, undone = below.changed, set(below.undoing)


# --- retry ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailedStep:
    id: int
    job_id: UUID
    step_id: str
    started_at: datetime
    finished_at: datetime


def reset_failed_steps(session: Session, job_ids: list[UUID]) -> int:
    """Give the failed steps of these runs a whole new budget; return how many.

    A failure that the run's own code caught stays as it is, for what ran since was built upon it:
    one that ended before the step was begun that the job's error names.
    """
    time, uuid = session.dialect.time, session.dialect.uuid
    rows = session.rows(
        "SELECT id, job_id, step_id, started_at, finished_at FROM {taskstatus} "
        "WHERE job_id {among(ids)} AND status = 'failed' ORDER BY id",
        ids=job_ids,
    )
    if not rows:
        return 0
    named = _named_by_error(session, job_ids)
    graphs = units.graphs_of(session, job_ids)
    failed: dict[UUID, list[FailedStep]] = {}
    for row in rows:
        step = FailedStep(row[0], uuid(row[1]), row[2], time(row[3]), time(row[4]))  # type: ignore[arg-type]
        failed.setdefault(step.job_id, []).append(step)
    chosen = [
        step.id
        for job_id, steps in failed.items()
        for step in (
            _not_optional(steps, graphs[job_id])
            if job_id in graphs
            else _to_reset(steps, named.get(job_id))
        )
    ]
    return session.run(
        "UPDATE {taskstatus} SET status = 'pending', failures = 0, finished_at = NULL, wake_at = NULL, "
        "child = CASE WHEN kind = 'child' THEN child END WHERE id {among(ids)}",
        ids=chosen,
    )


def _not_optional(steps: list[FailedStep], graph: Graph | None) -> list[FailedStep]:
    """What failed of a graph's run and is to be tried anew: upon optional failures others were built."""
    optional = {step.id for step in graph.steps.values() if step.optional} if graph else set()
    return [
        step
        for step in steps
        if not optional & {(head := step.step_id.partition("/")[0]), head.rpartition(":")[0]}
    ]


def _to_reset(steps: list[FailedStep], named: str | None) -> list[FailedStep]:
    at_fault = next((step for step in steps if step.step_id == named), None)
    if at_fault is None:
        return steps
    return [
        step
        for step in steps
        if step.id >= at_fault.id
        or step.finished_at > at_fault.started_at
        or _is_related(step.step_id, at_fault.step_id)
    ]


def _named_by_error(session: Session, job_ids: list[UUID]) -> dict[UUID, str]:
    """The step at fault, by job."""
    rows = session.rows(
        "SELECT id, {text(error)} FROM {job} WHERE id {among(ids)} AND error IS NOT NULL",
        ids=job_ids,
    )
    errors = {session.dialect.uuid(row[0]): jsonvalues.loads(row[1]) for row in rows}
    return {
        job_id: error["step_id"]
        for job_id, error in errors.items()
        if job_id is not None and isinstance(error, dict) and error.get("step_id")
    }


def _is_related(step_id: str, named: str) -> bool:
    """Whether a step is the named one, or around or within it."""
    return f"{named}/".startswith(f"{step_id}/") or step_id.startswith(f"{named}/")


# --- another place in line --------------------------------------------------------------------


def _reschedule(session: Session, order: Order, seen: list[Seen], done: Done) -> None:
    assert order.change is not None
    if not seen:
        return
    moved = rescheduling.apply(
        session, order.change, [one.job_id for one in seen], event=EVENTS[order.command],
        actor=order.actor, detail=order.detail,
    )  # fmt: skip
    done.changed += moved.changed
    done.unchanged += moved.unchanged
    done.refused |= moved.refused
    if conf.get().notify:
        for name in sorted(moved.queues):
            jobs.wake(session, name)


# --- run now ----------------------------------------------------------------------------------


#: What a job of each status must be besides, for "run now" to change it.
RUN_NOW_WHERE = {
    Status.PENDING: "gate NOT IN ('permit', 'rate') AND (gate = 'timer' OR due_at > {now})",
    Status.SLEEPING: (
        "run_after > {now} AND (gate <> 'wait' OR NOT EXISTS (SELECT 1 FROM {taskstatus} s "
        "WHERE s.job_id = {job}.id AND s.kind IN ('sleep', 'event', 'child') AND s.status = 'sleeping'))"
    ),
}


def can_run_now(session: Session, job_id: UUID, status: Status) -> bool:
    """Whether "run now" would change this job, which has this status."""
    where = RUN_NOW_WHERE.get(status)
    if where is None:
        return False
    sql = f"SELECT 1 FROM {{job}} WHERE id = %(id)s AND status = %(status)s AND {where}"
    return session.one(sql, id=job_id, status=str(status)) is not None


def _run_now(session: Session, order: Order, status: Status, group: list[Seen], done: Done) -> None:
    """Make jobs due that wait for a time; a durable wait, a key and a due job stay as they are."""
    sets = DUE_NOW if status == Status.PENDING else "run_after = {now}"
    rows = session.rows(
        f"UPDATE {{job}} SET {sets} WHERE id {{among(ids)}} AND status = %(status)s "
        f"AND {RUN_NOW_WHERE[status]} RETURNING id",
        ids=[one.job_id for one in group], status=str(status),
    )  # fmt: skip
    changed = {session.dialect.uuid(row[0]) for row in rows}
    moved = [one for one in group if one.job_id in changed]
    history.note_many(
        session, {one.job_id: order.detail for one in moved}, event=EVENTS[order.command], actor=order.actor
    )  # fmt: skip
    _wake(session, moved)
    done.changed += [one.job_id for one in moved]
    done.unchanged += [one.job_id for one in group if one.job_id not in changed]
