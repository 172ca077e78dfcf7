"""The duty of a worker process that ticks schedules."""

from __future__ import annotations

import logging
import threading
from datetime import datetime

from django.db import connections

from django_jobs import clock, ids, scheduling

logger = logging.getLogger("django_jobs.worker")

#: Seconds between two looks at the code's schedules and at all rows.
FULL_LOOK = 60.0
#: Seconds until the next slot from which on the connection is given up meanwhile.
WORTH_KEEPING = 5.0
#: Seconds before another try after an error.
AFTER_ERROR = 1.0


class Timetable(threading.Thread):
    """Ticks in a thread of its own, with its own connection: it runs the input functions of users.

    It sleeps until the next slot. The pulse of the process tells it of slots that others have
    brought forward, so that it costs an idle worker next to no statement.
    """

    def __init__(self, alias: str) -> None:
        super().__init__(name="jobs-schedules", daemon=True)
        self._alias = alias
        self._wake = threading.Event()
        self._over = False
        #: Monotonic moment of the next look.
        self._next_look = 0.0
        #: The earliest slot of all that led to a look, and was none of ours.
        self._foreign: datetime | None = None

    def run(self) -> None:
        next_full = 0.0
        try:
            while not self._over:
                self._wake.clear()
                if is_full := clock.monotonic() >= next_full:
                    next_full = clock.monotonic() + FULL_LOOK + ids.jitter(FULL_LOOK / 10)
                pause = self.look(full=is_full)
                self._next_look = min(clock.monotonic() + pause, next_full)
                self._wake.wait(max(self._next_look - clock.monotonic(), 0.0))
        finally:
            connections.close_all()

    def run_once(self) -> None:
        """Tick what is due now, and return when that is done."""
        once = threading.Thread(target=self.look, kwargs={"full": True}, name=self.name)
        once.start()
        once.join()

    def look(self, *, full: bool) -> float:
        """Tick what is due; seconds until the next look."""
        pause = AFTER_ERROR
        try:
            handle = scheduling.handle_schedules if full else scheduling.tick
            report = handle(database=self._alias)
            if report.due_in is None:
                pause = FULL_LOOK
            elif report.due_in > 0:
                pause = report.due_in
            elif not report.errored:
                pause = 0.0  # it became due meanwhile
            self._foreign = report.first_slot if report.first_slot != report.next_slot else None
        except Exception as error:
            # The database may be away; whatever it is, the next slot must have its chance.
            logger.warning(
                "Schedules could not be ticked (%s); trying again.", type(error).__name__
            )
            logger.debug("Schedules could not be ticked.", exc_info=True)
        finally:
            if pause >= WORTH_KEEPING or self._over:
                connections.close_all()
        return pause

    def tell(self, slot: datetime | None, slot_in: float | None) -> None:
        """The earliest slot of all schedules, and in how many seconds it is."""
        if slot is None or slot_in is None or slot == self._foreign:
            return
        if clock.monotonic() + slot_in < self._next_look:
            self._next_look = clock.monotonic() + max(slot_in, 0.0)
            self._wake.set()

    def stop(self) -> None:
        self._over = True
        self._wake.set()
