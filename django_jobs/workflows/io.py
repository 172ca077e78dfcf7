"""The two ways to run one driver: in a thread, or on an event loop.

The driver is written once, as coroutines. In a thread nothing in it ever suspends, and
:func:`drive` takes it to its end in one go; on a loop its awaits are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async

from django_jobs.store import leftovers
from django_jobs.store.record import Item
from django_jobs.store.steps import Answer
from django_jobs.workflows import retrying
from django_jobs.workflows.asking import on_loop
from django_jobs.workflows.attempt import Recorder
from django_jobs.workflows.forks import leave_if_forked

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("A step that runs in a thread tried to suspend.")


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
    """In a thread: writes block; steps of a gather run in ``pool`` too or, without one, one by one.

    ``own_context`` gives each async function its own thread for what it calls thread-sensitively.
    ``around`` is entered in every further thread: what it sets may belong to a thread.
    """

    def __init__(
        self,
        recorder: Recorder,
        loop: Loop,
        pool: Executor | None,
        *,
        own_context: bool = True,
        around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._recorder = recorder
        self._loop = loop
        self._pool = pool
        self._own_context = own_context
        self._around = around

    async def write(self, item: Item) -> Answer:
        return self._recorder.write(item)

    async def call(self, function: Callable[[], Any], timeout: float | None) -> Any:
        answer = called(function)
        if inspect.isawaitable(answer):
            work = _settled(_awaited(answer, timeout))
            if self._own_context:
                work = _in_context(contextvars.copy_context(), in_own_thread_context(work))
            answer, error = self._loop.run(work)
            if error is not None:
                raise error
        return answer

    async def together(self, steps: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
        if self._pool is None or len(steps) < 2:
            return [_caught(functools.partial(_driven, step)) for step in steps]
        return Crew(steps, self._around).work(self._pool)


class Crew:
    """Several threads on one list of steps.

    The calling thread works as well and waits only for steps that somebody has begun, so that
    steps which gather steps of their own never wait for a place in a full pool.
    """

    def __init__(
        self,
        steps: Sequence[Callable[[], Coroutine[Any, Any, Any]]],
        around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._steps = steps
        self._around = around
        self._left = deque(range(len(steps)))
        self._results: list[Any] = [None] * len(steps)
        self._begun: list[Future[None]] = [Future() for _ in steps]

    def work(self, pool: Executor) -> list[Any]:
        for _ in self._steps[1:]:
            pool.submit(contextvars.copy_context().run, self._help)
        self._do_what_is_left()
        for done in self._begun:
            done.result()
        return self._results

    def _help(self) -> None:
        try:
            # Where it cannot be entered, the calling thread is left to do it all.
            with self._around():
                self._do_what_is_left()
        finally:
            leftovers.tidy()

    def _do_what_is_left(self) -> None:
        while True:
            try:
                index = self._left.popleft()
            except IndexError:
                return
            self._results[index] = _caught(functools.partial(_driven, self._steps[index]))
            self._begun[index].set_result(None)


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
        answer = await sync_to_async(functools.partial(called, function), thread_sensitive=True)()
        if inspect.isawaitable(answer):
            answer = await _awaited(answer, timeout)
        return answer

    async def together(self, steps: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
        return await asyncio.gather(*(step() for step in steps), return_exceptions=True)


async def in_own_thread_context(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` so that its thread-sensitive calls share one thread with no neighbour."""
    # Set by hand: entered within another context it would share that one's thread, which may be
    # the very thread that waits for this work.
    own = ThreadSensitiveContext()
    token = SyncToAsync.thread_sensitive_context.set(own)
    try:
        return await work
    finally:
        executor = SyncToAsync.context_to_thread_executor.get(own)
        if executor is not None:
            # The thread ends here; its connections must not outlive it.
            await sync_to_async(
                functools.partial(leftovers.tidy, close=True), thread_sensitive=True
            )()
            executor.shutdown()
        SyncToAsync.thread_sensitive_context.reset(token)


def is_being_canceled() -> bool:
    """Whether somebody cancels the running asyncio task; a handler may raise CancelledError itself."""
    if not on_loop():
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def called(function: Callable[[], T]) -> T:
    """Call a function of the project; a process that it forks ends here."""
    process = os.getpid()
    try:
        answer = function()
    except BaseException as error:
        leave_if_forked(process, error)
        raise
    leave_if_forked(process)
    return answer


async def _awaited(awaitable: Any, timeout: float | None) -> Any:
    if timeout is None:
        return await awaitable
    async with limited("step", timeout):
        return await awaitable


@contextlib.asynccontextmanager
async def limited(what: str, seconds: float, *, stated: float | None = None) -> AsyncIterator[None]:
    """Cancel the block after ``seconds`` with an error that names the limit, as ``stated`` if that differs."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise retrying.timed_out(what, seconds if stated is None else stated) from None
        raise


async def _settled(work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    """What came of ``work``, as a value: futures copy a TimeoutError, and SystemExit ends a loop."""
    try:
        return await work, None
    except BaseException as error:
        if is_being_canceled():
            raise
        return None, error


async def _in_context(context: contextvars.Context, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in the caller's context: a loop of another thread does not know it."""
    return await asyncio.get_running_loop().create_task(work, context=context)


def _driven(step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return drive(step())


def _caught(work: Callable[[], Any]) -> Any:
    """The result of ``work``, or what it raised: siblings are never left behind."""
    try:
        return work()
    except BaseException as error:
        return error
