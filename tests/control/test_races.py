"""Commands against each other and against running workers: one of the serial orders, and nothing lost."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import django_jobs.control  # noqa: F401 - here, and not for the first time in a thread
from django_jobs import InvalidTransition, Retry, WorkflowContext, run_jobs, signals, task, workflow
from django_jobs.definitions import registry
from django_jobs.lifecycle import CHANGE, COMMANDS, KEEP, REFUSE, Command, Status
from django_jobs.models import HistoryEntry, Job, Permit, TaskStatus, Worker
from tests.app import jobs, workflows
from tests.control.rows import assert_folds, assert_sound, make
from tests.engine.processes import RunJobs, eventually, lines
from tests.racing import together, under_fire

pytestmark = pytest.mark.django_db(transaction=True)
RACERS = [Command.PAUSE, Command.RESUME, Command.CANCEL, Command.RETRY, Command.RUN_NOW]
#: Sequences of commands fired at running workers; many more by the environment.
SEQUENCES = int(os.environ.get("TEST_CONTROL_SEQUENCES") or 5)


def command(job: Job, name: Command) -> Callable[[], str]:
    def run() -> str:
        try:
            getattr(Job.objects.get(pk=job.pk), name)(actor=str(name))
        except InvalidTransition:
            return "refused"
        return "done"

    return run


def serially(status: Status, order: list[Command]) -> tuple[Status, dict[Command, str]]:
    """What the table says of these commands one after the other."""
    said: dict[Command, str] = {}
    for name in order:
        cell = COMMANDS[name][status]
        said[name] = "refused" if cell == REFUSE else "done"
        if cell not in (KEEP, REFUSE, CHANGE):
            status = Status(cell)
    return status, said


@pytest.mark.parametrize("status", [Status.PENDING, Status.PAUSED, Status.FAILED, Status.RUNNING])
@pytest.mark.parametrize(
    ("one", "other"), [(one, other) for one in RACERS for other in RACERS if one < other]
)
def test_s4_two_racing_commands_end_as_one_of_the_serial_orders(
    one: Command, other: Command, status: Status
) -> None:
    job = make(status, "workflow")
    answers = together(command(job, one), command(job, other))
    job.refresh_from_db()
    found = (job.status, dict(zip((one, other), answers, strict=True)))
    assert found in (serially(status, [one, other]), serially(status, [other, one]))
    assert_sound()
    assert_folds(job)


def test_s4_many_equal_commands_are_one_change() -> None:
    job = jobs.echo.enqueue()
    assert together(*[command(job, Command.PAUSE)] * 6) == ["done"] * 6
    assert HistoryEntry.objects.filter(job=job).count() == 1


def test_s4_overlapping_querysets_neither_deadlock_nor_count_twice() -> None:
    jobs.echo.enqueue_many([{"value": n} for n in range(300)])

    def by(order: str) -> Callable[[], int]:
        return lambda: Job.objects.order_by(order).filter(slug="echo").pause().changed

    assert sum(together(by("id"), by("-id"), by("input"))) == 300
    assert HistoryEntry.objects.filter(event="paused").count() == 300
    assert_sound()


# --- under way, in threads ----------------------------------------------------------------------


class Gate:
    """A place where handlers wait for the test."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def hold(self) -> str:
        self.reached.set()
        assert self.opened.wait(30)
        return "held"


class Batch(threading.Thread):
    """run_jobs() in a thread of its own."""

    def __init__(self, **how: Any) -> None:
        super().__init__(daemon=True)
        self.how = how
        self.start()

    def run(self) -> None:
        try:
            self.report = run_jobs(**self.how)
        finally:
            connections.close_all()

    def end(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self.report


def two_steps(gate: Gate, ran: list[str]) -> Any:
    @workflow
    def two(run: WorkflowContext) -> list[str]:
        first = run.inline("first", gate.hold)
        run.inline("second", lambda: ran.append("second"))
        return [first, *ran]

    return two


def test_c1_the_step_in_hand_of_a_paused_run_is_kept_and_no_other_starts() -> None:
    gate, ran = Gate(), list[str]()
    job = two_steps(gate, ran).enqueue()
    batch = Batch()
    assert gate.reached.wait(30)
    job.pause()
    assert (job.status, job.lease_expires_at is None) == ("paused", False)
    gate.opened.set()
    batch.end()
    job.refresh_from_db()
    assert (job.status, job.lease_expires_at, ran) == ("paused", None, [])
    assert job.task_status["inline"]["first"]["output"] == "held"
    assert_sound()
    job.resume()
    gate.reached.clear()
    run_jobs()
    job.refresh_from_db()
    assert (job.status, job.output, gate.reached.is_set()) == (
        "completed",
        ["held", "second"],
        False,
    )
    assert_sound()
    assert_folds(job)


def test_c1_a_resume_while_the_holder_works_lets_nobody_else_in() -> None:
    gate, ran = Gate(), list[str]()
    job = two_steps(gate, ran).enqueue()
    batch = Batch()
    assert gate.reached.wait(30)
    job.pause()
    job.resume()
    assert job.status == "pending"
    assert run_jobs().completed == 0
    gate.opened.set()
    batch.end()
    assert run_jobs().completed == 1
    job.refresh_from_db()
    assert (job.status, ran) == ("completed", ["second"])
    assert_sound()
    assert_folds(job)


def test_c2_the_late_result_of_a_canceled_job_is_dropped_and_its_permit_lasts_as_long() -> None:
    gate = Gate()
    told: list[str] = []

    def note(sender: Any, **_: Any) -> None:
        told.append("completed")

    @task(concurrency=lambda: "one")
    def alone() -> str:
        return gate.hold()

    signals.job_completed.connect(note)
    try:
        job, other = alone.enqueue(), alone.enqueue()
        batch = Batch(limit=1)
        assert gate.reached.wait(30)
        job.refresh_from_db()
        fence = job.fence
        job.cancel("enough")
        assert (job.status, job.fence, job.lease_expires_at) == ("canceled", fence + 1, None)
        assert Permit.objects.get().fence == fence
        assert run_jobs().completed == 0
        assert Job.objects.get(pk=other.pk).gate == "permit"
        assert_sound()
        gate.opened.set()
        report = batch.end()
    finally:
        signals.job_completed.disconnect(note)
    job.refresh_from_db()
    assert (job.status, job.output, job.attempts, report.completed) == ("canceled", None, 0, 0)
    assert told == []
    assert Permit.objects.count() == 0
    assert run_jobs().completed == 1
    assert_sound()


def test_c2_a_handler_in_a_thread_sees_that_it_is_canceled_and_starts_no_step() -> None:
    gate = Gate()
    seen: list[bool] = []

    @workflow
    def asks(run: WorkflowContext) -> None:
        seen.append(run.cancel_requested)
        gate.hold()
        while not run.cancel_requested:
            time.sleep(0.05)
        seen.append(True)
        run.inline("never", lambda: seen.append(False))

    job = asks.enqueue()
    batch = Batch()
    assert gate.reached.wait(30)
    job.cancel()
    gate.opened.set()
    batch.end()
    assert seen == [False, True]
    assert not TaskStatus.objects.filter(job=job).exists()


# --- under way, in worker processes -------------------------------------------------------------


def test_c1_pause_and_resume_of_a_run_in_a_worker_process(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    job = jobs.traces.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 1)
    eventually(lambda: len(lines(marks)) == 2, "the second step is under way")
    job.pause(actor="olga")
    release.touch()
    eventually(
        lambda: Job.objects.get(pk=job.pk).lease_expires_at is None, "the job is handed back"
    )
    job.refresh_from_db()
    assert (job.status, len(lines(marks))) == ("paused", 2)
    assert job.task_status["hold"]["wait"]["output"] == "released"
    assert_sound()
    job.resume()
    eventually(lambda: Job.objects.get(pk=job.pk).status == "completed", "the run is completed")
    assert [line.split()[0] for line in lines(marks)] == ["first", "started", "last"]
    assert_sound()
    worker.terminate()
    assert worker.wait() == 0


def test_c2_a_canceled_async_handler_gets_cancelled_error(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    waiting = workflows.waits_async.enqueue(marks=str(marks))
    run = workflows.run_that_waits_async.enqueue(marks=str(marks))
    worker = runjobs("--threads", 1)
    eventually(lambda: sorted(lines(marks)) == ["run waits", "task waits"], "both wait")
    assert Job.objects.filter(pk__in=[waiting.pk, run.pk]).cancel("enough").changed == 2
    eventually(
        lambda: (
            sorted(lines(marks))
            == ["run canceled", "run waits", "step canceled", "task canceled", "task waits"]
        ),
        "both are told",
    )
    eventually(lambda: Worker.objects.get().jobs_in_hand == 0, "both have ended")
    assert "lease" not in worker.output()
    assert_sound()
    again = jobs.add.enqueue(a=1, b=2)
    eventually(lambda: Job.objects.get(pk=again.pk).status == "completed", "the worker goes on")
    worker.terminate()
    assert worker.wait() == 0


def test_c2_the_permit_of_a_canceled_job_outlives_its_lease_as_long_as_the_handler_runs(
    runjobs: Callable[..., RunJobs], marks: Path, release: Path
) -> None:
    held = jobs.hold.using(concurrency_key="one")
    job = held.enqueue(marks=str(marks), release=str(release))
    worker = runjobs("--threads", 2, LEASE=1.0, HEARTBEAT=0.2)
    eventually(lambda: len(lines(marks)) == 1, "the first one runs")
    job.cancel()
    other = jobs.echo.using(concurrency_key="one").enqueue()
    free = jobs.echo.enqueue()
    eventually(lambda: Job.objects.get(pk=free.pk).status == "completed", "others are served")
    first = Permit.objects.get().lease_expires_at
    assert first is not None
    eventually(lambda: Permit.objects.get().lease_expires_at > first, "the permit is renewed")
    eventually(
        lambda: Permit.objects.get().lease_expires_at.timestamp() > first.timestamp() + 2,
        "twice the lease",
    )
    assert Job.objects.get(pk=other.pk).status == "pending"
    assert_sound()
    release.touch()
    eventually(lambda: Job.objects.get(pk=other.pk).status == "completed", "the next one is let in")
    assert Permit.objects.count() == 0
    worker.terminate()
    assert worker.wait() == 0


# --- at random ----------------------------------------------------------------------------------


FIRED = [
    Command.PAUSE,
    Command.RESUME,
    Command.RESUME,
    Command.CANCEL,
    Command.RETRY,
    Command.RUN_NOW,
]


@settings(
    max_examples=SEQUENCES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(FIRED), st.integers(0, 15)), max_size=20)
)
def test_commands_at_random_leave_no_job_without_owner_and_run_no_step_twice(
    fired: list[tuple[int, Command, int]],
) -> None:
    """Pause, resume, cancel, retry against running threads: jobs_check is clean, records are kept."""
    known = registry.snapshot()
    Job.objects.all().delete()
    TaskStatus.objects.all().delete()
    HistoryEntry.objects.all().delete()
    Permit.objects.all().delete()
    ran: list[tuple[str, int]] = []
    chance = random.Random(len(fired))

    @task(retries=Retry(max_attempts=2, delay=0, jitter=0))
    def step(run: int, n: int) -> int:
        time.sleep(0.002)
        if chance.random() < 0.2:
            raise ValueError(n)
        ran.append((str(run), n))
        return n

    @workflow(retries=1, concurrency=lambda n: f"key:{n % 2}")
    def walk(run: WorkflowContext, n: int) -> int:
        return sum(run.task(f"s{index}", step, run=n, n=index) for index in range(5))

    try:
        runs = walk.enqueue_many([{"n": n} for n in range(4)])
        under_fire(fired, lambda index, name: command(runs[index], name)())
        assert_sound()
        Job.objects.filter(status="paused").resume()
        for _ in range(40):
            run_jobs(all_queues=True)
            if not Job.objects.filter(finished_at=None).exists():
                break
        assert not Job.objects.filter(finished_at=None).exists()
        assert_sound()
        assert Permit.objects.count() == 0
        for job in Job.objects.all():
            assert_folds(job)
            kept = {one.step_id for one in job.steps.filter(status="completed")}
            for name in kept:
                assert ran.count((str(job.input["n"]), int(name[1:]))) == 1
            assert job.status != "completed" or len(kept) == 5
    finally:
        registry.restore(known)
