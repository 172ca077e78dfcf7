"""New jobs that could not start yet go behind their gate at once, so that no claim meets them.

Only the way is shortened here: what a permit or a rate allows is decided at the claim. A job that
goes behind a gate is looked after again once it is committed, for those before it may be gone by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from django_jobs.store import jobs, permits, rates
from django_jobs.store.jobs import NewJob
from django_jobs.store.session import Session

#: Limits and rates from this on are left to the claim: counting so far would cost an enqueue too much.
COUNTED = 1_000


@dataclass(slots=True)
class Gated:
    """What the new jobs of one enqueue wait for."""

    keys: set[str] = field(default_factory=set)
    rates: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.keys or self.rates)


def assign(
    session: Session, new: Sequence[NewJob], starts: Callable[[NewJob], int | None]
) -> Gated:
    """Set the gate of ``new`` jobs; ``starts`` tells how many starts the window of one's rate has."""
    gated = Gated()
    for (hashed, lane, precedence), group in _groups(new).items():
        by_key = group[0].key_limit is not None
        if by_key:
            room = _room_of_key(session, hashed, group[0].key_limit or 1, lane, precedence)
        else:
            room = _room_of_rate(session, hashed, starts(group[0]), precedence)
        if room is None:
            continue
        for row in group[room:]:
            row.gate = "permit" if by_key else "rate"
        if len(group) > room:
            (gated.keys if by_key else gated.rates).add(hashed)
    return gated


def _groups(new: Iterable[NewJob]) -> dict[tuple[str, int, int], list[NewJob]]:
    """Jobs that are due at once, by what they wait for, lane and precedence."""
    found: dict[tuple[str, int, int], list[NewJob]] = {}
    for row in new:
        hashed = row.key_hash if row.key_limit is not None else row.rate_hash
        if hashed is not None and row.run_after is None and row.delay is None:
            found.setdefault((hashed, row.lane, row.precedence), []).append(row)
    return found


def _room_of_key(
    session: Session, hashed: str, limit: int, lane: int, precedence: int
) -> int | None:
    """How many more jobs of the key may stand open behind those before them; None = not counted.

    Only those of the same lane count: one that nobody may take keeps no other lane waiting.
    """
    if limit > COUNTED:
        return None
    row = session.one(
        "SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM {job} WHERE key_hash = %(hash)s AND finished_at IS NULL "
        "AND status = 'pending' AND gate = 'open' AND lane = %(lane)s AND precedence <= %(precedence)s "
        "LIMIT %(limit)s) AS ahead), "
        f"(SELECT COUNT(*) FROM {{permit}} WHERE key_hash = %(hash)s AND {permits.LIVE}), "
        "EXISTS (SELECT 1 FROM {job} WHERE key_hash = %(hash)s AND finished_at IS NULL "
        "AND status = 'pending' AND gate = 'permit' AND lane = %(lane)s AND precedence <= %(precedence)s)",
        hash=hashed, limit=limit, lane=lane, precedence=precedence,
    )  # fmt: skip
    assert row is not None
    return 0 if row[2] else max(limit - row[0] - row[1], 0)


def _room_of_rate(session: Session, hashed: str, count: int | None, precedence: int) -> int | None:
    if count is None or count > COUNTED:
        return None
    row = session.one(
        "SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM {job} WHERE rate_hash = %(hash)s AND finished_at IS NULL "
        "AND status = 'pending' AND gate = 'open' AND precedence <= %(precedence)s LIMIT %(count)s) AS ahead), "
        "EXISTS (SELECT 1 FROM {ratewait} WHERE rate_hash = %(hash)s AND opens_at > {now})",
        hash=hashed, count=count, precedence=precedence,
    )  # fmt: skip
    assert row is not None
    return 0 if row[1] else max(count - row[0], 0)


def look_again(alias: str, gated: Gated, queue_name: str, *, notify: bool) -> None:
    """Now that they are committed: let in those that nobody else would, and say when others fit."""

    def work(session: Session) -> None:
        opened = permits.let_in_of(session, gated.keys)
        rates.look_at(session, gated.rates)
        if notify and (opened or gated.rates):
            jobs.wake(session, queue_name)

    Session(alias).committed(work)
