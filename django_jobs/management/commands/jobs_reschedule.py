"""``manage.py jobs_reschedule``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_jobs import lifecycle
from django_jobs.control import change_of
from django_jobs.errors import InvalidInput
from django_jobs.management.steering import SteeringCommand


class Command(SteeringCommand):
    help = "Give jobs that wait, and were never started, another time, queue or priority."
    command = lifecycle.Command.RESCHEDULE
    done, verb = "Rescheduled", "reschedule"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--run-after", help="A moment in ISO 8601, such as 2030-01-31T09:00:00+01:00."
        )
        parser.add_argument("--delay", type=float, help="Seconds from now; 0 is now.")
        parser.add_argument("--to-queue", help="The queue that they go to.")
        parser.add_argument("--priority", type=int, help="From -100 to 100, larger first.")

    def extra(self, options: dict[str, Any]) -> dict[str, Any]:
        moment = options["run_after"]
        try:
            change = change_of(
                run_after=None if moment is None else datetime.fromisoformat(str(moment)),
                delay=options["delay"],
                queue_name=options["to_queue"],
                priority=options["priority"],
            )
        except (InvalidInput, ValueError) as error:
            raise CommandError(str(error)) from None
        return {"change": change}
