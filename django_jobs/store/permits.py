"""Units of a concurrency key, as rows: taken with a claim, renewed with the lease, freed with the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from django_jobs.store.session import Session

if TYPE_CHECKING:
    from django_jobs.store.claims import Claim


def admit(session: Session, job_ids: Sequence[UUID], *, lease: float) -> list[UUID]:
    """Those of ``job_ids`` that need no permit or get one; the others are put aside until one is free."""
    allowed = []
    for job_id in job_ids:
        row = session.one(
            "SELECT key_hash, concurrency_key, key_limit, fence FROM {job} WHERE id = %(id)s",
            id=job_id,
        )
        if row is None:
            continue
        key_hash, key, limit, fence = row
        if limit is None or _acquire(session, key_hash, key, limit, job_id, fence + 1, lease):
            allowed.append(job_id)
        else:
            put_aside(session, job_id)
    return allowed


def _acquire(
    session: Session, key_hash: str, key: str, limit: int, job_id: UUID, fence: int, lease: float
) -> bool:
    """Take the first free unit. The upsert locks each unit it finds taken: see :func:`put_aside`."""
    if session.run(
        "UPDATE {permit} SET fence = %(fence)s, lease_expires_at = {after(lease)} WHERE job_id = %(job)s "
        "AND key_hash = %(hash)s AND lease_expires_at IS NULL",
        job=job_id, hash=key_hash, fence=fence, lease=lease,
    ):  # fmt: skip
        return True
    for number in range(1, limit + 1):
        row = session.one(
            "INSERT INTO {permit} (key_hash, number, key_name, job_id, fence, lease_expires_at) "
            "VALUES (%(hash)s, %(number)s, %(key)s, %(job)s, %(fence)s, {after(lease)}) "
            "ON CONFLICT (key_hash, number) DO UPDATE SET job_id = excluded.job_id, fence = excluded.fence, "
            "lease_expires_at = excluded.lease_expires_at, key_name = excluded.key_name "
            "WHERE {permit}.lease_expires_at < {now} RETURNING id",
            hash=key_hash, number=number, key=key, job=job_id, fence=fence, lease=lease,
        )  # fmt: skip
        if row is not None:
            if _is_within_every_limit(session, key_hash, limit):
                return True
            session.run(
                "DELETE FROM {permit} WHERE key_hash = %(hash)s AND job_id = %(job)s AND fence = %(fence)s",
                hash=key_hash, job=job_id, fence=fence,
            )  # fmt: skip
            return False
    return False


def _is_within_every_limit(session: Session, key_hash: str, limit: int) -> bool:
    """Whether those who hold the key now, the newest included, keep the strictest of their limits.

    Calls of one key may state different limits. Their units are locked: see :func:`put_aside`.
    """
    holders = session.rows(
        "SELECT job_id FROM {permit} WHERE key_hash = %(hash)s "
        "AND (lease_expires_at IS NULL OR lease_expires_at >= {now}) {lock_rows}",
        hash=key_hash,
    )
    if len(holders) == 1:
        return True
    limits = [limit]
    for (holder,) in holders:
        row = session.one("SELECT key_limit FROM {job} WHERE id = %(id)s", id=holder)
        limits.append((row and row[0]) or limit)
    return len(holders) <= min(limits)


def put_aside(session: Session, job_id: UUID) -> None:
    """Take a job out of the claim's index until a permit of its key is free.

    The taken units are locked by now, so a holder that is finishing meanwhile waits for this
    transaction and then finds the job among those to let in.
    """
    session.run(
        "UPDATE {job} SET gate = 'permit' WHERE id = %(id)s AND status = 'pending' AND gate = 'open'",
        id=job_id,
    )


def give_back(session: Session, job_id: UUID) -> None:
    """Free a unit that was taken for a claim which then failed: its fence was never given out."""
    session.run(
        "DELETE FROM {permit} WHERE job_id = %(job)s AND fence > (SELECT fence FROM {job} WHERE id = %(job)s)",
        job=job_id,
    )


def renew(session: Session, claim: Claim, lease: float) -> None:
    session.run(
        "UPDATE {permit} SET lease_expires_at = {after(lease)} WHERE job_id = %(job)s AND fence = %(fence)s",
        job=claim.job_id, fence=claim.fence, lease=lease,
    )  # fmt: skip


def hold(session: Session, job_id: UUID, fence: int) -> None:
    """Keep the unit while its run is parked."""
    session.run(
        "UPDATE {permit} SET lease_expires_at = NULL WHERE job_id = %(job)s AND fence = %(fence)s",
        job=job_id, fence=fence,
    )  # fmt: skip


def release(session: Session, job_id: UUID, fence: int | None, key_hash: str | None) -> None:
    """Free the units of exactly this (job, fence) and let the next job of the key in."""
    if key_hash is None:
        return
    own = "" if fence is None else " AND fence = %(fence)s"
    session.run(f"DELETE FROM {{permit}} WHERE job_id = %(job)s{own}", job=job_id, fence=fence)
    # A statement of its own, after the delete: its snapshot sees jobs put aside meanwhile.
    let_in(session, key_hash)


def drop(session: Session, claim: Claim) -> None:
    """Free the unit of a claim that was revoked, now that its handler has really stopped (C2)."""
    if claim.key_hash is not None and session.run(
        "DELETE FROM {permit} WHERE job_id = %(job)s AND fence = %(fence)s",
        job=claim.job_id, fence=claim.fence,
    ):  # fmt: skip
        let_in(session, claim.key_hash)


def let_in(session: Session, key_hash: str, count: int = 1) -> int:
    """Bring the first jobs that wait for a permit of this key back into the claim's index."""
    return session.run(
        "UPDATE {job} SET gate = 'open' WHERE id IN (SELECT id FROM {job} WHERE key_hash = %(hash)s "
        "AND status = 'pending' AND gate = 'permit' ORDER BY precedence, turn, due_at, id LIMIT %(count)s) "
        "AND status = 'pending' AND gate = 'permit'",
        hash=key_hash, count=count,
    )  # fmt: skip


def let_in_where_free(session: Session, limit: int = 100) -> int:
    """The sweep's part: bring jobs back whose key has a free or expired unit, whatever went wrong before."""
    rows = session.rows(
        "SELECT key_hash, MIN(key_limit) FROM {job} WHERE key_hash IS NOT NULL AND finished_at IS NULL "
        "AND status = 'pending' AND gate = 'permit' GROUP BY key_hash LIMIT %(limit)s",
        limit=limit,
    )
    opened = 0
    for key_hash, key_limit in rows:
        taken = session.one(
            "SELECT COUNT(*) FROM {permit} WHERE key_hash = %(hash)s "
            "AND (lease_expires_at IS NULL OR lease_expires_at >= {now})",
            hash=key_hash,
        )
        free = (key_limit or 1) - (taken[0] if taken else 0)
        if free > 0:
            opened += let_in(session, key_hash, free)
    return opened
