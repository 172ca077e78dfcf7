"""Runs that are being undone: how they begin, change hands and end.

A run that fails in the hands of its driver stays with that claim while it is undone. Whatever else ends
a run that has something to undo, be it its time limit, the crash limit or a cancel, leaves it to whoever
takes it here. Such runs are few, and no claim of ordinary jobs looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django_jobs import conf
from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import Status
from django_jobs.outcomes import Compensated, CompensationFailed, Failed, Undoing
from django_jobs.store import admission, history, jobs, permits, units
from django_jobs.store.claimable import UNDOABLE, UNHELD
from django_jobs.store.claims import RETURNED, Claim, claim_of, with_steps
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer, dump_error

#: What a run loses when it begins to be undone: its time limit, and the crashes of the way there.
ENTERS = "crashes = 0, deadline_at = NULL, run_after = NULL, gate = 'open'"
#: Nobody holds it any more, and who did writes nothing more.
LETS_GO = "lease_expires_at = NULL, fence = fence + 1"
#: Rows that one look at runs to be undone reads at most.
PAGE = 1_000


@dataclass(slots=True)
class BeginUndo:
    """The run of this claim has failed and undoes its completed steps; the claim goes on."""

    claim: Claim
    error: ErrorDict


def is_due(session: Session, job_id: UUID) -> bool:
    """Whether the run has completed steps that are to be undone when it fails, by what is recorded."""
    row = session.one(
        "SELECT 1 FROM {taskstatus} WHERE job_id = %(job)s AND status = 'completed' "
        "AND compensation IS NOT NULL LIMIT 1",
        job=job_id,
    )
    return row is not None


def with_completed_steps(session: Session, job_ids: Sequence[UUID]) -> set[UUID]:
    """Those of these jobs that are runs of which a step has completed."""
    rows = session.rows(
        "SELECT id FROM {job} WHERE id {among(ids)} AND kind IN ('workflow', 'dag') AND EXISTS (SELECT 1 "
        "FROM {taskstatus} s WHERE s.job_id = {job}.id AND s.status = 'completed' AND s.step_id <> '')",
        ids=list(job_ids),
    )
    return {session.dialect.uuid(row[0]) for row in rows}  # type: ignore[misc]


# --- beginning --------------------------------------------------------------------------------


def begin(session: Session, item: BeginUndo) -> Answer:
    """running → compensating under the same fence and lease. The run's row is locked and ours.

    "paused" says that it does not run any more, and that nothing was written.
    """
    if not _enter(session, item.claim, item.error, counted=True, sets=ENTERS):
        return "paused"
    _close_forward_steps(session, [item.claim.job_id])
    return "written"


def fall(session: Session, claim: Claim, outcome: Failed) -> None:
    """running → compensating, held by nobody: this claim of the run is over."""
    _enter(session, claim, outcome.error, counted=outcome.counted, sets=f"{ENTERS}, {LETS_GO}")
    follow(session, [claim.job_id], [claim.queue_name])


def _enter(session: Session, claim: Claim, error: ErrorDict, *, counted: bool, sets: str) -> int:
    return history.move(
        session, claim.job_id, event="compensating", frm=[Status.RUNNING], to=Status.COMPENSATING,
        fence=claim.fence, worker=claim.worker, attempt=claim.attempts + 1,
        sets=f"error = {{json(error)}}, attempts = attempts + {int(counted)}, {sets}",
        detail={"error": _brief(error), "counted": int(counted)}, error=dump_error(error),
    )  # fmt: skip


def follow(session: Session, run_ids: Sequence[UUID], queue_names: Iterable[str]) -> None:
    """These runs are to be undone by whoever takes them: nothing of them starts, and somebody is told."""
    units.withdraw(session, run_ids, canceled=True)
    if conf.get().notify:
        for name in sorted(set(queue_names)):
            jobs.wake(session, name)


def _close_forward_steps(session: Session, run_ids: Sequence[UUID]) -> None:
    """What has not ended by now never will: no forward step starts after the first undo."""
    session.run(
        "UPDATE {taskstatus} SET status = 'canceled', finished_at = {now} WHERE job_id {among(ids)} "
        "AND kind <> 'compensation' AND substr(step_id, 1, 5) <> 'undo:' "
        "AND status IN ('pending', 'running', 'sleeping')",
        ids=list(run_ids),
    )


# --- the end of a claim -----------------------------------------------------------------------


def end(session: Session, claim: Claim, outcome: Compensated | CompensationFailed) -> None:
    """compensating → compensated or compensation_failed; the original error stays."""
    failed = isinstance(outcome, CompensationFailed)
    history.move(
        session, claim.job_id, event="compensation_failed" if failed else "compensated",
        frm=[Status.COMPENSATING], to=Status.COMPENSATION_FAILED if failed else Status.COMPENSATED,
        fence=claim.fence, worker=claim.worker,
        sets="finished_at = {now}, lease_expires_at = NULL, deadline_at = NULL, run_after = NULL",
        detail={"error": _brief(outcome.error)} if isinstance(outcome, CompensationFailed) else None,
    )  # fmt: skip


def let_go(session: Session, claim: Claim, outcome: Undoing) -> None:
    """Nobody holds the run until a compensation is tried again, or somebody takes over."""
    when = "NULL" if outcome.delay is None else "{after(delay)}"
    history.move(
        session, claim.job_id, event="handed_back", frm=[Status.COMPENSATING], to=Status.COMPENSATING,
        fence=claim.fence, worker=claim.worker, detail={"reason": outcome.reason, "counted": 0},
        sets=f"{LETS_GO}, run_after = {when}", delay=outcome.delay,
    )  # fmt: skip


def crashed(session: Session, job_id: UUID, error: ErrorDict) -> None:
    """The compensation in hand has killed its workers too often: it has failed for good."""
    session.run(
        "UPDATE {taskstatus} SET status = 'failed', error = {json(error)}, failures = failures + 1, "
        "finished_at = {now} WHERE job_id = %(job)s AND kind = 'compensation' AND status = 'running'",
        job=job_id, error=dump_error(error),
    )  # fmt: skip


# --- taking -----------------------------------------------------------------------------------


def take(
    session: Session,
    codes: Iterable[tuple[str, str | None]],
    *,
    worker: UUID,
    limit: int,
    lease: float,
    queues: Sequence[str] | None = None,
    excluded: Sequence[str] = (),
    among: Sequence[UUID] | None = None,
) -> list[Claim]:
    """Take runs that nobody holds and that are to be undone, of code that is known here.

    Not those of a paused queue or task, and none whose units still finish a step. A run takes the
    permits that it would take to go on.
    """
    known = set(codes)
    within = "" if among is None else " AND id {among(ids)}"
    rows = session.rows(
        f"SELECT id, slug, version, queue_name FROM {{job}} WHERE {UNDOABLE}{within} AND slug {{among(slugs)}} "
        "ORDER BY id LIMIT %(page)s {skip_locked}",
        ids=list(among or ()), slugs=sorted({slug for slug, _ in known}), page=PAGE,
    )  # fmt: skip
    uuid = session.dialect.uuid
    wanted = [
        job_id
        for row in rows
        if (job_id := uuid(row[0])) is not None
        and (row[1], row[2]) in known
        and (queues is None or row[3] in queues)
        and row[3] not in excluded
    ][:limit]
    if not wanted:
        return []
    admitted = admission.admit(session, wanted, lease=lease)
    claims = [
        claim for job_id in admitted.held for claim in _take_one(session, job_id, worker, lease)
    ]
    for claim in claims:
        claim.held = admitted.held.pop(claim.job_id)
    for job_id, held in admitted.held.items():
        if held:
            permits.give_back(session, job_id)
    if claims:
        _close_forward_steps(session, [claim.job_id for claim in claims])
    return with_steps(session, claims)


def _take_one(session: Session, job_id: UUID, worker: UUID, lease: float) -> list[Claim]:
    found = session.rows(
        "UPDATE {job} SET worker = %(worker)s, lease_expires_at = {after(lease)}, "
        "history_length = history_length + 1, fence = fence + 1 "
        f"WHERE id = %(id)s AND {UNHELD} RETURNING {RETURNED}",
        id=job_id, worker=worker, lease=lease,
    )  # fmt: skip
    claims = [claim_of(session, row, worker) for row in found]
    for claim in claims:
        claim.is_undoing = True
        history.add(
            session, claim.job_id, claim.order[3], event="claimed", frm=Status.COMPENSATING,
            to=Status.COMPENSATING, fence=claim.fence, worker=worker,
        )  # fmt: skip
    return claims


def seconds_to_next(session: Session) -> float | None:
    """How long until the next compensation is tried again; None if none waits for that."""
    row = session.one(
        "SELECT MIN(run_after), {now} FROM {job} WHERE status = 'compensating' AND lease_expires_at IS NULL "
        "AND run_after > {now}"
    )
    if row is None or row[0] is None:
        return None
    first, present = session.dialect.time(row[0]), session.dialect.time(row[1])
    assert first is not None and present is not None
    return max((first - present).total_seconds(), 0.0)


def _brief(error: ErrorDict) -> dict[str, Any]:
    return {
        key: error.get(key) for key in ("type", "message", "code") if error.get(key) is not None
    }
