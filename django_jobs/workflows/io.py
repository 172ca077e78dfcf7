"""The two ways to run one driver: in a thread, or on an event loop.

The driver is written once, as coroutines. In a thread nothing in it ever suspends, and
:func:`drive` takes it to its end in one go; on a loop its awaits are real.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol, TypeVar

from asgiref.sync import ThreadSensitiveContext, sync_to_async

from django_jobs.store.record import Item
from django_jobs.store.steps import Answer
from django_jobs.workflows.attempt import Recorder

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("A step that runs in a thread tried to suspend.")


def on_loop() -> bool:
    """Whether the calling code runs on an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Loop(Protocol):
    """An event loop that runs in a thread of its own."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


class IO(Protocol):
    """How a driver writes, calls functions and does several things at once."""

    async def write(self, item: Item) -> Answer: ...
    async def call(self, function: Callable[[], Any], timeout: float | None) -> Any: ...
    async def together(
        self, steps: Sequence[Callable[[], Coroutine[Any, Any, Any]]]
    ) -> list[Any]: ...


class ThreadIO:
    """In a thread: writes block, steps of a gather run in ``pool`` or, without one, one by one."""

    def __init__(self, recorder: Recorder, loop: Loop, pool: Executor | None) -> None:
        self._recorder = recorder
        self._loop = loop
        self._pool = pool

    async def write(self, item: Item) -> Answer:
        return self._recorder.write(item)

    async def call(self, function: Callable[[], Any], timeout: float | None) -> Any:
        answer = function()
        if inspect.isawaitable(answer):
            answer = self._loop.run(_awaited(answer, timeout))
        return answer

    async def together(self, steps: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
        if self._pool is None or len(steps) < 2:
            return [_caught(functools.partial(drive, step())) for step in steps]
        futures: list[Future[Any]] = []
        for step in steps[1:]:
            context = contextvars.copy_context()
            futures.append(
                self._pool.submit(context.run, _caught, functools.partial(_driven, step))
            )
        first = _caught(functools.partial(_driven, steps[0]))
        return [first, *(future.result() for future in futures)]


class LoopIO:
    """On an event loop: writes and steps are awaited, sync functions run in the job's own thread."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def write(self, item: Item) -> Answer:
        return await self._recorder.awrite(item)

    async def call(self, function: Callable[[], Any], timeout: float | None) -> Any:
        target = function.func if isinstance(function, functools.partial) else function
        if inspect.iscoroutinefunction(target):
            return await _awaited(function(), timeout)
        answer = await sync_to_async(function, thread_sensitive=True)()
        if inspect.isawaitable(answer):
            answer = await _awaited(answer, timeout)
        return answer

    async def together(self, steps: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
        return await asyncio.gather(*(step() for step in steps), return_exceptions=True)


async def in_own_thread_context(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` so that its thread-sensitive calls share one thread with no neighbour."""
    async with ThreadSensitiveContext():
        return await work


async def _awaited(awaitable: Any, timeout: float | None) -> Any:
    if timeout is None:
        return await awaitable
    async with asyncio.timeout(timeout):
        return await awaitable


def _driven(step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return drive(step())


def _caught(work: Callable[[], Any]) -> Any:
    """The result of ``work``, or what it raised: siblings are never left behind."""
    try:
        return work()
    except BaseException as error:
        return error
