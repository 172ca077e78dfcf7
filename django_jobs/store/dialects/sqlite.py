"""SQLite 3.35 or newer: one writer at a time, the compare-and-set alone decides."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django_jobs.store.dialects.base import Dialect

#: Disk full or faulty, not writable, no memory, a lock that was waited for too long.
TROUBLE = (
    "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_NOMEM",
    "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_INTERRUPT", "SQLITE_PROTOCOL",
)  # fmt: skip
_PARAMETER = re.compile(r"%\((\w+)\)s")


class SQLite(Dialect):
    vendor = "sqlite"

    def style(self, sql: str) -> str:
        return _PARAMETER.sub(r":\1", sql)

    def encode(self, value: Any) -> Any:
        if isinstance(value, UUID):
            return value.hex
        if isinstance(value, datetime):
            # As Django stores datetimes here: naive UTC text, so that text order is time order.
            return str(value.astimezone(UTC).replace(tzinfo=None))
        if isinstance(value, list):
            return json.dumps([self.encode(item) for item in value])
        return value

    def among(self, value: str) -> str:
        return f"IN (SELECT value FROM json_each({value}))"

    def begin(self, time_limit: float, pause_limit: float) -> str:
        # A read that becomes a write fails at once with BUSY_SNAPSHOT, whatever the busy timeout.
        return "BEGIN IMMEDIATE"

    def write_first(self, session: Any) -> None:
        # In a deferred transaction only the first statement waits for another writer.
        connection = session.connection
        if not connection.in_atomic_block:
            return
        if (connection.transaction_mode or "DEFERRED").upper() == "DEFERRED":
            self.lock_name(session, 0)

    def lock_name(self, session: Any, number: int) -> None:
        # Any write takes the one write lock; what is read afterwards stays true until the commit.
        session.run("UPDATE {queue} SET paused = paused WHERE id < 0")

    def lock_names(self, session: Any, numbers: Sequence[int]) -> None:
        if numbers:
            self.lock_name(session, 0)

    def is_transient(self, error: BaseException) -> bool:
        return "locked" in str(error) or "busy" in str(error)

    def is_trouble(self, error: BaseException) -> bool:
        return self.is_transient(error) or _name(error).startswith(TROUBLE)


def _name(error: BaseException | None) -> str:
    """SQLite's own name of an error, such as SQLITE_FULL."""
    while error is not None:
        name = getattr(error, "sqlite_errorname", None)
        if name:
            return str(name)
        error = error.__cause__
    return ""
