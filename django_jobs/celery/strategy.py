"""How a Celery worker takes in messages for our tasks: JSON only, whatever else the app accepts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.strategy import default

logger = logging.getLogger("django_jobs.celery")

JSON = "application/json"


def json_only(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """Celery's default strategy for messages of JSON; any other one is refused unread."""
    handle = default(task, app, consumer, **kwargs)

    def handle_json(message: Any, body: Any, ack: Any, reject: Any, *rest: Any, **more: Any) -> Any:
        if message.content_type != JSON:
            logger.error(
                "A message for %s in %r was refused unread.", task.name, message.content_type
            )
            reject(logger, consumer.connection_errors, False)
            return None
        message.accept = {JSON, "json"}
        return handle(message, body, ack, reject, *rest, **more)

    return handle_json
