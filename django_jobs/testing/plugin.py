"""pytest fixtures: ``jobs_clock``, ``jobs_drain``, ``jobs_assert_enqueued``, ``jobs_inline``, ``jobs_registry``.

pytest loads this module by itself once the package is installed. The database must be allowed by
the test as usual, for example with ``@pytest.mark.django_db``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from django_jobs import testing

if TYPE_CHECKING:
    from django_jobs.models import Job
    from django_jobs.worker.report import RunReport


@pytest.fixture
def jobs_clock() -> Iterator[testing.Clock]:
    """``django_jobs.testing.clock``; real time returns at the end of the test."""
    yield testing.clock
    testing.clock.reset()


@pytest.fixture
def jobs_drain(jobs_clock: testing.Clock) -> Callable[..., RunReport]:
    """``django_jobs.testing.drain``; real time returns at the end of the test."""
    return testing.drain


@pytest.fixture
def jobs_assert_enqueued() -> Callable[..., Job]:
    """``django_jobs.testing.assert_enqueued``."""
    return testing.assert_enqueued


@pytest.fixture
def jobs_assert_not_enqueued() -> Callable[..., None]:
    """``django_jobs.testing.assert_not_enqueued``."""
    return testing.assert_not_enqueued


@pytest.fixture
def jobs_inline() -> Iterator[None]:
    """Jobs of this test run as they are enqueued: ``django_jobs.testing.inline_jobs()``."""
    with testing.inline_jobs():
        yield


@pytest.fixture
def jobs_registry() -> Iterator[Any]:
    """Tasks and workflows defined by this test are forgotten at its end; gives the registry."""
    from django_jobs.definitions import registry

    with testing.registry():
        yield registry
