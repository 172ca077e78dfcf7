"""Fair share: among the groups of a queue, each has its turn, however much one of them has waiting.

A new job's turn is one after the last of its group that waits, and never before the turn at which
its queue stands. Jobs are claimed in order of their turn, so the next job of every group comes before
the one after it of any. Nothing is locked: two calls at the same time may get the same turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from django_jobs import clock, conf, ids, jsonvalues
from django_jobs.store.session import Session

if TYPE_CHECKING:
    from django_jobs.store.claims import Claim

#: Seconds for which a process believes what it read of the queues that operators have edited.
BELIEVED = 1.0
TENANT, KEY = "tenant", "key"
#: What a queue may be shared by besides a field of the input.
OF_COLUMNS = (TENANT, KEY)


class Shared(Protocol):
    """A job as a group of its queue sees it."""

    queue_name: str
    turn: int
    share: int | None


_edited: dict[str, tuple[float, dict[str, str | None]]] = {}


def forget(**_: Any) -> None:
    """Read the queues again."""
    _edited.clear()


def fair_by(session: Session, queue_name: str) -> str | None:
    """What a queue is shared by: as its row says once an operator has edited it, else the settings."""
    present = clock.monotonic()
    read = _edited.get(session.alias)
    if read is None or present - read[0] > BELIEVED:
        rows = session.rows("SELECT name, fair_by FROM {queue} WHERE edited")
        read = _edited[session.alias] = present, {row[0]: row[1] for row in rows}
    if queue_name in read[1]:
        return read[1][queue_name]
    queue = conf.get().queues.get(queue_name)
    return None if queue is None else queue.fair_by


def group(
    by: str, tenants: Sequence[str | None], key: str | None, input: Mapping[str, Any]
) -> str | None:
    """The group of a job in a queue that is shared ``by`` this; None stands for those without one."""
    if by == TENANT:
        return jsonvalues.canonical(list(tenants))
    if by == KEY:
        return key
    return jsonvalues.canonical(input[by]) if by in input else None


def share(row: Shared, group: str | None) -> None:
    """Put a job into a group of its queue."""
    row.share = ids.lane("share", row.queue_name, group or "")


def assign(session: Session, new: Sequence[Shared]) -> None:
    """Give jobs that come to a group their turns."""
    groups: dict[tuple[str, int], list[Shared]] = {}
    for row in new:
        if row.share is not None:
            groups.setdefault((row.queue_name, row.share), []).append(row)
    stands: dict[str, int] = {}
    for (queue_name, group), listed in groups.items():
        if queue_name not in stands:
            stands[queue_name] = _stands(session, queue_name)
        first = max(stands[queue_name], _last(session, group) + 1)
        for place, row in enumerate(listed):
            row.turn = first + place


def _stands(session: Session, queue_name: str) -> int:
    row = session.one("SELECT turn FROM {queue} WHERE name = %(name)s", name=queue_name)
    return (row and row[0]) or 0


def _last(session: Session, group: int) -> int:
    """The last turn of those of a group that wait; -1 where none does."""
    row = session.one(
        "SELECT MAX(turn) FROM {job} WHERE share = %(share)s AND status = 'pending'", share=group
    )
    return -1 if row is None or row[0] is None else row[0]


def again(session: Session, due: Iterable[tuple[Any, str, int, int, bool]]) -> None:
    """New turns for jobs whose time has come: (id, queue, group, turn, started).

    One that never started queues behind its group, or a thousand delayed to the same moment would come
    before everybody; one that is tried again has waited its turn.
    """
    stands: dict[str, int] = {}
    last: dict[int, int] = {}
    for job_id, queue_name, group, turn, started in due:
        if queue_name not in stands:
            stands[queue_name] = _stands(session, queue_name)
        new = max(turn, stands[queue_name])
        if not started:
            if group not in last:
                last[group] = _last_open(session, group)
            new = last[group] = max(stands[queue_name], last[group] + 1)
        session.run(
            "UPDATE {job} SET turn = %(turn)s WHERE id = %(id)s AND status = 'pending'",
            turn=new, id=job_id,
        )  # fmt: skip


def _last_open(session: Session, group: int) -> int:
    """As :func:`_last`, without those that wait for their time."""
    row = session.one(
        "SELECT turn FROM {job} WHERE share = %(share)s AND status = 'pending' AND gate <> 'timer' "
        "ORDER BY turn DESC LIMIT 1",
        share=group,
    )
    return -1 if row is None else row[0]


def advance(session: Session, taken: Sequence[Claim]) -> None:
    """Note how far the queues of these claims stand. Nothing for those without groups."""
    stands: dict[str, int] = {}
    for claim in taken:
        turn = claim.order[1] if claim.order else 0
        if turn > stands.get(claim.queue_name, 0):
            stands[claim.queue_name] = turn
    for name in sorted(stands):
        session.run(
            "UPDATE {queue} SET turn = %(turn)s WHERE name = %(name)s AND turn < %(turn)s",
            turn=stands[name], name=name,
        )  # fmt: skip
