"""What is promised to be sent: written with the change it tells of, sent after that is committed.

A message is taken under a lease, so that many processes may send at the same time; one that dies
while sending leaves a message that the next one sends again. Whoever receives must bear doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from django_jobs import jsonvalues
from django_jobs.errors import ErrorDict
from django_jobs.store.claimable import CLAIMABLE, NOT_PAUSED, UNDOABLE
from django_jobs.store.session import Session

#: Kind of the messages that tell Celery's workers of a job.
CELERY = "celery"


@dataclass(frozen=True, slots=True)
class Message:
    """A promise to send; ``body`` is JSON text, ``tries`` counts those before this one."""

    id: int
    kind: str
    job_id: UUID | None
    target: str
    body: str | None
    tries: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a message.

    ``sent``: it is done. ``again``: due once more in ``delay`` seconds, after an error or, without
    one, because what was sent may get lost. ``dropped``: there is nothing to send any more.
    ``failed``: it will never be sent.
    """

    message: Message
    end: Literal["sent", "again", "dropped", "failed"]
    delay: float = 0.0
    error: ErrorDict | None = None


#: The values of a new message, for a statement that writes it along with its job ``id``.
NEW_MESSAGE = (
    "INSERT INTO {outboxmessage} (kind, job_id, target, status, tries, next_try_at, created_at) "
    "VALUES (%(promise)s, %(id)s, '', 'pending', 0, {after(head_start)}, {now})"
)


def promise(
    session: Session, kind: str, job_ids: Sequence[UUID], *, head_start: float = 0.0
) -> None:
    """Write a message for each job; nobody but its writer sends it for ``head_start`` seconds."""
    session.many(
        NEW_MESSAGE,
        [{"promise": kind, "id": job_id, "head_start": head_start} for job_id in job_ids],
    )


def take(session: Session, kinds: Sequence[str], *, limit: int, lease: float) -> list[Message]:
    """Up to ``limit`` messages that are due, nobody else's for ``lease`` seconds. One transaction."""
    rows = session.rows(
        "SELECT id, kind, job_id, target, {text(body)}, tries FROM {outboxmessage} "
        "WHERE status = 'pending' AND next_try_at <= {now} AND kind {among(kinds)} "
        "AND (lease_expires_at IS NULL OR lease_expires_at < {now}) "
        "ORDER BY next_try_at LIMIT %(limit)s {skip_locked}",
        kinds=list(kinds), limit=limit,
    )  # fmt: skip
    if rows:
        session.run(
            "UPDATE {outboxmessage} SET lease_expires_at = {after(lease)} WHERE id {among(ids)}",
            ids=[row[0] for row in rows], lease=lease,
        )  # fmt: skip
    uuid = session.dialect.uuid
    return [Message(row[0], row[1], uuid(row[2]), *row[3:]) for row in rows]


def settle(session: Session, deliveries: Sequence[Delivery]) -> None:
    """Write what became of messages; one that is gone meanwhile is nobody's any more."""
    dropped = [one.message.id for one in deliveries if one.end == "dropped"]
    if dropped:
        session.run("DELETE FROM {outboxmessage} WHERE id {among(ids)}", ids=dropped)
    for one in deliveries:
        if one.end == "dropped":
            continue
        sent = one.end == "sent" or (one.end == "again" and one.error is None)
        session.run(
            "UPDATE {outboxmessage} SET status = %(status)s, tries = tries + 1, lease_expires_at = NULL, "
            f"error = {{json(error)}}, next_try_at = {{after(delay)}}{', sent_at = {now}' if sent else ''} "
            "WHERE id = %(id)s",
            id=one.message.id, status="pending" if one.end == "again" else one.end, delay=one.delay,
            error=_text(one.error),
        )  # fmt: skip


def note_sent(
    session: Session, kind: str, job_ids: Sequence[UUID], *, delay: float, error: ErrorDict | None
) -> None:
    """What became of messages that their writer has sent by itself: see :class:`Delivery`, "again".

    Only those within their head start: the job may be claimed, and promised anew, by now.
    """
    sent = "" if error is not None else ", sent_at = {now}"
    session.run(
        "UPDATE {outboxmessage} SET tries = tries + 1, error = {json(error)}, next_try_at = {after(delay)}"
        f"{sent} WHERE job_id {{among(ids)}} AND kind = %(kind)s AND status = 'pending' "
        "AND tries = 0 AND next_try_at > {now}",
        ids=list(job_ids), kind=kind, delay=delay, error=_text(error),
    )  # fmt: skip


def forget(session: Session, kind: str, job_id: UUID) -> int:
    """Drop the messages of a job: it is known, or there is nothing to tell."""
    return session.run(
        "DELETE FROM {outboxmessage} WHERE job_id = %(id)s AND kind = %(kind)s AND status = 'pending'",
        id=job_id, kind=kind,
    )  # fmt: skip


def seconds_to_next(session: Session, kinds: Sequence[str]) -> float | None:
    """How long until a message of these kinds is due; None without any."""
    row = session.one(
        "SELECT MIN(next_try_at), {now} FROM {outboxmessage} WHERE status = 'pending' AND kind {among(kinds)}",
        kinds=list(kinds),
    )
    first = session.dialect.time(row[0]) if row else None
    present = session.dialect.time(row[1]) if row else None
    if first is None or present is None:
        return None
    return (first - present).total_seconds()


# --- jobs that others are to be told of -------------------------------------------------------

_UNTOLD = (
    "NOT EXISTS (SELECT 1 FROM {outboxmessage} m WHERE m.job_id = {job}.id "
    "AND m.kind = %(runner)s AND m.status = 'pending')"
)
#: Jobs that can be claimed now, their queue and task not paused.
_OPEN = f"{{job}}.runner = %(runner)s AND {CLAIMABLE} AND {NOT_PAUSED}"


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of a job to those who are told of it."""

    job_id: UUID
    slug: str
    version: str | None
    queue_name: str
    options: str | None


def claimable(session: Session, runner: str, job_ids: Sequence[UUID]) -> dict[UUID, Call]:
    """Those of these jobs that could be taken now."""
    rows = session.rows(
        "SELECT id, slug, version, queue_name, {text(options)} FROM {job} WHERE id {among(ids)} "
        f"AND {{job}}.runner = %(runner)s AND (({_OPEN}) OR ({UNDOABLE}))",
        ids=list(job_ids), runner=runner,
    )  # fmt: skip
    calls = [Call(session.dialect.uuid(row[0]), *row[1:]) for row in rows]  # type: ignore[arg-type]
    return {call.job_id: call for call in calls}


def unpromised(session: Session, runner: str, lanes: Sequence[int], limit: int) -> list[UUID]:
    """Jobs of these lanes that could be taken now, and that no message is about."""
    found: list[UUID] = []
    for lane in lanes:
        rows = session.rows(
            f"SELECT id FROM {{job}} {{index(claim)}} WHERE lane = %(lane)s AND {_OPEN} AND {_UNTOLD} "
            "ORDER BY precedence, turn, due_at, id LIMIT %(limit)s",
            lane=lane, runner=runner, limit=limit - len(found),
        )  # fmt: skip
        found += [session.dialect.uuid(row[0]) for row in rows]  # type: ignore[misc]
        if len(found) >= limit:
            break
    return found


def unpromised_undoing(session: Session, runner: str, limit: int) -> list[UUID]:
    """The same for runs that are to be undone: no lane has them."""
    rows = session.rows(
        f"SELECT id FROM {{job}} WHERE {{job}}.runner = %(runner)s AND {UNDOABLE} AND {_UNTOLD} "
        "ORDER BY id LIMIT %(limit)s",
        runner=runner, limit=limit,
    )  # fmt: skip
    return [session.dialect.uuid(row[0]) for row in rows]  # type: ignore[misc]


def _text(error: ErrorDict | None) -> str | None:
    return None if error is None else jsonvalues.dumps(error, what="error")
