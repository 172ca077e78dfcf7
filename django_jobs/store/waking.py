"""sleeping → pending: waking runs for whose waits there is something to see."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from django_jobs import conf
from django_jobs.lifecycle import Gate, Status
from django_jobs.store import history, jobs
from django_jobs.store.session import Session

DUE_NOW = "gate = 'open', due_at = {now}, run_after = {now}"


def wake(session: Session, run_ids: Sequence[UUID]) -> list[UUID]:
    """Make those of these runs due that sleep in steps of their own; one that waits for its next try sleeps on.

    The rows are locked whatever they show, and judged after that: a run that is just going to sleep
    looks for what it waits for under the same lock, so that one of the two sees the other.
    """
    if not run_ids:
        return []
    rows = session.rows(
        "SELECT id, status, gate, queue_name FROM {job} {index(primary)} WHERE id {among(ids)} ORDER BY id {lock_rows}",
        ids=list(run_ids),
    )
    queues = {
        session.dialect.uuid(job_id): queue_name
        for job_id, status, gate, queue_name in rows
        if status == Status.SLEEPING and gate == Gate.WAIT
    }
    woken = history.move_many(
        session, list(queues), event="woken", frm=Status.SLEEPING, to=Status.PENDING, sets=DUE_NOW  # type: ignore[arg-type]
    ) if queues else []  # fmt: skip
    if conf.get().notify:
        for name in sorted({queues[run_id] for run_id in woken}):
            jobs.wake(session, name)
    return woken


def wake_due(session: Session, limit: int) -> int:
    """Wake runs whose time has come, whatever they wait for; return how many."""
    rows = session.rows(
        "SELECT id FROM {job} {index(timer)} WHERE status = 'sleeping' AND run_after <= {now} "
        "ORDER BY run_after LIMIT %(limit)s {skip_locked}",
        limit=limit,
    )
    if not rows:
        return 0
    due: list[UUID] = [session.dialect.uuid(row[0]) for row in rows]  # type: ignore[misc]
    return len(
        history.move_many(
            session, due, event="woken", frm=Status.SLEEPING, to=Status.PENDING,
            sets="gate = 'open', due_at = run_after",
        )
    )  # fmt: skip
