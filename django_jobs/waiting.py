"""Waiting for a job's end."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from django_jobs import clock
from django_jobs.definitions import registry
from django_jobs.definitions.options import seconds
from django_jobs.errors import ConfigurationError, JobCanceled, JobFailed, WaitTimeout
from django_jobs.lifecycle import Status
from django_jobs.models import Job

FIRST_LOOK, LONGEST_PAUSE = 0.005, 0.25


def result(job: Job, timeout: float | timedelta | None = None) -> Any:
    """See :meth:`Job.result`."""
    limit = None if timeout is None else clock.monotonic() + seconds(timeout, "timeout")
    pause = FIRST_LOOK
    while True:
        job.refresh_from_db()
        if Status(job.status).is_final:
            return _output(job)
        _refuse_in_transaction(job)
        if limit is not None and clock.monotonic() >= limit:
            raise _timed_out(job, timeout)
        time.sleep(pause if limit is None else min(pause, max(limit - clock.monotonic(), 0)))
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def aresult(job: Job, timeout: float | timedelta | None = None) -> Any:
    """See :meth:`Job.aresult`."""
    limit = None if timeout is None else clock.monotonic() + seconds(timeout, "timeout")
    pause = FIRST_LOOK
    while True:
        await job.arefresh_from_db()
        if Status(job.status).is_final:
            return await sync_to_async(_output)(job)
        if limit is not None and clock.monotonic() >= limit:
            raise _timed_out(job, timeout)
        await asyncio.sleep(
            pause if limit is None else min(pause, max(limit - clock.monotonic(), 0))
        )
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _output(job: Job) -> Any:
    if job.status == Status.CANCELED:
        raise JobCanceled(f"Job {job.pk} of {job.slug!r} was canceled: {_message(job)}", job.error)
    if job.status != Status.COMPLETED:
        raise JobFailed(f"Job {job.pk} of {job.slug!r} {job.status}: {_message(job)}", job.error)
    definition = registry.find(job.slug, job.version)
    return job.output if definition is None else definition.schema.load_output(job.output)


def _message(job: Job) -> str:
    return str((job.error or {}).get("message", ""))


def _refuse_in_transaction(job: Job) -> None:
    if connections[job._state.db or "default"].in_atomic_block:
        raise ConfigurationError(
            f"Job {job.pk} is {job.status}, and within a transaction its end cannot be seen. Wait after "
            "the commit, or in a test run the jobs first: django_jobs.testing.drain()."
        )


def _timed_out(job: Job, timeout: Any) -> WaitTimeout:
    return WaitTimeout(
        f"Job {job.pk} of {job.slug!r} is {job.status} after waiting {timeout} s. job.explain() says why; "
        "a job runs where a worker does: manage.py runjobs."
    )
