"""Sagas: a failed run undoes what it has completed, in reverse order of completion."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_jobs import DAG, CancelJob, JobFailed, Retry, run_jobs, signals, task
from django_jobs.errors import InvalidTransition
from django_jobs.lifecycle import Status
from django_jobs.models import TaskStatus
from django_jobs.observe import health
from django_jobs.store.session import Session, engine_alias
from django_jobs.testing import clock, drain, registry

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def own_definitions():
    with registry():
        yield
    clock.reset()


@pytest.fixture(autouse=True)
def sound_in_the_end():
    yield
    found = list(health.findings(Session(engine_alias())))
    assert not found, found


def fails(ctx):
    raise ValueError("broken")


def done(job):
    job.refresh_from_db()
    return job


def shop(log, **undo):
    """a → b → c → bad, each undone by a function that notes it."""

    def note(ctx):
        log.append(ctx.step_id)

    dag = DAG("shop")
    before = ()
    for name in "abc":
        dag.step(
            name, lambda ctx: f"{ctx.step_id} done", after=before, compensate=undo.get(name, note)
        )
        before = name
    return dag.step("bad", undo.get("bad", fails), after=before)


def test_completed_steps_are_undone_in_reverse_order():
    log, seen, sent = [], {}, []

    def look(ctx):
        log.append(ctx.step_id)
        seen.update(
            step_id=ctx.step_id, results=ctx.results, error=ctx.error, input=ctx.input,
            key=ctx.idempotency_key, context=ctx.context,
        )  # fmt: skip

    def heard(signal, job, error, **_):
        sent.append((signal, job.status, error["message"]))

    chosen = (signals.run_compensating, signals.run_compensated, signals.job_failed)
    for signal in chosen:
        signal.connect(heard)
    try:
        job = shop(log, b=look).enqueue(context={"shop": 1}, order=7)
        report = drain()
    finally:
        for signal in chosen:
            signal.disconnect(heard)
    assert report.failed == 1
    assert done(job).status == Status.COMPENSATED
    assert log == ["c", "b", "a"]
    assert job.error["message"] == "broken"
    assert job.error["step_id"] == "bad"
    assert job.attempts == 1
    assert seen["step_id"] == "b"
    assert seen["results"] == {"a": "a done", "b": "b done", "c": "c done"}
    assert seen["error"] == {
        "type": "builtins.ValueError", "message": "broken", "code": None, "step_id": "bad",
    }  # fmt: skip
    assert (seen["input"], seen["context"]) == ({"order": 7}, {"shop": 1})
    assert seen["key"] == f"{job.pk}:undo/undo:b"
    assert job.task_status["undo"]["undo:a"]["complete"]
    kinds = dict(TaskStatus.objects.filter(job=job).values_list("step_id", "kind"))
    assert kinds["undo:c"] == "compensation"
    assert sent == [
        (signals.run_compensating, "compensating", "broken"),
        (signals.run_compensated, "compensated", "broken"),
    ]
    with pytest.raises(JobFailed, match="broken"):
        job.result()


def test_nothing_to_undo_is_a_failed_run():
    job = DAG("none").step("bad", fails, compensate=fails).enqueue()
    off = (
        DAG("off", saga=False)
        .step("a", lambda ctx: 1, compensate=fails)
        .step("b", fails, after="a")
        .enqueue()
    )
    drain()
    assert done(job).status == done(off).status == Status.FAILED


def test_async_functions_and_tasks_compensate():
    log = []

    @task
    def charged(total: int, currency: str) -> str:
        return "paid"

    @task
    def refunded(total: int) -> None:
        log.append(total)

    async def later(ctx):
        log.append(ctx.step_id)

    dag = (
        DAG("kinds")
        .step("charge", charged, input={"total": 5, "currency": "CHF"}, compensate=refunded)
        .step("ship", lambda ctx: 1, after="charge", compensate=later)
        .step("bad", fails, after="ship")
    )
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPENSATED
    assert log == ["ship", 5]


def test_a_compensation_is_tried_again_by_the_retries_of_its_step():
    log, tried = [], []

    def flaky(ctx):
        tried.append(ctx.attempt)
        if len(tried) < 3:
            raise ValueError("not yet")
        log.append("a")

    dag = (
        DAG("tries")
        .step(
            "a", lambda ctx: 1, compensate=flaky, retries=Retry(max_attempts=3, delay=30, jitter=0)
        )
        .step("bad", fails, after="a")
    )
    clock.freeze(clock.now())
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPENSATING
    assert job.finished_at is None
    drain()
    assert tried == [1]
    drain(until=timedelta(minutes=2))
    assert done(job).status == Status.COMPENSATED
    assert tried == [1, 2, 3]


def test_a_compensation_that_finally_fails_stops_until_an_operator_retries():
    log, broken = [], [True]

    def undo(ctx):
        if broken:
            raise ValueError("no refund")
        log.append(ctx.step_id)

    job = shop(log, b=undo).enqueue()
    drain()
    assert done(job).status == Status.COMPENSATION_FAILED
    assert log == ["c"]
    assert job.error["message"] == "broken"
    with pytest.raises(InvalidTransition):
        job.compensate()
    broken.clear()
    job.retry()
    assert job.status == Status.COMPENSATING
    drain()
    assert done(job).status == Status.COMPENSATED
    assert log == ["c", "b", "a"]


def test_on_compensation_error_continue_goes_on():
    log = []
    dag = DAG("goes.on", on_compensation_error="continue")
    for name, undo in (
        ("a", lambda ctx: log.append("a")),
        ("b", fails),
        ("c", lambda ctx: log.append("c")),
    ):
        dag.step(
            name, lambda ctx: 1, after=() if name == "a" else chr(ord(name) - 1), compensate=undo
        )
    dag.step("bad", fails, after="c")
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPENSATION_FAILED
    assert log == ["c", "a"]


def test_cancel_job_in_a_compensation_is_its_failure():
    def undo(ctx):
        raise CancelJob("never mind")

    job = shop([], c=undo).enqueue()
    drain()
    assert done(job).status == Status.COMPENSATION_FAILED
    assert "never mind" in job.task_status["undo"]["undo:c"]["error"]["message"]


def test_a_failed_run_without_a_saga_is_undone_when_asked():
    log = []
    dag = DAG("asked", saga=False)
    dag.step("a", lambda ctx: 1, compensate=lambda ctx: log.append(ctx.error["message"]))
    dag.step("bad", fails, after="a")
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.FAILED
    job.compensate()
    assert job.status == Status.COMPENSATING
    drain()
    assert done(job).status == Status.COMPENSATED
    assert log == ["broken"]


def test_only_failed_runs_of_graphs_are_compensated():
    @task
    def breaks() -> None:
        raise ValueError

    job = breaks.enqueue()
    drain()
    with pytest.raises(InvalidTransition, match="compensate"):
        done(job).compensate()
    good = DAG("good").step("a", lambda ctx: 1).enqueue()
    drain()
    with pytest.raises(InvalidTransition):
        done(good).compensate()


def test_a_crash_goes_on_and_nothing_is_undone_twice(settings):
    """C3: the worker dies within a compensation; the next one continues from there."""
    log = []

    class Dies(BaseException):
        pass

    def undo(ctx):
        log.append(ctx.step_id)
        if log.count("b") == 1 and ctx.step_id == "b":
            raise Dies

    from django_jobs.workflows import driver

    clock.freeze(clock.now())
    job = shop(log, b=undo, c=undo, a=undo).enqueue()
    real = driver.RunDriver._execute

    async def dying(self, step, record):
        if step.path == "undo:b" and "b" not in log:
            log.append("b")
            raise Dies
        return await real(self, step, record)

    driver.RunDriver._execute = dying
    try:
        # As if the process had been killed: its lease stays, and nothing of the try is recorded.
        from django_jobs.worker import local

        finish = local.DirectRecorder.write

        def gone(self, item):
            if type(item).__name__ == "Finish":
                raise Dies
            return finish(self, item)

        local.DirectRecorder.write = gone
        try:
            with pytest.raises(Dies):
                run_jobs(sequential=True)
        finally:
            local.DirectRecorder.write = finish
    finally:
        driver.RunDriver._execute = real
    assert done(job).status == Status.COMPENSATING
    assert job.lease_expires_at is not None
    drain(until=timedelta(minutes=1))
    assert done(job).status == Status.COMPENSATED
    assert job.crashes == 1
    assert log.count("c") == 1
    assert log == ["c", "b", "b", "a"]
