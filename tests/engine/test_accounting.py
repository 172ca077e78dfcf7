"""Processes that are killed or frozen under load, each execution accounted for: P1, P8, L3, L7.

Handlers keep a ledger outside of the database: a line as they begin and one as they end. What the
database says afterwards must follow from it exactly.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from django_jobs.lifecycle import Status
from django_jobs.models import Job, Worker
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually, in_state, lines

pytestmark = pytest.mark.django_db(transaction=True)
THREADS = 3


class Line(NamedTuple):
    kind: str
    name: str
    pid: int
    thread: int


def read(ledger: Path) -> list[Line]:
    words = [line.split() for line in lines(ledger)]
    return [Line(kind, name, int(pid), int(thread)) for kind, name, pid, thread in words]


def under_way(ledger: Path) -> dict[int, list[str]]:
    """What is being executed now, by process."""
    last = {(line.pid, line.thread): line for line in read(ledger)}
    found: dict[int, list[str]] = {}
    for line in last.values():
        if line.kind == "begin":
            found.setdefault(line.pid, []).append(line.name)
    return found


def stopped(pid: int) -> bool:
    """Send SIGSTOP; whether there is such a process."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    return True


def freeze_at_work(pids: Callable[[], set[int]], ledger: Path) -> dict[int, list[str]]:
    """Stop one or all of ``pids`` while each of their threads is within a handler; what they execute.

    Between two handlers nobody outside can tell on which side of the line a process was stopped.
    """

    def frozen() -> dict[int, list[str]]:
        chosen = {pid for pid, names in under_way(ledger).items() if len(names) == THREADS}
        chosen &= pids()
        # One that was killed before may be in its table and in the ledger still.
        chosen = {pid for pid in chosen if stopped(pid)}
        for pid in chosen:
            eventually(lambda pid=pid: in_state(pid, "T"), "it has stopped")  # type: ignore[misc]
        at_work = {pid: under_way(ledger).get(pid, []) for pid in chosen}
        held = {pid: names for pid, names in at_work.items() if len(names) == THREADS}
        for pid in chosen - set(held):
            os.kill(pid, signal.SIGCONT)
        return held

    return eventually(frozen, "a process is stopped within its handlers")


def enqueue(ledger: Path, count: int, seconds: float = 0.03) -> dict[str, Job]:
    made = jobs.ledgered.enqueue_many(
        [{"ledger": str(ledger), "name": f"job-{n}", "seconds": seconds} for n in range(count)]
    )
    return {f"job-{n}": job for n, job in enumerate(made)}


def completed() -> int:
    return Job.objects.filter(status=Status.COMPLETED).count()


def crashes(made: dict[str, Job]) -> Counter[str]:
    found = dict(Job.objects.values_list("pk", "crashes"))
    return Counter({name: found[job.pk] for name, job in made.items() if found[job.pk]})


def test_p1_killed_children_cost_exactly_what_they_were_executing(
    runjobs: Callable[..., RunJobs], tmp_path: Path
) -> None:
    """P1, L7: kill -9 of one child after the other while the others work on."""
    ledger = tmp_path / "ledger"
    made = enqueue(ledger, 150)
    worker = runjobs("--processes", 2, "--threads", THREADS, LEASE=600, HEARTBEAT=1)
    charged: Counter[str] = Counter()
    killed: set[int] = set()
    for _ in range(3):
        held = freeze_at_work(
            lambda: set(Worker.objects.filter(status="running").values_list("pid", flat=True)),
            ledger,
        )
        for pid, names in held.items():
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            charged.update(names)
        # They are the first in line again; another kill must not make suspects of them.
        eventually(
            lambda held=held: (
                {line.name for line in read(ledger) if line.kind == "end"}  # type: ignore[misc]
                >= {name for names in held.values() for name in names}
            ),
            "what was hit has run again",
        )
    eventually(lambda: completed() == len(made), "everything is done")
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    assert crashes(made) == charged
    begun = Counter(line.name for line in read(ledger) if line.kind == "begin")
    ended = Counter(line.name for line in read(ledger) if line.kind == "end")
    assert begun == ended + charged
    # Twice to its end came only what a killed process had ended and not yet recorded.
    lost = {line.name for line in read(ledger) if line.kind == "end" and line.pid in killed}
    assert {name for name, count in ended.items() if count > 1} <= lost
    assert set(Job.objects.values_list("attempts", "status")) == {(1, Status.COMPLETED)}


def test_p1_a_killed_tree_costs_each_of_its_claims_one_crash(
    runjobs: Callable[..., RunJobs], tmp_path: Path
) -> None:
    """P1, L7: kill -9 of supervisor and children at once; the next worker does the rest."""
    ledger = tmp_path / "ledger"
    made = enqueue(ledger, 120)
    first = runjobs("--processes", 2, "--threads", THREADS)
    eventually(lambda: len(read(ledger)) > 40, "work is under way")
    first.kill_all()
    time.sleep(0.3)  # a statement that was on its way may still take effect
    held = {job.pk for job in Job.objects.filter(status=Status.RUNNING)}
    assert held
    charged = Counter(name for name, job in made.items() if job.pk in held)
    open_then = Counter(name for names in under_way(ledger).values() for name in names)
    assert set(open_then) <= set(charged)
    second = runjobs("--processes", 1, "--threads", THREADS)
    eventually(lambda: completed() == len(made), "everything is done")
    second.terminate()
    assert second.wait() == 0, second.output()
    assert crashes(made) == charged
    begun = Counter(line.name for line in read(ledger) if line.kind == "begin")
    ended = Counter(line.name for line in read(ledger) if line.kind == "end")
    assert begun == ended + open_then
    assert set(begun) == set(made)
    assert {name for name, count in begun.items() if count > 1} <= set(charged)
    assert set(Job.objects.values_list("attempts", "status")) == {(1, Status.COMPLETED)}


def test_l3_a_frozen_tree_costs_its_claims_one_crash_and_brings_nothing_when_it_thaws(
    runjobs: Callable[..., RunJobs], tmp_path: Path
) -> None:
    """L3, P5: SIGSTOP beyond the lease under load; after SIGCONT nothing is run or recorded twice."""
    ledger = tmp_path / "ledger"
    made = enqueue(ledger, 90)
    first = runjobs("--threads", THREADS)
    eventually(lambda: len(read(ledger)) > 10, "work is under way")
    [(frozen, executed)] = freeze_at_work(
        lambda: set(Worker.objects.values_list("pid", flat=True)), ledger
    ).items()
    time.sleep(0.3)
    held = {job.pk for job in Job.objects.filter(status=Status.RUNNING)}
    charged = Counter(name for name, job in made.items() if job.pk in held)
    assert set(executed) <= set(charged)
    # Run again is also what had ended and was not recorded yet.
    again = Counter(executed) + Counter(
        {line.name for line in read(ledger) if line.kind == "end" and line.name in charged}
    )
    second = runjobs("--threads", THREADS)
    eventually(lambda: completed() == len(made), "everything is done by the other worker")
    os.kill(frozen, signal.SIGCONT)
    eventually(
        lambda: (
            len([line for line in read(ledger) if (line.kind, line.pid) == ("end", frozen)])
            == len([line for line in read(ledger) if (line.kind, line.pid) == ("begin", frozen)])
        ),
        "the thawed handlers have ended",
    )
    for worker in (first, second):
        worker.terminate()
        assert worker.wait() == 0, worker.output()
    assert crashes(made) == charged
    begun = Counter(line.name for line in read(ledger) if line.kind == "begin")
    assert begun == Counter(dict.fromkeys(made, 1)) + again
    assert set(Job.objects.values_list("attempts", "status")) == {(1, Status.COMPLETED)}
