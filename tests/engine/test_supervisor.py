"""The supervisor: whom it replaces, what it takes back, and what must not hold it up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from django_jobs import clock
from django_jobs.lifecycle import Status
from django_jobs.models import Job, Worker
from django_jobs.worker.charge import Charges
from django_jobs.worker.intake import Plan
from django_jobs.worker.isolation import Link
from django_jobs.worker.supervisor import Running, Supervisor
from tests.app import jobs
from tests.engine.processes import RunJobs, alive, eventually, lines

pytestmark = pytest.mark.django_db(transaction=True)


def completed() -> int:
    return Job.objects.filter(status=Status.COMPLETED).count()


# --- replacing --------------------------------------------------------------------------------


def test_once_goes_on_in_a_successor_of_a_process_that_had_its_share(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """--max-jobs replaces a process; it does not end --once before nothing is due."""
    jobs.record_execution.enqueue_many([{"marks": str(marks)}] * 7)
    worker = runjobs("--once", "--max-jobs", 2, "--processes", 2)
    assert worker.wait() == 0, worker.output()
    pids = [line.split()[1] for line in lines(marks)]
    assert (completed(), len(pids)) == (7, 7)
    assert all(pids.count(pid) <= 2 for pid in pids)


def test_the_limit_of_the_command_holds_over_successors(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """--limit with --max-jobs: as many executions as asked for, in as many processes as it takes."""
    jobs.record_execution.enqueue_many([{"marks": str(marks)}] * 9)
    worker = runjobs("--limit", 5, "--max-jobs", 2)
    assert worker.wait() == 0, worker.output()
    assert (completed(), len(lines(marks))) == (5, 5)


def test_a_process_that_has_grown_is_replaced_and_its_long_job_is_not_begun_anew(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """--max-memory: nothing more is claimed, and what runs ends in its own time, beyond the grace."""
    held = jobs.hold.using(priority=10).enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--max-memory", 1, "--threads", 2, GRACE=0.2)
    seen = Worker.objects.filter(jobs_in_hand=1, memory__gt=1 << 20)
    eventually(seen.exists, "the process has seen that it has grown")
    later = jobs.echo.enqueue(value=1)
    time.sleep(0.5)
    assert Job.objects.get(pk=later.pk).status == Status.PENDING
    release.touch()
    eventually(lambda: completed() == 2, "its successor does the rest")
    held.refresh_from_db()
    assert (held.attempts, held.crashes, len(lines(marks))) == (1, 0, 1)
    worker.terminate()
    assert worker.wait() == 0, worker.output()


def test_a_stop_after_a_runaway_is_a_first_stop(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path, tmp_path: Path
) -> None:
    """C4, C5: the process that is being replaced lets its other jobs finish when SIGTERM comes."""
    ended = tmp_path / "never"
    late = jobs.runaway.enqueue(marks=str(marks), release=str(ended))
    held = jobs.hold.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 2)
    eventually(lambda: Job.objects.get(pk=late.pk).status == Status.FAILED, "it is over its limit")
    worker.terminate()
    with pytest.raises(AssertionError, match="did not end"):
        worker.wait(1.0)
    release.touch()
    assert worker.wait() == 0, worker.output()
    held.refresh_from_db()
    assert (held.status, held.attempts, held.crashes) == (Status.COMPLETED, 1, 0)


# --- what must not hold it up -----------------------------------------------------------------


def test_c5_a_child_that_does_not_end_is_killed_and_its_job_handed_back(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """C5: a second SIGTERM ends a worker within a second even where a child cannot hear it."""
    held = jobs.hold.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 1, LEASE=600, HEARTBEAT=1)
    eventually(lambda: lines(marks), "the job runs")
    os.kill(int(lines(marks)[0].split()[1]), signal.SIGSTOP)
    worker.terminate()
    worker.terminate()
    before = clock.monotonic()
    eventually(lambda: worker.process.poll() is not None or _once_more(worker), "it has ended")
    assert clock.monotonic() - before < 30
    assert worker.wait() == 0, worker.output()
    held.refresh_from_db()
    assert (held.status, held.crashes) == (Status.PENDING, 0)


def _once_more(worker: RunJobs) -> bool:
    """Two signals that come at the same moment are one to a process: tell it again."""
    if "has ended" not in worker.output():
        worker.terminate()
    return False


def test_a_supervisor_that_dies_takes_isolated_processes_with_it_uncharged(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """C5: the child hands the job back, as nobody else would before its lease ends."""
    job = jobs.isolated_hold.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 1, LEASE=600, HEARTBEAT=1)
    eventually(lambda: lines(marks), "the job runs")
    isolated = int(lines(marks)[0].split()[1])
    child = Worker.objects.get().pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    eventually(lambda: not alive(isolated), "its process has ended")
    eventually(lambda: not alive(child), "the child has ended")
    job.refresh_from_db()
    assert (job.status, job.attempts, job.crashes) == (Status.PENDING, 0, 0)


def test_a_message_to_a_child_that_does_not_read_is_kept() -> None:
    ours, theirs = Link.pair()
    ours.end.setblocking(False)
    child = Running(1, uuid4(), Plan("default"), Charges(1), ours, 0.0)
    for number in range(5000):
        child.tell(ended=str(number))
    assert child.unsent
    heard = []
    while len(heard) < 5000:
        child.send_unsent()
        heard.append(int(theirs.receive()["ended"]))  # type: ignore[index]
    assert heard == list(range(5000))


def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of processes is no reason for the whole worker to end."""

    def refuse() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    supervisor = Supervisor(Plan("default"))
    supervisor._start(supervisor.plan)
    assert [plan for _, plan in supervisor._due] == [supervisor.plan]
    ours, theirs = Link.pair()
    child = Running(1, uuid4(), Plan("default"), Charges(1), ours, 0.0)
    job = uuid4()
    supervisor._isolate(child, job, 1)
    told = theirs.receive()
    assert told is not None
    assert (told["ended"], told["killed"]) == (str(job), False)


# --- what it knows of a child -----------------------------------------------------------------


def test_l7_a_claim_that_came_back_is_charged_under_its_own_fence() -> None:
    """L7: a process may lose a job and take it again while its old thread still runs."""
    charges = Charges(4)
    job = uuid4()
    old = charges.enter(job, 1)
    new = charges.enter(job, 2)
    charges.leave(old)
    assert charges.running() == {(job, 2)}
    charges.leave(new)
    assert (charges.running(), charges.entered) == (set(), 2)


def test_the_health_file_is_fresh_while_every_child_reaches_the_database(
    runjobs: Callable[..., RunJobs], tmp_path: Path
) -> None:
    """A probe of its age notices one child of several that does nothing any more."""
    health = tmp_path / "health"
    worker = runjobs("--processes", 2, "--health-file", health)
    eventually(health.exists, "both serve")
    touched = health.stat().st_mtime_ns
    eventually(lambda: health.stat().st_mtime_ns > touched, "it is touched again")
    frozen = Worker.objects.first().pid  # type: ignore[union-attr]
    os.kill(frozen, signal.SIGSTOP)

    def is_stale() -> bool:
        return clock.now().timestamp() - health.stat().st_mtime > 4

    eventually(is_stale, "it is touched no more")
    os.kill(frozen, signal.SIGCONT)
    eventually(lambda: not is_stale(), "it is fresh again")
    worker.terminate()
    assert worker.wait() == 0, worker.output()


def test_a_health_file_that_cannot_be_touched_ends_nobody(
    runjobs: Callable[..., RunJobs], tmp_path: Path
) -> None:
    job = jobs.add.enqueue(a=1, b=1)
    worker = runjobs("--health-file", tmp_path / "no such folder" / "health")
    eventually(lambda: "health file cannot be touched" in worker.output(), "it says so")
    eventually(lambda: Job.objects.get(pk=job.pk).status == Status.COMPLETED, "jobs run")
    worker.terminate()
    assert worker.wait() == 0, worker.output()
