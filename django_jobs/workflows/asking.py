"""Short questions to the database from wherever a handler runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from asgiref.sync import AsyncToSync
from django.db import connections

T = TypeVar("T")
_asker = ThreadPoolExecutor(1, thread_name_prefix="jobs-ask")


def on_loop() -> bool:
    """Whether the calling code runs on an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
