"""What follows the end of a job, whoever ended it.

Every transition to a final status calls :func:`ended` in its own transaction, after the status is
written: outcomes, commands, expiry, superseding, the crash limit. Only the completion of a plain task
does not: nothing can wait for it. What frees a permit is in :mod:`django_jobs.store.permits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from django_jobs.lifecycle import Kind
from django_jobs.store import units
from django_jobs.store.session import Session
from django_jobs.store.waking import wake

if TYPE_CHECKING:
    from django_jobs.store.claims import Claim


def ended(session: Session, job_ids: Iterable[UUID]) -> None:
    """These jobs have ended: see to all who wait for that."""
    listed = list(job_ids)
    if listed:
        _wake_parents(session, listed)
        units.failed(session, listed)


def claim_ended(session: Session, claim: Claim) -> None:
    """:func:`ended` for the job of a claim; one that nothing follows costs no statement."""
    if claim.kind == Kind.STEP:
        units.failed(session, [claim.job_id])
    elif claim.parent is not None or claim.is_run:
        ended(session, [claim.job_id])


def _wake_parents(session: Session, job_ids: list[UUID]) -> None:
    """Wake the runs in which a step waits for one of these jobs.

    The step was recorded with the insert of the child, so the child cannot end unseen.
    """
    rows = session.rows(
        "SELECT job_id FROM {taskstatus} WHERE child {among(ids)} AND status = 'sleeping'",
        ids=job_ids,
    )
    found = {session.dialect.uuid(row[0]) for row in rows}
    wake(session, sorted(run_id for run_id in found if run_id is not None))
