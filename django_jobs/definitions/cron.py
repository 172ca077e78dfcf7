"""Cron expressions: read by croniter, walked here.

An expression speaks of *wall times*, what a clock on the wall shows; :mod:`.timing` says which
moments those are. croniter reads the fields; it does not walk, because it moves and doubles wall
times at the changes of summer time by rules of its own, and joins ``5#3`` with a day of the month
by "and".
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta

from croniter import croniter

from django_jobs.errors import ConfigurationError

#: Characters of an expression.
LIMIT = 1000
#: Years without a match after which an expression is taken to match never. February 29 may lie
#: eight years ahead, and a fifth Monday in February forty.
YEARS = 50
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS = ("minute", "hour", "day of month", "month", "day of week", "second")
LOWEST = (0, 0, 1, 1, 0, 0)
HIGHEST = (59, 23, 31, 12, 6, 59)
_ALLOWED = re.compile(r"[0-9a-z*?,\-/#]+")
_NAMES = frozenset(
    "jan feb mar apr may jun jul aug sep oct nov dec sun mon tue wed thu fri sat".split()
)
_LAST_WEEKDAY = re.compile(r"(?<![0-9a-z#])([0-7])l\b")
_OPEN_STEP = re.compile(r"(?<![-\d])(\d+)/(\d+)")
_STEPPED_RANGE = re.compile(r"(?<!\d)(\d+)-(\d+)/")


#: What croniter raises for what it cannot read.
UNREAD = (ValueError, KeyError, IndexError, AttributeError)


class Cron:
    """One expression of five fields, of six (seconds last), or an alias such as ``@daily``.

    ConfigurationError says what is wrong with a bad one.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        texts = _fields(expression)
        numbers, weeks = _expand(expression, texts)
        minute, hour, day, month, weekday, second = numbers
        self.seconds = _numbers(second, range(60))
        self.minutes = _numbers(minute, range(60))
        self.hours = _numbers(hour, range(24))
        self.days = (
            _numbers([one for one in day if one != "l"], range(1, 32)) if day != ["l"] else []
        )
        self.on_last_day = "l" in day
        self.months = frozenset(_numbers(month, range(1, 13)))
        self.weekdays = frozenset() if weeks else frozenset(_numbers(weekday, range(7)))
        #: Weekday → which of the month: 1 to 5, or "l" for the last.
        self.weeks: dict[int, set[object]] = weeks
        self._any_day, self._any_weekday = texts[2] in ("*", "?"), texts[4] in ("*", "?")
        #: Whether minute and hour name fixed times; patterns follow elapsed time instead.
        self.is_fixed = not any(sign in texts[0] + texts[1] for sign in "*-/")
        self.fields = tuple(texts)
        self.times = [
            time(h, m, s) for h in self.hours for m in self.minutes for s in self.seconds
        ]  # fmt: skip
        if next(self.walls(datetime(2000, 1, 1)), None) is None:
            raise ConfigurationError(
                f"The cron expression {expression!r} never matches: no such day exists."
            )

    def walls(self, start: datetime) -> Iterator[datetime]:
        """Matching wall times (naive, rising) from ``start`` on; ends where none follows for years."""
        day = start.date()
        last = day.year + YEARS
        while (found := self._day_from(day, last)) is not None:
            begin = bisect_left(self.times, start.time()) if found == start.date() else 0
            for number in range(begin, len(self.times)):
                yield datetime.combine(found, self.times[number])
            last = found.year + YEARS
            if found == date.max:
                return
            day = found + timedelta(days=1)

    def matches_day(self, day: date) -> bool:
        return day.month in self.months and self._fits(day)

    def _day_from(self, day: date, last_year: int) -> date | None:
        while day.year <= min(last_year, 9999):
            if day.month not in self.months:
                if (day.year, day.month) == (9999, 12):
                    return None
                day = date(day.year + day.month // 12, day.month % 12 + 1, 1)
            elif self._fits(day):
                return day
            elif day == date.max:
                return None
            else:
                day += timedelta(days=1)
        return None

    def _fits(self, day: date) -> bool:
        """Where both day fields are restricted, either of them will do."""
        if self._any_weekday:
            return self._any_day or self._fits_day(day)
        if self._any_day:
            return self._fits_weekday(day)
        return self._fits_day(day) or self._fits_weekday(day)

    def _fits_day(self, day: date) -> bool:
        return day.day in self.days or (
            self.on_last_day and day.day == monthrange(day.year, day.month)[1]
        )

    def _fits_weekday(self, day: date) -> bool:
        number = day.isoweekday() % 7
        if not self.weeks:
            return number in self.weekdays
        wanted = self.weeks.get(number, ())
        is_last = day.day + 7 > monthrange(day.year, day.month)[1]
        return (day.day + 6) // 7 in wanted or ("l" in wanted and is_last)


def _fields(expression: str) -> list[str]:
    """The six fields as croniter reads them in every version, minute first and second last."""
    if len(expression) > LIMIT:
        raise ConfigurationError(
            f"A cron expression has at most {LIMIT} characters, this one has {len(expression):,}."
        )
    text = expression.strip().lower()
    if text.startswith("@"):
        if text not in ALIASES:
            raise ConfigurationError(
                f"{expression!r} is no known alias. Known: {', '.join(sorted(ALIASES))}; "
                "intervals are Schedule(every=…)."
            )
        text = ALIASES[text]
    fields = text.split()
    if len(fields) not in (5, 6):
        raise ConfigurationError(
            f"The cron expression {expression!r} has {len(fields)} fields. Write five (minute, hour, day of "
            "month, month, day of week), or six with the second last."
        )
    fields += ["0"] * (6 - len(fields))
    return [_field(expression, number, text) for number, text in enumerate(fields)]


def _field(expression: str, number: int, text: str) -> str:
    words = re.findall(r"[a-z]+", text)
    if not _ALLOWED.fullmatch(text) or not set(words) <= _NAMES | {"l"}:
        raise ConfigurationError(
            f"The cron expression {expression!r} is not understood: {FIELDS[number]} {text!r}. "
            "Fields hold numbers, names, and the signs * , - / # L."
        )
    for low, high in _STEPPED_RANGE.findall(text):
        if int(low) > int(high):
            raise ConfigurationError(
                f"The cron expression {expression!r} has a step over a range that runs backwards, {text!r}. "
                "Write the numbers out."
            )
    if number == 4:
        text = _LAST_WEEKDAY.sub(r"l\1", text)
    return _OPEN_STEP.sub(lambda match: _closed(match, HIGHEST[number]), text)


def _closed(match: re.Match[str], highest: int) -> str:
    """ "5/15" as "5-59/15"; versions of croniter disagree about "59/15", and about "59-59/15"."""
    start, step = int(match[1]), match[2]
    return f"{start}-{highest}/{step}" if start < highest else str(start)


def _expand(
    expression: str, fields: list[str]
) -> tuple[list[list[object]], dict[int, set[object]]]:
    try:
        numbers, weeks = croniter.expand(" ".join(fields))
    except UNREAD as error:
        wrong = next((number for number in range(6) if not _is_read(number, fields[number])), None)
        if wrong is None:
            reason = f"{str(error).replace(' '.join(fields), expression)}."
        else:
            highest = 7 if wrong == 4 else HIGHEST[wrong]  # Sunday is 0 and 7
            reason = (
                f"{FIELDS[wrong]} {fields[wrong]!r}. It goes from {LOWEST[wrong]} to {highest}."
            )
        raise ConfigurationError(
            f"The cron expression {expression!r} is not understood: {reason}"
        ) from None
    return numbers, weeks


def _is_read(number: int, text: str) -> bool:
    """Whether one field alone is what croniter takes."""
    fields = ["*"] * 6
    fields[number] = text
    try:
        croniter.expand(" ".join(fields))
    except UNREAD:
        return False
    return True


def _numbers(found: list[object], every: range) -> list[int]:
    chosen = list(every) if "*" in found else [int(str(one)) for one in found]
    return sorted(set(chosen))
