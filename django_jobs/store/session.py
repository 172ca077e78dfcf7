"""The engine's way to the database: statements, transactions, and their repetition."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections, router, transaction

from django_jobs import conf
from django_jobs.errors import ConfigurationError
from django_jobs.store.dialects import dialect_of
from django_jobs.store.pooling import is_pooled
from django_jobs.store.trip import Answered, Link

T = TypeVar("T")
logger = logging.getLogger("django_jobs")

#: Tries of a whole engine transaction after deadlock, serialization failure or a lock.
TRIES = 8
#: Seconds a statement of the engine may take.
TIME_LIMIT = 30.0
#: Part of a lease after which the server ends a transaction of which nothing more is heard: a process
#: that is frozen in it would keep others from the rows that it has locked.
FROZEN = 0.5
#: What may be said to another database within a transactional step.
_READS = re.compile(
    r"[\s(]*(?:SELECT|WITH|VALUES|SHOW|EXPLAIN|PRAGMA|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b",
    re.I,
)
_WRITES = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|MERGE\s+INTO)\b|;\s*\S|\bFOR\s+UPDATE\b",
    re.I,
)


def engine_alias() -> str:
    """The database that holds the engine's tables."""
    from django_jobs.models import Job

    return conf.get().database or router.db_for_write(Job) or DEFAULT_DB_ALIAS


class Session:
    """One thread's use of one database.

    Outside of the caller's transactions it speaks to the driver beneath Django and opens its own
    transactions; inside of one it works in savepoints of it.
    """

    def __init__(self, alias: str | None = None, *, through_django: bool = False) -> None:
        #: The caller's own connection is used through Django's cursor: logged, wrapped, unchanged.
        self.through_django = through_django
        self.alias = alias or engine_alias()
        self.connection = connections[self.alias]
        self.dialect = dialect_of(self.connection.vendor)
        self.prepare = False
        #: How often a connection was lost; an answer to a commit may have been lost with it.
        self.reconnects = 0
        self._link: Link | None = None
        self._is_own = False
        #: The open connection that has been looked at and set up.
        self._known: Any = None
        self._prepares = False

    @property
    def vendor(self) -> str:
        return self.dialect.vendor

    def reconnect(self) -> None:
        """Leave a broken connection; the next statement opens a new one."""
        self.reconnects += 1
        self.connection.close()

    def own(self, *, prepare: bool = False) -> None:
        """Take the connection for the engine's alone: a worker's, which no handler uses.

        Statements are prepared on it where ``prepare`` says so and no pooler stands between.
        """
        self._is_own = True
        self.prepare = prepare and self.vendor == "postgresql"
        self._known = None

    @property
    def in_callers_transaction(self) -> bool:
        return self.connection.in_atomic_block or not self.connection.get_autocommit()

    def rows(self, template: str, **params: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        return self._execute(template, params).fetchall()

    def one(self, template: str, **params: Any) -> tuple[Any, ...] | None:
        """Run a statement and return its first row, or None."""
        return self._execute(template, params).fetchone()

    def run(self, template: str, **params: Any) -> int:
        """Run a statement and return the number of rows it touched."""
        return self._execute(template, params).rowcount

    def many(self, template: str, items: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each of ``items``."""
        if not items:
            return
        statement = self.dialect.compile(template)
        bound = [self.dialect.params(statement, item) for item in items]
        self._cursor().executemany(statement.sql, bound)

    def _execute(self, template: str, params: Mapping[str, Any]) -> Any:
        if not self.dialect.has_returning:
            return self.dialect.execute(self, template, params)
        return self.execute(template, params)

    def execute(self, template: str, params: Mapping[str, Any]) -> Any:
        """Run a statement as it is; the cursor."""
        statement = self.dialect.compile(template)
        cursor = self._cursor()
        bound = self.dialect.params(statement, params)
        if self._prepares:
            cursor.execute(statement.sql, bound, prepare=True)
        else:
            cursor.execute(statement.sql, bound)
        return cursor

    def _cursor(self) -> Any:
        if self.through_django:
            return self.connection.cursor()
        self.connection.ensure_connection()
        raw = self.connection.connection
        if raw is not self._known:
            self._set_up(raw)
        if self.vendor == "postgresql":
            import psycopg

            return psycopg.Cursor(raw)
        return raw.cursor()

    def _set_up(self, raw: Any) -> None:
        """What is settled once for a connection that is new to this session."""
        self._known = raw
        self._prepares = self.prepare and not is_pooled(raw)
        if self._prepares and raw.prepare_threshold is None:
            raw.prepare_threshold = 2
        if self._is_own:
            for sql in self.dialect.own_connection(self.connection, conf.get().lease * FROZEN):
                raw.cursor().execute(sql)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction of the engine; a savepoint inside of the caller's."""
        if self.in_callers_transaction or self.through_django:
            with transaction.atomic(using=self.alias):
                self.write_first()
                yield
            return
        self._plain(self.dialect.begin(TIME_LIMIT, conf.get().lease * FROZEN))
        try:
            yield
            self._plain("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def write_first(self) -> None:
        """Within a transaction of Django's: let no read come before what is written."""
        self.dialect.write_first(self)

    def together(self, statements: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Answered]:
        """Run statements as one transaction in one round trip. PostgreSQL only."""
        compiled = [(self.dialect.compile(template), params) for template, params in statements]
        bound = [(one.sql, self.dialect.params(one, params)) for one, params in compiled]
        if any(one.bound_now for one, _ in compiled):
            # A test has stopped the clock: moments are values whose type the driver has to tell.
            with self.transaction():
                cursors = [self.execute(template, params) for template, params in statements]
                return [
                    Answered(one.fetchall() if one.description else [], one.rowcount)
                    for one in cursors
                ]
        self.connection.ensure_connection()
        opening: list[tuple[str, dict[str, Any]]] = [
            (sql, {}) for sql in self.dialect.opening(TIME_LIMIT)
        ]
        answered = self._trip([*opening, *bound, ("COMMIT", {})])
        return answered[len(opening) : -1]

    def _trip(self, said: list[tuple[str, dict[str, Any]]]) -> list[Answered]:
        """Send a whole transaction; once more where its prepared statements were dropped meanwhile."""
        for is_last in (False, True):
            try:
                return self._link_to_server().run(said, prepare=self._prepares)
            except BaseException as error:
                self._roll_back()
                if is_last or not self.dialect.is_forgotten(error):
                    raise
        raise AssertionError("unreachable")

    def _link_to_server(self) -> Link:
        raw = self.connection.connection
        if self._link is None or self._link.raw is not raw:
            if raw is not self._known:
                self._set_up(raw)
            self._link = Link(raw)
        return self._link

    @contextmanager
    def limited_transaction(self, seconds: float) -> Iterator[None]:
        """A transaction of Django's that the database ends when a statement of it, or a pause between
        two, lasts longer than ``seconds``.

        A frozen process that holds a job's row lock would block its own recovery for ever.
        """
        try:
            with transaction.atomic(using=self.alias):
                self.write_first()
                for sql in self.dialect.transaction_limits(seconds):
                    self._plain(sql)
                yield
        finally:
            self._lift_limits()

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Refuse to write to other databases while the block runs: they commit apart from this one."""
        with ExitStack() as stack:
            for alias in connections:
                other = connections[alias]
                if other is not self.connection:
                    refuse = partial(_refuse_writing, what, alias, self.alias)
                    stack.enter_context(other.execute_wrapper(refuse))
            yield

    def _lift_limits(self) -> None:
        """Take back limits that would outlast their transaction."""
        try:
            if self.connection.connection is not None:
                for sql in self.dialect.transaction_limits_end():
                    self._plain(sql)
        except Exception:
            # A lost connection, or one that would keep the limits.
            self.connection.close()

    def _plain(self, sql: str) -> None:
        self._cursor().execute(sql)

    def _roll_back(self) -> None:
        raw = self.connection.connection
        try:
            if raw is not None:
                self._cursor().execute("ROLLBACK")
        except Exception:
            # The link is broken, or the server has rolled back by itself; a new one is opened.
            self.connection.close()

    def committed(self, work: Callable[[Session], T], *, limit: float | None = None) -> T:
        """Run ``work`` in one transaction; repeat it where that can help.

        Repeated are deadlocks, serialization failures and locks, and a lost connection once it is
        back, a bounded number of times with jitter. A COMMIT whose answer was lost is repeated
        too, so ``work`` must recognise its own earlier success. Never repeated inside of the
        caller's transaction, which reports the error itself. With ``limit`` it is a
        :meth:`limited_transaction` of so many seconds.
        """
        for attempt in range(1, TRIES + 1):
            try:
                if limit is None or self.in_callers_transaction:
                    with self.transaction():
                        return work(self)
                with self.limited_transaction(limit):
                    return work(self)
            except Exception as error:
                lost = self.dialect.is_lost(error)
                if (
                    self.in_callers_transaction
                    or attempt == TRIES
                    or not (lost or self.dialect.is_transient(error))
                ):
                    raise
                if lost:
                    self.reconnect()
                logger.debug("Engine transaction repeated after %s.", type(error).__name__)
                time.sleep(random.uniform(0.3, 1.0) * min(0.01 * 2**attempt, 1.0))
        raise AssertionError("unreachable")


def _refuse_writing(
    what: str, alias: str, own: str, execute: Any, sql: Any, params: Any, many: bool, context: Any
) -> Any:
    if isinstance(sql, str) and _READS.match(sql) and not _WRITES.search(sql):
        return execute(sql, params, many, context)
    raise ConfigurationError(
        f"{what} writes to the database {alias!r}, and its record is written to {own!r}: the two cannot commit "
        f"together. Write to {alias!r} in a step of its own that is not transactional, or keep those tables in {own!r}."
    )
