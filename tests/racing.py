"""Threads that race, and workers that are fired at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.db import connections

from django_jobs import run_jobs

T = TypeVar("T")
#: Seconds after which a thread hangs, on a machine that is busy with other things.
PATIENCE = 60.0


def together(*work: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, at the same moment; what each returned."""
    ready = threading.Barrier(len(work))
    answers: list[Any] = [None] * len(work)
    raised: list[BaseException] = []

    def run(index: int) -> None:
        try:
            ready.wait(PATIENCE)
            answers[index] = work[index]()
        except BaseException as error:
            raised.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    if raised:
        raise raised[0]
    return answers


def under_fire(fired: Iterable[tuple[int, T, int]], fire: Callable[[int, T], object]) -> None:
    """Two threads work on what is due while a third calls ``fire(run, what)`` after each pause (ms)."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            run_jobs(all_queues=True)

    def storm() -> None:
        try:
            for run, what, pause in fired:
                time.sleep(pause / 1000)
                fire(run, what)
        finally:
            over.set()

    together(work, work, storm)
