"""A run's own time limit counts from its first start in wall time, asleep and paused included."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_jobs import Retry, WorkflowContext, send_event, task, workflow
from django_jobs.models import Job
from django_jobs.testing import clock, drain
from tests.control.rows import assert_folds, assert_sound

pytestmark = pytest.mark.django_db
START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def frozen() -> None:
    clock.freeze(START)


def failed_for_time(job: Job) -> Job:
    job.refresh_from_db()
    assert job.status == "failed", (job.status, job.error)
    assert (job.error or {})["code"] == "timeout"
    assert "timed out after 86400 s" in (job.error or {})["message"]
    assert_sound()
    assert_folds(job)
    return job


@pytest.mark.parametrize("kind", ["sleep", "event", "child"])
def test_a_run_that_waits_fails_at_its_limit(kind: str) -> None:
    told: list[tuple[str, bool]] = []

    @workflow("test.endless")
    def endless(run: WorkflowContext) -> None:
        run.wait_for_event("never", "never")

    @workflow(
        "test.limited", timeout=24 * HOUR,
        on_failure=lambda context, error, final: told.append((type(error).__name__, final)),
    )  # fmt: skip
    def limited(run: WorkflowContext) -> None:
        run.sleep("a while", 5 * HOUR)
        match kind:
            case "sleep":
                run.sleep("too long", 100 * HOUR)
            case "event":
                run.wait_for_event("approval", "never")
            case _:
                run.child("child", endless)

    job = limited.enqueue()
    clock.travel(7 * HOUR)
    drain()
    drain(until=6 * HOUR)
    job.refresh_from_db()
    assert job.run_after == job.deadline_at == START + 31 * HOUR
    drain(until=20 * HOUR)
    assert failed_for_time(job).finished_at == START + 31 * HOUR
    assert told == [("TimeoutError", True)]
    if kind == "child":
        assert Job.objects.get(parent=job).status == "sleeping"


def test_an_event_within_the_limit_ends_the_wait() -> None:
    @workflow("test.limited", timeout=24 * HOUR)
    def limited(run: WorkflowContext) -> Any:
        return run.wait_for_event("approval", "go")

    job = limited.enqueue()
    drain()
    clock.travel(23 * HOUR)
    send_event("go", 1, to=job)
    drain()
    job.refresh_from_db()
    assert (job.status, job.output, job.deadline_at) == ("completed", 1, None)


def test_a_wait_for_a_next_try_ends_at_the_limit_too() -> None:
    tried: list[datetime] = []

    @task("test.always_fails", retries=Retry(max_attempts=10, delay=20 * 3600, jitter=0))
    def always_fails() -> None:
        tried.append(clock.now())
        raise OSError("no")

    @workflow("test.limited", timeout=24 * HOUR)
    def limited(run: WorkflowContext) -> None:
        run.task("step", always_fails)

    job = limited.enqueue()
    drain(until=48 * HOUR)
    assert failed_for_time(job).finished_at == START + 24 * HOUR
    assert tried == [START, START + 20 * HOUR]


def test_a_paused_run_is_not_touched_and_fails_at_resume() -> None:
    @workflow("test.limited", timeout=24 * HOUR)
    def limited(run: WorkflowContext) -> None:
        run.sleep("a while", HOUR)
        run.inline("no further step", lambda: pytest.fail("a step after the limit"))

    job = limited.enqueue()
    drain()
    job.refresh_from_db()
    job.pause()
    drain(until=48 * HOUR)
    job.refresh_from_db()
    assert job.status == "paused"
    job.resume()
    drain()
    failed_for_time(job)


def test_a_retry_gives_the_whole_time_anew_and_steps_stay() -> None:
    ran: list[str] = []

    @workflow("test.limited", timeout=24 * HOUR)
    def limited(run: WorkflowContext) -> str:
        run.inline("once", lambda: ran.append("once"))
        run.sleep("a while", 30 * HOUR)
        return "done"

    job = limited.enqueue()
    drain(until=25 * HOUR)
    failed_for_time(job).retry()
    drain()
    job.refresh_from_db()
    assert job.run_after == START + 30 * HOUR
    assert job.deadline_at == START + 49 * HOUR
    drain(until=24 * HOUR)
    job.refresh_from_db()
    assert (job.status, job.output, ran) == ("completed", "done", ["once"])
    assert_sound()


def test_a_call_may_set_the_limit_and_a_code_workflow_has_none_by_default() -> None:
    @workflow("test.free")
    def free(run: WorkflowContext) -> None:
        run.sleep("long", 1000 * HOUR)

    without, limited = free.enqueue(), free.using(timeout=24 * HOUR).enqueue()
    drain(until=30 * HOUR)
    without.refresh_from_db()
    assert (without.status, without.deadline_at) == ("sleeping", None)
    failed_for_time(limited)


def test_a_limit_that_ends_within_a_pass_is_final_whatever_retries_are_left() -> None:
    clock.reset()
    seen: list[str] = []

    @workflow("test.slow", timeout=0.05, retries=5)
    def slow(run: WorkflowContext) -> None:
        run.inline("slow", lambda: time.sleep(0.1))
        seen.append("after the first step")
        run.inline("next", lambda: seen.append("a step after the limit"))

    job = slow.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, (job.error or {})["code"], job.attempts) == ("failed", "timeout", 1)
    assert seen == ["after the first step"]
    assert_sound()


# --- what a pause kept ------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_callbacks_of_a_result_that_a_pause_kept_are_called_when_it_counts(fails: bool) -> None:
    told: list[Any] = []

    @task(
        "test.told",
        takes_context=True,
        on_success=lambda context, output: told.append(output),
        on_failure=lambda context, error, final: told.append((str(error), final)),
    )
    def handler(context: Any) -> int:
        context.job.pause()
        if fails:
            raise ValueError("broken")
        return 7

    job = handler.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, told) == ("paused", [])
    job.resume()
    drain()
    job.refresh_from_db()
    assert job.status == ("failed" if fails else "completed")
    assert told == ([("broken", True)] if fails else [7])
    assert_sound()


# --- a loop around the engine -----------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_loop_in_the_calling_thread_makes_no_sync_handler_async(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a notebook, or a test that drives a browser: the handler decides, not the loop around."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    @task("test.on_loop")
    async def double(n: int) -> int:
        return 2 * n

    @workflow("test.within_loop")
    def flow(run: WorkflowContext) -> list[int]:
        first = run.inline("first", lambda: 1)
        return [first, *run.map("double", double, [1, 2])]

    job = flow.enqueue()

    async def around() -> None:
        drain()

    asyncio.run(around())
    job.refresh_from_db()
    assert (job.status, job.output) == ("completed", [1, 2, 4]), job.error
