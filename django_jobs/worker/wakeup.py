"""Hints that there may be work. Polling alone is enough; these only make it quick."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db import connections

from django_jobs import conf
from django_jobs.store.jobs import CHANNEL
from django_jobs.store.pooling import hears, is_pooled

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger("django_jobs.worker")

#: Seconds between two looks at SQLite's counter of commits by other connections.
LOOK = 0.05
#: Seconds without a notification after which the link is tried.
PING = 30.0
#: Seconds after which a pooler that delivers nothing is tried again.
DEAF = 60.0


class Listener(threading.Thread):
    """LISTEN on a connection of its own; ``call`` is called for each burst of notifications."""

    def __init__(self, alias: str, call: Callable[[], None]) -> None:
        super().__init__(name="jobs-listen", daemon=True)
        self._alias = alias
        self._call = call
        self._stop_asked = threading.Event()
        #: Whether notifications arrive at present, so that polling may be rare.
        self.listening = False
        self._said_deaf = False

    def run(self) -> None:
        while not self._stop_asked.is_set():
            try:
                self._listen()
            except Exception as error:
                if self.listening:
                    logger.info(
                        "LISTEN ended (%s); polling until it is back.", type(error).__name__
                    )
                self.listening = False
                self._stop_asked.wait(1.0)

    def stop(self) -> None:
        self._stop_asked.set()

    def _listen(self) -> None:
        with self._connect() as link:
            if is_pooled(link) and not hears(link, self._connect):
                self._say_deaf()
                self._stop_asked.wait(DEAF)
                return
            link.execute(f"LISTEN {CHANNEL}")
            self.listening = True
            # What was announced before we listened is found by looking once.
            self._call()
            while not self._stop_asked.is_set():
                heard = False
                for _ in link.notifies(timeout=PING, stop_after=1):
                    heard = True
                if heard:
                    self._call()
                else:
                    link.execute("SELECT 1")

    def _connect(self) -> psycopg.Connection[Any]:
        """A connection beside Django's, to the address at which notifications are to be heard."""
        import psycopg

        dsn = conf.get().listen_dsn
        if dsn is not None:
            return psycopg.connect(dsn, autocommit=True)
        wanted = connections[self._alias].get_connection_params()
        for name in ("cursor_factory", "context", "prepare_threshold"):
            wanted.pop(name, None)
        return psycopg.connect(**wanted, autocommit=True)

    def _say_deaf(self) -> None:
        if not self._said_deaf:
            self._said_deaf = True
            logger.warning(
                "A pooler stands before PostgreSQL and delivers no notifications: new jobs are found by polling. Set "
                'DJANGO_JOBS["LISTEN_DSN"] to an address that leads to the server itself.'
            )


class CommitWatch(threading.Thread):
    """SQLite: notices commits of other connections by ``PRAGMA data_version``."""

    def __init__(self, alias: str, call: Callable[[], None]) -> None:
        super().__init__(name="jobs-watch", daemon=True)
        #: Whether commits are noticed at present, so that polling may be rare.
        self.listening = True
        self._alias = alias
        self._call = call
        self._stop_asked = threading.Event()

    def run(self) -> None:
        seen = None
        connection = connections[self._alias]
        try:
            while not self._stop_asked.wait(LOOK):
                connection.ensure_connection()
                [version] = connection.connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self._call()
        except Exception:
            logger.info("The watch on SQLite's commits ended; polling instead.", exc_info=True)
        finally:
            self.listening = False
            connections.close_all()

    def stop(self) -> None:
        self._stop_asked.set()


def watch(alias: str, call: Callable[[], None]) -> Listener | CommitWatch | None:
    """The watch that fits the database, started; None where polling is all there is."""
    vendor = connections[alias].vendor
    if not conf.get().notify:
        return None
    found: Listener | CommitWatch | None = None
    if vendor == "postgresql":
        found = Listener(alias, call)
    elif vendor == "sqlite":
        found = CommitWatch(alias, call)
    if found is not None:
        found.start()
    return found
