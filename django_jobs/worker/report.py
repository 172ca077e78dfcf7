"""What a batch of jobs came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from django_jobs.outcomes import (
    Canceled,
    Compensated,
    CompensationFailed,
    Completed,
    Failed,
    Outcome,
    TryAgain,
)


@dataclass(frozen=True, slots=True)
class RunReport:
    """Counts of the jobs a call took, by how their try ended, and of what is left.

    ``waiting`` jobs are not due yet, ``blocked`` ones are due but held back by a key, a limit, a
    pause or missing code; ``next_due`` is when the first waiting one becomes due.
    """

    completed: int = 0
    failed: int = 0
    retried: int = 0
    canceled: int = 0
    waiting: int = 0
    blocked: int = 0
    next_due: datetime | None = None

    def __add__(self, other: RunReport) -> RunReport:
        """The counts of both; what is left is what the later one saw."""
        return RunReport(
            self.completed + other.completed,
            self.failed + other.failed,
            self.retried + other.retried,
            self.canceled + other.canceled,
            other.waiting,
            other.blocked,
            other.next_due,
        )

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.retried + self.canceled

    def as_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["next_due"] = self.next_due.isoformat() if self.next_due else None
        return values


NAMES: dict[type[Any], str] = {
    Completed: "completed", Failed: "failed", TryAgain: "retried", Canceled: "canceled",
    Compensated: "failed", CompensationFailed: "failed",
}  # fmt: skip


def count(outcomes: list[Outcome]) -> RunReport:
    """The report of these outcomes; parked and handed back passes count as nothing."""
    return report_of(Counter(type(outcome) for outcome in outcomes))


def report_of(counts: Mapping[type[Any], int]) -> RunReport:
    """The report of so many outcomes of each kind."""
    named: Any = dict.fromkeys(NAMES.values(), 0)
    for kind, name in NAMES.items():
        named[name] += counts.get(kind, 0)
    return RunReport(**named)
