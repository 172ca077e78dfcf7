"""Waits, conditions and ends of retries, and the callbacks that are told of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from django_jobs import (
    CancelJob,
    InvalidInput,
    InvalidOutput,
    JobFailed,
    NonRetryable,
    Retry,
    RetryLater,
    TaskContext,
    WorkflowContext,
    task,
    workflow,
)
from django_jobs.models import Attempt, HistoryEntry, Job
from django_jobs.testing import clock, drain, registry

pytestmark = pytest.mark.django_db
START = datetime(2030, 1, 1, tzinfo=UTC)
LONG = timedelta(hours=10)


@pytest.fixture(autouse=True)
def frozen() -> None:
    clock.freeze(START)


def waits_between(moments: list[datetime]) -> list[float]:
    return [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]


def waits_of(retries: Any, setting: Any = None) -> list[float]:
    """The waits between the tries of a plain job that always fails."""
    with registry():
        moments: list[datetime] = []

        @task("test.waits", retries=retries)
        def always_fails() -> None:
            moments.append(clock.now())
            raise OSError("no")

        always_fails.enqueue()
        drain(until=LONG)
        return waits_between(moments)


SEQUENCES: dict[str, tuple[Any, list[float]]] = {
    "fixed": (Retry(max_attempts=4, delay=5, jitter=0), [5, 5, 5]),
    "exponential": (
        Retry(max_attempts=5, delay=2, backoff="exponential", jitter=0), [2, 4, 8, 16],
    ),
    "exponential with a factor": (
        Retry(max_attempts=4, delay=1, backoff="exponential", factor=3, jitter=0), [1, 3, 9],
    ),
    "exponential, capped": (
        Retry(max_attempts=5, delay=10, backoff="exponential", max_delay=25, jitter=0),
        [10, 20, 25, 25],
    ),
    "capped at a minute unless told": (
        Retry(max_attempts=4, delay=40, backoff="exponential", jitter=0), [40, 60, 60],
    ),
    "a long delay is its own cap": (Retry(max_attempts=2, delay=3600, jitter=0), [3600]),
    "fixed, capped": (Retry(max_attempts=3, delay=9, max_delay=4, jitter=0), [4, 4]),
    "a function": (Retry(max_attempts=4, backoff=lambda attempt, error: attempt * 7), [7, 14, 21]),
    "a function of timedeltas, capped": (
        Retry(max_attempts=3, backoff=lambda attempt, error: timedelta(minutes=5)), [60, 60],
    ),
    "a function that gives up": (
        Retry(max_attempts=9, backoff=lambda attempt, error: 3 if attempt < 3 else None), [3, 3],
    ),
    "a function that asks the error": (
        Retry(max_attempts=3, backoff=lambda attempt, error: len(str(error))), [2, 2],
    ),
    "jitter 0 alone makes the default wait exact": (Retry(max_attempts=3, jitter=0), [1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_waits_are_exactly_those_of_the_policy(name: str) -> None:
    retries, expected = SEQUENCES[name]
    assert waits_of(retries) == expected


def test_the_default_wait_is_a_second_moved_by_up_to_a_quarter() -> None:
    waits = waits_of(40)
    assert len(waits) == 40
    assert all(0.75 <= wait <= 1.25 for wait in waits)
    assert len(set(waits)) > 10


def test_the_setting_gives_tries_and_wait_where_nobody_else_does(settings: Any) -> None:
    settings.DJANGO_JOBS = {"RETRIES": Retry(max_attempts=3, delay=30, jitter=0)}
    assert waits_of(None) == [30, 30]
    assert waits_of(0) == []
    assert waits_of(1) == [30]
    assert waits_of(Retry(delay=2, jitter=0)) == [2, 2]


def test_the_conditions_of_the_setting_hold_only_where_its_number_does(settings: Any) -> None:
    settings.DJANGO_JOBS = {"RETRIES": Retry(max_attempts=3, give_up_on=OSError, jitter=0)}
    assert waits_of(None) == []
    assert len(waits_of(1)) == 1


def run_moments(
    step_retries: Any, run_retries: Any, fails: Callable[[int], Any] = lambda n: True
) -> list[datetime]:
    """When the one step of a run was tried."""
    moments: list[datetime] = []

    @task("test.step", retries=step_retries)
    def step() -> None:
        moments.append(clock.now())
        if fails(len(moments)):
            raise OSError("no")

    @workflow("test.run", retries=run_retries)
    def flow(run: WorkflowContext) -> None:
        run.task("step", step)

    flow.enqueue()
    drain(until=LONG)
    return moments


@pytest.mark.parametrize(
    ("step", "run", "expected"),
    [
        (Retry(max_attempts=3, delay=5, jitter=0), Retry(delay=2, jitter=0), [5, 5]),
        (Retry(max_attempts=3, delay=2, jitter=0), Retry(delay=5, jitter=0), [5, 5]),
        (
            Retry(max_attempts=4, delay=1, backoff="exponential", factor=4, jitter=0),
            Retry(delay=6, jitter=0),
            [6, 6, 16],
        ),
        (2, Retry(delay=6, jitter=0), [6, 6]),
        (Retry(max_attempts=3, delay=6, jitter=0), 5, [6, 6]),
        (Retry(max_attempts=3, jitter=0), 5, [1, 1]),
    ],
)
def test_the_longer_wait_of_step_and_workflow_holds(
    step: Any, run: Any, expected: list[float]
) -> None:
    assert waits_between(run_moments(step, run)) == expected


def test_a_sleeping_run_shows_when_its_next_pass_is_due() -> None:
    @workflow("test.due", retries=Retry(max_attempts=2, delay=90, max_delay=90, jitter=0))
    def flow(run: WorkflowContext) -> None:
        raise OSError("no")

    job = flow.enqueue()
    report = drain()
    job.refresh_from_db()
    assert (report.retried, job.status, job.attempts) == (1, "sleeping", 1)
    assert job.run_after == START + timedelta(seconds=90)
    assert job.error["message"] == "no"


# --- which errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retries", "tries"),
    [
        (Retry(max_attempts=3, retry_on=OSError), 3),
        (Retry(max_attempts=3, retry_on=(KeyError, ValueError)), 1),
        (Retry(max_attempts=3, give_up_on=OSError), 1),
        (Retry(max_attempts=3, give_up_on=KeyError), 3),
        (Retry(max_attempts=3, retry_on=Exception, give_up_on=ConnectionError), 3),
        (Retry(max_attempts=3, retry_on=lambda error: "no" in str(error)), 3),
        (Retry(max_attempts=3, give_up_on=lambda error: "no" in str(error)), 1),
    ],
)
@pytest.mark.parametrize("where", ["task", "step", "run"])
def test_conditions_decide_which_errors_are_tried_again(
    retries: Retry, tries: int, where: str
) -> None:
    if where == "task":
        assert len(waits_of(retries)) == tries - 1
    elif where == "step":
        assert len(run_moments(retries, None)) == tries
    else:
        assert len(run_moments(9, retries)) == tries


def test_non_retryable_fails_at_once() -> None:
    tried: list[int] = []

    @task("test.never", retries=5)
    def never() -> None:
        tried.append(1)
        raise NonRetryable("no such order")

    @workflow("test.never.run", retries=5)
    def flow(run: WorkflowContext) -> None:
        run.task("step", never)

    plain, run = never.enqueue(), flow.enqueue()
    drain(until=LONG)
    for job in (plain, run):
        job.refresh_from_db()
        assert (job.status, job.attempts) == ("failed", 1)
        assert "no such order" in job.error["message"]
    assert len(tried) == 2
    assert run.error["step_id"] == "step"


def test_r9_a_bad_output_is_a_permanent_failure_that_names_the_path() -> None:
    """R9: what JSON or the hint cannot hold is refused, whatever tries are left."""

    @task("test.output", retries=5)
    def bad(kind: str) -> dict[str, int]:
        return {"sum": "no number"} if kind == "type" else {"sum": float("nan")}  # type: ignore[dict-item]

    @workflow("test.output.run", retries=5)
    def flow(run: WorkflowContext) -> None:
        run.inline("inline", lambda: {"deep": [1, float("inf")]})

    jobs = [bad.enqueue(kind="type"), bad.enqueue(kind="nan"), flow.enqueue()]
    drain(until=LONG)
    for job, path in zip(jobs, ["sum", "sum", "deep"], strict=True):
        job.refresh_from_db()
        assert (job.status, job.attempts) == ("failed", 1)
        assert path in job.error["message"]
    assert jobs[0].error["type"].endswith("InvalidOutput")
    [step] = jobs[2].steps.all()
    assert step.error["type"].endswith("InvalidOutput")


def test_a_stored_input_that_fits_no_more_is_a_permanent_failure() -> None:
    called: list[tuple[Any, bool]] = []

    def failed(context: TaskContext, error: Exception, final: bool) -> None:
        called.append((context.input, final))

    @task("test.fits", retries=5, on_failure=failed)
    def fits(n: int) -> None: ...

    job = fits.enqueue(n=1)
    Job.objects.filter(pk=job.pk).update(input={"n": "many"})
    drain(until=LONG)
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("failed", 1)
    assert called == [({"n": "many"}, True)]


def test_a_call_that_would_lose_code_of_its_retries_is_refused() -> None:
    @task("test.code")
    def function() -> None: ...

    with pytest.raises(InvalidInput, match="retry_on"):
        function.using(retries=Retry(max_attempts=2, retry_on=OSError)).enqueue()
    with pytest.raises(InvalidInput, match="backoff"):
        function.using(retries=Retry(backoff=lambda attempt, error: 1)).enqueue()
    assert not Job.objects.exists()


def test_the_calls_settings_are_laid_over_the_tasks_key_by_key() -> None:
    moments: list[datetime] = []

    @task("test.over", retries=Retry(max_attempts=4, delay=9, jitter=0))
    def function() -> None:
        moments.append(clock.now())
        raise OSError("no")

    function.using(retries=Retry(delay=3)).enqueue()
    drain(until=LONG)
    assert waits_between(moments) == [3, 3, 3]


# --- later, cancel ----------------------------------------------------------------------------


def test_retry_later_uses_no_attempt() -> None:
    moments: list[datetime] = []
    numbers: list[int] = []
    failed: list[bool] = []

    @task("test.later", takes_context=True, on_failure=lambda c, e, final: failed.append(final))
    def later(context: TaskContext) -> str:
        moments.append(clock.now())
        numbers.append(context.attempt)
        if len(moments) < 4:
            raise RetryLater(timedelta(minutes=2), "the shop is closed")
        return "done"

    job = later.enqueue()
    report = drain(until=LONG)
    job.refresh_from_db()
    assert (job.status, job.attempts, job.error) == ("completed", 1, None)
    assert waits_between(moments) == [120, 120, 120]
    assert (numbers, failed) == ([1, 1, 1, 1], [])
    assert (report.completed, report.retried) == (1, 0)


def test_retry_later_in_a_step_uses_no_attempt_of_step_or_run() -> None:
    tried: list[int] = []

    @task("test.later.step", takes_context=True)
    def later(context: TaskContext) -> str:
        tried.append(context.attempt)
        if len(tried) < 3:
            raise RetryLater(60)
        return "done"

    @task("test.later.parent", takes_context=True)
    def parent(context: TaskContext) -> str:
        return context.task("child", later)  # type: ignore[no-any-return]

    @workflow("test.later.run", retries=0)
    def flow(run: WorkflowContext) -> str:
        return run.task("parent", parent)  # type: ignore[no-any-return]

    job = flow.enqueue()
    drain()
    assert {step.status for step in job.steps.all()} == {"pending"}
    drain(until=LONG)
    job.refresh_from_db()
    assert (job.status, job.attempts, job.output) == ("completed", 1, "done")
    assert tried == [1, 1, 1]
    assert job.task_status["test.later.step"]["parent/child"]["total_tried"] == 1
    assert job.task_status["test.later.parent"]["parent"]["total_tried"] == 1


@pytest.mark.parametrize("where", ["task", "run", "step", "nested"])
def test_cancel_job_ends_as_canceled_without_on_failure(where: str) -> None:
    failed: list[bool] = []
    options: dict[str, Any] = {"on_failure": lambda c, e, final: failed.append(final), "retries": 3}

    @task("test.cancel", **options)
    def cancel() -> None:
        raise CancelJob("the order is gone")

    @task("test.cancel.parent", takes_context=True, **options)
    def parent(context: TaskContext) -> None:
        context.task("child", cancel)

    @workflow("test.cancel.run", **options)
    def flow(run: WorkflowContext) -> None:
        try:
            if where == "run":
                cancel()
            run.task("step", cancel if where == "step" else parent)
        except Exception:
            if where == "run":
                raise
            # What ends the job is not for a handler to catch.
            raise AssertionError("seen by the handler") from None

    job = cancel.enqueue() if where == "task" else flow.enqueue()
    report = drain(until=LONG)
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("canceled", 0)
    assert (job.error["code"], job.error["message"]) == ("canceled", "the order is gone")
    assert (report.canceled, report.failed, failed) == (1, 0, [])
    assert {step.status for step in job.steps.all()} <= {"canceled"}


# --- restore ----------------------------------------------------------------------------------


def restored(restore: Any) -> tuple[int, Job]:
    """How often a step that succeeds ran in a run of four passes, and the job."""
    with registry():
        ran: list[int] = []

        @task("test.restore", retries=Retry(restore=restore))
        def succeed(n: int) -> int:
            ran.append(n)
            return len(ran)

        @workflow("test.restore.run", retries=Retry(max_attempts=4, delay=1, jitter=0))
        def flow(run: WorkflowContext) -> int:
            value = run.task("step", succeed, n=7)
            if run.attempt < 4:
                raise OSError("no")
            return value  # type: ignore[no-any-return]

        job = flow.enqueue()
        drain(until=LONG)
        job.refresh_from_db()
        assert (job.status, job.attempts) == ("completed", 4)
        return len(ran), job


def test_p2_a_completed_step_is_restored_unless_told() -> None:
    """P2: written once; only restore=False records anew."""
    ran, job = restored(True)
    assert (ran, job.output) == (1, 1)
    ran, job = restored(False)
    assert (ran, job.output) == (4, 4)
    assert job.task_status["test.restore"]["step"]["total_tried"] == 4


def test_a_function_decides_what_is_restored() -> None:
    asked: list[tuple[Any, Any]] = []

    def fresh_enough(input: dict[str, Any], status: dict[str, Any]) -> bool:
        asked.append((input, status))
        return bool(status["output"] >= 2)

    ran, job = restored(fresh_enough)
    assert (ran, job.output, len(asked)) == (2, 2, 3)
    assert asked[0] == (
        {"n": 7},
        {
            "input": {"n": 7}, "output": 1, "complete": True, "total_tried": 1, "error": None,
            "status": "completed",
        },
    )  # fmt: skip


def test_failures_count_after_an_earlier_success_and_successes_do_not() -> None:
    """A step with restore=False fails for good at its (T+1)th failure over the whole run."""
    outcomes = iter("success failure success success failure success".split())
    ran: list[str] = []

    @task("test.again", retries=Retry(max_attempts=2, restore=False, delay=0))
    def again() -> None:
        ran.append(next(outcomes))
        if ran[-1] == "failure":
            raise OSError("no")

    @workflow("test.again.run", retries=Retry(max_attempts=9, delay=0))
    def flow(run: WorkflowContext) -> None:
        run.task("step", again)
        raise KeyError("another pass")

    job = flow.enqueue()
    drain(until=LONG)
    job.refresh_from_db()
    assert ran == ["success", "failure", "success", "success", "failure"]
    assert (job.status, job.attempts) == ("failed", 5)
    assert job.task_status["test.again"]["step"] == {
        "input": {}, "output": None, "complete": False, "total_tried": 5, "status": "failed",
        "error": job.task_status["test.again"]["step"]["error"],
    }  # fmt: skip


# --- callbacks --------------------------------------------------------------------------------


def test_callbacks_get_the_context_the_typed_output_and_the_error_itself() -> None:
    seen: list[tuple[Any, ...]] = []

    def succeeded(context: TaskContext, output: Decimal) -> None:
        assert isinstance(context, TaskContext)
        seen.append(("success", context.attempt, output, type(output)))

    def failed(context: TaskContext, error: Exception, final: bool) -> None:
        assert isinstance(context, TaskContext)
        seen.append(("failure", context.attempt, str(error), type(error), final))

    tried: list[int] = []
    options: dict[str, Any] = {"on_success": succeeded, "on_failure": failed, "retries": 2}

    @task("test.callbacks", **options)
    def price() -> Decimal:
        tried.append(1)
        if len(tried) % 3:
            raise OSError("no")
        return Decimal("9.90")

    @workflow("test.callbacks.run", on_success=succeeded, on_failure=failed)
    def flow(run: WorkflowContext) -> Decimal:
        return run.task("step", price)  # type: ignore[no-any-return]

    told = [
        ("failure", 1, "no", OSError, False),
        ("failure", 2, "no", OSError, False),
        ("success", 3, Decimal("9.90"), Decimal),
    ]
    price.enqueue()
    drain(until=LONG)
    assert seen == told
    seen.clear()
    flow.enqueue()
    drain(until=LONG)
    # The step's callback and the run's, each try.
    assert seen == [call for call in told for _ in range(2)]


def test_an_error_of_a_callback_is_an_entry_of_the_history_and_changes_nothing() -> None:
    def raises(*_: Any) -> None:
        raise SystemExit("callback")

    async def raises_later(*_: Any) -> None:
        raise SystemExit("callback")

    @task(
        "test.raising",
        on_success=raises,
        on_failure=raises_later,
        retries=Retry(max_attempts=2, delay=0),
    )
    def work(fails: bool) -> str:
        if fails:
            raise OSError("no")
        return "done"

    @workflow("test.raising.run")
    def flow(run: WorkflowContext) -> str:
        return run.task("step", work, fails=False)  # type: ignore[no-any-return]

    good, bad, run = work.enqueue(fails=False), work.enqueue(fails=True), flow.enqueue()
    drain(until=LONG)
    for job, status, entries in ((good, "completed", 1), (bad, "failed", 2), (run, "completed", 1)):
        job.refresh_from_db()
        assert job.status == status
        told = HistoryEntry.objects.filter(job=job, event="callback_failed")
        assert told.count() == entries
        assert {entry.detail["error"]["type"] for entry in told} == {"builtins.SystemExit"}
    assert run.output == "done"


def test_a_callback_has_no_steps() -> None:
    @task("test.inner")
    def inner() -> None:
        raise AssertionError("never called")

    def calls(context: TaskContext, output: Any) -> None:
        context.task("more", inner)

    @task("test.outer", on_success=calls)
    def outer() -> None: ...

    @workflow("test.outer.run", on_success=calls)
    def flow(run: WorkflowContext) -> None:
        run.task("step", outer)

    job = flow.enqueue()
    drain()
    job.refresh_from_db()
    assert job.status == "completed"
    told = HistoryEntry.objects.filter(job=job, event="callback_failed").order_by("n")
    assert [entry.step for entry in told] == ["test.outer/step", None]
    assert all("have no" in entry.detail["error"]["message"] for entry in told)
    assert set(job.task_status) == {"test.outer"}


def test_a_failing_step_is_recorded_at_once_with_attempt_and_traceback() -> None:
    seen: list[Any] = []

    @task("test.atonce")
    def fails() -> None:
        raise OSError("no")

    @workflow("test.atonce.run")
    def flow(run: WorkflowContext) -> None:
        try:
            run.task("step", fails)
        except JobFailed:
            seen.append(Job.objects.get(pk=run.job.pk).task_status["test.atonce"]["step"])
            seen.append(list(Attempt.objects.filter(job_id=run.job.pk).values("number", "status")))

    flow.enqueue()
    drain()
    assert seen[0]["status"] == "failed"
    assert set(seen[0]["error"]) == {"type", "message", "traceback", "code"}
    assert "raise OSError" in seen[0]["error"]["traceback"]
    assert seen[1] == [{"number": 1, "status": "failed"}]


def test_errors_of_the_workflows_own_code_use_w_only(settings: Any) -> None:
    settings.DJANGO_JOBS = {"RETRIES": 3}
    passes: list[str] = []

    def flow(run: WorkflowContext) -> None:
        passes.append(run.job.slug)
        raise InvalidOutput("own") if run.job.slug == "test.own.permanent" else OSError("own")

    for slug, retries in (("none", None), ("two", 2), ("permanent", 2)):
        workflow(f"test.own.{slug}", retries=retries)(flow).enqueue()
    drain(until=LONG)
    assert [passes.count(f"test.own.{slug}") for slug in ("none", "two", "permanent")] == [1, 3, 1]


def test_a_bad_exception_is_stored_all_the_same() -> None:
    """R9: an exception whose str() raises, and a cyclic cause, fail the job and nothing else."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def cyclic() -> None:
        first, second = OSError("a"), OSError("b")
        first.__cause__, second.__cause__ = second, first
        raise first

    @task("test.bad")
    def bad(kind: str) -> None:
        if kind == "cyclic":
            cyclic()
        raise Unprintable

    jobs = [bad.enqueue(kind="unprintable"), bad.enqueue(kind="cyclic")]
    drain()
    for job in jobs:
        job.refresh_from_db()
        assert job.status == "failed"
    assert "unprintable" in jobs[0].error["message"]
