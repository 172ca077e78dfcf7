"""What the engine announces, always after commit. A receiver that raises harms nobody.

``sender`` is the model class; ``job=`` comes with every job signal, and further keywords as the
reference lists them.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

logger = logging.getLogger("django_jobs")

job_enqueued = Signal()
job_started = Signal()
job_retrying = Signal()
job_sleeping = Signal()
job_paused = Signal()
job_resumed = Signal()
job_completed = Signal()
job_failed = Signal()
job_canceled = Signal()
step_completed = Signal()
step_failed = Signal()
step_skipped = Signal()
run_compensating = Signal()
run_compensated = Signal()
run_compensation_failed = Signal()
schedule_fired = Signal()
schedule_missed = Signal()
worker_started = Signal()
worker_stopped = Signal()
worker_lost = Signal()


def announce(signal: Signal, sender: Any, **details: Any) -> None:
    """Send ``signal``; errors of its receivers are logged, never raised."""
    for receiver, answer in signal.send_robust(sender, **details):
        if isinstance(answer, Exception):
            logger.error("Signal receiver %r raised.", receiver, exc_info=answer)
