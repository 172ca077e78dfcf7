"""Our cron against another one: cronsim, which follows Debian's.

Where the two may differ is a committed list, ``differences.json``: zone, kind of expression, rule,
and how many moments. No moment may differ that is not on it, and none of it may vanish unnoticed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from pathlib import Path
from zoneinfo import ZoneInfo

from cronsim import CronSim

from django_jobs.definitions.timing import CronTiming, timing_of

COMMITTED = Path(__file__).parent / "differences.json"
#: Ten years with Samoa's skipped day, Egypt's four changes in one summer, Morocco's Ramadans and
#: Brazil's changes at midnight.
START, END = datetime(2011, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
ZONES = (
    "Africa/Cairo", "Africa/Casablanca", "America/New_York", "America/Sao_Paulo", "America/St_Johns",
    "Antarctica/Troll", "Asia/Kathmandu", "Asia/Tehran", "Australia/Lord_Howe", "Europe/Berlin",
    "Pacific/Apia", "Pacific/Chatham",
)  # fmt: skip

#: Expressions of which every moment of the ten years is compared, by kind.
THROUGHOUT = {
    "fixed": (
        "0 0 * * *", "30 0 * * *", "30 1 * * *", "30 2 * * *", "15,45 0,2,3 * * *", "59 23 31 12 *",
        "0 12 * * 1", "5 4 * * sun", "0 0 29 2 *", "0 9 13 * 5", "0 9 L * *", "0 9 * * 5#3", "15 2 1,15 * *",
    ),
    "star": ("0 */3 * * *", "30 */2 * 3,4,9-11 *", "*/30 2 1-15 3,10 *", "45 * 1-7 3,4,10,11 *"),
    "range": ("0 0-3 * * *", "10-50/20 2 * * *", "30 1-5/2 * * mon-fri"),
    "seconds": ("30 2 * * * 15", "0 0 * * * 30", "45 1,2 * * sun 0,30"),
    "days": ("0 9 */2 * 1", "0 9 1 * */3"),
}  # fmt: skip
#: Expressions compared from two days before each change of the clock until two days after it.
AT_CHANGES = {
    "star": ("* * * * *", "*/7 * * * *", "* 2 * * *", "*/15 0-4 * * *"),
    "range": ("0-59 1-3 * * *",),
    "fixed": ("0,10,20,30,40,50 0,1,2,3,23 * * *",),
    "seconds": ("*/30 0-4 * * * 10,50",),
}  # fmt: skip
#: What lets a kind of expression differ, and how we decide.
RULES = {
    "range": "a range or a step is a pattern and follows elapsed time; cronsim moves what does not start with *",
    "seconds": "fixed times with seconds move and fire once like those without; cronsim follows elapsed time",
    "days": "two restricted day fields are joined by or, also where one starts with *",
    "hours": "a moment whose wall time matches, in an hour that begins late; cronsim steps by whole elapsed hours",
}

Difference = tuple[str, str, str]


def theirs(expression: str, zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
    """What cronsim gives, in UTC. It takes seconds first, and ``5L`` for ``L5``."""
    fields = expression.split()
    if len(fields) == 6:
        fields = [fields[5], *fields[:5]]
    moments = CronSim(" ".join(fields), start.astimezone(ZoneInfo(zone)))
    return takewhile(lambda one: one < end, (one.astimezone(UTC) for one in moments))


def ours(expression: str, zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
    return takewhile(lambda one: one < end, timing_of(expression, zone).after(start, start))


def compare(
    zone: str, expression: str, start: datetime, end: datetime
) -> tuple[set[datetime], set[datetime]]:
    """The moments that only we have, and those that only cronsim has; ours must rise."""
    mine = list(ours(expression, zone, start, end))
    assert all(early < late for early, late in pairwise(mine)), (zone, expression)
    other = set(theirs(expression, zone, start, end))
    return set(mine) - other, other - set(mine)


def matches(expression: str, zone: str, moment: datetime) -> bool:
    """Whether the wall time of a moment is one of the expression: by its definition, without walking."""
    timing = timing_of(expression, zone)
    assert isinstance(timing, CronTiming)
    wall = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    return timing.cron.matches_day(wall.date()) and wall.time() in timing.cron.times


def changes(zone: str, start: datetime, end: datetime) -> list[datetime]:
    """When the clock of a zone changes, to the hour."""
    found, moment, own = [], start, ZoneInfo(zone)
    while moment < end:
        after = moment + timedelta(hours=1)
        if moment.astimezone(own).utcoffset() != after.astimezone(own).utcoffset():
            found.append(moment)
        moment = after
    return found


def rule_of(kind: str, expression: str, zone: str, moment: datetime, is_ours: bool) -> str | None:
    """The rule that explains a difference; None where nothing does."""
    if kind in ("star", "range") and matches(expression, zone, moment) != is_ours:
        return None
    return {"star": "hours"}.get(kind, kind) if kind != "fixed" else None


def differences(
    zones: Iterable[str], start: datetime = START, end: datetime = END
) -> tuple[Counter[Difference], list[str], int]:
    """Explained differences by zone, kind and rule; unexplained ones; and how many moments agree."""
    explained: Counter[Difference] = Counter()
    unexplained: list[str] = []
    compared = 0

    def look(zone: str, kind: str, expression: str, start: datetime, end: datetime) -> None:
        nonlocal compared
        for is_ours, moments in zip(
            (True, False), compare(zone, expression, start, end), strict=True
        ):
            for moment in sorted(moments):
                rule = rule_of(kind, expression, zone, moment, is_ours)
                if rule is None:
                    unexplained.append(f"{zone} {expression!r} {moment.isoformat()}")
                else:
                    explained[(zone, kind, rule)] += 1
        compared += timing_of(expression, zone).count(start, end, start)

    for zone in zones:
        for kind, expressions in THROUGHOUT.items():
            for expression in expressions:
                look(zone, kind, expression, start, end)
        for change in changes(zone, start, end):
            begin, last = change - timedelta(days=2), change + timedelta(days=2)
            for kind, expressions in AT_CHANGES.items():
                for expression in expressions:
                    look(zone, kind, expression, begin, last)
    return explained, unexplained, compared


def committed() -> dict[Difference, int]:
    rows = json.loads(COMMITTED.read_text())
    return {(row["zone"], row["kind"], row["rule"]): row["moments"] for row in rows}


def commit(found: Mapping[Difference, int]) -> None:
    rows = [
        {"zone": zone, "kind": kind, "rule": rule, "moments": number}
        for (zone, kind, rule), number in sorted(found.items())
    ]
    lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
    COMMITTED.write_text(f"[\n{lines}\n]\n")
