"""Keys that bind an enqueue: one live job an idempotency key; dropping and superseding."""

from __future__ import annotations

from uuid import UUID

from django_jobs import ids, jsonvalues
from django_jobs.lifecycle import Status
from django_jobs.store import endings, history, permits
from django_jobs.store.session import Session

#: Seconds for which a key holds after its job was made; longer while the job lives.
WINDOW = 24 * 3600.0


def reserve(session: Session, key_hash: str, job_id: UUID) -> UUID | None:
    """Give the key to ``job_id`` and return None, or return the job that has it.

    Waits for another transaction that is taking the same key.
    """
    # Once more where the row went between two statements: its taker rolled back, or it was pruned.
    for _ in range(3):
        if session.run(
            "{insert_ignore} {idempotencykey} (key_hash, job_id, expires_at) "
            "VALUES (%(hash)s, %(job)s, {after(window)}) {ignore_conflict}",
            hash=key_hash, job=job_id, window=WINDOW,
        ):  # fmt: skip
            return None
        row = session.one(
            "SELECT job_id FROM {idempotencykey} WHERE key_hash = %(hash)s {lock_rows}",
            hash=key_hash,
        )
        if row is not None:
            taken = _take_over(session, key_hash, job_id)
            return None if taken else session.dialect.uuid(row[0])
    # Invisible under REPEATABLE READ: the caller is told that somebody has it, not who.
    return UUID(int=0)


def _take_over(session: Session, key_hash: str, job_id: UUID) -> int:
    """Take a key, whose row is locked, from a job that is gone, or done and past its window.

    A statement of its own, after the lock: one that had waited for the row would look for its job
    in a snapshot older than that job.
    """
    return session.run(
        "UPDATE {idempotencykey} SET job_id = %(job)s, expires_at = {after(window)} WHERE key_hash = %(hash)s "
        "AND ({idempotencykey}.expires_at <= {now} OR NOT EXISTS "
        "(SELECT 1 FROM {job} WHERE {job}.id = {idempotencykey}.job_id)) AND NOT EXISTS "
        "(SELECT 1 FROM {job} WHERE {job}.id = {idempotencykey}.job_id AND {job}.finished_at IS NULL)",
        hash=key_hash, job=job_id, window=WINDOW,
    )  # fmt: skip


def lock(session: Session, key_hash: str) -> None:
    """Serialize the enqueues of one concurrency key until the end of the transaction."""
    session.dialect.lock_name(session, ids.lane("enqueue", key_hash))


def live(session: Session, key_hash: str, limit: int) -> list[UUID]:
    """The first ``limit`` pending or running jobs of a key, oldest first."""
    rows = session.rows(
        "SELECT id FROM {job} WHERE key_hash = %(hash)s AND finished_at IS NULL "
        "AND status IN ('pending', 'running') ORDER BY id LIMIT %(limit)s",
        hash=key_hash,
        limit=limit,
    )
    return [session.dialect.uuid(row[0]) for row in rows]  # type: ignore[misc]


def supersede(session: Session, key_hash: str, successor: UUID, slug: str | None = None) -> int:
    """Cancel the older jobs of a key that never started, of this ``slug`` only; return how many."""
    own = "" if slug is None else " AND slug = %(slug)s"
    rows = session.rows(
        "SELECT id FROM {job} {index(key)} WHERE key_hash = %(hash)s AND finished_at IS NULL AND started_at IS NULL "
        f"AND status IN ('pending', 'paused') AND id <> %(successor)s{own} ORDER BY id {{lock_rows}}",
        hash=key_hash, successor=successor, slug=slug,
    )  # fmt: skip
    return sum(
        _cancel(
            session,
            session.dialect.uuid(row[0]),
            "superseded",
            f"Superseded by job {successor}.",
            successor,
        )
        for row in rows
    )


def drop(session: Session, job_id: UUID, holder: UUID) -> None:
    """End a job just inserted: its key is taken by ``holder``."""
    _cancel(session, job_id, "canceled", f"Dropped: its concurrency key is taken by job {holder}.")


EXPIRED = "expires_at <= {now} AND finished_at IS NULL AND started_at IS NULL AND status IN ('pending', 'paused')"


def expire(session: Session, limit: int = 500) -> int:
    """Cancel jobs that were not started in time; return how many."""
    rows = session.rows(
        f"SELECT id, key_hash FROM {{job}} {{index(expiry)}} WHERE {EXPIRED} LIMIT %(limit)s {{lock_rows}}",
        limit=limit,
    )
    message = "Expired: it was not started in time."
    gone = sum(_cancel(session, session.dialect.uuid(row[0]), "expired", message) for row in rows)
    # Those behind them may be the next of their key.
    permits.let_in_of(session, {row[1] for row in rows if row[1] is not None})
    return gone


def _cancel(
    session: Session, job_id: UUID | None, code: str, message: str, successor: UUID | None = None
) -> int:
    assert job_id is not None
    error = {
        "type": "django_jobs.errors.CancelJob",
        "message": message,
        "traceback": "",
        "code": code,
    }
    moved = history.move(
        session, job_id, event=code, frm=[Status.PENDING, Status.PAUSED], to=Status.CANCELED,
        where=" AND started_at IS NULL", detail={"error": {"message": message, "code": code}},
        sets="error = {json(error)}, finished_at = {now}, superseded_by = %(successor)s, fence = fence + 1",
        error=jsonvalues.dumps(error, what="error"), successor=successor,
    )  # fmt: skip
    if moved:
        endings.ended(session, [job_id])
    return moved
