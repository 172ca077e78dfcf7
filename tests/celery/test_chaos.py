"""A short storm; ``python -m tests.long celery`` is the long one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from django_jobs.celery import publishing
from tests.celery.brokers import Valkey
from tests.celery.chaos import SETTINGS, Storm, children_of, rage
from tests.celery.processes import CeleryWorker
from tests.engine.processes import eventually, lines

# Its long form, tests.long celery, is for every database.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]
#: How long the faults go on in random order; otherwise each comes once.
SECONDS = float(os.environ.get("TEST_CHAOS_SECONDS") or 0)


def test_every_job_has_one_outcome_whatever_befalls_workers_and_broker(
    celery_app: Any,
    broker: Valkey,
    worker: Callable[..., Any],
    beat: Callable[..., Any],
    marks: Path,
    settings: Any,
) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, **SETTINGS}
    publishing._gone_until = 0.0
    dice = random.Random(int(os.environ.get("TEST_CHAOS_SEED") or 7))
    storm = Storm(celery_app, broker, marks, lambda: worker(**SETTINGS), dice=dice)
    storm.workers = [storm.start_worker(), storm.start_worker()]
    beat(**SETTINGS)
    storm.enqueue(40)
    doomed, other = storm.workers
    eventually(lambda: len(lines(marks)) > 3 and children_of(other.pid), "the fleet runs", 90)
    if SECONDS:
        rage(storm, SECONDS)
    else:
        one_of_each(storm, doomed, other, marks)
    storm.wait(300 if SECONDS else 120)
    storm.check()
    print(storm.report())


def one_of_each(storm: Storm, doomed: CeleryWorker, other: CeleryWorker, marks: Path) -> None:
    """Every kind of fault once."""
    storm.double()
    storm.flush()
    doomed.kill_all()
    storm.faults["worker killed"] += 1
    storm.workers = [other]
    eventually(lambda: len(lines(marks)) > 20, "the other one goes on", 60)
    storm.kill_process()
    storm.restart_broker()
    storm.double()
