"""The provider's ledger as the account reads it, and what excuses a repeated request."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from testproject.shop import provider


@dataclass(frozen=True)
class Request:
    """A row of the provider's ledger; ``at`` is seconds since 1970."""

    at: float
    key: str
    order: str
    cents: int
    outcome: str

    @property
    def charged(self) -> bool:
        return self.outcome in (provider.CHARGED, provider.LOST)


@dataclass(frozen=True)
class Kill:
    """A SIGKILL of the demo, and how long the shop took to recover from it.

    ``at`` is seconds since 1970, ``hands`` how many steps could be under way, ``progress`` the
    seconds until the next order was finished, ``resumed`` until the last order in flight ran again.
    """

    what: str
    pids: list[int]
    at: float
    hands: int
    in_flight: int
    progress: float | None = None
    resumed: float | None = None


def read_ledger(path: Path) -> list[Request]:
    """Every request that the provider got, in the order it got them."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as book:
        rows = book.execute(
            "SELECT at, idempotency_key, order_number, cents, outcome FROM request ORDER BY id"
        )
        return [Request(*row) for row in rows]


@dataclass
class Repeats:
    """Requests for a key that had been charged already, by what made the shop ask again."""

    after_lost_answer: int = 0
    after_kill: int = 0
    unexplained: list[Request] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.after_lost_answer + self.after_kill + len(self.unexplained)


#: A request may lie in the provider's socket when its sender is killed: seconds until it is read.
ON_THE_WAY = 2.0


def explain_repeats(requests: Iterable[Request], kills: Iterable[Kill]) -> Repeats:
    """Every repeat needs a lost answer or a kill before it; a kill excuses ``hands`` of them."""
    found = Repeats()
    left = [[kill.at, kill.hands] for kill in kills]
    last: dict[str, Request] = {}
    for request in requests:
        before = last.get(request.key)
        if request.charged or request.outcome == provider.REPEATED:
            last[request.key] = request
        if request.outcome != provider.REPEATED or before is None:
            continue
        excuse = next(
            (k for k in left if before.at - ON_THE_WAY <= k[0] <= request.at and k[1] > 0), None
        )
        if before.outcome == provider.LOST:
            found.after_lost_answer += 1
        elif excuse is not None:
            excuse[1] -= 1
            found.after_kill += 1
        else:
            found.unexplained.append(request)
    return found
