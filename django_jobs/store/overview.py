"""Looking without changing: what waits, what is held back, when something is due next."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import Min, Q

from django_jobs import clock
from django_jobs.lifecycle import Gate, Status
from django_jobs.models import Job
from django_jobs.models.commands import JobQuerySet


def scope(
    alias: str, queues: list[str] | None, where: Q | None, excluded: list[str] | None = None
) -> JobQuerySet:
    """Jobs of these queues (None = all) that match ``where``."""
    found: Any = Job.objects.using(alias)
    if queues is not None:
        found = found.filter(queue_name__in=queues)
    if excluded:
        found = found.exclude(queue_name__in=excluded)
    if where is not None and where:
        found = found.filter(where)
    return found


def waiting(jobs: JobQuerySet) -> tuple[int, datetime | None]:
    """How many jobs wait for their time, and when the first of them becomes due."""
    not_due = Q(run_after__isnull=True) | Q(run_after__gt=clock.now())
    held = jobs.filter(
        Q(status=Status.SLEEPING) | Q(status=Status.PENDING, gate=Gate.TIMER), not_due
    )
    return held.count(), held.aggregate(first=Min("run_after"))["first"]


def blocked(jobs: JobQuerySet) -> int:
    """How many due jobs are held back by a key, a limit, a pause or missing code."""
    return jobs.filter(status=Status.PENDING).exclude(gate=Gate.TIMER).count()
