"""MariaDB 10.6 or newer and MySQL 8, through mysqlclient or PyMySQL.

The engine's statements are written as PostgreSQL and SQLite take them. Four of their shapes are
said in other words here, and :meth:`MySQL.execute` finds those words:

- ``UPDATE … RETURNING`` is an UPDATE, and a SELECT of the rows that it has locked;
- ``INSERT … {ignore_conflict}`` locks the row, new or old, and counts it if it is the caller's;
- ``INSERT … ON CONFLICT … DO UPDATE … WHERE … RETURNING`` locks the row, new or old, then updates
  it under the condition and asks whose it is now;
- ``… WHERE id IN (SELECT … LIMIT n)`` joins the picked rows, since a subquery may not limit here.

All of them need the transaction in which the engine runs them, at READ COMMITTED.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django_jobs.store.dialects.base import Dialect

if TYPE_CHECKING:
    from django_jobs.store.session import Session

#: Deadlock, lock wait timeout, row changed since the snapshot.
TRANSIENT = {1213, 1205, 1020}
#: No connection to be had, gone away, lost, shutting down, killed, closed for idling.
LOST = {2002, 2003, 2006, 2013, 2055, 1053, 1927, 4031, 1152, 1158, 1159, 1160, 1161}
#: Disk or table full, no memory or connection left, read only, a storage error, a time limit.
TROUBLE = {
    1021, 1114, 1037, 1038, 1040, 1041, 1203, 1226, 1290, 1836, 1792, 1030, 1180, 1181, 1317, 1969, 3024,
}  # fmt: skip
#: Names under which transactions serialize, see :meth:`MySQL.lock_name`.
LOCKS = 4096
#: Seconds that a statement of the engine waits for a lock before its transaction starts anew.
LOCK_WAIT = 10
LIMITS = f"SET STATEMENT max_statement_time = 30, innodb_lock_wait_timeout = {LOCK_WAIT} FOR "
#: Characters of JSON text in one statement: well below ``max_allowed_packet`` even when escaped.
PORTION = 4 << 20
#: Rows in one INSERT.
ROWS = 200

_PICKED = re.compile(
    r"\s*(?:UPDATE \{(?P<updated>\w+)\} SET (?P<sets>.+?)|DELETE FROM \{(?P<deleted>\w+)\})\s+"
    r"WHERE (?P<key>\w+) IN \(\s*(?P<picked>SELECT .+?LIMIT %\(\w+\)s(?:\s*\{skip_locked\})?)\)"
    r"(?P<rest>\s+AND .+)?\s*",
    re.DOTALL,
)
_RETURNING = re.compile(
    r"\s*UPDATE \{(?P<table>\w+)\}\s.+?\sWHERE (?P<key>id = %\(\w+\)s|id \{among\((?P<listed>\w+)\)\})"
    r"(?P<rest>.*?)\s+RETURNING (?P<columns>.+)",
    re.DOTALL,
)
_INSERT = r"(?P<insert>\{(?P<table>\w+)\} \((?P<names>[^)]+)\) VALUES \((?P<values>.+)\))\s+"
_IGNORE = re.compile(r"\s*\{insert_ignore\} " + _INSERT + r"\{ignore_conflict\}\s*", re.DOTALL)
_UPSERT = re.compile(
    r"\s*INSERT INTO "
    + _INSERT
    + r"ON CONFLICT \((?P<key>[^)]+)\) DO UPDATE SET (?P<sets>.+?)\s+WHERE (?P<where>.+)\s+"
    r"RETURNING (?P<columns>\w+)\s*",
    re.DOTALL,
)


class Rows:
    """What a statement gave, where there is no cursor that holds it."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows
        self.rowcount = len(rows)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows[0] if self._rows else None


@dataclass(frozen=True, slots=True)
class Plan:
    """The statements that one template stands for here; the last one gives its rows."""

    statements: tuple[str, ...]
    #: Go on only where the first statement has found a row.
    guarded: bool = False
    #: The first statement tells which of this list the others are about.
    listed: str | None = None


class MySQL(Dialect):
    vendor = "mysql"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    lock_rows = "FOR UPDATE"
    has_returning = False
    # INSERT IGNORE would also swallow values that do not fit. For executemany, see plan_of.
    ignore_conflict = "ON DUPLICATE KEY UPDATE id = id"

    def after(self, now: str, seconds: str) -> str:
        return f"({now} + INTERVAL ROUND({seconds} * 1000000) MICROSECOND)"

    def moment(self, value: str) -> str:
        return f"CAST({value} AS DATETIME(6))"

    def index(self, name: str) -> str:
        # Every row that a locking SELECT looks at is waited for and locked; a small table would be read whole.
        if name == "primary":
            return "FORCE INDEX (PRIMARY)"
        return f"FORCE INDEX (django_jobs_by_{name})"

    def among(self, value: str) -> str:
        return f"IN {value}"

    def encode(self, value: Any) -> Any:
        if isinstance(value, UUID):
            return value.hex
        if isinstance(value, datetime):
            # As Django stores datetimes here: naive UTC.
            return str(value.astimezone(UTC).replace(tzinfo=None))
        if isinstance(value, list | tuple):
            # An empty list is no syntax here; nothing equals NULL.
            return tuple(self.encode(item) for item in value) or (None,)
        return value

    def begin(self, time_limit: float, pause_limit: float) -> str:
        return "START TRANSACTION"

    def own_connection(self, connection: Any, pause_limit: float) -> list[str]:
        if connection.mysql_is_mariadb:
            return [f"SET SESSION idle_transaction_timeout = {max(int(pause_limit), 1)}"]
        # MySQL limits all pauses alike; outside of transactions a worker is heard of every few seconds.
        return [f"SET SESSION wait_timeout = {max(int(pause_limit * 2), 10)}"]

    def style(self, sql: str) -> str:
        # LENGTH counts bytes here.
        return sql.replace("LENGTH(", "CHAR_LENGTH(")

    def transaction_limits(self, seconds: float) -> list[str]:
        # The server ends a connection that idles for so long, and with it the transaction.
        limit = max(int(seconds), 1)
        return [
            f"SET @django_jobs_wait = @@SESSION.wait_timeout, SESSION wait_timeout = {limit}, "
            f"@django_jobs_locks = @@SESSION.innodb_lock_wait_timeout, "
            f"SESSION innodb_lock_wait_timeout = {limit}"
        ]

    def transaction_limits_end(self) -> list[str]:
        return [
            "SET SESSION wait_timeout = COALESCE(@django_jobs_wait, @@GLOBAL.wait_timeout), "
            "SESSION innodb_lock_wait_timeout = "
            "COALESCE(@django_jobs_locks, @@GLOBAL.innodb_lock_wait_timeout)"
        ]

    def lock_name(self, session: Session, number: int) -> None:
        # GET_LOCK belongs to the session: it outlives the transaction, and a pooler may give two
        # clients the same one. A row's lock ends with the transaction. One of a fixed set of rows,
        # so that keys leave nothing behind; the upsert takes the exclusive lock at once, where a
        # plain INSERT of a row that is there would take a shared one, and two waiters a deadlock.
        session.run(
            "INSERT INTO {keylock} (number) VALUES (%(number)s) ON DUPLICATE KEY UPDATE number = number",
            number=number % LOCKS,
        )

    def lock_names(self, session: Session, numbers: Sequence[int]) -> None:
        # Rows of their own, above those of enqueues: a claim does not wait for the caller's transaction.
        for number in sorted({number % LOCKS for number in numbers}):
            session.run(
                "INSERT INTO {keylock} (number) VALUES (%(number)s) ON DUPLICATE KEY UPDATE number = number",
                number=LOCKS + number,
            )

    def is_transient(self, error: BaseException) -> bool:
        return _code(error) in TRANSIENT

    def is_lost(self, error: BaseException) -> bool:
        # InterfaceError with 0: the driver knows that its connection is closed.
        return _code(error) in LOST or (
            type(error).__name__ == "InterfaceError" and _code(error) in (0, None)
        )

    def is_trouble(self, error: BaseException) -> bool:
        return self.is_lost(error) or _code(error) in TRANSIENT | TROUBLE

    def execute(self, session: Session, template: str, params: Mapping[str, Any]) -> Any:
        """Run what ``template`` stands for; a cursor, or what has its rows and their number."""
        plan = plan_of(template)
        limits = ""
        if not session.through_django and session.connection.mysql_is_mariadb:  # type: ignore[attr-defined]
            # Of one statement only: the session keeps what it had. MySQL has no such thing.
            limits = LIMITS
        cursor: Any = None
        for place, statement in enumerate(plan.statements):
            cursor = session.execute(limits + statement, params)
            if place == 0 and plan.listed:
                found = [self.uuid(row[0]) for row in cursor.fetchall()]
                if not found:
                    return Rows([])
                params = {**params, plan.listed: found}
            # Django asks the server to count the rows that matched, changed or not.
            elif place == 0 and plan.guarded and cursor.rowcount == 0:
                return Rows([])
        return cursor

    def insert_many(self, session: Session, sql: str, items: list[dict[str, Any]]) -> None:
        head, _, values = sql.partition(" VALUES ")
        for portion in portions(items):
            rows: list[str] = []
            params: dict[str, Any] = {}
            for place, item in enumerate(portion):
                rows.append(numbered(values, place))
                params |= {f"{name}_{place}": value for name, value in item.items()}
            session.run(f"{head} VALUES {', '.join(rows)}", **params)


def numbered(sql: str, place: int) -> str:
    """``sql`` with the names of its parameters made those of row ``place``."""
    bound = re.sub(r"%\((\w+)\)s", rf"%(\1_{place})s", sql)
    return re.sub(r"\{(after|moment|json)\((\w+)\)\}", rf"{{\1(\2_{place})}}", bound)


def portions(items: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """``items`` in runs that fit into one statement."""
    found: list[list[dict[str, Any]]] = []
    room = rows = 0
    for item in items:
        size = sum(len(value) for value in item.values() if isinstance(value, str))
        if not found or size > room or rows == ROWS:
            found.append([])
            room, rows = PORTION, 0
        found[-1].append(item)
        room, rows = room - size, rows + 1
    return found


@lru_cache(maxsize=1024)
def plan_of(template: str) -> Plan:
    """What ``template`` stands for; a template of no known shape stands for itself."""
    if found := _IGNORE.fullmatch(template):
        return Plan((_lock_or_insert(found), _select_mine(found, "1")))
    if " RETURNING " not in template and " IN (" not in template:
        return Plan((template,))
    if found := _UPSERT.fullmatch(template):
        return _plan_upsert(found)
    if found := _RETURNING.fullmatch(template):
        update = template[: template.rindex(" RETURNING ")]
        table, key = found["table"], found["key"]
        select = f"SELECT {found['columns']} FROM {{{table}}} WHERE {key}"
        if not found["listed"]:
            return Plan((update, select), guarded=True)
        lock = (
            f"SELECT id FROM {{{table}}} {{index(primary)}} WHERE {key}{found['rest']} FOR UPDATE"
        )
        return Plan((lock, update, select), listed=found["listed"])
    if found := _PICKED.fullmatch(template):
        return Plan((_picked(found),))
    return Plan((template,))


def _picked(found: re.Match[str]) -> str:
    """The picked rows first, by STRAIGHT_JOIN: else every row that could match would be locked."""
    table = f"{{{found['updated'] or found['deleted']}}}"
    key, rest = found["key"], (found["rest"] or "").strip().removeprefix("AND ")
    joined = f"({found['picked']}) AS picked STRAIGHT_JOIN {table} ON {table}.{key} = picked.{key}"
    where = f" WHERE {rest}" if rest else ""
    if found["updated"]:
        return f"UPDATE {joined} SET {found['sets']}{where}"
    return f"DELETE {table} FROM {joined}{where}"


def _plan_upsert(found: re.Match[str]) -> Plan:
    """Lock the row, new or old; update it under the condition; select it if it is the caller's.

    In one statement each assignment would see those before it, and so would the condition.
    """
    values = _values(found)
    key = [name.strip() for name in found["key"].split(",")]
    by_key = " AND ".join(f"{name} = {values[name]}" for name in key)
    sets = re.sub(r"excluded\.(\w+)", lambda match: values[match[1]], found["sets"])
    update = f"UPDATE {{{found['table']}}} SET {sets} WHERE {by_key} AND {found['where']}"
    return Plan((_lock_or_insert(found), update, _select_mine(found, found["columns"])))


def _lock_or_insert(found: re.Match[str]) -> str:
    # INSERT IGNORE would take a shared lock on the row that it finds, and two of them a deadlock.
    first = next(iter(_values(found)))
    return f"INSERT INTO {found['insert']} ON DUPLICATE KEY UPDATE {first} = {{{found['table']}}}.{first}"


def _select_mine(found: re.Match[str], columns: str) -> str:
    """The row if it has the values that were bound to be inserted."""
    bound = [(name, value) for name, value in _values(found).items() if value.startswith("%(")]
    mine = " AND ".join(f"{name} = {value}" for name, value in bound)
    return f"SELECT {columns} FROM {{{found['table']}}} WHERE {mine}"


def _values(found: re.Match[str]) -> dict[str, str]:
    """The SQL value of each column of an INSERT."""
    names = [name.strip() for name in found["names"].split(",")]
    return dict(zip(names, _split(found["values"]), strict=True))


def _split(values: str) -> list[str]:
    """A list of SQL expressions at its outer commas."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "({") - (character in ")}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def conditional(sets: str, condition: str, *, last: str) -> str:
    """The assignments of an upsert, each under ``condition``; ``last`` is the column that it reads.

    An assignment sees those before it, and so does its condition.
    """
    changes = []
    assignments = [assignment.strip() for assignment in _split(sets)]
    for assignment in sorted(assignments, key=lambda one: one.startswith(f"{last} = ")):
        name, _, value = assignment.partition(" = ")
        value = re.sub(r"excluded\.(\w+)", r"VALUES(\1)", value)
        changes.append(f"{name} = IF({condition}, {value}, {name})")
    return ", ".join(changes)


def _code(error: BaseException | None) -> int | None:
    while error is not None:
        if error.args and isinstance(error.args[0], int):
            return error.args[0]
        error = error.__cause__
    return None
