"""The clock that tests move."""

from __future__ import annotations

from datetime import datetime, timedelta

from django_jobs import clock as engine


class Clock:
    """The engine's clock: one per process, seen by all its threads, on every database.

    It governs due times, waits, schedules, pruning and leases. It stands still from the first
    :meth:`freeze` or :meth:`travel` until :meth:`reset`.
    """

    def freeze(self, moment: datetime) -> None:
        """Stop time at an aware ``moment``; a second call moves it. ValueError for a naive one."""
        engine.freeze(moment)

    def travel(self, step: timedelta) -> datetime:
        """Move time by ``step``, stopping it first if it still runs; return the new moment."""
        return engine.travel(step)

    def reset(self) -> None:
        """Return to real time."""
        engine.reset()

    def now(self) -> datetime:
        """The present moment of the engine, aware, in UTC."""
        return engine.now()


clock = Clock()
