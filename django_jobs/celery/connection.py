"""Connecting this process to the project's Celery app: who sends, and what follows an enqueue."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string

from django_jobs import conf, enqueueing, signals
from django_jobs.errors import ConfigurationError
from django_jobs.store.outbox import CELERY
from django_jobs.worker import relay


def connect() -> None:
    """Register our tasks with Celery, and let this process send what the outbox promises.

    Called by the app's ``ready()`` where Celery is in use; calling it again is harmless.
    """
    from django_jobs.celery import (
        messages,  # noqa: F401  (registers the tasks)
        publishing,
    )

    relay.register(CELERY, publishing.send, publishing.promise_due)
    enqueueing.starters[CELERY] = publishing.publish_new
    signals.job_canceled.connect(publishing.revoke, dispatch_uid="django_jobs.celery")


def disconnect() -> None:
    """Undo :func:`connect`, for tests; the tasks stay registered."""
    relay.unregister(CELERY)
    enqueueing.starters.pop(CELERY, None)
    signals.job_canceled.disconnect(dispatch_uid="django_jobs.celery")


def find_app() -> Any | None:
    """The Celery app that sends: the setting's, or the project's current one; None without any."""
    place = conf.get().celery_app
    if place is not None:
        try:
            return import_string(place.replace(":", "."))
        except ImportError as error:
            raise ConfigurationError(
                f'DJANGO_JOBS["CELERY_APP"] names {place!r}, which cannot be imported: {error}'
            ) from error
    from celery import current_app

    app = current_app._get_current_object()
    # Where the project has made no app, Celery answers with an empty one of this name.
    return None if app.main == "default" else app
