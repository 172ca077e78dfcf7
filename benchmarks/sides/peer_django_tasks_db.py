"""django-tasks-db, the database backend of Django's tasks, with its own worker command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import common
import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction

SQLITE = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}


def configure(database: dict[str, Any]) -> None:
    if not database.get("HOST"):
        database = {**database, "OPTIONS": SQLITE}
    before_django_6 = ["django_tasks"] if django.VERSION < (6, 0) else []
    settings.configure(
        DATABASES={"default": database},
        INSTALLED_APPS=["django.contrib.contenttypes", *before_django_6, "django_tasks_db"],
        TASKS={"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}},
        USE_TZ=True,
        SECRET_KEY="only-for-measurements",
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()


if not settings.configured:
    configure(json.loads(sys.argv[1])["database"])
if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task


@task
def noop() -> None:
    pass


@task
def stamp() -> None:
    common.note_call(CALLS[0])


CALLS: list[Path] = []


class Side(common.Side):
    settings = "--interval 0.1 (default 1), --no-startup-delay"

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        CALLS.append(self.calls)

    def prepare(self) -> None:
        call_command("migrate", verbosity=0)

    def run_worker(self) -> None:
        connection.ensure_connection()
        common.ready()
        call_command("db_worker", interval=0.1, startup_delay=False, verbosity=0, reload=False)

    def add(self, count: int, kind: str = "noop") -> None:
        """It has no call for many: one by one in one transaction."""
        with transaction.atomic():
            for _ in range(count):
                self.add_one(kind)

    def add_one(self, kind: str = "noop") -> None:
        {"noop": noop, "stamp": stamp}[kind].enqueue()

    def mark(self) -> Any:
        from django.utils import timezone

        return timezone.now()

    def left(self) -> int:
        from django_tasks_db.models import DBTaskResult

        return int(DBTaskResult.objects.filter(finished_at=None).exists())

    def span(self, mark: Any) -> tuple[int, float]:
        from django.db.models import Count, Max, Min
        from django_tasks_db.models import DBTaskResult

        found = DBTaskResult.objects.filter(started_at__gte=mark, finished_at__isnull=False)
        result = found.aggregate(n=Count("pk"), first=Min("started_at"), last=Max("finished_at"))
        return result["n"], common.between(result["first"], result["last"])


if __name__ == "__main__":
    # The worker finds the tasks by the name of this module, not as __main__.
    import peer_django_tasks_db

    common.main(peer_django_tasks_db.Side)
