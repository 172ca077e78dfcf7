"""Slots that become jobs: once each, by the misfire rule, in step with code and operator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_jobs import Concurrency, Schedule, handle_schedules, signals, task
from django_jobs.definitions import registry
from django_jobs.definitions.task import Task
from django_jobs.errors import ConfigurationError, InvalidInput
from django_jobs.models import Job, Tick
from django_jobs.models import Schedule as Row
from django_jobs.testing import clock, drain

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def at(hour: int, minute: int = 0, day: int = 2) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=UTC)


def scheduled(*schedules: Schedule, slug: str = "report", **options: Any) -> Task:
    """A task with these schedules, whose rows are stored now."""

    @task(slug, schedules=list(schedules), **options)
    def report(day: str = "") -> str:
        return day

    handle_schedules()
    return report


def counts(now: datetime | None = None) -> tuple[int, int, int]:
    report = handle_schedules(now)
    return report.fired, report.skipped, report.errored


def slots() -> list[datetime]:
    return sorted(job.slot for job in Job.objects.all())


# --- the first slot, and each one once ----------------------------------------------------------


def test_the_first_slot_is_after_the_row_was_stored_and_each_fires_once() -> None:
    scheduled(Schedule("30 8,9 * * *", name="twice"))
    assert counts() == (0, 0, 0), "a slot at the moment of storing is not after it"
    clock.freeze(at(9, 29))
    assert counts() == (0, 0, 0)
    clock.freeze(at(9, 30))
    report = handle_schedules()
    assert (report.fired, report.next_slot) == (1, at(8, 30, day=3)), "a slot at exactly now is due"
    assert counts() == (0, 0, 0)
    [job] = Job.objects.all()
    assert (job.slot, job.schedule.name, job.slug) == (at(9, 30), "twice", "report")


def test_now_stands_for_the_present_moment() -> None:
    scheduled(Schedule("@hourly", name="hourly"))
    assert counts(at(9)) == (1, 0, 0)
    assert slots() == [at(9)]
    with pytest.raises(InvalidInput, match="aware"):
        handle_schedules(datetime(2026, 3, 2, 9))


def test_a_job_of_a_schedule_runs_with_its_input_queue_and_zone() -> None:
    asked = []

    def of(slot: datetime) -> dict[str, str]:
        asked.append(slot)
        return {"day": slot.date().isoformat()}

    scheduled(
        Schedule(
            "0 10 * * *", timezone="Europe/Zurich", input=of, queue_name="reports", name="asked"
        ),
        Schedule("0 10 * * *", input={"day": "fixed"}, name="told"),
    )
    clock.freeze(at(10))
    assert handle_schedules().fired == 2
    drain()
    asked_job, told = Job.objects.order_by("schedule__name")
    assert (asked_job.output, asked_job.queue_name, asked_job.slot) == (
        "2026-03-02",
        "reports",
        at(9),
    )
    assert (told.output, told.queue_name) == ("fixed", "default")
    assert [slot.isoformat() for slot in asked] == ["2026-03-02T10:00:00+01:00"]


def test_intervals_count_from_the_start_of_the_row_and_one_offs_fire_once() -> None:
    scheduled(Schedule(every=90 * 60, name="every"), Schedule(at=at(9), name="once"))
    clock.freeze(at(12))
    handle_schedules()
    assert slots() == [at(9), at(11, 30)]
    clock.travel(timedelta(days=1))
    handle_schedules()
    assert slots() == [at(9), at(11, 30), at(11, 30, day=3)]


def test_p7_a_clock_that_is_set_back_fires_nothing_twice() -> None:
    scheduled(Schedule("@hourly", name="hourly"))
    for moment in (at(9), at(10), at(8, 45), at(9), at(10), at(10, 30), at(11)):
        clock.freeze(moment)
        handle_schedules()
    assert slots() == [at(9), at(10), at(11)]


def test_p7_a_slot_with_a_tick_makes_no_job_even_where_the_row_was_damaged() -> None:
    scheduled(Schedule("@hourly", name="hourly"))
    clock.freeze(at(9))
    handle_schedules()
    Row.objects.update(next_slot=at(9), last_slot=None)
    assert counts() == (0, 0, 0)
    assert slots() == [at(9)]


def test_p7_the_last_slot_is_a_floor_where_ticks_are_pruned_and_the_clock_is_set_back() -> None:
    scheduled(Schedule("@hourly", name="hourly"))
    clock.freeze(at(10))
    handle_schedules()
    Tick.objects.all().delete()
    clock.freeze(at(8, 45))
    Row.objects.get().pause().resume()
    for moment in (at(9), at(10), at(10, 30)):
        clock.freeze(moment)
        assert counts() == (0, 0, 0)
    clock.freeze(at(11))
    assert counts() == (1, 0, 0)


# --- misfire, grace, overlap --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misfire", "grace", "fired", "skipped"),
    [
        ("one", None, [12], 3),
        ("skip", None, [12], 3),
        ("all", None, [9, 10, 11, 12], 0),
        ("one", 60, [12], 3),
        ("skip", 60, [], 4),
        ("all", 60, [9, 10, 11, 12], 0),
        ("one", timedelta(hours=2), [11, 12], 2),
        ("skip", timedelta(hours=2), [11, 12], 2),
        ("all", timedelta(hours=2), [9, 10, 11, 12], 0),
        ("skip", 30 * 60, [12], 3),
        ("skip", 30 * 60 - 1, [], 4),
    ],
)
def test_i3_what_becomes_of_four_slots_of_which_three_were_missed(
    misfire: Any, grace: Any, fired: list[int], skipped: int
) -> None:
    scheduled(Schedule("@hourly", name="hourly", misfire=misfire, grace=grace))
    clock.freeze(at(12, 30))
    assert counts() == (len(fired), skipped, 0)
    assert slots() == [at(hour) for hour in fired]
    clock.freeze(at(13))
    assert counts() == (1, 0, 0), "what follows is computed from the nominal slots"


def test_i3_a_single_late_slot_without_a_grace_is_not_missed() -> None:
    scheduled(Schedule("0 9 * * *", name="daily", misfire="skip"))
    clock.freeze(at(23))
    assert counts() == (1, 0, 0)


def test_i3_all_is_capped_at_the_newest_hundred_and_says_so() -> None:
    missed: list[Any] = []

    def receive(schedule: Row, missed: int, said: list[Any] = missed, **_: Any) -> None:
        said.append((schedule.name, missed))

    signals.schedule_missed.connect(receive)
    try:
        scheduled(Schedule("* * * * *", name="minutely", misfire="all"))
        clock.freeze(at(12))
        assert counts() == (100, 110, 0)
    finally:
        signals.schedule_missed.disconnect(receive)
    assert slots()[0] == at(10, 21) and slots()[-1] == at(12)
    assert missed == [("minutely", 110)]


def test_a_year_of_missed_minutes_is_counted_without_listing_them() -> None:
    scheduled(Schedule("* * * * *", name="minutely", timezone="Europe/Zurich"))
    clock.freeze(datetime(2027, 3, 2, 8, 30, tzinfo=UTC))
    assert counts() == (1, 365 * 24 * 60 - 1, 0)


def test_overlap_skips_a_slot_while_a_job_of_this_schedule_lives() -> None:
    report = scheduled(
        Schedule("@hourly", name="alone", overlap="skip"), Schedule("5 0 * * *", name="other")
    )
    report.enqueue()
    clock.freeze(at(9))
    assert counts() == (1, 0, 0), "a job queued by hand holds nothing back"
    clock.freeze(at(10))
    assert counts() == (0, 1, 0)
    drain()
    assert counts() == (0, 0, 0), "a skipped slot is not made up later"
    clock.freeze(at(11))
    assert counts() == (1, 0, 0)
    outcomes = Tick.objects.order_by("slot").values_list("outcome", flat=True)
    assert list(outcomes) == ["fired", "overlapped", "fired"]


# --- errors -------------------------------------------------------------------------------------


def test_an_input_function_that_raises_costs_its_own_slot_only() -> None:
    broken = True

    def of(slot: datetime) -> dict[str, str]:
        if broken:
            raise RuntimeError("no report today")
        return {"day": "fine"}

    scheduled(Schedule("@hourly", name="asked", input=of), Schedule("@hourly", name="other"))
    clock.freeze(at(9))
    assert counts() == (1, 0, 1)
    row = Row.objects.get(name="asked")
    assert "no report today" in row.error["message"] and row.enabled
    assert [(past.outcome, past.error["message"]) for past in row.history()] == [
        ("failed", "no report today")
    ]
    broken = False
    clock.freeze(at(10))
    assert counts() == (2, 0, 0)
    row.refresh_from_db()
    assert row.error is None


@pytest.mark.parametrize("given", [lambda slot: None, lambda slot: [1], lambda slot: {"wrong": 1}])
def test_an_input_that_does_not_fit_is_an_error_of_its_slot(given: Any) -> None:
    @task("strict", schedules=[Schedule("@hourly", name="bad", input=given)])
    def strict(day: str) -> None:
        pass

    handle_schedules()
    clock.freeze(at(9))
    assert counts() == (0, 0, 1)
    assert Row.objects.get().error["message"]


def test_a_bad_stored_row_disables_only_itself_visibly() -> None:
    scheduled()
    for name in ("bad cron", "bad zone", "never", "good"):
        Row.objects.create(name=name, slug="report", expression="@hourly")
    Row.objects.filter(name="bad cron").update(expression="nonsense")
    Row.objects.filter(name="bad zone").update(timezone="Mars/Base")
    Row.objects.filter(name="never").update(expression="0 0 30 2 *")
    clock.freeze(at(9))
    handle_schedules()
    assert [job.schedule.name for job in Job.objects.all()] == ["good"]
    bad = Row.objects.exclude(name="good")
    assert all(not row.enabled and row.error["message"] for row in bad)
    assert "Mars/Base" in bad.get(name="bad zone").error["message"]
    clock.freeze(at(10))
    assert counts() == (1, 0, 0)


def test_a_key_that_refuses_the_job_is_an_error_of_its_slot() -> None:
    scheduled(
        Schedule("@hourly", name="keyed", misfire="all"),
        concurrency=Concurrency(key="one", on_conflict="raise"),
    )
    clock.freeze(at(10))
    assert counts() == (1, 0, 1)
    assert list(Tick.objects.order_by("slot").values_list("outcome", flat=True)) == [
        "fired",
        "failed",
    ]
    assert "taken by job" in Row.objects.get().error["message"]


# --- code and operator --------------------------------------------------------------------------


def test_a_changed_definition_changes_its_row_and_fires_nothing() -> None:
    before = registry.snapshot()
    scheduled(Schedule("@hourly", name="job"))
    registry.restore(before)
    clock.freeze(at(9, 10))
    scheduled(Schedule("*/15 * * * *", name="job", queue_name="other"))
    assert not Job.objects.exists(), "the slot at nine is of the old definition"
    row = Row.objects.get()
    assert (row.expression, row.queue_name, row.next_slot) == ("*/15 * * * *", "other", at(9, 15))


def test_a_schedule_removed_from_the_code_is_disabled_and_comes_back() -> None:
    before = registry.snapshot()
    scheduled(Schedule("@hourly", name="job"))
    with_it = registry.snapshot()
    registry.restore(before)
    handle_schedules()
    row = Row.objects.get()
    assert not row.enabled and row.removed and row.error["code"] == "removed"
    with pytest.raises(InvalidInput, match="no longer defined"):
        row.resume()
    clock.freeze(at(11, 30))
    assert counts() == (0, 0, 0)
    registry.restore(with_it)
    assert counts() == (0, 0, 0), "what passed meanwhile is gone"
    row.refresh_from_db()
    assert row.enabled and not row.removed and row.error is None
    clock.freeze(at(12))
    assert counts() == (1, 0, 0)


def test_old_and_new_code_side_by_side_lose_no_slot() -> None:
    before = registry.snapshot()
    scheduled(Schedule("@hourly", name="job"))
    with_it = registry.snapshot()
    clock.freeze(at(8, 59))
    registry.restore(before)
    handle_schedules()
    clock.freeze(at(9, 1))
    registry.restore(with_it)
    assert counts() == (1, 0, 0)
    assert slots() == [at(9)]


def test_synchronising_never_switches_on_what_the_operator_switched_off() -> None:
    before = registry.snapshot()
    scheduled(Schedule("@hourly", name="job"))
    Row.objects.get().pause()
    clock.freeze(at(11, 30))
    assert counts() == (0, 0, 0)
    registry.restore(before)
    scheduled(Schedule("*/30 * * * *", name="job"))
    row = Row.objects.get()
    assert not row.enabled and row.expression == "*/30 * * * *"
    row.resume()
    assert counts() == (0, 0, 0)
    clock.freeze(at(12))
    assert counts() == (1, 0, 0), "only slots after it was switched on"
    assert slots() == [at(12)]


def test_a_row_switched_by_a_plain_update_fires_only_slots_from_then_on() -> None:
    scheduled(Schedule("@hourly", name="job"))
    Row.objects.update(enabled=False)
    clock.freeze(at(9, 30))
    assert counts() == (0, 0, 0)
    clock.freeze(at(11, 30))
    Row.objects.update(enabled=True)
    assert counts() == (0, 0, 0)
    clock.freeze(at(12))
    assert counts() == (1, 0, 0)


def test_a_row_whose_expression_was_changed_by_a_plain_update_fires_no_slot_of_the_old_one() -> (
    None
):
    scheduled()
    row = Row.objects.create(name="own", slug="report", expression="@hourly")
    Row.objects.filter(pk=row.pk).update(expression="15 * * * *")
    clock.freeze(at(9))
    assert counts() == (0, 0, 0)
    clock.freeze(at(9, 15))
    assert counts() == (1, 0, 0)
    assert slots() == [at(9, 15)]


def test_two_schedules_of_one_task_need_two_names() -> None:
    with pytest.raises(ConfigurationError, match="two schedules are called"):
        task("twice", schedules=[Schedule("@daily"), Schedule("@daily")])(lambda: None)
    with pytest.raises(ConfigurationError, match="takes a list of Schedule"):
        task("text", schedules=["@daily"])(lambda: None)


def test_signals_tell_of_each_job() -> None:
    told: list[Any] = []

    def receive(schedule: Row, slot: datetime, job: Job, **_: Any) -> None:
        told.append((schedule.name, slot, job.slot))

    signals.schedule_fired.connect(receive)
    try:
        scheduled(Schedule("@hourly", name="hourly", timezone="Asia/Tokyo"))
        clock.freeze(at(9))
        handle_schedules()
    finally:
        signals.schedule_fired.disconnect(receive)
    assert told == [("hourly", at(9), at(9))]
    assert told[0][1].tzname() == "JST"
