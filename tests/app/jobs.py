"""Tasks and workflows that the tests and their worker processes share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.db import DatabaseError, connection, transaction

from django_jobs import Retry, TaskContext, WorkflowContext, task, workflow


def note(path: str, *words: object) -> None:
    """Append one line to a file outside of the database, whole even among processes."""
    line = " ".join(map(str, words)) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


@task
def add(a: int, b: int) -> int:
    return a + b


@task
def echo(value: Any = None) -> Any:
    return value


@task
def price(amount: Decimal) -> Decimal:
    return amount * 2


@task
async def slow_add(a: int, b: int) -> int:
    return a + b


@task
def fail(text: str = "broken") -> None:
    raise ValueError(text)


@task(retries=Retry(max_attempts=3, delay=0, jitter=0))
def flaky(marks: str, failures: int) -> str:
    """Fail the first ``failures`` times."""
    note(marks, "tried")
    if len(Path(marks).read_text().splitlines()) <= failures:
        raise RuntimeError("not yet")
    return "done"


@task(takes_context=True)
def record_execution(context: TaskContext, marks: str) -> None:
    """Leave job, pid and fence outside of the database."""
    claim = context._driver.claim  # type: ignore[attr-defined]
    note(marks, claim.job_id, os.getpid(), claim.fence)


@task
def hold(marks: str, release: str) -> str:
    """Say that it runs, then wait for the file ``release``."""
    note(marks, "started", os.getpid())
    while not Path(release).exists():
        time.sleep(0.01)
    return "released"


@task
def mark(marks: str, word: str) -> str:
    note(marks, word)
    return word


class Unprintable(Exception):
    """Its text raises, and its cause is itself."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def _raise(what: str) -> None:
    if what == "RecursionError":
        _raise(what)
    if what == "Unprintable":
        error = Unprintable()
        error.__cause__ = error
        raise error
    raise {
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "GeneratorExit": GeneratorExit,
        "CancelledError": asyncio.CancelledError,
        "StopIteration": StopIteration,
        "MemoryError": MemoryError,
    }[what]("on purpose")


@task
def raises(what: str) -> None:
    _raise(what)


@task
async def araises(what: str) -> None:
    await asyncio.sleep(0)
    _raise(what)


@task
def leaves_behind(what: str) -> None:
    """Use the thread's connection and leave it in a state that no handler should leave."""
    from django.contrib.auth.models import Group

    with contextlib.suppress(DatabaseError):
        match what:
            case "open atomic":
                transaction.atomic().__enter__()
                Group.objects.create(name="lost")
            case "open atomic after an error":
                transaction.atomic().__enter__()
                connection.cursor().execute("SELECT nothing FROM nowhere")
            case "raw begin":
                connection.cursor().execute("BEGIN")
                Group.objects.create(name="lost")
            case "autocommit off":
                transaction.set_autocommit(False)
                Group.objects.create(name="lost")
            case "closed connection":
                connection.ensure_connection()
                connection.connection.close()
            case "broken statement":
                connection.cursor().execute("SELECT nothing FROM nowhere")


@task
def makes_group(name: str) -> None:
    from django.contrib.auth.models import Group

    Group.objects.create(name=name)


@task
def swallows_its_own() -> str:
    try:
        raise SystemExit
    except BaseException as error:
        return f"swallowed {type(error).__name__}"


@workflow(retries=2)
def swallows(run: WorkflowContext, marks: str) -> str:
    """Catch even what the engine raises to end the pass."""
    try:
        return run.task("flaky", flaky, marks=marks, failures=1, retries=Retry(delay=60))  # type: ignore[no-any-return]
    except BaseException:
        note(marks, "swallowed")
        return "swallowed"


@workflow
def three_steps(run: WorkflowContext, marks: str) -> dict[str, Any]:
    first = run.task("first", mark, marks=marks, word="first")
    second = run.inline("second", lambda: mark(marks, "second"))
    third = run.task("third", mark, marks=marks, word="third")
    run.progress(1, "all done")
    run.log.info("ran %s", first)
    return {"steps": [first, second, third]}


@workflow(retries=3)
def gate_before_last(run: WorkflowContext, marks: str, release: str) -> str:
    run.task("first", mark, marks=marks, word="first")
    run.task("second", mark, marks=marks, word="second")
    run.task("wait", hold, marks=marks, release=release)
    return run.task("last", mark, marks=marks, word="last")  # type: ignore[no-any-return]


@workflow
def deadly(run: WorkflowContext, marks: str, times: int) -> str:
    """Kill the worker process in the second step, the first ``times`` times."""
    run.task("before", mark, marks=marks, word="before")

    def die() -> None:
        if Path(marks).read_text().count("dying") < times:
            note(marks, "dying")
            os.kill(os.getpid(), signal.SIGKILL)

    run.inline("die", die)
    return "survived"


@workflow
def traces(run: WorkflowContext, marks: str, release: str) -> int:
    """Two steps with a gate between them, then a log line and progress; returns the pid."""
    run.task("first", mark, marks=marks, word="first")
    run.task("wait", hold, marks=marks, release=release)
    run.log.info("held by %d", os.getpid())
    run.progress(0.5, f"held by {os.getpid()}")
    run.task("last", mark, marks=marks, word="last")
    return os.getpid()


@workflow
async def async_steps(run: WorkflowContext, n: int) -> int:
    total = await run.task("sum", slow_add, a=n, b=1)
    return await run.inline("double", lambda: total * 2)  # type: ignore[no-any-return]


@task(takes_context=True)
def parent_task(context: TaskContext, marks: str) -> list[str]:
    """A task with steps of its own, also as a job by itself."""
    first = context.task("one", mark, marks=marks, word="one")
    second = context.inline("two", lambda: mark(marks, "two"))
    return [first, second]


@workflow
def nested(run: WorkflowContext, marks: str) -> list[list[str]]:
    left = run.task("left", parent_task, marks=marks)
    right = run.task("right", parent_task, marks=marks)
    return [left, right]


@workflow
def gathered(run: WorkflowContext, marks: str) -> list[Any]:
    both = run.gather(
        run.call("a", mark, marks=marks, word="a"), run.call("b", mark, marks=marks, word="b")
    )
    return [
        both,
        run.map("page", add, [{"a": n, "b": 1} for n in range(3)]),
        run.map("e", echo, [5, 6]),
    ]


@workflow
def ten_steps(run: WorkflowContext, n: int = 10) -> int:
    return sum(run.task(f"s{i}", add, a=i, b=1) for i in range(n))


@task(isolation="process", timeout=0.5)
def isolated_forever(marks: str) -> None:
    note(marks, "started", os.getpid())
    while True:
        time.sleep(0.05)


@task(isolation="process")
def isolated_pid(marks: str) -> int:
    note(marks, "ran", os.getpid())
    return os.getpid()


@task(timeout=0.3)
def runaway(marks: str, release: str) -> str:
    """Ignore its time limit until the file ``release`` is there."""
    note(marks, "started", os.getpid())
    while not Path(release).exists():
        time.sleep(0.01)
    note(marks, "ended", os.getpid())
    return "too late"


@task
def poison() -> None:
    os.kill(os.getpid(), 9)


@task(acknowledge="each")
def each(marks: str) -> None:
    note(marks, "ran")


@task
def whoami() -> int:
    return os.getpid()


@task
def dawdle(marks: str, word: str) -> None:
    """A job of some 10 ms that leaves one line."""
    note(marks, word)
    time.sleep(0.01)


@task
async def wait_async(marks: str) -> None:
    """Wait until interrupted, and say so."""
    note(marks, "waiting")
    try:
        await asyncio.sleep(600)
    finally:
        note(marks, "interrupted")


@workflow
def three_marks(run: WorkflowContext, marks: str, word: str) -> None:
    for step in ("a", "b", "c"):
        run.task(step, dawdle, marks=marks, word=f"{word} {step}")
