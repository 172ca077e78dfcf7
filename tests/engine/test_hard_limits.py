"""Hard time limits, runaway threads, and jobs that kill their worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from django_jobs.models import Job
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually, lines

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks"


def worker(tmp_path: Path, *arguments: object, **settings: object) -> RunJobs:
    return RunJobs(tmp_path / "log", *arguments, **settings)


def test_an_isolated_job_has_a_process_of_its_own(tmp_path: Path, marks: Path) -> None:
    """C4: ``isolation="process"``."""
    first = jobs.isolated_pid.enqueue(marks=str(marks))
    second = jobs.isolated_pid.enqueue(marks=str(marks))
    running = worker(tmp_path, "--once")
    assert running.wait() == 0, running.output()
    for job in (first, second):
        job.refresh_from_db()
        assert job.status == "completed", running.output()
    assert len({first.output, second.output, running.pid, os.getpid()}) == 4


def test_an_isolated_job_is_killed_at_its_limit(tmp_path: Path, marks: Path) -> None:
    """C4: the process is killed, the failure is a time-out and not a crash."""
    job = jobs.isolated_forever.enqueue(marks=str(marks))
    neighbour = jobs.add.enqueue(a=1, b=1)
    running = worker(tmp_path, "--once", "--exit-code")
    assert running.wait() == 1, running.output()
    job.refresh_from_db()
    neighbour.refresh_from_db()
    assert (job.status, job.error["code"], job.crashes, job.attempts) == ("failed", "timeout", 0, 1)
    assert neighbour.status == "completed"
    pid = int(lines(marks)[0].split()[1])
    assert not Path(f"/proc/{pid}").exists()


def test_a_runaway_thread_is_fenced_and_its_process_replaced(tmp_path: Path, marks: Path) -> None:
    """C4: the time-out is recorded while the handler runs on; its late result is dropped."""
    release = tmp_path / "release"
    job = jobs.runaway.enqueue(marks=str(marks), release=str(release))
    running = worker(tmp_path, GRACE=0.5)
    eventually(lambda: Job.objects.get(pk=job.pk).status == "failed", "the time-out is recorded")
    job.refresh_from_db()
    assert job.error["code"] == "timeout"
    later = jobs.isolated_pid.enqueue(marks=str(marks))
    eventually(lambda: Job.objects.get(pk=later.pk).status == "completed", "a successor serves")
    release.touch()
    running.terminate()
    assert running.wait() == 0, running.output()
    job.refresh_from_db()
    assert (job.status, job.output, job.crashes) == ("failed", None, 0)
    assert [line.split()[0] for line in lines(marks)] == ["started", "ran"]


def test_a_job_that_kills_its_worker_ends_crashed_and_its_neighbours_finish(tmp_path: Path) -> None:
    """L7, P10: the poison is charged CRASH_LIMIT times; nobody else is failed for it."""
    poison = jobs.poison.enqueue()
    neighbours = jobs.add.enqueue_many([{"a": n, "b": 1} for n in range(200)])
    running = worker(tmp_path, "--once", "--exit-code")
    assert running.wait() == 1, running.output()
    poison.refresh_from_db()
    assert (poison.status, poison.error["code"], poison.crashes) == ("failed", "crashed", 3)
    assert "signal 9 (SIGKILL)" in poison.error["message"]
    done = Job.objects.filter(pk__in=[job.pk for job in neighbours], status="completed")
    assert done.count() == 200


def test_whatever_takes_a_process_down_ends_crashed_and_neighbours_finish(tmp_path: Path) -> None:
    """P10, L7: a segfault, os._exit, abort, memory that is refused to code in C."""
    kinds = {
        "segfault": "SIGSEGV",
        "os._exit": "exit code 7",
        "abort": "SIGABRT",
        "out of memory": "SIGSEGV",
    }
    poisons = {how: jobs.deadly_by.enqueue(how=how) for how in kinds}
    refused = jobs.needs_too_much_memory.enqueue()
    neighbours = jobs.add.enqueue_many([{"a": n, "b": 1} for n in range(200)])
    running = worker(tmp_path, "--once", "--exit-code", "--processes", 2)
    assert running.wait() == 1, running.output()
    for how, said in kinds.items():
        job = poisons[how]
        job.refresh_from_db()
        assert (job.status, job.error["code"], job.crashes, job.attempts) == (
            "failed",
            "crashed",
            3,
            0,
        )
        assert said in job.error["message"], how
    refused.refresh_from_db()
    assert (refused.status, refused.error["type"]) == ("failed", "builtins.MemoryError")
    done = Job.objects.filter(pk__in=[job.pk for job in neighbours], status="completed", attempts=1)
    assert done.count() == 200


def test_each_outcome_can_be_committed_before_the_next_job_starts(
    tmp_path: Path, marks: Path
) -> None:
    """Part C, acknowledgement: with "each", a thread starts nothing before its commit."""
    jobs.each.enqueue_many([{"marks": str(marks)}] * 20)
    running = worker(tmp_path, "--once", "--threads", 1)
    assert running.wait() == 0, running.output()
    assert Job.objects.filter(status="completed").count() == len(lines(marks)) == 20


def test_jobs_behind_a_long_one_are_handed_back_for_others(tmp_path: Path, marks: Path) -> None:
    """Prefetched jobs never wait for long behind those that run."""
    release = tmp_path / "release"
    jobs.hold.enqueue_many([{"marks": str(marks), "release": str(release)}] * 3)
    first = worker(tmp_path, "--threads", 1)
    eventually(lambda: len(lines(marks)) == 1, "the first job holds the only thread")
    second = RunJobs(tmp_path / "other", "--threads", 2)
    eventually(lambda: len(lines(marks)) == 3, "another worker runs the two others")
    release.touch()
    eventually(lambda: Job.objects.filter(status="completed").count() == 3, "all have ended")
    for running in (first, second):
        running.terminate()
        assert running.wait() == 0, running.output()
    assert not Job.objects.filter(crashes__gt=0).exists()


def test_a_process_is_replaced_after_its_share_of_jobs(tmp_path: Path) -> None:
    made = jobs.whoami.enqueue_many([{} for _ in range(6)])
    running = worker(tmp_path, "--max-jobs", 2)
    eventually(lambda: Job.objects.filter(status="completed").count() == 6, "all jobs ran")
    running.terminate()
    assert running.wait() == 0, running.output()
    pids = [Job.objects.get(pk=job.pk).output for job in made]
    assert all(pids.count(pid) <= 2 for pid in pids)
