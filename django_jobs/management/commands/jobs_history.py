"""``manage.py jobs_history``: what happened to jobs, one JSON object a line."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError, CommandParser

from django_jobs.management.base import EngineCommand
from django_jobs.models import Job
from django_jobs.observe import history
from django_jobs.store.session import engine_alias


class Command(EngineCommand):
    help = "Print the history of a job, or of all jobs, as JSON lines ordered by job and number."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("job_id", nargs="?", metavar="JOB", help="Only this job.")
        parser.add_argument("--job", metavar="ID", help="Only this job.")
        parser.add_argument("--database", help="Read the jobs of this database alias.")

    def handle(self, *args: Any, **options: Any) -> None:
        alias = options["database"] or engine_alias()
        given = [name for name in (options["job_id"], options["job"]) if name]
        if len(given) > 1:
            raise CommandError("Give one job: JOB or --job ID.")
        pages = [[self._job(given[0], alias)]] if given else history.pages(alias)
        printed = False
        for page in pages:
            for rows in history.read(page, alias):
                for entry in history.derive(rows):
                    self.stdout.write(json.dumps(entry.as_dict(), ensure_ascii=False))
                    printed = True
        if not printed:
            self.note("There are no jobs.")

    def _job(self, text: str, alias: str) -> Job:
        try:
            return Job.units.using(alias).get(pk=UUID(text))
        except (ValueError, Job.DoesNotExist):
            raise CommandError(f"There is no job {text!r}.") from None
