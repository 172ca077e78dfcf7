"""What the commands that steer jobs share: filters, --dry-run, and who gives the order."""

from __future__ import annotations

import getpass
import json
import os
from typing import Any
from uuid import UUID

from django.core.exceptions import FieldError, ValidationError
from django.core.management.base import CommandError, CommandParser

from django_jobs import lifecycle
from django_jobs.control import Counts, preview, steer_many
from django_jobs.lifecycle import Status
from django_jobs.management.base import EngineCommand
from django_jobs.models import Job
from django_jobs.models.commands import JobQuerySet
from django_jobs.store.session import engine_alias


class SteeringCommand(EngineCommand):
    """Carries out one command on all jobs that fit every filter given."""

    command: lifecycle.Command
    #: How the outcome is said: "Paused", "pause".
    done, verb = "", ""

    def add_arguments(self, parser: CommandParser) -> None:
        add = parser.add_argument
        add("--slug", action="append", nargs="+", default=[], help="Jobs of these tasks.")
        add("--queue", action="append", nargs="+", default=[], help="Jobs of these queues.")
        add(
            "--status",
            action="append",
            nargs="+",
            default=[],
            choices=[str(status) for status in Status],
            help="Jobs of these statuses.",
        )
        add("--id", action="append", nargs="+", default=[], metavar="JOB", help="These jobs.")
        add(
            "--where",
            action="append",
            nargs="+",
            default=[],
            metavar="LOOKUP=VALUE",
            help="Django lookups, such as input__order_id=5 tenant_1=acme created_at__lt=2030-01-31. "
            "A value is read as JSON where it is JSON, and as text otherwise.",
        )
        add("--all", action="store_true", help="Every job: needed where no filter is given.")
        add("--reason", help="Kept in the history of each job.")
        add("--dry-run", action="store_true", help="Only say what would be done.")
        add("--database", help="The jobs of this database alias.")

    def handle(self, *args: Any, **options: Any) -> None:
        chosen, extra = self._chosen(options), self.extra(options)
        try:
            if options["dry_run"]:
                self._say(f"Would {self.verb}", preview(chosen, self.command))
                return
            counts = steer_many(
                chosen, self.command, actor=actor(), reason=options["reason"], **extra
            )
        except (FieldError, ValidationError, ValueError, TypeError) as error:
            raise CommandError(f"--where: {_text(error)}") from None
        self._say(self.done, counts)

    def extra(self, options: dict[str, Any]) -> dict[str, Any]:
        """Further arguments of the command."""
        return {}

    def _say(self, done: str, counts: Counts) -> None:
        self.stdout.write(
            f"{done} {counts.changed} {'job' if counts.changed == 1 else 'jobs'}, "
            f"{counts.unchanged} unchanged, {counts.refused} refused."
        )

    def _chosen(self, options: dict[str, Any]) -> JobQuerySet:
        filters: dict[str, Any] = {}
        for option, lookup in (("slug", "slug"), ("queue", "queue_name"), ("status", "status")):
            values = _flat(options[option])
            if values:
                filters[f"{lookup}__in"] = values
        listed = _flat(options["id"])
        if listed:
            filters["pk__in"] = [_uuid(text) for text in listed]
        where = dict(_pair(text) for text in _flat(options["where"]))
        if not filters and not where and not options["all"]:
            raise CommandError("Give a filter, or --all for every job.")
        jobs: Any = Job.objects.using(options["database"] or engine_alias()).filter(**filters)
        try:
            return jobs.filter(**where)
        except (FieldError, ValidationError, ValueError, TypeError) as error:
            raise CommandError(f"--where: {_text(error)}") from None


def actor() -> str:
    """Who gives orders here: ``manage.py`` and the name of the system's user."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        name = str(os.getuid())
    return f"manage.py {name}"


def _flat(given: Any) -> list[str]:
    """The words of an option given several times, or by call_command() as one word or a list."""
    if isinstance(given, list | tuple):
        return [word for part in given for word in _flat(part)]
    return [str(given)]


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise CommandError(f"--id: {text!r} is no id of a job.") from None


def _pair(text: str) -> tuple[str, Any]:
    """``lookup=value`` as data: nothing in it is ever evaluated."""
    lookup, equals, value = text.partition("=")
    if not equals or not lookup.strip():
        raise CommandError(f"--where takes LOOKUP=VALUE, not {text!r}.")
    try:
        return lookup.strip(), json.loads(value)
    except ValueError:
        return lookup.strip(), value


def _text(error: Exception) -> str:
    return " ".join(error.messages) if isinstance(error, ValidationError) else str(error)
