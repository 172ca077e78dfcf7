"""Real worker processes that tick: rows made by hand, since a worker knows only the app's own tasks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_jobs.models import Job, Schedule, Tick
from django_jobs.testing import clock
from django_jobs.worker.child import Child
from django_jobs.worker.intake import Plan
from django_jobs.worker.timetable import Timetable
from tests.engine.conftest import runjobs  # noqa: F401  (a fixture)
from tests.engine.processes import RunJobs, eventually
from tests.schedules.conftest import MONDAY

pytestmark = pytest.mark.django_db(transaction=True)
Start = Callable[..., RunJobs]


@pytest.fixture(autouse=True)
def real_time(frozen: None) -> None:
    clock.reset()


def row(**values: Any) -> Schedule:
    return Schedule.objects.create(
        **{"name": "own", "slug": "echo", "expression": "* * * * * *", **values}
    )


def test_p7_two_workers_of_two_processes_fire_each_second_once(runjobs: Start) -> None:  # noqa: F811
    workers = [runjobs("--processes", 2) for _ in range(2)]
    own = row()
    eventually(lambda: Job.objects.filter(status="completed").count() >= 4, "four jobs have run")
    for worker in workers:
        worker.terminate()
    assert [worker.wait() for worker in workers] == [0, 0]
    slots = list(Job.objects.order_by("slot").values_list("slot", flat=True))
    fired = list(Tick.objects.filter(job_id__isnull=False).values_list("slot", flat=True))
    assert len(slots) == len(set(slots)) and sorted(fired) == slots
    dealt_with = sorted(Tick.objects.values_list("slot", flat=True))
    steps = {late - early for early, late in pairwise(dealt_with)}
    assert steps == {timedelta(seconds=1)}, "no second is left out"
    own.refresh_from_db()
    assert own.last_slot == dealt_with[-1] and own.error is None


def test_once_ticks_first_and_runs_what_that_made(runjobs: Start) -> None:  # noqa: F811
    own = row(expression="@hourly")
    last_hour = clock.now().replace(minute=0, second=0, microsecond=0)
    Schedule.objects.update(next_slot=last_hour)
    assert runjobs("--once").wait() == 0
    [job] = Job.objects.all()
    assert (job.status, job.schedule, job.slot) == ("completed", own, last_hour)


def test_t5_ticking_can_be_switched_off(settings: Any) -> None:
    assert Child(Plan("default")).timetable is not None
    assert Child(Plan("default", schedules=False)).timetable is None
    settings.DJANGO_JOBS = {"SCHEDULES": False}
    assert Child(Plan("default")).timetable is None


def test_an_idle_worker_pays_two_statements_for_a_look_and_none_for_what_it_knows() -> None:
    clock.freeze(MONDAY)
    row(expression="@hourly")
    timetable = Timetable("default")
    with CaptureQueriesContext(connection) as queries:
        pause = timetable.look(full=False)
    assert (len(queries), pause) == (2, 1800.0)
    timetable._next_look = monotonic() + 60
    timetable.tell(MONDAY + timedelta(minutes=30), 1800.0)
    assert not timetable._wake.is_set()
    timetable.tell(MONDAY + timedelta(seconds=20), 20.0)
    assert timetable._wake.is_set(), "somebody brought a slot forward"


def test_a_slot_of_code_that_lives_elsewhere_wakes_nobody_twice() -> None:
    clock.freeze(MONDAY)
    row(expression="@hourly")
    Schedule.objects.update(slug="elsewhere")
    clock.travel(timedelta(hours=1))
    timetable = Timetable("default")
    assert timetable.look(full=True) == 60.0
    assert not Tick.objects.exists()
    [due] = Schedule.objects.values_list("next_slot", flat=True)
    timetable.tell(due, -1800.0)
    assert not timetable._wake.is_set()


def test_an_error_of_the_database_leaves_the_next_slot_its_chance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from django_jobs import scheduling

    def broken(**_: Any) -> None:
        raise RuntimeError("away")

    monkeypatch.setattr(scheduling, "tick", broken)
    assert Timetable("default").look(full=False) == 1.0
    assert "could not be ticked" in caplog.text
