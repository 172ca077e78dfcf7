"""Events sent to runs: stored with their receiver, who is woken if it waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django_jobs import ids, jsonvalues
from django_jobs.lifecycle import FINAL, Kind
from django_jobs.store import history
from django_jobs.store.session import Session
from django_jobs.store.waking import wake


@dataclass(frozen=True, slots=True)
class Reached:
    """The receiver of an event as it was found; ``delivered`` by this call or, under its key, by an earlier one."""

    kind: str
    status: str
    delivered: bool


def send(
    session: Session,
    receiver: UUID,
    name: str,
    payload: str,
    key_hash: str | None,
    *,
    actor: str | None = None,
) -> Reached | None:
    """Store an event for one run under the lock of its row, and wake it if it waits for it; None if it is gone."""
    row = session.one("SELECT kind, status FROM {job} WHERE id = %(id)s {lock_rows}", id=receiver)
    if row is None:
        return None
    kind, status = row
    if key_hash is not None and _is_known(session, key_hash):
        return Reached(kind, status, True)
    if status in FINAL or kind not in (Kind.WORKFLOW, Kind.DAG):
        return Reached(kind, status, False)
    _insert(session, [receiver], name, payload, key_hash)
    if actor is not None:
        history.note(session, receiver, event="event_sent", actor=actor, detail={"name": name})
    if _waits(session, receiver, name):
        wake(session, [receiver])
    return Reached(kind, status, True)


def broadcast(session: Session, name: str, payload: str, key_hash: str | None) -> list[UUID]:
    """Store an event for every run that waits for ``name`` now; those reached, or those of the first time."""
    if key_hash is not None:
        session.dialect.lock_name(session, ids.lane("broadcast", key_hash))
        before = _first_receivers(session, key_hash)
        if before is not None:
            return before
    reached = _waiting(session, name)
    _insert(session, reached, name, payload, None)
    wake(session, reached)
    if key_hash is not None:
        listed = jsonvalues.dumps([str(one) for one in reached], what="receivers", limit=1 << 30)
        session.run(
            "INSERT INTO {broadcast} (key_hash, receivers, sent_at) VALUES (%(hash)s, {json(receivers)}, {now})",
            hash=key_hash, receivers=listed,
        )  # fmt: skip
    return reached


def _is_known(session: Session, key_hash: str) -> bool:
    found = session.one("SELECT 1 FROM {event} WHERE key_hash = %(hash)s", hash=key_hash)
    return found is not None


def _first_receivers(session: Session, key_hash: str) -> list[UUID] | None:
    """Who was reached under this key, None where it is new."""
    row = session.one(
        "SELECT {text(receivers)} FROM {broadcast} WHERE key_hash = %(hash)s", hash=key_hash
    )
    return None if row is None else [UUID(one) for one in jsonvalues.loads(row[0])]


def _insert(
    session: Session, receivers: Sequence[UUID], name: str, payload: str, key_hash: str | None
) -> None:
    items: list[dict[str, Any]] = [
        {"job": receiver, "name": name, "key": key_hash, "payload": payload}
        for receiver in receivers
    ]
    session.many(
        "INSERT INTO {event} (job_id, name, key_hash, payload, sent_at) "
        "VALUES (%(job)s, %(name)s, %(key)s, {json(payload)}, {now})",
        items,
    )


#: A wait whose time limit has passed is over, though its run may not have looked yet.
WAITING = (
    "SELECT s.job_id, COUNT(*) FROM {taskstatus} s WHERE s.event_name = %(name)s AND s.finished_at IS NULL "
    "AND s.status = 'sleeping' AND (s.wake_at IS NULL OR s.wake_at >= {now})"
)


def _waits(session: Session, receiver: UUID, name: str) -> bool:
    row = session.one(
        "SELECT 1 FROM {taskstatus} s WHERE s.job_id = %(id)s AND s.event_name = %(name)s AND s.status = 'sleeping'",
        id=receiver, name=name,
    )  # fmt: skip
    return row is not None


def _waiting(session: Session, name: str) -> list[UUID]:
    """The live runs with a wait for ``name`` for which no event lies ready, locked in order of id."""
    uuid = session.dialect.uuid
    candidates = session.rows(f"{WAITING} GROUP BY s.job_id", name=name)
    listed = [run_id for row in candidates if (run_id := uuid(row[0])) is not None]
    if not listed:
        return []
    locked = session.rows(
        "SELECT id FROM {job} {index(primary)} WHERE id {among(ids)} AND finished_at IS NULL ORDER BY id {lock_rows}",
        ids=listed,
    )
    live = [run_id for row in locked if (run_id := uuid(row[0])) is not None]
    if not live:
        return []
    # Once more, now that nobody moves them.
    waits = session.rows(
        f"{WAITING} AND s.job_id {{among(ids)}} GROUP BY s.job_id", name=name, ids=live
    )
    ready = session.rows(
        "SELECT job_id, COUNT(*) FROM {event} WHERE job_id {among(ids)} AND name = %(name)s AND step_key IS NULL "
        "GROUP BY job_id",
        name=name, ids=live,
    )  # fmt: skip
    kept = {uuid(row[0]): row[1] for row in ready}
    wanting = {uuid(row[0]) for row in waits if row[1] > kept.get(uuid(row[0]), 0)}
    return [run_id for run_id in live if run_id in wanting]
