"""PostgreSQL 14 or newer, through psycopg 3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django_jobs.store.dialects.base import Dialect

#: SQLSTATE of deadlock, serialization failure, lock not available.
TRANSIENT = {"40P01", "40001", "55P03"}
#: SQLSTATE of a prepared statement that is gone, or whose tables have changed.
FORGOTTEN = {"26000", "0A000"}
#: SQLSTATE class 08 and the codes of a server that shuts down or restarts, or ends a session that idles.
LOST = {"57P01", "57P02", "57P03", "57P05", "25P03"}
#: SQLSTATE classes of no resources, wrong state of an object, operator intervention, system error;
#: a server that only reads, which takes over or gives way to another.
TROUBLE = ("53", "55", "57", "58", "25006")


class PostgreSQL(Dialect):
    vendor = "postgresql"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    lock_rows = "FOR NO KEY UPDATE"

    def after(self, now: str, seconds: str) -> str:
        return f"({now} + {seconds}::double precision * interval '1 second')"

    def moment(self, value: str) -> str:
        return f"{value}::timestamptz"

    def json(self, value: str) -> str:
        return f"{value}::jsonb"

    def text(self, column: str) -> str:
        return f"{column}::text"

    def json_with(self, column: str, key: str, value: str) -> str:
        return f"COALESCE({column}, jsonb_build_object()) || jsonb_build_object('{key}', {value})"

    def begin(self, time_limit: float, pause_limit: float) -> str:
        # One round trip: without parameters psycopg sends these statements together. Every
        # statement of the engine has its index; one that is planned while the tables are empty
        # must not go on reading whole tables when they have grown.
        limit, pause = int(time_limit * 1000), max(int(pause_limit * 1000), 1)
        return (
            f"BEGIN; SET LOCAL statement_timeout = {limit}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {pause}; SET LOCAL enable_seqscan = off"
        )

    def opening(self, time_limit: float) -> list[str]:
        limit = int(time_limit * 1000)
        local = f"set_config('statement_timeout', '{limit}', true), set_config('enable_seqscan', 'off', true)"
        return ["BEGIN", f"SELECT {local}"]

    def transaction_limits(self, seconds: float) -> list[str]:
        limit = max(int(seconds * 1000), 1)
        names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
        return [f"SET LOCAL {name} = {limit}" for name in names]

    def lock_name(self, session: Any, number: int) -> None:
        # Bound to the transaction, so it also holds behind a pooler.
        session.run("SELECT pg_advisory_xact_lock(%(number)s)", number=number)

    def lock_names(self, session: Any, numbers: Sequence[int]) -> None:
        if numbers:
            session.run(
                "SELECT pg_advisory_xact_lock(n) FROM (SELECT n FROM unnest(%(numbers)s::bigint[]) AS u(n) "
                "ORDER BY n) AS s",
                numbers=sorted(set(numbers)),
            )

    def is_transient(self, error: BaseException) -> bool:
        return _state(error) in TRANSIENT

    def is_forgotten(self, error: BaseException) -> bool:
        return _state(error) in FORGOTTEN

    def is_lost(self, error: BaseException) -> bool:
        state = _state(error)
        if state:
            return state in LOST or state.startswith("08")
        # Without a SQLSTATE the message came from the client library: the link itself broke.
        return any(
            type(link).__name__ in ("OperationalError", "InterfaceError") for link in _chain(error)
        )

    def is_trouble(self, error: BaseException) -> bool:
        return self.is_lost(error) or self.is_transient(error) or _state(error).startswith(TROUBLE)


def array_of(values: Iterable[str | int | None]) -> str:
    """The literal of an array. psycopg makes the same from a list, in Python, item by item."""
    return "{" + ",".join(["NULL" if one is None else f"{one}" for one in values]) + "}"


def text_array_of(values: Iterable[str | None]) -> str:
    """The literal of an array of any texts."""
    return array_of(None if one is None else _quoted(one) for one in values)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _chain(error: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__
    return links


def _state(error: BaseException) -> str:
    for link in _chain(error):
        state = getattr(link, "sqlstate", None)
        if state:
            return str(state)
    return ""
