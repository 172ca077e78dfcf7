"""The arithmetic of expressions: against cronsim, and by the rules of changes of summer time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from django_jobs import ConfigurationError, Schedule
from django_jobs.definitions.timing import timing_of
from tests.schedules import oracle


def shown(expression: str, zone: str, after: str, n: int) -> list[str]:
    start = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone))
    return [slot.isoformat() for slot in Schedule(expression, timezone=zone).upcoming(start, n)]


def test_no_difference_to_cronsim_but_those_of_the_list() -> None:
    """Half a year of three zones; ``python -m tests.long schedules_oracle`` compares ten years of twelve."""
    start, end = datetime(2014, 3, 20, tzinfo=UTC), datetime(2014, 10, 10, tzinfo=UTC)
    zones = ("Africa/Cairo", "Australia/Lord_Howe", "America/St_Johns")
    found, unexplained, compared = oracle.differences(zones, start, end)
    assert unexplained == []
    assert compared > 20_000
    listed = oracle.committed()
    assert all(number <= listed.get(difference, 0) for difference, number in found.items())


def test_the_list_of_differences_is_of_known_kinds() -> None:
    listed = oracle.committed()
    assert {zone for zone, _, _ in listed} <= set(oracle.ZONES)
    assert {rule for _, _, rule in listed} == set(oracle.RULES)
    assert not any(kind == "fixed" for _, kind, _ in listed), (
        "fixed times of five fields are all alike"
    )


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # A fixed time in the gap: the end of the gap, once.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-29T03:00:00+02:00", "03-30T02:30:00+02:00"]),
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-29T03:00:00+02:00", "03-30T02:00:00+02:00"]),
        ("30 2 * * * 15", "Europe/Berlin", "2026-03-28T12:00", ["03-29T03:00:00+02:00", "03-30T02:30:15+02:00"]),
        # A fixed time that occurs twice: the first time.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["10-25T02:30:00+02:00", "10-26T02:30:00+01:00"]),
        # Patterns follow elapsed time.
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-30T02:00:00+02:00", "03-30T02:30:00+02:00"]),
        (
            "*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00",
            ["10-25T02:00:00+02:00", "10-25T02:30:00+02:00", "10-25T02:00:00+01:00", "10-25T02:30:00+01:00"],
        ),
        (
            "0 1-3 * * *", "Europe/Berlin", "2026-10-24T12:00",
            ["10-25T01:00:00+02:00", "10-25T02:00:00+02:00", "10-25T02:00:00+01:00", "10-25T03:00:00+01:00"],
        ),
        ("0 */2 * * *", "Europe/Berlin", "2026-10-25T01:00", ["10-25T02:00:00+02:00", "10-25T02:00:00+01:00"]),
        # Half an hour, and a gap of a whole day.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", ["10-04T02:30:00+11:00", "10-05T02:15:00+11:00"]),
        ("0 9 * * *", "Pacific/Apia", "2011-12-29T12:00", ["12-31T00:00:00+14:00", "12-31T09:00:00+14:00"]),
        ("0 */6 * * *", "Pacific/Apia", "2011-12-29T17:00", ["12-29T18:00:00-10:00", "12-31T00:00:00+14:00"]),
        # Day of month and day of week are joined by "or", however they are written.
        ("0 9 13 * 5", "UTC", "2026-03-06T12:00", ["03-13T09:00:00+00:00", "03-20T09:00:00+00:00"]),
        ("0 9 1 * 5#3", "UTC", "2026-03-06T12:00", ["03-20T09:00:00+00:00", "04-01T09:00:00+00:00"]),
        ("0 9 29 2 mon", "UTC", "2028-02-27T12:00", ["02-28T09:00:00+00:00", "02-29T09:00:00+00:00"]),
        ("59/15 * * * *", "UTC", "2026-03-06T12:00", ["03-06T12:59:00+00:00", "03-06T13:59:00+00:00"]),
        ("0 9 * * 5L", "UTC", "2026-03-06T12:00", ["03-27T09:00:00+00:00", "04-24T09:00:00+00:00"]),
        ("0 0 * * 7", "UTC", "2026-03-06T12:00", ["03-08T00:00:00+00:00", "03-15T00:00:00+00:00"]),
    ],
)  # fmt: skip
def test_i3_slots_at_a_change_of_the_clock(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    assert [slot[5:] for slot in shown(expression, zone, after, len(expected))] == expected


@pytest.mark.parametrize("expression", ["*/10 * * * *", "5,35 1,2,3 * * *", "0-50/25 0-4 * * * 30"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"])
def test_the_slots_after_a_slot_are_those_that_follow_it(expression: str, zone: str) -> None:
    """Whoever starts in the middle of a doubled hour sees the rest as one who came from before."""
    timing = timing_of(expression, zone)
    start = datetime(2011, 12, 28 if zone == "Pacific/Apia" else 1, tzinfo=UTC)
    for change in oracle.changes(zone, start, datetime(2012, 11, 1, tzinfo=UTC)):
        begin, end = change - timedelta(hours=30), change + timedelta(hours=6)
        line = list(oracle.ours(expression, zone, begin, end))
        for place, slot in enumerate(line):
            assert timing.has(slot, begin)
            follower = timing.next(slot, begin)
            assert follower == line[place + 1] if place + 1 < len(line) else follower >= end  # type: ignore[operator]


def test_a_count_is_the_number_of_slots_and_the_newest_are_the_last() -> None:
    for zone in ("Africa/Cairo", "Pacific/Apia", "America/Sao_Paulo"):
        for expression in ("*/20 * * * *", "30 0,1 * * *", "0 0 * * 1"):
            timing = timing_of(expression, zone)
            after, until = (
                datetime(2011, 9, 1, 7, 3, tzinfo=UTC),
                datetime(2012, 1, 20, 4, tzinfo=UTC),
            )
            line = list(oracle.ours(expression, zone, after, until + timedelta(microseconds=1)))
            assert timing.count(after, until, after) == len(line)
            assert timing.newest(after, until, after, 7) == line[-7:]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"expression": "0 0 30 2 *"}, "never matches"),
        ({"expression": "0 0 31 4,6,9,11 *"}, "never matches"),
        ({"expression": "* * * *"}, "has 4 fields"),
        ({"expression": "* * * * * * 2030"}, "has 7 fields"),
        ({"expression": "60 * * * *"}, "It goes from 0 to"),
        ({"expression": "H * * * *"}, "minute 'h'"),
        ({"expression": "R * * * *"}, "minute 'r'"),
        ({"expression": "0 0 1w * *"}, "day of month '1w'"),
        ({"expression": "50-10/3 * * * *"}, "runs backwards"),
        ({"expression": "@reboot"}, "no known alias"),
        ({"expression": "0 24 * * *"}, "hour '24'. It goes from 0 to 23."),
        ({"expression": "0 9 * * 8"}, "day of week '8'. It goes from 0 to 7."),
        ({"expression": "0 9 L-1 * *"}, "day of month 'l-1'"),
        ({"expression": "1," * 600 + "1 * * * *"}, "at most 1000 characters"),
        ({"expression": ",".join(["1"] * 120) + " * * * *"}, "give name="),
        ({"expression": "* * * * *", "timezone": "Mars/Base"}, "no time zone"),
        ({"expression": "* * * * *", "timezone": "../../etc/passwd"}, "no time zone"),
        ({"expression": "* * * * *", "timezone": 3}, "name of an IANA zone"),
        ({"expression": "* * * * *", "every": 3}, "too many"),
        ({}, "nothing was given"),
        ({"every": 0.5}, "from 1 second"),
        ({"every": timedelta(days=40_000)}, "100 years"),
        ({"at": datetime(2030, 1, 1)}, "aware"),
        ({"at": datetime(1, 1, 1, tzinfo=UTC)}, "years 2 to 9998"),
        ({"every": 60, "misfire": "twice"}, "misfire is"),
        ({"every": 60, "overlap": True}, "overlap is"),
        ({"every": 60, "grace": -1}, "grace"),
        ({"every": 60, "enabled": 1}, "enabled is"),
        ({"every": 60, "name": "a\x00b"}, "control character"),
        ({"every": 60, "queue_name": ""}, "queue_name"),
        ({"every": 60, "input": [1]}, "a dict or a function"),
    ],
)
def test_a_bad_schedule_is_refused_where_it_is_defined(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Schedule(**given)
    assert str(caught.value).startswith("Schedule: ")
    assert text in str(caught.value)


def test_a_schedule_shows_its_slots_in_its_zone() -> None:
    start = datetime(2026, 3, 2, 8, tzinfo=UTC)
    daily = Schedule("@daily", timezone=ZoneInfo("Asia/Tokyo"))
    assert (daily.name, daily.timezone) == ("@daily", "Asia/Tokyo")
    assert [slot.isoformat() for slot in daily.upcoming(start, 1)] == ["2026-03-03T00:00:00+09:00"]
    every = Schedule(every=timedelta(hours=26, seconds=1.5))
    assert every.expression == "@every 1d2h1.5s"
    assert every.upcoming(start, 2)[1] - start == 2 * timedelta(hours=26, seconds=1.5)
    once = Schedule(at=start)
    assert (
        once.upcoming(start, 3) == [] and len(once.upcoming(start - timedelta(seconds=1), 3)) == 1
    )
