"""How many may run, and how often they may start."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from django_jobs.errors import ConfigurationError

KeyFunction = Callable[..., Any]
_RATE = re.compile(r"^\s*(\d+)\s*/\s*(\d*)\s*(s|m|h|d)\s*$")
_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most ``limit`` jobs of one key run at the same time, over all queues and slugs.

    ``key`` gets the validated input and returns the key; a falsy one means no key.
    ``exclusive=False`` makes the key serve ``supersedes`` only. ``on_conflict`` says what an
    enqueue does while the key is full: wait, be dropped, or raise DuplicateJob.
    """

    key: KeyFunction | str
    exclusive: bool = True
    supersedes: bool = False
    limit: int = 1
    on_conflict: Literal["wait", "drop", "raise"] = "wait"
    hold: bool = False

    def __post_init__(self) -> None:
        if not (callable(self.key) or isinstance(self.key, str)):
            raise ConfigurationError(
                "Concurrency(key=…) takes a function of the input or a string."
            )
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1:
            raise ConfigurationError("Concurrency(limit=…) must be a whole number from 1.")
        if self.on_conflict not in ("wait", "drop", "raise"):
            raise ConfigurationError("Concurrency(on_conflict=…) is 'wait', 'drop' or 'raise'.")

    @classmethod
    def of(cls, value: Any) -> Concurrency | None:
        """A bare key function becomes an exclusive key of limit 1."""
        if value is None or isinstance(value, cls):
            return value
        return cls(key=value)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most so many starts in every sliding window: ``RateLimit("100/m")``; units s, m, h, d."""

    rate: str
    key: KeyFunction | str | None = None

    def __post_init__(self) -> None:
        if not _RATE.match(self.rate) or self.count < 1:
            raise ConfigurationError(
                f"RateLimit({self.rate!r}) is not understood. Write starts per window, such as '100/m' or '5/10s'."
            )

    @property
    def count(self) -> int:
        match = _RATE.match(self.rate)
        return int(match[1]) if match else 0

    @property
    def window(self) -> float:
        """Seconds."""
        match = _RATE.match(self.rate)
        return float(int(match[2] or 1) * _UNIT[match[3]]) if match else 0.0
