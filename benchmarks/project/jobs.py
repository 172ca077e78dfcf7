"""The jobs that are measured."""

from __future__ import annotations

import os
import time

from django_jobs import Concurrency, WorkflowContext, task, workflow


@task
def noop() -> None:
    """Nothing: what is measured is the engine."""


@task(acknowledge="each")
def noop_each() -> None:
    """Nothing, its outcome in a commit of its own."""


@task
def stamp() -> None:
    """Note the moment of this call outside of the database."""
    moment = time.time()
    with open(os.environ["BENCHMARKS_CALLS"], "a") as file:
        file.write(f"{moment!r}\n")


KEY = "the-only-one"


@task(concurrency=Concurrency(key=lambda: KEY))
def keyed() -> None:
    """Waits for its key for ever: the holder sleeps with it."""


@workflow(concurrency=Concurrency(key=lambda: KEY, hold=True))
def holder(run: WorkflowContext) -> None:
    """Holds the key while it sleeps."""
    run.sleep("for-a-day", 86_400)


@task
def paused() -> None:
    """Its task is paused by the measure."""


def one() -> int:
    return 1


async def aone() -> int:
    return 1


@workflow
def steps(run: WorkflowContext, number: int) -> None:
    """So many recorded steps, one after the other."""
    for index in range(number):
        run.inline(f"step-{index}", one)


@workflow
async def asteps(run: WorkflowContext, number: int) -> None:
    """The same as a coroutine."""
    for index in range(number):
        await run.inline(f"step-{index}", aone)
