"""The payment provider: a process of its own that knows nothing of Django or of the shop.

``python -m testproject.shop.provider --ledger FILE --seed N`` prints its address and serves
``POST /charges`` until its standard input ends, so that it never outlives who started it.

Every request it gets is a row of its own SQLite ledger. It charges once per idempotency key: a
request that repeats a charged key is refused as a charge and answered with the first result. Who
fails is a rule of seed, order and the number of the request for that order, never of time:
some requests are turned away (503) before anything happens, some are charged and their answer
is lost on the way back, some are charged and answered late. No order fails more than three times.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from testproject.shop.chance import chance

CHARGED = "charged"
LOST = "charged, answer lost"
REPEATED = "repeated"
UNAVAILABLE = "unavailable"
CONFLICT = "conflict"

TURNED_AWAY_SHARE = 0.04
LOST_SHARE = 0.02
LATE_SHARE = 0.05
LATE_SECONDS = (0.005, 0.040)
FAILURES_PER_ORDER = 3

SCHEMA = """
CREATE TABLE IF NOT EXISTS request (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    idempotency_key TEXT NOT NULL,
    order_number TEXT NOT NULL,
    cents INTEGER NOT NULL,
    number INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    charge_id TEXT
);
CREATE INDEX IF NOT EXISTS request_key ON request (idempotency_key, outcome);
CREATE INDEX IF NOT EXISTS request_order ON request (order_number);
CREATE UNIQUE INDEX IF NOT EXISTS charged_once ON request (idempotency_key)
    WHERE outcome IN ('charged', 'charged, answer lost');
"""


@dataclass(frozen=True)
class Answer:
    """What the provider decided; ``status`` None is an answer that never arrives."""

    status: int | None
    body: dict[str, Any]
    late: float = 0.0


class Ledger:
    """The provider's book. One connection, one writer at a time."""

    def __init__(self, path: Path, seed: int) -> None:
        self.seed = seed
        self.lock = threading.Lock()
        self.book = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.book.execute("PRAGMA journal_mode=WAL")
        self.book.execute("PRAGMA synchronous=NORMAL")
        self.book.executescript(SCHEMA)

    def handle(self, key: str, order: str, cents: int) -> Answer:
        """Decide on one request and write it down, in one transaction."""
        with self.lock:
            self.book.execute("BEGIN IMMEDIATE")
            try:
                answer = self._decide(key, order, cents)
                self.book.execute("COMMIT")
            except BaseException:
                self.book.execute("ROLLBACK")
                raise
        return answer

    def _decide(self, key: str, order: str, cents: int) -> Answer:
        earlier = self.book.execute(
            "SELECT charge_id, cents, order_number FROM request"
            " WHERE idempotency_key = ? AND outcome IN (?, ?)",
            (key, CHARGED, LOST),
        ).fetchone()
        asked = "SELECT count(*) FROM request WHERE order_number = ?"
        number = self.book.execute(asked, (order,)).fetchone()[0] + 1
        if earlier:
            charge_id, first_cents, first_order = earlier
            same = (first_cents, first_order) == (cents, order)
            self._write(key, order, cents, number, REPEATED if same else CONFLICT, charge_id)
            if not same:
                return Answer(409, {"error": "This key belongs to another charge."})
            return Answer(200, {"id": charge_id, "cents": cents, "repeated": True})
        fate = chance(self.seed, order, number) if number <= FAILURES_PER_ORDER else 1.0
        if fate < TURNED_AWAY_SHARE:
            self._write(key, order, cents, number, UNAVAILABLE, None)
            return Answer(503, {"error": "Try again later."})
        lost = fate < TURNED_AWAY_SHARE + LOST_SHARE
        charge_id = f"ch_{os.urandom(8).hex()}"
        self._write(key, order, cents, number, LOST if lost else CHARGED, charge_id)
        body = {"id": charge_id, "cents": cents, "repeated": False}
        return Answer(None if lost else 200, body, self._lateness(order, number))

    def _lateness(self, order: str, number: int) -> float:
        if chance(self.seed, order, number, "late") >= LATE_SHARE:
            return 0.0
        shortest, longest = LATE_SECONDS
        return shortest + (longest - shortest) * chance(self.seed, order, number, "how late")

    def _write(
        self, key: str, order: str, cents: int, number: int, outcome: str, charge_id: str | None
    ) -> None:
        self.book.execute(
            "INSERT INTO request"
            " (at, idempotency_key, order_number, cents, number, outcome, charge_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (time.time(), key, order, cents, number, outcome, charge_id),
        )


class Desk(BaseHTTPRequestHandler):
    """One request."""

    server: Provider
    timeout = 30

    def do_POST(self) -> None:
        try:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
            key, order = self.headers["Idempotency-Key"], asked["order"]
            cents = int(asked["cents"])
        except (ValueError, KeyError, TypeError):
            self._reply(400, {"error": "A charge has order and cents."})
            return
        if self.path != "/charges" or not key:
            self._reply(400, {"error": "POST /charges with an Idempotency-Key."})
            return
        answer = self.server.ledger.handle(key, str(order), cents)
        if answer.late:
            time.sleep(answer.late)
        if answer.status is None:
            self.close_connection = True
        else:
            self._reply(answer.status, answer.body)

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        """The ledger is the log."""


class Provider(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, ledger: Ledger, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Desk)
        self.ledger = ledger

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed while it waited is no error of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser(description="A payment provider with a ledger and moods.")
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    provider = Provider(Ledger(options.ledger, options.seed), options.port)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    print(provider.url, flush=True)
    sys.stdin.read()
    provider.shutdown()


if __name__ == "__main__":
    main()
