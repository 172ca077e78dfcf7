"""Taking back jobs whose holder is gone. Any process may do it, at any time."""

from __future__ import annotations

import logging
from uuid import UUID

from django_jobs import conf
from django_jobs.store import ageing, keys, leases, permits, rates
from django_jobs.store.leases import Expired
from django_jobs.store.session import Session

logger = logging.getLogger("django_jobs.worker")
PAGE = 100


def sweep(session: Session, *, only: UUID | None = None) -> int:
    """Take back every job with an expired lease, one transaction a job; return how many."""
    settings = conf.get()
    if not settings.sweep:
        return 0
    taken = 0
    while page := leases.expired(session, limit=PAGE, only=only):
        moved = sum(_take_back(session, job, settings.crash_limit) for job in page)
        taken += moved
        if not moved or len(page) < PAGE:
            break
    if only is None:
        session.committed(keys.expire)
        session.committed(permits.clear_dead)
        session.committed(permits.let_in_where_free)
        session.committed(rates.look_after)
        if settings.ageing is not None:
            step = settings.ageing
            session.committed(lambda s: ageing.age(s, step))
    return taken


def _take_back(session: Session, job: Expired, crash_limit: int) -> int:
    message = f"worker {job.worker} stopped renewing its lease"
    try:
        outcome = session.committed(
            lambda s: leases.take_back(s, job, message=message, crash_limit=crash_limit)
        )
    except Exception:
        # One bad row must not keep the others from recovery.
        logger.exception("Job %s could not be taken back.", job.job_id)
        return 0
    if outcome is None:
        return 0
    logger.warning("Job %s: %s; it is %s now.", job.job_id, message, outcome)
    return 1
