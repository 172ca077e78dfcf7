"""Running everything that is due, in the calling thread."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async

from django_jobs import clock
from django_jobs.errors import InvalidInput, JobsError

if TYPE_CHECKING:
    from django_jobs.outcomes import Outcome
    from django_jobs.store.claims import Claim
    from django_jobs.worker.report import RunReport

#: Executions after which drain() takes what it runs for endless.
LIMIT = 10_000


class DrainLimit(JobsError):
    """drain() stopped because jobs kept becoming due; the text names those that ran most."""


def drain(
    until: datetime | timedelta | None = None,
    *,
    database: str | None = None,
    limit: int = LIMIT,
) -> RunReport:
    """Run everything due, in all queues and of every runner, until nothing is due; return the sum.

    One job after the other runs in the calling thread, its steps too, in order of priority, due
    time and age. Time does not move and no schedule is ticked. With ``until`` (a moment, or a span
    from now) the clock is frozen and moved from due time to due time up to that moment, where it
    stays. Raises DrainLimit after ``limit`` executions, and InvalidInput for an ``until`` that is
    naive or already past.
    """
    end = None if until is None else _end(until)
    run = Drain(database, limit)
    if end is None:
        run.run_due()
    else:
        run.run_until(end)
    return run.report()


async def adrain(
    until: datetime | timedelta | None = None,
    *,
    database: str | None = None,
    limit: int = LIMIT,
) -> RunReport:
    """:func:`drain` from async code."""
    return await sync_to_async(drain)(until, database=database, limit=limit)


def _end(until: datetime | timedelta) -> datetime:
    if isinstance(until, timedelta):
        end = clock.now() + until
    elif isinstance(until, datetime) and until.tzinfo is not None:
        end = until.astimezone(UTC)
    else:
        raise InvalidInput(f"drain(until=…) takes an aware datetime or a timedelta, not {until!r}.")
    if end < clock.now():
        raise InvalidInput(
            f"drain() moves time forward only: {end.isoformat()} lies before now, "
            f"{clock.now().isoformat()}."
        )
    return end


class Drain:
    """One call of :func:`drain`."""

    def __init__(self, database: str | None, limit: int) -> None:
        from django_jobs.store.session import engine_alias
        from django_jobs.worker.local import Batch

        self._batch = Batch(database or engine_alias(), None, None)
        self._session = self._batch.session
        self._limit = limit
        self._outcomes: list[Outcome] = []
        self._ran: Counter[str] = Counter()

    def run_due(self) -> None:
        """Run until nothing is due at this moment."""
        while claims := self._take():
            self._count(claims[0].slug)
            self._outcomes += self._batch.execute(claims, sequential=True)

    def run_until(self, end: datetime) -> None:
        clock.freeze(clock.now())
        self.run_due()
        while (moment := self._next_moment()) is not None and moment <= end:
            clock.freeze(moment)
            self.run_due()
        clock.freeze(end)
        self.run_due()

    def report(self) -> RunReport:
        return self._batch.report(self._outcomes)

    def _take(self) -> list[Claim]:
        """The next job in order, or nothing."""
        from django_jobs.definitions import registry
        from django_jobs.store import claims as claiming

        self._batch.prepare()
        lease = self._batch.settings.lease
        open_jobs = self._open_jobs()
        while True:
            codes = registry.codes()
            lanes = [
                lane
                for lane in self._session.committed(claiming.lanes)
                if (lane.slug, lane.version) in codes
            ]
            taken = self._session.committed(
                lambda s, lanes=lanes: claiming.claim(  # type: ignore[misc]
                    s, lanes, worker=self._batch.worker, limit=1, lease=lease
                )
            )
            before, open_jobs = open_jobs, self._open_jobs()
            # A job that was put aside for want of a permit must not hide those behind it.
            if taken or open_jobs >= before:
                return taken or self._batch.undoing(1)

    def _open_jobs(self) -> int:
        row = self._session.one(
            "SELECT COUNT(*) FROM {job} WHERE status = 'pending' AND gate = 'open'"
        )
        return row[0] if row else 0

    def _next_moment(self) -> datetime | None:
        """When something becomes due next: a job, or a lease that its holder left behind."""
        row = self._session.one(
            "SELECT MIN(CASE WHEN run_after > {now} AND (status IN ('sleeping', 'compensating') OR "
            "(status = 'pending' AND gate = 'timer')) THEN run_after END), "
            "MIN(CASE WHEN due_at > {now} AND status = 'pending' AND gate = 'open' THEN due_at END), "
            "MIN(CASE WHEN expires_at > {now} THEN expires_at END), "
            "MIN(CASE WHEN deadline_at > {now} THEN deadline_at END), "
            "MIN(CASE WHEN lease_expires_at >= {now} THEN lease_expires_at END) "
            "FROM {job} WHERE finished_at IS NULL"
        )
        assert row is not None
        rate = self._session.one("SELECT MIN(opens_at) FROM {ratewait} WHERE opens_at > {now}")
        *moments, lease = (self._session.dialect.time(value) for value in row)
        moments.append(self._session.dialect.time(rate[0] if rate else None))
        if lease is not None:
            # A lease holds up to and including its last moment.
            moments.append(lease + timedelta(microseconds=1))
        return min((moment for moment in moments if moment is not None), default=None)

    def _count(self, slug: str) -> None:
        self._ran[slug] += 1
        if self._ran.total() > self._limit:
            most = ", ".join(f"{name} {times} times" for name, times in self._ran.most_common(3))
            raise DrainLimit(
                f"drain() ran {self._limit} executions and jobs are due still; most often ran {most}. "
                "Does a job enqueue itself, or retry without a delay and without end? "
                "Give the jobs an end, or drain(limit=…) a higher limit."
            )
