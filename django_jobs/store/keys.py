"""Idempotency keys: one live job a key."""

from __future__ import annotations

from uuid import UUID

from django_jobs.store.session import Session

#: Seconds for which a key holds after its job was made; longer while the job lives.
WINDOW = 24 * 3600.0


def reserve(session: Session, key_hash: str, job_id: UUID) -> UUID | None:
    """Give the key to ``job_id`` and return None, or return the job that has it.

    Waits for another transaction that is taking the same key.
    """
    mine = session.one(
        "INSERT INTO {idempotencykey} (key_hash, job_id, expires_at) VALUES (%(hash)s, %(job)s, {after(window)}) "
        "ON CONFLICT (key_hash) DO UPDATE SET job_id = excluded.job_id, expires_at = excluded.expires_at "
        "WHERE ({idempotencykey}.expires_at <= {now} OR NOT EXISTS "
        "(SELECT 1 FROM {job} WHERE {job}.id = {idempotencykey}.job_id)) AND NOT EXISTS "
        "(SELECT 1 FROM {job} WHERE {job}.id = {idempotencykey}.job_id AND {job}.finished_at IS NULL) "
        "RETURNING job_id",
        hash=key_hash, job=job_id, window=WINDOW,
    )  # fmt: skip
    if mine is not None:
        return None
    row = session.one(
        "SELECT job_id FROM {idempotencykey} WHERE key_hash = %(hash)s", hash=key_hash
    )
    # Invisible under REPEATABLE READ: the caller is told that somebody has it, not who.
    return session.dialect.uuid(row[0]) if row else UUID(int=0)
