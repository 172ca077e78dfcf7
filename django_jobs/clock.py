"""The one door through which time enters.

In production the time that decides anything (leases, due times, waits) is the database's;
:func:`sql_now` gives the expression for it. While a test has frozen the clock, the frozen
moment is bound as a value instead, on every database alike.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

_lock = threading.Lock()
_frozen: datetime | None = None


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return _frozen or datetime.now(UTC)


def is_frozen() -> bool:
    return _frozen is not None


def monotonic() -> float:
    """Seconds of a clock that never steps back; unmoved by :func:`freeze`."""
    return time.monotonic()


def perf() -> float:
    """High-resolution seconds for measuring how long something took."""
    return time.perf_counter()


def real_milliseconds() -> float:
    """Milliseconds since 1970 of the real clock, for ids that must rise even while time stands still."""
    return time.time_ns() / 1e6


def freeze(moment: datetime) -> None:
    """Stop time at an aware ``moment`` for every thread of this process."""
    global _frozen
    if moment.tzinfo is None:
        raise ValueError(f"clock.freeze() needs an aware datetime, got the naive {moment!r}.")
    with _lock:
        _frozen = moment.astimezone(UTC)


def travel(step: timedelta) -> datetime:
    """Move the clock by ``step``, freezing it first if it still runs; return the new moment."""
    global _frozen
    with _lock:
        _frozen = now() + step
        return _frozen


def reset() -> None:
    """Return to real time."""
    global _frozen
    with _lock:
        _frozen = None


def sql_now(vendor: str) -> tuple[str, datetime | None]:
    """The SQL for "now", and the value to bind as ``now`` where the expression is a parameter.

    SQLite has one clock for all: this module's. PostgreSQL's ``clock_timestamp()`` is the true
    moment, not the start of the transaction.
    """
    if _frozen is not None or vendor == "sqlite":
        return "%(now)s", now()
    if vendor == "postgresql":
        return "clock_timestamp()", None
    return "UTC_TIMESTAMP(6)", None
