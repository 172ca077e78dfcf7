"""The tries of a job and of its steps, each with what it logged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import F, QuerySet

from django_jobs.models import Attempt, LogLine


def of_job(alias: str, job_id: Any) -> QuerySet[Attempt]:
    """The tries, with the names of their steps."""
    found: Any = Attempt.objects.using(alias).filter(job_id=job_id)
    return found.annotate(
        step_slug=F("step__slug"), step_name=F("step__step_id"), key_of_step=F("step__step_key")
    )


def share_out(
    rows: Iterable[Any], lines: Iterable[LogLine]
) -> tuple[dict[int, list[LogLine]], list[LogLine]]:
    """The log lines of each of these tries by its id, and those of none: of a first try that went through.

    A line bears the fence of its claim and the key of its step. One of a step whose try has no row
    belongs to the job's own try under that fence.
    """
    by_place: dict[tuple[int, str | None], list[Any]] = {}
    for row in rows:
        by_place.setdefault((row.fence, row.key_of_step), []).append(row)
    shared: dict[int, list[LogLine]] = {}
    rest: list[LogLine] = []
    for line in lines:
        candidates = by_place.get((line.fence, line.step_key)) or by_place.get((line.fence, None))
        if not candidates:
            rest.append(line)
            continue
        shared.setdefault(_begun_last(candidates, line).pk, []).append(line)
    return shared, rest


def _begun_last(candidates: list[Any], line: LogLine) -> Any:
    """Of the tries under one fence, the last that had begun when the line was written."""
    begun = [row for row in candidates if row.started_at is None or row.started_at <= line.at]
    return max(begun or candidates, key=lambda row: row.pk)
