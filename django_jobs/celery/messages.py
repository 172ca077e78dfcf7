"""The tasks that Celery's workers know: one that runs a job, and one for beat's ticks."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any
from uuid import UUID

from celery import shared_task, signals
from celery.exceptions import Reject, SoftTimeLimitExceeded

from django_jobs import scheduling
from django_jobs.celery.connection import connect
from django_jobs.celery.intervals import TICK
from django_jobs.celery.publishing import EXECUTE
from django_jobs.outcomes import Completed
from django_jobs.store.outbox import CELERY
from django_jobs.store.session import Session, engine_alias
from django_jobs.worker import relay
from django_jobs.worker.single import Seat
from django_jobs.worker.sweep import sweep

logger = logging.getLogger("django_jobs.celery")

#: What holds for our tasks whatever the app's settings are: JSON, and an acknowledgement only once
#: the outcome is stored. A message that is lost or doubled changes nothing, so none is kept for long.
PINNED: dict[str, Any] = {
    "serializer": "json",
    "Strategy": "django_jobs.celery.strategy:json_only",
    "ignore_result": True,
    "acks_late": True,
    "acks_on_failure_or_timeout": True,
    "reject_on_worker_lost": False,
    "track_started": False,
    "autoretry_for": (),
}

_local = threading.local()
#: The process of a pool in which nothing but one task at a time runs.
_own_process: int | None = None
#: The process that has brought the rows of schedules in step with its code.
_synchronised: int | None = None


@signals.worker_process_init.connect(dispatch_uid="django_jobs.celery", weak=False)
def _begin_process(**kwargs: Any) -> None:
    """A process of the prefork pool begins."""
    global _own_process
    _own_process = os.getpid()


@shared_task(name=EXECUTE, **PINNED)
def execute(job_id: str) -> None:
    """Run exactly this job, if it is due and nothing holds it back; do nothing otherwise."""
    connect()
    try:
        wanted = UUID(job_id)
    except (ValueError, AttributeError, TypeError):
        logger.error("A message names %r, which is no id of a job.", job_id)
        return
    seat = _seat()
    try:
        done = seat.run(wanted)
    except Exception as error:
        if seat.session.dialect.is_lost(error):
            seat.session.reconnect()
            # Nothing was taken: the broker gives the message out again.
            raise Reject(f"the database is lost: {error}", requeue=True) from error
        raise
    if done is not None and not (done[0].plain and isinstance(done[1], Completed)):
        # Others may be due now that nobody was told of: of a freed key, a parent, a child, a retry.
        seat.tell()


@shared_task(name=TICK, **PINNED)
def tick(what: str) -> None:
    """One tick of beat: see :func:`django_jobs.celery.beat_schedule`."""
    connect()
    session = Session(engine_alias())
    match what:
        case "schedules":
            _tick_schedules()
        case "rescue":
            sweep(session)
        case "due" | "outbox":
            relay.relay(session)
        case _:
            logger.error("Beat asks for %r, which is not known here.", what)


def _tick_schedules() -> None:
    """Fire what is due; a process that is new here brings the rows in step with its code first."""
    global _synchronised
    if _synchronised == os.getpid():
        scheduling.tick()
    else:
        scheduling.handle_schedules()
        _synchronised = os.getpid()


def _seat() -> Seat:
    """This thread's place; a forked process makes its own."""
    held: tuple[int, Seat] | None = getattr(_local, "seat", None)
    if held is not None and held[0] == os.getpid():
        return held[1]
    seat = Seat(
        engine_alias(), runner=CELERY, interruptions=(SoftTimeLimitExceeded,),
        end_process=_end_process if _own_process == os.getpid() else None,
    )  # fmt: skip
    _local.seat = (os.getpid(), seat)
    return seat


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
