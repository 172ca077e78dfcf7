"""Ticking: each due slot of each schedule becomes one job, or a reason why not.

Any number of processes may do this at any time. A slot belongs to whoever moves its schedule on;
tick and job are one transaction with that. The input functions of users run before it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.db import transaction

from django_jobs import conf, failpoints, jsonvalues, signals
from django_jobs.definitions import registry
from django_jobs.definitions.task import Definition
from django_jobs.definitions.timing import TICK
from django_jobs.enqueueing import Prepared, prepare, write_prepared
from django_jobs.errors import ConfigurationError, ErrorDict, InvalidInput, JobsError
from django_jobs.models import Job, Schedule
from django_jobs.store import schedule_sync, schedules
from django_jobs.store.schedules import Row
from django_jobs.store.session import Session

logger = logging.getLogger("django_jobs.worker")

#: Slots that one tick makes up for at most, and records at most.
MOST = 100


@dataclass(frozen=True, slots=True)
class TickReport:
    """What one look at the schedules did."""

    #: Jobs made; slots passed over (missed, or overlapping); slots and schedules with an error.
    fired: int = 0
    skipped: int = 0
    errored: int = 0
    #: When something fires next, as far as this process has code for it, and in how many seconds
    #: of the database's time that is.
    next_slot: datetime | None = None
    due_in: float | None = None
    #: The same whether or not this process has the code.
    first_slot: datetime | None = None


def handle_schedules(now: datetime | None = None, *, database: str | None = None) -> TickReport:
    """Bring the rows in step with the code, then fire every slot that is due.

    ``now`` (aware) stands for the present moment; by default it is the database's time. Safe to
    call from any number of processes at once. Raises InvalidInput for a naive ``now``.
    """
    session = _session(database)
    moment, rows = schedule_sync.synchronise(session, _aware(now))
    return _tick(session, moment, [row for row in rows if _is_due(row, moment)])


def tick(now: datetime | None = None, *, database: str | None = None) -> TickReport:
    """:func:`handle_schedules` without a look at the code: two statements where nothing is due."""
    session = _session(database)
    moment = _aware(now)
    present, rows = schedules.due(session, moment)
    return _tick(session, moment or present, rows)


def next_slot(database: str | None = None) -> TickReport:
    """When something fires next, and in how many seconds; nothing is fired."""
    codes = registry.snapshot()
    present, found = schedules.next_slots(_session(database))
    ours = min((moment for slug, moment in found if slug in codes), default=None)
    first = min((moment for _, moment in found), default=None)
    due_in = None if ours is None or present is None else (ours - present).total_seconds()
    return TickReport(next_slot=ours, due_in=due_in, first_slot=first)


def _session(database: str | None) -> Session:
    # Through Django's own connection: it knows of the transaction, so what follows a commit does.
    return Session(database, through_django=True)


def _aware(now: datetime | None) -> datetime | None:
    if now is None:
        return None
    if not isinstance(now, datetime) or now.tzinfo is None:
        raise InvalidInput(
            f"now is an aware datetime, not {now!r}. See django.utils.timezone.make_aware()."
        )
    return now.astimezone(UTC)


def _is_due(row: Row, moment: datetime) -> bool:
    return row.enabled and not row.removed and row.next_slot is not None and row.next_slot <= moment


def _tick(session: Session, moment: datetime | None, rows: Sequence[Row]) -> TickReport:
    fired = skipped = errored = 0
    for row in rows:
        assert moment is not None
        if row.slug not in registry.snapshot():
            continue  # another process has the code
        done = _fire_safely(session, row, moment)
        fired, skipped, errored = (
            fired + done.fired, skipped + done.skipped, errored + done.errored,
        )  # fmt: skip
    return replace(next_slot(session.alias), fired=fired, skipped=skipped, errored=errored)


def _fire_safely(session: Session, row: Row, moment: datetime) -> TickReport:
    """One schedule must not keep the others from firing."""
    try:
        right = schedule_sync.right_slot(row, moment)
        if right != row.next_slot:
            schedules.change(session, row, next_slot=right)
            return TickReport()
        return _fire(session, row, moment)
    except ConfigurationError as error:
        schedule_sync.disable(session, row, error)
        return TickReport(errored=1)
    except Exception as error:
        if session.dialect.is_lost(error):
            raise
        logger.exception("Schedule %s could not be ticked.", row)
        return TickReport(errored=1)


# --- one schedule -----------------------------------------------------------------------------


@dataclass(slots=True)
class Slots:
    """What becomes of the slots that are due."""

    #: To be fired, and passed over (the newest of them), rising; ``missed`` counts all passed over.
    fire: list[datetime]
    passed: list[datetime]
    missed: int
    last: datetime
    next: datetime | None


def plan(row: Row, moment: datetime) -> Slots:
    """Divide the due slots by the misfire rule.

    A slot is missed when it is handled more than ``grace`` late or, without a grace, when a newer
    one is due as well. ``one``: the newest due slot stands for all that were missed.
    """
    timing, first = row.timing, row.next_slot
    assert first is not None
    before = first - TICK
    newest = timing.newest(before, moment, row.anchor, MOST)
    number = len(newest) if len(newest) < MOST else timing.count(before, moment, row.anchor)
    if row.grace is None:
        on_time = newest[-1:]
    else:
        on_time = [slot for slot in newest if (moment - slot).total_seconds() <= row.grace]
    if row.misfire == "all":
        fire = newest
    elif row.misfire == "one":
        fire = on_time or newest[-1:]
    else:
        fire = on_time
    passed = [slot for slot in newest if slot not in fire]
    return Slots(
        fire, passed, number - len(fire), newest[-1], timing.next(max(newest[-1], moment), row.anchor)
    )  # fmt: skip


@dataclass(slots=True)
class Made:
    """A slot with the job that it is to make, or the error that keeps it from that."""

    slot: datetime
    job: Prepared | None = None
    error: ErrorDict | None = None


@dataclass(slots=True)
class Done:
    """What a tick has written."""

    jobs: list[tuple[datetime, Job]] = field(default_factory=list)
    overlapped: int = 0
    errors: int = 0


def _fire(session: Session, row: Row, moment: datetime) -> TickReport:
    slots = plan(row, moment)
    definition = definition_of(row)
    made = [_make(row, definition, slot) for slot in slots.fire]
    failpoints.reach("schedule.before_begin")
    done = _written(session, row, definition, slots, made)
    failpoints.reach("schedule.after_commit")
    if done is None:
        return TickReport()  # another process was first
    if slots.missed:
        _announce(session, signals.schedule_missed, row, missed=slots.missed)
    for slot, job in done.jobs:
        _announce(session, signals.schedule_fired, row, slot=row.timing.local(slot), job=job)
    return TickReport(len(done.jobs), slots.missed + done.overlapped, done.errors)


def definition_of(row: Row) -> Definition:
    """What a schedule enqueues: the version it names, or the one registered last."""
    if row.version is not None:
        return registry.get(row.slug, row.version)
    return registry.latest(row.slug)


def _make(row: Row, definition: Definition, slot: datetime) -> Made:
    """Check one call; user code runs here, outside of any transaction."""
    try:
        return Made(slot, prepared(row, definition, slot))
    except Exception as error:
        return Made(slot, error=_described(error))


def prepared(row: Row, definition: Definition, moment: datetime) -> Prepared:
    """The checked call of a schedule for ``moment``; its input function is asked here."""
    given = input_of(row, definition, moment)
    call = prepare(target_of(row, definition), (), {"input": given})
    call.row.schedule = row.id
    return call


def target_of(row: Row, definition: Definition) -> Definition:
    """The definition with the queue that the schedule names."""
    return definition.using(queue_name=row.queue_name) if row.queue_name else definition


def input_of(row: Row, definition: Definition, moment: datetime) -> dict[str, Any]:
    """The input for ``moment``: of the code's schedule, or of the row that an operator made."""
    given: Any = row.input
    if row.source == "code":
        for one in definition.schedules:
            if one.name == row.name:
                given = one.input
    if callable(given):
        given = given(row.timing.local(moment))
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidInput(
            f"The input of schedule {row.name!r} is a dict, not {type(given).__name__}."
        )
    return given


def _written(
    session: Session, row: Row, definition: Definition, slots: Slots, made: list[Made]
) -> Done | None:
    """Write ticks and jobs; None where another process took the slots."""
    # A process that is frozen within this transaction must not keep the schedule from others.
    return session.committed(
        lambda s: _write(s, row, definition, slots, made), limit=conf.get().lease
    )


def _write(
    session: Session, row: Row, definition: Definition, slots: Slots, made: list[Made]
) -> Done | None:
    last = max(slots.last, row.last_slot or slots.last)
    if not schedules.advance(session, row, next_slot=slots.next, last_slot=last):
        return _own(session, row, made)
    done = Done()
    for slot in slots.passed:
        schedules.tick(session, row.id, slot, schedules.MISSED)
    for one in made:
        _write_slot(session, row, definition, one, done)
    failpoints.reach("schedule.before_commit")
    return done


def _write_slot(session: Session, row: Row, definition: Definition, one: Made, done: Done) -> None:
    """The tick first: where it is taken, no job is made."""
    if one.job is None:
        done.errors += schedules.tick(session, row.id, one.slot, schedules.FAILED)
        schedules.note_error(session, row.id, one.slot, one.error)
        return
    if row.overlap == "skip" and schedules.has_live_job(session, row.id):
        done.overlapped += schedules.tick(session, row.id, one.slot, schedules.OVERLAPPED)
        return
    one.job.row.slot = one.slot
    if not schedules.tick(session, row.id, one.slot, schedules.FIRED, one.job.row.id):
        return
    try:
        [job] = write_prepared(target_of(row, definition), [one.job], session.alias)
    except JobsError as error:
        # Its concurrency key refused it; the slot is used up all the same.
        done.errors += 1
        schedules.note_error(session, row.id, one.slot, _described(error))
        return
    done.jobs.append((one.slot, job))


def _own(session: Session, row: Row, made: list[Made]) -> Done | None:
    """What a first try has committed although its answer was lost; None where it was somebody else."""
    done = Done()
    for one in made:
        if one.job and schedules.job_of(session, row.id, one.slot) == one.job.row.id:
            job = Job.objects.using(session.alias).filter(pk=one.job.row.id).first()
            if job is not None:
                done.jobs.append((one.slot, job))
    return done if done.jobs else None


def _described(error: BaseException) -> ErrorDict:
    return jsonvalues.describe_error(error, names=conf.get().redact)


def _announce(session: Session, signal: Any, row: Row, **details: Any) -> None:
    if signal.receivers:
        transaction.on_commit(
            partial(_send, signal, session.alias, row.id, details), using=session.alias
        )


def _send(signal: Any, alias: str, schedule_id: int, details: dict[str, Any]) -> None:
    schedule = Schedule.objects.using(alias).filter(pk=schedule_id).first()
    signals.announce(signal, Job, schedule=schedule, **details)
