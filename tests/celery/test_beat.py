"""Two beats with our scheduler, and the ticks of any other beat: each slot fires once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from django_jobs import Schedule as Plan
from django_jobs import clock, task
from django_jobs.celery import beat_schedule, publishing, tick
from django_jobs.celery.beat import JobsScheduler
from django_jobs.models import Job, Schedule, Tick
from tests.celery.brokers import Valkey, is_required
from tests.celery.processes import Beat
from tests.engine.processes import eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def clean(celery_app: Any) -> Iterator[None]:
    publishing._gone_until = 0.0
    publishing._next_look.clear()
    yield


def scheduler(app: Any) -> JobsScheduler:
    return JobsScheduler(app)


def look(one: JobsScheduler) -> float:
    """One round now, whatever pause was asked for."""
    one._next_look = one._next_sweep = 0.0
    return one.tick()


def test_two_beats_and_a_clock_that_jumps_fire_each_slot_once(celery_app: Any) -> None:
    begun = clock.now().replace(microsecond=0)
    clock.freeze(begun)

    @task(schedules=[Plan("*/5 * * * *", name="often", misfire="all")])
    def chore() -> None: ...

    beats = [scheduler(celery_app), scheduler(celery_app)]
    for one in beats:
        look(one)
    assert not Job.objects.exists()
    for step in (4, 1, 3, 20, -30, 7, 25, 0, 2):
        clock.travel(timedelta(minutes=step))
        for one in beats:
            look(one)
    # One that is killed leaves nothing behind that another one would miss.
    beats[0] = scheduler(celery_app)
    clock.travel(timedelta(minutes=40))
    for one in beats:
        look(one)
    slots = Counter(Job.objects.filter(slug="chore").values_list("slot", flat=True))
    row = Schedule.objects.get()
    assert row.last_slot is not None
    expected = {
        slot: 1
        for slot in Plan("*/5 * * * *").upcoming(begun, 40)
        if slot <= row.last_slot
    }  # fmt: skip
    assert slots == expected
    assert len(expected) > 10
    assert Tick.objects.count() == len(expected)


def test_it_sleeps_until_the_next_slot_and_no_longer(celery_app: Any) -> None:
    clock.freeze(clock.now().replace(second=59, microsecond=0))

    @task(schedules=[Plan("* * * * *")])
    def minutely() -> None: ...

    assert look(scheduler(celery_app)) == pytest.approx(1, abs=0.2)


def test_it_outlives_the_database(celery_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scheduler(celery_app)
    with monkeypatch.context() as broken:
        broken.setattr(one, "_fire", lambda: 1 / 0)
        assert look(one) > 0
    job = _due(celery_app)
    look(one)
    assert job.pk is not None
    assert len(_waiting(celery_app)) == 1


def test_entries_of_the_project_are_sent_too_and_ours_are_not(celery_app: Any) -> None:
    celery_app.conf.beat_schedule = {
        **beat_schedule(),
        "own": {"task": "tests.celery.app.ping", "schedule": timedelta(hours=1)},
    }
    try:
        one = scheduler(celery_app)
        assert "own" in one.schedule
        assert not any(name.startswith("django_jobs.") for name in one.schedule)
    finally:
        celery_app.conf.beat_schedule = {}


def test_ticks_do_the_same_work(celery_app: Any) -> None:
    assert {entry["args"][0] for entry in beat_schedule().values()} == {
        "schedules", "due", "rescue", "outbox",
    }  # fmt: skip
    assert {entry["task"] for entry in beat_schedule().values()} == {"django_jobs.tick"}
    clock.freeze(clock.now().replace(second=0, microsecond=0))

    @task(schedules=[Plan("* * * * *")], runner="celery")
    def ticked() -> None: ...

    for entry in beat_schedule().values():
        tick(*entry["args"])
    clock.travel(timedelta(minutes=1))
    for entry in beat_schedule().values():
        tick(*entry["args"])
    assert Job.objects.get().slug == "ticked"
    assert len(_waiting(celery_app)) == 1
    job = _due(celery_app)
    Job.objects.filter(pk=job.pk).update(
        status="running", lease_expires_at=clock.now() - timedelta(seconds=1), fence=1
    )
    tick("rescue")
    job.refresh_from_db()
    assert (job.status, job.crashes) == ("pending", 1)


@pytest.mark.once
@pytest.mark.skipif(
    not is_required("beats"), reason="left to .ci/run; TEST_REQUIRE=beats runs it here"
)
def test_two_real_beats_fire_each_slot_once(
    beat: Callable[..., Beat], broker: Valkey, tmp_path: Path
) -> None:
    Schedule(slug="whoami", name="each second", expression="* * * * * *").save()
    first, second = beat(), beat()
    made = Job.objects.filter(slug="whoami")
    eventually(lambda: made.count() >= 2, "slots fire", 90)
    first.kill_all()
    there = made.count()
    eventually(lambda: made.count() >= there + 2, "the other beat goes on", 60)
    second.kill_all()
    slots = sorted(made.values_list("slot", flat=True))
    assert len(slots) == len(set(slots))
    steps = {(later - earlier).total_seconds() for earlier, later in pairwise(slots)}
    # Where the machine was too busy a later slot stands for missed ones, never the same one twice.
    assert all(step >= 1 and step == int(step) for step in steps)


def _due(app: Any) -> Job:
    from tests.app.jobs import add

    clock.freeze(clock.now())
    job = add.using(runner="celery", delay=1).enqueue(a=1, b=2)
    clock.travel(timedelta(seconds=2))
    publishing._next_look.clear()
    return job


def _waiting(app: Any) -> list[Any]:
    with app.connection_for_read() as link:
        client = link.default_channel.client
        return [json.loads(raw) for raw in client.lrange("celery", 0, -1)]
