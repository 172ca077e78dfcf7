"""What could go wrong between a run and its units, brought about step by step."""

from __future__ import annotations

import random

import pytest

from django_jobs import DAG
from django_jobs.lifecycle import Status
from django_jobs.models import Job, TaskStatus
from django_jobs.outcomes import Sleeping
from django_jobs.store.session import engine_alias
from django_jobs.testing import clock, registry
from django_jobs.worker import local
from django_jobs.worker.local import Batch
from tests.dag.fleet import Fleet

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def own_definitions():
    with registry():
        yield
    clock.reset()


def two_beside_each_other(log):
    def note(ctx):
        log.append(ctx.step_id)

    return DAG("two").step("a", note).step("b", note).step("c", note, after=["a", "b"])


def spread(job):
    """The run is claimed, and its ready steps are offered."""
    clock.freeze(clock.now())
    fleet = Fleet(random.Random(1))
    assert fleet.step()
    job.refresh_from_db()
    assert job.status == Status.SLEEPING
    return fleet


def test_c1_a_unit_that_was_claimed_starts_nothing_once_its_run_is_paused():
    log = []
    job = two_beside_each_other(log).enqueue()
    fleet = spread(job)
    batch = Batch(engine_alias(), None, None)
    claims = batch.claim_ids([unit.pk for unit in Job.units.filter(kind="step")])
    job.pause()
    batch.execute(claims, sequential=True)
    assert log == []
    assert {step.status for step in TaskStatus.objects.filter(job=job)} == {"pending"}
    job.resume()
    assert fleet.run(job).status == Status.COMPLETED
    assert sorted(log) == ["a", "b", "c"]


def test_no_end_of_a_unit_is_lost_while_its_driver_lets_go(monkeypatch):
    """Between the last look of the driver and its letting go, every unit ends."""
    log = []
    job = two_beside_each_other(log).enqueue()
    clock.freeze(clock.now())
    fleet = Fleet(random.Random(1))
    write = local.DirectRecorder.write
    raced = []

    def races(self, item):
        if isinstance(getattr(item, "outcome", None), Sleeping) and not raced:
            raced.append(True)
            batch = Batch(engine_alias(), None, None)
            batch.execute(
                batch.claim_ids([unit.pk for unit in Job.units.filter(kind="step")]),
                sequential=True,
            )
        return write(self, item)

    monkeypatch.setattr(local.DirectRecorder, "write", races)
    assert fleet.step()
    assert raced
    job.refresh_from_db()
    assert sorted(log) == ["a", "b"]
    assert job.status == Status.PENDING, "it is to be driven at once"
    assert fleet.run(job).status == Status.COMPLETED
    assert log.count("c") == 1


def test_a_unit_of_a_dead_worker_writes_nothing(monkeypatch):
    """L3: its lease has ended, another has done the step; what the first one says then is dropped."""
    log = []
    job = two_beside_each_other(log).enqueue()
    fleet = spread(job)
    unit = Job.units.filter(kind="step").order_by("pk").first()
    late = Batch(engine_alias(), None, None)
    claims = late.claim_ids([unit.pk])
    from datetime import timedelta

    clock.travel(timedelta(minutes=5))
    assert fleet.run(job).status == Status.COMPLETED
    before = list(TaskStatus.objects.filter(job=job).order_by("id").values())
    done = list(log)
    late.execute(claims, sequential=True)
    assert list(TaskStatus.objects.filter(job=job).order_by("id").values()) == before
    assert log == done, "nor does it start"
