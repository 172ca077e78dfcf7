"""Schedules in plain English. What has no short words is shown as it is written."""

from __future__ import annotations

import re
from datetime import timedelta

from django_jobs.definitions.cron import Cron
from django_jobs.definitions.timing import CronTiming, Interval, OneOff, timing_of
from django_jobs.errors import ConfigurationError

DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
WHICH = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", "l": "last"}
#: So many fixed times a day are listed.
LISTED = 4
_STEP = re.compile(r"\*/(\d+)")


def in_words(expression: str, timezone: str) -> str:
    """When an expression fires, with its zone; for a bad one, that it makes no sense."""
    try:
        timing = timing_of(expression, timezone)
    except ConfigurationError:
        return f"never: {expression} ({timezone}) is not understood"
    if isinstance(timing, Interval):
        return f"every {_span(timing.step)}"
    if isinstance(timing, OneOff):
        return f"once, on {timing.local(timing.moment):%Y-%m-%d at %H:%M:%S} ({timezone})"
    assert isinstance(timing, CronTiming)
    return f"{_cron(timing.cron)} ({timezone})"


def _span(step: timedelta) -> str:
    whole = step // timedelta(seconds=1)
    parts: list[str] = []
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        number, whole = divmod(whole, size)
        if number:
            parts.append(unit if number == 1 and not parts and not whole else _many(number, unit))
    return " ".join(parts)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cron(cron: Cron) -> str:
    days, months = _days(cron), _months(cron)
    if cron.is_fixed and len(cron.times) <= LISTED:
        times = _listed([f"{one:%H:%M:%S}" if one.second else f"{one:%H:%M}" for one in cron.times])
        day = days or ("every day" if not months else f"every day {months}")
        return f"{day} at {times}" + (f" {months}" if days and months else "")
    return " ".join(part for part in (_clock(cron), days, months) if part)


def _clock(cron: Cron) -> str:
    """The part of the day, where it is not a few fixed times."""
    minute, hour, second = cron.fields[0], cron.fields[1], cron.fields[5]
    parts = []
    if second != "0":
        parts.append(_pattern(second, "second"))
    if not (minute == "*" and parts):
        parts.append(_pattern(minute, "minute"))
    if hour != "*" or minute.isdigit():
        parts.append(_pattern(hour, "hour"))
    return " of ".join(parts)


def _pattern(text: str, unit: str) -> str:
    if text == "*":
        return f"every {unit}"
    if match := _STEP.fullmatch(text):
        return f"every {_many(int(match[1]), unit)}"
    return f"{unit} {text}"


def _days(cron: Cron) -> str:
    month_day, weekday = cron.fields[2], cron.fields[4]
    chosen = []
    if month_day not in ("*", "?"):
        chosen.append(_month_days(cron, month_day))
    if weekday not in ("*", "?"):
        chosen.append(_weekdays(cron))
    return " or ".join(chosen)


def _month_days(cron: Cron, text: str) -> str:
    if match := _STEP.fullmatch(text):
        return f"on every {_ordinal(int(match[1]))} day of the month"
    named = [str(day) for day in cron.days]
    words = [f"day {_listed(named)}"] if named else []
    if cron.on_last_day:
        words.append("the last day")
    return f"on {_listed(words)} of the month"


def _weekdays(cron: Cron) -> str:
    if cron.weeks:
        chosen = [
            f"{WHICH[which]} {DAYS[day]}"
            for day, found in sorted(cron.weeks.items())
            for which in sorted(found, key=str)
        ]
        return f"on the {_listed(chosen)} of the month"
    if cron.weekdays == {1, 2, 3, 4, 5}:
        return "on weekdays"
    return f"on {_listed([DAYS[day] for day in sorted(cron.weekdays, key=lambda day: day or 7)])}"


def _months(cron: Cron) -> str:
    if len(cron.months) == len(MONTHS):
        return ""
    return f"in {_listed([MONTHS[month - 1] for month in sorted(cron.months)])}"


def _ordinal(number: int) -> str:
    ending = "th" if 10 < number % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
