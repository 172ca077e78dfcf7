"""What every database shares, and the places where they differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django_jobs import clock

_TOKEN = re.compile(r"\{(\w+)(?:\(([\w.]+)\))?\}")
TABLES = (
    "job taskstatus attempt logline historyentry event task queue worker permit ratestart ratewait idempotencykey "
    "schedule tick outboxmessage seensignature callback keylock broadcast"
).split()


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL ready for the driver; ``delays`` are the parameters that also appear as moments."""

    sql: str
    bound_now: bool
    delays: tuple[str, ...]


class Dialect:
    """SQL fragments and value conversions of one database.

    Statements are written once with tokens: ``{job}`` is a table, ``{now}`` the moment,
    ``{after(delay)}`` the moment plus the bound seconds ``delay``, ``{json(x)}`` a bound JSON text,
    ``{text(column)}`` a JSON column read as text, ``{among(ids)}`` the comparison with a bound list,
    ``{index(claim)}`` the index to read where the database has to be told, ``{skip_locked}`` the
    locking clause.
    """

    vendor = ""
    skip_locked = ""
    lock_rows = ""
    has_returning = True
    insert_ignore = "INSERT INTO"
    ignore_conflict = "ON CONFLICT DO NOTHING"

    def compile(self, template: str) -> Statement:
        """``template`` with its tokens replaced, for the present state of the clock."""
        return _compile(self, template, clock.sql_now(self.vendor)[1] is not None)

    def token(self, name: str, argument: str | None, bound_now: bool) -> str:
        now = "%(now)s" if bound_now else clock.sql_now(self.vendor)[0]
        if name in TABLES:
            return f"django_jobs_{name}"
        match name:
            case "now":
                return now
            case "after":
                return f"%(after_{argument})s" if bound_now else self.after(now, f"%({argument})s")
            case "moment":
                return self.moment(f"%({argument})s")
            case "json":
                return self.json(f"%({argument})s")
            case "text":
                return self.text(argument or "")
            case "among":
                return self.among(f"%({argument})s")
            case "index":
                return self.index(argument or "")
            case "skip_locked" | "lock_rows" | "insert_ignore" | "ignore_conflict":
                return str(getattr(self, name))
        raise KeyError(f"Unknown token {{{name}}}.")

    def params(self, statement: Statement, params: Mapping[str, Any]) -> dict[str, Any]:
        """``params`` as the driver takes them, with the moments that are bound as values."""
        bound = {name: self.encode(value) for name, value in params.items()}
        if statement.bound_now:
            moment = clock.now()
            bound["now"] = self.encode(moment)
            for name in statement.delays:
                delay = params[name]
                bound[f"after_{name}"] = (
                    None if delay is None else self.encode(moment + timedelta(seconds=delay))
                )
        return bound

    def after(self, now: str, seconds: str) -> str:
        """The SQL for ``seconds`` after ``now``."""
        return f"{now} + {seconds}"

    def moment(self, value: str) -> str:
        """A bound datetime where its type must be known."""
        return value

    def json(self, value: str) -> str:
        return value

    def text(self, column: str) -> str:
        return column

    def among(self, value: str) -> str:
        """What follows a column to compare it with each of a bound list."""
        return f"= ANY ({value})"

    def index(self, name: str) -> str:
        """What follows a table so that the index ``django_jobs_by_<name>`` is read."""
        return ""

    def json_with(self, column: str, key: str, value: str) -> str:
        """A JSON object column (NULL = empty) with ``key`` set to the SQL ``value``."""
        return f"json_set(COALESCE({column}, json_object()), '$.{key}', {value})"

    def encode(self, value: Any) -> Any:
        return value

    def uuid(self, value: Any) -> UUID | None:
        """A UUID column as read."""
        return value if value is None or isinstance(value, UUID) else UUID(value)

    def time(self, value: Any) -> datetime | None:
        """A datetime column as read: aware."""
        if value is None:
            return None
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value

    def style(self, sql: str) -> str:
        """``sql`` in the driver's own style of parameters; written in ``%(name)s``."""
        return sql

    def begin(self, time_limit: float, pause_limit: float) -> str:
        """The statement that opens an engine transaction.

        Its statements may take ``time_limit`` seconds, a pause between two of them ``pause_limit``.
        """
        return "BEGIN"

    def opening(self, time_limit: float) -> list[str]:
        """The same as single statements, for several in one round trip: there are no pauses."""
        return ["BEGIN"]

    def own_connection(self, connection: Any, pause_limit: float) -> list[str]:
        """What is said once on a connection that only the engine uses, where ``begin`` cannot say it."""
        return []

    def transaction_limits(self, seconds: float) -> list[str]:
        """Statements that bound the open transaction; see :meth:`transaction_limits_end`."""
        return []

    def transaction_limits_end(self) -> list[str]:
        """Statements that lift :meth:`transaction_limits` where they outlast the transaction."""
        return []

    def execute(self, session: Any, template: str, params: Mapping[str, Any]) -> Any:
        """Run a statement of the engine; a cursor. For a database without RETURNING."""
        return session.execute(template, params)

    def write_first(self, session: Any) -> None:
        """Begin a transaction of Django's, into which the engine is going to write, by a write."""

    def lock_name(self, session: Any, number: int) -> None:
        """Let one transaction at a time pass for ``number``, until its end."""

    def lock_names(self, session: Any, numbers: Sequence[int]) -> None:
        """Let one transaction at a time pass for each of ``numbers``, in an order that all keep."""
        for number in sorted(set(numbers)):
            self.lock_name(session, number)

    def insert_many(self, session: Any, sql: str, items: list[dict[str, Any]]) -> None:
        """Insert many rows of one shape."""
        session.many(sql, items)

    def is_transient(self, error: BaseException) -> bool:
        """Whether the same transaction may succeed when repeated: deadlock, serialization, locked."""
        return False

    def is_forgotten(self, error: BaseException) -> bool:
        """Whether the server no longer knows a statement that was prepared; nothing was done."""
        return False

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection is gone."""
        return False

    def is_trouble(self, error: BaseException) -> bool:
        """Whether the database cannot take this now, by no fault of what it was given.

        Out of disk or memory, read only, a time limit, a lock: a worker waits until it is over.
        """
        return self.is_lost(error) or self.is_transient(error)


@lru_cache(maxsize=1024)
def _compile(dialect: Dialect, template: str, bound_now: bool) -> Statement:
    delays: tuple[str, ...] = ()
    if bound_now:
        delays = tuple({match[2] for match in _TOKEN.finditer(template) if match[1] == "after"})
    sql = _TOKEN.sub(lambda match: dialect.token(match[1], match[2], bound_now), template)
    return Statement(dialect.style(sql), bound_now, delays)
