"""System checks: each states the problem, and its hint the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connections, router

from django_jobs import conf
from django_jobs.definitions import registry
from django_jobs.errors import ConfigurationError, JobsError


@register("django_jobs")
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E001: a wrong or unknown key of DJANGO_JOBS."""
    return [
        Error(problem.message, hint=problem.hint, id="django_jobs.E001")
        for problem in conf.problems()
    ]


@register("django_jobs")
def check_definitions(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E002: a hint that cannot be resolved or stored, a graph that cannot run."""
    found: list[CheckMessage] = []
    for definition in registry.every():
        try:
            definition.schema.resolve()
            definition.check()
        except JobsError as error:
            found.append(
                Error(str(error), hint=f"Defined at {definition.place}.", id="django_jobs.E002")
            )
    return found


@register("django_jobs")
def check_runners(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E007: jobs for Celery, and no Celery."""
    if conf.problems():
        return []  # E001 says why
    settings = conf.get()
    places = [f"the task {one.slug!r}" for one in registry.every() if one.runner == "celery"]
    places += [
        f"the queue {name!r}" for name, queue in settings.queues.items() if queue.runner == "celery"
    ]
    if settings.default_runner == "celery":
        places.append('DJANGO_JOBS["DEFAULT_RUNNER"]')
    if not places or find_spec("celery") is not None:
        return []
    return [
        Error(
            f"Celery is to run jobs (so says {', '.join(places)}), and is not installed.",
            hint="Install the extra: pip install 'django-jobs-workflows[celery]'.",
            id="django_jobs.E007",
        )
    ]


@register("django_jobs")
def check_schedules(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E008: a schedule whose input its target would refuse."""
    found: list[CheckMessage] = []
    for definition in registry.every():
        for one in definition.schedules:
            if callable(one.input):
                continue
            try:
                definition.schema.dump_input(definition.schema.bind((), one.input or {}))
            except ConfigurationError:
                continue  # E002 says why
            except JobsError as error:
                found.append(
                    Error(
                        f"The schedule {one.name!r} of {definition.slug!r} would fail at each slot: {error}",
                        hint=f"Give it a fitting input=. Defined at {definition.place}.",
                        id="django_jobs.E008",
                    )
                )
    return found


@register("django_jobs")
def check_time_zones(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E003: the engine needs aware datetimes."""
    if django_settings.USE_TZ:
        return []
    return [
        Error(
            "django_jobs needs USE_TZ = True: leases and due times are moments, not wall times.",
            hint="Set USE_TZ = True.",
            id="django_jobs.E003",
        )
    ]


@register("django_jobs")
def check_transactional(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """django_jobs.E008: transactional steps, and no table of the project beside their records."""
    from django_jobs.store.session import engine_alias

    slugs = [one.slug for one in registry.every() if getattr(one, "transactional", False)]
    if conf.problems() or not slugs or len(connections.settings) < 2:
        return []
    alias = engine_alias()
    models = [model for model in apps.get_models() if model._meta.app_label != "django_jobs"]
    if any(router.db_for_write(model) == alias for model in models):
        return []
    return [
        Error(
            f"Tasks are transactional ({', '.join(sorted(slugs))}), but no model of the project is kept in the database "
            f"{alias!r}, where their records are written: the two could not commit together.",
            hint='Name the database of those models in DJANGO_JOBS["DATABASE"], or take transactional=True away.',
            id="django_jobs.E008",
        )
    ]


@register("django_jobs", "database")
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """django_jobs.E004 to E006, W001: the database that holds the jobs."""
    from django_jobs.store.dialects import DIALECTS
    from django_jobs.store.session import engine_alias

    try:
        alias = engine_alias()
    except JobsError:
        return []  # E001 says why
    if databases is not None and alias not in databases:
        return []
    connection = connections[alias]
    if connection.vendor not in DIALECTS:
        return [
            Error(
                f"django_jobs does not run on {connection.vendor!r} (database {alias!r}).",
                hint=f'Keep its tables on {" or ".join(sorted(DIALECTS))} and name that alias in DJANGO_JOBS["DATABASE"].',
                id="django_jobs.E004",
            )
        ]
    if connection.vendor == "mysql":
        return _check_mysql(connection, alias)
    mode = connection.settings_dict.get("OPTIONS", {}).get("transaction_mode")
    if connection.vendor == "sqlite" and str(mode).upper() != "IMMEDIATE":
        return [
            Warning(
                "SQLite transactions are deferred, so your own transactions can fail with 'database is locked' "
                "while workers write.",
                hint=f'Set OPTIONS["transaction_mode"] = "IMMEDIATE" for the database {alias!r}.',
                id="django_jobs.W001",
            )
        ]
    return []


def _check_mysql(connection: Any, alias: str) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    fault = server_fault(connection.mysql_is_mariadb, connection.mysql_version)
    if fault is not None:
        message, hint = fault
        found.append(Error(f"{message} (database {alias!r}).", hint=hint, id="django_jobs.E005"))
    with connection.cursor() as cursor:
        name = "tx_isolation" if connection.mysql_is_mariadb else "transaction_isolation"
        cursor.execute(f"SELECT @@{name}")
        [level] = cursor.fetchone()
    if level != "READ-COMMITTED":
        found.append(
            Error(
                f"The transactions of database {alias!r} are {level}: workers would lock each other out and read "
                "old rows.",
                hint=f'Leave OPTIONS["isolation_level"] of the database {alias!r} at "read committed", Django\'s default.',
                id="django_jobs.E006",
            )
        )
    return found


def server_fault(is_mariadb: bool, version: tuple[int, ...]) -> tuple[str, str] | None:
    """What is wrong with a server of this version, and the remedy; None where it serves."""
    shown = ".".join(map(str, version))
    if not is_mariadb:
        if version >= (8, 0, 11):
            return None
        return f"MySQL {shown} is too old", "Use MySQL 8.0.11 or newer."
    if version < (10, 6):
        return f"MariaDB {shown} is too old", "Use MariaDB 10.6 or newer; it can skip locked rows."
    if (10, 7) <= version < (10, 10, 6) or (10, 11) <= version < (10, 11, 5):
        return (
            f"MariaDB {shown} sorts version 7 UUIDs wrongly, so that jobs would run out of order",
            "Use MariaDB 10.6, 10.10.6, 10.11.5 or newer.",
        )
    return None
