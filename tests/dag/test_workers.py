"""Graphs among real worker processes: spreading, chains, kills, pauses."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from django_jobs.models import HistoryEntry, Job, TaskStatus
from django_jobs.observe import health
from django_jobs.store.session import Session, engine_alias
from tests.app import graphs
from tests.engine.processes import RunJobs, eventually, lines

pytestmark = pytest.mark.django_db(transaction=True)
#: A thousand steps, evenly spread: ``python -m tests.long graphs spread``, alone on its machine.
WIDE = bool(os.environ.get("TEST_WIDE_GRAPH"))


def ended(job: Job) -> Callable[[], bool]:
    def look() -> bool:
        job.refresh_from_db()
        return job.finished_at is not None

    return look


def by_process(marks: Path) -> Counter[str]:
    return Counter(line.split()[1] for line in lines(marks))


def sound() -> None:
    found = list(health.findings(Session(engine_alias())))
    assert not found, found


def fan_out(runjobs: Callable[..., RunJobs], marks: Path, dag: object, size: int) -> None:
    for _ in range(4):
        runjobs("--threads", 4)
    from django_jobs.models import Worker

    eventually(lambda: Worker.objects.filter(status="running").count() >= 4, "all four run")
    job = dag.enqueue(marks=str(marks))  # type: ignore[attr-defined]
    eventually(ended(job), "the run has ended", 120)
    assert job.status == "completed", job.error
    assert job.output["sum"] == size
    done = [line.split()[0] for line in lines(marks)]
    assert len(done) == len(set(done)) == size + 2
    assert done[0] == "first"
    assert done[-1] == "sum"
    shares = by_process(marks)
    # On a calm machine each does its quarter; how even it is on a busy one is a matter of speed.
    if WIDE:
        assert len(shares) == 4, shares
        assert min(shares.values()) >= 0.15 * size, shares
        print(f"{size} steps on 4 processes: {sorted(shares.values())}")
    assert len(shares) > 1, shares
    assert max(shares.values()) < 0.75 * size, shares
    # The last end wakes the run, not each of them.
    woken = HistoryEntry.objects.filter(job=job, event="woken").count()
    assert woken <= 10, woken
    sound()


def test_a_fan_out_spreads_over_four_processes(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    fan_out(runjobs, marks, graphs.wider if WIDE else graphs.wide, 1000 if WIDE else 200)


def test_a_chain_of_a_thousand_steps_pays_no_queue_hop(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    job = graphs.long.enqueue(marks=str(marks))
    worker = runjobs("--once", "--threads", 2)
    assert worker.wait(120) == 0, worker.output()
    job.refresh_from_db()
    assert job.status == "completed", job.error
    assert [line.split()[0] for line in lines(marks)] == [str(number) for number in range(1000)]
    assert job.fence == 1, "one claim"
    assert not Job.units.filter(kind="step").exists()
    assert not HistoryEntry.objects.filter(job=job).exists()


def test_chains_beside_each_other_pay_one_hop_each(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    job = graphs.braid.enqueue(marks=str(marks))
    for _ in range(2):
        runjobs("--threads", 4)
    eventually(ended(job), "the run has ended")
    assert job.status == "completed", job.error
    done = [line.split()[0] for line in lines(marks)]
    assert len(done) == len(set(done)) == 41
    assert done[-1] == "end"
    assert Job.units.filter(kind="step").count() == 4
    sound()


def test_async_steps_of_one_run_overlap_in_one_process(
    runjobs: Callable[..., RunJobs],
) -> None:
    job = graphs.many_async.enqueue()
    runjobs("--threads", 2)
    eventually(ended(job), "the run has ended", 15)
    assert job.status == "completed"
    assert len(set(job.output.values())) == 1


def test_a_killed_unit_is_done_again_and_its_run_goes_on(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    job = graphs.held.enqueue(marks=str(marks), release=str(release))
    runjobs("--threads", 2)
    eventually(lambda: len(lines(marks)) == 2, "both steps have begun")
    victim = int(lines(marks)[0].split()[2])
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(lines(marks)) >= 4, "both have begun again")
    release.touch()
    eventually(ended(job), "the run has ended")
    assert job.status == "completed", job.error
    assert job.crashes == 0
    assert {unit.crashes for unit in Job.units.filter(kind="step")} == {1}
    assert [line.split()[0] for line in lines(marks)].count("ended") == 2
    sound()


def test_a_step_that_kills_its_worker_fails_as_crashed(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    job = graphs.deadly.enqueue(marks=str(marks))
    runjobs("--threads", 2)
    eventually(ended(job), "the run has ended")
    assert job.status == "failed"
    assert job.error["code"] == "crashed"
    assert job.error["step_id"] == "bad"
    steps = dict(TaskStatus.objects.filter(job=job).values_list("step_id", "status"))
    assert steps == {"good": "completed", "bad": "failed", "end": "canceled"}
    sound()


def test_pause_lets_units_finish_and_starts_nothing_more(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    job = graphs.held.enqueue(marks=str(marks), release=str(release))
    # One thread: of the two units one runs, and the other waits.
    worker = runjobs("--threads", 1)
    eventually(lambda: len(lines(marks)) == 1, "a step has begun")
    job.pause()
    release.touch()
    begun = lines(marks)[0].split()[1]
    eventually(
        lambda: TaskStatus.objects.filter(job=job, step_id=begun, status="completed").exists(),
        "the step in hand is recorded",
    )
    eventually(
        lambda: not Job.units.filter(kind="step", finished_at=None).exists(), "no unit is left"
    )
    job.refresh_from_db()
    assert job.status == "paused"
    assert len(lines(marks)) == 2
    job.resume()
    eventually(ended(job), "the run has ended")
    assert job.status == "completed", worker.output()
    assert [line.split()[:2] for line in lines(marks)].count(["started", begun]) == 1
    sound()


def test_cancel_ends_the_units_with_their_run(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    job = graphs.held.enqueue(marks=str(marks), release=str(release))
    runjobs("--threads", 1)
    eventually(lambda: len(lines(marks)) == 1, "a step has begun")
    job.cancel("enough")
    assert {unit.status for unit in Job.units.filter(parent=job)} == {"canceled"}
    with contextlib.suppress(FileExistsError):
        release.touch(exist_ok=False)
    eventually(lambda: len(lines(marks)) == 2, "the handler has come to its end")
    assert {step.status for step in TaskStatus.objects.filter(job=job)} == {"canceled"}
    assert not any(step.complete for step in TaskStatus.objects.filter(job=job))
