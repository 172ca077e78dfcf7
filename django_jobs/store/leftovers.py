"""What a handler leaves in its thread's connections, and how the next one is spared it.

A connection is kept for the next handler only if nothing is left of this one: no transaction, and no
setting of the session. Settings are not put back one by one, as nobody knows them all: a connection
on which something other than plain reading and writing was said is closed, and a new one comes with
the project's settings. Nothing is asked of the database for that: a wrapper around Django's cursor
sees the statements.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

T = TypeVar("T")

#: Statements that leave nothing in a session but an open transaction, which the driver tells of.
_PLAIN = re.compile(
    r"[\s(]*(?:SELECT|INSERT|UPDATE|DELETE|WITH|VALUES|MERGE|REPLACE|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|COMMIT"
    r"|START|EXPLAIN|SHOW|COPY)\b",
    re.IGNORECASE,
)
#: What changes a session from within a plain statement, or hides in a second one behind it.
_TELLTALE = re.compile(
    r";\s*[^\s;]|set_config|advisory_lock|get_lock|@\w+\s*:=|\bINTO\s+@|\bTEMP(?:ORARY)?\b|\bload_extension\b",
    re.IGNORECASE,
)
#: Settings that PostgreSQL reports without being asked; ``search_path`` since version 18.
_REPORTED = ("TimeZone", "search_path", "DateStyle", "IntervalStyle", "session_authorization")


def changes_session(sql: str) -> bool:
    """Whether ``sql`` may leave something in its session beyond its transaction."""
    return _PLAIN.match(sql) is None or _TELLTALE.search(sql) is not None


class Watch:
    """Knows whether the session of one connection is as it was when it was opened."""

    def __init__(self) -> None:
        self._changed = False
        self._reported: tuple[Any, ...] = ()
        self._wrappers: list[Any] = []

    def __call__(
        self, execute: Callable[..., T], sql: Any, params: Any, many: bool, context: dict[str, Any]
    ) -> T:
        if not self._changed:
            self._changed = not isinstance(sql, str) or changes_session(sql)
        return execute(sql, params, many, context)

    def begin(self, connection: BaseDatabaseWrapper) -> None:
        """Take the present state as the one to come back to."""
        self._changed = False
        self._reported = _reported(connection.connection)
        self._wrappers = list(connection.execute_wrappers)

    def is_unchanged(self, connection: BaseDatabaseWrapper) -> bool:
        return not self._changed and _reported(connection.connection) == self._reported

    def restore_wrappers(self, connection: BaseDatabaseWrapper) -> None:
        """Remove what a handler has left around the cursor."""
        if connection.execute_wrappers != self._wrappers:
            connection.execute_wrappers[:] = self._wrappers


def watch_connections() -> None:
    """From now on each new connection of this process is watched; call it once the project is loaded.

    What receivers of ``connection_created`` say on a new connection is part of its settings, so this
    one must come after theirs.
    """
    connection_created.connect(_begin, dispatch_uid="django_jobs.leftovers")


class _Opened(threading.local):
    """Whether this thread has a connection that was opened since."""

    any = False


_opened = _Opened()


def has_opened() -> bool:
    """Whether the calling thread may have an open connection, so that there is something to tidy."""
    return _opened.any


def tidy(*, close: bool = False) -> None:
    """Leave nothing in the calling thread's connections; ``close`` keeps none of them open."""
    _opened.any = False
    for connection in connections.all(initialized_only=True):
        watch = _watch_of(connection)
        if watch is not None:
            watch.restore_wrappers(connection)
        if connection.connection is None:
            continue
        if (
            watch is None
            or connection.in_atomic_block
            or not _is_at_rest(connection.connection)
            or not watch.is_unchanged(connection)
        ):
            _discard(connection)
        elif close:
            connection.close()
        else:
            connection.close_if_unusable_or_obsolete()
        if connection.connection is not None:
            _opened.any = True


def end_transactions() -> None:
    """Discard the calling thread's connections that a handler has left in a transaction."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and (
            connection.in_atomic_block or not _is_at_rest(connection.connection)
        ):
            _discard(connection)


def alone(function: Callable[[], T]) -> T:
    """Call ``function`` so that what it sets in the context ends with it.

    Django's active time zone and language are such things, and the precision of decimals.
    """
    return copy_context().run(function)


def _begin(sender: Any, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    _opened.any = True
    watch = _watch_of(connection)
    if watch is None:
        watch = Watch()
        connection.execute_wrappers.append(watch)
    watch.begin(connection)


def _watch_of(connection: BaseDatabaseWrapper) -> Watch | None:
    return next((one for one in connection.execute_wrappers if isinstance(one, Watch)), None)


def _discard(connection: BaseDatabaseWrapper) -> None:
    """Close a connection for good, whatever state it is in."""
    # Within its own atomic block Django would keep the closed connection in place.
    connection.in_atomic_block = connection.closed_in_transaction = False
    connection.run_on_commit = []
    # First the driver's own: a pool would give what it is handed back to the next one as it is.
    # Drivers raise for a connection that a handler has closed.
    with contextlib.suppress(Exception):
        connection.connection.close()
    with contextlib.suppress(Exception):
        connection.close()


def _reported(raw: Any) -> tuple[Any, ...]:
    """The settings that the driver knows of without asking."""
    status = getattr(getattr(raw, "info", None), "parameter_status", None)
    return () if status is None else tuple(map(status, _REPORTED))


def _is_at_rest(raw: Any) -> bool:
    """Whether a driver's connection is open and in no transaction, as far as the driver knows."""
    try:
        if getattr(raw, "closed", False):
            return False
        info = getattr(raw, "info", None)
        if info is not None and hasattr(info, "transaction_status"):
            return bool(info.transaction_status == 0)
        if hasattr(raw, "open"):
            return bool(raw.open) and getattr(raw, "server_status", 1) & 1 == 0
        # sqlite3 raises here when it is closed. mysqlclient does not tell, so its connection is not kept.
        return not raw.in_transaction
    except Exception:
        return False
