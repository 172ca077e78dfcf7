"""Every error of the package, one tree::

JobsError
├── ConfigurationError        a definition or a setting is wrong
│   ├── DuplicateSlug         two definitions claim one name
│   └── UnknownTask           no such task or workflow is registered here
├── InvalidInput              refused at the call; nothing was written
│   └── NotSerializable       a value that JSON cannot hold
├── InvalidOutput             a handler returned what its schema refuses
├── DuplicateJob              an equal job lives already
├── DuplicateStepId           one step id used twice in one pass
├── NonDeterministic          a replay asks another kind of step under a stored id
├── InvalidTransition         the command does not fit the job's status
├── LeaseLost                 the attempt no longer owns its job
├── JobFailed                 the job or step ended in failure
│   └── JobCanceled           … or was canceled
├── WaitTimeout               waiting ended before the job did
├── NonRetryable              raised by handlers: fail now
├── RetryLater                raised by handlers: come again, no attempt used
├── CancelJob                 raised by handlers: end as canceled
├── SignatureError            a signed request did not verify
└── UnsafeURL                 an outgoing request was refused
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

ErrorDict = dict[str, Any]


class JobsError(Exception):
    """Base of every error that django_jobs raises on purpose."""


class ConfigurationError(JobsError):
    """A definition or a setting is wrong; the text names the place and the remedy."""


class DuplicateSlug(ConfigurationError):
    """Two definitions claim the same slug, or the same (slug, version)."""


class UnknownTask(ConfigurationError):
    """No task or workflow of that name (and version) is registered in this process."""


class InvalidInput(JobsError, ValueError):
    """A value was refused at the boundary; nothing was written."""


class NotSerializable(InvalidInput):
    """A value cannot be stored as JSON; the text names the path to it."""


class InvalidOutput(JobsError, ValueError):
    """A handler returned a value that its output schema, or JSON, refuses. Permanent."""


class DuplicateJob(JobsError):
    """An equal job lives already; ``job`` is that one (or None where it cannot be read yet)."""

    def __init__(self, message: str, job: Any = None) -> None:
        super().__init__(message)
        self.job = job


class DuplicateStepId(JobsError):
    """The same step id was used twice in one pass of a workflow."""


class NonDeterministic(JobsError):
    """A replay asked for another kind of step under an id that is stored already."""


class InvalidTransition(JobsError):
    """The command does not fit the job's present status; nothing was changed."""

    def __init__(self, command: str, status: str, hint: str = "") -> None:
        super().__init__(f"Cannot {command} a job that is {status}.{' ' + hint if hint else ''}")
        self.command = command
        self.status = status


class LeaseLost(JobsError):
    """The attempt no longer owns its job, so nothing more of it is written."""

    def __init__(self, job_id: Any, fence: int) -> None:
        super().__init__(f"The lease on job {job_id} (fence {fence}) is lost.")
        self.job_id = job_id
        self.fence = fence


class JobFailed(JobsError):
    """A job or a step failed for good; ``error`` is its stored error."""

    def __init__(self, message: str, error: ErrorDict | None = None) -> None:
        super().__init__(message)
        self.error: ErrorDict = error or {}


class JobCanceled(JobFailed):
    """The awaited job was canceled; ``error`` holds the reason."""


class WaitTimeout(JobsError, TimeoutError):
    """Waiting for a job ended before the job did; the job itself is not touched."""


class NonRetryable(JobsError):
    """Raise it in a handler to fail now, whatever retries are left."""


class RetryLater(JobsError):
    """Raise it in a handler to run again after ``delay`` without using up an attempt."""

    def __init__(self, delay: float | timedelta = 1.0, reason: str = "") -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        super().__init__(reason or f"Run again in {seconds:g} s.")
        self.delay = max(seconds, 0.0)


class CancelJob(JobsError):
    """Raise it in a handler to end the job as canceled; ``on_failure`` is not called."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class SignatureError(JobsError):
    """A request is unsigned, badly signed, too old or a replay."""


class UnsafeURL(JobsError):
    """The guard refused an outgoing request. Permanent."""
