"""Units: steps of a graph's run that any worker may claim, each with a lease and a fence of its own.

A unit writes into the records of its run under its own fence. Whatever it writes, its run's row is
locked before the unit's own, so that its run never decides over records that are about to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django_jobs.definitions import registry
from django_jobs.definitions.dag import DAG
from django_jobs.definitions.graph import Graph
from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import FINAL, FINAL_STEPS, Status, StepStatus
from django_jobs.store import history, jobs, outbox, steps, waking
from django_jobs.store.claims import Claim
from django_jobs.store.jobs import NewJob
from django_jobs.store.recorded import StepRecord, read_records
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer, StepWrite, dump_error

#: Records of steps that have not ended, at most, that are looked at after the end of one.
LOOK = 20
#: Statuses of a run in which its units start steps.
GOING = frozenset({Status.PENDING, Status.RUNNING, Status.SLEEPING})
ENDED = ", ".join(f"'{status}'" for status in sorted(FINAL_STEPS))


@dataclass(slots=True)
class Offer:
    """Steps that the driver of a run gives to others: their records, and a unit for each."""

    claim: Claim
    steps: list[StepWrite]
    units: list[NewJob]


@dataclass(slots=True)
class UnitWrite:
    """The start or the end of a step that a unit does, in the records of its run.

    ``joins`` are the steps that come after it, each as the keys of all that it comes after: one of
    them may be ready now. ``then`` is the start of the step that the unit may go on with itself;
    ``goes_on`` tells whether it does. ``stops`` says that the run starts nothing more but the steps
    ``over_failures``.
    """

    claim: Claim
    step: StepWrite
    joins: tuple[tuple[str, ...], ...] = ()
    then: StepWrite | None = None
    stops: bool = False
    over_failures: frozenset[str] = frozenset()
    #: For an item of a map: what the ids of all its items begin with.
    items_of: str = ""
    goes_on: bool = False


@dataclass(slots=True)
class CancelRun:
    """The step of a unit raised CancelJob."""

    claim: Claim
    error: ErrorDict


@dataclass(slots=True)
class Withdraw:
    """The run of this claim starts nothing more, but the steps ``over_failures``."""

    claim: Claim
    over_failures: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its units find it, its row locked."""

    job_id: UUID
    status: str


# --- offering ---------------------------------------------------------------------------------


def offer(session: Session, given: Offer, status: Status, *, notify: bool) -> Answer:
    """Record that these steps are given away, and insert their units. The run's row is locked."""
    if status != Status.RUNNING:
        return "paused"
    steps.write_steps(session, given.steps)
    told = given.units[0].runner == outbox.CELERY
    promise = jobs.Promise(outbox.CELERY) if told else None
    jobs.insert_many(session, given.units, notify=notify and not told, promise=promise)
    return "written"


# --- writing ----------------------------------------------------------------------------------


def write(session: Session, items: Sequence[UnitWrite]) -> list[Answer]:
    """Write what units have to say; one answer each.

    "paused" says of a start that the run starts nothing now: the step is given back to it.
    """
    if not items:
        return []
    runs = _lock_runs(session, {item.claim.parent for item in items if item.claim.parent})
    ours = _lock_units(session, {item.claim.job_id for item in items})
    answers: list[Answer] = []
    for item in items:
        run = runs.get(item.claim.parent) if item.claim.parent else None
        if run is None or (item.claim.job_id, item.claim.fence) not in ours:
            answers.append("lost")
        elif item.step.starts:
            answers.append(_start(session, item, run))
        else:
            answers.append(_end(session, item, run))
    return answers


def _lock_runs(session: Session, run_ids: Iterable[UUID]) -> dict[UUID, Run]:
    rows = session.rows(
        "SELECT id, status FROM {job} {index(primary)} WHERE id {among(ids)} ORDER BY id {lock_rows}",
        ids=list(run_ids),
    )
    found = [Run(session.dialect.uuid(row[0]), row[1]) for row in rows]  # type: ignore[arg-type]
    return {run.job_id: run for run in found}


def _lock_units(session: Session, unit_ids: Iterable[UUID]) -> set[tuple[UUID, int]]:
    rows = session.rows(
        "SELECT id, fence FROM {job} {index(primary)} WHERE id {among(ids)} AND lease_expires_at IS NOT NULL "
        "AND status = 'running' ORDER BY id {lock_rows}",
        ids=list(unit_ids),
    )
    return {(session.dialect.uuid(row[0]), row[1]) for row in rows}  # type: ignore[misc]


def _start(session: Session, item: UnitWrite, run: Run) -> Answer:
    if run.status not in GOING:
        if item.step.parent_key is None:
            _give_back(session, item, run)
        return "paused"
    if item.step.parent_key is not None:
        _put(session, item, run)
        return "written"
    # A step that was taken from the unit meanwhile, because the run stops, is not its any more.
    started = session.run(
        "UPDATE {taskstatus} SET started_at = CASE WHEN status = 'pending' AND total_tried = 0 THEN {now} "
        "ELSE started_at END, status = 'running', fence = %(fence)s, worker = %(worker)s, finished_at = NULL "
        "WHERE job_id = %(run)s AND step_key = %(key)s AND child = %(unit)s AND status IN ('pending', 'running')",
        run=run.job_id, key=item.step.step_key, unit=item.claim.job_id, fence=item.claim.fence,
        worker=item.claim.worker,
    )  # fmt: skip
    return "written" if started else "paused"


def _give_back(session: Session, item: UnitWrite, run: Run) -> None:
    """The run starts nothing now; it offers the step again when it goes on."""
    to = StepStatus.CANCELED if run.status in FINAL else StepStatus.PENDING
    session.run(
        "UPDATE {taskstatus} SET status = %(to)s, child = NULL WHERE job_id = %(run)s AND step_key = %(key)s "
        "AND child = %(unit)s AND status IN ('pending', 'running')",
        run=run.job_id, key=item.step.step_key, unit=item.claim.job_id, to=str(to),
    )  # fmt: skip


def _end(session: Session, item: UnitWrite, run: Run) -> Answer:
    step = item.step
    if run.status in FINAL:
        return "lost"
    if step.parent_key is not None:
        _put(session, item, run)
        return "written"
    if step.status == StepStatus.COMPLETED:
        step.done_no = next_done_no(session, run.job_id)
    if not _put(session, item, run):
        return "lost"
    if step.status == StepStatus.PENDING:
        if step.wake_after is not None:
            _wake_later(session, run, step.wake_after)
        return "written"
    if item.stops:
        withdraw(session, [run.job_id], canceled=True, keep=item.over_failures)
    _follow(session, item, run)
    return "written"


def _put(session: Session, item: UnitWrite, run: Run) -> bool:
    """Write the record, under the lock of its run; whether it was this unit's to write."""
    step, claim = item.step, item.claim
    waits = step.status == StepStatus.PENDING and step.wake_after is not None
    values = {
        "run": run.job_id, "key": step.step_key, "step_id": step.step_id, "slug": step.slug, "kind": str(step.kind),
        "parent_key": step.parent_key, "status": str(step.status), "input": step.input, "output": step.output,
        "error": dump_error(step.error), "total_tried": step.total_tried, "failures": step.failures,
        "fence": claim.fence, "worker": claim.worker, "done_no": step.done_no, "wake_after": step.wake_after,
        "unit": claim.job_id, "child": None if waits or step.parent_key else claim.job_id,
        "compensation": step.compensation,
    }  # fmt: skip
    ended = "{now}" if step.status in steps.ENDED else "NULL"
    own = "" if step.parent_key else " AND child = %(unit)s"
    written = session.run(
        "UPDATE {taskstatus} SET status = %(status)s, input = {json(input)}, output = {json(output)}, "
        "error = {json(error)}, total_tried = %(total_tried)s, failures = %(failures)s, fence = %(fence)s, "
        "worker = %(worker)s, done_no = %(done_no)s, child = %(child)s, compensation = {json(compensation)}, "
        f"wake_at = {'{after(wake_after)}' if waits else 'NULL'}, finished_at = {ended} "
        f"WHERE job_id = %(run)s AND step_key = %(key)s AND status <> 'completed'{own}",
        **values,
    )
    if not written and step.parent_key is not None and not _is_recorded(session, run, step):
        session.run(
            "INSERT INTO {taskstatus} (job_id, step_key, step_id, slug, kind, parent_key, status, input, output, "
            "error, total_tried, failures, fence, worker, done_no, child, started_at, finished_at) VALUES (%(run)s, "
            "%(key)s, %(step_id)s, %(slug)s, %(kind)s, %(parent_key)s, %(status)s, {json(input)}, {json(output)}, "
            "{json(error)}, %(total_tried)s, %(failures)s, %(fence)s, %(worker)s, %(done_no)s, %(child)s, {now}, "
            f"{ended})",
            **values,
        )
        written = 1
    if written and step.error is not None:
        steps.note_failed_try(session, step, run.job_id)
    return bool(written)


def _is_recorded(session: Session, run: Run, step: StepWrite) -> bool:
    row = session.one(
        "SELECT 1 FROM {taskstatus} WHERE job_id = %(run)s AND step_key = %(key)s",
        run=run.job_id, key=step.step_key,
    )  # fmt: skip
    return row is not None


def next_done_no(session: Session, run_id: UUID) -> int:
    """The next place in the order of completion. The run's row is locked."""
    row = session.one("SELECT MAX(done_no) FROM {taskstatus} WHERE job_id = %(run)s", run=run_id)
    return (row[0] if row and row[0] is not None else 0) + 1


# --- what an end brings with it ---------------------------------------------------------------


def _follow(session: Session, item: UnitWrite, run: Run) -> None:
    """Go on with what became ready, or wake the run, whose driver decides; a fan-in does neither until its last."""
    left = session.rows(
        "SELECT step_key, status, step_id FROM {taskstatus} WHERE job_id = %(run)s AND parent_key IS NULL AND kind <> 'map' "
        "AND step_id <> '' AND status IN ('pending', 'running', 'sleeping', 'failed') "
        "ORDER BY CASE WHEN status = 'failed' THEN 0 ELSE 1 END LIMIT %(limit)s",
        run=run.job_id, limit=LOOK,
    )  # fmt: skip
    is_quiet = all(status != StepStatus.FAILED for _, status, _ in left)
    if item.then is not None and is_quiet and run.status in (Status.SLEEPING, Status.PENDING):
        item.goes_on = _take(session, item, item.then, run)
        if item.goes_on:
            return
    busy = {key: step_id for key, status, step_id in left if status != StepStatus.FAILED}
    if (
        not busy
        or not is_quiet
        or any(_is_ready(session, run, keys, set(busy)) for keys in item.joins)
        or (item.items_of and _has_ended(session, run, item.items_of, busy.values()))
    ):
        waking.wake(session, [run.job_id])


def _has_ended(session: Session, run: Run, prefix: str, busy: Iterable[str]) -> bool:
    """Whether nobody is at an item of this map any more."""
    if any(step_id.startswith(prefix) for step_id in busy):
        return False
    row = session.one(
        "SELECT 1 FROM {taskstatus} WHERE job_id = %(run)s AND status IN ('pending', 'running') "
        "AND substr(step_id, 1, %(length)s) = %(prefix)s LIMIT 1",
        run=run.job_id, length=len(prefix), prefix=prefix,
    )  # fmt: skip
    return row is None


def _is_ready(session: Session, run: Run, keys: tuple[str, ...], busy: set[str]) -> bool:
    """Whether all of these steps have ended."""
    if not busy.isdisjoint(keys):
        return False
    row = session.one(
        "SELECT COUNT(*) FROM {taskstatus} WHERE job_id = %(run)s AND step_key {among(keys)} "
        f"AND status IN ({ENDED})",
        run=run.job_id, keys=list(keys),
    )  # fmt: skip
    return row is not None and row[0] == len(keys)


def _take(session: Session, item: UnitWrite, then: StepWrite, run: Run) -> bool:
    """Start the next step in the transaction that ended the one before."""
    if _is_recorded(session, run, then):
        return False
    session.run(
        "INSERT INTO {taskstatus} (job_id, step_key, step_id, slug, kind, status, input, fence, worker, child, "
        "started_at) VALUES (%(run)s, %(key)s, %(step_id)s, %(slug)s, %(kind)s, 'running', {json(input)}, %(fence)s, "
        "%(worker)s, %(unit)s, {now})",
        run=run.job_id, key=then.step_key, step_id=then.step_id, slug=then.slug, kind=str(then.kind),
        input=then.input, fence=item.claim.fence, worker=item.claim.worker, unit=item.claim.job_id,
    )  # fmt: skip
    return True


def _wake_later(session: Session, run: Run, delay: float) -> None:
    """A step is tried again after ``delay`` seconds: its run wakes then, or before."""
    if run.status == Status.SLEEPING:
        session.run(
            "UPDATE {job} SET run_after = {after(delay)} WHERE id = %(run)s AND status = 'sleeping' "
            "AND (run_after IS NULL OR run_after > {after(delay)})",
            run=run.job_id, delay=delay,
        )  # fmt: skip


def withdraw(
    session: Session,
    run_ids: Sequence[UUID],
    *,
    canceled: bool = False,
    keep: frozenset[str] = frozenset(),
) -> None:
    """Take back the units of these runs that nobody has claimed; what runs goes on.

    Their steps are canceled where the run starts nothing more, else its driver offers them anew.
    """
    rows = session.rows(
        "SELECT id, step_key FROM {job} WHERE parent_id {among(ids)} AND kind = 'step' AND status = 'pending' "
        "ORDER BY id {lock_rows}",
        ids=list(run_ids),
    )
    units = [session.dialect.uuid(row[0]) for row in rows if row[1] not in keep]
    kept = "" if not keep else " AND NOT (step_key {among(keep)})"
    sets = "status = 'canceled', finished_at = {now}" if canceled else "child = NULL"
    # Also of units that are claimed and have not begun: they find that their step is gone.
    session.run(
        f"UPDATE {{taskstatus}} SET {sets} WHERE job_id {{among(ids)}} AND status = 'pending' "
        f"AND child IS NOT NULL AND kind <> 'child'{kept}",
        ids=list(run_ids), keep=sorted(keep),
    )  # fmt: skip
    if units:
        history.move_many(
            session, units, event="canceled", frm=Status.PENDING, to=Status.CANCELED,  # type: ignore[arg-type]
            sets="finished_at = {now}, fence = fence + 1", detail={"reason": "its run starts nothing more"},
        )  # fmt: skip


def reopen(session: Session, run_ids: Sequence[UUID]) -> None:
    """The steps that a failure kept from beginning may begin: their runs are tried anew."""
    session.run(
        "UPDATE {taskstatus} SET status = 'pending', child = NULL, finished_at = NULL WHERE job_id {among(ids)} "
        "AND status = 'canceled' AND job_id IN (SELECT id FROM {job} WHERE id {among(ids)} AND kind = 'dag')",
        ids=list(run_ids),
    )  # fmt: skip


def graphs_of(session: Session, run_ids: Sequence[UUID]) -> dict[UUID, Graph | None]:
    """The graphs of those of these jobs that are runs of one; None where the code is not known here."""
    rows = session.rows(
        "SELECT id, slug, version FROM {job} WHERE id {among(ids)} AND kind = 'dag'",
        ids=list(run_ids),
    )
    found: dict[UUID, Graph | None] = {}
    for run_id, slug, version in rows:
        definition = registry.find(slug, version)
        graph = definition.check() if isinstance(definition, DAG) else None
        found[session.dialect.uuid(run_id)] = graph  # type: ignore[index]
    return found


# --- parking ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """What is recorded of a run that is about to wait."""

    seen: tuple[int, int]
    #: When the first of the steps that wait for their next try is due.
    wake_at: datetime | None


def standing(session: Session, run_id: UUID) -> Standing:
    """How many steps have ended, and how many wait for nobody but time. The run's row is locked."""
    row = session.one(
        f"SELECT SUM(CASE WHEN status IN ({ENDED}) THEN 1 ELSE 0 END), "
        "SUM(CASE WHEN status = 'pending' AND child IS NULL THEN 1 ELSE 0 END), "
        "MIN(CASE WHEN status = 'pending' AND child IS NULL THEN wake_at END) "
        "FROM {taskstatus} WHERE job_id = %(run)s AND parent_key IS NULL AND step_id <> ''",
        run=run_id,
    )  # fmt: skip
    assert row is not None
    return Standing((int(row[0] or 0), int(row[1] or 0)), session.dialect.time(row[2]))


def waits(session: Session, run_id: UUID) -> dict[str, float]:
    """Seconds until each step of the run is tried again that waits for that, by key."""
    rows = session.rows(
        "SELECT step_key, wake_at, {now} FROM {taskstatus} WHERE job_id = %(run)s AND status = 'pending' "
        "AND child IS NULL AND wake_at > {now}",
        run=run_id,
    )
    time = session.dialect.time
    return {row[0]: (time(row[1]) - time(row[2])).total_seconds() for row in rows}  # type: ignore[operator]


# --- a unit and its run -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Errand:
    """What a unit has to do: the record of its step, and what it needs of its run."""

    record: StepRecord
    input: str
    context: str | None
    status: str


def errand(session: Session, claim: Claim) -> Errand | None:
    """The step that ``claim`` is to do; None when there is nothing left of it."""
    row = session.one(
        "SELECT status, {text(input)}, {text(context)} FROM {job} WHERE id = %(run)s",
        run=claim.parent,
    )
    if row is None:
        return None
    assert claim.parent is not None
    found = read_records(
        session, claim.parent, "child = %(unit)s AND parent_key IS NULL AND status IN ('pending', 'running')",
        unit=claim.job_id,
    )  # fmt: skip
    return None if not found else Errand(found[0], row[1], row[2], row[0])


def failed(session: Session, unit_ids: Sequence[UUID]) -> None:
    """Units that ended as failed, at the crash limit or by a damaged row: so has the step in hand."""
    rows = session.rows(
        "SELECT u.id, u.parent_id, {text(u.error)} FROM {job} u WHERE u.id {among(ids)} AND u.kind = 'step' "
        "AND u.status = 'failed'",
        ids=list(unit_ids),
    )
    for unit_id, run_id, error in rows:
        run_key = session.dialect.uuid(run_id)
        assert run_key is not None
        _lock_runs(session, [run_key])
        session.run(
            "UPDATE {taskstatus} SET status = 'failed', error = {json(error)}, finished_at = {now}, "
            "failures = failures + 1 WHERE job_id = %(run)s AND child = %(unit)s AND parent_key IS NULL "
            "AND status IN ('pending', 'running')",
            run=run_key, unit=session.dialect.uuid(unit_id), error=error,
        )  # fmt: skip
        waking.wake(session, [run_key])


def records(session: Session, run_id: UUID, keys: Sequence[str] | None) -> list[StepRecord]:
    """The records of these steps of a run, or of all."""
    if keys is None:
        return read_records(session, run_id, "parent_key IS NULL")
    return read_records(session, run_id, "step_key {among(keys)}", keys=list(keys))
