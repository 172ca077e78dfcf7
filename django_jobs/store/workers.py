"""Rows of worker processes: for people to see; recovery never depends on them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django_jobs import jsonvalues
from django_jobs.store.claims import MOMENTS
from django_jobs.store.session import Session


def register(
    session: Session,
    worker: UUID,
    *,
    supervisor: UUID | None,
    hostname: str,
    pid: int,
    queues: list[str],
    threads: int,
    codes: list[Any],
) -> None:
    session.run(
        "INSERT INTO {worker} (id, supervisor, hostname, pid, queues, threads, status, codes, started_at, "
        "heartbeat_at) VALUES (%(id)s, %(supervisor)s, %(hostname)s, %(pid)s, {json(queues)}, %(threads)s, "
        "'running', {json(codes)}, {now}, {now})",
        id=worker, supervisor=supervisor, hostname=hostname[:200], pid=pid, threads=threads,
        queues=jsonvalues.dumps(queues, what="queues"), codes=jsonvalues.dumps(codes, what="codes"),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a worker learns with its heartbeat, so that an idle one needs no other statement."""

    #: A lease, a permit or the time to start a job has ended; jobs wait for a permit or for their rate.
    expired: bool
    gated: bool
    #: A job is ready to be claimed, or the first that waits for its time is due in so many seconds.
    ready: bool
    due_in: float | None
    #: The earliest slot of all schedules, and in how many seconds it is.
    slot: datetime | None
    slot_in: float | None
    #: An operator wants it to claim nothing more.
    drain: bool = False


_BEAT = "UPDATE {worker} SET heartbeat_at = {now}, jobs_in_hand = %(jobs)s, memory = %(memory)s WHERE id = %(id)s"
_LOOK = """
    SELECT EXISTS (SELECT 1 FROM {job} WHERE lease_expires_at < {now})
               OR EXISTS (SELECT 1 FROM {job} WHERE expires_at <= {now} AND finished_at IS NULL
                             AND started_at IS NULL AND status IN ('pending', 'paused'))
               OR EXISTS (SELECT 1 FROM {permit} WHERE lease_expires_at < {now}),
           EXISTS (SELECT 1 FROM {job} WHERE key_hash IS NOT NULL AND finished_at IS NULL
                                         AND status = 'pending' AND gate = 'permit')
               OR EXISTS (SELECT 1 FROM {job} WHERE rate_hash IS NOT NULL AND finished_at IS NULL
                                                AND status = 'pending' AND gate = 'rate'),
           EXISTS (SELECT 1 FROM {job} WHERE status = 'pending' AND gate = 'open')
               OR EXISTS (SELECT 1 FROM {job} WHERE status = 'compensating' AND lease_expires_at IS NULL
                             AND (run_after IS NULL OR run_after <= {now})),
           (SELECT MIN(moment) FROM ($MOMENTS) AS moments),
           (SELECT MIN(next_slot) FROM {schedule} WHERE enabled),
           (SELECT drain FROM {worker} WHERE id = %(id)s),
           {now}
""".replace("$MOMENTS", MOMENTS)


def pulse(session: Session, worker: UUID, *, jobs_in_hand: int, memory: int | None) -> Pulse:
    """Heartbeat and look in one statement, where the database can."""
    bound = {"id": worker, "jobs": jobs_in_hand, "memory": memory}
    if session.vendor == "postgresql":
        row = session.one(f"WITH beat AS ({_BEAT}) {_LOOK}", **bound)
    else:
        session.run(_BEAT, **bound)
        row = session.one(_LOOK, id=worker)
    assert row is not None
    due, slot, present = (session.dialect.time(row[place]) for place in (3, 4, -1))
    assert present is not None
    due_in, slot_in = (
        None if one is None else (one - present).total_seconds() for one in (due, slot)
    )
    return Pulse(bool(row[0]), bool(row[1]), bool(row[2]), due_in, slot, slot_in, bool(row[-2]))


def drain(session: Session, worker: UUID, wanted: bool) -> bool:
    """Ask a worker to claim nothing more, or to claim again; whether that changed anything."""
    changed = session.run(
        "UPDATE {worker} SET drain = %(wanted)s WHERE id = %(id)s AND drain <> %(wanted)s "
        "AND stopped_at IS NULL",
        id=worker, wanted=wanted,
    )  # fmt: skip
    return bool(changed)


def sign_off(session: Session, worker: UUID, status: str = "stopped") -> None:
    session.run(
        "UPDATE {worker} SET status = %(status)s, stopped_at = {now}, jobs_in_hand = 0 WHERE id = %(id)s",
        id=worker, status=status,
    )  # fmt: skip
