"""Background jobs and durable workflows in the project's own database.

The public names are those of ``__all__``; importing this module imports no models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_jobs.definitions.context import StepContext, TaskContext, WorkflowContext
from django_jobs.definitions.dag import DAG
from django_jobs.definitions.limits import Concurrency, RateLimit
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.schedule import Schedule
from django_jobs.definitions.task import task, workflow
from django_jobs.errors import (
    CancelJob,
    ConfigurationError,
    DuplicateJob,
    DuplicateSlug,
    DuplicateStepId,
    InvalidInput,
    InvalidOutput,
    InvalidTransition,
    JobCanceled,
    JobFailed,
    JobsError,
    LeaseLost,
    NonDeterministic,
    NonRetryable,
    NotSerializable,
    RetryLater,
    SignatureError,
    UnknownTask,
    UnsafeURL,
    WaitTimeout,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from django_jobs.models import Job
    from django_jobs.scheduling import TickReport
    from django_jobs.worker.report import RunReport

__version__ = "0.1.0"

__all__ = [
    "DAG",
    "CancelJob",
    "Concurrency",
    "ConfigurationError",
    "DuplicateJob",
    "DuplicateSlug",
    "DuplicateStepId",
    "InvalidInput",
    "InvalidOutput",
    "InvalidTransition",
    "JobCanceled",
    "JobFailed",
    "JobsError",
    "LeaseLost",
    "NonDeterministic",
    "NonRetryable",
    "NotSerializable",
    "RateLimit",
    "Retry",
    "RetryLater",
    "Schedule",
    "SignatureError",
    "StepContext",
    "TaskContext",
    "UnknownTask",
    "UnsafeURL",
    "WaitTimeout",
    "WorkflowContext",
    "enqueue",
    "get_job",
    "handle_schedules",
    "run_job",
    "run_jobs",
    "send_event",
    "task",
    "workflow",
]


def enqueue(task: Any, /, *, version: str | None = None, **input: Any) -> Job:
    """Enqueue by name: ``enqueue("send_welcome", user_id=1)``; None is the version registered last.

    Raises UnknownTask, InvalidInput, DuplicateJob; nothing is written then.
    """
    from django_jobs.enqueueing import enqueue as store

    return store(task, version=version, **input)


def get_job(job_id: UUID | str) -> Job:
    """The job of this id; Job.DoesNotExist if there is none."""
    from django_jobs.enqueueing import get_job as look

    return look(job_id)


def send_event(
    name: str, payload: Any = None, *, to: Job | UUID | str | None = None, key: str | None = None
) -> list[UUID]:
    """Send an event to the run ``to``, or to every run that waits for it now; the ids of those reached.

    A run keeps what is sent to it before it waits. A ``key`` counts once: a repetition returns the
    first answer and delivers nothing. Raises InvalidTransition for a run that has ended, InvalidInput.
    """
    from django_jobs.events import send_event as send

    return send(name, payload, to=to, key=key)


def run_jobs(
    limit: int = 10,
    queue_name: str = "default",
    all_queues: bool = False,
    where: Any = None,
    sequential: bool = False,
) -> RunReport:
    """Run one batch of due jobs in this process: at most ``limit``, each once."""
    from django_jobs.worker.local import run_jobs as run

    return run(limit, queue_name, all_queues, where, sequential)


def run_job(job_id: UUID | str) -> RunReport:
    """Run this one job in this process if it is due and nothing holds it back."""
    from django_jobs.worker.local import run_job as run

    return run(job_id)


def handle_schedules(now: datetime | None = None) -> TickReport:
    """Fire every slot of every schedule that is due; ``now`` is the database's time by default.

    Safe to call from any number of processes at once.
    """
    from django_jobs.scheduling import handle_schedules as handle

    return handle(now)
