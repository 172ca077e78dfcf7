"""Each job goes to exactly one worker: RELIABILITY L1."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from django.db import connection

from django_jobs import failpoints, ids
from django_jobs.models import Job, Worker
from django_jobs.store import claims
from django_jobs.store.session import Session
from tests.app import jobs
from tests.engine.processes import RunJobs, in_thread, lines

pytestmark = pytest.mark.django_db(transaction=True)
JOBS = 5000


def claim(limit: int = 10, lease: float = 15) -> list[claims.Claim]:
    """What one more worker gets."""
    session = Session()
    return session.committed(
        lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=limit, lease=lease)
    )


def test_four_processes_of_two_threads_execute_5000_jobs_once_each(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """L1, P5: the file outside of the database and the rows tell the same executions."""
    jobs.record_execution.enqueue_many([{"marks": str(marks)}] * JOBS)
    worker = runjobs("--once", "--processes", 4, "--threads", 2, LEASE=30, HEARTBEAT=5)
    assert worker.wait(120) == 0, worker.output()
    executed = Counter(tuple(line.split()) for line in lines(marks))
    pids = {row.pk: row.pid for row in Worker.objects.all()}
    recorded = Counter(
        (str(job), str(pids[holder]), str(fence))
        for job, holder, fence in Job.objects.filter(status="completed", attempts=1).values_list(
            "pk", "worker", "fence"
        )
    )
    assert executed == recorded
    # A claim that waited long behind others is handed back unexecuted, so that fences may be higher.
    assert len({job for job, _, _ in executed}) == executed.total() == JOBS
    # On a busy machine the last process to start may find nothing left; a race needs but two.
    assert len({pid for _, pid, _ in executed}) >= 2, "only one process took part"


def test_eight_threads_empty_the_table_once_each(marks: Path) -> None:
    """L1 within one process: many workers' claims at the same time, small batches."""
    jobs.echo.enqueue_many([{"value": n} for n in range(400)])
    taken: list[UUID] = []
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        while found := claim(limit=3):
            taken.extend(one.job_id for one in found)

    for thread in [in_thread(work) for _ in range(8)]:
        thread.join()
    assert len(taken) == len(set(taken)) == 400


def test_a_job_taken_meanwhile_is_not_taken_again() -> None:
    """L1: the compare-and-set alone is right, whatever list the claimer started from."""
    job = jobs.echo.enqueue()
    session = Session()
    picked = session.committed(lambda s: claims.claimable_ids(s, [job.pk]))
    first, second = (
        session.committed(lambda s: claims.take(s, picked, worker=ids.worker_id(), lease=15))
        for _ in range(2)
    )
    assert [one.job_id for one in first] == [job.pk]
    assert second == []
    job.refresh_from_db()
    assert (job.fence, job.worker) == (1, first[0].worker)


def test_a_claim_leaves_the_rows_of_an_uncommitted_one() -> None:
    """L1: of two claims at the same time each gets rows of its own, and neither waits for long."""
    jobs.echo.enqueue_many([{"value": n} for n in range(4)])
    second: list[claims.Claim] = []
    ended = threading.Event()
    rivals: list[threading.Thread] = []

    def rival() -> None:
        second.extend(claim(limit=4))
        ended.set()

    def while_uncommitted() -> None:
        if not rivals:
            rivals.append(in_thread(rival))
            # With row locks the rival ends while this claim is open; SQLite makes it wait.
            ended.wait(1 if connection.vendor == "sqlite" else 5)

    with failpoints.at("claim.before_commit", while_uncommitted):
        first = claim(limit=2)
    rivals[0].join()
    first_ids, second_ids = ({one.job_id for one in found} for found in (first, second))
    assert len(first) == len(second) == 2
    assert not first_ids & second_ids
    assert Job.objects.filter(fence=1, status="running").count() == 4


def test_the_fence_rises_with_every_claim() -> None:
    """L1, L3: two holders of one job never share a fence."""
    job = jobs.echo.enqueue()
    seen = []
    for _ in range(3):
        [taken] = claim()
        seen.append(taken.fence)
        Job.objects.filter(pk=job.pk).update(status="pending", lease_expires_at=None)
    assert seen == sorted(set(seen))


def test_a_pending_job_under_a_live_lease_is_not_claimed() -> None:
    """L1, C1: claimable means pending, due and without a live lease."""
    job = jobs.echo.enqueue()
    [taken] = claim()
    Job.objects.filter(pk=job.pk).update(status="pending")
    assert claim() == []
    Job.objects.filter(pk=job.pk).update(lease_expires_at=None)
    assert [one.fence for one in claim()] == [taken.fence + 1]
