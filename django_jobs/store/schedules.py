"""Rows of schedules, and the ticks that make each slot fire once.

``next_slot`` is what a schedule waits for: whoever moves it on, by a compare-and-set, deals with
the slots up to then. The unique row of :class:`Tick` is the second lock on the same door: it also
holds where a clock steps back or a row is edited behind our back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django_jobs import jsonvalues
from django_jobs.definitions.timing import TICK, Timing, timing_of
from django_jobs.store.session import Session

#: What a tick's ``outcome`` may say.
FIRED, MISSED, OVERLAPPED, FAILED, BACKFILLED = (
    "fired",
    "missed",
    "overlapped",
    "failed",
    "backfilled",
)
#: Columns that a definition or an operator decides.
SETTINGS = (
    "version", "expression", "timezone", "input", "queue_name", "misfire", "grace", "overlap",
)  # fmt: skip
COLUMNS = (
    "id", "slug", "name", *SETTINGS, "enabled", "source", "removed", "anchor", "next_slot", "last_slot",
    "error", "changed_at",
)  # fmt: skip
_JSON = ("input", "error")
_MOMENTS = ("anchor", "next_slot", "last_slot", "changed_at")


@dataclass(slots=True)
class Row:
    """A schedule as stored."""

    id: int
    slug: str
    name: str
    version: str | None
    expression: str
    timezone: str
    input: Any
    queue_name: str | None
    misfire: str
    grace: float | None
    overlap: str
    enabled: bool
    source: str
    removed: bool
    anchor: datetime
    next_slot: datetime | None
    last_slot: datetime | None
    error: Any
    changed_at: datetime

    @property
    def timing(self) -> Timing:
        """ConfigurationError where expression or zone make no sense."""
        return timing_of(self.expression, self.timezone)

    def floor(self, now: datetime) -> datetime:
        """Nothing up to this moment fires any more: a clock that was set back repeats nothing."""
        return max(now, self.last_slot or now)

    def __str__(self) -> str:
        return f"{self.slug}: {self.name}"


def read(
    session: Session, where: str = "1 = 1", **params: Any
) -> tuple[datetime | None, list[Row]]:
    """The rows that fit, in order of their next slot, and the database's time where there is any."""
    shown = ", ".join(f"{{text({name})}}" if name in _JSON else name for name in COLUMNS)
    found = session.rows(
        f"SELECT {{now}}, {shown} FROM {{schedule}} WHERE {where} ORDER BY next_slot, id", **params
    )
    present = session.dialect.time(found[0][0]) if found else None
    return present, [_row(session, values[1:]) for values in found]


def now(session: Session) -> datetime:
    """The database's time."""
    row = session.one("SELECT {now}")
    assert row is not None
    moment = session.dialect.time(row[0])
    assert moment is not None
    return moment


def due(session: Session, moment: datetime | None) -> tuple[datetime | None, list[Row]]:
    """:func:`read` what is due at ``moment``, by the database's time where it is None."""
    limit = "{now}" if moment is None else "{moment(moment)}"
    params = {} if moment is None else {"moment": moment}
    return read(session, f"enabled AND NOT removed AND next_slot <= {limit}", **params)


def next_slots(session: Session) -> tuple[datetime | None, list[tuple[str, datetime]]]:
    """The next slot of each slug that has one, and the database's time where there is any."""
    time = session.dialect.time
    rows = session.rows(
        "SELECT slug, MIN(next_slot), {now} FROM {schedule} "
        "WHERE enabled AND NOT removed AND next_slot IS NOT NULL GROUP BY slug"
    )
    present = time(rows[0][2]) if rows else None
    return present, [(slug, time(moment)) for slug, moment, _ in rows]  # type: ignore[misc]


def insert(session: Session, values: dict[str, Any]) -> None:
    """Add a row unless one of its slug and name is there."""
    bound = _bound(values)
    session.run(
        f"{{insert_ignore}} {{schedule}} ({', '.join(values)}, created_at) "
        f"VALUES ({', '.join(_value(name) for name in values)}, {{now}}) {{ignore_conflict}}",
        **bound,
    )


def change(session: Session, row: Row, **values: Any) -> bool:
    """Write these columns unless the row was changed since it was read; whether they were."""
    sets = ", ".join(f"{name} = {_value(name)}" for name in values)
    done = session.run(
        f"UPDATE {{schedule}} SET {sets}, changed_at = %(stamp)s "
        "WHERE id = %(id)s AND changed_at = %(seen)s AND "
        f"next_slot {'IS NULL' if row.next_slot is None else '= %(seen_next)s'}",
        **_bound(values), id=row.id, seen=row.changed_at, seen_next=row.next_slot,
        stamp=max(now(session), row.changed_at + TICK),
    )  # fmt: skip
    return bool(done)


def advance(session: Session, row: Row, *, next_slot: datetime | None, last_slot: datetime) -> bool:
    """Take the slots up to ``last_slot``, unless somebody else did; whether they are the caller's.

    The row stays locked until the commit.
    """
    done = session.run(
        "UPDATE {schedule} SET next_slot = {moment(next_slot)}, last_slot = %(last_slot)s, error = NULL "
        "WHERE id = %(id)s AND enabled AND NOT removed AND next_slot = %(seen)s AND expression = %(expression)s",
        next_slot=next_slot, last_slot=last_slot, id=row.id, seen=row.next_slot, expression=row.expression,
    )  # fmt: skip
    return bool(done)


def tick(
    session: Session, schedule: int, slot: datetime, outcome: str, job: UUID | None = None
) -> bool:
    """Write that a slot was dealt with; False where that was written before."""
    # Without a job the column is left out: MariaDB tells its own new row by the values, and NULL equals nothing.
    column, value = ("", "") if job is None else ("job_id, ", "%(job)s, ")
    return bool(
        session.run(
            f"{{insert_ignore}} {{tick}} (schedule_id, slot, {column}outcome, created_at) "
            f"VALUES (%(schedule)s, %(slot)s, {value}%(outcome)s, {{now}}) {{ignore_conflict}}",
            **({} if job is None else {"job": job}),
            schedule=schedule,
            slot=slot,
            outcome=outcome,
        )
    )


def note_error(session: Session, schedule: int, slot: datetime, error: Any) -> None:
    """A slot that is used up made no job for this reason."""
    session.run(
        "UPDATE {tick} SET job_id = NULL, outcome = %(outcome)s, error = {json(error)} "
        "WHERE schedule_id = %(schedule)s AND slot = %(slot)s",
        schedule=schedule, slot=slot, outcome=FAILED, error=_json(error),
    )  # fmt: skip
    session.run(
        "UPDATE {schedule} SET error = {json(error)} WHERE id = %(schedule)s",
        schedule=schedule, error=_json(error),
    )  # fmt: skip


def make_up(session: Session, schedule: int, slot: datetime, job: UUID) -> bool:
    """Take a slot of the past that made no job; False where it made one."""
    return tick(session, schedule, slot, BACKFILLED, job) or bool(
        session.run(
            "UPDATE {tick} SET job_id = %(job)s, outcome = %(outcome)s, error = NULL "
            "WHERE schedule_id = %(schedule)s AND slot = %(slot)s AND job_id IS NULL",
            schedule=schedule,
            slot=slot,
            job=job,
            outcome=BACKFILLED,
        )
    )


def with_job(session: Session, schedule: int, slots: Sequence[datetime]) -> set[datetime]:
    """Those of ``slots`` that have made a job already."""
    if not slots:
        return set()
    span = {"schedule": schedule, "first": min(slots), "last": max(slots)}
    rows = session.rows(
        "SELECT slot FROM {tick} WHERE schedule_id = %(schedule)s AND job_id IS NOT NULL "
        "AND slot BETWEEN {moment(first)} AND {moment(last)}",
        **span,
    )
    rows += session.rows(
        "SELECT slot FROM {job} WHERE schedule_id = %(schedule)s "
        "AND slot BETWEEN {moment(first)} AND {moment(last)}",
        **span,
    )
    found = {session.dialect.time(row[0]) for row in rows}
    return {slot for slot in slots if slot in found}


def has_live_job(session: Session, schedule: int) -> bool:
    """Whether a job of this schedule has not ended."""
    row = session.one(
        "SELECT 1 FROM {job} WHERE schedule_id = %(schedule)s AND finished_at IS NULL LIMIT 1",
        schedule=schedule,
    )
    return row is not None


def job_of(session: Session, schedule: int, slot: datetime) -> UUID | None:
    """The job that a slot has made."""
    row = session.one(
        "SELECT job_id FROM {tick} WHERE schedule_id = %(schedule)s AND slot = %(slot)s",
        schedule=schedule, slot=slot,
    )  # fmt: skip
    return None if row is None else session.dialect.uuid(row[0])


def _row(session: Session, values: Sequence[Any]) -> Row:
    named = dict(zip(COLUMNS, values, strict=True))
    for name in _JSON:
        named[name] = jsonvalues.loads(named[name])
    for name in _MOMENTS:
        named[name] = session.dialect.time(named[name])
    for name in ("enabled", "removed"):
        named[name] = bool(named[name])
    return Row(**named)


def _value(name: str) -> str:
    if name in _JSON:
        return f"{{json({name})}}"
    return f"{{moment({name})}}" if name in _MOMENTS else f"%({name})s"


def _bound(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _json(value) if name in _JSON else value for name, value in values.items()}


def _json(value: Any) -> str | None:
    return None if value is None else jsonvalues.dumps(value, what="schedule")
