"""Inserting jobs, and looking at them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any
from uuid import UUID

from django_jobs import ids
from django_jobs.store import outbox
from django_jobs.store.dialects.postgresql import array_of, text_array_of
from django_jobs.store.session import Session


@dataclass(frozen=True, slots=True)
class Promise:
    """A message of the outbox that goes with each new job; its writer sends it within ``head_start`` s."""

    kind: str
    head_start: float = 0.0


@dataclass(slots=True)
class NewJob:
    """A row to be inserted. JSON values are text already; times are DB time plus ``delay``."""

    id: UUID
    slug: str
    kind: str
    version: str | None
    queue_name: str
    priority: int
    precedence: int
    lane: int
    input: str
    runner: str = "db"
    run_after: datetime | None = None
    delay: float | None = None
    meta: str | None = None
    options: str | None = None
    context: str | None = None
    args: str | None = None
    spec: str | None = None
    concurrency_key: str | None = None
    key_hash: str | None = None
    key_limit: int | None = None
    key_hold: bool = False
    rate_hash: str | None = None
    idempotency_key: str | None = None
    parent: UUID | None = None
    rerun_of: UUID | None = None
    schedule: int | None = None
    slot: datetime | None = None
    step_key: str | None = None
    turn: int = 0
    share: int | None = None
    gate: str | None = None
    expires: float | None = None
    expires_at: datetime | None = None
    tenants: Sequence[str | None] = field(default_factory=lambda: (None, None, None))


@dataclass(frozen=True, slots=True)
class Inserted:
    """The times the database gave a new row."""

    created_at: datetime
    due_at: datetime
    run_after: datetime | None
    gate: str


CHANNEL = "django_jobs"
# Cast, so that the server too can tell the type of a name that is used in three places.
WITH_QUEUE = """
WITH new_queue AS (
    INSERT INTO {queue} (name)
    SELECT %(queue_name)s::varchar WHERE NOT EXISTS (SELECT 1 FROM {queue} WHERE name = %(queue_name)s::varchar)
    ON CONFLICT DO NOTHING
)
"""
ALWAYS = "id slug kind version queue_name priority precedence lane runner".split()
JSON_COLUMNS = "input meta options context args spec".split()
RARE = {
    "concurrency_key": "concurrency_key", "key_hash": "key_hash", "key_limit": "key_limit", "key_hold": "key_hold",
    "rate_hash": "rate_hash", "idempotency_key": "idempotency_key", "parent": "parent_id", "rerun_of": "rerun_of_id",
    "schedule": "schedule_id", "slot": "slot", "step_key": "step_key", "turn": "turn", "share": "share",
}  # fmt: skip
TIMES = "run_after delay expires expires_at gate".split()
#: What a plain job has besides ALWAYS, and how it shows that it has nothing more.
_PLAIN = ("input",)
_OPTIONAL = attrgetter(*(name for name in JSON_COLUMNS if name not in _PLAIN), *RARE, *TIMES)
_UNSET = _OPTIONAL(NewJob(UUID(int=0), "", "", None, "", 0, 0, 0, input=""))

RETURNED = "created_at, due_at, run_after, gate"


def insert(
    session: Session, job: NewJob, *, notify: bool, promise: Promise | None = None
) -> Inserted:
    """Insert one job, and the row of its queue at its first use; one statement on PostgreSQL."""
    columns = _columns(job)
    sql = _insert_sql(columns)
    values = _values(job, columns)
    if session.vendor == "postgresql":
        wake = f", pg_notify('{CHANNEL}', %(queue_name)s::varchar)" if notify else ""
        message = ""
        if promise is not None:
            message = f", message AS ({outbox.NEW_MESSAGE})"
            values |= {"promise": promise.kind, "head_start": promise.head_start}
        row = session.one(f"{WITH_QUEUE}{message} {sql} RETURNING {RETURNED}{wake}", **values)
    else:
        ensure_queue(session, job.queue_name)
        session.run(sql, **values)
        if promise is not None:
            outbox.promise(session, promise.kind, [job.id], head_start=promise.head_start)
        row = session.one(f"SELECT {RETURNED} FROM {{job}} WHERE id = %(id)s", id=job.id)
    return _inserted(session, row)


def insert_many(
    session: Session, jobs: Sequence[NewJob], *, notify: bool, promise: Promise | None = None
) -> Inserted:
    """Insert ``jobs`` by one statement for each set of columns; return the times of the first."""
    queues = sorted({job.queue_name for job in jobs})
    for name in queues:
        ensure_queue(session, name)
    for columns, group in _by_shape(jobs).items():
        if session.vendor == "postgresql":
            shared, listed = _split(group, columns)
            session.run(_insert_listed_sql(columns, tuple(listed)), **shared, **listed)
        else:
            values = [_values(job, columns) for job in group]
            session.dialect.insert_many(session, _insert_sql(columns), values)
    if promise is not None:
        made = [job.id for job in jobs]
        outbox.promise(session, promise.kind, made, head_start=promise.head_start)
    if notify:
        for name in queues:
            wake(session, name)
    return _inserted(
        session, session.one(f"SELECT {RETURNED} FROM {{job}} WHERE id = %(id)s", id=jobs[0].id)
    )


@lru_cache(maxsize=1024)
def lane(runner: str, queue_name: str, slug: str, version: str | None, *, limited: bool) -> int:
    """The number of the lane in which such jobs queue; ``limited`` ones need a permit or have a rate."""
    named = "-" if version is None else f"v{version}"
    return ids.lane(runner, queue_name, slug, named, "limited" if limited else "free")


def wake(session: Session, queue_name: str) -> None:
    """Tell sleeping workers, at commit, that ``queue_name`` has work. A hint only."""
    if session.vendor == "postgresql":
        session.run(f"SELECT pg_notify('{CHANNEL}', %(queue_name)s)", queue_name=queue_name)


def _inserted(session: Session, row: Any) -> Inserted:
    time = session.dialect.time
    return Inserted(time(row[0]), time(row[1]), time(row[2]), row[3])  # type: ignore[arg-type]


def ensure_queue(session: Session, name: str) -> None:
    """Make the row of a queue at its first use."""
    if session.one("SELECT 1 FROM {queue} WHERE name = %(name)s", name=name) is None:
        session.run("{insert_ignore} {queue} (name) VALUES (%(name)s) {ignore_conflict}", name=name)


def _by_shape(jobs: Sequence[NewJob]) -> dict[tuple[str, ...], list[NewJob]]:
    """Jobs grouped by the columns they need, so that a plain job names few."""
    shapes: dict[tuple[str, ...], list[NewJob]] = {}
    for job in jobs:
        shapes.setdefault(_columns(job), []).append(job)
    return shapes


def _columns(job: NewJob) -> tuple[str, ...]:
    if _OPTIONAL(job) == _UNSET and not any(job.tenants):
        return _PLAIN
    columns = [name for name in JSON_COLUMNS if getattr(job, name) is not None]
    columns += [name for name in RARE if getattr(job, name)]
    columns += [f"tenant_{n}" for n, value in enumerate(job.tenants, 1) if value is not None]
    for name in TIMES:
        if getattr(job, name) is not None:
            columns.append(name)
    return tuple(columns)


def _split(
    jobs: Sequence[NewJob], columns: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that all ``jobs`` have in common, and arrays of the others. PostgreSQL.

    Calls of one task differ in their id and input; nothing else has to be sent for each.
    """
    shared: dict[str, Any] = {}
    listed: dict[str, str] = {}
    for name in (*ALWAYS, *columns):
        if name.startswith("tenant_"):
            place = int(name[-1]) - 1
            values = [job.tenants[place] for job in jobs]
        else:
            values = [getattr(job, name) for job in jobs]
        if name != "id" and values.count(values[0]) == len(values):
            shared[name] = values[0]
        else:
            listed[name] = _array(values, TYPES.get(name, "text"))
    return shared, listed


def _array(values: list[Any], kind: str) -> str:
    if kind == "text":
        return text_array_of(values)
    if kind == "uuid":
        return array_of([None if one is None else one.hex for one in values])
    if kind == "timestamptz":
        return text_array_of([None if one is None else one.isoformat() for one in values])
    return array_of(values)


def _values(job: NewJob, columns: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in ALWAYS}
    for name in columns:
        values[name] = (
            job.tenants[int(name[-1]) - 1] if name.startswith("tenant_") else getattr(job, name)
        )
    return values


@lru_cache(maxsize=256)
def _insert_sql(columns: tuple[str, ...]) -> str:
    parts = _parts(columns)
    names = ", ".join(name for name, _ in parts)
    values = ", ".join(value for _, value in parts)
    return f"INSERT INTO {{job}} ({names}) VALUES ({values})"


#: PostgreSQL's type of each value that a row may bring; text where nothing is said.
TYPES = {
    "id": "uuid", "priority": "int", "precedence": "int", "lane": "bigint", "key_limit": "int", "key_hold": "bool",
    "parent": "uuid", "rerun_of": "uuid", "schedule": "bigint", "slot": "timestamptz", "turn": "bigint", "share": "bigint",
    "run_after": "timestamptz", "delay": "float8", "expires": "float8", "expires_at": "timestamptz",
}  # fmt: skip
_VALUE = re.compile(r"%\((\w+)\)s|\{(json|after|moment)\((\w+)\)\}")


@lru_cache(maxsize=256)
def _insert_listed_sql(columns: tuple[str, ...], listed: tuple[str, ...]) -> str:
    """The same for many rows, of which the ``listed`` values come as arrays. PostgreSQL."""

    def of_row(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        value = f"v.{name}" if name in listed else f"%({name})s::{TYPES.get(name, 'text')}"
        if match[2] == "json":
            return f"{value}::jsonb"
        return f"({{now}} + {value} * interval '1 second')" if match[2] == "after" else value

    parts = _parts(columns)
    arrays = ", ".join(f"%({name})s::{TYPES.get(name, 'text')}[]" for name in listed)
    return (
        f"INSERT INTO {{job}} ({', '.join(name for name, _ in parts)}) "
        f"SELECT {', '.join(_VALUE.sub(of_row, value) for _, value in parts)} "
        f"FROM unnest({arrays}) AS v({', '.join(listed)})"
    )


def _parts(columns: tuple[str, ...]) -> list[tuple[str, str]]:
    """Column by column the SQL of its value."""
    parts = [(name, f"%({name})s") for name in ALWAYS]
    for name in columns:
        if name in JSON_COLUMNS:
            parts.append((name, f"{{json({name})}}"))
        elif name in RARE or name.startswith("tenant_") or name == "expires_at":
            parts.append((RARE.get(name, name), f"%({name})s"))
        elif name == "expires":
            parts.append(("expires_at", "{after(expires)}"))
    if "delay" in columns:
        due = "{after(delay)}"
        parts += [("run_after", due), ("due_at", due), ("gate", "'timer'")]
    elif "run_after" in columns:
        parts += [
            ("run_after", "%(run_after)s"),
            ("due_at", "%(run_after)s"),
            ("gate", "CASE WHEN {moment(run_after)} > {now} THEN 'timer' ELSE 'open' END"),
        ]
    else:
        parts.append(("due_at", "{now}"))
        if "gate" in columns:
            parts.append(("gate", "%(gate)s"))
    parts.append(("created_at", "{now}"))
    return parts
