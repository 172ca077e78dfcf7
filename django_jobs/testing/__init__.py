"""Tools to test jobs with: run what is due, move time, look what was enqueued.

Usable in ``TestCase`` (everything happens in its transaction and thread) and in
``TransactionTestCase``. The same tools are pytest fixtures: see :mod:`django_jobs.testing.plugin`.
Importing this package imports no models.
"""

from __future__ import annotations

from django_jobs.testing.clockwork import Clock, clock
from django_jobs.testing.draining import DrainLimit, adrain, drain
from django_jobs.testing.enqueued import assert_enqueued, assert_not_enqueued
from django_jobs.testing.inline import inline_jobs
from django_jobs.testing.isolation import registry

__all__ = [
    "Clock",
    "DrainLimit",
    "adrain",
    "assert_enqueued",
    "assert_not_enqueued",
    "clock",
    "drain",
    "inline_jobs",
    "registry",
]
