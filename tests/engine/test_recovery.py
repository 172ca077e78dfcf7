"""Processes that die, and what becomes of their jobs: RELIABILITY L6, L7, P8, P10."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from django_jobs import clock, ids
from django_jobs.lifecycle import Status
from django_jobs.models import Attempt, HistoryEntry, Job, Worker
from django_jobs.outcomes import HandedBack
from django_jobs.store import claims, leases, record
from django_jobs.store.record import Finish
from django_jobs.store.session import Session
from django_jobs.worker.heartbeat import renew
from django_jobs.worker.sweep import sweep
from tests.app import jobs
from tests.engine.processes import RunJobs, alive, eventually, in_thread, lines, promise
from tests.support import vendor

pytestmark = pytest.mark.django_db(transaction=True)
LEASE = 15.0


def started_pids(marks: Path) -> list[int]:
    """The processes in which ``hold`` has started, in order."""
    return [int(words[1]) for line in lines(marks) if (words := line.split())[0] == "started"]


def test_p8_a_killed_child_costs_its_job_a_crash_and_two_seconds(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path, record_property: Any
) -> None:
    """P8, L7: the supervisor charges the job, starts another child, and the run goes on."""
    job = jobs.gate_before_last.enqueue(marks=str(marks), release=str(release))
    # A lease far beyond the test: only the supervisor can be the one who frees the job.
    worker = runjobs("--threads", 2, LEASE=600, HEARTBEAT=1)
    eventually(lambda: started_pids(marks), "the job runs")
    killed = started_pids(marks)[0]
    before = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: len(started_pids(marks)) == 2, "the job runs again")
    promise(record_property, "a killed child's job runs again after", time.monotonic() - before, 2)
    release.touch()
    eventually(lambda: Job.objects.get(pk=job.pk).status == Status.COMPLETED, "the run ends")
    job.refresh_from_db()
    assert (job.attempts, job.crashes, job.error) == (1, 1, None)
    assert [line.split()[0] for line in lines(marks)] == [
        "first", "second", "started", "started", "last",
    ]  # fmt: skip
    assert started_pids(marks)[1] not in (killed, worker.pid)
    lost = Attempt.objects.get(job=job, status="lost", step=None)
    assert "signal 9 (SIGKILL)" in lost.error["message"]
    assert Worker.objects.get(pid=killed).status == "lost"
    worker.terminate()
    assert worker.wait() == 0


def test_l7_jobs_that_only_waited_in_a_killed_child_are_not_charged(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """L7: prefetched jobs go back uncounted; only what really ran is charged."""
    held = jobs.hold.using(priority=10).enqueue(marks=str(marks), release=str(release))
    waiting = jobs.echo.enqueue_many([{"value": n} for n in range(20)])
    worker = runjobs("--threads", 1, LEASE=600, HEARTBEAT=1)
    eventually(lambda: started_pids(marks), "the first job runs")
    taken = Job.objects.filter(pk__in=[job.pk for job in waiting], status=Status.RUNNING)
    eventually(taken.exists, "others were claimed ahead")
    os.kill(started_pids(marks)[0], signal.SIGKILL)
    release.touch()
    done = Job.objects.filter(status=Status.COMPLETED)
    eventually(lambda: done.count() == 21, "all jobs are done")
    held.refresh_from_db()
    assert held.crashes == 1
    assert set(done.exclude(pk=held.pk).values_list("attempts", "crashes")) == {(1, 0)}
    worker.terminate()
    assert worker.wait() == 0


def test_p8_jobs_of_a_worker_that_died_whole_run_after_their_lease(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path, record_property: Any
) -> None:
    """P1, P8: kill -9 of the whole tree; the next worker completes within lease + 4 s."""
    job = jobs.gate_before_last.enqueue(marks=str(marks), release=str(release))
    first = runjobs("--processes", 2)
    eventually(lambda: started_pids(marks), "the job runs")
    second = runjobs("--processes", 1)
    eventually(lambda: Worker.objects.count() == 3, "another worker serves")
    first.kill_all()
    killed = time.monotonic()
    eventually(lambda: len(started_pids(marks)) == 2, "the job runs again")
    what = "a dead worker's job runs again, with a lease of 2 s, after"
    promise(record_property, what, time.monotonic() - killed, 2 + 4)
    release.touch()
    eventually(lambda: Job.objects.get(pk=job.pk).status == Status.COMPLETED, "the run ends")
    job.refresh_from_db()
    assert (job.attempts, job.crashes) == (1, 1)
    assert [line.split()[0] for line in lines(marks)] == [
        "first", "second", "started", "started", "last",
    ]  # fmt: skip
    lost = Attempt.objects.get(job=job, status="lost", step=None)
    assert "stopped renewing its lease" in lost.error["message"]
    second.terminate()
    assert second.wait() == 0


def test_p10_a_job_that_kills_its_worker_each_time_is_failed_as_crashed(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """P10: CRASH_LIMIT deaths end the job, not the fleet; the message names signal and step."""
    poison = jobs.deadly.enqueue(marks=str(marks), times=99)
    harmless = jobs.add.using(priority=-1).enqueue(a=1, b=2)
    worker = runjobs("--once", "--exit-code", "--threads", 1, LEASE=600, HEARTBEAT=1)
    assert worker.wait() == 1, worker.output()
    assert lines(marks) == ["before", "dying", "dying", "dying"]
    poison.refresh_from_db()
    assert (poison.status, poison.crashes, poison.attempts) == (Status.FAILED, 3, 0)
    assert poison.error["code"] == "crashed"
    assert "signal 9 (SIGKILL)" in poison.error["message"]
    assert "in step die" in poison.error["message"]
    harmless.refresh_from_db()
    assert (harmless.status, harmless.output, harmless.crashes) == (Status.COMPLETED, 3, 0)
    ends = HistoryEntry.objects.filter(job=poison).order_by("n").values_list("event", flat=True)
    assert list(ends) == ["taken_back", "claimed", "taken_back", "claimed", "crashed"]


def test_p10_the_limit_is_a_setting(runjobs: Callable[..., RunJobs], marks: Path) -> None:
    """P10: a job that kills its worker less often than CRASH_LIMIT is completed."""
    job = jobs.deadly.enqueue(marks=str(marks), times=4)
    worker = runjobs("--once", LEASE=600, HEARTBEAT=1, CRASH_LIMIT=5)
    assert worker.wait() == 0, worker.output()
    job.refresh_from_db()
    assert (job.status, job.crashes, job.attempts) == (Status.COMPLETED, 4, 1)


def test_c5_a_child_whose_supervisor_died_ends_after_its_job_and_claims_nothing(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """C5: nobody would take back what an orphan holds."""
    held = jobs.hold.using(priority=10).enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 1)
    eventually(lambda: started_pids(marks), "the job runs")
    child = started_pids(marks)[0]
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    eventually(lambda: "supervisor is gone" in worker.output(), "the child has noticed")
    later = jobs.add.enqueue(a=1, b=1)
    release.touch()
    eventually(lambda: not alive(child), "the child has ended")
    held.refresh_from_db()
    assert (held.status, held.output, held.crashes) == (Status.COMPLETED, "released", 0)
    later.refresh_from_db()
    assert (later.status, later.fence) == (Status.PENDING, 0)


# --- the store's part, with a frozen clock ---------------------------------------------------


def hold_one(session: Session) -> claims.Claim:
    [taken] = session.committed(
        lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=1, lease=LEASE)
    )
    return taken


def test_l6_a_lease_renewed_meanwhile_is_not_taken_back() -> None:
    """L6: nothing is decided from an earlier list without a compare-and-set."""
    clock.freeze(clock.now())
    session = Session()
    job = jobs.echo.enqueue()
    holder = hold_one(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    [stale] = leases.expired(session, limit=10)
    session.committed(lambda s: leases.renew(s, [holder], LEASE))
    outcome = session.committed(
        lambda s: leases.take_back(s, stale, message="too late", crash_limit=3)
    )
    assert outcome is None
    job.refresh_from_db()
    assert (job.status, job.fence, job.crashes) == (Status.RUNNING, holder.fence, 0)
    assert leases.status_of(session, holder) == Status.RUNNING


def test_l6_an_expired_lease_is_taken_back_once() -> None:
    """L6: two sweepers with the same list charge the job once."""
    clock.freeze(clock.now())
    session = Session()
    job = jobs.echo.enqueue()
    hold_one(session)
    clock.travel(timedelta(seconds=LEASE + 1))
    [stale] = leases.expired(session, limit=10)
    outcomes = [
        session.committed(lambda s: leases.take_back(s, stale, message="gone", crash_limit=3))
        for _ in range(2)
    ]
    assert outcomes == ["pending", None]
    job.refresh_from_db()
    assert (job.status, job.crashes, job.attempts) == (Status.PENDING, 1, 0)


def test_l6_a_lease_that_still_runs_is_left_alone() -> None:
    """L6, L5: and a missing Worker row does not hide an expired one."""
    clock.freeze(clock.now())
    session = Session()
    job = jobs.echo.enqueue()
    hold_one(session)
    clock.travel(timedelta(seconds=LEASE - 1))
    assert sweep(session) == 0
    clock.travel(timedelta(seconds=2))
    assert not Worker.objects.exists()
    assert sweep(session) == 1
    job.refresh_from_db()
    assert job.status == Status.PENDING


def test_l6_a_sweep_goes_past_a_page_of_expired_leases() -> None:
    """L6: paged, every one taken back."""
    clock.freeze(clock.now())
    session = Session()
    jobs.echo.enqueue_many([{"value": n} for n in range(230)])
    session.committed(
        lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=230, lease=LEASE)
    )
    clock.travel(timedelta(seconds=LEASE + 1))
    assert sweep(session) == 230
    assert Job.objects.filter(status=Status.PENDING, crashes=1).count() == 230


def test_l7_a_hand_back_counts_as_nothing() -> None:
    """L7: no crash, no attempt; due as before, under a raised fence."""
    session = Session()
    job = jobs.echo.enqueue()
    holder = hold_one(session)
    finish = Finish(holder, HandedBack("the worker stops"))
    assert session.committed(lambda s: record.record(s, [finish])) == ["written"]
    due = job.due_at
    job.refresh_from_db()
    assert (job.status, job.crashes, job.attempts) == (Status.PENDING, 0, 0)
    assert job.due_at == due
    assert job.fence > holder.fence
    assert job.lease_expires_at is None


def test_l7_the_last_crash_fails_the_job_and_keeps_its_history() -> None:
    """L7: crashes+1 each time; at the limit failed, code crashed."""
    clock.freeze(clock.now())
    session = Session()
    job = jobs.echo.enqueue()
    seen = []
    for _ in range(3):
        hold_one(session)
        clock.travel(timedelta(seconds=LEASE + 1))
        sweep(session)
        job.refresh_from_db()
        seen.append((job.status, job.crashes, job.attempts))
    assert seen == [("pending", 1, 0), ("pending", 2, 0), ("failed", 3, 0)]
    assert job.error["code"] == "crashed"
    assert "stopped renewing its lease" in job.error["message"]
    assert job.finished_at == clock.now()
    numbers = HistoryEntry.objects.filter(job=job).order_by("n").values_list("n", flat=True)
    assert list(numbers) == list(range(1, len(numbers) + 1))


def test_l5_a_row_that_somebody_has_locked_keeps_no_other_lease_from_renewal() -> None:
    """L5: an operator's open transaction, or a sweeper at work, must not cost the neighbours."""
    if vendor() == "sqlite":
        pytest.skip("SQLite locks the whole database, and nobody for long")
    session = Session()
    jobs.echo.enqueue_many([{"value": n} for n in range(3)])
    held = session.committed(
        lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=3, lease=LEASE)
    )
    locked, *others = held
    Job.units.update(lease_expires_at=clock.now() + timedelta(seconds=5))
    interrupted: list[claims.Claim] = []

    def beat() -> None:
        renew(Session(), held, LEASE, is_in_hand=lambda _: True, interrupt=interrupted.append)

    with transaction.atomic():
        Job.units.select_for_update().get(pk=locked.job_id)
        thread = in_thread(beat)
        thread.join(5)
        assert not thread.is_alive()
    soon = Job.units.filter(lease_expires_at__lt=clock.now() + timedelta(seconds=6))
    assert [job.pk for job in soon] == [locked.job_id]
    assert (interrupted, [claim.revoked for claim in held]) == ([], [None] * 3)
    assert locked.deadline < min(claim.deadline for claim in others)
    beat()
    assert not soon.all().exists()
