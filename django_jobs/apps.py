"""The Django app: discovery when all apps are loaded."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _

from django_jobs import conf


class DjangoJobsConfig(AppConfig):
    name = "django_jobs"
    label = "django_jobs"
    verbose_name = _("Jobs")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_jobs import checks  # noqa: F401  (registers the checks)
        from django_jobs.definitions import registry
        from django_jobs.store import catalogue

        post_migrate.connect(catalogue.forget_known, dispatch_uid="django_jobs.catalogue")
        autodiscover_modules("jobs", "tasks", "workflows")
        registry.check()
        if _uses_celery():
            from django_jobs.celery import connect

            connect()


def _uses_celery() -> bool:
    """Whether the project has a Celery app; nobody else pays for the import.

    It lives in the package that holds the settings, or the setting names it; and Celery's own
    workers load Django after Celery.
    """
    named = getattr(settings, conf.NAME, None) or {}
    if isinstance(named, dict) and named.get("CELERY_APP"):
        return find_spec("celery") is not None  # a check says so where it is not
    return "celery" in sys.modules
