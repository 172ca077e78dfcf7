"""The recorded steps of runs, as a replay reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django_jobs.store.session import Session


@dataclass(slots=True)
class StepRecord:
    """A recorded step as a replay needs it; JSON values are text still."""

    id: int | None
    step_key: str
    step_id: str
    slug: str
    kind: str
    status: str
    input: str | None
    output: str | None
    error: str | None
    total_tried: int
    failures: int
    done_no: int | None
    wake_at: datetime | None
    event_name: str | None
    child: UUID | None
    parent_key: str | None = None
    compensation: str | None = None


#: In the order of StepRecord's fields.
STEP_COLUMNS = (
    "id, step_key, step_id, slug, kind, status, {text(input)}, {text(output)}, {text(error)}, total_tried, failures, "
    "done_no, wake_at, event_name, child, parent_key, {text(compensation)}"
)


def read_steps(session: Session, job_ids: Sequence[UUID]) -> dict[UUID, list[StepRecord]]:
    """All step records of these runs, in order of first start."""
    return _records(session, "job_id {among(ids)}", ids=list(job_ids))


def read_records(session: Session, run_id: UUID, where: str, **params: Any) -> list[StepRecord]:
    """The records of one run under this condition, in order of first start."""
    found = _records(session, f"job_id = %(run)s AND {where}", run=run_id, **params)
    return found.get(run_id, [])


def _records(session: Session, where: str, **params: Any) -> dict[UUID, list[StepRecord]]:
    rows = session.rows(
        f"SELECT job_id, {STEP_COLUMNS} FROM {{taskstatus}} WHERE {where} ORDER BY id", **params
    )
    time, uuid = session.dialect.time, session.dialect.uuid
    found: dict[UUID, list[StepRecord]] = {}
    for job_id, *row in rows:
        row[12], row[14] = time(row[12]), uuid(row[14])
        found.setdefault(uuid(job_id), []).append(StepRecord(*row))  # type: ignore[arg-type]
    return found
