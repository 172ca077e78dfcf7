"""Keys and a limited queue under kill -9 and freezes, measured by a file outside: RELIABILITY P6, L8.

``python -m tests.long limits`` runs the same for a minute.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from django_jobs.models import Job, Permit, Queue
from django_jobs.observe import health
from tests.app import tasks
from tests.engine.processes import QUICK, RunJobs, eventually, freeze, lines

pytestmark = pytest.mark.django_db(transaction=True)
SECONDS = float(os.environ.get("TEST_LIMIT_STORM_SECONDS", "3"))
SEED = int(os.environ.get("TEST_LIMIT_STORM_SEED", "7"))
LEASE, HEARTBEAT = QUICK["LEASE"], QUICK["HEARTBEAT"]
#: What a note may be late on a busy machine, and a heartbeat after a thaw. Seconds.
SLACK = 0.6
PROCESSES, ROOMS, IN_ROOM, IN_QUEUE = 4, ("a", "b"), 2, 3


@dataclass(frozen=True)
class Stay:
    """A time that somebody was in a room, by its notes."""

    room: str
    begin: float
    end: float


def stays(marks: Path) -> list[Stay]:
    """Who was where when. What a frozen process missed counts while its lease lasted, no longer.

    Thawed after its lease, it has one heartbeat to notice; whatever it does later counts again.
    """
    notes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines(marks):
        room, who, _, moment = line.split()
        notes[room, who].append(float(moment))
    found = []
    for (room, _), moments in notes.items():
        begin = last = moments[0]
        for moment in moments[1:]:
            if moment - last > LEASE:
                if last > begin:
                    found.append(Stay(room, begin, last))
                begin = moment + HEARTBEAT + SLACK
            last = moment
        if last > begin:
            found.append(Stay(room, begin, last))
    return found


def most_at_once(stays: Iterable[Stay]) -> int:
    found = list(stays)
    changes = sorted([(one.begin, 1) for one in found] + [(one.end, -1) for one in found])
    inside = most = 0
    for _, change in changes:
        inside += change
        most = max(most, inside)
    return most


def test_the_measure_sees_an_overlap(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.write_text(
        "a x 1 10.0\na x 1 11.0\na y 2 10.5\na y 2 11.5\nb z 3 10.0\nb z 3 30.0\nb z 3 30.1\n"
    )
    assert most_at_once(stays(marks)) == 2
    assert [one for one in stays(marks) if one.room == "b"] == []


def test_p6_neither_kills_nor_freezes_let_more_in_than_the_limits(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """P6, L8: four processes; afterwards nothing dead holds a permit and nothing is lost."""
    chance = random.Random(SEED)
    Queue.objects.create(name="narrow", limit=IN_QUEUE)
    count = int(SECONDS * 8)
    tasks.occupy.using(queue_name="narrow").enqueue_many(
        [
            {"marks": str(marks), "room": ROOMS[n % 2], "seconds": chance.uniform(0.1, 0.5)}
            for n in range(count)
        ]
    )

    def start() -> RunJobs:
        return runjobs("--threads", 4, CRASH_LIMIT=1000)

    workers = [start() for _ in range(PROCESSES)]
    eventually(lambda: lines(marks), "somebody is in a room")
    kills = freezes = 0
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends or not (kills and freezes):
        place = chance.randrange(PROCESSES)
        pids = [int(line.split()[2]) for line in lines(marks)[-6:]]
        if chance.random() < 0.5 or freezes == 0:
            freezes += _freeze(chance.choice(pids), LEASE * chance.uniform(0.3, 1.5))
        else:
            workers[place].kill_all()
            workers[place] = start()
            kills += 1
        time.sleep(chance.uniform(0.1, 0.5))
    eventually(lambda: not Job.objects.exclude(status="completed").exists(), "all are done", 120)
    found = stays(marks)
    for room in ROOMS:
        assert most_at_once(one for one in found if one.room == room) <= IN_ROOM
    assert most_at_once(found) <= IN_QUEUE
    assert most_at_once(found) > 1, "nobody ever met anybody: nothing was tested"
    eventually(lambda: not Permit.objects.exists(), "nothing dead holds a permit", 20)
    for worker in workers:
        worker.kill_all()
    assert list(map(str, health.check().findings)) == []
    print(
        f"{count} jobs, {kills} trees killed, {freezes} processes frozen: at most {most_at_once(found)}"
    )


def _freeze(pid: int, seconds: float) -> int:
    """Stop a worker process for so long, if it lives."""
    try:
        freeze(pid)
    except ProcessLookupError:
        return 0
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return 1
