"""The one function that changes a job's status, and the history entry that goes with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from django_jobs import jsonvalues
from django_jobs.lifecycle import NEXT, Status
from django_jobs.store.session import Session


def move(
    session: Session,
    job_id: UUID,
    *,
    event: str,
    frm: Iterable[Status],
    to: Status,
    sets: str = "",
    fence: int | None = None,
    where: str = "",
    worker: UUID | None = None,
    actor: str | None = None,
    step: str | None = None,
    attempt: int | None = None,
    detail: Any = None,
    **params: Any,
) -> int:
    """Compare-and-set the status of one job and write the next history entry.

    ``sets`` and ``where`` are further SQL of the engine's own making, with their values in
    ``params``. Returns 1, or 0 when somebody else won: then nothing was written.
    """
    allowed = [
        status for status in frm if to in NEXT[status] or (status == to and not status.is_final)
    ]
    if not allowed:
        return 0
    listed = ", ".join(f"'{status}'" for status in allowed)
    guard = " AND fence = %(seen_fence)s" if fence is not None else ""
    found = session.one(
        f"SELECT status, fence FROM {{job}} WHERE id = %(job)s AND status IN ({listed}){guard}{where} {{lock_rows}}",
        job=job_id, seen_fence=fence, **params,
    )  # fmt: skip
    if found is None:
        return 0
    changes = f", {sets}" if sets else ""
    row = session.one(
        f"UPDATE {{job}} SET status = %(to)s, history_length = history_length + 1{changes} "
        f"WHERE id = %(job)s AND status = %(from)s AND fence = %(found_fence)s{where} "
        "RETURNING history_length, fence",
        job=job_id, to=str(to), found_fence=found[1], **{"from": found[0]}, seen_fence=fence, **params,
    )  # fmt: skip
    if row is None:
        return 0
    add(
        session, job_id, row[0], event=event, frm=Status(found[0]), to=to, fence=row[1],
        worker=worker, actor=actor, step=step, attempt=attempt, detail=detail,
    )  # fmt: skip
    return 1


def move_many(
    session: Session,
    job_ids: Sequence[UUID],
    *,
    event: str,
    frm: Status,
    to: Status,
    sets: str = "",
    actor: str | None = None,
    detail: Any = None,
    **params: Any,
) -> list[UUID]:
    """:func:`move` for jobs of one status whose rows the caller has locked; those that moved."""
    if to not in NEXT[frm]:
        return []
    changes = f", {sets}" if sets else ""
    rows = session.rows(
        f"UPDATE {{job}} SET status = %(to)s, history_length = history_length + 1{changes} "
        "WHERE id {among(ids)} AND status = %(from)s RETURNING id",
        ids=list(job_ids), to=str(to), **{"from": str(frm)}, **params,
    )  # fmt: skip
    moved: list[UUID] = [session.dialect.uuid(row[0]) for row in rows]  # type: ignore[misc]
    if moved:
        session.run(
            "INSERT INTO {historyentry} (job_id, n, at, event, from_status, to_status, fence, actor, detail) "
            "SELECT id, history_length, {now}, %(event)s, %(from)s, %(to)s, fence, %(actor)s, {json(detail)} "
            "FROM {job} WHERE id {among(ids)}",
            ids=moved, event=event, to=str(to), actor=actor,
            detail=None if detail is None else jsonvalues.dumps(detail, what="detail"),
            **{"from": str(frm)},
        )  # fmt: skip
    return moved


def note_many(
    session: Session, details: Mapping[UUID, Any], *, event: str, actor: str | None = None
) -> None:
    """An entry without a change of status for each job of ``details``."""
    if not details:
        return
    rows = session.rows(
        "UPDATE {job} SET history_length = history_length + 1 WHERE id {among(ids)} "
        "RETURNING id, history_length, fence",
        ids=list(details),
    )
    entries = [
        {
            "job": job_id, "n": row[1], "event": event, "fence": row[2], "actor": actor,
            "detail": None if details[job_id] is None else jsonvalues.dumps(details[job_id], what="detail"),
        }
        for row in rows
        if (job_id := session.dialect.uuid(row[0])) is not None
    ]  # fmt: skip
    session.many(
        "INSERT INTO {historyentry} (job_id, n, at, event, fence, actor, detail) "
        "VALUES (%(job)s, %(n)s, {now}, %(event)s, %(fence)s, %(actor)s, {json(detail)})",
        entries,
    )


def add(
    session: Session,
    job_id: UUID,
    number: int,
    *,
    event: str,
    frm: Status | None = None,
    to: Status | None = None,
    fence: int = 0,
    worker: UUID | None = None,
    actor: str | None = None,
    step: str | None = None,
    attempt: int | None = None,
    detail: Any = None,
) -> None:
    """Write entry ``number`` of a job whose ``history_length`` was raised to it in this transaction."""
    session.run(
        "INSERT INTO {historyentry} (job_id, n, at, event, from_status, to_status, step, attempt, fence, worker, "
        "actor, detail) VALUES (%(job)s, %(n)s, {now}, %(event)s, %(from)s, %(to)s, %(step)s, %(attempt)s, "
        "%(fence)s, %(worker)s, %(actor)s, {json(detail)})",
        job=job_id, n=number, event=event, to=None if to is None else str(to), step=step, attempt=attempt,
        fence=fence, worker=worker, actor=actor,
        detail=None if detail is None else jsonvalues.dumps(detail, what="detail"),
        **{"from": None if frm is None else str(frm)},
    )  # fmt: skip


def note(session: Session, job_id: UUID, **entry: Any) -> None:
    """Write an entry that changes no status."""
    row = session.one(
        "UPDATE {job} SET history_length = history_length + 1 WHERE id = %(job)s RETURNING history_length, fence",
        job=job_id,
    )
    if row is not None:
        add(session, job_id, row[0], **{"fence": row[1], **entry})
