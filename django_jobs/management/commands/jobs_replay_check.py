"""``manage.py jobs_replay_check``: do the live runs of this database fit the present code?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.core.management.base import CommandParser

from django_jobs.lifecycle import FINAL, Kind
from django_jobs.management.base import EngineCommand
from django_jobs.models import Job
from django_jobs.store.session import engine_alias
from django_jobs.workflows.rehearsal import Rehearsed, rehearse

PAGE = 500


class Command(EngineCommand):
    help = (
        "Replay every live run of a code workflow against the code of this release, without running any "
        "step, and print those that it does not fit. Exits with 1 if there is one: a gate for deploys."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--slug", nargs="+", help="Only runs of these workflows.")
        parser.add_argument(
            "--strict",
            action="store_true",
            help="Recorded steps that the code no longer asks for are faults as well.",
        )
        parser.add_argument("--json", action="store_true", help="A JSON object a line.")
        parser.add_argument("--database", help="The jobs of this database alias.")

    def handle(self, *args: Any, **options: Any) -> None:
        alias = options["database"] or engine_alias()
        checked = faults = 0
        for job_id in _live(alias, options["slug"]):
            found = rehearse(job_id, alias)
            if found is None:
                continue  # it has ended meanwhile
            checked += 1
            is_fault = bool(found.fault) or (options["strict"] and bool(found.unasked))
            faults += is_fault
            if is_fault or found.unasked:
                self.stdout.write(json.dumps(found.as_dict()) if options["json"] else _line(found))
        if not options["json"]:
            runs = "1 live run" if checked == 1 else f"{checked} live runs"
            self.stdout.write(f"{runs} replayed, {faults} at fault.")
        if faults:
            sys.exit(1)


def _live(alias: str, slugs: list[str] | None) -> Iterator[UUID]:
    """The live runs that have started, page by page."""
    runs = Job.objects.using(alias).filter(
        kind=Kind.WORKFLOW, finished_at=None, started_at__isnull=False
    )
    runs = runs.exclude(status__in=sorted(FINAL)).order_by("pk")
    if slugs:
        runs = runs.filter(slug__in=slugs)
    page = list(runs.values_list("pk", flat=True)[:PAGE])
    while page:
        yield from page
        page = list(runs.filter(pk__gt=page[-1]).values_list("pk", flat=True)[:PAGE])


def _line(found: Rehearsed) -> str:
    version = "-" if found.version is None else found.version
    said = f"{found.fault}: {found.message}" if found.fault else "fits"
    if found.unasked:
        said += f" (not asked for: {', '.join(found.unasked)})"
    return f"{found.slug} {version} {found.job} {said}"
