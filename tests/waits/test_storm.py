"""Commands, events and children fired at random at running workers: nothing is lost, stuck or run twice."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_jobs import (
    InvalidTransition,
    JobFailed,
    Retry,
    WorkflowContext,
    run_jobs,
    send_event,
    task,
    workflow,
)
from django_jobs.definitions import registry
from django_jobs.lifecycle import Command
from django_jobs.models import Event, Job, Permit
from tests.app import workflows
from tests.control.rows import assert_folds, assert_sound
from tests.engine.processes import RunJobs, eventually, lines
from tests.racing import under_fire

pytestmark = pytest.mark.django_db(transaction=True)
#: Sequences in threads, and seconds of storm on worker processes; ``python -m tests.long waits`` takes many more.
SEQUENCES = int(os.environ.get("TEST_WAIT_SEQUENCES") or 5)
SECONDS = float(os.environ.get("TEST_WAIT_SECONDS") or 3)
FIRED = [
    *["event"] * 6, "cancel child", "cascade", "broadcast", Command.PAUSE, Command.PAUSE, Command.RESUME,
    Command.RESUME, Command.RESUME, Command.CANCEL, Command.RETRY, Command.RUN_NOW,
]  # fmt: skip


def fire(job: Job, what: str) -> None:
    """One thing that somebody may do to a run at any time."""
    try:
        match what:
            case "event":
                send_event("go", time.monotonic(), to=job.pk)
            case "broadcast":
                send_event("go", "all")
            case "cancel child":
                Job.objects.filter(parent=job).cancel("random")
            case "cascade":
                Job.objects.get(pk=job.pk).cancel(cascade=True)
            case _:
                getattr(Job.objects.get(pk=job.pk), what)()
    except InvalidTransition:
        pass


def finish(run: Callable[[], Any]) -> None:
    """Let every live run have what it waits for, until all have ended."""
    deadline = time.monotonic() + 60
    while Job.objects.filter(finished_at=None).exists():
        assert time.monotonic() < deadline, list(
            Job.objects.filter(finished_at=None).values_list("slug", "status", "gate", "run_after")
        )
        Job.objects.filter(status="paused").resume()
        send_event("go", "at last")
        run()


def assert_settled(ran: list[tuple[str, str]]) -> None:
    """All have ended in order, and no step was run again after its record."""
    assert_sound()
    assert not Permit.objects.exists()
    for job in Job.objects.all():
        assert_folds(job)
        for step in job.steps.filter(status="completed", kind="task"):
            assert ran.count((str(job.pk), step.step_id)) == 1, (job.pk, step.step_id)
        consumed = Event.objects.filter(job=job, step_key__isnull=False)
        assert consumed.count() == len(set(consumed.values_list("step_key", flat=True)))


@settings(
    max_examples=SEQUENCES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(FIRED), st.integers(0, 25)), max_size=25)
)
def test_whatever_is_fired_at_runs_that_wait_they_all_come_to_an_end(
    fired: list[tuple[int, str, int]],
) -> None:
    known = registry.snapshot()
    for model in (Job, Event):
        model.objects.all().delete()
    ran: list[tuple[str, str]] = []
    chance = random.Random(len(fired))

    @task(retries=Retry(max_attempts=3, delay=0.01, jitter=0))
    def step(run: str, name: str) -> str:
        time.sleep(0.001)
        if chance.random() < 0.2:
            raise ValueError(name)
        ran.append((run, name))
        return name

    @workflow
    def below(run: WorkflowContext, n: int) -> int:
        run.task("first", step, run=str(run.job.pk), name="first")
        run.wait_for_event("wait", "go", timeout=0.05 * (1 + n % 3))
        run.task("last", step, run=str(run.job.pk), name="last")
        return n

    @workflow(retries=2, concurrency=lambda n: f"key:{n % 2}")
    def walk(run: WorkflowContext, n: int) -> list[Any]:
        name = str(run.job.pk)
        run.task("first", step, run=name, name="first")
        run.sleep("nap", 0.02 * n)
        told = run.wait_for_event("told", "go", timeout=None if n % 2 else 0.2)
        run.gather(
            run.call("beside", step, run=name, name="beside"),
            run.call("again", run.wait_for_event, "go", timeout=0.1),
            run.call("rest", run.sleep, 0.03),
        )
        try:
            children = run.map("child", below, range(n))
        except JobFailed as error:
            children = [str(error)]
        run.task("last", step, run=name, name="last")
        return [told, children]

    try:
        runs = walk.enqueue_many([{"n": n} for n in range(4)])
        under_fire(fired, lambda index, what: fire(runs[index], what))
        assert_sound()
        finish(lambda: run_jobs(all_queues=True))
        assert_settled(ran)
    finally:
        registry.restore(known)


def test_a_storm_on_worker_processes_that_are_killed_leaves_nobody_asleep(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """Real processes, one of them killed on the way; every run comes to its end."""
    runs = workflows.weather.enqueue_many([{"marks": str(marks), "n": n} for n in range(12)])
    workers = [runjobs("--processes", 2, "--threads", 4) for _ in range(2)]
    eventually(lambda: lines(marks), "they run")
    chance = random.Random(int(os.environ.get("TEST_WAIT_SEED") or 7))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        fire(chance.choice(runs), chance.choice(FIRED))
        time.sleep(chance.random() / 20)
    workers[0].kill_all()
    finish(lambda: time.sleep(0.05))
    assert_sound()
    for job in Job.objects.all():
        assert_folds(job)
    workers[1].terminate()
    assert workers[1].wait() == 0
