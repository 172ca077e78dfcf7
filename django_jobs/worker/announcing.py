"""What the outside is told of the engine's own writes: log lines of failures, and signals.

Signals are built only where somebody listens.
"""

from __future__ import annotations

import logging
from uuid import UUID

from django.dispatch import Signal

from django_jobs import signals
from django_jobs.lifecycle import Kind
from django_jobs.models import Job
from django_jobs.outcomes import (
    Canceled,
    Compensated,
    CompensationFailed,
    Completed,
    Failed,
    Outcome,
    Parked,
    Sleeping,
    TryAgain,
)
from django_jobs.store.claims import Claim

logger = logging.getLogger("django_jobs.worker")

#: How a failure is logged, with its error.
FAILURES: dict[type, str] = {
    Failed: "failed",
    Compensated: "failed and was undone",
    CompensationFailed: "could not be undone",
}
OUTCOME_SIGNALS: dict[type, Signal] = {
    Completed: signals.job_completed,
    Failed: signals.job_failed,
    TryAgain: signals.job_retrying,
    Canceled: signals.job_canceled,
    Sleeping: signals.job_sleeping,
    Parked: signals.job_paused,
    Compensated: signals.run_compensated,
    CompensationFailed: signals.run_compensation_failed,
}


WITH_ERROR = (
    signals.job_failed, signals.job_retrying, signals.run_compensated, signals.run_compensation_failed,
)  # fmt: skip


def started(alias: str, claim: Claim) -> None:
    """job_started, as the claim is committed and the handler about to run."""
    if signals.job_started.receivers and claim.kind != Kind.STEP:
        _send(alias, signals.job_started, claim.job_id)


def log(claim: Claim, outcome: Outcome) -> None:
    """One line where a job has failed; the traceback is stored with the job."""
    error = getattr(outcome, "error", None)
    if error is None or claim.kind == Kind.STEP:
        return
    kind = str(error.get("type") or "").rpartition(".")[2]
    said = f"{kind}: {error.get('message')}" if kind else error.get("message")
    if isinstance(outcome, TryAgain):
        logger.info("Job %s of %s will be tried again: %s", claim.job_id, claim.slug, said)
    elif type(outcome) in FAILURES:
        logger.warning(
            "Job %s of %s %s: %s", claim.job_id, claim.slug, FAILURES[type(outcome)], said
        )


def wanted(outcome: Outcome) -> bool:
    """Whether somebody listens to the signal of this outcome."""
    signal = OUTCOME_SIGNALS.get(type(outcome))
    return signal is not None and bool(signal.receivers)


def ended(alias: str, claim: Claim, outcome: Outcome) -> None:
    """The signal of an outcome that is stored now."""
    signal = OUTCOME_SIGNALS.get(type(outcome))
    if signal is None or not signal.receivers or claim.kind == Kind.STEP:
        return
    error = getattr(outcome, "error", None)
    details = {"error": error} if signal in WITH_ERROR else {}
    _send(alias, signal, claim.job_id, **details)


def undoing(alias: str, claim: Claim, outcome: Outcome) -> None:
    """A run has failed, and others undo it: that is said in place of its failure."""
    if signals.run_compensating.receivers:
        error = getattr(outcome, "error", None)
        _send(alias, signals.run_compensating, claim.job_id, error=error)


def _send(alias: str, signal: Signal, job_id: UUID, **details: object) -> None:
    job = Job.units.using(alias).filter(pk=job_id).first()
    if job is not None:
        signals.announce(signal, Job, job=job, **details)
