"""The Django app: discovery when all apps are loaded."""

from __future__ import annotations

import sys

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class DjangoJobsConfig(AppConfig):
    name = "django_jobs"
    label = "django_jobs"
    verbose_name = _("Jobs")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_jobs import checks  # noqa: F401  (registers the checks)
        from django_jobs.definitions import registry

        autodiscover_modules("jobs", "tasks", "workflows")
        registry.check()
        if "celery" in sys.modules:
            # The project uses Celery: its app lives in the package that holds the settings, and its
            # workers load Django after Celery. Nobody else pays for the import.
            from django_jobs.celery import connect

            connect()
