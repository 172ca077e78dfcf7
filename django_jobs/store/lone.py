"""The record of one run that has a round trip to itself, as a statement of plain values. PostgreSQL.

A run that records step after step sends an end and the next start, one commit each. Reading them
from a list, as the statement for many runs does, costs the database more than writing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from django_jobs.store.steps import COLUMNS, ENDED, UPSERT, StepWrite

#: The end of a step, and the start of the next.
MOST = 2
#: What each record brings of its own, with its type.
OWN = {
    "step_key": "text", "step_id": "text", "slug": "text", "kind": "text", "parent_key": "text", "status": "text",
    "input": "jsonb", "output": "jsonb", "total_tried": "int", "failures": "int", "done_no": "int",
}  # fmt: skip
#: What each record of a row comes to, in the order of COLUMNS.
_SELECTED = (
    "owned.id, v.step_key, v.step_id, v.slug, v.kind, v.parent_key, v.status, v.input, v.output, NULL::jsonb, "
    "v.total_tried, v.failures, owned.fence, %(worker)s::uuid, v.done_no, NULL::timestamptz, NULL::text, NULL::uuid, "
    "NULL::jsonb, {now}, CASE WHEN v.ended THEN {now} END"
)


def fits(steps: Sequence[StepWrite]) -> bool:
    """Whether these are the plain records of one claim, each of another step."""
    if not 0 < len(steps) <= MOST:
        return False
    if len(steps) == MOST and (
        steps[0].claim is not steps[1].claim or steps[0].step_key == steps[1].step_key
    ):
        return False
    return all(
        not step.again
        and step.error is None
        and step.wake_after is None
        and step.wake_at is None
        and step.event_name is None
        and step.child is None
        and step.compensation is None
        for step in steps
    )


def statement(steps: Sequence[StepWrite]) -> tuple[str, dict[str, Any]]:
    """The statement and its parameters; its answer is that of ``RECORD_POSTGRESQL``."""
    claim = steps[0].claim
    params: dict[str, Any] = {"job": claim.job_id, "fence": claim.fence, "worker": claim.worker}
    for number, step in enumerate(steps):
        for name in OWN:
            params[f"{name}_{number}"] = getattr(step, name)
    return _sql(tuple((step.needs, step.status in ENDED) for step in steps)), params


@lru_cache(maxsize=64)
def _sql(shapes: tuple[tuple[str | None, bool], ...]) -> str:
    rows = []
    for number, (needs, ended) in enumerate(shapes):
        wanted = "NULL::text" if needs is None else f"'{needs}'::text"
        values = [f"%({name}_{number})s::{kind}" for name, kind in OWN.items()]
        rows.append(f"({', '.join(values)}, {wanted}, {ended})")
    return f"""
        WITH owned AS MATERIALIZED (
            SELECT id, fence, status FROM {{job}} WHERE id = %(job)s::uuid AND fence = %(fence)s::int
               AND lease_expires_at IS NOT NULL FOR NO KEY UPDATE
        ), written AS (
            INSERT INTO {{taskstatus}} ({COLUMNS})
            SELECT {_SELECTED} FROM owned
             CROSS JOIN (VALUES {", ".join(rows)}) AS v({", ".join(OWN)}, needs, ended)
             WHERE v.needs IS NULL OR owned.status = v.needs
            {UPSERT} WHERE {{taskstatus}}.status <> 'completed'
        )
        SELECT id, fence, status FROM owned
    """
