"""A scheduler for ``celery beat`` that reads our schedules directly and needs no ticks by message."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from celery.beat import Scheduler

from django_jobs import clock, conf, scheduling
from django_jobs.celery.connection import connect
from django_jobs.celery.intervals import beat_schedule
from django_jobs.store import claims as claiming
from django_jobs.store import outbox, schedules
from django_jobs.store.outbox import CELERY
from django_jobs.store.session import Session, engine_alias
from django_jobs.worker import relay
from django_jobs.worker.sweep import sweep

logger = logging.getLogger("django_jobs.celery")

__all__ = ["JobsScheduler", "beat_schedule"]

#: Seconds between two looks: the longest pause, and the shortest.
LONGEST_PAUSE, SHORTEST_PAUSE = 2.0, 0.05


class JobsScheduler(Scheduler):
    """``celery -A proj beat -S django_jobs.celery:JobsScheduler``.

    It fires our schedules, publishes what is due and takes back what the dead left, and sleeps
    until the next slot. Entries of ``CELERY_BEAT_SCHEDULE`` are sent too. Any number of these may
    run: whoever comes second finds the work done.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._next_look = 0.0
        self._next_sweep = 0.0
        self._is_lost = False
        self._is_synchronised = False
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Celery's own entries, without the ticks that this scheduler does by itself."""
        connect()
        super().setup_schedule()
        for name in beat_schedule():
            self.schedule.pop(name, None)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One round; the seconds to sleep until the next."""
        pause = super().tick(*args, **kwargs)
        return min(LONGEST_PAUSE if pause is None else pause, self._look())

    def _look(self) -> float:
        left = self._next_look - clock.monotonic()
        if left > 0:
            return left
        session = Session(engine_alias())
        try:
            pause = self._look_after(session)
            self._is_lost = False
        except Exception as error:
            # Beat must outlive the database: whatever went wrong is tried again.
            if not self._is_lost:
                logger.warning(
                    "The jobs could not be looked after: %s: %s", type(error).__name__, error
                )
            self._is_lost = True
            session.reconnect()
            pause = LONGEST_PAUSE
        self._next_look = clock.monotonic() + pause
        return pause

    def _look_after(self, session: Session) -> float:
        """Do what is due; the seconds until something is due again, as far as it is known."""
        settings = conf.get()
        if clock.monotonic() >= self._next_sweep:
            self._next_sweep = clock.monotonic() + settings.sweep_interval
            sweep(session)
        slot = self._fire() if settings.schedules else None
        relay.relay(session)
        moments = [
            None if slot is None else (slot - schedules.now(session)).total_seconds(),
            claiming.seconds_to_next_due(session),
            outbox.seconds_to_next(session, [CELERY]),
            self._next_sweep - clock.monotonic(),
        ]
        first = min(moment for moment in moments if moment is not None)
        return min(max(first, SHORTEST_PAUSE), LONGEST_PAUSE)

    def _fire(self) -> datetime | None:
        """Make the jobs of the slots that are due; the next slot."""
        if self._is_synchronised:
            return scheduling.tick().next_slot
        report = scheduling.handle_schedules()
        self._is_synchronised = True
        return report.next_slot
