"""Deleting what has been kept long enough, in chunks, so that nobody waits long for a lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from django_jobs import clock, conf
from django_jobs.lifecycle import FINAL, Status
from django_jobs.store.session import Session

#: Jobs, or other rows, deleted in one transaction.
CHUNK = 500
#: What follows KEEP_FAILED; every other final status follows KEEP_COMPLETED.
KEPT_AS_FAILED = (Status.FAILED, Status.COMPENSATION_FAILED)
KEPT_AS_COMPLETED = tuple(sorted(FINAL - set(KEPT_AS_FAILED)))
#: Rows that go with their job, in this order: first those that point at others.
OF_A_JOB = "attempt taskstatus logline historyentry event callback permit idempotencykey".split()
#: Starts that count against a rate limit are deleted where they are counted; this is for limits that
#: nobody uses any more, and longer than any window in use. Seconds.
RATE_WINDOW = 400 * 86_400.0


@dataclass(slots=True)
class Pruned:
    """How many rows went, by table, and whether nothing is left that should go."""

    rows: Counter[str] = field(default_factory=Counter)
    done: bool = True

    @property
    def jobs(self) -> int:
        return self.rows["job"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows of a table that go once a moment lies ``keep`` seconds back; ``where`` compares it with {limit}."""

    table: str
    key: str
    where: str
    keep: float | None


def prune(
    session: Session, *, chunk: int = CHUNK, seconds: float | None = None, dry_run: bool = False
) -> Pruned:
    """Delete final jobs past KEEP_COMPLETED and KEEP_FAILED with all their rows, and what else is over.

    A job is counted from ``finished_at``, by the engine's clock. Child runs stay while their parent
    lives, a run stays while a child of it lives, and units go with their run. Each chunk is one
    transaction, and several processes may prune at once. After ``seconds`` it stops between two
    chunks, with ``done`` False; ``dry_run`` counts only.
    """
    settings = conf.get()
    pruned = Pruned()
    stop = None if seconds is None else clock.monotonic() + seconds

    def is_over() -> bool:
        return stop is not None and clock.monotonic() >= stop

    for keep, statuses in (
        (settings.keep_completed, KEPT_AS_COMPLETED),
        (settings.keep_failed, KEPT_AS_FAILED),
    ):
        if keep is not None:
            _prune_jobs(session, pruned, statuses, keep, chunk, is_over, dry_run)
    for rule in rules(settings):
        if rule.keep is not None:
            _prune_rule(session, pruned, rule, chunk, is_over, dry_run)
    pruned.rows = +pruned.rows
    return pruned


def rules(settings: conf.JobsSettings) -> list[Rule]:
    """What goes by its own age, apart from jobs."""
    keep, keep_failed = settings.keep_completed, settings.keep_failed
    return [
        # The last slot stays on the schedule itself, so that no deleted tick fires again.
        Rule(
            "tick", "id",
            "created_at < {limit} AND NOT EXISTS (SELECT 1 FROM {schedule} s WHERE s.id = {tick}.schedule_id "
            "AND (s.last_slot IS NULL OR s.last_slot < {tick}.slot))",
            keep,
        ),
        Rule("worker", "id", "heartbeat_at < {limit}", keep),
        Rule("outboxmessage", "id", "status = 'sent' AND created_at < {limit}", keep),
        Rule(
            "outboxmessage", "id", "status NOT IN ('sent', 'pending') AND created_at < {limit}", keep_failed
        ),
        Rule("seensignature", "key_hash", "expires_at < {limit}", 0.0),
        Rule("callback", "token_hash", "expires_at < {limit}", 0.0),
        Rule(
            "idempotencykey", "key_hash",
            "expires_at < {limit} AND NOT EXISTS (SELECT 1 FROM {job} j "
            "WHERE j.id = {idempotencykey}.job_id AND j.finished_at IS NULL)",
            0.0,
        ),
        Rule("ratestart", "id", "at < {limit}", RATE_WINDOW),
        Rule("broadcast", "key_hash", "sent_at < {limit}", keep),
    ]  # fmt: skip


# --- jobs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """How far the jobs of one kind have been looked through."""

    finished_at: datetime
    job_id: UUID


def _prune_jobs(
    session: Session,
    pruned: Pruned,
    statuses: Sequence[str],
    keep: float,
    chunk: int,
    is_over: Callable[[], bool],
    dry_run: bool,
) -> None:
    place: Place | None = None
    while True:
        if is_over():
            pruned.done = False
            return
        found = session.committed(
            lambda s, place=place: _prune_page(s, statuses, keep, chunk, place, dry_run)  # type: ignore[misc]
        )
        pruned.rows += found.rows
        place = found.last
        if place is None:
            return


@dataclass(slots=True)
class Page:
    rows: Counter[str]
    #: The last job of a full page; None when none follow.
    last: Place | None


def _prune_page(
    session: Session,
    statuses: Sequence[str],
    keep: float,
    chunk: int,
    place: Place | None,
    dry_run: bool,
) -> Page:
    """Look at one page of old jobs and delete those that nothing alive needs."""
    listed = ", ".join(f"'{status}'" for status in statuses)
    behind = (
        "" if place is None else "AND (finished_at, id) > ({moment(last_finished)}, %(last_id)s) "
    )
    rows = session.rows(
        "SELECT finished_at, id, parent_id, kind FROM {job} WHERE finished_at IS NOT NULL "
        f"AND finished_at < {{after(ago)}} AND status IN ({listed}) {behind}"
        f"ORDER BY finished_at, id LIMIT %(chunk)s{'' if dry_run else ' {skip_locked}'}",
        ago=-keep, chunk=chunk, last_finished=place and place.finished_at, last_id=place and place.job_id,
    )  # fmt: skip
    time, uuid = session.dialect.time, session.dialect.uuid
    if not rows:
        return Page(Counter(), None)
    found = [uuid(row[1]) for row in rows]
    needed = _needed(session, {uuid(row[1]): (uuid(row[2]), row[3]) for row in rows})  # type: ignore[misc]
    going = [job_id for job_id in found if job_id is not None and job_id not in needed]
    going += _units_of(session, going)
    last = Place(time(rows[-1][0]), found[-1]) if len(rows) == chunk else None  # type: ignore[arg-type]
    return Page(_delete(session, going, dry_run), last)


def _needed(session: Session, jobs: dict[UUID, tuple[UUID | None, str]]) -> set[UUID]:
    """Those of ``jobs`` that stay: their parent or a child lives, or they are units of a stored run."""
    needed: set[UUID] = set()
    parents = {parent for parent, _ in jobs.values() if parent is not None}
    alive = dict(_alive(session, parents))
    for job_id, (parent, kind) in jobs.items():
        if parent in alive and (alive[parent] or kind == "step"):
            needed.add(job_id)
    for _, parent in _children(session, list(jobs), "finished_at IS NULL"):
        needed.add(parent)
    return needed


def _alive(session: Session, ids: set[UUID]) -> list[tuple[UUID, bool]]:
    """Which of ``ids`` are stored, and whether each still lives."""
    if not ids:
        return []
    rows = session.rows(
        f"SELECT id, finished_at FROM {{job}} WHERE id IN ({_names(ids)})", **_params(ids)
    )
    return [(session.dialect.uuid(row[0]), row[1] is None) for row in rows]  # type: ignore[misc]


def _children(session: Session, ids: Sequence[UUID], where: str) -> list[tuple[UUID, UUID]]:
    """(child, parent) of those children of ``ids`` that fit ``where``."""
    if not ids:
        return []
    rows = session.rows(
        f"SELECT id, parent_id FROM {{job}} WHERE parent_id IN ({_names(ids)}) AND {where}",
        **_params(ids),
    )
    uuid = session.dialect.uuid
    return [(uuid(row[0]), uuid(row[1])) for row in rows]  # type: ignore[misc]


def _units_of(session: Session, ids: Sequence[UUID]) -> list[UUID]:
    """The units of these runs, and of the runs that are their units."""
    units: list[UUID] = []
    level = list(ids)
    while level:
        level = [child for child, _ in _children(session, level, "kind = 'step'")]
        level = [child for child in level if child not in ids and child not in units]
        units += level
    return units


def _delete(session: Session, ids: Sequence[UUID], dry_run: bool) -> Counter[str]:
    """Delete these jobs with all their rows, rows first; only count in a dry run."""
    rows: Counter[str] = Counter()
    if not ids:
        return rows
    names, params = _names(ids), _params(ids)
    for table in OF_A_JOB:
        rows[table] = _remove(session, table, f"job_id IN ({names})", params, dry_run)
    if not dry_run:
        for column in ("parent_id", "rerun_of_id"):
            session.run(f"UPDATE {{job}} SET {column} = NULL WHERE {column} IN ({names})", **params)
    rows["job"] = _remove(session, "job", f"id IN ({names})", params, dry_run)
    return +rows


# --- other rows -------------------------------------------------------------------------------


def _prune_rule(
    session: Session,
    pruned: Pruned,
    rule: Rule,
    chunk: int,
    is_over: Callable[[], bool],
    dry_run: bool,
) -> None:
    where = rule.where.replace("{limit}", "{after(ago)}")
    params = {"ago": -(rule.keep or 0.0), "chunk": chunk}
    if dry_run:
        pruned.rows[rule.table] += _remove(session, rule.table, where, params, True)
        return
    picked = (
        f"{rule.key} IN (SELECT {rule.key} FROM {{{rule.table}}} WHERE {where} LIMIT %(chunk)s)"
    )
    while True:
        if is_over():
            pruned.done = False
            return
        removed = session.committed(lambda s: _remove(s, rule.table, picked, params, False))
        pruned.rows[rule.table] += removed
        if removed < chunk:
            return


def _remove(
    session: Session, table: str, where: str, params: Mapping[str, object], dry_run: bool
) -> int:
    if not dry_run:
        return session.run(f"DELETE FROM {{{table}}} WHERE {where}", **params)
    row = session.one(f"SELECT COUNT(*) FROM {{{table}}} WHERE {where}", **params)
    return row[0] if row else 0


def _names(ids: Sequence[UUID] | set[UUID]) -> str:
    return ", ".join(f"%(id_{index})s" for index in range(len(ids)))


def _params(ids: Sequence[UUID] | set[UUID]) -> dict[str, object]:
    return {f"id_{index}": job_id for index, job_id in enumerate(ids)}
