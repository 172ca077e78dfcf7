"""Pictures of a run: its graph with the status of each step, and its steps over time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.utils.safestring import SafeString, mark_safe

from django_jobs import clock
from django_jobs.admin import formatting
from django_jobs.definitions import drawing, registry
from django_jobs.definitions.dag import DAG
from django_jobs.errors import JobsError
from django_jobs.lifecycle import Kind, StepKind, StepStatus
from django_jobs.models import Job, TaskStatus

#: Steps of a graph that are still drawn.
DRAWN = 300
#: The width of a track, and of the shortest bar that is seen on it.
TRACK, SHORTEST = 1000.0, 4.0


@dataclass(frozen=True)
class Bar:
    """One step on the time axis; numbers are texts, so that no language writes them with a comma."""

    name: str
    depth: int
    status: str
    title: str
    took: str
    x: str
    width: str


def waterfall(job: Job, rows: Iterable[Any]) -> list[Bar]:
    """The started steps of this page, each from its first start to its end or until now."""
    started = [row for row in rows if row.started_at is not None]
    if not started:
        return []
    now = clock.now()
    begin = min(row.started_at for row in started)
    end = max(row.finished_at or now for row in started)
    whole = max((end - begin).total_seconds(), 1e-6)
    depths: dict[str | None, int] = {None: -1}
    bars = []
    for row in started:
        depths[row.step_key] = depth = depths.get(row.parent_key, 0) + 1
        left = TRACK * (row.started_at - begin).total_seconds() / whole
        length = TRACK * ((row.finished_at or now) - row.started_at).total_seconds() / whole
        length = min(max(length, SHORTEST), TRACK)
        took = formatting.span(row.started_at, row.finished_at, running=row.finished_at is None)
        status = str(formatting.STATUS_LABELS.get(row.status, row.status))
        bars.append(
            Bar(
                name=row.step_id, depth=min(depth, 4), status=row.status, took=took,
                title=f"{row.step_id}: {status}, {took}",
                x=f"{min(left, TRACK - length):.1f}", width=f"{length:.1f}",
            )
        )  # fmt: skip
    return bars


@dataclass(frozen=True)
class Graph:
    """The declared graph of a run: the drawing, and the same as rows of a table."""

    svg: SafeString
    rows: list[dict[str, Any]]


def graph(job: Job, alias: str) -> Graph | None:
    """The graph of a run; None where there is none, or no code here that knows it."""
    if job.kind != Kind.DAG:
        return None
    declared = _declared(job)
    if declared is None:
        return None
    nodes = declared.drawn(_statuses(job, alias))
    if len(nodes) > DRAWN:
        return None
    rows = [
        {
            "id": node.id, "status": formatting.badge(node.status or None), "after": ", ".join(node.after),
        }
        for node in nodes
    ]  # fmt: skip
    # Its texts are escaped by the one who draws it.
    return Graph(mark_safe(drawing.svg(nodes, title=job.slug)), rows)


def _declared(job: Job) -> DAG | None:
    if job.spec is not None:
        try:
            return DAG.from_spec(job.spec)
        except JobsError:
            return None
    found: Any = registry.find(job.slug, job.version)
    return found if isinstance(found, DAG) else None


def _statuses(job: Job, alias: str) -> dict[str, str]:
    """Status by step id; a step whose compensation is complete is undone."""
    rows = TaskStatus.objects.using(alias).filter(job_id=job.pk, parent_key=None).order_by("pk")
    statuses: dict[str, str] = {}
    for step_id, kind, status in rows.values_list("step_id", "kind", "status")[: 2 * DRAWN]:
        if kind == StepKind.COMPENSATION:
            if status == StepStatus.COMPLETED:
                statuses[step_id.removeprefix("undo:")] = "undone"
        else:
            statuses[step_id] = status
    return statuses
