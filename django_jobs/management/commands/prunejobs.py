"""``manage.py prunejobs``: delete jobs that have been kept long enough."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_jobs.management.base import EngineCommand
from django_jobs.store import retention
from django_jobs.store.session import Session

#: What a table holds, as people say it, in order of output.
NOUNS = {
    "job": "jobs",
    "taskstatus": "steps",
    "attempt": "attempts",
    "logline": "log lines",
    "historyentry": "history entries",
    "event": "events",
    "permit": "permits",
    "idempotencykey": "idempotency keys",
    "callback": "callbacks",
    "tick": "ticks",
    "worker": "workers",
    "outboxmessage": "outbox messages",
    "seensignature": "seen signatures",
    "ratestart": "rate starts",
}


class Command(EngineCommand):
    help = "Delete finished jobs past KEEP_COMPLETED and KEEP_FAILED, with all their rows."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Only say what would be deleted."
        )
        parser.add_argument(
            "--chunk",
            type=int,
            default=retention.CHUNK,
            metavar="N",
            help="Jobs in one transaction.",
        )
        parser.add_argument("--database", help="Prune the jobs of this database alias.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 1 <= options["chunk"] <= 10_000:
            raise CommandError("--chunk must be from 1 to 10000.")
        session = Session(options["database"])
        pruned = retention.prune(session, chunk=options["chunk"], dry_run=options["dry_run"])
        verb = "Would delete" if options["dry_run"] else "Deleted"
        counts = [
            f"{pruned.rows[table]} {noun}" for table, noun in NOUNS.items() if pruned.rows[table]
        ]
        self.stdout.write(f"{verb} {', '.join(counts)}." if counts else "Nothing to delete.")
