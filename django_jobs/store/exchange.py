"""What a worker says and asks in one go: outcomes in, claims out, one commit."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from django_jobs.store import claims as claiming
from django_jobs.store import fairness, lone
from django_jobs.store.claims import Claim, Lane
from django_jobs.store.record import (
    COMPLETE_PLAIN,
    Finish,
    Item,
    ended_here,
    is_plain,
    plain_params,
    record,
)
from django_jobs.store.session import Session
from django_jobs.store.steps import (
    RECORD_POSTGRESQL,
    Answer,
    StepWrite,
    answer,
    listed_params,
    statuses_of,
)


def exchange(
    session: Session,
    items: Sequence[Item],
    chosen: Sequence[Lane],
    *,
    worker: UUID,
    limit: int,
    lease: float,
    limited: int | None = None,
) -> tuple[list[Answer], list[Claim]]:
    """Record ``items`` and take up to ``limit`` jobs of the ``chosen`` lanes in one transaction.

    On PostgreSQL the ordinary case is one round trip. ``limited`` is as in :func:`claims.claim`.
    """
    wants = bool(chosen) and limit > 0
    if wants and items and any(lane.limited for lane in chosen):
        # Whoever has freed permits here and waits for others' would be waited for by them.
        answers, _ = exchange(session, items, [], worker=worker, limit=0, lease=lease)
        try:
            _, taken = exchange(
                session, [], chosen, worker=worker, limit=limit, lease=lease, limited=limited
            )
        except Exception as error:
            # What is written stays written; the next round meets the broken connection again.
            if not session.dialect.is_lost(error):
                raise
            session.reconnect()
            taken = []
        return answers, taken
    if (
        session.vendor == "postgresql"
        and not session.in_callers_transaction
        and (not wants or claiming.is_direct(session, chosen))
        and all(_is_quick(item) for item in items)
    ):
        try:
            return _in_one_trip(session, items, chosen if wants else [], worker, limit, lease)
        except Exception as error:
            if session.dialect.is_lost(error):
                session.reconnect()
            elif not session.dialect.is_transient(error):
                raise

    def work(s: Session) -> tuple[list[Answer], list[Claim]]:
        answers = record(s, items) if items else []
        if not wants:
            return answers, []
        return answers, claiming.claim(
            s, chosen, worker=worker, limit=limit, lease=lease, limited=limited
        )

    return session.committed(work)


def at_once(session: Session, items: Sequence[Item]) -> list[Answer] | None:
    """Record ``items`` in one round trip; None, and nothing done, where they take more than that."""
    if session.vendor != "postgresql" or not all(_is_quick(item) for item in items):
        return None
    return _in_one_trip(session, items, [], items[0].claim.worker, 0, 0.0)[0]


def _is_quick(item: Item) -> bool:
    """Whether one statement records it."""
    return is_plain(item) or (isinstance(item, StepWrite) and item.error is None)


def _in_one_trip(
    session: Session,
    items: Sequence[Item],
    chosen: Sequence[Lane],
    worker: UUID,
    limit: int,
    lease: float,
) -> tuple[list[Answer], list[Claim]]:
    steps = [item for item in items if isinstance(item, StepWrite)]
    ended = [item for item in items if isinstance(item, Finish)]
    statements = []
    if steps:
        statements.append(
            lone.statement(steps) if lone.fits(steps) else (RECORD_POSTGRESQL, listed_params(steps))
        )
    if ended:
        statements.append((COMPLETE_PLAIN, plain_params(ended)))
    if chosen:
        params = claiming.direct_params(chosen, worker=worker, limit=limit, lease=lease)
        statements.append((claiming.TAKE_DIRECT, params))
    results = iter(session.together(statements))
    statuses = statuses_of(next(results).rows) if steps else {}
    all_done = not ended or next(results).touched == len(ended)
    taken = claiming.taken_directly(session, next(results).rows, worker) if chosen else []
    answers: list[Answer] = [
        answer(item, statuses) if isinstance(item, StepWrite) else "written" for item in items
    ]
    if any(claim.order[1] for claim in taken):
        session.committed(lambda s: fairness.advance(s, taken))
    if not all_done:
        answers = _second_look(session, items, answers)
    return answers, claiming.with_steps(session, taken)


def _second_look(session: Session, items: Sequence[Item], answers: list[Answer]) -> list[Answer]:
    """Outcomes of which the fast way did not match all: paused meanwhile, or truly lost."""
    done = ended_here(session, [item.claim for item in items if isinstance(item, Finish)])
    unsure = [
        isinstance(item, Finish) and (item.claim.job_id, item.claim.fence) not in done
        for item in items
    ]
    left = [item for item, doubt in zip(items, unsure, strict=True) if doubt]
    again = iter(session.committed(lambda s: record(s, left)))
    return [next(again) if doubt else known for known, doubt in zip(answers, unsure, strict=True)]
