"""An outage as an operator lives it: everything of one workflow is stopped by filter, and goes on later."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from django_jobs import clock
from django_jobs.control import Counts
from django_jobs.lifecycle import Status
from django_jobs.models import HistoryEntry, Job
from django_jobs.store import claims, history
from django_jobs.store.session import Session
from tests.app import jobs
from tests.control.rows import assert_folds

pytestmark = pytest.mark.django_db(transaction=True)
#: Runs that are stopped at once: more than are changed at a time.
RUNS = int(os.environ.get("TEST_OUTAGE_RUNS") or 1_200)
#: Seconds for one command, where ``python -m tests.long outage`` measures it.
LIMIT = float(os.environ.get("TEST_OUTAGE_SECONDS") or 0)


def timed(command: Callable[[], Counts]) -> Counts:
    started = time.monotonic()
    counts = command()
    took = time.monotonic() - started
    if LIMIT:
        print(f"{RUNS} runs: {took:.1f} s")
        assert took < LIMIT
    return counts


def test_all_live_runs_of_a_workflow_are_stopped_by_filter_and_go_on_later() -> None:
    jobs.three_steps.enqueue_many([{"marks": str(n)} for n in range(RUNS)])
    other = jobs.add.using(delay=3600).enqueue(a=1, b=2)
    session = Session()
    lanes = claims.lanes(session)
    running = session.committed(
        lambda s: claims.claim(s, lanes, worker=other.pk, limit=50, lease=900)
    )
    asleep = list(
        Job.objects.filter(status="pending", slug="three_steps").values_list("pk", flat=True)[:20]
    )
    for job_id in asleep:
        session.committed(lambda s, job_id=job_id: _sleep(s, job_id))  # type: ignore[misc]
    live = Job.objects.filter(slug="three_steps", finished_at=None)
    assert timed(lambda: live.pause(actor="olga", reason="outage")) == Counts(RUNS, 0, 0)
    assert timed(live.resume) == Counts(RUNS, 0, 0)
    held = live.filter(lease_expires_at__isnull=False)
    assert (live.filter(status="pending").count(), held.count()) == (RUNS, len(running))
    assert HistoryEntry.objects.filter(event="paused", actor="olga").count() == RUNS
    assert timed(lambda: live.cancel("given up")) == Counts(RUNS, 0, 0)
    assert Job.objects.get(pk=other.pk).status == "pending"
    for job in Job.objects.filter(pk__in=[running[0].job_id, asleep[0]]):
        assert_folds(job)


def _sleep(session: Session, job_id: object) -> None:
    """As a claim that parks leaves it, without the work of a worker for each."""
    assert session.run(
        "UPDATE {job} SET status = 'running', lease_expires_at = {now}, fence = 1, worker = id, started_at = {now} "
        "WHERE id = %(id)s",
        id=job_id,
    )
    assert history.move(
        session, job_id, event="sleeping", frm=[Status.RUNNING], to=Status.SLEEPING,  # type: ignore[arg-type]
        sets="lease_expires_at = NULL, run_after = %(until)s, gate = 'timer'",
        until=clock.now() + timedelta(days=1),
    )  # fmt: skip
