"""What a worker says and asks in one go: outcomes in, claims out, one commit."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from django_jobs.store import claims as claiming
from django_jobs.store.claims import Claim, Lane
from django_jobs.store.record import COMPLETE_PLAIN, Answer, Item, is_plain, plain_params, record
from django_jobs.store.session import Session


def exchange(
    session: Session,
    items: Sequence[Item],
    chosen: Sequence[Lane],
    *,
    worker: UUID,
    limit: int,
    lease: float,
) -> tuple[list[Answer], list[Claim]]:
    """Record ``items`` and take up to ``limit`` jobs of the ``chosen`` lanes in one transaction.

    On PostgreSQL the ordinary case is one round trip.
    """
    wants = bool(chosen) and limit > 0
    if (
        session.vendor == "postgresql"
        and not session.in_callers_transaction
        and (not wants or claiming.is_direct(session, chosen))
        and all(map(is_plain, items))
    ):
        try:
            return _in_one_trip(session, items, chosen if wants else [], worker, limit, lease)
        except Exception as error:
            if not (session.dialect.is_lost(error) or session.dialect.is_transient(error)):
                raise

    def work(s: Session) -> tuple[list[Answer], list[Claim]]:
        answers = record(s, items) if items else []
        taken = claiming.claim(s, chosen, worker=worker, limit=limit, lease=lease) if wants else []
        return answers, taken

    return session.committed(work)


def _in_one_trip(
    session: Session,
    items: Sequence[Item],
    chosen: Sequence[Lane],
    worker: UUID,
    limit: int,
    lease: float,
) -> tuple[list[Answer], list[Claim]]:
    statements = []
    if items:
        statements.append((COMPLETE_PLAIN, plain_params(items)))
    if chosen:
        params = claiming.direct_params(chosen, worker=worker, limit=limit, lease=lease)
        statements.append((claiming.TAKE_DIRECT, params))
    results = session.together(statements)
    answers: list[Answer] = []
    if items:
        done = {row[0] for row in results[0]}
        answers = ["written" if item.claim.job_id in done else "lost" for item in items]
        if len(done) < len(items):
            answers = _second_look(session, items, answers)
    taken = claiming.taken_directly(session, results[-1], worker) if chosen else []
    return answers, claiming.with_steps(session, taken)


def _second_look(session: Session, items: Sequence[Item], answers: list[Answer]) -> list[Answer]:
    """Items that the fast way did not match: paused meanwhile, or truly lost."""
    left = [item for item, answer in zip(items, answers, strict=True) if answer == "lost"]
    again = iter(session.committed(lambda s: record(s, left)))
    return [next(again) if answer == "lost" else answer for answer in answers]
