"""What one call may set: the options of ``using()``."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from django_jobs import clock
from django_jobs.definitions.retry import Retry
from django_jobs.errors import InvalidInput

NAME_LIMIT = 200
#: The last moment that every database and Python can hold.
LATEST = datetime(9999, 12, 31, tzinfo=UTC)
#: Names a call may use only through ``input={…}`` when a parameter is called so.
RESERVED = frozenset({"input", "context"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of one call; None means that the call says nothing."""

    queue_name: str | None = None
    priority: int | None = None
    run_after: datetime | timedelta | None = None
    delay: float | timedelta | None = None
    meta: dict[str, Any] | None = None
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    retries: int | Retry | None = None
    timeout: float | timedelta | None = None
    version: str | None = None
    runner: str | None = None
    on_duplicate: Literal["return", "raise"] | None = None
    debounce: float | timedelta | None = None
    expires: float | timedelta | datetime | None = None
    fair_by: str | None = None
    database: str | None = None

    def laid_over(self, base: Options) -> Options:
        """These options, and those of ``base`` where these say nothing."""
        merged = {
            field.name: getattr(base, field.name)
            if getattr(self, field.name) is None
            else getattr(self, field.name)
            for field in fields(self)
        }
        return Options(**merged)


OPTION_NAMES = frozenset(field.name for field in fields(Options))
NOTHING = Options()


def check_name(value: object, what: str) -> str:
    """Return ``value`` if it may name something; InvalidInput otherwise."""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} must be a string, not {type(value).__name__}.")
    if not value or len(value) > NAME_LIMIT:
        raise InvalidInput(
            f"{what} must have 1 to {NAME_LIMIT} characters, this one has {len(value)}."
        )
    if not value.isprintable() and any(
        unicodedata.category(char) in ("Cc", "Cs") for char in value
    ):
        raise InvalidInput(
            f"{what} {value!r} holds a control character or half a surrogate pair; remove it."
        )
    return value


def check_step_id(value: object) -> str:
    """A step id is a name without "/", which joins the ids of nested steps."""
    name = check_name(value, "a step id")
    if "/" in name:
        raise InvalidInput(
            f"The step id {name!r} holds '/', which separates nested steps. Use ':' or '-'."
        )
    return name


def seconds(value: float | timedelta, what: str) -> float:
    """A duration in seconds; InvalidInput when it is none, or negative."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InvalidInput(
            f"{what} is a duration: a timedelta or a number of seconds, not {value!r}."
        )
    if value < 0 or value > (LATEST - clock.now()).total_seconds():
        raise InvalidInput(
            f"{what} must be a duration from 0 s up to the year 9999, not {value!r}."
        )
    return float(value)
