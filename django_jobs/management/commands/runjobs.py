"""``manage.py runjobs``: run jobs until told to stop, or (``--once``) until nothing is due."""

from __future__ import annotations

import atexit
import subprocess
import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import autoreload

from django_jobs.management.base import EngineCommand
from django_jobs.observe.logs import write_json
from django_jobs.store.session import engine_alias
from django_jobs.worker.intake import Plan
from django_jobs.worker.supervisor import Supervisor


def run_beside() -> None:
    """Run the same command without ``--reload`` in a process that ends with this one."""
    arguments = [argument for argument in sys.argv if argument != "--reload"]
    worker = subprocess.Popen([sys.executable, *arguments])
    atexit.register(worker.wait)
    atexit.register(worker.terminate)  # runs before the wait
    worker.wait()


class Command(EngineCommand):
    waits_for_database = True
    help = "Run jobs: until SIGTERM, or with --once until nothing is due."

    def add_arguments(self, parser: CommandParser) -> None:
        add = parser.add_argument
        add(
            "--queue",
            action="append",
            nargs="+",
            default=[],
            help="Only these queues (default: all).",
        )
        add("--all-queues", action="store_true", help="All queues: the default, said aloud.")
        add("--exclude-queue", action="append", nargs="+", default=[], help="All queues but these.")
        add(
            "--once",
            action="store_true",
            help="Tick schedules, run everything that is due, then exit.",
        )
        add("--limit", type=int, help="Exit after so many job executions.")
        add("--exit-code", action="store_true", help="Exit with 1 when a job ended failed.")
        add("--processes", type=int, default=1, help="Worker processes (default: 1).")
        add("--threads", type=int, default=4, help="Threads in each process (default: 4).")
        add("--no-schedules", action="store_true", help="Do not tick schedules.")
        add("--max-jobs", type=int, help="Replace a process after so many jobs.")
        add(
            "--max-memory",
            type=int,
            metavar="MB",
            help="Replace a process that has grown beyond this.",
        )
        add(
            "--idle-timeout",
            type=float,
            metavar="S",
            help="Exit after so many seconds without work.",
        )
        add("--database", help="Serve the jobs of this database alias.")
        add(
            "--health-file",
            metavar="PATH",
            help="Touch this file with every heartbeat, for probes.",
        )
        add(
            "--json-logs",
            action="store_true",
            help="Log to standard error as JSON, one object a line.",
        )
        add("--reload", action="store_true", help="Development: start anew when code changes.")

    def handle(self, *args: Any, **options: Any) -> None:
        for name in ("processes", "threads", "limit", "max_jobs", "max_memory"):
            if options[name] is not None and options[name] < 1:
                raise CommandError(f"--{name.replace('_', '-')} must be 1 or more.")
        if options["idle_timeout"] is not None and not options["idle_timeout"] > 0:
            raise CommandError("--idle-timeout must be more than 0 seconds.")
        if options["json_logs"]:
            write_json()
        if options["reload"]:
            autoreload.run_with_reloader(run_beside)
            return
        queues = [name for group in options["queue"] for name in group]
        plan = Plan(
            alias=options["database"] or engine_alias(),
            queues=queues or None,
            excluded=[name for group in options["exclude_queue"] for name in group],
            threads=options["threads"],
            once=options["once"],
            limit=options["limit"],
            max_jobs=options["max_jobs"],
            max_memory=options["max_memory"],
            idle_timeout=options["idle_timeout"],
            schedules=not options["no_schedules"],
            health_file=options["health_file"],
        )
        supervisor = Supervisor(plan, processes=options["processes"])
        speaks = options["verbosity"] > 0 and not options["json_logs"]
        if speaks and not plan.once:
            self._say(_begins(plan, options["processes"]))
        failed = supervisor.run()
        if speaks:
            self._say(_ended(supervisor.executions, failed))
        if failed and options["exit_code"]:
            sys.exit(1)

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        # What is left in the buffer would be written by each child as well.
        self.stdout.flush()


def _begins(plan: Plan, processes: int) -> str:
    """Who serves what, for the person who has just started it."""
    queues = "all queues" if plan.queues is None else f"the queues {', '.join(plan.queues)}"
    if plan.excluded:
        queues += f" but {', '.join(plan.excluded)}"
    each = "" if processes == 1 else "each "
    return (
        f"Serving {queues} of the database {plan.alias!r}: {processes} process{'' if processes == 1 else 'es'}, "
        f"{each}{plan.threads} threads. Ctrl-C or SIGTERM ends it."
    )


def _ended(executions: int, failed: bool) -> str:
    if not executions:
        return "Nothing was run."
    shown = "1 job was run" if executions == 1 else f"{executions} jobs were run"
    return f"{shown}; at least one ended failed." if failed else f"{shown}."
