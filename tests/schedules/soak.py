"""Weeks of schedules in minutes: several schedulers, kills, and clocks that jump."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

from django.db import connections

from django_jobs import failpoints, scheduling
from django_jobs.models import Job, Schedule, Tick
from django_jobs.testing import clock

#: Over the change to summer time in Berlin and in New York, and the end of Ramadan in Casablanca.
START = datetime(2026, 3, 1, tzinfo=UTC)
POINTS = ("schedule.before_begin", "schedule.before_commit", "schedule.after_commit")
LINES = (
    ("@hourly", "UTC"),
    ("*/20 * * * *", "America/New_York"),
    ("30 2 * * *", "Europe/Berlin"),
    ("15 2,3 * * *", "Africa/Casablanca"),
    ("@every 45m", "UTC"),
    ("0 9 13 * fri", "Australia/Lord_Howe"),
)


class Killed(BaseException):
    """Stands for the end of a process at this instruction."""


def make_schedules(*, keeps_time: bool = False) -> None:
    """Rows whose first slot follows START. No job of a slot may be left out: ``misfire="all"``.

    The clock stands at START afterwards, unless this process ``keeps_time``.
    """
    clock.freeze(START)
    for expression, zone in LINES:
        Schedule.objects.create(
            name=f"{expression} {zone}",
            slug="echo",
            expression=expression,
            timezone=zone,
            misfire="all",
        )
    if keeps_time:
        clock.reset()


def faults(end: datetime) -> list[str]:
    """What is wrong once every slot up to ``end`` is dealt with: left out, doubled, or made up."""
    found = []
    for row in Schedule.objects.all():
        wanted = set()
        for slot in row.timing.after(row.anchor, row.anchor):
            if slot > end:
                break
            wanted.add(slot)
        jobs = Counter(row.jobs.values_list("slot", flat=True))
        ticks = Counter(Tick.objects.filter(schedule=row).values_list("slot", flat=True))
        found += [f"{row.name}: {slot} has {n} jobs" for slot, n in jobs.items() if n != 1]
        found += [f"{row.name}: {slot} has no job" for slot in wanted - jobs.keys()]
        found += [f"{row.name}: {slot} is no slot" for slot in jobs.keys() - wanted]
        found += [f"{row.name}: {slot} has {n} ticks" for slot, n in ticks.items() if n != 1]
    return found


def steps(weeks: float, dice: random.Random) -> list[datetime]:
    """Moments of a clock that mostly goes on, by minutes up to a day, and is set back now and then."""
    moment, end, found = START, START + timedelta(weeks=weeks), []
    while moment < end:
        if dice.random() < 0.15:
            moment = max(START, moment - timedelta(minutes=dice.randint(1, 300)))
        else:
            moment += timedelta(minutes=dice.choice((7, 30, 61, 240, 600, 1440)))
        found.append(min(moment, end))
    return [*found, end]


def run_in_threads(weeks: float, *, schedulers: int, seed: int) -> tuple[list[str], int]:
    """Schedulers as threads under one clock, each killed at the edges of its transactions.

    Returns what is wrong, and how often one was killed.
    """
    dice = random.Random(seed)
    make_schedules()
    walk = steps(weeks, dice)
    kills = 0

    def kill() -> None:
        nonlocal kills
        if dice.random() < 0.1:
            kills += 1
            raise Killed

    for moment in walk:
        clock.freeze(moment)
        with ExitStack() as stack:
            for point in POINTS:
                stack.enter_context(failpoints.at(point, kill))
            _together([_tick] * schedulers)
    scheduling.handle_schedules()
    return faults(walk[-1]), kills


def _tick() -> None:
    try:
        scheduling.handle_schedules()
    except Killed:
        pass
    finally:
        connections.close_all()


def _together(functions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def jobs() -> int:
    return Job.objects.count()
