"""Runs that are being undone: how they begin, change hands and end.

A run that begins to undo stays with its claim. Only one whose holder is gone, or that waits for a
compensation's next try, is claimed anew; such runs are few, and no claim of jobs looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import Status
from django_jobs.outcomes import Compensated, CompensationFailed, Undoing
from django_jobs.store import history
from django_jobs.store.claims import RETURNED, Claim, claim_of, with_steps
from django_jobs.store.session import Session
from django_jobs.store.steps import dump_error

FREE = (
    "status = 'compensating' AND lease_expires_at IS NULL "
    "AND (run_after IS NULL OR run_after <= {now})"
)


@dataclass(slots=True)
class BeginUndo:
    """The run of this claim has failed and undoes its completed steps; the claim goes on."""

    claim: Claim
    error: ErrorDict


def begin(session: Session, item: BeginUndo) -> None:
    """running → compensating under the same fence and lease. The run's row is locked and ours."""
    history.move(
        session, item.claim.job_id, event="compensating", frm=[Status.RUNNING], to=Status.COMPENSATING,
        fence=item.claim.fence, worker=item.claim.worker, attempt=item.claim.attempts + 1,
        sets="error = {json(error)}, attempts = attempts + 1, deadline_at = NULL, run_after = NULL",
        detail={"error": _brief(item.error), "counted": 1}, error=dump_error(item.error),
    )  # fmt: skip


def end(session: Session, claim: Claim, outcome: Compensated | CompensationFailed) -> None:
    """compensating → compensated or compensation_failed; the original error stays."""
    failed = isinstance(outcome, CompensationFailed)
    history.move(
        session, claim.job_id, event="compensation_failed" if failed else "compensated",
        frm=[Status.COMPENSATING], to=Status.COMPENSATION_FAILED if failed else Status.COMPENSATED,
        fence=claim.fence, worker=claim.worker,
        sets="finished_at = {now}, lease_expires_at = NULL, deadline_at = NULL, run_after = NULL",
        detail={"error": _brief(outcome.error)} if isinstance(outcome, CompensationFailed) else None,
    )  # fmt: skip


def let_go(session: Session, claim: Claim, outcome: Undoing) -> None:
    """Nobody holds the run until a compensation is tried again, or somebody takes over."""
    when = "NULL" if outcome.delay is None else "{after(delay)}"
    history.move(
        session, claim.job_id, event="handed_back", frm=[Status.COMPENSATING], to=Status.COMPENSATING,
        fence=claim.fence, worker=claim.worker, detail={"reason": outcome.reason, "counted": 0},
        sets=f"lease_expires_at = NULL, fence = fence + 1, run_after = {when}", delay=outcome.delay,
    )  # fmt: skip


def take(
    session: Session,
    codes: Iterable[tuple[str, str | None]],
    *,
    worker: UUID,
    limit: int,
    lease: float,
    queues: Sequence[str] | None = None,
    only: UUID | None = None,
) -> list[Claim]:
    """Take runs that nobody holds and that are to be undone, of code that is known here."""
    rows = session.rows(
        f"SELECT id, slug, version, queue_name FROM {{job}} WHERE {FREE} ORDER BY id LIMIT 1000 {{skip_locked}}"
    )
    known = set(codes)
    uuid = session.dialect.uuid
    wanted = [
        uuid(row[0])
        for row in rows
        if (row[1], row[2]) in known
        and (queues is None or row[3] in queues)
        and (only is None or uuid(row[0]) == only)
    ][:limit]
    claims = []
    for job_id in wanted:
        found = session.rows(
            "UPDATE {job} SET worker = %(worker)s, lease_expires_at = {after(lease)}, "
            "history_length = history_length + 1, fence = fence + 1 "
            f"WHERE id = %(id)s AND {FREE} RETURNING {RETURNED}",
            id=job_id, worker=worker, lease=lease,
        )  # fmt: skip
        for row in found:
            claim = claim_of(session, row, worker)
            claim.is_undoing = True
            history.add(
                session, claim.job_id, claim.order[3], event="claimed", frm=Status.COMPENSATING,
                to=Status.COMPENSATING, fence=claim.fence, worker=worker,
            )  # fmt: skip
            claims.append(claim)
    return with_steps(session, claims)


def seconds_to_next(session: Session) -> float | None:
    """How long until the next compensation is tried again; None if none waits."""
    row = session.one(
        "SELECT MIN(run_after), {now} FROM {job} WHERE status = 'compensating' AND lease_expires_at IS NULL"
    )
    if row is None or row[0] is None:
        return None
    first, present = session.dialect.time(row[0]), session.dialect.time(row[1])
    assert first is not None and present is not None
    return max((first - present).total_seconds(), 0.0)


def _brief(error: ErrorDict) -> dict[str, Any]:
    return {
        key: error.get(key) for key in ("type", "message", "code") if error.get(key) is not None
    }
