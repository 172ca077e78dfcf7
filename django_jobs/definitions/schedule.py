"""``Schedule``: when a task or a workflow is enqueued by itself. A frozen value, checked when made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo

from django.conf import settings as django_settings

from django_jobs.definitions import timing
from django_jobs.definitions.options import NAME_LIMIT, check_name, seconds
from django_jobs.definitions.timing import Timing, timing_of
from django_jobs.errors import ConfigurationError, InvalidInput

Misfire = Literal["one", "skip", "all"]
Overlap = Literal["allow", "skip"]
MISFIRE = ("one", "skip", "all")
OVERLAP = ("allow", "skip")


@dataclass(frozen=True, eq=False)
class Schedule:
    """One schedule of a task or workflow: ``Schedule("0 9 * * *", timezone="Europe/Zurich")``.

    ``expression`` is cron with five fields, six (seconds last) or an alias such as ``@daily``;
    instead of it ``every`` is an interval (a timedelta or seconds) from the moment the schedule is
    first stored, and ``at`` one aware moment. ``name`` is unique within the target, the expression
    by default. ``input`` is a dict, or a function of the slot (an aware datetime in the zone) that
    returns one. ``timezone=None`` is ``settings.TIME_ZONE``. ``misfire`` says what becomes of
    missed slots: one job for all of them, none, or all (the newest 100); a slot is missed when it is
    handled more than ``grace`` late, or, without a grace, when a newer one is due as well.
    ``overlap="skip"`` passes over a slot while a job of this schedule has not ended.
    ``enabled`` holds for the first time only: afterwards it is the operator's.
    ConfigurationError names what is wrong.
    """

    expression: str = ""
    every: timedelta | float | None = None
    at: datetime | None = None
    name: str = ""
    input: dict[str, Any] | Callable[[datetime], dict[str, Any]] | None = None
    timezone: str | tzinfo | None = None
    queue_name: str | None = None
    misfire: Misfire = "one"
    grace: float | timedelta | None = None
    overlap: Overlap = "allow"
    enabled: bool = True

    def __post_init__(self) -> None:
        try:
            self._check()
        except InvalidInput as error:
            raise ConfigurationError(f"Schedule: {error}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"Schedule: {error}") from None

    def _check(self) -> None:
        self._set("expression", self._expression())
        self._set("timezone", _zone_name(self.timezone))
        # Without a zone of its own the settings decide, which may not be read yet.
        timing_of(self.expression, str(self.timezone or "UTC"))
        if not self.name and len(self.expression) > NAME_LIMIT:
            raise ConfigurationError(
                f"the expression has {len(self.expression)} characters, too many to be its own name; give name=."
            )
        self._set("name", check_name(self.name or self.expression, "name"))
        if self.queue_name is not None:
            check_name(self.queue_name, "queue_name")
        for name, allowed in (("misfire", MISFIRE), ("overlap", OVERLAP)):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(
                    f"{name} is {' or '.join(map(repr, allowed))}, not {getattr(self, name)!r}."
                )
        if self.grace is not None:
            self._set("grace", seconds(self.grace, "grace"))
        if not isinstance(self.enabled, bool):
            raise ConfigurationError(f"enabled is True or False, not {self.enabled!r}.")
        self._check_input()

    def _expression(self) -> str:
        given = [
            name for name in ("expression", "every", "at") if getattr(self, name) not in (None, "")
        ]
        if len(given) != 1:
            raise ConfigurationError(
                "give a cron expression, or every=, or at=; "
                + (f"{' and '.join(given)} are too many." if given else "nothing was given.")
            )
        if self.every is not None:
            if not isinstance(self.every, timedelta):
                self._set("every", timedelta(seconds=seconds(self.every, "every")))
            assert isinstance(self.every, timedelta)
            return timing.every_text(timing.check_step(self.every))
        if self.at is not None:
            if not isinstance(self.at, datetime) or self.at.tzinfo is None:
                raise ConfigurationError(
                    f"at= takes an aware datetime, not {self.at!r}. See django.utils.timezone.make_aware()."
                )
            return timing.at_text(timing.check_moment(self.at).astimezone(UTC))
        if not isinstance(self.expression, str):
            raise ConfigurationError(f"the expression is a text, not {self.expression!r}.")
        return self.expression

    def _check_input(self) -> None:
        if inspect.iscoroutinefunction(self.input):
            raise ConfigurationError("input= takes a plain function, not an async one.")
        if not (self.input is None or isinstance(self.input, dict) or callable(self.input)):
            raise ConfigurationError(
                f"input= takes a dict or a function of the slot, not {self.input!r}."
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def zone_name(self) -> str:
        """The IANA name of its zone, from the settings where it has none of its own."""
        return str(self.timezone or django_settings.TIME_ZONE)

    @property
    def timing(self) -> Timing:
        return timing_of(self.expression, self.zone_name)

    def upcoming(self, after: datetime | None = None, n: int = 1) -> list[datetime]:
        """The next ``n`` slots after an aware moment (now by default), aware and in the zone.

        An interval counts from that moment here; the stored row counts from its own start.
        """
        from django_jobs import clock

        after = clock.now() if after is None else after
        if not isinstance(after, datetime) or after.tzinfo is None:
            raise InvalidInput(f"upcoming() takes an aware datetime, not {after!r}.")
        return timing.upcoming(self.timing, after, n, after)


def check_schedules(given: Iterable[Any] | Schedule | None) -> tuple[Schedule, ...]:
    """``schedules=`` of a definition; ConfigurationError names what does not fit."""
    if isinstance(given, Schedule):
        given = [given]
    found = tuple(given or ())
    names: set[str] = set()
    for one in found:
        if not isinstance(one, Schedule):
            raise ConfigurationError(f"schedules= takes a list of Schedule(…), not {one!r}.")
        if one.name in names:
            raise ConfigurationError(
                f"two schedules are called {one.name!r}. Give each a name= of its own."
            )
        names.add(one.name)
    return found


def _zone_name(zone: object) -> str | None:
    if zone is None or isinstance(zone, str):
        return zone or None
    if isinstance(zone, ZoneInfo) and zone.key:
        return zone.key
    if zone is UTC:
        return "UTC"
    raise ConfigurationError(
        f"timezone= takes the name of an IANA zone or a ZoneInfo, not {zone!r}."
    )
