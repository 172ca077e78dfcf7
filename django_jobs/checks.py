"""System checks: each states the problem, and its hint the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connections

from django_jobs import conf
from django_jobs.definitions import registry
from django_jobs.errors import JobsError


@register("django_jobs")
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E001: a wrong or unknown key of DJANGO_JOBS."""
    return [
        Error(problem.message, hint=problem.hint, id="django_jobs.E001")
        for problem in conf.problems()
    ]


@register("django_jobs")
def check_definitions(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E002: a hint that cannot be resolved or stored."""
    found: list[CheckMessage] = []
    for definition in registry.every():
        try:
            definition.schema.resolve()
        except JobsError as error:
            found.append(
                Error(str(error), hint=f"Defined at {definition.place}.", id="django_jobs.E002")
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


@register("django_jobs", "database")
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """django_jobs.E004, W001: the database that holds the jobs."""
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
