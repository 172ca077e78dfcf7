"""Runs that are steered from outside."""

from __future__ import annotations

import asyncio

from django_jobs import WorkflowContext, task, workflow
from tests.app.jobs import note


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
