"""Graphs that worker processes run in tests."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from django_jobs import DAG, StepContext
from tests.app.jobs import note


def _works(ctx: StepContext) -> int:
    time.sleep(0.005)
    note(ctx.input["marks"], ctx.step_id, os.getpid())
    return 1


def _notes(ctx: StepContext) -> str:
    note(ctx.input["marks"], ctx.step_id, os.getpid())
    return ctx.step_id


def _sums(ctx: StepContext) -> int:
    note(ctx.input["marks"], "sum", os.getpid())
    return sum(ctx.previous_steps.values())


def _wide(size: int) -> DAG:
    dag = DAG(f"wide-{size}").step("first", _notes)
    names = [f"s{number}" for number in range(size)]
    for name in names:
        dag.step(name, _works, after="first")
    return dag.step("sum", _sums, after=names)


def _long(size: int) -> DAG:
    dag = DAG(f"long-{size}").step("0", _notes)
    for number in range(1, size):
        dag.step(str(number), _notes, after=str(number - 1))
    return dag


celery_graph = (
    DAG("celery-graph")
    .step("one", lambda ctx: ctx.input["n"] + 1)
    .step("two", lambda ctx: ctx.input["n"] + 2)
    .step("both", lambda ctx: sum(ctx.previous_steps.values()), after=["one", "two"])
)
wide, wider, long = _wide(200), _wide(1000), _long(1000)
#: Chains beside each other, which come together in the end.
braid = DAG("braid")
for _chain in range(4):
    for _place in range(10):
        braid.step(f"{_chain}-{_place}", _notes, after=f"{_chain}-{_place - 1}" if _place else ())
braid.step("end", _notes, after=[f"{_chain}-9" for _chain in range(4)])


def _holds(ctx: StepContext) -> str:
    note(ctx.input["marks"], "started", ctx.step_id, os.getpid())
    while not Path(ctx.input["release"]).exists():
        time.sleep(0.01)
    note(ctx.input["marks"], "ended", ctx.step_id, os.getpid())
    return ctx.step_id


held = (
    DAG("held")
    .step("a", _holds)
    .step("b", _holds)
    .step("c", _notes, after=["a", "b"])
)  # fmt: skip
deadly = (
    DAG("graph-deadly")
    .step("good", _notes)
    .step("bad", lambda ctx: os.kill(os.getpid(), signal.SIGKILL))
    .step("end", _notes, after=["good", "bad"])
)


async def _waits_async(ctx: StepContext) -> int:
    await asyncio.sleep(0.5)
    return os.getpid()


many_async = DAG("many-async")
for _number in range(40):
    many_async.step(str(_number), _waits_async)
