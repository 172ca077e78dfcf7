"""Records of steps: many in one statement, each only under its own fence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from django_jobs import clock, jsonvalues
from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import FINAL_STEPS, AttemptStatus, StepStatus
from django_jobs.store.claims import Claim
from django_jobs.store.dialects.mysql import conditional, numbered, portions
from django_jobs.store.session import Session

Answer = Literal["written", "paused", "lost", "undoing"]
ANY_SIZE = 1 << 30


@dataclass(slots=True)
class StepWrite:
    """The start or the end of a step."""

    claim: Claim
    step_key: str
    step_id: str
    slug: str
    kind: str
    status: StepStatus
    input: str | None = None
    output: str | None = None
    error: ErrorDict | None = None
    total_tried: int = 0
    failures: int = 0
    done_no: int | None = None
    wake_after: float | None = None
    wake_at: datetime | None = None
    event_name: str | None = None
    child: UUID | None = None
    parent_key: str | None = None
    again: bool = False
    #: What undoes the step, as JSON text, where a failed run is to undo it.
    compensation: str | None = None

    @property
    def starts(self) -> bool:
        return self.status in (StepStatus.RUNNING, StepStatus.SLEEPING)

    @property
    def needs(self) -> str | None:
        """The status that its job must have: none to be recorded, that of its claim to be started."""
        return str(self.claim.drives_in) if self.starts else None


#: Columns of a record as one list of values; see :func:`_values`.
FIELDS = (
    "job uuid", "fence int", "needs text", "step_key text", "step_id text", "slug text", "kind text",
    "parent_key text", "status text", "input text", "output text", "error text", "total_tried int", "failures int",
    "worker uuid", "done_no int", "wake_after float8", "wake_at timestamptz", "event_name text", "child uuid",
    "ended bool", "again bool", "compensation text",
)  # fmt: skip
ENDED = FINAL_STEPS


#: The statuses of jobs by id and the fence that they still have.
Statuses = dict[tuple[UUID, int], str]


def write_steps(session: Session, steps: Sequence[StepWrite]) -> list[Answer]:
    """Write starts and ends of steps; one answer each.

    "paused" says of a start that the job is no longer to be driven, "lost" that the fence is not
    ours any more: then nothing of that step was written.
    """
    if not steps:
        return []
    statuses = _write_listed(session, steps)
    for step in steps:
        if step.error is not None and answer(step, statuses) == "written":
            note_failed_try(session, step, step.claim.job_id)
    return [answer(step, statuses) for step in steps]


def statuses_of(rows: Iterable[tuple[Any, ...]]) -> Statuses:
    """What RECORD_POSTGRESQL returned."""
    return {(job_id, fence): status for job_id, fence, status in rows}


def answer(step: StepWrite, statuses: Statuses) -> Answer:
    """What became of ``step``, by the statuses of the jobs that are still ours."""
    status = statuses.get((step.claim.job_id, step.claim.fence))
    if status is None:
        return "lost"
    return "written" if step.needs in (None, status) else "paused"


def _write_listed(session: Session, steps: Sequence[StepWrite]) -> Statuses:
    uuid = session.dialect.uuid
    if session.vendor == "postgresql":
        return statuses_of(session.rows(RECORD_POSTGRESQL, **listed_params(steps)))
    if session.vendor == "mysql":
        return _write_rows(session, steps)
    rows = session.rows(OWNED_SQLITE, **listed_params(steps))
    ours = {(uuid(job_id), fence): status for job_id, fence, status in rows}
    written = [step for step in _last_of_each(steps) if answer(step, ours) == "written"]  # type: ignore[arg-type]
    if written:
        params = listed_params(written)
        session.run(RECORD_SQLITE, **params, **_moments(session, written))
    return ours  # type: ignore[return-value]


def _write_rows(session: Session, steps: Sequence[StepWrite]) -> Statuses:
    """MySQL: lock the jobs, then write the steps of those that are ours."""
    uuid = session.dialect.uuid
    rows = session.rows(
        "SELECT id, fence, status FROM {job} {index(primary)} WHERE id {among(ids)} AND lease_expires_at IS NOT NULL FOR UPDATE",
        ids=list({step.claim.job_id for step in steps}),
    )  # fmt: skip
    found = {(uuid(job_id), fence): status for job_id, fence, status in rows}
    ours: Statuses = {key: status for key, status in found.items() if key[0] is not None}  # type: ignore[misc]
    written = [step for step in _last_of_each(steps) if answer(step, ours) == "written"]
    for again in (False, True):
        same = [
            {**_values(step), "wake_moment": step.wake_at}
            for step in written
            if step.again == again
        ]
        for portion in portions(same):
            values = ", ".join(numbered(ROW_MYSQL, n) for n in range(len(portion)))
            bound = {
                f"{name}_{n}": value for n, one in enumerate(portion) for name, value in one.items()
            }
            session.run(
                f"INSERT INTO {{taskstatus}} ({COLUMNS}) VALUES {values} "
                f"ON DUPLICATE KEY UPDATE {UPSERT_MYSQL['TRUE' if again else NOT_COMPLETED]}",
                **bound,
            )
    return ours


def listed_params(steps: Sequence[StepWrite]) -> dict[str, Any]:
    listed = [_values(step) for step in _last_of_each(steps)]
    return {"listed": jsonvalues.dumps(listed, what="steps", limit=ANY_SIZE)}


def _last_of_each(steps: Sequence[StepWrite]) -> list[StepWrite]:
    """One statement writes a row once: the end of a step stands for its start as well."""
    keyed = {(step.claim.job_id, step.claim.fence, step.step_key): step for step in steps}
    return list(keyed.values())


def _values(step: StepWrite) -> dict[str, Any]:
    claim = step.claim
    return {
        "job": claim.job_id.hex, "fence": claim.fence, "needs": step.needs, "step_key": step.step_key,
        "step_id": step.step_id, "slug": step.slug, "kind": str(step.kind), "parent_key": step.parent_key,
        "status": str(step.status), "input": step.input, "output": step.output, "error": dump_error(step.error),
        "total_tried": step.total_tried, "failures": step.failures, "worker": claim.worker.hex,
        "done_no": step.done_no, "wake_after": step.wake_after,
        "wake_at": None if step.wake_at is None else step.wake_at.isoformat(), "event_name": step.event_name,
        "child": None if step.child is None else step.child.hex, "ended": step.status in ENDED, "again": step.again,
        "compensation": step.compensation,
    }  # fmt: skip


COLUMNS = (
    "job_id, step_key, step_id, slug, kind, parent_key, status, input, output, error, total_tried, failures, fence, "
    "worker, done_no, wake_at, event_name, child, compensation, started_at, finished_at"
)
# A completed record is written once; only a step that asked to run anew replaces it.
UPSERT = """
    ON CONFLICT (job_id, step_key) DO UPDATE SET status = excluded.status, input = excluded.input,
        output = excluded.output, error = excluded.error, total_tried = excluded.total_tried,
        failures = excluded.failures, fence = excluded.fence, worker = excluded.worker, done_no = excluded.done_no,
        wake_at = COALESCE(excluded.wake_at, {taskstatus}.wake_at), event_name = excluded.event_name,
        child = COALESCE(excluded.child, {taskstatus}.child), finished_at = excluded.finished_at,
        compensation = COALESCE(excluded.compensation, {taskstatus}.compensation)
"""

# The rows are locked by key: see claims.TAKE_DIRECT on why this is no join.
RECORD_POSTGRESQL = f"""
    WITH v AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(%(listed)s::jsonb) AS r({", ".join(FIELDS)})
    ), owned AS MATERIALIZED (
        SELECT {{job}}.id, {{job}}.fence, {{job}}.status FROM {{job}}
         WHERE {{job}}.id = ANY (ARRAY(SELECT v.job FROM v ORDER BY v.job))
           AND ({{job}}.id, {{job}}.fence) IN (SELECT v.job, v.fence FROM v)
           AND {{job}}.lease_expires_at IS NOT NULL FOR NO KEY UPDATE
    ), written AS (
        INSERT INTO {{taskstatus}} ({COLUMNS})
        SELECT v.job, v.step_key, v.step_id, v.slug, v.kind, v.parent_key, v.status, v.input::jsonb, v.output::jsonb,
               v.error::jsonb, v.total_tried, v.failures, v.fence, v.worker, v.done_no,
               COALESCE(v.wake_at, {{now}} + v.wake_after * interval '1 second'), v.event_name, v.child,
               v.compensation::jsonb, {{now}},
               CASE WHEN v.ended THEN {{now}} END
          FROM v JOIN owned ON owned.id = v.job AND owned.fence = v.fence
         WHERE v.needs IS NULL OR owned.status = v.needs
        {UPSERT} WHERE {{taskstatus}}.status <> 'completed'
            OR EXISTS (SELECT 1 FROM v w WHERE w.again AND w.job = excluded.job_id AND w.step_key = excluded.step_key)
    )
    SELECT id, fence, status FROM owned
"""


def _field(name: str) -> str:
    return f"json_extract(r.value, '$.{name}')"


OWNED_SQLITE = f"""
    SELECT {{job}}.id, {{job}}.fence, {{job}}.status FROM json_each(%(listed)s) r
      JOIN {{job}} ON {{job}}.id = {_field("job")} AND {{job}}.fence = {_field("fence")}
     WHERE {{job}}.lease_expires_at IS NOT NULL
"""
RECORD_SQLITE = f"""
    INSERT INTO {{taskstatus}} ({COLUMNS})
    SELECT {_field("job")}, {_field("step_key")}, {_field("step_id")}, {_field("slug")}, {_field("kind")},
           {_field("parent_key")}, {_field("status")}, {_field("input")}, {_field("output")}, {_field("error")},
           {_field("total_tried")}, {_field("failures")}, {_field("fence")}, {_field("worker")}, {_field("done_no")},
           json_extract(%(wake)s, '$.' || {_field("job")} || {_field("step_key")}), {_field("event_name")},
           {_field("child")}, {_field("compensation")}, {{now}}, CASE WHEN {_field("ended")} THEN {{now}} END
      FROM json_each(%(listed)s) r WHERE true
    {UPSERT} WHERE {{taskstatus}}.status <> 'completed' OR EXISTS (
        SELECT 1 FROM json_each(%(listed)s) r WHERE {_field("again")} AND {_field("job")} = excluded.job_id
           AND {_field("step_key")} = excluded.step_key)
"""


NOT_COMPLETED = "{taskstatus}.status <> 'completed'"
_SETS = UPSERT.partition("DO UPDATE SET ")[2]
UPSERT_MYSQL = {
    condition: conditional(_SETS, condition, last="status") for condition in (NOT_COMPLETED, "TRUE")
}
ROW_MYSQL = (
    "(%(job)s, %(step_key)s, %(step_id)s, %(slug)s, %(kind)s, %(parent_key)s, %(status)s, {json(input)}, "
    "{json(output)}, {json(error)}, %(total_tried)s, %(failures)s, %(fence)s, %(worker)s, %(done_no)s, "
    "COALESCE({moment(wake_moment)}, {after(wake_after)}), %(event_name)s, %(child)s, {json(compensation)}, {now}, "
    "CASE WHEN %(ended)s THEN {now} END)"
)


def _moments(session: Session, steps: Sequence[StepWrite]) -> dict[str, Any]:
    """SQLite has no clock of its own: the wake-up moments as it stores them."""
    present = clock.now()
    wake = {
        f"{step.claim.job_id.hex}{step.step_key}": session.dialect.encode(
            step.wake_at
            if step.wake_after is None
            else present + timedelta(seconds=step.wake_after)
        )
        for step in steps
        if step.wake_at is not None or step.wake_after is not None
    }
    return {"wake": jsonvalues.dumps(wake, what="moments", limit=ANY_SIZE)}


def note_failed_try(session: Session, step: StepWrite, job_id: UUID) -> None:
    """The row of a failed try of a step in the records of ``job_id``."""
    session.run(
        "INSERT INTO {attempt} (job_id, step_id, number, status, error, fence, worker, finished_at) "
        "SELECT %(job)s, s.id, %(number)s, %(status)s, {json(error)}, %(fence)s, %(worker)s, {now} "
        "FROM {taskstatus} s WHERE s.job_id = %(job)s AND s.step_key = %(step_key)s "
        # Once, also where the answer to an earlier COMMIT of this was lost.
        "AND NOT EXISTS (SELECT 1 FROM {attempt} a WHERE a.job_id = %(job)s AND a.step_id = s.id "
        "AND a.number = %(number)s AND a.fence = %(fence)s)",
        job=job_id, step_key=step.step_key, number=step.total_tried,
        status=str(AttemptStatus.FAILED), error=dump_error(step.error), fence=step.claim.fence,
        worker=step.claim.worker,
    )  # fmt: skip


def dump_error(error: ErrorDict | None) -> str | None:
    return None if error is None else jsonvalues.dumps(error, what="error")
