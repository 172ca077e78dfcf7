"""SIGTERM, the options of runjobs, and a worker that has not the code: RELIABILITY C5, I8."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from django_jobs import Retry, task
from django_jobs.lifecycle import Status
from django_jobs.models import HistoryEntry, Job, Worker
from django_jobs.store import workers
from django_jobs.store.session import Session
from tests.app import jobs
from tests.engine.processes import RunJobs, business, eventually, lines

pytestmark = pytest.mark.django_db(transaction=True)


def state(job: Job) -> tuple[str, int, int]:
    job.refresh_from_db()
    return job.status, job.attempts, job.crashes


def completed() -> int:
    return Job.objects.filter(status=Status.COMPLETED).count()


# --- stopping ---------------------------------------------------------------------------------


def test_c5_sigterm_claims_nothing_more_and_lets_the_job_in_hand_finish(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """C5, L7: what was claimed ahead goes back uncounted; exit 0."""
    held = jobs.hold.using(priority=10).enqueue(marks=str(marks), release=str(release))
    waiting = jobs.echo.enqueue_many([{"value": n} for n in range(10)])
    worker = runjobs("--threads", 1)
    eventually(lambda: lines(marks), "the job runs")
    ahead = Job.objects.filter(slug="echo", status=Status.RUNNING)
    eventually(ahead.exists, "others were claimed ahead")
    worker.terminate()
    eventually(lambda: not ahead.exists(), "those not started are handed back")
    assert state(held) == (Status.RUNNING, 0, 0)
    later = jobs.echo.enqueue(value="later")
    release.touch()
    assert worker.wait() == 0, worker.output()
    assert state(held) == (Status.COMPLETED, 1, 0)
    assert {state(job) for job in [*waiting, later]} == {(Status.PENDING, 0, 0)}
    assert Job.objects.filter(lease_expires_at__isnull=False).count() == 0
    assert set(Worker.objects.values_list("status", flat=True)) == {"stopped"}


def test_c5_jobs_handed_back_run_in_the_next_worker(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """C5: the grace time ends, the job in hand goes back uncounted, exit 0."""
    held = jobs.hold.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 1, GRACE=0.3)
    eventually(lambda: lines(marks), "the job runs")
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    assert state(held) == (Status.PENDING, 0, 0)
    assert HistoryEntry.objects.get(job=held).event == "handed_back"
    release.touch()
    assert runjobs("--once").wait() == 0
    assert state(held) == (Status.COMPLETED, 1, 0)


def test_c5_a_second_sigterm_hands_back_and_exits_within_a_second(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """C5: hand back now."""
    held = jobs.hold.using(priority=10).enqueue(marks=str(marks), release=str(release))
    jobs.echo.enqueue_many([{"value": n} for n in range(5)])
    worker = runjobs("--threads", 1)
    eventually(lambda: lines(marks), "the job runs")
    ahead = Job.objects.filter(slug="echo", status=Status.RUNNING)
    eventually(ahead.exists, "others were claimed ahead")
    worker.terminate()
    eventually(lambda: not ahead.exists(), "the first signal is obeyed")
    before = time.monotonic()
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    assert time.monotonic() - before < 1 + business()
    assert state(held) == (Status.PENDING, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_c5_one_signal_to_the_whole_group_still_means_finish(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path, number: signal.Signals
) -> None:
    """C5: Ctrl-C and most service managers signal the children as well; that is no second signal."""
    held = jobs.hold.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 1)
    eventually(lambda: lines(marks), "the job runs")
    os.killpg(worker.pid, number)
    ahead = jobs.echo.enqueue()
    # By the time the child has been seen to stop it would have handed back long since.
    with pytest.raises(AssertionError, match="did not end"):
        worker.wait(1.5)
    assert state(held) == (Status.RUNNING, 0, 0)
    release.touch()
    assert worker.wait() == 0, worker.output()
    assert state(held) == (Status.COMPLETED, 1, 0)
    assert state(ahead) == (Status.PENDING, 0, 0)


def test_c5_an_idle_worker_stops_at_once(runjobs: Callable[..., RunJobs]) -> None:
    worker = runjobs("--processes", 2, POLL_MIN=5, POLL_MAX=10)
    eventually(lambda: Worker.objects.count() == 2, "both processes serve")
    before = time.monotonic()
    worker.terminate()
    assert worker.wait() == 0
    assert time.monotonic() - before < 2 + business()


# --- options ----------------------------------------------------------------------------------


def test_once_runs_what_is_due_and_what_becomes_due_thereby(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """--once goes on until nothing is due: a retry without delay included, a future job not."""
    flaky = jobs.flaky.enqueue(marks=str(marks), failures=2)
    future = jobs.echo.using(delay=3600).enqueue()
    worker = runjobs("--once")
    assert worker.wait() == 0, worker.output()
    assert state(flaky) == (Status.COMPLETED, 3, 0)
    assert state(future) == (Status.PENDING, 0, 0)


def test_once_on_an_empty_table_exits_with_0(runjobs: Callable[..., RunJobs]) -> None:
    assert runjobs("--once").wait() == 0


def test_limit_is_the_number_of_executions(runjobs: Callable[..., RunJobs], marks: Path) -> None:
    """--limit N: at most N executions, with --once or without."""
    jobs.mark.enqueue_many([{"marks": str(marks), "word": str(n)} for n in range(12)])
    assert runjobs("--limit", 5).wait() == 0
    assert (completed(), len(lines(marks))) == (5, 5)
    assert runjobs("--once", "--limit", 3).wait() == 0
    assert (completed(), len(lines(marks))) == (8, 8)
    assert not Job.objects.filter(status=Status.RUNNING).exists()


def test_limit_holds_over_all_processes(runjobs: Callable[..., RunJobs], marks: Path) -> None:
    """--limit is of the command, however many processes share it."""
    jobs.mark.enqueue_many([{"marks": str(marks), "word": str(n)} for n in range(12)])
    assert runjobs("--limit", 5, "--processes", 3).wait() == 0
    assert (completed(), len(lines(marks))) == (5, 5)


def test_limit_counts_executions_that_ended_their_process(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """--limit: an execution that kills its process is one as well."""
    jobs.deadly.enqueue(marks=str(marks), times=99)
    assert runjobs("--limit", 2).wait() == 0
    assert lines(marks) == ["before", "dying", "dying"]


@pytest.mark.parametrize(("arguments", "code"), [(["--exit-code"], 1), ([], 0)])
def test_exit_code_tells_of_failed_jobs_when_asked(
    runjobs: Callable[..., RunJobs], arguments: list[str], code: int
) -> None:
    jobs.fail.enqueue()
    jobs.echo.enqueue()
    worker = runjobs("--once", *arguments)
    assert worker.wait() == code, worker.output()
    assert sorted(Job.objects.values_list("status", flat=True)) == ["completed", "failed"]


def test_exit_code_is_0_where_a_retry_succeeded(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """Only a job that *ended* failed counts."""
    jobs.flaky.enqueue(marks=str(marks), failures=1)
    assert runjobs("--once", "--exit-code").wait() == 0
    assert completed() == 1


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        ([], "abcd"),
        (["--all-queues"], "abcd"),
        (["--queue", "a"], "a"),
        (["--queue", "a", "b"], "ab"),
        (["--queue", "a", "--queue", "c"], "ac"),
        (["--queue", "a", "b", "--queue", "nowhere"], "ab"),
        (["--exclude-queue", "a"], "bcd"),
        (["--exclude-queue", "a", "b", "--exclude-queue", "d"], "c"),
        (["--queue", "a", "b", "--exclude-queue", "b"], "a"),
    ],
)
def test_queue_options_say_which_queues_are_served(
    runjobs: Callable[..., RunJobs], arguments: list[str], served: str
) -> None:
    for name in "abcd":
        jobs.echo.using(queue_name=name).enqueue(value=name)
    worker = runjobs("--once", *arguments)
    assert worker.wait() == 0, worker.output()
    done = Job.objects.filter(status=Status.COMPLETED).order_by("queue_name")
    assert "".join(done.values_list("queue_name", flat=True)) == served
    assert not Job.objects.exclude(status__in=["completed", "pending"]).exists()


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (["--processes", "0"], {}, "--processes must be 1 or more"),
        (["--max-jobs", "-1"], {}, "--max-jobs must be 1 or more"),
        ([], {"LEASE": 2, "HEARTBEAT": 1.5}, "HEARTBEAT"),
        ([], {"LEAS": 2}, "LEASE"),
    ],
)
def test_a_worker_that_could_not_work_refuses_to_start(
    runjobs: Callable[..., RunJobs], arguments: list[str], settings: dict[str, float], said: str
) -> None:
    worker = runjobs("--once", *arguments, **settings)
    assert worker.wait() != 0
    assert said in worker.output()
    assert "Traceback" not in worker.output()


def test_max_jobs_replaces_the_process(runjobs: Callable[..., RunJobs], marks: Path) -> None:
    jobs.record_execution.enqueue_many([{"marks": str(marks)}] * 6)
    worker = runjobs("--max-jobs", 2)
    eventually(lambda: completed() == 6, "all jobs are done")
    assert len({line.split()[1] for line in lines(marks)}) >= 3
    worker.terminate()
    assert worker.wait() == 0


def test_idle_timeout_ends_the_command(runjobs: Callable[..., RunJobs]) -> None:
    jobs.echo.enqueue()
    worker = runjobs("--idle-timeout", 0.3)
    assert worker.wait(15) == 0
    assert completed() == 1


# --- code that is not there -------------------------------------------------------------------


def test_i8_a_worker_without_the_code_leaves_the_job_pending_and_says_so(
    runjobs: Callable[..., RunJobs],
) -> None:
    """I8: uncounted, unchanged, named in the log; others run, --once exits 0."""

    @task("only-registered-here", retries=Retry(max_attempts=1))
    def unknown_there() -> None: ...

    alone = unknown_there.using(priority=100).enqueue()
    other = jobs.add.enqueue(a=1, b=1)
    worker = runjobs("--once", "--exit-code")
    assert worker.wait() == 0, worker.output()
    assert state(alone) == (Status.PENDING, 0, 0)
    assert (alone.error, alone.fence, alone.started_at) == (None, 0, None)
    assert state(other) == (Status.COMPLETED, 1, 0)
    assert "only-registered-here" in worker.output()


def test_a_drained_worker_finishes_what_it_has_and_takes_nothing_until_it_may_again(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    held = jobs.hold.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 4, HEARTBEAT=0.2, LEASE=5)
    eventually(lambda: lines(marks), "the job runs")
    row = Worker.objects.get(status="running")

    def has_heard() -> None:
        """The second heartbeat from now has certainly seen what was committed before."""
        for _ in range(2):
            before = Worker.objects.get(pk=row.pk).heartbeat_at
            eventually(
                lambda: Worker.objects.get(pk=row.pk).heartbeat_at > before,  # noqa: B023
                "the worker lives",
            )

    assert workers.drain(Session("default"), row.pk, True)
    has_heard()
    ahead = jobs.echo.enqueue()
    has_heard()
    assert state(ahead) == (Status.PENDING, 0, 0)
    release.touch()
    eventually(lambda: state(held)[0] == Status.COMPLETED, "the job in hand is finished")
    assert state(ahead) == (Status.PENDING, 0, 0)
    assert workers.drain(Session("default"), row.pk, False)
    eventually(lambda: state(ahead)[0] == Status.COMPLETED, "it takes jobs again")
    worker.terminate()
    assert worker.wait() == 0, worker.output()
