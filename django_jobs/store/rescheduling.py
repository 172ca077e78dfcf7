"""Another time, queue or priority for jobs that wait and were never started.

The place in line follows: lane, order, gate, and the turn in a queue with fair share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django_jobs import jsonvalues
from django_jobs.lifecycle import Status
from django_jobs.store import fairness, history, jobs, permits, rates
from django_jobs.store.session import Session

#: What a job must be besides pending or paused, as SQL.
NEVER_STARTED = "started_at IS NULL AND lease_expires_at IS NULL"


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different; None leaves it as it is. ``delay`` in seconds of DB time, or ``run_after``."""

    run_after: datetime | None = None
    delay: float | None = None
    queue_name: str | None = None
    priority: int | None = None

    @property
    def has_time(self) -> bool:
        return self.run_after is not None or self.delay is not None


@dataclass(slots=True)
class Waiting:
    """A job whose row is locked, with what decides about its place in line."""

    id: UUID
    status: str
    started: bool
    runner: str
    queue_name: str
    slug: str
    version: str | None
    priority: int
    run_after: datetime | None
    key_hash: str | None
    key_limit: int | None
    rate_hash: str | None
    concurrency_key: str | None
    tenants: tuple[str | None, ...]
    turn: int = 0
    share: int | None = None

    @property
    def limited(self) -> bool:
        return self.key_limit is not None or self.rate_hash is not None


@dataclass(slots=True)
class Moved:
    """What became of the jobs asked for: ids, and the queues in which something is new."""

    changed: list[UUID]
    unchanged: list[UUID]
    refused: dict[UUID, str]
    queues: set[str]


def fits(change: Change, one: Waiting) -> bool:
    """Whether this job can be changed so. A paused one has no time: its resume makes it due."""
    if one.started or one.status not in (Status.PENDING, Status.PAUSED):
        return False
    return one.status == Status.PENDING or not change.has_time


def apply(
    session: Session,
    change: Change,
    job_ids: Sequence[UUID],
    *,
    event: str,
    actor: str | None,
    detail: dict[str, Any] | None,
) -> Moved:
    """Change these jobs, whose rows the caller has locked, each with its entry in the history."""
    waiting = _read(session, job_ids)
    refused = {one.id: one.status for one in waiting if not fits(change, one)}
    fit = [one for one in waiting if one.id not in refused]
    differing = [one for one in fit if _differs(change, one)]
    unchanged = [one.id for one in fit if not _differs(change, one)]
    before = {one.id: _as_detail(change, one) for one in differing}
    if change.queue_name is not None:
        jobs.ensure_queue(session, change.queue_name)
    changed: dict[UUID, datetime | None] = {}
    for lane, group in _by_lane(change, differing).items():
        changed |= _write(session, change, lane, group)
    moved = [one for one in differing if one.id in changed]
    refused |= {one.id: one.status for one in differing if one.id not in changed}
    if change.queue_name is not None:
        _share(
            session,
            change.queue_name,
            [one for one in moved if one.queue_name != change.queue_name],
        )
    for one in moved:
        if change.has_time:
            before[one.id]["run_after"]["to"] = _iso(changed[one.id])
    entries = {one.id: {**(detail or {}), **before[one.id]} for one in moved}
    history.note_many(session, entries, event=event, actor=actor)
    # They may have left others behind who can start now, or be the next of their key themselves.
    permits.let_in_of(
        session, {one.key_hash for one in moved if one.key_limit is not None and one.key_hash}
    )
    rates.look_at(session, {one.rate_hash for one in moved if one.rate_hash is not None})
    queues = {change.queue_name or one.queue_name for one in moved}
    return Moved([one.id for one in moved], unchanged, refused, queues)


def _read(session: Session, job_ids: Sequence[UUID]) -> list[Waiting]:
    uuid, time = session.dialect.uuid, session.dialect.time
    rows = session.rows(
        f"SELECT id, status, CASE WHEN {NEVER_STARTED} THEN 0 ELSE 1 END, runner, queue_name, slug, version, "
        "priority, run_after, key_hash, key_limit, rate_hash, concurrency_key, tenant_1, tenant_2, tenant_3 "
        "FROM {job} {index(primary)} WHERE id {among(ids)} ORDER BY id",
        ids=list(job_ids),
    )  # fmt: skip
    return [
        Waiting(
            id=uuid(row[0]),  # type: ignore[arg-type]
            status=row[1], started=bool(row[2]), runner=row[3], queue_name=row[4], slug=row[5], version=row[6],
            priority=row[7], run_after=time(row[8]), key_hash=row[9], key_limit=row[10], rate_hash=row[11],
            concurrency_key=row[12], tenants=tuple(row[13:16]),
        )
        for row in rows
    ]  # fmt: skip


def _differs(change: Change, one: Waiting) -> bool:
    return (
        change.delay is not None
        or (change.run_after is not None and change.run_after != one.run_after)
        or (change.queue_name is not None and change.queue_name != one.queue_name)
        or (change.priority is not None and change.priority != one.priority)
    )


def _by_lane(change: Change, waiting: Iterable[Waiting]) -> dict[int, list[UUID]]:
    groups: dict[int, list[UUID]] = {}
    for one in waiting:
        lane = jobs.lane(
            one.runner, change.queue_name or one.queue_name, one.slug, one.version, limited=one.limited
        )  # fmt: skip
        groups.setdefault(lane, []).append(one.id)
    return groups


def _write(
    session: Session, change: Change, lane: int, job_ids: list[UUID]
) -> dict[UUID, datetime | None]:
    """The new values of jobs of one lane; those that were changed, with their new time."""
    sets: list[str] = []
    if change.has_time:
        due = "{after(delay)}" if change.delay is not None else "{moment(run_after)}"
        sets += [
            f"gate = CASE WHEN {due} > {{now}} THEN 'timer' WHEN gate <> 'timer' THEN gate "
            "WHEN key_limit IS NOT NULL THEN 'permit' WHEN rate_hash IS NOT NULL THEN 'rate' ELSE 'open' END",
            f"run_after = {due}",
            f"due_at = {due}",
        ]
    if change.priority is not None:
        sets += ["priority = %(priority)s", "precedence = %(precedence)s"]
    if change.queue_name is not None:
        sets += [
            # Their turn was one among those of the queue that they leave.
            "turn = CASE WHEN queue_name = %(queue_name)s THEN turn ELSE 0 END",
            "share = CASE WHEN queue_name = %(queue_name)s THEN share END",
            "queue_name = %(queue_name)s",
            "lane = %(lane)s",
        ]
    rows = session.rows(
        f"UPDATE {{job}} SET {', '.join(sets)} WHERE id {{among(ids)}} AND status IN ('pending', 'paused') "
        f"AND {NEVER_STARTED} RETURNING id, run_after",
        ids=job_ids, delay=change.delay, run_after=change.run_after, priority=change.priority,
        precedence=-(change.priority or 0), queue_name=change.queue_name, lane=lane,
    )  # fmt: skip
    uuid, time = session.dialect.uuid, session.dialect.time
    return {uuid(row[0]): time(row[1]) for row in rows}  # type: ignore[misc]


def _share(session: Session, queue_name: str, arrived: list[Waiting]) -> None:
    """Groups and turns of jobs that have come into a queue with fair share."""
    by = fairness.fair_by(session, queue_name)
    if by is None or not arrived:
        return
    inputs = _inputs(session, [one.id for one in arrived]) if by not in fairness.OF_COLUMNS else {}
    for one in arrived:
        one.queue_name = queue_name
        group = fairness.group(by, one.tenants, one.concurrency_key, inputs.get(one.id, {}))
        fairness.share(one, group)
    fairness.assign(session, arrived)
    for one in arrived:
        session.run(
            "UPDATE {job} SET turn = %(turn)s, share = %(share)s WHERE id = %(id)s AND status IN ('pending', 'paused')",
            turn=one.turn, share=one.share, id=one.id,
        )  # fmt: skip


def _inputs(session: Session, job_ids: list[UUID]) -> dict[UUID, dict[str, Any]]:
    rows = session.rows("SELECT id, {text(input)} FROM {job} WHERE id {among(ids)}", ids=job_ids)
    read = {session.dialect.uuid(row[0]): jsonvalues.loads(row[1]) for row in rows}
    return {
        job_id: value
        for job_id, value in read.items()
        if job_id is not None and isinstance(value, dict)
    }


# --- what the history keeps -------------------------------------------------------------------


def _as_detail(change: Change, one: Waiting) -> dict[str, Any]:
    """From what to what, of all that is different."""
    known: dict[str, Any] = {}
    if change.queue_name is not None and change.queue_name != one.queue_name:
        known["queue_name"] = {"from": one.queue_name, "to": change.queue_name}
    if change.priority is not None and change.priority != one.priority:
        known["priority"] = {"from": one.priority, "to": change.priority}
    if change.has_time:
        known["run_after"] = {"from": _iso(one.run_after)}
    return known


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
