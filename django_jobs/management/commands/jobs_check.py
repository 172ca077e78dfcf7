"""``manage.py jobs_check``: whether the database holds what the engine promises."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import CommandParser

from django_jobs.management.base import EngineCommand
from django_jobs.observe import health
from django_jobs.store.session import Session


class Command(EngineCommand):
    help = "Verify the jobs of a live database: one line a finding, exit code 1 if there is any."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")
        parser.add_argument("--database", help="Check the jobs of this database alias.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["json"]:
            state = health.check(options["database"])
            self.stdout.write(json.dumps(state.as_dict(), ensure_ascii=False))
            found = len(state.findings)
        else:
            found = 0
            for finding in health.findings(Session(options["database"])):
                found += 1
                self.stdout.write(str(finding))
            if not found:
                self.note("Nothing is wrong.")
        if found:
            sys.exit(1)
