"""``manage.py jobs_versions``: which versions of workflows have live runs."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Count

from django_jobs.definitions import registry
from django_jobs.lifecycle import FINAL, Kind
from django_jobs.management.base import EngineCommand
from django_jobs.models import Job
from django_jobs.store.session import engine_alias


class Command(EngineCommand):
    help = "Print slug, version ('-' for none) and number of live runs, a line for each pair."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--missing",
            action="store_true",
            help="Only pairs without code here; exit with 1 when there is one. For release scripts.",
        )
        parser.add_argument("--tasks", action="store_true", help="Live jobs of tasks as well.")
        parser.add_argument("--database", help="The jobs of this database alias.")

    def handle(self, *args: Any, **options: Any) -> None:
        live = Job.objects.using(options["database"] or engine_alias()).exclude(
            status__in=sorted(FINAL)
        )
        if not options["tasks"]:
            live = live.filter(kind__in=[Kind.WORKFLOW, Kind.DAG])
        if options["missing"]:
            # A run built from data carries its graph: any worker can drive it.
            live = live.filter(spec__isnull=True)
        counted = live.order_by().values_list("slug", "version").annotate(Count("pk"))
        known = registry.codes()
        rows = [
            (slug, "-" if version is None else version, count)
            for slug, version, count in counted
            if not options["missing"] or (slug, version) not in known
        ]
        for slug, version, count in sorted(rows):
            self.stdout.write(f"{slug} {version} {count}")
        if not rows:
            what = "jobs" if options["tasks"] else "runs"
            self.note(f"No live {what}{' without code here' if options['missing'] else ''}.")
        if options["missing"] and rows:
            sys.exit(1)
