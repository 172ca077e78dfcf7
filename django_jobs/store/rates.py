"""Rate limits: so many starts in every sliding window, over all workers.

The starts of a rate are numbered rows. Start k fits when start k - n lies a whole window back, so
one row tells, however large n is. Jobs over the rate are gated, and one row of the rate says when
the next of them fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django_jobs import ids
from django_jobs.definitions import registry
from django_jobs.store.permits import distinct
from django_jobs.store.session import Session

#: Starts that one batch may give out, and jobs that are let in at once.
MOST = 1_000
#: Open jobs over their rate that are put aside at once.
AT_ONCE = 2_000
#: Rates that one look lets in, and that one sweep looks at.
RATES = 100
#: Seconds between two jobs that are let in where this process does not know their rate.
UNKNOWN_PAUSE = 5.0
GATED = "{0}finished_at IS NULL AND {0}status = 'pending' AND {0}gate = 'rate'"


@dataclass(slots=True)
class Window:
    """What one transaction knows of a rate, whose lock it holds."""

    rate_hash: str
    count: int
    seconds: float
    #: Number of the last start.
    last: int
    #: How many more fit now, at most MOST, and when the next one behind them does.
    room: int
    behind: datetime | None
    #: Starts that must be remembered: other versions of the code may count more.
    keep: int
    used: int = 0
    is_short: bool = False

    def take(self) -> bool:
        """Give out one start, if it fits."""
        if self.used < self.room:
            self.used += 1
            return True
        self.is_short = True
        return False

    def write(self, session: Session) -> None:
        """Store the starts that were given out, and forget those that no longer count."""
        if not self.used:
            return
        session.many(
            "INSERT INTO {ratestart} (rate_hash, number, at) VALUES (%(hash)s, %(number)s, {now})",
            [
                {"hash": self.rate_hash, "number": self.last + place}
                for place in range(1, self.used + 1)
            ],
        )
        session.run(
            "DELETE FROM {ratestart} WHERE rate_hash = %(hash)s AND number <= %(old)s",
            hash=self.rate_hash, old=self.last + self.used - self.keep,
        )  # fmt: skip

    def announce(self, session: Session) -> None:
        """Say when the next of those that found no room fits."""
        if self.is_short:
            set_moment(session, self.rate_hash, self.behind, self.pause)

    @property
    def pause(self) -> float:
        """Seconds until more fit where ``behind`` is not known: all that fit have just been given out."""
        return 0.0 if self.count > MOST else self.seconds


def window(session: Session, rate_hash: str, slug: str, version: str | None) -> Window | None:
    """The window of a rate as it is now; None where the code has no such limit (any more).

    The caller holds the lock of the rate.
    """
    definition = registry.find(slug, version)
    rate = definition.rate_limit if definition is not None else None
    if rate is None:
        return None
    count, seconds = rate.count, rate.window
    row = session.one(
        "SELECT MAX(number) FROM {ratestart} WHERE rate_hash = %(hash)s", hash=rate_hash
    )
    last = (row and row[0]) or 0
    # Start last + k needs start last + k - count to lie a window back, or not to be there.
    rows = session.rows(
        "SELECT number, at, CASE WHEN at <= {after(ago)} THEN 1 ELSE 0 END FROM {ratestart} "
        "WHERE rate_hash = %(hash)s AND number > %(low)s AND number <= %(high)s ORDER BY number",
        hash=rate_hash, low=last - count, high=min(last, last - count + MOST), ago=-seconds,
    )  # fmt: skip
    blocking = next((row for row in rows if not row[2]), None)
    behind = None
    if blocking is not None:
        at = session.dialect.time(blocking[1])
        assert at is not None
        behind = at + timedelta(seconds=seconds)
    room = min(count, MOST) if blocking is None else blocking[0] - (last - count) - 1
    keep = max(
        one.rate_limit.count
        for one in registry.snapshot()[slug].values()
        if one.rate_limit is not None
    )
    return Window(rate_hash, count, seconds, last, room, behind, keep)


def set_moment(session: Session, rate_hash: str, moment: datetime | None, delay: float) -> None:
    """The moment at which the next job of a rate is let in; ``delay`` seconds from now where it is None."""
    when = "{after(delay)}" if moment is None else "%(moment)s"
    bound = {"hash": rate_hash, "moment": moment, "delay": delay}
    if not session.run(
        f"UPDATE {{ratewait}} SET opens_at = {when} WHERE rate_hash = %(hash)s", **bound
    ):
        session.run(
            f"{{insert_ignore}} {{ratewait}} (rate_hash, opens_at) VALUES (%(hash)s, {when}) {{ignore_conflict}}",
            **bound,
        )


def put_rest_aside(session: Session, rate_hash: str) -> int:
    """The other open jobs of a rate without room: they would be refused one by one."""
    return session.run(
        "UPDATE {job} SET gate = 'rate' WHERE id IN (SELECT id FROM {job} WHERE rate_hash = %(hash)s "
        "AND finished_at IS NULL AND status = 'pending' AND gate = 'open' "
        "LIMIT %(most)s {skip_locked}) AND status = 'pending' AND gate = 'open'",
        hash=rate_hash, most=AT_ONCE,
    )  # fmt: skip


def let_in(session: Session, limit: int = RATES) -> int:
    """Bring those back into the claim's index that fit by now; return how many."""
    due = session.rows(
        "SELECT rate_hash FROM {ratewait} WHERE opens_at <= {now} ORDER BY opens_at LIMIT %(limit)s",
        limit=limit,
    )
    if not due:
        return 0
    listed = [row[0] for row in due]
    lock(session, listed)
    # Somebody else may have been here meanwhile.
    rows = session.rows(
        "SELECT rate_hash FROM {ratewait} WHERE rate_hash {among(hashes)} AND opens_at <= {now}",
        hashes=listed,
    )
    return sum(_let_in(session, row[0]) for row in rows)


def _let_in(session: Session, rate_hash: str) -> int:
    head = session.one(
        f"SELECT slug, version FROM {{job}} WHERE rate_hash = %(hash)s AND {GATED.format('')} "
        "ORDER BY precedence, turn, due_at, id LIMIT 1",
        hash=rate_hash,
    )
    if head is None:
        session.run("DELETE FROM {ratewait} WHERE rate_hash = %(hash)s", hash=rate_hash)
        return 0
    known = window(session, rate_hash, head[0], head[1])
    if known is not None:
        room, moment, delay = known.room, known.behind, known.pause
    elif registry.find(head[0], head[1]) is None:
        room, moment, delay = 1, None, UNKNOWN_PAUSE
    else:
        room, moment, delay = MOST, None, 0.0
    opened = 0
    if room:
        opened = session.run(
            "UPDATE {job} SET gate = 'open' WHERE id IN (SELECT id FROM {job} WHERE rate_hash = %(hash)s "
            "AND finished_at IS NULL AND status = 'pending' AND gate = 'rate' "
            "ORDER BY precedence, turn, due_at, id LIMIT %(room)s) AND status = 'pending' AND gate = 'rate'",
            hash=rate_hash, room=room,
        )  # fmt: skip
    if opened < room:
        session.run("DELETE FROM {ratewait} WHERE rate_hash = %(hash)s", hash=rate_hash)
    else:
        set_moment(session, rate_hash, moment, delay)
    return opened


def look_at(session: Session, hashes: Iterable[str]) -> None:
    """Let :func:`let_in` look at these rates now: somebody has come to wait for them."""
    for hashed in sorted(hashes):
        # A moment that is known already is right: nothing fits before it.
        session.run(
            "{insert_ignore} {ratewait} (rate_hash, opens_at) VALUES (%(hash)s, {now}) {ignore_conflict}",
            hash=hashed,
        )


def lock(session: Session, hashes: list[str]) -> None:
    """One transaction at a time decides about a rate."""
    session.dialect.lock_names(session, [ids.lane("admit", hashed) for hashed in hashes])


# --- the sweep's part -------------------------------------------------------------------------

_place: dict[str, str] = {}


def look_after(session: Session, limit: int = RATES) -> int:
    """Give a moment to rates whose gated jobs nobody would let in, whatever went wrong before."""
    place = _place.get(session.alias, "")
    found = [row[0] for row in distinct(session, "rate_hash", GATED, place, limit)]
    _place[session.alias] = found[-1] if len(found) == limit else ""
    if not found:
        return 0
    known = session.rows(
        "SELECT rate_hash FROM {ratewait} WHERE rate_hash {among(hashes)}", hashes=found
    )
    forgotten = set(found) - {row[0] for row in known}
    look_at(session, forgotten)
    return len(forgotten)
