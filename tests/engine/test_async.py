"""Handlers and steps on the event loop, and time limits of both kinds: RELIABILITY C4, C6."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from django_jobs import JobFailed, TaskContext, WorkflowContext, run_jobs, task, workflow
from django_jobs.models import Job
from django_jobs.testing import drain

pytestmark = pytest.mark.django_db(transaction=True)
EITHER_WAY = pytest.mark.parametrize("sequential", [True, False])


def error_of(job: Job) -> dict[str, Any]:
    job.refresh_from_db()
    assert job.error is not None
    return dict(job.error)


@EITHER_WAY
def test_steps_of_an_async_workflow_may_run_at_the_same_time(sequential: bool) -> None:
    """Each waits for the other: one after the other they would never end."""

    @workflow("test.async.gather")
    async def flow(run: WorkflowContext) -> list[Any]:
        here, there = asyncio.Event(), asyncio.Event()

        async def meet(mine: asyncio.Event, theirs: asyncio.Event, word: str) -> str:
            mine.set()
            await theirs.wait()
            return word

        both = await asyncio.gather(
            run.inline("a", lambda: meet(here, there, "a")),
            run.inline("b", lambda: meet(there, here, "b")),
        )
        return [*both, await run.gather(run.call("c", echo, 1), run.call("d", echo, 2))]

    @task("test.async.echo")
    async def echo(value: int) -> int:
        return value

    job = flow.enqueue()
    run_jobs(sequential=sequential)
    assert job.result(timeout=30) == ["a", "b", [1, 2]]
    assert set(job.task_status["inline"]) == {"a", "b"}


@EITHER_WAY
def test_an_async_step_of_a_sync_workflow_keeps_its_place(sequential: bool) -> None:
    """Its own steps belong to it, whatever loop they run on."""

    @task("test.leaf")
    def leaf(word: str) -> str:
        return word

    @task("test.async.parent", takes_context=True)
    async def parent(context: TaskContext, word: str) -> str:
        first = await context.task("leaf", leaf, word=word)
        second = await context.inline("inline", Job.objects.count)
        return f"{first} {second}"

    @task("test.sync.parent", takes_context=True)
    def sync_parent(context: TaskContext, word: str) -> str:
        return context.task("inner", parent, word=word)  # type: ignore[no-any-return]

    @workflow("test.mixed")
    def flow(run: WorkflowContext) -> list[str]:
        return [run.task("x", parent, word="x"), run.task("y", sync_parent, word="y")]

    @workflow("test.mixed.async")
    async def other(run: WorkflowContext) -> list[str]:
        return [await run.task("x", parent, word="x"), await run.task("y", sync_parent, word="y")]

    for definition in (flow, other):
        Job.objects.all().delete()
        job = definition.enqueue()
        run_jobs(sequential=sequential)
        assert job.result(timeout=30) == ["x 1", "y 1"]
        assert set(job.task_status["test.leaf"]) == {"x/leaf", "y/inner/leaf"}


def test_c6_two_async_jobs_never_share_a_threads_connection() -> None:
    """C6: each has its own thread for its ORM calls, so its connection state meets no neighbour."""
    seen: dict[str, set[int]] = {"a": set(), "b": set()}
    met = {name: threading.Event() for name in seen}

    def query(name: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        seen[name].add(threading.get_ident())
        return id(connection.connection)

    async def work(name: str) -> list[int]:
        used = [await sync_to_async(query)(name)]
        met[name].set()
        # Both jobs run by now, and stay until the other has used its connection.
        while not all(event.is_set() for event in met.values()):
            await asyncio.sleep(0.01)
        return [*used, await sync_to_async(query)(name)]

    @task("test.async.orm")
    async def alone(name: str) -> list[int]:
        return await work(name)

    jobs = [alone.enqueue(name=name) for name in seen]
    run_jobs()
    used = [job.result(timeout=30) for job in jobs]
    assert [len(set(ids)) for ids in used] == [1, 1]
    assert seen["a"].isdisjoint(seen["b"])
    # The same of async steps in the threads of two sync workflows.
    for name, event in met.items():
        event.clear()
        seen[name].clear()

    @workflow("test.sync.orm")
    def flow(run: WorkflowContext, name: str) -> list[int]:
        return run.task("step", alone, name=name)  # type: ignore[no-any-return]

    jobs = [flow.enqueue(name=name) for name in seen]
    run_jobs()
    assert [len(set(job.result(timeout=30))) for job in jobs] == [1, 1]
    assert seen["a"].isdisjoint(seen["b"])


@EITHER_WAY
def test_an_async_handler_may_look_at_its_job(sequential: bool) -> None:
    @task("test.async.look", takes_context=True)
    async def look(context: TaskContext) -> list[Any]:
        context.heartbeat()
        return [context.job.slug, context.cancel_requested, context.attempt]

    job = look.enqueue()
    run_jobs(sequential=sequential)
    assert job.result(timeout=30) == ["test.async.look", False, 1]


@pytest.mark.django_db
def test_an_async_handler_may_look_at_its_job_in_the_transaction_of_a_test() -> None:
    @task("test.async.look", takes_context=True)
    async def look(context: TaskContext) -> list[Any]:
        return [context.job.slug, context.cancel_requested]

    job = look.enqueue()
    drain()
    assert job.result() == ["test.async.look", False]


# --- time limits ------------------------------------------------------------------------------


@EITHER_WAY
@pytest.mark.parametrize("kind", ["sync", "async", "inline"])
def test_c4_a_step_over_its_limit_fails_with_the_code_timeout(kind: str, sequential: bool) -> None:
    """C4: it counts as a failure, retried like others; a late result is dropped."""
    tried: list[int] = []

    def slow() -> str:
        tried.append(1)
        limit = time.monotonic() + 0.1
        while time.monotonic() < limit:
            time.sleep(0.01)
        return "too late"

    @task("test.slow")
    def slow_task() -> str:
        return slow()

    @task("test.slow.async")
    async def slow_async() -> str:
        tried.append(1)
        await asyncio.sleep(60)
        return "too late"

    @workflow("test.timeouts")
    def flow(run: WorkflowContext) -> list[str]:
        try:
            if kind == "inline":
                return run.inline("step", slow, timeout=0.02)  # type: ignore[no-any-return]
            chosen = slow_task if kind == "sync" else slow_async
            return run.task("step", chosen, timeout=0.02)  # type: ignore[no-any-return]
        except JobFailed as error:
            return [error.error["code"], error.error["type"], error.error["message"]]

    job = flow.enqueue()
    run_jobs(sequential=sequential)
    code, name, message = job.result(timeout=30)
    assert (code, name) == ("timeout", "builtins.TimeoutError")
    assert "timed out after 0.02 s" in message
    assert len(tried) == 1


@EITHER_WAY
def test_c4_an_async_job_over_its_limit_is_canceled(sequential: bool) -> None:
    """C4: cancellation; the step in hand ends with it, and is no longer shown as running."""
    ended: list[str] = []

    @workflow("test.async.timeout", timeout=0.3)
    async def flow(run: WorkflowContext) -> None:
        async def wait() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("canceled")

        step = run.inline("step", wait)
        await run.inline("other", wait)
        await step

    job = flow.enqueue()
    run_jobs(sequential=sequential)
    error = error_of(job)
    assert (job.status, error["code"]) == ("failed", "timeout")
    assert ended == ["canceled", "canceled"]
    assert {step.status for step in job.steps.all()} == {"canceled"}


@EITHER_WAY
def test_a_time_out_of_the_handlers_own_is_an_error_like_others(sequential: bool) -> None:
    @task("test.own", timeout=60)
    def own() -> None:
        raise TimeoutError("the carrier does not answer")

    @task("test.own.async", timeout=60)
    async def own_async() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    jobs = [own.enqueue(), own_async.enqueue()]
    run_jobs(sequential=sequential)
    for job in jobs:
        error = error_of(job)
        assert (job.status, error["code"], error["type"]) == (
            "failed", None, "builtins.TimeoutError",
        )  # fmt: skip
    assert error_of(jobs[0])["message"] == "the carrier does not answer"


@EITHER_WAY
@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit]
)
def test_c6_whatever_a_handler_raises_is_stored_and_the_worker_goes_on(
    kind: type[BaseException], sequential: bool
) -> None:
    """C6: handlers may raise anything; the outcome is failed unless the engine asked for the stop."""

    @task("test.raise", retries=3)
    def plain() -> None:
        raise kind("on purpose")

    @task("test.raise.async", retries=3)
    async def plain_async() -> None:
        raise kind("on purpose")

    @workflow("test.raise.run", retries=3)
    def flow(run: WorkflowContext) -> None:
        run.task("step", plain)

    @workflow("test.raise.run.mixed", retries=3)
    def mixed(run: WorkflowContext) -> None:
        run.task("step", plain_async)

    @workflow("test.raise.run.async", retries=3)
    async def flow_async(run: WorkflowContext) -> None:
        await run.task("step", plain_async)

    @task("test.fine")
    async def fine() -> str:
        return "fine"

    definitions = [plain, plain_async, flow, mixed, flow_async]
    jobs = [definition.enqueue() for definition in definitions]
    run_jobs(sequential=sequential)
    for job in jobs:
        assert "on purpose" in error_of(job)["message"]
        assert (job.status, job.attempts) == ("failed", 1)
        assert {step.status for step in job.steps.all()} <= {"failed"}
    good = fine.enqueue()
    run_jobs(sequential=sequential)
    assert good.result(timeout=30) == "fine"


def test_a_step_given_up_by_its_handler_is_not_lost() -> None:
    """The handler stops waiting: the step is shown as canceled and runs again when asked for."""
    ran: list[int] = []

    @task("test.patient", takes_context=True)
    async def patient(context: TaskContext) -> str:
        ran.append(1)
        if len(ran) == 1:
            await asyncio.sleep(60)
        return "done"

    @workflow("test.impatient", retries=1)
    async def flow(run: WorkflowContext) -> str:
        return await asyncio.wait_for(run.task("step", patient), 60 if ran else 0.05)

    job = flow.enqueue()
    drain()
    job.refresh_from_db()
    assert job.status == "sleeping"
    assert job.task_status["test.patient"]["step"]["status"] == "canceled"
    Job.objects.filter(pk=job.pk).update(run_after=job.created_at)
    drain()
    assert job.result() == "done"
