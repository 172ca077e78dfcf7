"""The Celery app of the test project, set up as Celery's documentation says for Django."""

from __future__ import annotations

import os

from celery import Celery, shared_task

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

app = Celery("tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@shared_task
def ping() -> str:
    """A task of the project's own, beside ours."""
    return "pong"
