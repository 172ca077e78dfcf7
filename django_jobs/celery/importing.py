"""Rows of django-celery-beat as schedules of ours; what does not fit is said, never guessed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import transaction

from django_jobs import clock
from django_jobs.celery.wrapping import slug_of
from django_jobs.definitions import registry, timing
from django_jobs.errors import ConfigurationError, JobsError
from django_jobs.models import Schedule
from django_jobs.store.session import engine_alias

APP = "django_celery_beat"


class NotImported(Exception):
    """A row has no equal here; the text says why, and what to do."""


@dataclass(slots=True)
class Imported:
    """What became of one row: its schedule, or the reason why there is none."""

    name: str
    task: str
    schedule: Schedule | None = None
    reason: str = ""
    #: What of the row has no effect here.
    notes: list[str] = field(default_factory=list)


def import_beat(*, dry_run: bool = False, disable: bool = False) -> Iterator[Imported]:
    """Make a schedule of every enabled row of django-celery-beat, one by one.

    A second run finds the schedules of the first and leaves them alone. ``disable`` switches off
    each imported row, so that it does not fire twice; ``dry_run`` checks and writes nothing.
    Raises ConfigurationError where django-celery-beat is no installed app.
    """
    try:
        model: Any = apps.get_model(APP, "PeriodicTask")
    except LookupError as error:
        raise ConfigurationError(
            "django_celery_beat is not in INSTALLED_APPS, so there is nothing to import."
        ) from error
    related = ("interval", "crontab", "solar", "clocked")
    for row in model.objects.filter(enabled=True).select_related(*related).order_by("name"):
        done = Imported(row.name, row.task)
        try:
            made, done.notes = _schedule(row), _notes(row)
            with transaction.atomic(using=engine_alias()):
                _save(made, dry_run)
                if disable and not dry_run:
                    model.objects.filter(pk=row.pk).update(enabled=False)
            done.schedule = made
        except NotImported as error:
            done.reason = str(error)
        yield done


def _save(made: Schedule, dry_run: bool) -> None:
    there = Schedule.objects.using(engine_alias()).filter(slug=made.slug, name=made.name)
    if there.exists():
        raise NotImported(
            f"{made.slug!r} has a schedule of this name already; it was left as it is."
        )
    try:
        if dry_run:
            made.full_clean()
        else:
            made.save(using=engine_alias())
    except ValidationError as error:
        raise NotImported("; ".join(error.messages)) from error


def _schedule(row: Any) -> Schedule:
    slug = slug_of(row.task)
    if slug is None:
        raise NotImported(
            f"no task or workflow stands for {row.task!r} here. Wrap it: from_celery({row.task.rpartition('.')[2]})."
        )
    expression, zone = _expression(row)
    if row.start_time is not None and row.start_time > clock.now():
        raise NotImported(f"it begins only at {row.start_time.isoformat()}; import it then.")
    if row.expires is not None or row.expire_seconds is not None:
        raise NotImported(
            "it expires, and a schedule here has no end. Remove that, or disable it later."
        )
    return Schedule(
        name=row.name, slug=slug, expression=expression, timezone=zone, input=_input(slug, row)
    )


def _input(slug: str, row: Any) -> dict[str, Any]:
    try:
        args, kwargs = json.loads(row.args or "[]"), json.loads(row.kwargs or "{}")
        schema = registry.latest(slug).schema
        return schema.dump_input(schema.bind(tuple(args), kwargs))
    except (ValueError, TypeError, JobsError) as error:
        raise NotImported(f"its arguments do not fit: {error}") from error


def _expression(row: Any) -> tuple[str, str]:
    """The expression and the zone of a row."""
    try:
        if row.crontab is not None:
            return _cron(row)
        if row.interval is not None:
            if row.one_off:
                raise NotImported(
                    "it is to run once after an interval. Enqueue a job with a delay."
                )
            step = timedelta(**{row.interval.period: row.interval.every})
            return timing.every_text(timing.check_step(step)), ""
        if row.clocked is not None:
            return timing.at_text(timing.check_moment(row.clocked.clocked_time)), ""
    except ConfigurationError as error:
        raise NotImported(str(error)) from error
    raise NotImported(
        "it follows the sun, and no schedule here does. Make one by a cron expression."
    )


def _cron(row: Any) -> tuple[str, str]:
    cron = row.crontab
    fields = (cron.minute, cron.hour, cron.day_of_month, cron.month_of_year, cron.day_of_week)
    expression = " ".join("".join(str(one).split()) for one in fields)
    if row.one_off:
        raise NotImported(
            "it is to run once at the next match. Make a schedule with at=, or enqueue a job."
        )
    if cron.day_of_month != "*" and cron.day_of_week != "*":
        raise NotImported(
            f"{expression!r} asks for a day of the month and a day of the week: Celery wants both to match, "
            "cron (and this app) either. Say it by one of them."
        )
    return expression, str(cron.timezone)


def _notes(row: Any) -> list[str]:
    """Settings of the row that steer Celery's messages, of which there are none here."""
    given = {
        "queue": row.queue, "exchange": row.exchange, "routing_key": row.routing_key, "priority": row.priority,
        "headers": None if row.headers in ("", "{}") else row.headers,
    }  # fmt: skip
    return [
        f"its {name} {value!r} has no effect here"
        for name, value in given.items()
        if value is not None
    ]
