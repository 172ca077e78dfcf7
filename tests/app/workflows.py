"""Runs that are steered from outside."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django_jobs import JobFailed, WorkflowContext, task, workflow
from tests.app import graphs, storm_graphs
from tests.app.jobs import note

__all__ = ["graphs", "storm_graphs"]  # found by their import


@task
async def waits_async(marks: str) -> None:
    """Wait until somebody cancels it."""
    note(marks, "task waits")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note(marks, "task canceled")
        raise


@workflow
async def run_that_waits_async(run: WorkflowContext, marks: str) -> None:
    async def wait() -> None:
        note(marks, "run waits")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note(marks, "step canceled")
            raise

    try:
        await run.inline("wait", wait)
    except asyncio.CancelledError:
        note(marks, "run canceled")
        raise


@workflow
def sleeper(run: WorkflowContext, days: float) -> str:
    run.sleep("cool-off", timedelta(days=days))
    return "awake"


@workflow
def sleeper_until(run: WorkflowContext, moment: datetime) -> None:
    run.sleep_until("until", moment)


@workflow
def approval(run: WorkflowContext, days: float | None = None) -> Any:
    """Wait for an event, by default without a limit."""
    limit = None if days is None else timedelta(days=days)
    return run.wait_for_event("approval", "order.approved", timeout=limit, default="nobody")


@workflow
def invoice(run: WorkflowContext, order_id: int, amount: Decimal = Decimal("1.50")) -> Decimal:
    """Take a day, and fail for a negative order."""
    run.sleep("let it lie", timedelta(days=1))
    if order_id < 0:
        raise ValueError(f"no order {order_id}")
    return amount * order_id


@workflow
def with_invoice(run: WorkflowContext, order_id: int) -> Decimal:
    value = run.child("invoice", invoice, order_id=order_id)
    assert isinstance(value, Decimal)
    return value


@workflow
def drizzle(run: WorkflowContext, marks: str, n: int) -> int:
    run.inline("first", lambda: note(marks, run.job.pk, "first"))
    run.wait_for_event("wait", "go", timeout=0.2 * (1 + n % 3))
    run.inline("last", lambda: note(marks, run.job.pk, "last"))
    return n


@workflow(retries=5, concurrency=lambda n, **_: f"weather:{n % 3}")
def weather(run: WorkflowContext, marks: str, n: int) -> list[Any]:
    """Sleep, wait and have children, with a key."""
    run.inline("first", lambda: note(marks, run.job.pk, "first"))
    run.sleep("nap", 0.05 * n)
    told = run.wait_for_event("told", "go", timeout=None if n % 2 else 1.0)
    run.gather(
        run.call("again", run.wait_for_event, "go", timeout=0.5), run.call("rest", run.sleep, 0.1)
    )
    try:
        children = run.map("child", drizzle, [{"marks": marks, "n": k} for k in range(n % 4)])
    except JobFailed as error:
        children = [str(error)]
    run.inline("last", lambda: note(marks, run.job.pk, "last"))
    return [told, children]
