"""When a schedule fires: an expression and a time zone as a rising line of moments.

Three kinds of expression: cron, ``@every 1h30m`` and ``@at 2030-01-31T09:00:00+00:00``.

Moments are in UTC here. Python compares two datetimes of one zone by their wall times, and finds
none of the doubled hour equal to a moment of another zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo

from django_jobs.definitions.cron import Cron
from django_jobs.errors import ConfigurationError

SECOND = timedelta(seconds=1)
#: What Python and the databases tell apart.
TICK = timedelta(microseconds=1)
_EVERY = re.compile(r"@every ((?:\d+(?:\.\d+)?[dhms])+)")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_UNIT = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


class Timing:
    """A line of nominal moments. ``anchor`` is the start of the schedule, from which intervals count."""

    zone: ZoneInfo

    def after(self, moment: datetime, anchor: datetime) -> Iterator[datetime]:
        """The slots after ``moment``, rising, in UTC."""
        raise NotImplementedError

    def local(self, slot: datetime) -> datetime:
        """``slot`` as people in the zone see it."""
        return slot.astimezone(self.zone)

    def next(self, moment: datetime, anchor: datetime) -> datetime | None:
        return next(self.after(moment, anchor), None)

    def has(self, slot: datetime, anchor: datetime) -> bool:
        """Whether ``slot`` lies on this line."""
        return self.next(slot - TICK, anchor) == slot.astimezone(UTC)

    def count(self, after: datetime, until: datetime, anchor: datetime) -> int:
        """How many slots lie after ``after`` and not after ``until``."""
        number = 0
        for slot in self.after(after, anchor):
            if slot > until:
                break
            number += 1
        return number

    def newest(
        self, after: datetime, until: datetime, anchor: datetime, limit: int
    ) -> list[datetime]:
        """The last ``limit`` slots after ``after`` and not after ``until``, rising."""
        span = SECOND * 2 * limit
        while True:
            start = max(after, until - span) if until - after > span else after
            found: list[datetime] = []
            for slot in self.after(start, anchor):
                if slot > until:
                    break
                found.append(slot)
            if len(found) >= limit or start == after:
                return found[-limit:]
            span *= 8


class CronTiming(Timing):
    """Cron in an IANA zone.

    Fixed times: a wall time that does not exist is moved to the end of the gap, one that occurs
    twice counts the first time. Patterns (``*``, ``-`` or ``/`` in minute or hour) follow elapsed
    time: every real moment whose wall time matches. Coinciding moments are one slot.
    """

    def __init__(self, cron: Cron, zone: ZoneInfo) -> None:
        self.cron = cron
        self.zone = zone

    def after(self, moment: datetime, anchor: datetime) -> Iterator[datetime]:
        last = moment.astimezone(UTC)
        for slot in self._moments(last):
            if slot > last:
                last = slot
                yield slot

    def count(self, after: datetime, until: datetime, anchor: datetime) -> int:
        """By whole days where the clock does not change: a minutely schedule has 525,600 slots a year."""
        first = after.astimezone(self.zone).date() + timedelta(days=1)
        last = until.astimezone(self.zone).date()
        if (last - first).days < 3:
            return super().count(after, until, anchor)
        number = super().count(after, self._midnight(first) - TICK, anchor)
        day = first
        while day < last:
            start, end = self._midnight(day), self._midnight(day + timedelta(days=1))
            if self._is_plain(day, start, end):
                number += len(self.cron.times) if self.cron.matches_day(day) else 0
            else:
                number += super().count(start - TICK, end - TICK, anchor)
            day += timedelta(days=1)
        return number + super().count(self._midnight(last) - TICK, until, anchor)

    def _is_plain(self, day: date, start: datetime, end: datetime) -> bool:
        """Whether each wall time of a day is one moment, and none of the day before is moved into it."""
        midnight = datetime(day.year, day.month, day.day)
        begins, before = (moment.astimezone(self.zone) for moment in (start, start - TICK))
        return (
            end - start == timedelta(days=1)
            and begins.replace(tzinfo=None) == midnight
            and before.replace(tzinfo=None) == midnight - TICK
        )

    def _midnight(self, day: date) -> datetime:
        return datetime(day.year, day.month, day.day, tzinfo=self.zone).astimezone(UTC)

    def _moments(self, moment: datetime) -> Iterator[datetime]:
        """The slots from about ``moment`` on, in UTC and rising; the first ones may lie before it."""
        zone = self.zone
        # What the doubled hour shows again waits here until all of its first showing is out.
        again: list[datetime] = []
        for wall in self.cron.walls(_start(moment.astimezone(zone))):
            first = wall.replace(tzinfo=zone).astimezone(UTC)
            if first.astimezone(zone).replace(tzinfo=None) != wall:
                if self.cron.is_fixed:
                    yield end_of_gap(wall, zone)
                continue
            while again and again[0] < first:
                yield again.pop(0)
            if not self.cron.is_fixed:
                second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
                if second != first:
                    again.append(second)
            yield first
        yield from again


def _start(local: datetime) -> datetime:
    """The wall time from which to look: further back where what it shows is shown twice."""
    wall = local.replace(tzinfo=None, fold=0)
    before, after = (local.replace(fold=fold).utcoffset() for fold in (0, 1))
    assert before is not None and after is not None
    return wall - max(before - after, timedelta(0))


def end_of_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first moment after the gap in which the clock skips ``wall``, in UTC."""
    late = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    early = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    offset = late.astimezone(zone).utcoffset()
    while late - early > SECOND:
        middle = early + (late - early) // 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            late = middle
        else:
            early = middle
    return late


class Interval(Timing):
    """Every so long, counted from the anchor in elapsed time."""

    def __init__(self, step: timedelta, zone: ZoneInfo) -> None:
        self.step = step
        self.zone = zone

    def after(self, moment: datetime, anchor: datetime) -> Iterator[datetime]:
        anchor = anchor.astimezone(UTC)
        number = max((moment.astimezone(UTC) - anchor) // self.step, 0) + 1
        try:
            while True:
                yield anchor + number * self.step
                number += 1
        except OverflowError:
            return

    def count(self, after: datetime, until: datetime, anchor: datetime) -> int:
        after, until, anchor = (one.astimezone(UTC) for one in (after, until, anchor))
        return max((until - anchor) // self.step, 0) - max((after - anchor) // self.step, 0)


class OneOff(Timing):
    """Once."""

    def __init__(self, moment: datetime, zone: ZoneInfo) -> None:
        self.moment = moment.astimezone(UTC)
        self.zone = zone

    def after(self, moment: datetime, anchor: datetime) -> Iterator[datetime]:
        if self.moment > moment.astimezone(UTC):
            yield self.moment


@lru_cache(maxsize=4096)
def timing_of(expression: str, timezone: str) -> Timing:
    """What a stored expression and zone mean; ConfigurationError says why they mean nothing."""
    zone = zone_of(timezone)
    if expression.startswith("@every"):
        return Interval(_read_every(expression), zone)
    if expression.startswith("@at"):
        return OneOff(_read_at(expression), zone)
    return CronTiming(Cron(expression), zone)


def zone_of(name: str) -> ZoneInfo:
    """The zone of this IANA name; ConfigurationError for an unknown one."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigurationError(
            f"There is no time zone {name!r}. Use an IANA name such as 'Europe/Zurich'."
        ) from None


def every_text(step: timedelta) -> str:
    """``@every 1h30m``: how an interval is stored."""
    whole, micro = divmod(step // timedelta(microseconds=1), 1_000_000)
    parts = []
    for unit in "dhm":
        number, whole = divmod(whole, _UNIT[unit])
        parts.append(f"{number}{unit}" if number else "")
    if micro:
        parts.append(f"{whole}.{micro:06}".rstrip("0") + "s")
    elif whole:
        parts.append(f"{whole}s")
    return f"@every {''.join(parts)}"


def at_text(moment: datetime) -> str:
    """``@at …``: how a one-off is stored."""
    return f"@at {moment.isoformat()}"


def _read_every(expression: str) -> timedelta:
    match = _EVERY.fullmatch(expression.strip())
    if match is None:
        raise ConfigurationError(
            f"{expression!r} is not understood. Write the units d, h, m, s, as in '@every 1h30m'."
        )
    try:
        step = sum(
            (
                timedelta(seconds=float(number) * _UNIT[unit])
                for number, unit in _PART.findall(match[1])
            ),
            timedelta(0),
        )
    except OverflowError:
        raise ConfigurationError(f"{expression!r} is too long an interval.") from None
    return check_step(step)


def check_step(step: timedelta) -> timedelta:
    if not SECOND <= step <= timedelta(days=36_525):
        raise ConfigurationError(
            f"An interval is from 1 second to 100 years, not {step}. More often than once a second is a loop "
            "within one job."
        )
    return step


def _read_at(expression: str) -> datetime:
    text = expression.removeprefix("@at").strip()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigurationError(
            f"{expression!r} is not understood. Write an ISO date, time and offset, as in "
            "'@at 2030-01-31T09:00:00+01:00'."
        )
    return check_moment(moment)


def check_moment(moment: datetime) -> datetime:
    """A moment that still is one in every zone."""
    if not 2 <= moment.year <= 9998:
        raise ConfigurationError(f"A moment lies in the years 2 to 9998, not at {moment}.")
    return moment


def upcoming(timing: Timing, after: datetime, number: int, anchor: datetime) -> list[datetime]:
    """The next ``number`` slots after ``after``, in the zone."""
    return [timing.local(slot) for slot in islice(timing.after(after, anchor), number)]
