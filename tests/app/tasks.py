"""Tasks of one concurrency key; what they do is noted outside of the database."""

from __future__ import annotations

import os
import time
from pathlib import Path

from django_jobs import Concurrency, TaskContext, task
from tests.app.jobs import note


@task(concurrency="one-at-a-time")
def visit(marks: str) -> None:
    """Be inside for a moment."""
    note(marks, "enter", os.getpid())
    time.sleep(0.02)
    note(marks, "leave", os.getpid())


@task(concurrency="one-at-a-time")
def stay(marks: str, release: str) -> None:
    """Be inside until the file ``release`` is there."""
    note(marks, "enter", os.getpid())
    while not Path(release).exists():
        time.sleep(0.01)
    note(marks, "leave", os.getpid())


@task(concurrency=Concurrency(key="newest", supersedes=True))
def newest(n: int) -> int:
    return n


@task(concurrency=Concurrency(key="few", limit=2, on_conflict="drop"))
def few(n: int) -> int:
    return n


@task(takes_context=True, concurrency=Concurrency(key=lambda room: room, limit=2))
def occupy(context: TaskContext, marks: str, room: str, seconds: float) -> None:
    """Show every 20 ms that somebody is in the room, until the time is over or the right to be there lost."""
    who, ends = f"{context.idempotency_key}/{os.urandom(4).hex()}", time.monotonic() + seconds
    while time.monotonic() < ends and not context.cancel_requested:
        note(marks, room, who, os.getpid(), time.time())
        time.sleep(0.02)
