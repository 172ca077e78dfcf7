"""Leases: renewing one's own, taking back those of the dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django_jobs.errors import ErrorDict
from django_jobs.lifecycle import AttemptStatus, Kind, Status
from django_jobs.store import endings, history, permits, record, undoing, units
from django_jobs.store.claims import Claim
from django_jobs.store.session import Session
from django_jobs.store.steps import dump_error

HELD = "lease_expires_at IS NOT NULL AND finished_at IS NULL"


def renew(
    session: Session, claims: Sequence[Claim], lease: float, *, patient: bool = True
) -> dict[UUID, str]:
    """Renew the leases of ``claims``; the status of each job still ours by id. The others are lost.

    A lease that expired without a taker is renewed as well. Where the caller is not ``patient``, a
    row that another transaction has locked is left alone: it must not keep the others from being
    renewed in time.
    """
    lock = "{lock_rows}" if patient else "{skip_locked}"
    fences = {claim.job_id: claim.fence for claim in claims}
    rows = session.rows(
        f"SELECT id, fence, status FROM {{job}} {{index(primary)}} WHERE id {{among(ids)}} AND {HELD} ORDER BY id {lock}",
        ids=sorted(fences),
    )
    uuid = session.dialect.uuid
    held = {uuid(row[0]): row[2] for row in rows if fences[uuid(row[0])] == row[1]}  # type: ignore[index]
    ours: dict[UUID, str] = {}
    for claim in claims:
        if claim.held and not permits.renew(session, claim, lease) and claim.job_id in held:
            # Its permit ran out and went to another: whoever sweeps next may take the job back.
            session.run(
                "UPDATE {job} SET lease_expires_at = {after(none)} WHERE id = %(id)s AND fence = %(fence)s",
                id=claim.job_id, fence=claim.fence, none=-1.0,
            )  # fmt: skip
        elif claim.job_id in held:
            ours[claim.job_id] = held[claim.job_id]
    if ours:
        # The rows are locked since their fences were read.
        session.run(
            "UPDATE {job} SET lease_expires_at = {after(lease)} WHERE id {among(ids)}",
            ids=sorted(ours), lease=lease,
        )  # fmt: skip
    return ours


@dataclass(frozen=True, slots=True)
class Standing:
    """Who holds a job now: ``fence`` is None where nobody does."""

    status: str
    fence: int | None
    expired: bool


def standing(session: Session, job_ids: Sequence[UUID]) -> dict[UUID, Standing]:
    """How these jobs stand, whoever holds them."""
    if not job_ids:
        return {}
    rows = session.rows(
        f"SELECT id, status, CASE WHEN {HELD} THEN fence END, CASE WHEN lease_expires_at < {{now}} THEN 1 ELSE 0 END "
        "FROM {job} WHERE id {among(ids)}",
        ids=list(job_ids),
    )  # fmt: skip
    uuid = session.dialect.uuid
    return {uuid(row[0]): Standing(row[1], row[2], bool(row[3])) for row in rows}  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Expired:
    """A job whose holder stopped renewing its lease."""

    job_id: UUID
    fence: int
    status: str
    kind: str
    crashes: int
    worker: UUID | None
    key_hash: str | None
    key_hold: bool


def expired(session: Session, *, limit: int, only: UUID | None = None) -> list[Expired]:
    """Jobs with an expired lease; nothing is decided from this list without a compare-and-set."""
    one = " AND id = %(only)s" if only is not None else ""
    rows = session.rows(
        "SELECT id, fence, status, kind, crashes, worker, key_hash, key_hold FROM {job} "
        f"WHERE lease_expires_at < {{now}}{one} ORDER BY lease_expires_at LIMIT %(limit)s",
        limit=limit, only=only,
    )  # fmt: skip
    uuid = session.dialect.uuid
    return [
        Expired(uuid(row[0]), row[1], row[2], row[3], row[4], uuid(row[5]), row[6], bool(row[7]))  # type: ignore[arg-type]
        for row in rows
    ]


def held_by(session: Session, worker: UUID, limit: int = 10_000) -> list[Expired]:
    """Everything that ``worker`` holds, for its supervisor to take back once it is dead."""
    rows = session.rows(
        "SELECT id, fence, status, kind, crashes, worker, key_hash, key_hold FROM {job} "
        "WHERE lease_expires_at IS NOT NULL AND worker = %(worker)s ORDER BY id LIMIT %(limit)s",
        worker=worker, limit=limit,
    )  # fmt: skip
    uuid = session.dialect.uuid
    return [
        Expired(uuid(row[0]), row[1], row[2], row[3], row[4], uuid(row[5]), row[6], bool(row[7]))  # type: ignore[arg-type]
        for row in rows
    ]


def take_back(
    session: Session,
    job: Expired,
    *,
    message: str,
    crash_limit: int,
    charged: bool = True,
    dead: bool = False,
) -> str | None:
    """Free a job from its dead holder; return what became of it, or None if somebody else was faster.

    ``charged`` counts a crash; at ``crash_limit`` the job fails. ``dead`` says that the holder is
    known to have ended, so that its lease need not have expired.
    """
    where = "" if dead else " AND lease_expires_at < {now}"
    if job.status not in (Status.RUNNING, Status.COMPENSATING):
        return _let_go(session, job, where)
    if not charged:
        moved = record.hand_back(session, job.job_id, job.fence, reason=message, worker=job.worker)
        _free(session, job, final=False)
        return "handed back" if moved else None
    message += _step_in_hand(session, job.job_id)
    error: ErrorDict = {
        "type": "django_jobs.errors.JobsError", "message": message, "traceback": "", "code": "crashed",
    }  # fmt: skip
    fatal = job.crashes + 1 >= crash_limit
    to = _after_crash(session, job, fatal=fatal)
    sets = AFTER_CRASH[to] if fatal else f"{undoing.LETS_GO}, crashes = crashes + 1, gate = 'open'"
    moved = history.move(
        session, job.job_id, event="crashed" if fatal else "taken_back", frm=[Status(job.status)], to=to,
        fence=job.fence, worker=job.worker, where=where, sets=sets, detail={"message": message},
        error=dump_error(error),
    )  # fmt: skip
    if not moved:
        return None
    lost = {**error, "code": "lost"}
    if not record.close_attempt(session, job.job_id, job.fence, AttemptStatus.LOST, lost):
        session.run(
            "INSERT INTO {attempt} (job_id, number, status, error, fence, worker, started_at, finished_at) "
            "SELECT id, attempts + 1, 'lost', {json(error)}, %(fence)s, %(worker)s, started_at, {now} "
            "FROM {job} WHERE id = %(id)s",
            id=job.job_id, error=dump_error(lost), fence=job.fence, worker=job.worker,
        )  # fmt: skip
    if fatal and to == Status.COMPENSATING:
        units.withdraw(session, [job.job_id], canceled=True)
    elif to == Status.COMPENSATION_FAILED:
        undoing.crashed(session, job.job_id, error)
    _free(session, job, final=to.is_final)
    if to.is_final:
        endings.ended(session, [job.job_id])
    return str(to)


#: What the crash that is one too many sets, by the status that the job has then. The error of a run
#: that was being undone stays that of its failure.
AFTER_CRASH = {
    Status.FAILED: f"{undoing.LETS_GO}, crashes = crashes + 1, error = {{json(error)}}, finished_at = {{now}}, "
    "deadline_at = NULL",
    Status.COMPENSATING: f"{undoing.LETS_GO}, error = {{json(error)}}, {undoing.ENTERS}",
    Status.COMPENSATION_FAILED: f"{undoing.LETS_GO}, crashes = crashes + 1, finished_at = {{now}}, run_after = NULL",
}  # fmt: skip


def _after_crash(session: Session, job: Expired, *, fatal: bool) -> Status:
    if job.status == Status.COMPENSATING:
        return Status.COMPENSATION_FAILED if fatal else Status.COMPENSATING
    if not fatal:
        return Status.PENDING
    is_run = job.kind in (Kind.WORKFLOW, Kind.DAG)
    return Status.COMPENSATING if is_run and undoing.is_due(session, job.job_id) else Status.FAILED


def _step_in_hand(session: Session, job_id: UUID) -> str:
    """`` in step …`` for the message of a crash: the step that was started last and has no end."""
    row = session.one(
        "SELECT step_id FROM {taskstatus} WHERE job_id = %(id)s AND status = 'running' ORDER BY id DESC LIMIT 1",
        id=job_id,
    )
    return f" in step {row[0]}" if row else ""


def _let_go(session: Session, job: Expired, where: str) -> str | None:
    """A paused, resumed or canceled job whose holder is gone: only the lease is left to clear."""
    cleared = session.run(
        "UPDATE {job} SET lease_expires_at = NULL, fence = fence + 1 WHERE id = %(id)s AND fence = %(fence)s "
        f"AND status = %(status)s{where}",
        id=job.job_id, fence=job.fence, status=job.status,
    )  # fmt: skip
    if cleared:
        record.close_attempt(session, job.job_id, job.fence, AttemptStatus.LOST, None)
        _free(session, job, final=job.status == Status.CANCELED)
    return "let go" if cleared else None


def _free(session: Session, job: Expired, *, final: bool) -> None:
    if job.key_hold and not final:
        permits.hold(session, job.job_id, job.fence, job.key_hash)
    else:
        permits.release(session, job.job_id, job.fence, job.key_hash)


def status_of(session: Session, claim: Claim) -> str | None:
    """The status of the job if ``claim`` still holds it, else None."""
    row = session.one(
        "SELECT status FROM {job} WHERE id = %(id)s AND fence = %(fence)s",
        id=claim.job_id,
        fence=claim.fence,
    )
    return None if row is None or row[0] == Status.CANCELED else row[0]
