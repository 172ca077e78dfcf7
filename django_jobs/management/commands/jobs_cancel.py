"""``manage.py jobs_cancel``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from django_jobs import lifecycle
from django_jobs.management.steering import SteeringCommand


class Command(SteeringCommand):
    help = "Cancel jobs: late results of those under way are dropped."
    command = lifecycle.Command.CANCEL
    done, verb = "Canceled", "cancel"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--cascade", action="store_true", help="Their live child runs as well, and theirs."
        )
        parser.add_argument(
            "--compensate",
            action="store_true",
            help="Let runs undo the steps that they have completed.",
        )

    def extra(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"cascade": options["cascade"], "compensate": options["compensate"]}
