"""What the ratios must reach, as data: the bar, and the floor that no excuse goes below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """``measure``: value of ``ours`` ÷ value of ``peer`` (both labels) must be at least ``ratio``.

    Where smaller values are better, the quotient is turned over. ``floor`` is what may not be
    missed by any excuse; a missed ``ratio`` above it is explained in the notes.
    """

    measure: str
    peer: str
    ratio: float
    floor: float | None = None
    ours: str = "django_jobs"


@dataclass(frozen=True)
class Limit:
    """A number of the contender ``label`` must not exceed ``most``.

    The number is its ``extra`` (its value when None), less the value of the contender ``beyond``.
    """

    measure: str
    label: str
    most: float
    extra: str | None = None
    beyond: str | None = None


WORKER = "django_jobs, supervisor and child"
TUNED, DEFAULT = "pgqueuer, batch 500", "pgqueuer, default batch 10"
_BEHIND = "future, paused queue, paused task, blocked key, no code".split(", ")

TARGETS: tuple[Target, ...] = (
    Target("noop", TUNED, 1.0, floor=0.7),
    Target("noop", DEFAULT, 1.0, floor=1.0),
    Target("noop", "procrastinate", 30, floor=8),
    Target("noop", "django-tasks-db", 60, floor=20),
    Target("noop2", TUNED, 1.0, floor=0.7),
    Target("noop2", DEFAULT, 1.0, floor=1.0),
    Target("noop2", "procrastinate", 30, floor=8),
    Target("noop2", "django-tasks-db", 60, floor=20),
    Target("each", "procrastinate", 3, ours='django_jobs, acknowledge="each"'),
    Target("enqueue", "pgqueuer", 1.0),
    Target("enqueue", "procrastinate", 1.4),
    Target("enqueue", "django-tasks-db", 1.4),
    Target("enqueue", "django-q2", 1.4),
    Target("bulk", "pgqueuer", 1.0),
    Target("latency", "pgqueuer", 1.0),
    Target("steps", "absurd", 2),
    Target("steps200", "absurd", 3, ours="django_jobs, async def"),
    Target("sqlite", "huey", 2),
    Target("sqlite", "django-tasks-db", 50),
    *(
        Target("pending", "django_jobs, none", 0.85, ours=f"django_jobs, {kind}")
        for kind in _BEHIND
    ),
    Target("due", "django_jobs, alone", 0.85),
    Target("finished", "django_jobs, none", 0.85, ours="django_jobs, finished"),
)

LIMITS: tuple[Limit, ...] = (
    Limit("idle", "django_jobs", 0.1),
    Limit("idle", "django_jobs", 0.5, extra="statements"),
    Limit("memory", WORKER, 15, beyond="plain Django, one process"),
    # Flat over many jobs: what the allocator keeps for the largest batch.
    Limit("memory", "the same after 200,000 jobs", 5, beyond=WORKER),
)
