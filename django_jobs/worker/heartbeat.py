"""Renewing the leases of what is in hand, and hearing what became of it meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

from django_jobs import clock
from django_jobs.lifecycle import Status
from django_jobs.store import leases
from django_jobs.store.claims import Claim
from django_jobs.store.leases import Standing
from django_jobs.store.session import Session

logger = logging.getLogger("django_jobs.worker")

#: Part of a lease for which it is trusted after its renewal was sent.
TRUSTED = 0.9


def renew(
    session: Session,
    claims: Sequence[Claim],
    lease: float,
    *,
    is_in_hand: Callable[[Claim], bool],
    interrupt: Callable[[Claim], None],
) -> None:
    """Renew leases and permits of ``claims`` and note on each what is known of its job now.

    One that is ours no more is revoked, and ``interrupt`` is told once. Its permit is renewed all
    the same, under the fence it was taken with: the handler may still run.
    """
    if not claims:
        return
    sent = clock.monotonic()

    def work(s: Session) -> tuple[dict[UUID, str], dict[UUID, Standing]]:
        ours = leases.renew(s, claims, lease, patient=False)
        others = [claim.job_id for claim in claims if claim.job_id not in ours]
        return ours, leases.standing(s, others)

    ours, others = session.committed(work)
    for claim in claims:
        if claim.job_id in ours:
            claim.deadline = sent + lease * TRUSTED
            claim.hear(ours[claim.job_id])
            continue
        known = others.get(claim.job_id)
        if known and known.fence == claim.fence and not (claim.held and known.expired):
            continue  # another transaction has locked the row; the next heartbeat tries again
        if is_in_hand(claim):
            canceled = known is not None and known.status == Status.CANCELED
            claim.revoked = claim.revoked or ("canceled" if canceled else "lease")
            interrupt(claim)


def say_lost(claim: Claim) -> None:
    """Say why nothing more of a claim is written: a cancel is nobody's fault."""
    if claim.revoked == "canceled":
        logger.info("Job %s was canceled; its handler has ended.", claim.job_id)
    else:
        logger.warning("Job %s: the lease was lost; its result is not written.", claim.job_id)
