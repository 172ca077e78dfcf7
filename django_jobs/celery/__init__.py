"""Celery's workers as runners of jobs; the database stays the truth.

The names are loaded when they are asked for, so that a settings module may import this one, and
that projects without Celery never import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from django_jobs.celery.beat import JobsScheduler, beat_schedule
    from django_jobs.celery.connection import connect, disconnect
    from django_jobs.celery.messages import execute, tick
    from django_jobs.celery.wrapping import from_celery

__all__ = [
    "JobsScheduler",
    "beat_schedule",
    "connect",
    "disconnect",
    "execute",
    "from_celery",
    "tick",
]

_PLACES = {
    "JobsScheduler": "beat",
    "beat_schedule": "intervals",
    "connect": "connection",
    "disconnect": "connection",
    "execute": "messages",
    "from_celery": "wrapping",
    "tick": "messages",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_PLACES[name]}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("celery", "kombu"):
            raise
        raise ConfigurationError(
            f"django_jobs.celery.{name} needs Celery, which is not installed. "
            "Install the extra: pip install 'django-jobs-workflows[celery]'."
        ) from error
    return getattr(module, name)
