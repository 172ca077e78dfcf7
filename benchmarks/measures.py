"""What is measured. Each function's docstring is the definition that the published page prints.

The value of a measure is taken by a clock inside of the run (the database's own timestamps where
PostgreSQL is used), from the first claim to the last recorded outcome; the start of processes and
the making of tables are never part of it. All sides of a measure run alternately in one run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One side of one measure: a system, under a label, with what its script is asked."""

    system: str
    label: str
    request: dict[str, Any] = field(default_factory=dict)
    #: What a kill -9 of the worker repeats or loses at this setting.
    kill: str = ""
    #: Whether it commits more often than we do in the same measure.
    commits_more: bool = False


@dataclass(frozen=True)
class Measure:
    """A list of contenders, ours first, that are compared in one figure."""

    name: str
    title: str
    definition: str
    unit: str
    contenders: tuple[Contender, ...]
    #: Whether a smaller value is better.
    smaller: bool = False
    #: Seconds for one side in one round.
    limit: float = 180
    sqlite: bool = False
    #: Rounds, where the measure repeats within one, or is slow to prepare.
    rounds: int | None = None


MEASURES: dict[str, Measure] = {}
Contenders = Callable[[], list[Contender]]


def measure(
    title: str,
    unit: str,
    *,
    smaller: bool = False,
    limit: float = 180,
    sqlite: bool = False,
    rounds: int | None = None,
) -> Callable[[Contenders], Contenders]:
    """Register the contenders that the function returns; its docstring is the definition."""

    def register(function: Contenders) -> Contenders:
        definition = inspect.cleandoc(function.__doc__ or "")
        MEASURES[function.__name__] = Measure(
            function.__name__, title, definition, unit, tuple(function()), smaller, limit, sqlite,
            rounds,
        )  # fmt: skip
        return function

    return register


OURS_KILL = "jobs in hand run again after the lease; outcomes not yet flushed repeat (≤ one batch)"
KILL = {
    "pgqueuer": "jobs in hand run again after the heartbeat time; unflushed outcomes repeat",
    "procrastinate": "the job in hand stays 'doing' until it is retried by hand or by a task",
    "django-tasks-db": "the job in hand stays 'running' for ever",
    "huey": "the job in hand is lost",
    "django-q2": "the job in hand runs again after `retry` seconds",
    "dbos": "the workflow in hand continues after its last step",
    "absurd": "the run in hand continues after its last step when its claim ends",
}


def ours(label: str = "django_jobs", **request: Any) -> Contender:
    return Contender("django_jobs", label, request, OURS_KILL)


def peer(name: str, label: str | None = None, **request: Any) -> Contender:
    more = name not in ("pgqueuer", "huey")
    return Contender(name, label or name, request, KILL[name], more)


def pgqueuer(**request: Any) -> list[Contender]:
    return [
        peer("pgqueuer", "pgqueuer, batch 500", batch=500, **request),
        peer("pgqueuer", "pgqueuer, default batch 10", batch=10, **request),
    ]


def _jobs(processes: int, **more: int) -> list[Contender]:
    def ask(count: int) -> dict[str, Any]:
        return {"measure": "jobs", "count": count, "processes": processes}

    return [
        ours(**ask(20_000)),
        *pgqueuer(**ask(20_000)),
        peer("procrastinate", **ask(1_000)),
        peer("django-tasks-db", **ask(600)),
    ]


@measure("No-op jobs, 1 process", "jobs/s")
def noop() -> list[Contender]:
    """Jobs per second of one worker process on PostgreSQL.

    A no-op job means: enqueued row, claimed, handler called, outcome recorded. The worker has done
    50 jobs and waits; then one commit brings all jobs. Timed from the first claim to the last
    outcome, by the timestamps that each system itself stores.
    """
    dbos = {"measure": "jobs", "count": 1_000}
    return [
        *_jobs(1),
        peer("django-q2", measure="jobs", count=600),
        peer("dbos", **dbos),
        peer("absurd", **dbos),
    ]


@measure("No-op jobs, 2 processes", "jobs/s")
def noop2() -> list[Contender]:
    """As `noop`, with two worker processes, both idle when the jobs arrive."""
    return _jobs(2)


@measure("No-op jobs, each outcome in a commit of its own", "jobs/s")
def each() -> list[Contender]:
    """As `noop`, with `acknowledge="each"`: the outcome of a job is committed by itself.

    Our worker has one thread here, as the outcomes of several that wait at the same time share a
    commit. The commits of the database are counted; a run with fewer commits than jobs is refused.
    """
    one_by_one = {"measure": "each", "task": "noop_each", "arguments": ["--threads", "1"]}
    return [
        ours('django_jobs, acknowledge="each"', count=3_000, **one_by_one),
        ours("django_jobs, batched", measure="jobs", count=20_000),
        peer("procrastinate", measure="jobs", count=1_000),
    ]


@measure("Enqueue one by one", "jobs/s")
def enqueue() -> list[Contender]:
    """Jobs per second that one client enqueues, each in a commit of its own; no worker runs.

    Timed by the client's clock after 50 calls.
    """
    ask = {"measure": "enqueue", "count": 1_500}
    return [
        ours(**ask),
        peer("pgqueuer", **ask),
        peer("procrastinate", **ask),
        peer("django-tasks-db", **ask),
        peer("django-q2", **ask),
    ]


@measure("Enqueue 10,000 in bulk", "jobs/s")
def bulk() -> list[Contender]:
    """Jobs per second that one client enqueues by the call for many, 10,000 in one commit.

    django-tasks-db and django-q2 have no such call: one by one in one transaction.
    """
    ask = {"measure": "bulk", "count": 10_000}
    return [
        ours(**ask),
        peer("pgqueuer", **ask),
        peer("procrastinate", **ask),
        peer("django-tasks-db", **ask),
        peer("django-q2", **ask),
    ]


@measure("Pick-up by an idle worker", "ms", smaller=True)
def latency() -> list[Contender]:
    """Milliseconds from the call that enqueues to the first line of the handler, p50 and p99.

    The worker is idle; 200 jobs, one at a time, 30 to 52 ms apart. The insert and its commit are
    part of the time. Clock of the machine, in the enqueuing and in the executing process.
    """
    ask = {"measure": "latency"}
    return [
        ours(**ask),
        peer("pgqueuer", **ask),
        peer("procrastinate", **ask),
        peer("django-tasks-db", **ask),
    ]


@measure("Idle worker", "CPU s/min", smaller=True, rounds=1)
def idle() -> list[Contender]:
    """CPU seconds per minute of all processes of an idle worker, over 30 s.

    Beside it the statements that it sends per second, counted in the server's log without BEGIN
    and COMMIT.
    """
    ask = {"measure": "idle", "seconds": 30}
    return [
        ours(**ask),
        peer("pgqueuer", **ask),
        peer("procrastinate", **ask),
        peer("django-tasks-db", **ask),
    ]


@measure("1,000 due jobs behind a million that cannot run", "jobs/s", limit=420, rounds=1)
def pending() -> list[Contender]:
    """Jobs per second for 1,000 due jobs while a million others are pending, by kind of the others.

    Nine times 1,000 jobs, the median. The rows are copies of one that the engine made.
    """
    kinds = ("none", "future", "paused queue", "paused task", "blocked key", "no code")
    return [
        ours(f"django_jobs, {kind}", measure="pending", backlog=kind, size=1_000_000)
        for kind in kinds
    ]


@measure("The first 20,000 of a million due jobs", "jobs/s", limit=420, rounds=1)
def due() -> list[Contender]:
    """Jobs per second for the first 20,000 outcomes, a million jobs of one task being due.

    `alone` has no more than 20,000 to begin with.
    """
    ask = {"measure": "due", "count": 20_000, "size": 1_000_000}
    return [
        ours(**ask),
        ours("django_jobs, alone", measure="due", count=20_000, size=20_000),
        peer("pgqueuer", "pgqueuer, batch 500", batch=500, **ask),
    ]


@measure("1,000 due jobs beside a million finished", "jobs/s", limit=420, rounds=1)
def finished() -> list[Contender]:
    """As `pending`, with a million completed jobs kept in the table."""
    return [
        ours(f"django_jobs, {kind}", measure="pending", backlog=kind, size=1_000_000)
        for kind in ("none", "finished")
    ]


def _runs(processes: int) -> list[Contender]:
    ask = {"measure": "steps", "runs": 200, "steps": 10, "processes": processes}
    return [
        ours("django_jobs, async def", asynchronous=True, **ask),
        ours("django_jobs, def (4 threads)", **ask),
        peer("absurd", **ask),
        peer("dbos", **ask),
    ]


@measure("Durable steps, one run of 1,000", "steps/s")
def steps() -> list[Contender]:
    """Steps per second of one run of 1,000 steps, each recorded before the next one starts."""
    ask = {"measure": "steps", "runs": 1, "steps": 1_000}
    return [ours(**ask), peer("absurd", **ask), peer("dbos", **ask)]


@measure("Durable steps, 200 runs of 10, 1 process", "steps/s")
def steps200() -> list[Contender]:
    """Steps per second of 200 runs of 10 steps each, one process at its default concurrency."""
    return _runs(1)


@measure("Durable steps, 200 runs of 10, 2 processes", "steps/s")
def steps200x2() -> list[Contender]:
    """As `steps200`, with two worker processes, both idle when the runs arrive."""
    return _runs(2)


@measure("Memory of an idle worker", "MB", smaller=True, rounds=1)
def memory() -> list[Contender]:
    """Proportional set size of all processes of an idle worker, beside a plain Django process.

    `after many` is measured when the worker has run 200,000 more jobs.
    """
    return [
        ours("django_jobs, supervisor and child", measure="memory"),
        ours("the same after 200,000 jobs", measure="memory", more=200_000),
        ours("plain Django, one process", measure="bare"),
    ]


@measure("No-op jobs on SQLite", "jobs/s", sqlite=True)
def sqlite() -> list[Contender]:
    """As `noop`, on an SQLite file in WAL mode with synchronous=NORMAL (huey: its own defaults)."""
    return [
        ours(measure="jobs", count=10_000),
        peer("huey", measure="jobs", count=10_000),
        peer("django-tasks-db", measure="jobs", count=400),
    ]


def quick() -> Measure:
    """`noop` with small numbers against pgqueuer and procrastinate only."""
    return replace(
        MEASURES["noop"],
        limit=20,
        contenders=(
            ours(measure="jobs", count=10_000),
            *pgqueuer(measure="jobs", count=10_000),
            peer("procrastinate", measure="jobs", count=300),
        ),
    )
