"""Short questions to the database from wherever a handler runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from asgiref.sync import AsyncToSync
from django.db import connections

T = TypeVar("T")
_asker = ThreadPoolExecutor(1, thread_name_prefix="jobs-ask")


#: The event loop around the engine, where jobs are run in a thread that has one: no handler's own.
_around: contextvars.ContextVar[asyncio.AbstractEventLoop | None] = contextvars.ContextVar(
    "django_jobs_loop_around", default=None
)


def on_loop() -> bool:
    """Whether the calling code runs on an event loop of its handler's or step's."""
    loop = running_loop()
    return loop is not None and loop is not _around.get()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in the calling thread, whosever it is."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@contextlib.contextmanager
def within_running_loop() -> Iterator[None]:
    """Sync handlers run in the block are sync, though a loop runs in their thread, as in a notebook."""
    token = _around.set(running_loop())
    try:
        yield
    finally:
        _around.reset(token)


def blocking(function: Callable[[], T]) -> T:
    """Call ``function``, which asks the database, and wait for its answer.

    On an event loop Django refuses queries, so another thread asks: the one that waits for the
    loop, whose transaction it may be, or else one kept for this.
    """
    if not on_loop():
        return function()
    waiting = AsyncToSync.loop_thread_executors.get(asyncio.get_running_loop())
    if waiting is not None:
        return waiting.submit(function).result()
    return _asker.submit(_asked, function).result()


def _asked(function: Callable[[], T]) -> T:
    try:
        return function()
    finally:
        # Questions are rare: no connection is kept for them.
        connections.close_all()
