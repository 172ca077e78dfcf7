"""After a failure: another try, or the end. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass

from django_jobs import conf
from django_jobs.definitions.retry import Retry
from django_jobs.errors import (
    DuplicateStepId,
    InvalidInput,
    InvalidOutput,
    JobFailed,
    NonDeterministic,
    NonRetryable,
)

#: Errors that another try cannot mend.
PERMANENT = (
    NonRetryable,
    InvalidOutput,
    InvalidInput,
    DuplicateStepId,
    NonDeterministic,
    JobFailed,
)
DEFAULT_WAIT = Retry()


@dataclass(frozen=True, slots=True)
class Budget:
    """The retries that hold for one step, or for a job of a single task.

    ``own`` is the call's settings over the task's; ``run`` the workflow's, None outside of one.
    """

    own: Retry | None
    run: Retry | None = None

    @property
    def step_extra(self) -> int:
        """T: extra tries of the step; call, task, workflow, setting, 0."""
        for level in (self.own, self.run, conf.get().retries):
            if level is not None and level.extra is not None:
                return level.extra
        return 0

    @property
    def run_extra(self) -> int | None:
        """W: extra passes of the run; None is unlimited."""
        return None if self.run is None else self.run.extra


def may_repeat(error: BaseException, *levels: Retry | None) -> bool:
    """Whether this error may be tried again at all."""
    if isinstance(error, PERMANENT) or not isinstance(error, Exception):
        return False
    return all(level is None or level.retries(error) for level in levels)


def wait(
    step: Retry | None, failures: int, run: Retry | None, passes: int, error: BaseException
) -> float | None:
    """Seconds until the next try: the longest wait a level proposes; None where one gives up."""
    proposed = [
        level.wait(count, error)
        for level, count in ((step, failures), (run, passes))
        if level is not None and level.proposes_wait
    ]
    if not proposed:
        fallback = conf.get().retries
        proposed = [
            (fallback if fallback and fallback.proposes_wait else DEFAULT_WAIT).wait(
                failures, error
            )
        ]
    if any(seconds is None for seconds in proposed):
        return None
    return max(seconds for seconds in proposed if seconds is not None)
