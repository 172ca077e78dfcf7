"""``manage.py jobs_import_beat``: the schedules of django-celery-beat as ours."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_jobs.errors import ConfigurationError
from django_jobs.management.base import EngineCommand


class Command(EngineCommand):
    help = "Make a schedule of every enabled row of django-celery-beat; says what cannot be imported, and why."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Check and say, write nothing.")
        parser.add_argument(
            "--disable",
            action="store_true",
            help="Switch off each row that was imported, so that it fires once.",
        )

    def handle(self, *args: Any, dry_run: bool, disable: bool, **options: Any) -> None:
        if find_spec("celery") is None:
            raise CommandError(
                "The rows of django-celery-beat name tasks of Celery, which is not installed. "
                "Install the extra: pip install 'django-jobs-workflows[celery]'."
            )
        imported = left = 0
        try:
            from django_jobs.celery.importing import import_beat

            for one in import_beat(dry_run=dry_run, disable=disable):
                if one.schedule is None:
                    left += 1
                    self.stdout.write(f"NOT imported  {one.name} ({one.task}): {one.reason}")
                    continue
                imported += 1
                zone = one.schedule.timezone
                notes = "".join(f"; {note}" for note in one.notes)
                self.stdout.write(
                    f"imported  {one.schedule}  {one.schedule.expression}  {zone}{notes}"
                )
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        verb = "would be imported" if dry_run else "imported"
        self.stdout.write(f"{imported} {verb}, {left} not.")
