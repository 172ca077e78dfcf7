"""Ageing: who has waited long gains priority, by a change of the stored order. Off by default."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django_jobs.store.claims import lanes
from django_jobs.store.session import Session

#: Jobs of one lane and priority that one look moves; those behind them follow with the next.
MOST = 200
FIRST = -100


def age(session: Session, step: float) -> int:
    """One priority more for every ``step`` seconds for which a job has been due; how many moved.

    Only the heads of the line are looked at: within a lane and a priority the longest wait is first.
    """
    return sum(_age_lane(session, lane.lane, step) for lane in lanes(session))


def _age_lane(session: Session, lane: int, step: float) -> int:
    moved, precedence = 0, FIRST
    while (found := _next_precedence(session, lane, precedence)) is not None:
        precedence = found
        for target, listed in _targets(session, lane, precedence, step).items():
            moved += session.run(
                "UPDATE {job} SET precedence = %(target)s WHERE id {among(ids)} AND status = 'pending' "
                "AND precedence > %(target)s",
                target=target, ids=listed,
            )  # fmt: skip
    return moved


def _next_precedence(session: Session, lane: int, after: int) -> int | None:
    row = session.one(
        "SELECT MIN(precedence) FROM {job} WHERE lane = %(lane)s AND status = 'pending' AND gate = 'open' "
        "AND precedence > %(after)s",
        lane=lane, after=after,
    )  # fmt: skip
    return None if row is None else row[0]


def _targets(session: Session, lane: int, precedence: int, step: float) -> dict[int, list[Any]]:
    """The jobs that are to move, by their new precedence."""
    rows = session.rows(
        "SELECT id, priority, due_at, {now} FROM {job} {index(claim)} WHERE lane = %(lane)s "
        "AND status = 'pending' AND gate = 'open' AND precedence = %(precedence)s AND due_at <= {after(ago)} "
        "ORDER BY turn, due_at, id LIMIT %(most)s {skip_locked}",
        lane=lane, precedence=precedence, ago=-step, most=MOST,
    )  # fmt: skip
    found: dict[int, list[Any]] = {}
    for job_id, priority, due, now in rows:
        waited = _seconds(session, due, now)
        target = max(FIRST, -priority - int(waited / step))
        if target < precedence:
            found.setdefault(target, []).append(session.dialect.uuid(job_id))
    return found


def _seconds(session: Session, earlier: Any, later: Any) -> float:
    first, second = session.dialect.time(earlier), session.dialect.time(later)
    assert isinstance(first, datetime) and isinstance(second, datetime)
    return (second - first).total_seconds()
