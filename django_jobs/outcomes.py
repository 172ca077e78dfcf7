"""How an attempt can end: a closed set of values, decided first and recorded later."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django_jobs.errors import ErrorDict


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned; ``output`` is JSON text, None for nothing."""

    output: str | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class TryAgain:
    """A try failed; another follows ``delay`` seconds later.

    ``of_steps`` says that steps of a graph wait for that, each with its own moment in its record.
    """

    error: ErrorDict
    delay: float
    cause: BaseException | None = None
    of_steps: bool = False


@dataclass(frozen=True, slots=True)
class Later:
    """Run again after ``delay`` seconds; no attempt is used up."""

    delay: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """Failed for good. ``counted`` is False where no try of the handler ended (a corrupt row)."""

    error: ErrorDict
    cause: BaseException | None = None
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Canceled:
    """The handler raised CancelJob."""

    error: ErrorDict


@dataclass(frozen=True, slots=True)
class Sleeping:
    """A run waits until ``wake_at``, or in its steps of these ``keys``, each with an end of its own.

    The driver of a graph says what it has ``seen``: how many steps had ended, and how many waited
    for their next try. ``busy`` says that units of the run are under way.
    """

    wake_at: datetime | None = None
    keys: frozenset[str] = frozenset()
    seen: tuple[int, int] | None = None
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Parked:
    """The engine paused a run, with the reason."""

    error: ErrorDict


@dataclass(frozen=True, slots=True)
class HandedBack:
    """Not run, or not to its end, by no fault of the job; nothing is counted."""

    reason: str = "handed back"


@dataclass(frozen=True, slots=True)
class Compensated:
    """Every completed step of a run is undone; ``error`` is why, and ``cause`` what it failed of."""

    error: ErrorDict
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class CompensationFailed:
    """A compensation failed for good; ``error`` is that of the compensation, ``cause`` what the run failed of."""

    error: ErrorDict
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Undoing:
    """A run that is being undone is let go; a compensation is tried again after ``delay`` seconds."""

    delay: float | None = None
    reason: str = "waits for the next try of a compensation"


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease is gone: nothing at all is written."""

    detail: dict[str, Any] = field(default_factory=dict)


Outcome = (
    Completed | TryAgain | Later | Failed | Canceled | Sleeping | Parked | HandedBack | Compensated | CompensationFailed
    | Undoing | Lost
)  # fmt: skip
