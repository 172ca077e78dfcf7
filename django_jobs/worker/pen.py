"""The right to use the session of the database thread, which a run that is alone borrows.

A run that records step after step would wake that thread for each record, and be woken by it: two
hand-overs, for nothing where nobody else's records could be written along. So its own thread writes
while the other one sleeps. Whatever is not the ordinary case is left to the database thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from django_jobs.store.exchange import at_once
from django_jobs.store.record import Item
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer
from django_jobs.worker.desk import Desk, tell

logger = logging.getLogger("django_jobs.worker")


class Pen:
    """Held by the database thread unless it sleeps; see :meth:`write`."""

    def __init__(self, desk: Desk, is_free: Callable[[], bool]) -> None:
        self._desk = desk
        #: Whether a run may write by itself at present.
        self._is_free = is_free
        self._session: Session | None = None
        self._lock = threading.Lock()

    def lend(self, session: Session) -> None:
        """Let others use ``session`` from now on, one at a time. Called by its own thread."""
        # Django ties a connection to its thread; who holds the pen is the only one to touch it.
        session.connection.inc_thread_sharing()
        self._session = session
        self._desk.shortcut = self.write

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()

    def write(self, item: Item) -> Answer | None:
        """Write ``item`` and what lies on the desk in the calling thread; None where that is not to be.

        Then nothing has changed, or nothing is known to have: whoever writes it again finds out.
        """
        session = self._session
        if session is None or not self._is_free() or not self._lock.acquire(blocking=False):
            return None
        try:
            entries = self._desk.take()
            try:
                answers = at_once(session, [*(entry.item for entry in entries), item])
            except BaseException:
                self._desk.put_back(entries)
                raise
            if answers is None:
                self._desk.put_back(entries)
                return None
        except Exception as error:
            logger.debug("Left to the database thread after %s.", type(error).__name__)
            if session.dialect.is_lost(error):
                session.reconnect()
            return None
        finally:
            self._lock.release()
        for entry, answer in zip(entries, answers, strict=False):
            tell(entry, answer)
        return answers[-1]
