"""One concurrency key among many processes and many enqueues: RELIABILITY P6, L8, I9."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connections

from django_jobs import Concurrency, ids, task
from django_jobs.definitions.task import Definition
from django_jobs.models import Job, Permit, Worker
from django_jobs.store import claims
from django_jobs.store.session import Session
from tests.app import tasks
from tests.app.jobs import note
from tests.engine.processes import RunJobs, eventually, lines

pytestmark = pytest.mark.django_db(transaction=True)


def largest_overlap(marks: Path) -> int:
    """How many were inside at once, by the order of the notes; the killed left when killed."""
    inside: Counter[str] = Counter()
    most = 0
    for line in lines(marks):
        event, pid = line.split()
        if event == "enter":
            inside[pid] += 1
        elif event == "leave":
            inside[pid] -= 1
        else:
            inside[pid] = 0
        most = max(most, inside.total())
    return most


def pids(marks: Path) -> set[str]:
    return {line.split()[1] for line in lines(marks)}


def all_done() -> bool:
    return not Job.objects.exclude(status="completed").exists()


def test_p6_four_racing_processes_never_overlap_on_one_key(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """P6: measured outside, at most one execution of the key at every instant."""
    # A child that has had its share is followed by another, so that no process does it all.
    workers = [runjobs("--threads", 4, "--max-jobs", 10) for _ in range(4)]
    eventually(lambda: Worker.objects.filter(status="running").count() >= 4, "all four run")
    for _ in range(40):
        tasks.visit.enqueue(marks=str(marks))
    eventually(all_done, "all visits are over")
    for worker in workers:
        worker.terminate()
    assert [worker.wait() for worker in workers] == [0] * 4
    assert len(lines(marks)) == 80
    assert largest_overlap(marks) == 1
    assert len(pids(marks)) > 1, "only one process took part in the race"
    assert not Permit.objects.exists()


def test_p6_a_killed_holder_lets_others_in_only_after_its_lease(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    """P6, L8: kill -9 of the holder with its supervisor; its unit ends with its lease."""
    first = tasks.stay.enqueue(marks=str(marks), release=str(release))
    holder = runjobs("--threads", 4)
    eventually(lambda: lines(marks), "the holder is inside")
    [holder_pid] = pids(marks)
    others = [runjobs("--threads", 4) for _ in range(3)]
    for _ in range(20):
        tasks.visit.enqueue(marks=str(marks))
    eventually(
        lambda: Job.objects.filter(gate="permit").count() == 20, "the others wait for the key"
    )
    holder.kill_all()
    note(str(marks), "killed", holder_pid)
    held_until = Permit.objects.get(job_id=first.pk).lease_expires_at
    release.touch()
    eventually(all_done, "all are done")
    for worker in others:
        worker.terminate()
        assert worker.wait() == 0
    assert largest_overlap(marks) == 1
    first.refresh_from_db()
    assert (first.attempts, first.crashes) == (1, 1)
    # By the database's clock nobody was let in before the lease of the dead holder had ended.
    began = Job.objects.exclude(pk=first.pk).order_by("started_at").first()
    assert began is not None
    assert began.started_at > held_until
    assert not Permit.objects.exists()


def race(definition: Definition, count: int) -> list[Job]:
    """``count`` enqueues at the same moment, each from a thread with a connection of its own."""
    start = threading.Barrier(count)
    made: list[Job] = []
    errors: list[BaseException] = []

    def enqueue(n: int) -> None:
        try:
            start.wait(30)
            made.append(definition.enqueue(n=n))
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=enqueue, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return made


def test_i9_fifty_concurrent_superseding_enqueues_leave_one_job() -> None:
    """I9: insert and cancelling are serialized per key; each loser names its successor."""
    made = race(tasks.newest, 50)
    assert len(made) == 50
    live = Job.objects.get(status="pending")
    superseded = Job.objects.filter(status="canceled")
    assert superseded.count() == 49
    followed = {job.pk: job.superseded_by for job in superseded}
    assert {job.error["code"] for job in superseded} == {"superseded"}
    assert all(str(job.superseded_by) in job.error["message"] for job in superseded)
    # From each of them the chain of successors ends at the one that is left.
    for first, successor in followed.items():
        seen, last = {first}, successor
        while last in followed:
            assert last not in seen
            seen.add(last)
            last = followed[last]
        assert last == live.pk


def test_i9_concurrent_enqueues_keep_a_limit_that_drops() -> None:
    """I9: no more than ``limit`` live jobs of the key, whoever comes at the same time."""
    race(tasks.few, 20)
    assert Job.objects.filter(status="pending").count() == 2
    dropped = Job.objects.filter(status="canceled")
    assert dropped.count() == 18
    holders = {str(pk) for pk in Job.objects.filter(status="pending").values_list("pk", flat=True)}
    assert all(any(pk in job.error["message"] for pk in holders) for job in dropped)


def test_i9_a_started_job_is_not_superseded() -> None:
    """I9: only jobs that never started; running and finished ones are untouched."""
    started = tasks.newest.enqueue(n=1)
    session = Session()
    [held] = session.committed(
        lambda s: claims.take(s, [started.pk], worker=ids.worker_id(), lease=15.0)
    )
    waiting = tasks.newest.enqueue(n=2)
    last = tasks.newest.enqueue(n=3)
    assert held.job_id == started.pk
    statuses = dict(Job.objects.values_list("pk", "status"))
    assert statuses == {started.pk: "running", waiting.pk: "canceled", last.pk: "pending"}


@pytest.mark.parametrize("strict_first", [True, False])
def test_p6_the_strictest_limit_of_those_who_hold_a_key_counts(strict_first: bool) -> None:
    """P6: calls of one key may state different limits."""

    @task("test.strict", concurrency=Concurrency(key="shared", limit=1))
    def strict() -> None: ...

    @task("test.loose", concurrency=Concurrency(key="shared", limit=3))
    def loose() -> None: ...

    first, second = (strict, loose) if strict_first else (loose, strict)
    session = Session()

    def taken(definition: Definition) -> int:
        job = definition.enqueue()
        return len(
            session.committed(
                lambda s: claims.take(s, [job.pk], worker=ids.worker_id(), lease=15.0)
            )
        )

    assert taken(first) == 1
    assert taken(second) == 0
    assert Permit.objects.count() == 1
    if not strict_first:
        assert [taken(loose), taken(loose), taken(loose)] == [1, 1, 0]
