"""django-q2 with its ORM broker and its own cluster command."""

from __future__ import annotations

import json
import sys
from typing import Any

import common
import django
from django.conf import settings
from django.core.management import call_command
from django.db import transaction


def configure(request: dict[str, Any]) -> None:
    settings.configure(
        DATABASES={"default": request["database"]},
        INSTALLED_APPS=["django.contrib.contenttypes", "django_q"],
        Q_CLUSTER={
            "name": "measured", "orm": "default", "workers": request.get("processes", 1),
            "timeout": 60, "retry": 120, "save_limit": 0, "poll": 0.2, "log_level": "ERROR",
        },
        USE_TZ=True,
        SECRET_KEY="only-for-measurements",
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )  # fmt: skip
    django.setup()


if not settings.configured:
    configure(json.loads(sys.argv[1]))


def noop() -> None:
    pass


class Side(common.Side):
    settings = "ORM broker, 1 worker, poll 0.2 s, save_limit 0 (all results kept)"

    def prepare(self) -> None:
        call_command("migrate", verbosity=0)

    def start_workers(self) -> list[common.Worker]:
        # One cluster holds all worker processes.
        self.processes = 1
        return super().start_workers()

    def run_worker(self) -> None:
        common.ready()
        call_command("qcluster", verbosity=0)

    def add(self, count: int, kind: str = "noop") -> None:
        """It has no call for many: one by one in one transaction."""
        with transaction.atomic():
            for _ in range(count):
                self.add_one(kind)

    def add_one(self, kind: str = "noop") -> None:
        from django_q.tasks import async_task

        async_task("peer_django_q2.noop")

    def mark(self) -> Any:
        from django.utils import timezone

        return timezone.now()

    def left(self) -> int:
        from django_q.models import OrmQ

        return int(OrmQ.objects.exists())

    def span(self, mark: Any) -> tuple[int, float]:
        from django.db.models import Count, Max, Min
        from django_q.models import Task

        found = Task.objects.filter(started__gte=mark)
        result = found.aggregate(n=Count("pk"), first=Min("started"), last=Max("stopped"))
        return result["n"], common.between(result["first"], result["last"])


if __name__ == "__main__":
    # The cluster finds the task by the name of this module, not as __main__.
    import peer_django_q2

    common.main(peer_django_q2.Side)
