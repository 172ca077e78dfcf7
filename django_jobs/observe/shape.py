"""The status of a job as callers get it: one JSON object, with its steps."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django_jobs.definitions import registry
from django_jobs.definitions.dag import DAG
from django_jobs.definitions.graph import Graph
from django_jobs.lifecycle import Kind, StepKind, StepStatus
from django_jobs.models import Job, TaskStatus

#: Steps that are begun and have not ended.
CURRENT = frozenset({StepStatus.RUNNING, StepStatus.SLEEPING})


def as_dict(job: Job) -> dict[str, Any]:
    """The shape of :meth:`Job.as_dict`. Steps of a graph come in order of declaration, those that have
    not begun included; of a code workflow in order of first start."""
    graph = _graph(job)
    known = TaskStatus.objects.using(job._state.db).filter(job_id=job.pk)
    records = list(known.exclude(step_id="").order_by("id"))
    steps = [_step(record) for record in records]
    if graph is not None:
        steps = _in_order(graph, records)
    results = {
        step["id"]: step["output"]
        for step in steps
        if step["status"] == StepStatus.COMPLETED and _is_result(step, graph)
    }
    return {
        "id": str(job.pk), "slug": job.slug, "kind": str(job.kind), "version": job.version, "status": str(job.status),
        "created_at": _time(job.created_at), "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "current_steps": _named(steps, CURRENT), "completed_steps": _named(steps, {StepStatus.COMPLETED}),
        "failed_steps": _named(steps, {StepStatus.FAILED}), "skipped_steps": _named(steps, {StepStatus.SKIPPED}),
        "context": job.context, "input": job.input, "output": job.output, "results": results, "error": job.error,
        "steps": steps,
    }  # fmt: skip


def _is_result(step: dict[str, Any], graph: Graph | None) -> bool:
    return step["kind"] != StepKind.COMPENSATION if graph is None else step["id"] in graph.steps


def _graph(job: Job) -> Graph | None:
    if job.kind != Kind.DAG:
        return None
    definition = registry.find(job.slug, job.version)
    return definition.check() if isinstance(definition, DAG) else None


def _in_order(graph: Graph, records: list[TaskStatus]) -> list[dict[str, Any]]:
    """Each declared step, then the items of maps, nested steps and compensations as they began."""
    known = {record.step_key: record for record in records}
    declared = [
        _step(known.pop(graph.keys[step.id]))
        if graph.keys[step.id] in known
        else _not_begun(step.id, step.slug, step.kind)
        for step in graph.steps.values()
    ]
    return declared + [_step(record) for record in known.values()]


def _step(record: TaskStatus) -> dict[str, Any]:
    began = record.total_tried or record.status in CURRENT or record.status == StepStatus.COMPLETED
    return {
        "id": record.step_id, "slug": record.slug, "kind": str(record.kind), "status": str(record.status),
        "started_at": _time(record.started_at) if began else None, "finished_at": _time(record.finished_at),
        "attempts": record.total_tried, "output": record.output, "error": record.error,
    }  # fmt: skip


def _not_begun(step_id: str, slug: str, kind: StepKind) -> dict[str, Any]:
    return {
        "id": step_id, "slug": slug, "kind": str(kind), "status": str(StepStatus.PENDING), "started_at": None,
        "finished_at": None, "attempts": 0, "output": None, "error": None,
    }  # fmt: skip


def _named(steps: list[dict[str, Any]], statuses: Any) -> list[str]:
    return [step["id"] for step in steps if step["status"] in statuses]


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
