"""Who of a batch may start: units of keys and limited queues, and the rate.

One transaction at a time decides about a key, a queue or a rate: it holds the lock of that name,
and locks the rows of the units that are taken. So what it reads is exact, and those that it puts
aside are seen by the holder that ends next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django_jobs import ids
from django_jobs.lifecycle import Kind
from django_jobs.store import permits, rates
from django_jobs.store.rates import Window
from django_jobs.store.session import Session


@dataclass(slots=True)
class Wish:
    """A candidate, and what it needs to start."""

    job_id: UUID
    fence: int
    key_hash: str | None
    key: str | None
    key_limit: int | None
    rate_hash: str | None
    queue_name: str
    slug: str
    version: str | None


@dataclass(slots=True)
class Unit:
    """A unit as it is stored, or as it is about to be."""

    number: int
    job_id: UUID
    limit: int
    is_parked: bool = False


@dataclass(slots=True)
class Pool:
    """The units of one key or queue."""

    name: str
    taken: list[Unit] = field(default_factory=list)
    #: Running jobs that hold no unit: they began before their queue had a limit.
    without: int = 0

    def find(self, limit: int) -> int | None:
        """The number of a free unit; None when the strictest limit of those who hold one is reached."""
        strictest = min([limit, *(unit.limit for unit in self.taken)])
        if len(self.taken) + self.without >= strictest:
            return None
        numbers = {unit.number for unit in self.taken}
        return next(number for number in range(1, len(numbers) + 2) if number not in numbers)


@dataclass(slots=True)
class Admission:
    """What was decided: the units that each admitted job holds now, and why others got none."""

    held: dict[UUID, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[UUID, str] = field(default_factory=dict)


def limits(session: Session) -> dict[str, int]:
    """The limited queues."""
    rows = session.rows("SELECT name, job_limit FROM {queue} WHERE job_limit IS NOT NULL")
    return {row[0]: row[1] for row in rows}


def free(session: Session, limited: dict[str, int]) -> dict[str, int]:
    """How many units of each of these queues seem free, without a lock."""
    pools = _pools(session, {permits.queue_hash(name): name for name in limited}, locked=False)
    _count_unheld(session, limited, pools)
    return {
        name: limit - len(pool.taken) - pool.without
        for name, limit in limited.items()
        for pool in [pools[permits.queue_hash(name)]]
    }


def admit(session: Session, job_ids: Sequence[UUID], *, lease: float) -> Admission:
    """Decide about ``job_ids`` in their order, and write the units of those that may start.

    Those without a permit of their key, and those over their rate, are put aside until there is
    room. A job of a full queue stays where it is: its whole lane is left alone.
    """
    desk = _Counter(session, _wishes(session, job_ids))
    admission = Admission()
    for wish in desk.wishes:
        why = desk.judge(wish)
        if why is not None:
            admission.refused[wish.job_id] = why
        else:
            admission.held[wish.job_id] = desk.units_of(wish)
    for job_id in desk.write(lease):
        del admission.held[job_id]
        admission.refused[job_id] = "queue"
    desk.put_aside(admission.refused)
    return admission


def _wishes(session: Session, job_ids: Sequence[UUID]) -> list[Wish]:
    rows = session.rows(
        "SELECT id, fence, key_hash, concurrency_key, key_limit, rate_hash, queue_name, slug, version, kind, "
        "started_at FROM {job} WHERE id {among(ids)}",
        ids=list(job_ids),
    )
    uuid = session.dialect.uuid
    known = {}
    for row in rows:
        wish = Wish(uuid(row[0]), *row[1:9])  # type: ignore[arg-type]
        if row[9] != Kind.TASK and row[10] is not None:
            # A run starts once; that it goes on after a sleep is no start.
            wish.rate_hash = None
        known[wish.job_id] = wish
    return [known[job_id] for job_id in job_ids if job_id in known]


class _Counter:
    """Where the units are given out, for one batch."""

    def __init__(self, session: Session, wishes: list[Wish]) -> None:
        self.session = session
        self.wishes = wishes
        self._limits = limits(session) if wishes else {}
        keys = {wish.key_hash: wish.key or "" for wish in wishes if wish.key_limit is not None}
        queues = {
            permits.queue_hash(wish.queue_name): wish.queue_name
            for wish in wishes
            if wish.queue_name in self._limits
        }
        rated = {wish.rate_hash for wish in wishes if wish.rate_hash is not None}
        names: dict[str, str] = {**keys, **queues}  # type: ignore[dict-item]
        _lock(session, [*names, *rated])
        self._pools = _pools(session, names) if names else {}
        _count_unheld(session, queues.values(), self._pools)
        self._windows: dict[str, Window | None] = {}
        self._grants: list[tuple[Wish, str, int, int]] = []
        self._renewed: list[tuple[Wish, str]] = []

    def judge(self, wish: Wish) -> str | None:
        """Why ``wish`` may not start, or None: then its units are taken."""
        key = queue = number = place = None
        if wish.key_limit is not None and wish.key_hash is not None:
            key = self._pools[wish.key_hash]
            if not any(unit.is_parked and unit.job_id == wish.job_id for unit in key.taken):
                number = key.find(wish.key_limit)
                if number is None:
                    return "permit"
        limit = self._limits.get(wish.queue_name)
        if limit is not None:
            queue = self._pools[permits.queue_hash(wish.queue_name)]
            place = queue.find(limit)
            if place is None:
                return "queue"
        window = self._window(wish)
        if window is not None and not window.take():
            return "rate"
        if key is not None and wish.key_hash is not None and wish.key_limit is not None:
            if number is None:
                self._renewed.append((wish, wish.key_hash))
            else:
                self._grant(wish, wish.key_hash, key, number, wish.key_limit)
        if queue is not None and place is not None and limit is not None:
            self._grant(wish, permits.queue_hash(wish.queue_name), queue, place, limit)
        return None

    def units_of(self, wish: Wish) -> tuple[str, ...]:
        taken = [(one, hashed) for one, hashed, _, _ in self._grants]
        return tuple(
            hashed for one, hashed in [*self._renewed, *taken] if one.job_id == wish.job_id
        )

    def _grant(self, wish: Wish, hashed: str, pool: Pool, number: int, limit: int) -> None:
        pool.taken.append(Unit(number, wish.job_id, limit))
        self._grants.append((wish, hashed, number, limit))

    def _window(self, wish: Wish) -> Window | None:
        if wish.rate_hash is None:
            return None
        if wish.rate_hash not in self._windows:
            self._windows[wish.rate_hash] = rates.window(
                self.session, wish.rate_hash, wish.slug, wish.version
            )
        return self._windows[wish.rate_hash]

    def write(self, lease: float) -> list[UUID]:
        """Write what was given out; those jobs whose unit turned out to be taken."""
        taken: list[UUID] = []
        for wish, hashed in self._renewed:
            self.session.run(
                "UPDATE {permit} SET fence = %(fence)s, lease_expires_at = {after(lease)} WHERE job_id = %(job)s "
                "AND key_hash = %(hash)s AND lease_expires_at IS NULL",
                job=wish.job_id, hash=hashed, fence=wish.fence + 1, lease=lease,
            )  # fmt: skip
        for wish, hashed, number, limit in self._grants:
            # The constraint on (key, number) has the last word, whoever went around the lock.
            row = self.session.one(
                "INSERT INTO {permit} (key_hash, number, key_name, job_id, fence, most, lease_expires_at) "
                "VALUES (%(hash)s, %(number)s, %(key)s, %(job)s, %(fence)s, %(most)s, {after(lease)}) "
                "ON CONFLICT (key_hash, number) DO UPDATE SET job_id = excluded.job_id, fence = excluded.fence, "
                "most = excluded.most, lease_expires_at = excluded.lease_expires_at, key_name = excluded.key_name "
                "WHERE {permit}.lease_expires_at < {now} RETURNING id",
                hash=hashed, number=number, key=self._pools[hashed].name, job=wish.job_id, fence=wish.fence + 1,
                most=limit, lease=lease,
            )  # fmt: skip
            if row is None and wish.job_id not in taken:
                taken.append(wish.job_id)
        for job_id in taken:
            permits.give_back(self.session, job_id)
        for window in self._windows.values():
            if window is not None:
                window.write(self.session)
        return taken

    def put_aside(self, refused: dict[UUID, str]) -> None:
        for gate in ("permit", "rate"):
            listed = [job_id for job_id, why in refused.items() if why == gate]
            if listed:
                permits.put_aside(self.session, listed, gate)
        for window in self._windows.values():
            if window is not None:
                window.announce(self.session)


def put_rest_aside(session: Session, job_ids: Iterable[UUID], refused: dict[UUID, str]) -> None:
    """What waits behind those that were refused for want of a permit, now that the others are taken."""
    listed = [job_id for job_id in job_ids if refused.get(job_id) in ("permit", "rate")]
    if not listed:
        return
    rows = session.rows(
        "SELECT DISTINCT key_hash, rate_hash, gate FROM {job} WHERE id {among(ids)}", ids=listed
    )
    for hashed in sorted({row[0] for row in rows if row[2] == "permit" and row[0]}):
        permits.put_rest_aside(session, hashed)
    for hashed in sorted({row[1] for row in rows if row[2] == "rate" and row[1]}):
        rates.put_rest_aside(session, hashed)


def _lock(session: Session, hashes: Iterable[str]) -> None:
    session.dialect.lock_names(session, [ids.lane("admit", hashed) for hashed in hashes])


def _pools(session: Session, names: dict[str, str], *, locked: bool = True) -> dict[str, Pool]:
    """The units that are taken of these keys and queues."""
    pools = {hashed: Pool(name) for hashed, name in names.items()}
    if not names:
        return pools
    rows = session.rows(
        "SELECT key_hash, number, job_id, lease_expires_at, most FROM {permit} "
        f"WHERE key_hash {{among(hashes)}} AND {permits.LIVE} ORDER BY key_hash, number"
        + (" {lock_rows}" if locked else ""),
        hashes=sorted(names),
    )
    uuid = session.dialect.uuid
    for hashed, number, job_id, lease, most in rows:
        # A limited queue's own row tells its limit now; a key's units keep those of their calls.
        limit = most if not _is_queue(hashed, names) else _ANY
        pools[hashed].taken.append(Unit(number, uuid(job_id), limit, lease is None))  # type: ignore[arg-type]
    return pools


_ANY = 1 << 31


def _is_queue(hashed: str, names: dict[str, str]) -> bool:
    return hashed == permits.queue_hash(names[hashed])


def _count_unheld(session: Session, queues: Iterable[str], pools: dict[str, Pool]) -> None:
    """Running jobs of these queues that began without a unit: the limit is younger than they are."""
    listed = sorted(queues)
    if not listed:
        return
    rows: list[tuple[Any, ...]] = session.rows(
        "SELECT id, queue_name FROM {job} WHERE lease_expires_at >= {now} AND queue_name {among(names)}",
        names=listed,
    )
    uuid = session.dialect.uuid
    holders = {
        name: {unit.job_id for unit in pools[permits.queue_hash(name)].taken} for name in listed
    }
    for job_id, name in rows:
        if uuid(job_id) not in holders[name]:
            pools[permits.queue_hash(name)].without += 1
