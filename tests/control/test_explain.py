"""``job.explain()``: each gate that keeps a job from running, and what opens it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from django_jobs import Concurrency, clock, ids, run_jobs, task
from django_jobs.definitions import registry
from django_jobs.lifecycle import Status, StepStatus
from django_jobs.models import Job, Queue, Task
from django_jobs.store import catalogue, claims, workers
from django_jobs.store.record import record
from django_jobs.store.session import Session
from django_jobs.store.steps import StepWrite
from tests.app import jobs
from tests.control.rows import make
from tests.observe.life import Life

pytestmark = pytest.mark.django_db
NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def noon() -> None:
    clock.freeze(NOON)


def worker(queues: list[str] | None = None, codes: list[Any] | None = None) -> None:
    """A live worker, as one that has just started shows itself."""
    known = [list(code) for code in registry.codes()] if codes is None else codes
    Session().committed(
        lambda s: workers.register(
            s, uuid4(), supervisor=None, hostname="here", pid=1, queues=queues or [], threads=1, codes=known,
        )
    )  # fmt: skip


def names(job: Job) -> list[str]:
    return [gate.name for gate in job.explain()]


def test_a_job_that_only_waits_for_a_free_worker_has_no_closed_gate() -> None:
    worker()
    told = jobs.add.enqueue(a=1, b=2).explain()
    assert list(told) == []
    assert str(told) == "Nothing holds it back: it runs as soon as a worker is free."
    assert (told.status, len(told), told.as_dict()["gates"]) == ("pending", 0, [])


def test_a_job_under_way_names_its_worker() -> None:
    job = make(Status.RUNNING, "task")
    assert str(job.explain()) == f"It is running on worker {job.worker}."


def test_a_job_that_is_not_due_tells_when() -> None:
    worker()
    job = jobs.add.using(delay=3600).enqueue(a=1, b=2)
    [gate] = job.explain()
    assert (gate.name, gate.about["due"]) == ("due", NOON + timedelta(hours=1))
    assert "2030-06-01T13:00:00" in gate.why
    assert "run_now()" in gate.opens
    job.run_now()
    assert names(job) == []


def test_a_paused_job_names_who_paused_it_and_why() -> None:
    worker()
    job = jobs.add.enqueue(a=1, b=2).pause(actor="olga", reason="outage")
    [gate] = job.explain()
    assert (gate.name, gate.about) == ("status", {"actor": "olga", "reason": "outage"})
    assert str(gate) == "It is paused by olga: outage resume() opens it."


def test_a_job_whose_holder_is_not_done_says_so() -> None:
    worker()
    job = make(Status.RUNNING, "task").pause()
    assert names(job) == ["status", "lease"]
    job.resume()
    [gate] = job.explain()
    assert (gate.name, gate.about["worker"]) == ("lease", str(job.worker))


def test_paused_queues_and_tasks_are_named() -> None:
    worker()
    catalogue.sync()
    job = jobs.add.enqueue(a=1, b=2)
    Queue.objects.get(name="default").pause()
    Task.objects.get(slug="add").pause()
    assert names(job) == ["queue", "task"]
    assert "'default'" in str(job.explain())
    Queue.objects.get(name="default").resume()
    Task.objects.get(slug="add").resume()
    assert names(job) == []


def test_missing_workers_and_missing_code_are_told_apart() -> None:
    job = jobs.add.using(queue_name="far").enqueue(a=1, b=2)
    assert names(job) == ["worker"]
    worker(queues=["near"])
    assert names(job) == ["worker"]
    worker(queues=["far"], codes=[["other", None]])
    [gate] = job.explain()
    assert (gate.name, gate.about) == ("code", {"slug": "add", "version": None})
    worker(queues=["far"])
    assert names(job) == []
    clock.travel(timedelta(minutes=5))
    assert names(job) == ["worker"]


def test_a_key_names_its_holder() -> None:
    worker()

    @task(concurrency=Concurrency(key=lambda n: "one", limit=1))
    def alone(n: int) -> None: ...

    worker()
    first, second = alone.enqueue(n=1), alone.enqueue(n=2)
    Session().committed(lambda s: claims.take(s, [first.pk], worker=ids.worker_id(), lease=15))
    Session().committed(lambda s: claims.take(s, [second.pk], worker=ids.worker_id(), lease=15))
    [gate] = second.explain()
    assert gate.name == "key"
    assert gate.about == {"key": "one", "holders": [str(first.pk)]}
    assert str(first.pk) in str(second.explain())
    first.refresh_from_db()
    first.cancel()
    # Its handler may run until its worker says that it has stopped.
    assert names(second) == ["key"]
    clock.travel(timedelta(minutes=1))
    worker()
    assert run_jobs(all_queues=True).completed == 1
    assert names(second) == ["status"]


@pytest.mark.parametrize(
    ("kind", "expected"), [("sleep", "timer"), ("event", "event"), ("child", "child")]
)
def test_a_sleeping_run_tells_what_it_waits_for(kind: str, expected: str) -> None:
    worker()
    job = jobs.three_steps.enqueue(marks="")
    life = Life(job)
    life.happen("claim")
    assert life.held is not None
    wait = StepWrite(
        claim=life.held, step_key="k", step_id="approval", slug=kind, kind=kind, status=StepStatus.SLEEPING,
        wake_after=60.0, event_name="order.approved" if kind == "event" else None,
        child=uuid4() if kind == "child" else None,
    )  # fmt: skip
    Session().committed(lambda s: record(s, [wait]))
    life.happen("sleep")
    [gate] = job.explain()
    assert (gate.name, gate.about["step"]) == (expected, "approval")
    assert job.run_now().run_after == NOON
    assert Job.objects.filter(pk=job.pk).run_now().changed == 0


def test_a_run_that_waits_for_its_next_try_shows_the_failure() -> None:
    worker()
    [gate] = make(Status.SLEEPING, "workflow").explain()
    assert gate.name == "retry"
    assert "broken" in gate.why


ENDS: list[tuple[Status, Callable[[str], bool]]] = [
    (Status.COMPLETED, lambda text: "rerun()" in text),
    (Status.FAILED, lambda text: "broken" in text and "retry()" in text),
    (Status.CANCELED, lambda text: "rerun()" in text),
]


@pytest.mark.parametrize(("status", "is_said"), ENDS)
def test_a_finished_job_says_what_can_be_done(
    status: Status, is_said: Callable[[str], bool]
) -> None:
    [gate] = make(status, "task").explain()
    assert gate.name == "status"
    assert is_said(str(gate))


def test_a_job_past_its_expiry_says_so() -> None:
    worker()
    job = jobs.add.using(expires=60).enqueue(a=1, b=2)
    clock.travel(timedelta(seconds=10))
    assert names(job) == []
    clock.travel(timedelta(seconds=51))
    Job.objects.filter(pk=job.pk).update(status=Status.PENDING)
    worker()
    assert names(job) == ["expired"]


@pytest.mark.django_db(transaction=True)
def test_explain_has_an_async_twin() -> None:
    job = make(Status.PAUSED, "task")

    async def ask() -> str:
        return str(await job.aexplain())

    assert "resume() opens it." in asyncio.run(ask())
