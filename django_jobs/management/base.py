"""What all commands share: the database they work on is there, and holds the tables."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, connections

from django_jobs import conf
from django_jobs.models import Job
from django_jobs.store.session import engine_alias


class EngineCommand(BaseCommand):
    """A command on the engine's tables, in the database that ``--database`` or the settings name."""

    #: Whether a database that cannot be reached is the command's own affair: a worker waits for it.
    waits_for_database = False

    def execute(self, *args: Any, **options: Any) -> str | None:
        """CommandError, before anything else, where the command could not work."""
        for problem in conf.problems():
            raise CommandError(f"{problem.message} {problem.hint}")
        alias = options.get("database") or engine_alias()
        if alias not in connections.settings:
            raise CommandError(
                f"There is no database {alias!r}. DATABASES has: {', '.join(connections.settings)}."
            )
        self._check_tables(alias)
        return super().execute(*args, **options)

    def _check_tables(self, alias: str) -> None:
        connection = connections[alias]
        try:
            names = connection.introspection.table_names()
        except (DatabaseError, InterfaceError) as error:
            if self.waits_for_database:
                connection.close()
                return
            raise CommandError(
                f"The database {alias!r} cannot be read: {str(error).strip()}"
            ) from error
        if Job._meta.db_table not in names:
            option = "" if alias == "default" else f" --database {alias}"
            raise CommandError(
                f"The tables of django_jobs are not in the database {alias!r}. "
                f"Make them: python manage.py migrate{option}"
            )

    def note(self, text: str) -> None:
        """Say something to people, beside the output that scripts read."""
        self.stderr.write(text, lambda plain: plain)
