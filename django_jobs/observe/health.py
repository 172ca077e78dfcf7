"""Does the database hold what the engine promises? For ``manage.py jobs_check`` on a live system.

Nothing is locked. What one statement sees is consistent; a job whose rows change between two
statements is read again before anything is said about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Max

from django_jobs import conf
from django_jobs.lifecycle import AttemptStatus, Kind, Status, StepStatus
from django_jobs.models import Attempt, Event, HistoryEntry, Job, LogLine, Permit, TaskStatus
from django_jobs.observe import history
from django_jobs.observe.history import Rows
from django_jobs.store.permits import queue_hash
from django_jobs.store.session import Session

#: Rows of one page of a large table, and findings of one kind that are listed.
PAGE, LISTED = 20_000, 1_000
#: Times that a job is read before two different readings are taken for a contradiction.
READINGS = 10
#: Seconds for which a canceled job's handler may go on after its last sign of life.
PATIENCE = 60.0
RUNS = (Kind.WORKFLOW, Kind.DAG)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be: the rule it breaks, the job it is about, and what it is."""

    rule: str
    job: UUID | None
    message: str

    def __str__(self) -> str:
        about = f" job {self.job}:" if self.job is not None else ""
        return f"{self.rule}{about} {self.message}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule, "job": None if self.job is None else str(self.job), "message": self.message,
        }  # fmt: skip


@dataclass(slots=True)
class Health:
    """All findings, and how many leases, permits and unsent messages there are."""

    findings: list[Finding] = field(default_factory=list)
    leases: int = 0
    permits: int = 0
    outbox: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "findings": [finding.as_dict() for finding in self.findings], "leases": self.leases,
            "permits": self.permits, "outbox": self.outbox,
        }  # fmt: skip


def check(alias: str | None = None) -> Health:
    """Look at everything; see :class:`Health`."""
    session = Session(alias)
    return Health(list(findings(session)), *_totals(session))


def findings(session: Session) -> Iterator[Finding]:
    """Everything that must not be, as it is found; at most LISTED of one kind and rule."""
    said: Counter[str] = Counter()
    for finding in _all(session):
        said[finding.rule] += 1
        if said[finding.rule] <= LISTED:
            yield finding
        elif said[finding.rule] == LISTED + 1:
            yield Finding(finding.rule, None, f"more than {LISTED} findings; the rest is left out")


def _all(session: Session) -> Iterator[Finding]:
    for page in history.pages(session.alias):
        yield from _of_jobs(session, page)
    yield from _permits(session)
    yield from _overfull(session)
    yield from _ticks(session)
    yield from _dangling(session)


def _totals(session: Session) -> tuple[int, int, int]:
    row = session.one(
        "SELECT (SELECT COUNT(*) FROM {job} WHERE lease_expires_at IS NOT NULL), "
        "(SELECT COUNT(*) FROM {permit}), (SELECT COUNT(*) FROM {outboxmessage} WHERE status = 'pending')"
    )
    assert row is not None
    return row[0], row[1], row[2]


# --- job by job -------------------------------------------------------------------------------


def _of_jobs(session: Session, page: list[Job]) -> Iterator[Finding]:
    permits = _permits_of(session, page)
    parents = _known(session, {job.parent_id for job in page if job.parent_id is not None})
    now = _now(session)
    for rows in history.read(page, session.alias):
        found = _judge(rows, permits.get(rows.job.pk, []), parents, now)
        yield from _confirmed(session, rows.job, found) if found else ()


def _confirmed(session: Session, job: Job, found: list[Finding]) -> list[Finding]:
    """What still holds when all rows of the job are read while it did not move."""
    jobs = Job.units.using(session.alias).only(*history.JOB_COLUMNS).filter(pk=job.pk)
    for _ in range(READINGS):
        before = jobs.first()
        if before is None:
            return []
        [rows] = history.read([before], session.alias)
        permits = _permits_of(session, [before]).get(job.pk, [])
        parents = _known(session, {before.parent_id} - {None})  # type: ignore[arg-type]
        found = _judge(rows, permits, parents, _now(session))
        after = jobs.first()
        if after is not None and _moment(after) == _moment(before):
            return found
    return found


def _moment(job: Job) -> tuple[Any, ...]:
    """What changes with every step in a job's life."""
    return job.status, job.fence, job.history_length, job.attempts, job.lease_expires_at is None


def _judge(
    rows: Rows, permits: Sequence[Permit], parents: set[UUID], now: datetime
) -> list[Finding]:
    """Everything wrong with one job, its history, steps and tries."""
    job = rows.job
    found = [*_history(rows), *_columns(job, now), *_steps(rows), *_tries(rows)]
    if _is_driven(job, now) and job.key_limit is not None and job.key_hash is not None:
        own = [one for one in permits if one.fence == job.fence and one.key_hash == job.key_hash]
        if job.status in (Status.RUNNING, Status.COMPENSATING) and not own:
            found.append(("P6", f"runs without a permit of its key {job.concurrency_key!r}"))
    if job.parent_id is not None and job.parent_id not in parents:
        found.append(("dangling", f"its parent {job.parent_id} does not exist"))
    return [Finding(rule, job.pk, message) for rule, message in found]


Fault = tuple[str, str]


def _history(rows: Rows) -> Iterator[Fault]:
    """S3: the history folds to the state, and its stored numbers have no gaps."""
    job = rows.job
    numbers = [entry.n for entry in rows.entries]
    if numbers != list(range(1, len(numbers) + 1)):
        yield "S3", f"its history has the numbers {_brief(numbers)}"
    if len(numbers) != job.history_length:
        yield "S3", f"history_length is {job.history_length}, but it has {len(numbers)} entries"
    state = history.fold(history.derive(rows))
    for name in ("status", "attempts", "crashes"):
        told, stored = getattr(state, name), getattr(job, name)
        if told != stored:
            yield "S3", f"its history tells {name} {told}, but stored is {stored}"
    stored_steps = {f"{step.slug}/{step.step_id}": step.status for step in rows.steps}
    if {name: step.status for name, step in state.steps.items()} != stored_steps:
        yield "S3", "its history tells other steps than those stored"
    for fault in state.faults:
        yield "S3", f"its history contradicts itself: {fault}"


def _columns(job: Job, now: datetime) -> Iterator[Fault]:
    status = _status(job.status)
    if status is None:
        yield "S1", f"has the unknown status {job.status!r}"
        return
    has_lease = job.lease_expires_at is not None
    if status == Status.RUNNING and not has_lease:
        yield "L1", "is running without a lease"
    if status.is_final and has_lease and not _is_stopping(job, now):
        yield "L1", f"is {status} and still has a lease"
    if status.is_final != (job.finished_at is not None):
        yield "S1", f"is {status}, and finished_at is {job.finished_at}"
    if status == Status.COMPLETED and job.error is not None:
        yield "P2", "is completed and has an error"
    if status == Status.FAILED and job.error is None:
        yield "P2", "is failed and has no error"


def _steps(rows: Rows) -> Iterator[Fault]:
    """P2: a completed step is recorded once, whole, and in one place of the order."""
    orders = Counter(
        step.done_no
        for step in rows.steps
        if step.status == StepStatus.COMPLETED and step.done_no is not None
    )
    for order, times in orders.items():
        if times > 1:
            yield "P2", f"{times} steps completed as number {order}"
    for step in rows.steps:
        name = f"step {step.slug}/{step.step_id}"
        if step.status == StepStatus.COMPLETED and (
            step.finished_at is None or step.error is not None
        ):
            yield "P2", f"{name} is completed, but has no end or has an error"
        if step.status == StepStatus.FAILED and (step.finished_at is None or step.error is None):
            yield "P2", f"{name} is failed, but has no end or no error"
        # Units of a graph write its steps under fences of their own.
        if step.fence > rows.job.fence and rows.job.kind != Kind.DAG:
            yield "L3", f"{name} was written under fence {step.fence}, the job has {rows.job.fence}"


def _tries(rows: Rows) -> Iterator[Fault]:
    job = rows.job
    steps = {step.pk for step in rows.steps}
    seen: set[tuple[int, int, int]] = set()
    for one in rows.tries:
        if one.step_id is not None:
            if one.step_id not in steps:
                yield "dangling", f"attempt {one.pk} belongs to a step that does not exist"
            place = (one.step_id, one.number, one.fence)
            if one.status == AttemptStatus.FAILED and place in seen:
                yield "P2", f"try {one.number} of a step is recorded twice (attempt {one.pk})"
            seen.add(place)
        elif one.status == AttemptStatus.RUNNING and not (
            job.lease_expires_at is not None and one.fence == job.fence
        ):
            yield (
                "L3",
                f"attempt {one.number} (fence {one.fence}) counts as running, but nobody runs it",
            )


def _is_driven(job: Job, now: datetime) -> bool:
    return job.lease_expires_at is not None and job.lease_expires_at >= now


def _is_stopping(job: Job, now: datetime) -> bool:
    """Whether a canceled job's handler may be on its way out still."""
    end = job.lease_expires_at
    return job.status == Status.CANCELED and end is not None and end >= _long_before(now)


def _long_before(now: datetime) -> datetime:
    return now - timedelta(seconds=max(PATIENCE, conf.get().lease))


def _now(session: Session) -> datetime:
    """DB time, by which leases are measured."""
    row = session.one("SELECT {now}")
    moment = session.dialect.time(row[0]) if row else None
    assert moment is not None
    return moment


def _status(value: str) -> Status | None:
    try:
        return Status(value)
    except ValueError:
        return None


def _permits_of(session: Session, jobs: Sequence[Job]) -> dict[UUID, list[Permit]]:
    wanted = [job.pk for job in jobs if job.key_limit is not None]
    found: dict[UUID, list[Permit]] = {}
    if wanted:
        for permit in Permit.objects.using(session.alias).filter(job_id__in=wanted):
            found.setdefault(permit.job_id, []).append(permit)
    return found


def _known(session: Session, ids: set[UUID]) -> set[UUID]:
    if not ids:
        return set()
    found = Job.units.using(session.alias).filter(pk__in=ids)
    return set(found.values_list("pk", flat=True))


def _brief(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:20]))
    return f"{shown}, …" if len(numbers) > 20 else shown


# --- permits, ticks ---------------------------------------------------------------------------


def _permits(session: Session) -> Iterator[Finding]:
    """L8, P6: each permit is held by a live job under its fence, and none beyond its key's or queue's limit."""
    uuid, time = session.dialect.uuid, session.dialect.time
    for low, high in _ranges(session, Permit):
        rows = session.rows(
            "SELECT p.key_name, p.number, p.job_id, p.fence, p.lease_expires_at, j.status, j.fence, "
            "j.lease_expires_at, p.most, j.key_hold, j.finished_at, p.key_hash, j.key_hash, j.queue_name FROM {permit} p "
            "LEFT JOIN {job} j ON j.id = p.job_id WHERE p.id > %(low)s AND p.id <= %(high)s",
            low=low, high=high,
        )  # fmt: skip
        for (
            key,
            number,
            job_id,
            fence,
            lease,
            status,
            now_fence,
            job_lease,
            limit,
            hold,
            ended,
            of_what,
            key_hash,
            queue_name,
        ) in rows:
            about = uuid(job_id)
            unit = f"permit {number} of {key!r} (fence {fence})"
            if status is None:
                yield Finding("L8", about, f"{unit} is held by a job that does not exist")
                continue
            if of_what not in (key_hash, queue_hash(queue_name)):
                yield Finding("L8", about, f"{unit} is held by a job of another key")
            if number > limit:
                yield Finding("P6", about, f"{unit} lies beyond the limit {limit}")
            held = time(lease)
            if ended is not None:
                late = _long_before(_now(session))
                if status != Status.CANCELED or held is None or held < late:
                    yield Finding("L8", about, f"{unit} is held by a job that is {status}")
            elif not (
                (fence == now_fence and job_lease is not None)
                or (held is None and hold and fence <= now_fence)
            ):
                yield Finding(
                    "L8", about, f"{unit} is held, but the job is {status} under fence {now_fence}"
                )


def _overfull(session: Session) -> Iterator[Finding]:
    """P6: no key and no queue is held by more than any limit under which one was let in."""
    rows = session.rows(
        "SELECT key_name, COUNT(*), MAX(most) FROM {permit} "
        "WHERE lease_expires_at IS NULL OR lease_expires_at >= {now} GROUP BY key_hash, key_name "
        "HAVING COUNT(*) > MAX(most) LIMIT %(limit)s",
        limit=LISTED + 1,
    )
    for key, count, most in rows:
        yield Finding("P6", None, f"{count} jobs hold {key!r}, its limit is {most}")


def _ticks(session: Session) -> Iterator[Finding]:
    """P7: one job and one tick for each nominal instant of a schedule."""
    for what, table, where in (
        ("jobs", "job", "schedule_id IS NOT NULL AND slot IS NOT NULL AND rerun_of_id IS NULL"),
        ("ticks", "tick", "1 = 1"),
    ):
        rows = session.rows(
            f"SELECT schedule_id, slot, COUNT(*) FROM {{{table}}} WHERE {where} "
            "GROUP BY schedule_id, slot HAVING COUNT(*) > 1 LIMIT %(limit)s",
            limit=LISTED + 1,
        )
        for schedule, slot, times in rows:
            yield Finding("P7", None, f"schedule {schedule} has {times} {what} for the slot {slot}")


# --- rows without what they belong to ---------------------------------------------------------


def _dangling(session: Session) -> Iterator[Finding]:
    """Rows of a job that does not exist."""
    uuid = session.dialect.uuid
    for model, what in (
        (TaskStatus, "step"), (Attempt, "attempt"), (HistoryEntry, "history entry"), (LogLine, "log line"),
        (Event, "event"),
    ):  # fmt: skip
        table = model.__name__.lower()
        for low, high in _ranges(session, model):
            rows = session.rows(
                f"SELECT r.id, r.job_id FROM {{{table}}} r WHERE r.id > %(low)s AND r.id <= %(high)s "
                "AND NOT EXISTS (SELECT 1 FROM {job} j WHERE j.id = r.job_id)",
                low=low, high=high,
            )  # fmt: skip
            for row_id, job_id in rows:
                yield Finding(
                    "dangling", uuid(job_id), f"{what} {row_id} is there, but not the job"
                )
    for table, key, what in (
        ("idempotencykey", "key_hash", "idempotency key"), ("callback", "token_hash", "callback"),
    ):  # fmt: skip
        rows = session.rows(
            f"SELECT r.{key}, r.job_id FROM {{{table}}} r WHERE NOT EXISTS "
            "(SELECT 1 FROM {job} j WHERE j.id = r.job_id) LIMIT %(limit)s",
            limit=LISTED + 1,
        )
        for row_id, job_id in rows:
            yield Finding(
                "dangling", uuid(job_id), f"{what} {row_id[:8]}… is there, but not the job"
            )


def _ranges(session: Session, model: Any) -> Iterator[tuple[int, int]]:
    """The ids of a table in pages: above the first number, up to the second."""
    last = model.objects.using(session.alias).aggregate(last=Max("id"))["last"] or 0
    first = model.objects.using(session.alias).order_by("id").values_list("id", flat=True).first()
    low = (first or 1) - 1
    while low < last:
        yield low, low + PAGE
        low += PAGE
