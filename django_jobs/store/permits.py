"""Units of concurrency keys and of limited queues, as rows.

Taken with a claim (:mod:`django_jobs.store.admission`), renewed with the lease, freed with the outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from django_jobs import ids
from django_jobs.store.claimable import NOT_PAUSED
from django_jobs.store.session import Session

if TYPE_CHECKING:
    from django_jobs.store.claims import Claim

LIVE = "(lease_expires_at IS NULL OR lease_expires_at >= {now})"
GATED = "{0}finished_at IS NULL AND {0}status = 'pending' AND {0}gate = 'permit'"
#: Blocked keys that one sweep looks at; the next one goes on behind them.
KEYS = 100
#: Open jobs of a full key that are put aside at once.
AT_ONCE = 2_000


def queue_hash(queue_name: str) -> str:
    """What the units of a limited queue are filed under."""
    return ids.digest("queue", queue_name)


def put_aside(session: Session, job_ids: Sequence[UUID], gate: str = "permit") -> None:
    """Take jobs out of the claim's index until they may start.

    The units of their key are locked by now, so a holder that is finishing meanwhile waits for this
    transaction and then finds these jobs among those to let in.
    """
    session.run(
        "UPDATE {job} SET gate = %(gate)s WHERE id {among(ids)} AND status = 'pending' AND gate = 'open'",
        ids=list(job_ids), gate=gate,
    )  # fmt: skip


def put_rest_aside(session: Session, key_hash: str) -> int:
    """The other open jobs of a full key: they would be refused one by one."""
    return session.run(
        "UPDATE {job} SET gate = 'permit' WHERE id IN (SELECT id FROM {job} WHERE key_hash = %(hash)s "
        "AND finished_at IS NULL AND status = 'pending' AND gate = 'open' AND key_limit IS NOT NULL "
        "LIMIT %(most)s {skip_locked}) AND status = 'pending' AND gate = 'open'",
        hash=key_hash, most=AT_ONCE,
    )  # fmt: skip


def give_back(session: Session, job_id: UUID) -> None:
    """Free units that were taken for a claim which then failed: its fence was never given out."""
    session.run(
        "DELETE FROM {permit} WHERE job_id = %(job)s AND fence > (SELECT fence FROM {job} WHERE id = %(job)s)",
        job=job_id,
    )


def held(session: Session, job_id: UUID, fence: int) -> tuple[str, ...]:
    """What (job, fence) holds units of."""
    rows = session.rows(
        "SELECT key_hash FROM {permit} WHERE job_id = %(job)s AND fence = %(fence)s",
        job=job_id,
        fence=fence,
    )
    return tuple(row[0] for row in rows)


def renew(session: Session, claim: Claim, lease: float) -> bool:
    """Renew the units of ``claim``; False when one of them is somebody else's by now."""
    renewed = session.run(
        "UPDATE {permit} SET lease_expires_at = {after(lease)} WHERE job_id = %(job)s AND fence = %(fence)s",
        job=claim.job_id, fence=claim.fence, lease=lease,
    )  # fmt: skip
    return renewed >= len(claim.held)


def hold(session: Session, job_id: UUID, fence: int, key_hash: str | None) -> None:
    """Keep the unit of the key while its run is parked; that of the queue is freed."""
    session.run(
        "UPDATE {permit} SET lease_expires_at = NULL WHERE job_id = %(job)s AND fence = %(fence)s "
        "AND key_hash = %(hash)s",
        job=job_id, fence=fence, hash=key_hash,
    )  # fmt: skip
    session.run(
        "DELETE FROM {permit} WHERE job_id = %(job)s AND fence = %(fence)s AND key_hash <> %(hash)s",
        job=job_id, fence=fence, hash=key_hash,
    )  # fmt: skip


def release(session: Session, job_id: UUID, fence: int | None, key_hash: str | None) -> None:
    """Free the units of exactly this (job, fence) and let the next job of the key in."""
    own = "" if fence is None else " AND fence = %(fence)s"
    session.run(f"DELETE FROM {{permit}} WHERE job_id = %(job)s{own}", job=job_id, fence=fence)
    if key_hash is not None:
        # A statement of its own, after the delete: its snapshot sees jobs put aside meanwhile.
        let_in(session, key_hash)


def drop(session: Session, claim: Claim) -> None:
    """Free the units of a claim that was revoked, now that its handler has really stopped (C2)."""
    if claim.held and session.run(
        "DELETE FROM {permit} WHERE job_id = %(job)s AND fence = %(fence)s",
        job=claim.job_id, fence=claim.fence,
    ) and claim.key_hash is not None:  # fmt: skip
        let_in(session, claim.key_hash)


def let_in(session: Session, key_hash: str, count: int = 1) -> int:
    """Bring the first jobs that wait for a permit of this key back into the claim's index.

    Not those of a paused queue or task: they could not use it, and others could.
    """
    return session.run(
        "UPDATE {job} SET gate = 'open' WHERE id IN (SELECT id FROM {job} WHERE key_hash = %(hash)s "
        "AND finished_at IS NULL AND status = 'pending' AND gate = 'permit' "
        f"AND {NOT_PAUSED} "
        "ORDER BY precedence, turn, due_at, id LIMIT %(count)s) "
        "AND status = 'pending' AND gate = 'permit'",
        hash=key_hash, count=count,
    )  # fmt: skip


def let_in_of(session: Session, hashes: Iterable[str]) -> int:
    """Let as many in as there are free units of these keys, those counted that stand open already."""
    return sum(_let_in_one(session, hashed) for hashed in sorted(hashes))


def _let_in_one(session: Session, hashed: str) -> int:
    head = session.one(
        f"SELECT lane, key_limit FROM {{job}} WHERE key_hash = %(hash)s AND {GATED.format('')} "
        "ORDER BY precedence, turn, due_at, id LIMIT 1",
        hash=hashed,
    )
    if head is None:
        return 0
    lane, limit = head[0], head[1] or 1
    row = session.one(
        "SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM {job} WHERE key_hash = %(hash)s AND finished_at IS NULL "
        "AND status = 'pending' AND gate = 'open' AND lane = %(lane)s LIMIT %(limit)s) AS ahead), "
        f"(SELECT COUNT(*) FROM {{permit}} WHERE key_hash = %(hash)s AND {LIVE})",
        hash=hashed, lane=lane, limit=limit,
    )  # fmt: skip
    assert row is not None
    free = limit - row[0] - row[1]
    return let_in(session, hashed, free) if free > 0 else 0


def _let_in_free(session: Session, keys: list[tuple[str, int | None]]) -> list[int]:
    if not keys:
        return []
    rows = session.rows(
        f"SELECT key_hash, COUNT(*) FROM {{permit}} WHERE key_hash {{among(hashes)}} AND {LIVE} GROUP BY key_hash",
        hashes=[key_hash for key_hash, _ in keys],
    )
    taken = {row[0]: row[1] for row in rows}
    return [
        let_in(session, key_hash, (key_limit or 1) - taken.get(key_hash, 0))
        for key_hash, key_limit in keys
        if (key_limit or 1) > taken.get(key_hash, 0)
    ]


# --- the sweep's part -------------------------------------------------------------------------

#: By database, the last key that a sweep of this process has looked at.
_place: dict[str, str] = {}


def let_in_where_free(session: Session, limit: int = KEYS) -> int:
    """Bring jobs back whose key has a free or expired unit, whatever went wrong before."""
    place = _place.get(session.alias, "")
    found = distinct(session, "key_hash", GATED, place, limit)
    _place[session.alias] = found[-1][0] if len(found) == limit else ""
    return sum(_let_in_free(session, found))


def distinct(
    session: Session, column: str, where: str, place: str, limit: int
) -> list[tuple[str, int | None]]:
    """The first values of ``column`` behind ``place`` among jobs that fit ``where``, and a key's limit.

    By jumps from value to value; ``where`` has ``{0}`` before each column.
    """
    here = where.format("")
    if session.vendor == "mysql":
        # MySQL reads its index from the start for each round of a recursion.
        found: list[tuple[str, int | None]] = []
        while len(found) < limit and (
            row := session.one(
                f"SELECT {column}, key_limit FROM {{job}} WHERE {column} > %(place)s AND {here} "
                f"ORDER BY {column} LIMIT 1",
                place=found[-1][0] if found else place,
            )
        ):
            found.append((row[0], row[1]))
        return found
    rows = session.rows(
        f"""
        WITH RECURSIVE found(value) AS (
            SELECT MIN({column}) FROM {{job}} WHERE {column} > %(place)s AND {here}
            UNION ALL
            SELECT (SELECT MIN(j.{column}) FROM {{job}} j
                     WHERE j.{column} > found.value AND {where.format("j.")})
              FROM found WHERE found.value IS NOT NULL
        )
        SELECT found.value, (SELECT k.key_limit FROM {{job}} k
                              WHERE k.{column} = found.value AND {where.format("k.")} LIMIT 1)
          FROM found WHERE found.value IS NOT NULL LIMIT %(limit)s
        """,
        place=place, limit=limit,
    )  # fmt: skip
    return [(row[0], row[1]) for row in rows]


def clear_dead(session: Session, limit: int = 500) -> int:
    """Delete units whose lease has ended and whose (job, fence) is driven by nobody."""
    return session.run(
        "DELETE FROM {permit} WHERE id IN (SELECT id FROM {permit} WHERE lease_expires_at < {now} "
        "AND NOT EXISTS (SELECT 1 FROM {job} j WHERE j.id = {permit}.job_id AND j.fence = {permit}.fence "
        "AND j.lease_expires_at IS NOT NULL) LIMIT %(limit)s {skip_locked}) AND lease_expires_at < {now}",
        limit=limit,
    )
