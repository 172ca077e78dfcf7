from __future__ import annotations

from collections.abc import Iterator

import pytest

from django_jobs import clock
from django_jobs.definitions import registry
from tests.engine.conftest import marks, release, runjobs

__all__ = ["marks", "release", "runjobs"]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Real time and the registered tasks of before, whatever a test did."""
    known = registry.snapshot()
    yield
    clock.reset()
    registry.restore(known)
