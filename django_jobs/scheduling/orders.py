"""What an operator asks of one schedule: pause, resume, run now, make up for the past."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from django_jobs import conf
from django_jobs.definitions import registry
from django_jobs.definitions.timing import TICK
from django_jobs.enqueueing import check_moment, write_prepared
from django_jobs.errors import InvalidInput, UnknownTask
from django_jobs.models import Job, Schedule
from django_jobs.scheduling.ticking import definition_of, prepared, target_of
from django_jobs.store import schedule_sync, schedules
from django_jobs.store.schedules import Row
from django_jobs.store.session import Session

#: Slots that one backfill makes up for unless it is told otherwise, and at most.
LIMIT, MOST = 100, 10_000


@dataclass(frozen=True, slots=True)
class Backfill:
    """What a backfill made, or in a dry run would make."""

    #: The slots made up for, rising, in the zone of the schedule; and their jobs (none in a dry run).
    slots: list[datetime]
    jobs: list[Job]
    #: How many slots of the range had their job already.
    present: int
    #: Whether the limit left out later slots.
    is_cut: bool


def present(alias: str | None) -> datetime:
    """The engine's time on this database."""
    return schedules.now(Session(alias, through_django=True))


def synchronise(alias: str | None) -> None:
    """Bring the rows in step with the code; fires nothing."""
    schedule_sync.synchronise(Session(alias, through_django=True))


def pause(schedule: Schedule) -> None:
    """Fire nothing until :func:`resume`."""
    _session, row = _row(schedule)
    _change(schedule, row, enabled=False, next_slot=None)


def resume(schedule: Schedule) -> None:
    """Fire slots from now on. InvalidInput for a schedule that the code no longer has."""
    session, row = _row(schedule)
    if row.removed:
        raise InvalidInput(
            f"The schedule {row.name!r} of {row.slug!r} is no longer defined in the code. Define it there, "
            "or make one of your own."
        )
    if row.enabled and row.next_slot is not None:
        return
    following = row.timing.next(row.floor(schedules.now(session)), row.anchor)
    _change(schedule, row, enabled=True, next_slot=following, error=None)


def run_now(schedule: Schedule) -> Job:
    """Make one job at once, besides the slots; its input function gets the present moment.

    Raises what an enqueue raises; UnknownTask where this process lacks the code.
    """
    session, row = _row(schedule)
    definition = definition_of(row)
    call = prepared(row, definition, schedules.now(session))
    [job] = write_prepared(target_of(row, definition), [call], session.alias)
    return job


def backfill(
    schedule: Schedule, start: datetime, end: datetime, *, limit: int = LIMIT, dry_run: bool = False
) -> Backfill:
    """Make the jobs of slots from ``start`` to ``end`` (both included) that have none.

    At most ``limit`` of them, oldest first, each in a transaction of its own: a slot that has made a
    job makes no second one, so that it may be repeated. ``overlap`` does not hold them back.
    InvalidInput for an end in the future, and for a range that is none.
    """
    session, row = _row(schedule)
    moment = schedules.now(session)
    start, end = check_moment(start, "start"), check_moment(end, "end")
    _check_range(start, end, moment, limit)
    following = row.timing.after(start - TICK, row.anchor)
    inside: list[datetime] = []
    for slot in islice(following, MOST + 1):
        if slot > end:
            break
        inside.append(slot)
    done = schedules.with_job(session, row.id, inside)
    missing = [slot for slot in inside if slot not in done]
    chosen = missing[:limit]
    is_cut = len(missing) > limit or len(inside) > MOST
    made: list[tuple[datetime, Job | None]]
    if dry_run:
        made = [(slot, None) for slot in chosen]
    else:
        made = [(slot, _make_up(session, row, slot)) for slot in chosen]
        made = [(slot, job) for slot, job in made if job is not None]
    return Backfill(
        [row.timing.local(slot) for slot, _ in made],
        [job for _, job in made if job is not None],
        len(done),
        is_cut,
    )


def _check_range(start: datetime, end: datetime, moment: datetime, limit: int) -> None:
    if end < start:
        raise InvalidInput(
            f"The range ends ({end.isoformat()}) before it starts ({start.isoformat()})."
        )
    if end > moment:
        raise InvalidInput(
            f"The range ends in the future, at {end.isoformat()}; those slots will fire by themselves."
        )
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST:
        raise InvalidInput(f"limit is a whole number from 1 to {MOST:,}, not {limit!r}.")


def _make_up(session: Session, row: Row, slot: datetime) -> Job | None:
    definition = definition_of(row)
    call = prepared(row, definition, slot)
    call.row.slot = slot

    def work(session: Session) -> Job | None:
        if not schedules.make_up(session, row.id, slot, call.row.id):
            return None
        [job] = write_prepared(target_of(row, definition), [call], session.alias)
        return job

    return session.committed(work, limit=conf.get().lease)


def _row(schedule: Schedule) -> tuple[Session, Row]:
    session = Session(schedule._state.db, through_django=True)
    _, rows = schedules.read(session, "id = %(id)s", id=schedule.pk)
    if not rows:
        raise Schedule.DoesNotExist(f"The schedule {schedule} is not stored.")
    return session, rows[0]


def _change(schedule: Schedule, row: Row, **values: Any) -> None:
    """Write what was ordered, over whatever happened since the row was read."""
    session = Session(schedule._state.db, through_django=True)
    while not schedules.change(session, row, **values):
        _, row = _row(schedule)


def has_code(schedule: Schedule) -> bool:
    """Whether this process can make jobs of it."""
    try:
        return definition_of(_row(schedule)[1]) in registry.every()
    except UnknownTask:
        return False
