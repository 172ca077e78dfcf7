"""Workers and beats that share schedules, on a database whose clock is moved by weeks.

Three ``manage.py runjobs`` and two ``celery beat``, all of them real processes, look after the same
schedules. The time of the database runs, jumps ahead and is set back; processes are killed and frozen.

The database's time is what decides. SQLite has that of its processes, which read how far they are ahead
from one file. On PostgreSQL a function of the name ``clock_timestamp`` stands before the server's own in
the search path; the workers' own clocks are hours apart from it besides.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import connection

from django_jobs.models import Job, Schedule, Worker
from tests.celery.chaos import children_of
from tests.celery.processes import Beat
from tests.engine.processes import RunJobs, eventually, freeze, lines
from tests.schedules import soak
from tests.support import ROOT, vendor

WORKERS, BEATS = 3, 2
#: Schedules that the code of the workers defines, besides those of the soak.
IN_CODE = 3
#: Seconds that a worker's own clock is wrong where the database has a clock.
WRONG = (0, 4 * 3600, -7 * 3600)
#: Nothing is pruned, and no job is failed for the kills that hit it.
SETTINGS = {"KEEP_COMPLETED": 1e8, "CRASH_LIMIT": 10_000, "LEASE": 4.0, "HEARTBEAT": 0.4}
#: Simulated time that may pass before all slots are made up for: "all" makes up for 100 at most.
MOST_BEHIND = timedelta(hours=30)
#: After the last slots, and before any other one.
REST = timedelta(minutes=14)


class SimulatedTime:
    """The time of the database, moved for all of its processes at once; it goes on between the moves."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock"
        self.file.write_bytes(struct.pack("d", 0.0))

    def set(self, moment: datetime) -> None:
        ahead = (moment - datetime.now(UTC)).total_seconds()
        with self.file.open("r+b") as file:
            file.write(struct.pack("d", ahead))
        if vendor() == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE simulated.clock SET ahead = make_interval(secs => %s)", [ahead]
                )

    def environment(self, wrong: float = 0.0) -> dict[str, str]:
        """For a process that lives by this time; ``wrong`` is how far its own clock is ahead of it."""
        return {
            "CLOCK_FILE": str(self.file),
            "CLOCK_SHIFT": str(wrong if vendor() == "postgresql" else 0),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "clocks"), str(ROOT)]),
            "TEST_APPS": "tests.schedules.clockwork",
        }


@contextlib.contextmanager
def simulated_time(folder: Path) -> Iterator[SimulatedTime]:
    """For sessions that begin within the block."""
    if vendor() != "postgresql":
        yield SimulatedTime(folder)
        return
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA simulated")
        cursor.execute("CREATE TABLE simulated.clock AS SELECT interval '0' AS ahead")
        cursor.execute(
            "CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            "'SELECT pg_catalog.clock_timestamp() + ahead FROM simulated.clock'"
        )
        cursor.execute(f'ALTER DATABASE "{name}" SET search_path = simulated, pg_catalog, public')
        try:
            yield SimulatedTime(folder)
        finally:
            cursor.execute(f'ALTER DATABASE "{name}" RESET search_path')
            cursor.execute("DROP SCHEMA simulated CASCADE")


@dataclass
class Fleet:
    """The processes, and what befalls them."""

    clock: SimulatedTime
    folder: Path
    broker: str
    dice: random.Random
    workers: list[RunJobs] = field(default_factory=list)
    beats: list[Beat] = field(default_factory=list)
    frozen: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    _started: int = 0

    @property
    def marks(self) -> Path:
        return self.folder / "fired"

    def start(self) -> None:
        self.workers = [self._worker(number) for number in range(WORKERS)]
        self.beats = [self._beat() for _ in range(BEATS)]

    def _log(self) -> Path:
        self._started += 1
        return self.folder / f"process{self._started}.log"

    def _environment(self, role: str, wrong: float = 0.0) -> dict[str, str]:
        own = {"CLOCKWORK_MARKS": str(self.marks), "CLOCKWORK_ROLE": role}
        return {**self.clock.environment(wrong), **own}

    def _worker(self, number: int) -> RunJobs:
        env = self._environment("worker", WRONG[number])
        return RunJobs(self._log(), "--threads", 2, env=env, **SETTINGS)

    def _beat(self) -> Beat:
        return Beat(self._log(), self.broker, env=self._environment("beat"), **SETTINGS)

    # --- what befalls it ------------------------------------------------------------------------

    def strike(self) -> None:
        """One fault by lot, at any instruction."""
        time.sleep(self.dice.uniform(0, 0.4))
        kinds = (
            self.kill_worker, self.kill_child, self.kill_beat, self.freeze_one, self.freeze_workers,
        )  # fmt: skip
        self.dice.choice(kinds)()

    def kill_worker(self) -> None:
        """kill -9 of a runjobs with its children; another one takes its place."""
        number = self.dice.randrange(WORKERS)
        self.workers[number].kill_all()
        self.workers[number] = self._worker(number)
        self.faults["runjobs killed"] += 1

    def kill_child(self) -> None:
        """kill -9 of the process that ticks and runs jobs; its supervisor lives on."""
        for pid in self._children()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.faults["child killed"] += 1

    def kill_beat(self) -> None:
        number = self.dice.randrange(BEATS)
        self.beats[number].kill_all()
        self.beats[number] = self._beat()
        self.faults["beat killed"] += 1

    def freeze_one(self) -> None:
        """A beat or a child stands still until :meth:`thaw`, for longer than any lease."""
        pid = self.dice.choice([self.dice.choice(self.beats).pid, *self._children()])
        self._freeze(pid)
        self.faults["one frozen"] += 1

    def freeze_workers(self) -> None:
        """All children stand still, so that only the beats are left."""
        for pid in self._children():
            self._freeze(pid)
        self.faults["all workers frozen"] += 1

    def _freeze(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            # On PostgreSQL also within a transaction: the server ends that.
            os.kill(pid, signal.SIGSTOP) if vendor() == "postgresql" else freeze(pid)
            self.frozen.append(pid)

    def thaw(self) -> None:
        for pid in self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []

    def _children(self) -> list[int]:
        """The processes that serve jobs, in random order."""
        own = {pid for worker in self.workers for pid in children_of(worker.pid)}
        # The row of a process may outlive it, and then its number is nobody's or somebody else's.
        there = [pid for pid in Worker.objects.values_list("pid", flat=True) if pid in own]
        return self.dice.sample(sorted(there), len(there))

    # --- its end --------------------------------------------------------------------------------

    def stop(self) -> None:
        """In good order."""
        self.thaw()
        for process in (*self.workers, *self.beats):
            assert process.process.poll() is None, f"ended by itself: {process.output()[-4000:]}"
            process.terminate()
        for process in (*self.workers, *self.beats):
            # One that has only just begun does not listen for signals yet.
            assert process.wait() in (0, -signal.SIGTERM), process.output()

    def kill_all(self) -> None:
        for process in (*self.workers, *self.beats):
            process.kill_all()

    def report(self, weeks: float) -> str:
        fired = Counter(line.split()[0] for line in lines(self.marks))
        said = ", ".join(f"{count} × {name}" for name, count in sorted(self.faults.items()))
        return (
            f"{weeks:g} weeks on {vendor()}, {WORKERS} runjobs, {BEATS} beats; {said}; {Job.objects.count():,} "
            f"slots, each with one job ({fired['worker']:,} noted by workers, {fired['beat']:,} by beats)"
        )


def live_through(
    fleet: Fleet, weeks: float, *, chance: float, on_step: Callable[[int, int], Any] | None = None
) -> None:
    """Weeks of schedules, a fault at ``chance`` of the steps, until every slot has its job and each is done."""
    clock, dice = fleet.clock, fleet.dice
    soak.make_schedules(keeps_time=True)
    clock.set(soak.START + timedelta(seconds=1))
    fleet.start()
    wanted = len(soak.LINES) + IN_CODE
    eventually(lambda: Schedule.objects.count() == wanted, "the code's schedules are stored", 120)
    eventually(lambda: Worker.objects.filter(status="running").count() == WORKERS, "all serve", 120)
    walk = soak.steps(weeks, dice)
    walk.append(walk[-1] + REST)
    reached = done = soak.START
    for number, moment in enumerate(walk):
        if moment - done > MOST_BEHIND:
            catch_up(reached)
            done = reached
        clock.set(moment)
        reached = max(reached, moment)
        if dice.random() < chance:
            fleet.strike()
        if dice.random() < 0.6:
            catch_up(moment)
            done = reached
        if dice.random() < 0.7:
            fleet.thaw()
        if on_step is not None:
            on_step(number + 1, len(walk))
    fleet.thaw()
    catch_up(walk[-1])
    live = Job.objects.filter(finished_at__isnull=True)
    eventually(lambda: not live.exists(), "every job has ended", 180)
    fleet.stop()
    assert soak.faults(walk[-1]) == []
    assert set(Job.objects.values_list("status", flat=True)) == {"completed"}
    call_command("jobs_check", stdout=StringIO())


def catch_up(moment: datetime) -> None:
    """Wait until nothing up to this moment is left to be fired."""
    due = Schedule.objects.filter(enabled=True, next_slot__lte=moment)
    eventually(lambda: not due.exists(), f"the slots up to {moment} are dealt with", 180)
