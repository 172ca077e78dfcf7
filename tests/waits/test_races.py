"""Transactions that overlap: a parent that falls asleep while its child ends, an event while it looks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from django_jobs import WorkflowContext, failpoints, run_job, send_event, workflow
from django_jobs.models import Event, Job
from tests.app import jobs
from tests.control.rows import assert_folds, assert_sound
from tests.engine.processes import eventually, in_thread
from tests.support import vendor

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        "vendor() == 'sqlite'", reason="SQLite has one writer: its transactions do not overlap"
    ),
]


def waits_for_lock() -> bool:
    """Whether some transaction waits for another one's row."""
    with connection.cursor() as cursor:
        if vendor() == "postgresql":
            cursor.execute(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database()"
            )
        else:
            # A counter. The table innodb_trx is a copy that is not renewed while it is asked ten times a second.
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
        return int(cursor.fetchone()[-1]) > 0


def overlapping(job: Job, commit: int, meanwhile: Callable[[], Any]) -> None:
    """Run ``job`` and, while its ``commit``-th transaction of records is open, ``meanwhile``."""
    reached, opened = threading.Event(), threading.Event()
    runner: list[int] = []
    count = 0

    def hold() -> None:
        nonlocal count
        if threading.get_ident() not in runner:
            return
        count += 1
        if count == commit:
            reached.set()
            assert opened.wait(30)

    def run() -> None:
        runner.append(threading.get_ident())
        run_job(job.pk)

    with failpoints.at("record.before_commit", hold):
        first = in_thread(run)
        assert reached.wait(30)
        second = in_thread(meanwhile)
        eventually(lambda: waits_for_lock() or not second.is_alive(), "both are at the same row")
        opened.set()
        first.join(30)
        second.join(30)
    assert not first.is_alive()
    assert not second.is_alive()


@workflow("test.waits_for_child")
def waits_for_child(run: WorkflowContext) -> Any:
    return run.child("child", jobs.echo, value=7)


@workflow("test.waits_for_event")
def waits_for_event(run: WorkflowContext) -> Any:
    return run.wait_for_event("event", "go")


def woken(job: Job) -> None:
    job.refresh_from_db()
    assert job.status == "pending", "its wake-up was lost"
    run_job(job.pk)
    job.refresh_from_db()
    assert (job.status, job.output) == ("completed", 7)
    assert_sound()
    assert_folds(job)


def test_a_child_that_ends_while_its_parent_falls_asleep_wakes_it() -> None:
    """Both transactions are open at once: the child's end waits for the parent's, and sees it asleep."""
    job = waits_for_child.enqueue()
    overlapping(job, 2, lambda: run_job(Job.objects.get(parent=job).pk))
    woken(job)


def test_a_child_that_is_canceled_while_its_parent_falls_asleep_wakes_it() -> None:
    job = waits_for_child.enqueue()
    overlapping(job, 2, lambda: Job.objects.filter(parent=job).cancel())
    job.refresh_from_db()
    assert job.status == "pending"


@pytest.mark.parametrize("commit", [1, 2])
def test_an_event_while_the_run_looks_or_falls_asleep_wakes_it(commit: int) -> None:
    job = waits_for_event.enqueue()
    overlapping(job, commit, lambda: send_event("go", 7, to=job.pk))
    woken(job)
    assert Event.objects.get().step_key is not None


def test_a_broadcast_while_the_run_falls_asleep_reaches_it() -> None:
    job = waits_for_event.enqueue()
    reached: list[Any] = []
    overlapping(job, 2, lambda: reached.extend(send_event("go", 7)))
    assert reached == [job.pk]
    woken(job)


def test_one_key_sent_twice_at_once_is_delivered_once() -> None:
    job = waits_for_event.enqueue()
    run_job(job.pk)
    ready = threading.Barrier(4)
    answers: list[Any] = []

    def send(**to: Any) -> Callable[[], None]:
        def work() -> None:
            ready.wait(10)
            answers.append(send_event("go", 7, key="once", **to))

        return work

    threads = [in_thread(send(to=job.pk)) for _ in range(2)]
    threads += [in_thread(send()) for _ in range(2)]
    for thread in threads:
        thread.join(30)
    assert answers.count([job.pk]) >= 2
    # Once by its receiver, and once more if the broadcast came first.
    assert Event.objects.count() in (1, 2)
