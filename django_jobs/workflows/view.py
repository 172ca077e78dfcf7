"""What every step context sees of its run, read when it is asked for."""

from __future__ import annotations

from typing import Any

from django_jobs.errors import ErrorDict
from django_jobs.workflows.attempt import Attempt


class RunView:
    """The part of a :class:`~django_jobs.definitions.context.StepView` that asks the driver alone."""

    def __init__(self, driver: Attempt, error: ErrorDict | None = None) -> None:
        self._driver = driver
        self._error = error

    @property
    def log(self) -> Any:
        return self._driver.log

    @property
    def job(self) -> Any:
        return self._driver.job

    @property
    def input(self) -> dict[str, Any]:
        return self._driver.input

    @property
    def error(self) -> dict[str, Any] | None:
        return self._error

    @property
    def cancel_requested(self) -> bool:
        return self._driver.cancel_requested

    def progress(self, fraction: float, note: str) -> None:
        self._driver.progress(fraction, note)

    def heartbeat(self) -> None:
        self._driver.heartbeat()
