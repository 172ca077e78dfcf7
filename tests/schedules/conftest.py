from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from django_jobs.definitions import registry
from django_jobs.testing import clock

MONDAY = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """Half past eight on a Monday, and the registered tasks of before afterwards."""
    known = registry.snapshot()
    clock.freeze(MONDAY)
    yield
    clock.reset()
    registry.restore(known)
