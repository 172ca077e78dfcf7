"""The other pools of a Celery worker: threads, and solo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from django_jobs import JobFailed
from django_jobs.celery import publishing
from tests.app import jobs
from tests.celery.brokers import is_required
from tests.celery.processes import CeleryWorker
from tests.engine.processes import eventually, lines

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]


SOLO = pytest.mark.skipif(
    not is_required("solo"), reason="left to .ci/run; TEST_REQUIRE=solo runs it here"
)


@pytest.mark.parametrize("pool", ["threads", pytest.param("solo", marks=SOLO)])
def test_jobs_runs_and_limits_in_other_pools(
    pool: str, celery_app: Any, worker: Callable[..., CeleryWorker], marks: Path, release: Path
) -> None:
    publishing._gone_until = 0.0
    worker(pool=pool, concurrency=1)
    run = jobs.three_steps.using(runner="celery").enqueue(marks=str(marks))
    assert run.result(timeout=90) == {"steps": ["first", "second", "third"]}
    asynchronous = jobs.async_steps.using(runner="celery").enqueue(n=2)
    assert asynchronous.result(timeout=60) == 6
    late = jobs.runaway.using(runner="celery").enqueue(marks=str(marks), release=str(release))
    behind = jobs.add.using(runner="celery").enqueue(a=1, b=2)
    with pytest.raises(JobFailed, match="timed out"):
        late.result(timeout=60)
    # Nobody can end the thread, so its place stays taken until it ends.
    behind.refresh_from_db()
    assert behind.status == "pending"
    release.touch()
    eventually(lambda: any(line.startswith("ended") for line in lines(marks)), "it ends")
    assert behind.result(timeout=60) == 3
