"""Random graphs on four worker processes that are killed with -9: the rules hold for every one of them.

A few always; hundreds by ``python -m tests.long graphs workers``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from django_jobs.models import Job, TaskStatus, Worker
from django_jobs.testing import registry
from tests.app import storm_graphs
from tests.app.storm_graphs import Marks
from tests.control.rows import assert_folds, assert_sound
from tests.dag.graphs import Log, check
from tests.engine.processes import RunJobs, eventually

pytestmark = pytest.mark.django_db(transaction=True)
COUNT = storm_graphs.COUNT or 12
#: Graphs that run at the same time.
TOGETHER = 50
#: Steps that are done between two kills.
BETWEEN = 3


def read(log: Log) -> Log:
    """What was noted, once each: a kill between a note and its record makes one more of it."""
    lists = (log.starts, log.ends, log.undone)
    return Log(*(list(dict.fromkeys(one.read())) for one in lists if isinstance(one, Marks)))


def judge(job: Job, number: int, log: Log) -> int:
    """Everything that must be true of this run; the functions that ran once more after a kill."""
    job.refresh_from_db()
    wishes = storm_graphs.wanted(number)
    check(job, wishes, read(log))
    crashes = sum(
        # What had ended and was not yet recorded when its process died is handed back uncharged.
        entry.event in ("taken_back", "crashed", "handed_back")
        for one in (job, *Job.units.filter(parent=job))
        for entry in one.history.all()
    )
    again = sum(
        len(noted) - len(set(noted)) for one in (log.ends, log.undone) if isinstance(one, Marks)
        for noted in [one.read()]
    )  # fmt: skip
    # P4: a step can repeat only after a crash.
    assert again <= crashes, (number, again, crashes)
    return again


def kill_one(source: random.Random) -> None:
    """kill -9 of one worker process that is alive; its supervisor starts another."""
    alive = list(Worker.objects.filter(status="running").values_list("pid", flat=True))
    if alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(source.choice(alive), signal.SIGKILL)


def test_graphs_on_four_processes_that_are_killed(
    runjobs: Callable[..., RunJobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_GRAPH_MARKS", str(tmp_path))
    monkeypatch.setenv("TEST_GRAPH_STORM", str(COUNT))
    source = random.Random(storm_graphs.SEED)
    begun = time.monotonic()
    kills = again = killed_at = 0
    ends: dict[str, int] = {}
    with registry():
        graphs = [storm_graphs.define(number) for number in range(COUNT)]
        for _ in range(2):
            runjobs("--processes", 2, "--threads", 4, CRASH_LIMIT=100)
        eventually(lambda: Worker.objects.filter(status="running").count() >= 4, "all four run")
        for numbers in itertools.batched(range(COUNT), TOGETHER) if hasattr(itertools, "batched") else [
            range(start, min(start + TOGETHER, COUNT)) for start in range(0, COUNT, TOGETHER)
        ]:  # fmt: skip
            jobs = {number: graphs[number].enqueue(n=number) for number in numbers}
            listed = [job.pk for job in jobs.values()]
            deadline = time.monotonic() + 120
            while (left := Job.objects.filter(pk__in=listed, finished_at=None).count()) and left:
                assert time.monotonic() < deadline, list(
                    Job.objects.filter(pk__in=listed, finished_at=None).values_list(
                        "slug", "status"
                    )
                )
                time.sleep(0.3)
                # A new process must have got somewhere: on a busy machine it needs seconds to start.
                done = TaskStatus.objects.filter(status="completed").count()
                if left > 1 and done >= killed_at + BETWEEN:
                    kill_one(source)
                    kills, killed_at = kills + 1, done
            eventually(lambda: not Job.units.filter(finished_at=None).exists(), "no unit is left")
            for number, job in jobs.items():
                again += judge(job, number, storm_graphs.log(number))
                ends[job.status] = ends.get(job.status, 0) + 1
        for job in Job.units.all():
            assert_folds(job)
        assert_sound()
    print(
        f"{COUNT} graphs on 4 processes, {kills} killed with -9, {again} functions ran once more, "
        f"{ends}, {time.monotonic() - begun:.0f} s"
    )
