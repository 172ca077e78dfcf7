"""``manage.py jobs_schedules``: what fires when, and orders to one schedule."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_jobs.errors import JobsError
from django_jobs.management.base import EngineCommand
from django_jobs.models import Schedule
from django_jobs.scheduling.orders import LIMIT, synchronise
from django_jobs.store.session import engine_alias


class Command(EngineCommand):
    help = "List schedules with their next slots; or run, pause, resume or backfill one of them."

    def add_arguments(self, parser: CommandParser) -> None:
        add = parser.add_argument
        add("--slug", help="Only the schedules of this task or workflow.")
        add("--name", help="Only the schedule of this name.")
        add("--database", help="The schedules of this database alias.")
        add("--next", type=int, default=3, metavar="N", help="So many next slots (default: 3).")
        add("--words", action="store_true", help="Say in words when each one fires.")
        add("--json", action="store_true", help="One JSON object a line.")
        orders = parser.add_mutually_exclusive_group()
        orders.add_argument("--run-now", action="store_true", help="Make one job of it now.")
        orders.add_argument("--pause", action="store_true", help="Fire nothing until --resume.")
        orders.add_argument("--resume", action="store_true", help="Fire slots from now on.")
        orders.add_argument(
            "--backfill",
            nargs=2,
            metavar=("START", "END"),
            help="Make the jobs of past slots that have none; ISO dates and times, in its zone unless they say.",
        )
        add(
            "--limit", type=int, default=LIMIT, help=f"Backfill at most so many (default: {LIMIT})."
        )
        add("--dry-run", action="store_true", help="Backfill: only list the slots.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 0 <= options["next"] <= 1000:
            raise CommandError("--next must be from 0 to 1000.")
        if options["dry_run"] and not options["backfill"]:
            # What was meant as a trial must not make a job.
            raise CommandError("--dry-run is for --backfill only.")
        alias = options["database"] or engine_alias()
        synchronise(alias)
        found = Schedule.objects.using(alias).order_by("slug", "name")
        for option in ("slug", "name"):
            if options[option] is not None:
                found = found.filter(**{option: options[option]})
        try:
            self._carry_out(list(found), options)
        except JobsError as error:
            raise CommandError(str(error)) from None

    def _carry_out(self, found: list[Schedule], options: dict[str, Any]) -> None:
        order = next(
            (name for name in ("run_now", "pause", "resume", "backfill") if options[name]), None
        )
        if order is None:
            for schedule in found:
                self.stdout.write(line(schedule, options))
            if not found:
                self.note(self._none(options))
            return
        schedule = _one(found, order)
        if order == "run_now":
            self.stdout.write(f"Job {schedule.run_now().pk}.")
        elif order == "backfill":
            self._backfill(schedule, options)
        else:
            getattr(schedule, order)()
            self.stdout.write(line(schedule, options))

    def _none(self, options: dict[str, Any]) -> str:
        given = " and ".join(
            f"--{name} {options[name]}" for name in ("slug", "name") if options[name] is not None
        )
        if given:
            return f"No schedule fits {given}."
        return "There are no schedules. Give a task one: @task(schedules=[Schedule(…)])."

    def _backfill(self, schedule: Schedule, options: dict[str, Any]) -> None:
        start, end = (_moment(text, schedule) for text in options["backfill"])
        done = schedule.backfill(start, end, limit=options["limit"], dry_run=options["dry_run"])
        for number, slot in enumerate(done.slots):
            job = f" {done.jobs[number].pk}" if done.jobs else ""
            self.stdout.write(f"{slot.isoformat()}{job}")
        verb = "Would make" if options["dry_run"] else "Made"
        rest = f" More are left: --limit was {options['limit']}." if done.is_cut else ""
        self.stdout.write(
            f"{verb} {len(done.slots)} job{'' if len(done.slots) == 1 else 's'}; {done.present} slots have one "
            f"already.{rest}"
        )


def line(schedule: Schedule, options: dict[str, Any]) -> str:
    """Target, name, expression, zone, next slots; or the same as JSON."""
    try:
        following = [slot.isoformat() for slot in schedule.upcoming(options["next"])]
    except JobsError:
        following = []
    if options["json"]:
        return json.dumps({
            "slug": schedule.slug, "name": schedule.name, "expression": schedule.expression,
            "timezone": schedule.zone_name, "enabled": schedule.enabled, "source": schedule.source,
            "next": following if schedule.enabled else [], "words": schedule.in_words(),
            "error": schedule.error and schedule.error["message"],
        })  # fmt: skip
    shown = " ".join(following) if schedule.enabled else "paused"
    if schedule.error:
        shown = f"{shown}  error: {schedule.error['message']}"
    words = f"  {schedule.in_words()}" if options["words"] else ""
    return f"{schedule.slug}  {schedule.name}  {schedule.expression}  {schedule.zone_name}  {shown}{words}"


def _one(found: list[Schedule], order: str) -> Schedule:
    if not found:
        raise CommandError(
            f"No schedule fits for --{order.replace('_', '-')}. `manage.py jobs_schedules` lists them all."
        )
    if len(found) > 1:
        listed = ", ".join(str(one) for one in found[:5])
        raise CommandError(
            f"--{order.replace('_', '-')} is for one schedule, and the filters fit {len(found)}: {listed}. "
            "Name it by --slug and --name."
        )
    return found[0]


def _moment(text: str, schedule: Schedule) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"--backfill: {text!r} is no date and time such as 2030-01-31T09:00."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=schedule.timing.zone)
