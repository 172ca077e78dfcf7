"""After a failure: another try, or the end. Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django_jobs import conf
from django_jobs.definitions.retry import PERMANENT, Retry
from django_jobs.errors import ConfigurationError, JobFailed, NonDeterministic, UnknownTask


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
    def judges(self) -> list[Retry]:
        """The levels that may refuse to repeat an error: the setting only where it gives T."""
        levels = [level for level in (self.own, self.run) if level is not None]
        setting = conf.get().retries
        if setting is not None and all(level.extra is None for level in levels):
            levels.append(setting)
        return levels


def may_repeat(error: BaseException, levels: Sequence[Retry | None]) -> bool:
    """Whether this error may be tried again at all."""
    if isinstance(error, (*PERMANENT, NonDeterministic)) or not isinstance(error, Exception):
        return False
    if is_step_failure(error):
        return False
    return all(level is None or level.retries(error) for level in levels)


def is_misuse(error: BaseException) -> bool:
    """Whether a step's own code is written wrongly, so that another try cannot mend it."""
    return isinstance(error, ConfigurationError) and not isinstance(error, UnknownTask)


def mark_step_failure(error: JobFailed, path: str) -> JobFailed:
    """Note on the exception which step it stands for; JobFailed of other jobs has no such note."""
    error.step_id = path  # type: ignore[attr-defined]
    return error


def is_step_failure(error: BaseException) -> bool:
    return isinstance(error, JobFailed) and failed_step(error) is not None


def failed_step(error: BaseException) -> str | None:
    """The path of the step whose final failure ``error`` reports."""
    return getattr(error, "step_id", None) if isinstance(error, JobFailed) else None


def wait(levels: Sequence[tuple[Retry | None, int]], error: BaseException) -> float | None:
    """Seconds until the next try: the longest wait a level proposes; None where one gives up.

    ``levels`` holds each level with the number of failures it counts, the step's own first. Where
    none proposes a wait the default one is used, with what else they say of waits.
    """
    known = [(level, count) for level, count in levels if level is not None]
    proposed = [level.wait(count, error) for level, count in known if level.proposes_wait]
    if not proposed:
        merged = conf.get().retries or Retry()
        for level, _ in reversed(known):
            merged = level.over(merged)
        proposed = [merged.wait(levels[0][1] or 1, error)]
    if any(seconds is None for seconds in proposed):
        return None
    return max(seconds for seconds in proposed if seconds is not None)


def timed_out(what: str, limit: float) -> TimeoutError:
    """The error of a limit of ours; a TimeoutError of a handler's own is an error like others."""
    error = TimeoutError(f"The {what} timed out after {limit:g} s.")
    error.is_limit = True  # type: ignore[attr-defined]
    return error


def is_timed_out(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) and getattr(error, "is_limit", False)


def mark_condition(error: BaseException) -> None:
    """Note that a step's condition or input raised it, before the step's own function was called."""
    error.is_condition = True  # type: ignore[attr-defined]


def is_condition(error: BaseException) -> bool:
    return getattr(error, "is_condition", False)
