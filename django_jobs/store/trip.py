"""Several statements of one transaction in one round trip, on the driver's lowest level.

psycopg's own pipeline wakes the server for each statement, and prepares each in Python at ten times
the cost; a run that records step after step would spend most of its time there. PostgreSQL only.
"""

from __future__ import annotations

import re
import select
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django_jobs.store.dialects.postgresql import array_of, text_array_of

if TYPE_CHECKING:
    import psycopg

_PARAMETER = re.compile(r"%\((\w+)\)s")
#: The format of results: Django's own reader of timestamps, for the text format, is written in Python.
BINARY = 1


@dataclass(frozen=True, slots=True)
class Answered:
    """What one statement came to: its rows, and how many it touched."""

    rows: list[tuple[Any, ...]]
    touched: int


@lru_cache(maxsize=256)
def numbered(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """``sql`` with ``$1`` for ``%(name)s``, and the names in that order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return _PARAMETER.sub(number, sql).replace("%%", "%").encode(), tuple(names)


def text_of(value: Any) -> bytes | None:
    """A value as PostgreSQL reads it from text."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, UUID):
        return value.hex.encode()
    if isinstance(value, list):
        texts = value and isinstance(value[0], str)
        return (text_array_of(value) if texts else array_of(value)).encode()
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return str(value).encode()


class Link:
    """The low-level use of one open connection of psycopg's, by one thread."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        from psycopg.adapt import Transformer

        self.raw = raw
        self._loads = Transformer(raw)
        self._names: dict[bytes, bytes] = {}
        self._generation = 0

    def run(
        self, statements: Sequence[tuple[str, Mapping[str, Any]]], *, prepare: bool
    ) -> list[Answered]:
        """Send all, then wait for all; the first error is raised. The caller ends the transaction."""
        import psycopg

        server = self.raw.pgconn
        server.enter_pipeline_mode()
        try:
            prepared = [self._send(sql, params, prepare) for sql, params in statements]
            server.pipeline_sync()
            results = self._receive()
        finally:
            try:
                server.exit_pipeline_mode()
            except psycopg.Error:
                # Interrupted with answers under way: nobody could tell them from later ones.
                self.raw.close()
        return [self._read(result) for result in self._of_statements(results, prepared)]

    def _send(self, sql: str, params: Mapping[str, Any], prepare: bool) -> bool:
        """Whether the statement is preceded by its preparation."""
        server = self.raw.pgconn
        text, names = numbered(sql)
        values = [text_of(params[name]) for name in names]
        if not prepare:
            server.send_query_params(text, values, result_format=BINARY)
            return False
        name = self._names.get(text)
        is_new = name is None
        if name is None:
            name = self._names[text] = f"jobs_{self._generation}_{len(self._names)}".encode()
            server.send_prepare(name, text)
        server.send_query_prepared(name, values, result_format=BINARY)
        return is_new

    def _receive(self) -> list[Any]:
        """The results of all that was sent, up to the sync."""
        import psycopg
        from psycopg import pq

        server = self.raw.pgconn
        poll = select.poll()
        poll.register(server.socket, select.POLLIN)
        sending = server.flush()
        if sending:
            poll.modify(server.socket, select.POLLIN | select.POLLOUT)
        results: list[Any] = []
        nothing = 0
        while nothing < 3:
            while server.is_busy() or sending:
                poll.poll()
                server.consume_input()
                if sending and not (sending := server.flush()):
                    poll.modify(server.socket, select.POLLIN)
            result = server.get_result()
            if result is None:
                nothing += 1  # one stands between two statements; a broken link gives no other
                continue
            nothing = 0
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)
        raise psycopg.OperationalError("the connection was lost before all answers came")

    def _of_statements(self, results: list[Any], prepared: list[bool]) -> list[Any]:
        """The results of the statements themselves; raises the first error."""
        import psycopg
        from psycopg import errors, pq

        good = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
        for result in results:
            if result.status in good:
                continue
            # What was not prepared, or is stale after a migration, is prepared under another name.
            self._generation += 1
            self._names.clear()
            if not result.error_field(pq.DiagnosticField.SQLSTATE):
                raise psycopg.OperationalError(result.error_message.decode(errors="replace"))
            raise errors.error_from_result(result)
        answers = iter(results)
        found = []
        for is_new in prepared:
            if is_new:
                next(answers)
            found.append(next(answers))
        return found

    def _read(self, result: Any) -> Answered:
        if not result.nfields:
            return Answered([], result.command_tuples or 0)
        self._loads.set_pgresult(result)
        rows = self._loads.load_rows(0, result.ntuples, tuple)
        return Answered(rows, result.command_tuples or 0)
