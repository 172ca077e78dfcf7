"""Sending what the outbox promises. Any process that can send may do it, at any time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from django.db import connections

from django_jobs import jsonvalues
from django_jobs.store import outbox
from django_jobs.store.outbox import Delivery, Message
from django_jobs.store.session import Session

logger = logging.getLogger("django_jobs.worker")

#: Sends messages of one kind, within :data:`LEASE` seconds, and says what became of each.
Sender = Callable[[Session, Sequence[Message]], Sequence[Delivery]]
#: Promises what should have been promised and is not; returns how many messages it wrote.
Finder = Callable[[Session], int]
_senders: dict[str, Sender] = {}
_finders: dict[str, Finder] = {}
#: Messages that are taken at a time, and the seconds for which they are the taker's.
PAGE, LEASE = 100, 60.0
#: Seconds until the second try after an error, doubled by each, and the longest wait.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


def register(kind: str, sender: Sender, finder: Finder | None = None) -> None:
    """Let this process send messages of ``kind``."""
    _senders[kind] = sender
    if finder is not None:
        _finders[kind] = finder


def unregister(kind: str) -> None:
    _senders.pop(kind, None)
    _finders.pop(kind, None)


def kinds() -> list[str]:
    """The kinds of messages that this process can send."""
    return list(_senders)


def relay(session: Session) -> int:
    """Send everything that is due, and that this process can send; return how many were sent or given up."""
    for kind, finder in list(_finders.items()):
        try:
            finder(session)
        except Exception as error:
            if session.dialect.is_lost(error):
                raise
            logger.exception("What is missing in the outbox (%s) could not be found.", kind)
    return sum(_relay(session, kind, sender) for kind, sender in list(_senders.items()))


def _relay(session: Session, kind: str, sender: Sender) -> int:
    done = 0
    while batch := session.committed(lambda s: outbox.take(s, [kind], limit=PAGE, lease=LEASE)):
        deliveries = _sent(session, sender, batch)
        session.committed(lambda s: outbox.settle(s, deliveries))  # noqa: B023 (run at once)
        failed = sum(one.error is not None for one in deliveries)
        done += len(batch) - failed
        if failed or len(batch) < PAGE:
            break
    return done


def _sent(session: Session, sender: Sender, batch: list[Message]) -> Sequence[Delivery]:
    try:
        return sender(session, batch)
    except Exception as error:
        if session.dialect.is_lost(error):
            raise
        # A sender that fails as a whole must not lose what it was given.
        logger.exception("Messages of the outbox (%s) could not be sent.", batch[0].kind)
        described = jsonvalues.describe_error(error)
        return [Delivery(one, "again", wait(one.tries), described) for one in batch]


def wait(tries: int) -> float:
    """Seconds until the next try after an error, where ``tries`` were made before this one."""
    return min(FIRST_WAIT * 2.0 ** min(tries, 10), LONGEST_WAIT)


class Relay(threading.Thread):
    """Sends from a thread with a connection of its own: a receiver that hangs holds up nobody's jobs."""

    def __init__(self, alias: str) -> None:
        super().__init__(name="jobs-relay", daemon=True)
        self._alias = alias
        self._call = threading.Event()
        self._over = threading.Event()

    def look(self) -> None:
        """There may be something to send."""
        self._call.set()

    def stop(self) -> None:
        self._over.set()
        self._call.set()

    def run(self) -> None:
        try:
            while True:
                self._call.wait()
                self._call.clear()
                if self._over.is_set():
                    return
                try:
                    relay(Session(self._alias))
                except Exception as error:
                    logger.debug("The outbox could not be read: %s.", type(error).__name__)
                    connections[self._alias].close()
        finally:
            connections.close_all()


def start(alias: str) -> Relay | None:
    """A relay, started; None where this process can send nothing."""
    if not _senders:
        return None
    thread = Relay(alias)
    thread.start()
    return thread
