"""Who does the steps of a run that its own worker runs: one after the other, threads, or a loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, Protocol

from django_jobs.store import leftovers
from django_jobs.workflows.io import drive

Do = Callable[[], Coroutine[Any, Any, Any]]


class Team(Protocol):
    """Steps under way; ``room`` is how many more may begin."""

    @property
    def room(self) -> int: ...
    @property
    def is_busy(self) -> bool: ...
    def begin(self, do: Do) -> None: ...
    async def next(self) -> Any:
        """What the step came to that ended first."""


class Line:
    """One at a time, in the calling thread or task, in the order in which they began."""

    def __init__(self) -> None:
        self._waiting: deque[Do] = deque()

    @property
    def room(self) -> int:
        return 1 - len(self._waiting)

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting)

    def begin(self, do: Do) -> None:
        self._waiting.append(do)

    async def next(self) -> Any:
        return await self._waiting.popleft()()


class Threads:
    """In threads of a pool."""

    def __init__(self, pool: Executor, size: int) -> None:
        self._pool = pool
        self._size = size
        self._running: set[Future[Any]] = set()

    @property
    def room(self) -> int:
        return self._size - len(self._running)

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def begin(self, do: Do) -> None:
        context = contextvars.copy_context()
        self._running.add(self._pool.submit(context.run, _driven, do))

    async def next(self) -> Any:
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        first = done.pop()
        self._running |= done
        return first.result()


class Loop:
    """On the running event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def room(self) -> int:
        return self._size - len(self._running)

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def begin(self, do: Do) -> None:
        self._running.add(asyncio.ensure_future(do()))

    async def next(self) -> Any:
        try:
            done, self._running = await asyncio.wait(
                self._running, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            # Steps end with their run, and are recorded before it ends.
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            raise
        first = done.pop()
        self._running |= done
        return first.result()


def _driven(do: Do) -> Any:
    try:
        return drive(do())
    finally:
        leftovers.tidy()
