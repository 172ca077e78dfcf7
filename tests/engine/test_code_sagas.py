"""Sagas of code workflows: steps with ``compensate=`` are undone, the last completed one first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from django_jobs import (
    CancelJob,
    ConfigurationError,
    InvalidTransition,
    JobFailed,
    NonRetryable,
    Retry,
    StepContext,
    TaskContext,
    WorkflowContext,
    run_jobs,
    signals,
    task,
    workflow,
)
from django_jobs.definitions import registry as definitions
from django_jobs.models import Job, TaskStatus
from django_jobs.testing import clock, drain, registry
from tests.control.rows import assert_folds, assert_sound

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def own_definitions() -> Iterator[None]:
    with registry():
        yield
        for job in Job.objects.all():
            assert_folds(job)
        assert_sound()
    clock.reset()


def done(job: Job) -> Job:
    job.refresh_from_db()
    return job


def broken() -> None:
    raise NonRetryable("broken")


def trip(log: list[Any], **undo: Any) -> Any:
    """Three steps, each undone by a function that notes it, and a fourth that fails."""

    def note(ctx: StepContext) -> None:
        log.append(ctx.step_id)

    @workflow("trip")
    def trip(run: WorkflowContext, order: int = 7) -> None:
        for name in "abc":
            run.inline(name, lambda name=name: f"{name} done", compensate=undo.get(name, note))
        run.inline("bad", undo.get("bad", broken))

    return trip


def test_completed_steps_are_undone_in_reverse_order() -> None:
    log: list[Any] = []
    seen: dict[str, Any] = {}
    sent: list[Any] = []

    def look(ctx: StepContext) -> None:
        log.append(ctx.step_id)
        seen.update(
            step_id=ctx.step_id, results=ctx.results, error=ctx.error, input=ctx.input, key=ctx.idempotency_key,
            run=ctx.run.pk, attempt=ctx.attempt, skipped=ctx.was_skipped("a"), before=ctx.previous_steps,
        )  # fmt: skip
        ctx.log.info("undone")

    def heard(signal: Any, job: Job, error: Any, **_: Any) -> None:
        sent.append((signal, job.status, error["message"]))

    chosen = (signals.run_compensating, signals.run_compensated, signals.job_failed)
    for signal in chosen:
        signal.connect(heard)
    try:
        job = trip(log, b=look).enqueue(order=7)
        report = run_jobs()
    finally:
        for signal in chosen:
            signal.disconnect(heard)
    assert report.failed == 1
    assert done(job).status == "compensated"
    assert log == ["c", "b", "a"]
    said = "Step inline/bad failed: NonRetryable: broken"
    assert (job.error["message"], job.error["step_id"], job.attempts) == (said, "bad", 1)
    assert seen == {
        "step_id": "b", "results": {"a": "a done", "b": "b done", "c": "c done"}, "input": {"order": 7},
        "error": {"type": "django_jobs.errors.JobFailed", "message": said, "code": None, "step_id": "bad"},
        "key": f"{job.pk}:undo/undo:b", "run": job.pk, "attempt": 1, "skipped": False, "before": {},
    }  # fmt: skip
    assert job.task_status["undo"]["undo:a"]["complete"]
    kinds = dict(TaskStatus.objects.filter(job=job).values_list("step_id", "kind"))
    assert kinds["undo:c"] == "compensation"
    assert job.as_dict()["results"] == {"a": "a done", "b": "b done", "c": "c done"}
    assert [one[:2] for one in sent] == [
        (signals.run_compensating, "compensating"), (signals.run_compensated, "compensated"),
    ]  # fmt: skip
    with pytest.raises(JobFailed, match="broken"):
        job.result()


def test_a_run_that_does_not_fail_undoes_nothing() -> None:
    log: list[Any] = []
    job = trip(log, bad=lambda: 1).enqueue()

    @workflow
    def catches(run: WorkflowContext) -> str:
        run.inline("a", lambda: 1, compensate=lambda ctx: log.append("a"))
        try:
            run.inline("bad", broken)
        except JobFailed:
            return "caught"
        return "fine"

    also = catches.enqueue()
    drain()
    assert done(job).status == done(also).status == "completed"
    assert log == []


def test_nothing_to_undo_is_a_failed_run_with_its_callback() -> None:
    told: list[Any] = []

    @workflow("none", on_failure=lambda context, error, final: told.append((str(error), final)))
    def none(run: WorkflowContext) -> None:
        run.inline("bad", broken, compensate=lambda ctx: told.append("never"))

    job = none.enqueue()
    drain()
    assert done(job).status == "failed"
    assert [final for _, final in told] == [True]


def test_tasks_maps_gathers_and_async_steps_are_undone_too() -> None:
    log: list[Any] = []

    @task
    def charge(total: int, currency: str = "CHF") -> str:
        return f"paid {total}"

    @task
    async def refund(total: int) -> None:
        log.append(("refund", total))

    @task(takes_context=True)
    def release(context: TaskContext, seat: int) -> None:
        log.append(("release", seat, context.idempotency_key.rpartition(":")[2]))

    @task
    async def book(seat: int) -> int:
        return seat

    async def later(ctx: StepContext) -> None:
        log.append(ctx.step_id)

    @workflow
    async def many(run: WorkflowContext) -> None:
        await run.task("pay", charge, total=5, compensate=refund)
        await run.map("seat", book, [1, 2], compensate=release)
        await run.gather(
            run.call("x", book, seat=8, compensate=later), run.call("y", book, seat=9, compensate=release)
        )  # fmt: skip
        raise ValueError("no")

    job = many.enqueue()
    drain()
    assert done(job).status == "compensated", job.error
    # Those at the same time in the order in which they were recorded.
    assert sorted(map(str, log[:2])) == sorted(["x", "('release', 9, 'y')"])
    assert [one[:2] for one in log[2:]] == [("release", 2), ("release", 1), ("refund", 5)]
    assert job.error["message"] == "no"


def test_a_compensation_has_the_retries_of_its_step_and_an_operator_may_retry_it() -> None:
    log: list[Any] = []
    tried: list[int] = []
    is_broken = [True]

    def flaky(ctx: StepContext) -> None:
        tried.append(ctx.attempt)
        if is_broken:
            raise ValueError("no refund")
        log.append("b")

    @workflow(retries=0)
    def tries(run: WorkflowContext) -> None:
        run.inline("a", lambda: 1, compensate=lambda ctx: log.append("a"))
        run.inline(
            "b", lambda: 2, compensate=flaky, retries=Retry(max_attempts=3, delay=30, jitter=0)
        )
        broken()

    clock.freeze(clock.now())
    job = tries.enqueue()
    drain()
    assert (done(job).status, tried) == ("compensating", [1])
    assert "waits for the next try" in str(job.explain())
    drain(until=timedelta(minutes=5))
    assert (done(job).status, tried, log) == ("compensation_failed", [1, 2, 3], [])
    assert job.error["message"] == "broken"
    assert job.task_status["undo"]["undo:b"]["error"]["message"] == "no refund"
    for command in (job.compensate, job.pause, job.cancel):
        with pytest.raises(InvalidTransition):
            command()
    is_broken.clear()
    assert job.retry().status == "compensating"
    drain()
    assert (done(job).status, log) == ("compensated", ["b", "a"])


def test_cancel_job_in_a_compensation_is_its_failure_and_retry_later_costs_nothing() -> None:
    asked: list[int] = []

    @task
    def cancels() -> None:
        raise CancelJob("never mind")

    job = trip([], c=cancels).enqueue()
    drain()
    assert done(job).status == "compensation_failed"
    assert "never mind" in job.task_status["undo"]["undo:c"]["error"]["message"]
    assert asked == []


@pytest.mark.parametrize("place", ["in a step", "in a task's job", "no function", "twice"])
def test_what_cannot_be_undone_is_refused_where_it_is_written(place: str) -> None:
    def undo(ctx: StepContext) -> None:
        raise AssertionError

    @task(takes_context=True)
    def outer(context: TaskContext) -> None:
        context.inline("inner", lambda: 1, compensate=undo)

    @task
    def plain() -> None: ...

    @workflow
    def flow(run: WorkflowContext) -> None:
        match place:
            case "in a step":
                run.task("outer", outer)
            case "no function":
                run.inline("x", lambda: 1, compensate="refund")
            case _:
                run.inline("x", lambda: 1, compensate=undo)
                run.task("x", plain, compensate=undo)

    job = outer.enqueue() if place == "in a task's job" else flow.enqueue()
    drain()
    assert done(job).status == ("compensation_failed" if place == "twice" else "failed")
    assert ConfigurationError.__name__ in job.error["type"] + job.error["message"], job.error
    wanted = {"twice": "another id", "no function": "compensate= is a function"}
    assert wanted.get(place, "only the steps of a workflow itself") in job.error["message"]


# --- runs that are taken over -----------------------------------------------------------------


def leave(job: Job) -> None:
    """As if the worker had died when the run had just begun to be undone."""
    from django_jobs.workflows import undo

    class Dies(BaseException):
        pass

    async def dies(*_: Any) -> None:
        raise Dies

    real = undo.Compensating.undo
    undo.Compensating.undo = dies  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(Dies):
            run_jobs(sequential=True)
    finally:
        undo.Compensating.undo = real  # type: ignore[method-assign]
    assert (done(job).status, job.lease_expires_at is not None) == ("compensating", True)


def take_over(job: Job) -> None:
    drain(until=timedelta(minutes=5))
    assert done(job).crashes == 1


def test_who_takes_over_asks_the_handler_and_runs_no_step_again() -> None:
    log: list[Any] = []
    ran: list[str] = []

    @task
    def step(name: str) -> str:
        ran.append(name)
        return name

    @workflow
    def flow(run: WorkflowContext) -> None:
        run.log.info("a line of each pass")
        run.progress(0.5)
        run.task("a", step, name="a", compensate=lambda ctx: log.append(ctx.results["a"]))
        run.task(
            "again", step, name="again", retries=Retry(restore=False), compensate=lambda ctx: log.append("again")
        )  # fmt: skip
        try:
            run.inline("caught", broken)
        except JobFailed:
            run.task("b", step, name="b", compensate=lambda ctx: log.append(ctx.error["message"]))
        raise NonRetryable("for good")

    clock.freeze(clock.now())
    job = flow.enqueue()
    leave(job)
    before = list(ran)
    take_over(job)
    assert (job.status, log) == ("compensated", ["for good", "again", "a"])
    assert ran == before == ["a", "again", "b"]
    assert job.log_lines.count() == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gone", "does not ask for it any more"),
        ("bare", "without compensate="),
        ("raises", "ValueError: new code"),
        ("kind", "NonDeterministic"),
    ],
)
def test_a_compensation_that_the_code_does_not_give_any_more_fails_in_its_place(
    change: str, said: str
) -> None:
    log: list[Any] = []

    def undo(ctx: StepContext) -> None:
        log.append(ctx.step_id)

    def define(now: str) -> Any:
        @workflow("changing")
        def changing(run: WorkflowContext) -> None:
            if now == "raises":
                raise ValueError("new code")
            run.inline("a", lambda: 1, compensate=undo)
            if now == "kind":
                run.sleep("b", 5)
            elif now != "gone":
                run.inline("b", lambda: 2, compensate=None if now == "bare" else undo)
            run.inline("c", lambda: 3, compensate=undo)
            broken()

        return changing

    clock.freeze(clock.now())
    known = definitions.snapshot()
    job = define("").enqueue()
    leave(job)
    definitions.restore(known)
    define(change)
    take_over(job)
    assert job.status == "compensation_failed"
    # Those that completed after it are undone, those before it wait for the code.
    assert log == ([] if change in ("raises", "kind") else ["c"])
    failed = "undo:c" if change in ("raises", "kind") else "undo:b"
    error = job.task_status["undo"][failed]["error"]
    assert said in error["message"], error
    assert "test_code_sagas" in error["message"], "by whom it was to be undone"
    definitions.restore(known)
    define("")
    job.retry()
    drain()
    assert (done(job).status, log) == ("compensated", ["c", "b", "a"])


def test_c3_looking_back_starts_no_step_of_new_code() -> None:
    log: list[Any] = []

    def define(is_new: bool) -> Any:
        @workflow("looking")
        def looking(run: WorkflowContext) -> None:
            run.inline("a", lambda: 1, compensate=lambda ctx: log.append("undo a"))
            if is_new:
                run.inline("b", lambda: log.append("b has run"))
            run.sleep("night", timedelta(days=1))

        return looking

    known = definitions.snapshot()
    job = define(False).enqueue()
    drain()
    assert done(job).status == "sleeping"
    definitions.restore(known)
    define(True)
    job.cancel(compensate=True)
    drain()
    assert (done(job).status, log) == ("compensated", ["undo a"])


def test_a_run_whose_code_is_nowhere_waits_and_says_so() -> None:
    log: list[Any] = []
    clock.freeze(clock.now())
    known = definitions.snapshot()
    job = trip(log).enqueue()
    leave(job)
    definitions.restore(known)
    drain(until=timedelta(minutes=5))
    assert (done(job).status, job.lease_expires_at, log) == ("compensating", None, [])
    assert "No live worker serves the queue" in str(job.explain())
    trip(log)
    drain()
    assert (done(job).status, log) == ("compensated", ["c", "b", "a"])


def test_a_run_whose_stored_input_is_damaged_is_not_undone_and_ends() -> None:
    clock.freeze(clock.now())
    job = trip([]).enqueue()
    leave(job)
    Job.objects.filter(pk=job.pk).update(input=[1])
    take_over(job)
    assert job.status == "compensation_failed"


def test_a_failed_run_is_undone_when_asked_once_its_code_says_how() -> None:
    log: list[Any] = []

    def define(undo: Any) -> Any:
        @workflow("asked")
        def asked(run: WorkflowContext) -> None:
            run.inline("a", lambda: 1, compensate=undo)
            broken()

        return asked

    known = definitions.snapshot()
    job = define(None).enqueue()
    drain()
    assert done(job).status == "failed"
    definitions.restore(known)
    define(lambda ctx: log.append(ctx.error["message"]))
    assert job.compensate(actor="olga").status == "compensating"
    drain()
    assert (done(job).status, log) == ("compensated", ["broken"])
    assert job.history.filter(event="compensating", actor="olga").exists()


def test_on_failure_is_told_once_when_the_undoing_has_ended() -> None:
    told: list[Any] = []

    @workflow("told", on_failure=lambda context, error, final: told.append((type(error), final)))
    def flow(run: WorkflowContext) -> None:
        run.inline("a", lambda: 1, compensate=lambda ctx: told.append("undone"))
        raise KeyError("x")

    clock.freeze(clock.now())
    flow.enqueue()
    drain()
    assert told == ["undone", (KeyError, True)]
    told.clear()
    job = flow.enqueue()
    leave(job)
    take_over(job)
    assert told == ["undone", (JobFailed, True)]
