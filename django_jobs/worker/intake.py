"""What a worker may take, and when it is worth a look."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from django_jobs import clock, conf, ids
from django_jobs.definitions import registry
from django_jobs.store import claims as claiming
from django_jobs.store.claims import Lane
from django_jobs.store.session import Session

logger = logging.getLogger("django_jobs.worker")

#: Seconds between two looks of a worker that is told of new work by LISTEN.
LISTENING_PAUSE = 60.0


@dataclass(frozen=True)
class Plan:
    """What a worker is told to do."""

    alias: str
    queues: list[str] | None = None
    excluded: list[str] = field(default_factory=list)
    threads: int = 4
    once: bool = False
    limit: int | None = None
    max_jobs: int | None = None
    max_memory: int | None = None
    idle_timeout: float | None = None
    schedules: bool = True
    health_file: str | None = None


def mine(
    lanes: list[Lane], queues: list[str] | None, excluded: list[str] | None = None
) -> tuple[list[Lane], list[Lane]]:
    """The lanes of these queues that this process has code for, and those that it lacks code for."""
    codes = registry.codes()
    here = [
        lane
        for lane in lanes
        if lane.runner != "celery"
        and (queues is None or lane.queue_name in queues)
        and lane.queue_name not in (excluded or ())
    ]
    known = [lane for lane in here if (lane.slug, lane.version) in codes]
    return known, [lane for lane in here if (lane.slug, lane.version) not in codes]


def has_code(slug: str, version: str | None) -> bool:
    """Whether this process can run jobs of this (slug, version)."""
    return (slug, version) in registry.codes()


class Intake:
    """Knows the lanes that hold work, and when to look for more of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.settings = conf.get()
        self.lanes: list[Lane] = []
        #: Monotonic moment of the next look at the lanes.
        self._next_look = 0.0
        self._idle_since = clock.monotonic()
        self._reported: set[tuple[str, str | None]] = set()

    @property
    def wants_look(self) -> bool:
        """Whether it is time to look which lanes hold work."""
        return clock.monotonic() >= self._next_look

    def look_soon(self) -> None:
        """There may be new work: a hint, or the end of a job."""
        self._next_look = 0.0

    def look_in(self, seconds: float) -> None:
        """Something becomes due then."""
        self._next_look = min(self._next_look, clock.monotonic() + seconds)

    def refresh(self, session: Session) -> None:
        """Let in what has become due, and find the lanes that hold work for this worker."""
        self._next_look = clock.monotonic() + self.settings.poll_max
        claiming.open_gates(session)
        self.lanes, foreign = mine(claiming.lanes(session), self.plan.queues, self.plan.excluded)
        for lane in foreign:
            if (lane.slug, lane.version) not in self._reported:
                self._reported.add((lane.slug, lane.version))
                logger.warning(
                    "Jobs of %r (version %s) wait, but this worker has no code for them.",
                    lane.slug, lane.version,
                )  # fmt: skip

    def ran_dry(self, session: Session, *, listening: bool) -> None:
        """Nothing more to take: forget the lanes, and look again when something may be due."""
        self.lanes = []
        idle = clock.monotonic() - self._idle_since
        # Whoever is told of new work needs no look of his own: the pulse is the safety net.
        pause = (
            LISTENING_PAUSE
            if listening
            else min(self.settings.poll_max, max(self.settings.poll_min, idle / 4))
        )
        pause += ids.jitter(pause * 0.2)
        due = claiming.seconds_to_next_due(session)
        if due is not None:
            pause = min(pause, max(due, 0.0))
        self._next_look = clock.monotonic() + max(pause, 0.01)

    def took(self) -> None:
        self._idle_since = clock.monotonic()

    @property
    def idle(self) -> float:
        """Seconds since the last job was taken."""
        return clock.monotonic() - self._idle_since

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return max(self._next_look - clock.monotonic(), 0.0)
