"""A database that cannot take what it is given for a while, and workers with wrong clocks: W7, L4."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection, transaction

from django_jobs import clock
from django_jobs.lifecycle import Status
from django_jobs.models import Job, Worker
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually, lines
from tests.support import ROOT, vendor

pytestmark = pytest.mark.django_db(transaction=True)
COUNT = 150


def completed() -> int:
    return Job.objects.filter(status=Status.COMPLETED).count()


@contextmanager
def full_disk() -> Iterator[None]:
    """SQLite: the worker can write no file beyond 4 KiB, so that its database is full."""
    pid = Worker.objects.get().pid
    limit = resource.RLIMIT_FSIZE
    before = resource.prlimit(pid, limit, (4096, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, limit, before)


@contextmanager
def read_only() -> Iterator[None]:
    """PostgreSQL: sessions that begin now only read, as on a server that gives way to another."""
    name = connection.settings_dict["NAME"]
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        try:
            cursor.execute(cut)
            yield
        finally:
            cursor.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
            cursor.execute(cut)


def test_w7_what_the_database_cannot_take_now_is_kept_and_costs_nobody(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """W7: a full disk, a server that only reads: the worker waits, and each job has run once."""
    if vendor() == "mysql":
        pytest.skip("its root user writes to a server that only reads, too")
    trouble = full_disk if vendor() == "sqlite" else read_only
    jobs.dawdle.enqueue_many([{"marks": str(marks), "word": f"job-{n}"} for n in range(COUNT)])
    worker = runjobs("--threads", 2, LEASE=60, HEARTBEAT=1)
    eventually(lambda: len(lines(marks)) > 20, "work is under way")
    with trouble():
        eventually(lambda: "database is lost" in worker.output(), "the worker says what is wrong")
        ended = completed()
        assert ended < COUNT
    eventually(lambda: completed() == COUNT, "everything is done once it is over")
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    assert Counter(lines(marks)) == Counter(f"job-{n}" for n in range(COUNT))
    assert set(Job.objects.values_list("attempts", "crashes")) == {(1, 0)}
    assert Worker.objects.count() == 1
    assert "Traceback" not in worker.output()


#: Limits that cut off the engine's statements and transactions again and again.
SHORT = {
    "statement_timeout": "25ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "100ms",
}


def test_w7_time_limits_of_the_server_in_the_middle_of_the_engine_s_statements_cost_nobody(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """W7: what is cut off is rolled back and repeated; handlers run once, and no worker dies of it."""
    if vendor() != "postgresql":
        pytest.skip("PostgreSQL has these limits")
    name, count, runs = connection.settings_dict["NAME"], 60, 6
    jobs.dawdle.enqueue_many([{"marks": str(marks), "word": f"job-{n}"} for n in range(count)])
    for number in range(runs):
        jobs.three_marks.enqueue(marks=str(marks), word=f"run-{number}")
    with connection.cursor() as cursor:
        for limit, value in SHORT.items():
            cursor.execute(f"ALTER DATABASE \"{name}\" SET {limit} = '{value}'")
    try:
        worker = runjobs("--processes", 2, LEASE=60, HEARTBEAT=0.3)

        def all_done_beside_somebody_who_locks() -> bool:
            with transaction.atomic():
                list(Job.objects.select_for_update().filter(status=Status.RUNNING))
                time.sleep(0.02)
            return completed() == count + runs

        eventually(all_done_beside_somebody_who_locks, "everything is done all the same")
    finally:
        with connection.cursor() as cursor:
            for limit in SHORT:
                cursor.execute(f'ALTER DATABASE "{name}" RESET {limit}')
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    words = [f"job-{n}" for n in range(count)]
    words += [f"run-{n} {step}" for n in range(runs) for step in "abc"]
    assert Counter(lines(marks)) == Counter(words)
    assert set(Job.objects.values_list("attempts", "crashes")) == {(1, 0)}
    assert "Traceback" not in worker.output()


@pytest.mark.parametrize("hours", [5, -5])
def test_l4_a_worker_whose_clock_is_hours_wrong_does_no_harm(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path, hours: int
) -> None:
    """L4: due times, leases and waits are the database's; two workers with different clocks agree."""
    if vendor() == "sqlite":
        pytest.skip("SQLite has no clock but the processes' own, and one host")
    later = jobs.add.using(delay=600).enqueue(a=1, b=1)
    held = jobs.hold.enqueue(marks=str(marks), release=str(release))
    begun = clock.now()
    wrong = runjobs(
        "--threads", 2,
        env={"CLOCK_SHIFT": str(hours * 3600),
             "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "clocks"), str(ROOT)])},
    )  # fmt: skip
    eventually(lambda: lines(marks), "the job runs")
    right = runjobs("--threads", 2)
    eventually(lambda: Worker.objects.count() == 2, "both serve")
    beats = Job.units.get(pk=held.pk).lease_expires_at
    eventually(
        lambda: Job.units.get(pk=held.pk).lease_expires_at > beats + timedelta(seconds=3),  # type: ignore[operator]
        "the lease was renewed beyond its first end",
    )
    again = jobs.flaky.enqueue(marks=str(marks) + ".flaky", failures=2)
    eventually(lambda: Job.objects.get(pk=again.pk).status == Status.COMPLETED, "retries go on")
    release.touch()
    eventually(lambda: Job.objects.get(pk=held.pk).status == Status.COMPLETED, "the job ends")
    for worker in (wrong, right):
        worker.terminate()
        assert worker.wait() == 0, worker.output()
    held.refresh_from_db()
    later.refresh_from_db()
    assert (held.attempts, held.crashes, len(lines(marks))) == (1, 0, 1)
    assert (later.status, later.fence) == (Status.PENDING, 0)
    assert begun <= held.started_at <= held.finished_at <= clock.now()
