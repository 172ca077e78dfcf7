"""System checks: each states the problem, and its hint the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connections, router
from django.utils.module_loading import import_string

from django_jobs import conf
from django_jobs.definitions import registry
from django_jobs.errors import ConfigurationError, JobsError

if TYPE_CHECKING:
    from django_jobs.store.fitness import Fault


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
    if settings.celery_app is not None:
        places.append('DJANGO_JOBS["CELERY_APP"]')
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
    """django_jobs.E014: transactional steps, and no table of the project beside their records."""
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
            id="django_jobs.E014",
        )
    ]


@register("django_jobs")
def check_names(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """django_jobs.E013: a setting that names what is not there."""
    if conf.problems():
        return []  # E001 says why
    settings = conf.get()
    found: list[CheckMessage] = []
    if settings.database is not None and settings.database not in connections.settings:
        found.append(
            Error(
                f'DJANGO_JOBS["DATABASE"] names {settings.database!r}, which is not in DATABASES.',
                hint=f"Name one of {', '.join(map(repr, connections.settings))}, or leave the key out.",
                id="django_jobs.E013",
            )
        )
    if settings.tenant_context is not None:
        try:
            import_string(settings.tenant_context)
        except ImportError as error:
            found.append(
                Error(
                    f'DJANGO_JOBS["TENANT_CONTEXT"] names {settings.tenant_context!r}, which cannot be imported: {error}.',
                    hint='Give the dotted path of a context manager, such as "shop.tenancy.entered".',
                    id="django_jobs.E013",
                )
            )
    return found


@register("django_jobs")
def check_database_settings(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """django_jobs.E006, E009, E010, W001: settings under which workers could not write."""
    from django_jobs.store import fitness
    from django_jobs.store.session import engine_alias

    if conf.problems():
        return []  # E001 says why
    alias = engine_alias()
    if alias not in connections.settings:
        return []  # E013 says why
    return [_said(fault) for fault in fitness.settings_faults(connections[alias], alias)]


@register("django_jobs", "database")
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """django_jobs.E004 to E006, E011 and E012, W002 to W008: the database that holds the jobs."""
    from django_jobs.store import fitness
    from django_jobs.store.dialects import DIALECTS
    from django_jobs.store.session import engine_alias

    try:
        alias = engine_alias()
    except JobsError:
        return []  # E001 says why
    if alias not in (databases or ()):
        return []  # only on demand: a build may have no database to ask
    connection = connections[alias]
    if connection.vendor not in DIALECTS:
        return [
            Error(
                f"django_jobs does not run on {connection.vendor!r} (database {alias!r}).",
                hint=f'Keep its tables on {" or ".join(sorted(DIALECTS))} and name that alias in DJANGO_JOBS["DATABASE"].',
                id="django_jobs.E004",
            )
        ]
    return [_said(fault) for fault in fitness.faults(connection, alias)]


def _said(fault: Fault) -> CheckMessage:
    kind = Error if fault.refused else Warning
    return kind(fault.message, hint=fault.hint, id=f"django_jobs.{fault.code}")
