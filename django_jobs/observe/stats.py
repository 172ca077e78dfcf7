"""Numbers for people: how much waits and where, how fast it goes, what fails.

Each is read in a few statements whose cost has a bound, whatever the size of the tables: rows are
counted up to a limit, and beyond it the answer says "more than".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Q, QuerySet
from django.db.models.fields.json import KT
from django.db.models.functions import Left

from django_jobs import clock, conf
from django_jobs.explain import SILENT_BEATS
from django_jobs.lifecycle import Gate, Status
from django_jobs.models import Job, Queue, Schedule, Task, Worker
from django_jobs.observe.selection import of_status
from django_jobs.store import claims
from django_jobs.store.claims import Lane
from django_jobs.store.session import Session

#: Rows are counted up to here; beyond, "more than" is all that is said.
COUNT_LIMIT = 1000
#: Lanes that one statement counts, and jobs that are looked at besides those in lanes.
LANES_AT_ONCE, LOOKED_AT = 100, 5000
#: Of each part of a period: jobs counted, and jobs read for their times.
COUNTED, TIMED = 2000, 100
#: Newest failures that are grouped.
FAILURES = 1000
#: Seconds after its time at which a schedule counts as late.
LATE = 60.0


def capped_count(found: QuerySet[Any], limit: int = COUNT_LIMIT) -> int:
    """How many rows there are, but ``limit + 1`` at most."""
    return found.order_by().values("pk")[: limit + 1].count()


def status_counts(found: QuerySet[Any]) -> dict[str, int]:
    """Jobs by status, each counted up to the limit, in one statement."""
    queries = [
        found.filter(of_status(status)).order_by().values("pk")[: COUNT_LIMIT + 1]
        for status in Status
    ]
    parts: list[str] = []
    params: list[Any] = []
    for query in queries:
        sql, values = query.query.sql_with_params()
        parts.append(f"(SELECT COUNT(*) FROM ({sql}) counted)")
        params.extend(values)
    with connections[found.db].cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(parts)}", params)
        row = cursor.fetchone()
    return dict(zip(map(str, Status), row, strict=True))


# --- queues -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Depth:
    """What a queue holds. Each number may be short where ``more`` is set."""

    name: str
    paused: bool = False
    limit: int | None = None
    #: Ready to run, of which ``blocked`` wait for a paused task or queue.
    ready: int = 0
    blocked: int = 0
    #: Waiting for a time or an event; waiting for a permit; paused; in hand.
    later: int = 0
    held: int = 0
    stopped: int = 0
    running: int = 0
    #: Since when the one that has waited longest could have started.
    oldest: datetime | None = None
    workers: int = 0
    more: bool = False

    @property
    def waited(self) -> timedelta | None:
        return None if self.oldest is None else max(clock.now() - self.oldest, timedelta(0))


def depths(alias: str, workers: Iterable[Worker] | None = None) -> dict[str, Depth]:
    """What each queue holds, by name; queues of which there is neither row nor job are left out.

    ``workers`` are those alive, where they are known already.
    """
    found = {
        row.name: Depth(row.name, row.paused, row.limit) for row in Queue.objects.using(alias).all()
    }
    paused_tasks = set(Task.objects.using(alias).filter(paused=True).values_list("slug", flat=True))
    for lane, count, oldest in _lanes(alias):
        queue = found.setdefault(lane.queue_name, Depth(lane.queue_name))
        queue.ready += min(count, COUNT_LIMIT)
        queue.more = queue.more or count > COUNT_LIMIT
        if queue.paused or lane.slug in paused_tasks:
            queue.blocked += min(count, COUNT_LIMIT)
        elif oldest is not None and oldest <= clock.now():
            queue.oldest = oldest if queue.oldest is None else min(queue.oldest, oldest)
    for name, column, count, capped in _others(alias):
        queue = found.setdefault(name, Depth(name))
        setattr(queue, column, getattr(queue, column) + count)
        queue.more = queue.more or capped
    for worker in live_workers(alias) if workers is None else workers:
        for name in worker.queues or list(found):
            if name in found:
                found[name].workers += 1
    return dict(sorted(found.items()))


def _lanes(alias: str) -> Iterable[tuple[Lane, int, datetime | None]]:
    """Each lane with ready jobs, how many they are, and since when the oldest of them waits."""
    session = Session(alias, through_django=True)
    lanes = {lane.lane: lane for lane in claims.lanes(session)}
    numbers = sorted(lanes)
    for start in range(0, len(numbers), LANES_AT_ONCE):
        parts = [
            f"SELECT {number} AS lane, COUNT(*) AS n, MIN(due_at) AS oldest FROM (SELECT due_at FROM {{job}} "
            f"{{index(claim)}} WHERE status = 'pending' AND gate = 'open' AND lane = {number} "
            f"ORDER BY precedence, turn, due_at, id LIMIT {COUNT_LIMIT + 1}) one_{index}"
            for index, number in enumerate(numbers[start : start + LANES_AT_ONCE])
        ]
        for number, count, oldest in session.rows(" UNION ALL ".join(parts)):
            yield lanes[int(number)], count, session.dialect.time(oldest)


#: What is not ready to run, by column of :class:`Depth`.
OTHERS = {
    "later": Q(status=Status.SLEEPING) | Q(status=Status.PENDING, gate=Gate.TIMER),
    "held": Q(status=Status.PENDING, gate=Gate.PERMIT),
    "stopped": Q(status=Status.PAUSED),
    "running": Q(lease_expires_at__isnull=False),
}


def _others(alias: str) -> Iterable[tuple[str, str, int, bool]]:
    """Queue, column of :class:`Depth`, number of jobs that are not ready, and whether there are more."""
    queries = [
        Job.units.using(alias).filter(arm).order_by().values("queue_name")[: LOOKED_AT + 1]
        for arm in OTHERS.values()
    ]
    columns = list(OTHERS)
    rows = _union(alias, queries, "picked.queue_name, COUNT(*)", "GROUP BY picked.queue_name")
    totals = Counter[int]()
    for number, _name, count in rows:
        totals[number] += count
    for number, name, count in rows:
        yield name, columns[number], count, totals[number] > LOOKED_AT


def live_workers(alias: str) -> list[Worker]:
    """Those that have shown a sign of life of late."""
    silent = clock.now() - timedelta(seconds=SILENT_BEATS * max(conf.get().heartbeat, 4.0))
    found = Worker.objects.using(alias).filter(status="running", heartbeat_at__gte=silent)
    return list(found.defer("codes").order_by("-heartbeat_at"))


# --- over time --------------------------------------------------------------------------------


@dataclass(slots=True)
class Part:
    """One part of a period: how many jobs ended in it, and how long they took, in seconds."""

    start: datetime
    end: datetime
    finished: int = 0
    failed: int = 0
    #: ``finished`` was reckoned from the first of them.
    estimated: bool = False
    waits: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)

    def waited(self, percent: int) -> float | None:
        """From the moment it was due to its first start."""
        return percentile(self.waits, percent)

    def ran(self, percent: int) -> float | None:
        """From first start to end."""
        return percentile(self.runs, percent)


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The value that ``percent`` of the values do not exceed."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, -(-percent * len(ranked) // 100) - 1))]


def activity(alias: str, span: timedelta, parts: int = 30) -> list[Part]:
    """What ended within ``span`` before now, in equal parts, oldest first."""
    now = clock.now()
    step = span / parts
    found = [Part(now - span + step * i, now - span + step * (i + 1)) for i in range(parts)]
    by_end = Job.units.using(alias).order_by("finished_at")
    ended = [by_end.filter(finished_at__gte=part.start, finished_at__lt=part.end) for part in found]
    times = Session(alias).dialect.time
    counted = _union(
        alias, [one.values("finished_at")[: COUNTED + 1] for one in ended],
        "COUNT(*), MAX(picked.finished_at)",
    )  # fmt: skip
    for number, count, last in counted:
        _count(found[number], count, times(last))
    columns = ("status", "created_at", "run_after", "started_at", "finished_at")
    for number, *row in _union(alias, [one.values(*columns)[:TIMED] for one in ended], "picked.*"):
        _time(found[number], row[0], *(times(value) for value in row[1:]))
    for part in found:
        sampled = min(part.finished, TIMED)
        part.failed = round(part.failed * part.finished / sampled) if sampled else 0
    return found


def _count(part: Part, count: int, last: datetime | None) -> None:
    part.finished = count
    if count > COUNTED and last is not None:
        # So many in the first piece of it; the whole is taken to be alike.
        piece = max((last - part.start).total_seconds(), 1e-6)
        part.finished = round(count * (part.end - part.start).total_seconds() / piece)
        part.estimated = True


def _time(
    part: Part,
    status: str,
    created: datetime | None,
    due: datetime | None,
    started: datetime | None,
    finished: datetime | None,
) -> None:
    if status in (Status.FAILED, Status.COMPENSATION_FAILED):
        part.failed += 1
    if created is None or started is None or finished is None:
        return
    part.waits.append(max((started - max(due or created, created)).total_seconds(), 0.0))
    part.runs.append(max((finished - started).total_seconds(), 0.0))


def _union(alias: str, queries: list[Any], wanted: str, rest: str = "") -> list[Any]:
    """``wanted`` of each of these queries by one statement, the number of the query before it."""
    parts, params = [], list[Any]()
    for number, query in enumerate(queries):
        sql, values = query.query.sql_with_params()
        parts.append(f"SELECT {number} AS part, {wanted} FROM ({sql}) picked {rest}")
        params.extend(values)
    with connections[alias].cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts), params)
        return list(cursor.fetchall())


# --- failures ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Failures:
    """Failed jobs of one task by the same kind of error."""

    slug: str
    type: str
    message: str
    count: int
    first: datetime
    last: datetime
    newest: UUID


def failures(alias: str, span: timedelta) -> tuple[list[Failures], bool]:
    """The newest failures within ``span`` in groups, the largest first; and whether there are more."""
    since = clock.now() - span
    rows = (
        Job.objects.using(alias)
        .filter(of_status(Status.FAILED))
        .order_by("-pk")
        .annotate(
            error_type=Left(KT("error__type"), 200), error_message=Left(KT("error__message"), 200)
        )
        .values_list("pk", "slug", "error_type", "error_message", "finished_at")[: FAILURES + 1]
    )
    groups: dict[tuple[str, str], Failures] = {}
    looked_at = 0
    for pk, slug, kind, message, at in rows:
        looked_at += 1
        if at < since:
            continue
        known = groups.get((slug, kind or ""))
        if known is None:
            groups[slug, kind or ""] = Failures(slug, kind or "", message or "", 1, at, at, pk)
        else:
            known.count += 1
            known.first, known.last = min(known.first, at), max(known.last, at)
    ranked = sorted(groups.values(), key=lambda one: (-one.count, -one.last.timestamp()))
    return ranked, looked_at > FAILURES


def late_schedules(alias: str) -> list[Schedule]:
    """Enabled schedules whose next slot has passed without having been dealt with."""
    before = clock.now() - timedelta(seconds=LATE)
    found = Schedule.objects.using(alias).filter(enabled=True, next_slot__lt=before)
    return list(found.order_by("next_slot")[:50])


# --- tasks ------------------------------------------------------------------------------------


def task_times(alias: str, slug: str) -> Part:
    """How the newest jobs of a task ended and how long they took."""
    now = clock.now()
    columns = ("status", "created_at", "run_after", "started_at", "finished_at")
    rows = list(
        Job.units.using(alias)
        .filter(slug=slug, finished_at__isnull=False)
        .order_by("-pk")
        .values_list(*columns)[:COUNT_LIMIT]
    )
    part = Part(min((row[1] for row in rows), default=now), now, finished=len(rows))
    for row in rows:
        _time(part, *row)
    return part


def live_codes(alias: str) -> dict[tuple[str, str | None], int]:
    """How many live workers can run each (slug, version)."""
    silent = clock.now() - timedelta(seconds=SILENT_BEATS * max(conf.get().heartbeat, 4.0))
    found = Worker.objects.using(alias).filter(status="running", heartbeat_at__gte=silent)
    counted: dict[tuple[str, str | None], int] = {}
    for codes in found.values_list("codes", flat=True):
        for slug, version in codes or []:
            counted[slug, version] = counted.get((slug, version), 0) + 1
    return counted
