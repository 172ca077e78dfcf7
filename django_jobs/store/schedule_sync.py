"""Rows of schedules kept in step with the code, and repaired where they were edited behind our back.

A definition decides everything of its row but ``enabled``, which is the operator's from the first
day on. Nothing here fires: a row that changes waits for its next slot from now.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from django_jobs import jsonvalues
from django_jobs.definitions import registry
from django_jobs.definitions.schedule import Schedule
from django_jobs.definitions.task import Definition
from django_jobs.definitions.timing import timing_of
from django_jobs.errors import ConfigurationError, ErrorDict, JobsError
from django_jobs.store import schedules
from django_jobs.store.schedules import SETTINGS, Row
from django_jobs.store.session import Session

logger = logging.getLogger("django_jobs.worker")

#: Codes of errors that switched a row off; what is switched off by one is switched on after it.
REMOVED, BAD = "removed", "bad_schedule"
#: A row that the code takes back so soon keeps its next slot: old and new processes run side by
#: side during a deployment, and each of them reconciles.
TAKEN_BACK = timedelta(minutes=10)
#: Seconds since its last heartbeat in which a worker counts as alive.
ALIVE = 60.0

Key = tuple[str, str]
_said: set[Key] = set()


def wanted() -> dict[Key, tuple[Definition, Schedule]]:
    """The schedules of the code, by slug and name; of several versions those of the last."""
    return {
        (slug, one.name): (latest, one)
        for slug, versions in sorted(registry.snapshot().items())
        if versions and (latest := next(reversed(versions.values())))
        for one in latest.schedules
    }


def synchronise(session: Session, moment: datetime | None = None) -> tuple[datetime, list[Row]]:
    """Write what differs, and return the time and all rows as they are then."""
    present, rows = schedules.read(session)
    moment = moment or present or schedules.now(session)
    touched = _adopt(session, rows, moment)
    touched |= _retire(session, rows, moment)
    touched |= _repair(session, [row for row in rows if _key(row) not in touched], moment)
    return (moment, schedules.read(session)[1]) if touched else (moment, rows)


def _key(row: Row) -> Key:
    return row.slug, row.name


def _adopt(session: Session, rows: list[Row], moment: datetime) -> set[Key]:
    """The rows of the code's schedules: made, changed, or taken back; those that were."""
    stored = {_key(row): row for row in rows}
    touched: set[Key] = set()
    for key, (definition, one) in wanted().items():
        row = stored.get(key)
        if row is not None and row.source != "code":
            _say_taken(key)
            continue
        values = settings_of(definition, one)
        if row is None:
            schedules.insert(session, _new(key, one, values, moment))
            touched.add(key)
            continue
        changes = {name: values[name] for name in SETTINGS if getattr(row, name) != values[name]}
        if row.removed or changes:
            schedules.change(session, row, **_changed(row, changes, moment))
            touched.add(key)
    return touched


def settings_of(definition: Definition, one: Schedule) -> dict[str, Any]:
    """What the definition decides, as it is stored."""
    return {
        "version": None,
        "expression": one.expression,
        "timezone": one.zone_name,
        "input": _stored_input(definition, one),
        "queue_name": one.queue_name,
        "misfire": one.misfire,
        "grace": one.grace,
        "overlap": one.overlap,
    }


def _stored_input(definition: Definition, one: Schedule) -> Any:
    """The input for people to see; what fires is asked of the definition each time."""
    if not isinstance(one.input, dict):
        return {}
    try:
        stored = definition.schema.dump_input(definition.schema.bind((), one.input))
        return jsonvalues.loads(jsonvalues.dumps(stored))
    except JobsError:
        # ``manage.py check`` says so, and so will each tick.
        return {}


def _new(key: Key, one: Schedule, values: dict[str, Any], moment: datetime) -> dict[str, Any]:
    first = one.timing.next(moment, moment) if one.enabled else None
    return {
        "slug": key[0], "name": key[1], **values, "enabled": one.enabled, "source": "code", "removed": False,
        "anchor": moment, "next_slot": first, "changed_at": moment,
    }  # fmt: skip


def _changed(row: Row, changes: dict[str, Any], moment: datetime) -> dict[str, Any]:
    """The columns to write so that the row is as the code says."""
    values = {**changes, "removed": False}
    enabled = row.enabled
    if row.error and row.error.get("code") in (REMOVED, BAD):
        # We had switched it off, not the operator.
        enabled = True
        values |= {"enabled": True, "error": None}
    if "expression" in changes:
        values["anchor"] = moment
    is_recent = row.next_slot is not None and moment - row.changed_at < TAKEN_BACK
    if not enabled:
        values["next_slot"] = None
    elif "expression" in changes or "timezone" in changes or not (row.removed and is_recent):
        timing = timing_of(
            changes.get("expression", row.expression), changes.get("timezone", row.timezone)
        )
        values["next_slot"] = timing.next(row.floor(moment), values.get("anchor", row.anchor))
    return values


def _retire(session: Session, rows: list[Row], moment: datetime) -> set[Key]:
    """Rows of schedules that are no longer in the code are switched off; those that were."""
    known = wanted()
    gone = [
        row for row in rows if row.source == "code" and not row.removed and _key(row) not in known
    ]
    if not gone:
        return set()
    elsewhere = _slugs_elsewhere(session)
    touched: set[Key] = set()
    for row in gone:
        # A worker that runs now has the code that this process lacks: its word counts.
        if row.slug in elsewhere and row.slug not in registry.snapshot():
            continue
        values: dict[str, Any] = {"removed": True}
        if row.enabled:
            values |= {
                "enabled": False,
                "error": problem(REMOVED, "It is no longer defined in the code."),
            }
        schedules.change(session, row, **values)
        touched.add(_key(row))
    return touched


def _slugs_elsewhere(session: Session) -> set[str]:
    """Slugs that workers which live at this moment have code for."""
    found = session.rows(
        "SELECT {text(codes)} FROM {worker} WHERE status = 'running' AND heartbeat_at > {after(ago)}",
        ago=-ALIVE,
    )
    return {slug for row in found for slug, _ in jsonvalues.loads(row[0]) or []}


def _repair(session: Session, rows: list[Row], moment: datetime) -> set[Key]:
    """A row fires only at moments of its own line, and not at all while it is off; those that changed."""
    touched: set[Key] = set()
    for row in rows:
        try:
            right = right_slot(row, moment)
        except ConfigurationError as error:
            disable(session, row, error)
            touched.add(_key(row))
            continue
        if right != row.next_slot:
            schedules.change(session, row, next_slot=right)
            touched.add(_key(row))
    return touched


def right_slot(row: Row, moment: datetime) -> datetime | None:
    """What the row should wait for; ConfigurationError where it makes no sense."""
    if row.removed:
        return row.next_slot
    if not row.enabled:
        return None
    timing = row.timing
    if row.next_slot is not None and timing.has(row.next_slot, row.anchor):
        return row.next_slot
    return timing.next(row.floor(moment), row.anchor)


def disable(session: Session, row: Row, error: Exception) -> bool:
    """Switch off a row that makes no sense; the others go on."""
    logger.error("Schedule %s is switched off: %s", row, error)
    return schedules.change(
        session, row, enabled=False, next_slot=None, error=problem(BAD, str(error), error)
    )


def problem(code: str, message: str, error: Exception | None = None) -> ErrorDict:
    """An error as it is shown with a schedule."""
    kind = type(error or ConfigurationError())
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "message": jsonvalues.clean_text(message),
        "traceback": "",
        "code": code,
    }


def _say_taken(key: Key) -> None:
    if key not in _said:
        _said.add(key)
        logger.warning(
            "The schedule %r of %r in the code is not used: an operator has made one of that name. Rename or "
            "delete either.", key[1], key[0],
        )  # fmt: skip
