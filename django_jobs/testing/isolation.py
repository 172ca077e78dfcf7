"""Definitions that end with a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django_jobs.definitions import registry as known


@contextmanager
def registry() -> Iterator[None]:
    """Forget, at the end of the block, every task and workflow defined within it."""
    saved = known.snapshot()
    try:
        yield
    finally:
        known.restore(saved)
