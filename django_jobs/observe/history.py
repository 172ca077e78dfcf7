"""The whole history of a job: the stored entries, and those that its columns and steps tell.

The ordinary path writes no history row. That a job was enqueued, first claimed and completed stands
in its own columns, what became of its steps in their records; :func:`derive` puts all of it into one
list numbered from 1 without gaps, and :func:`fold` gets the job's state back from that list alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django_jobs.lifecycle import DRIVEN, NEXT, WAITS, AttemptStatus, Status, StepStatus
from django_jobs.models import Attempt, HistoryEntry, Job, TaskStatus

#: Jobs whose rows are read together.
PAGE = 200
#: Prefix of the events of a step; their "from" and "to" are statuses of the step.
STEP = "step_"
#: Codes of failures that ended no try of the handler.
UNCOUNTED = frozenset({"corrupt"})
#: Step columns that a history needs; input and output are left out.
STEP_COLUMNS = (
    "job_id", "step_id", "slug", "kind", "status", "error", "total_tried", "fence", "worker", "done_no",
    "started_at", "finished_at",
)  # fmt: skip
#: Job columns that a history needs.
JOB_COLUMNS = (
    "slug", "kind", "status", "attempts", "crashes", "fence", "worker", "history_length", "error", "parent_id",
    "rerun_of_id", "schedule_id", "slot", "concurrency_key", "key_hash", "key_limit", "key_hold",
    "lease_expires_at", "created_at", "started_at", "finished_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change of a job, or of one of its steps."""

    job: UUID
    at: datetime
    event: str
    n: int = 0
    frm: str | None = None
    to: str | None = None
    #: "slug/id"
    step: str | None = None
    attempt: int | None = None
    fence: int = 0
    worker: UUID | None = None
    actor: str | None = None
    detail: Any = None

    def as_dict(self) -> dict[str, Any]:
        """The entry as ``manage.py jobs_history`` prints it; ``at`` in seconds since 1970."""
        return {
            "job": str(self.job), "n": self.n, "at": self.at.timestamp(), "event": self.event, "from": self.frm,
            "to": self.to, "step": self.step, "attempt": self.attempt, "fence": self.fence,
            "worker": None if self.worker is None else str(self.worker), "actor": self.actor, "detail": self.detail,
        }  # fmt: skip

    @classmethod
    def of(cls, printed: Mapping[str, Any]) -> Entry:
        """The entry of one printed line."""
        values = {name: printed[name] for name in ("n", "event", "to", "step", "attempt", "fence")}
        worker = printed["worker"]
        return cls(
            job=UUID(printed["job"]), at=datetime.fromtimestamp(printed["at"], UTC), frm=printed["from"],
            worker=None if worker is None else UUID(worker), actor=printed["actor"], detail=printed["detail"], **values,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepState:
    """Where a step stands, and how many of its tries have ended."""

    status: str
    tried: int = 0


@dataclass(slots=True)
class State:
    """What a history comes to. ``faults`` are its contradictions, in words."""

    status: str | None = None
    attempts: int = 0
    crashes: int = 0
    steps: dict[str, StepState] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


# --- reading ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Rows:
    """What is stored of one job."""

    job: Job
    entries: list[HistoryEntry] = field(default_factory=list)
    steps: list[TaskStatus] = field(default_factory=list)
    tries: list[Attempt] = field(default_factory=list)


def entries(job: Job) -> list[Entry]:
    """The whole history of ``job`` as it is stored now, in order."""
    alias = job._state.db
    [rows] = read([Job.units.using(alias).only(*JOB_COLUMNS).get(pk=job.pk)], alias)
    return derive(rows)


def read(jobs: Sequence[Job], alias: str | None) -> list[Rows]:
    """The stored rows of ``jobs``, each table asked once."""
    found = {job.pk: Rows(job) for job in jobs}
    ids = list(found)
    for entry in HistoryEntry.objects.using(alias).filter(job_id__in=ids).order_by("n"):
        found[entry.job_id].entries.append(entry)
    steps = TaskStatus.objects.using(alias).filter(job_id__in=ids).order_by("id")
    for step in steps.only(*STEP_COLUMNS):
        found[step.job_id].steps.append(step)
    for one in Attempt.objects.using(alias).filter(job_id__in=ids).order_by("id"):
        found[one.job_id].tries.append(one)
    return list(found.values())


def pages(alias: str | None, *, size: int = PAGE) -> Iterator[list[Job]]:
    """Every job and unit in order of id, page by page."""
    jobs = Job.units.using(alias).order_by("pk").only(*JOB_COLUMNS)
    page = list(jobs[:size])
    while page:
        yield page
        page = list(jobs.filter(pk__gt=page[-1].pk)[:size])


# --- deriving ---------------------------------------------------------------------------------


def derive(rows: Rows) -> list[Entry]:
    """The numbered history of what is stored."""
    merged = _merge(list(_of_job(rows)), sorted(_of_steps(rows), key=lambda entry: entry.at))
    return [replace(entry, n=number) for number, entry in enumerate(merged, 1)]


def _of_job(rows: Rows) -> Iterator[Entry]:
    """The entries of the job itself: its rows in their order, and what its columns tell between them."""
    job = rows.job
    yield _enqueued(job)
    status: str | None = Status.PENDING
    # Only a first claim is without a row; it raised the fence from 0.
    claim = None if job.started_at is None else _first_claim(rows)
    stored = list(rows.entries)
    last_change = max((i for i, row in enumerate(stored) if row.to_status is not None), default=-1)
    completes = job.status == Status.COMPLETED and not any(
        row.to_status == Status.COMPLETED for row in stored
    )
    for index, row in enumerate(stored):
        if row.event == "claimed":
            claim = None
        elif claim is not None and _follows_claim(row, status, claim):
            yield claim
            claim, status = None, Status.RUNNING
        if completes and index > last_change and claim is None and _follows_end(row, job):
            yield _completed(job)
            completes = False
        yield _stored(row)
        status = row.to_status or status
    if claim is not None and status == Status.PENDING:
        yield claim
    if completes:
        yield _completed(job)


def _follows_claim(row: HistoryEntry, status: str | None, claim: Entry) -> bool:
    if row.from_status is not None:
        return row.from_status in DRIVEN
    # A note: written under a fence that only the claim can have given.
    return status == Status.PENDING and row.fence > 0 and row.at >= claim.at


def _follows_end(row: HistoryEntry, job: Job) -> bool:
    """Whether a note belongs behind the completion: those of steps come from within the run."""
    assert job.finished_at is not None
    return row.at > job.finished_at or (row.at == job.finished_at and row.step is None)


def _enqueued(job: Job) -> Entry:
    known = {
        "parent": job.parent_id, "rerun_of": job.rerun_of_id, "schedule": job.schedule_id,
        "slot": job.slot and job.slot.isoformat(), "key": job.concurrency_key,
    }  # fmt: skip
    detail = {
        name: str(value) if isinstance(value, UUID) else value
        for name, value in known.items()
        if value is not None
    }
    return Entry(
        job=job.pk, at=job.created_at, event="enqueued", to=Status.PENDING, detail=detail or None
    )


def _first_claim(rows: Rows) -> Entry:
    job = rows.job
    assert job.started_at is not None
    tries = [one.worker for one in rows.tries if one.fence == 1 and one.step_id is None]
    tries += [row.worker for row in rows.entries if row.fence == 1]
    workers = [worker for worker in tries if worker is not None]
    worker = job.worker if job.fence <= 1 else workers[0] if workers else None
    return Entry(
        job=job.pk, at=job.started_at, event="claimed", frm=Status.PENDING, to=Status.RUNNING, attempt=1, fence=1,
        worker=worker,
    )  # fmt: skip


def _completed(job: Job) -> Entry:
    assert job.finished_at is not None
    return Entry(
        job=job.pk, at=job.finished_at, event="completed", frm=Status.RUNNING, to=Status.COMPLETED,
        attempt=job.attempts, fence=job.fence, worker=job.worker,
    )  # fmt: skip


def _stored(row: HistoryEntry) -> Entry:
    return Entry(
        job=row.job_id, at=row.at, event=row.event, frm=row.from_status, to=row.to_status, step=row.step,
        attempt=row.attempt, fence=row.fence, worker=row.worker, actor=row.actor, detail=row.detail,
    )  # fmt: skip


def _of_steps(rows: Rows) -> Iterator[Entry]:
    tries: dict[int, list[Attempt]] = {}
    for one in rows.tries:
        if one.step_id is not None and one.status == AttemptStatus.FAILED:
            tries.setdefault(one.step_id, []).append(one)
    for step in rows.steps:
        yield from _of_step(step, tries.get(step.pk, []), rows.job.created_at)


def _of_step(step: TaskStatus, failed: list[Attempt], created_at: datetime) -> Iterator[Entry]:
    """The start of a step, its failed tries, and where it stands."""
    name = f"{step.slug}/{step.step_id}"
    started = step.started_at or step.finished_at or created_at
    ended = step.finished_at or (failed[-1].finished_at if failed else None) or started

    def entry(at: datetime | None, to: str, frm: str | None, **more: Any) -> Entry:
        return Entry(
            job=step.job_id, at=max(at or started, started), event=f"{STEP}{'started' if frm is None else to}",
            frm=frm, to=to, step=name, **more,
        )  # fmt: skip

    first = StepStatus.SLEEPING if step.kind in WAITS else StepStatus.RUNNING
    if step.status in (StepStatus.SKIPPED, StepStatus.PENDING) and not step.total_tried:
        first = StepStatus.PENDING
    yield entry(started, first, None, fence=step.fence if not failed else failed[0].fence)
    status: str = first
    tried = 0
    for one in failed:
        last = one is failed[-1] and step.status == StepStatus.FAILED
        if last and one.number == step.total_tried:
            break
        yield entry(
            one.finished_at, StepStatus.PENDING, status, attempt=one.number, fence=one.fence, worker=one.worker,
            detail=_error(one.error),
        )  # fmt: skip
        status, tried = StepStatus.PENDING, one.number
    if (status, tried) != (step.status, step.total_tried):
        yield entry(
            ended, step.status, status, attempt=step.total_tried, fence=step.fence, worker=step.worker,
            detail=_error(step.error),
        )  # fmt: skip


def _error(error: Any) -> Any:
    if not isinstance(error, dict):
        return None
    brief = {key: error.get(key) for key in ("type", "message", "code")}
    return {"error": {key: value for key, value in brief.items() if value is not None}}


def _merge(job: list[Entry], steps: list[Entry]) -> list[Entry]:
    """Both by time; at the same moment steps come behind a claim and before an outcome."""
    merged: list[Entry] = []
    waiting = list(reversed(steps))
    for entry in job:
        opens = entry.to == Status.RUNNING or entry.frm is None
        while waiting and (waiting[-1].at < entry.at or (waiting[-1].at == entry.at and not opens)):
            merged.append(waiting.pop())
        merged.append(entry)
    return merged + waiting[::-1]


# --- folding ----------------------------------------------------------------------------------


def fold(history: Iterable[Entry]) -> State:
    """The state that a history comes to, from nothing but its entries.

    A detail "counted" overrules whether an entry ends a counted try; details "attempts" and
    "crashes" set the count.
    """
    state = State()
    for number, entry in enumerate(history, 1):
        if entry.n != number:
            state.faults.append(f"entry {number} has the number {entry.n}")
        if entry.event.startswith(STEP):
            _fold_step(state, entry)
        else:
            _fold_job(state, entry)
    return state


def _fold_step(state: State, entry: Entry) -> None:
    assert entry.step is not None and entry.to is not None
    known = state.steps.get(entry.step)
    if entry.frm != (known and known.status):
        state.faults.append(
            f"entry {entry.n} ({entry.event}) takes the step {entry.step} from {entry.frm}, "
            f"but it is {known.status if known else 'not there'}"
        )
    tried = entry.attempt if entry.attempt is not None else known.tried if known else 0
    state.steps[entry.step] = StepState(entry.to, tried)


def _fold_job(state: State, entry: Entry) -> None:
    detail = entry.detail if isinstance(entry.detail, dict) else {}
    state.attempts += _counted(entry, detail)
    if entry.event in ("taken_back", "crashed"):
        state.crashes += 1
    if _forgives_crashes(entry):
        state.crashes = 0
    for name in ("attempts", "crashes"):
        if isinstance(detail.get(name), int):
            setattr(state, name, detail[name])
    if entry.to is None:
        return
    if entry.frm != state.status:
        state.faults.append(
            f"entry {entry.n} ({entry.event}) takes the job from {entry.frm}, but it is {state.status}"
        )
    elif state.status is not None and not _is_legal(state.status, entry.to):
        state.faults.append(
            f"entry {entry.n} ({entry.event}) takes the job from {state.status} to {entry.to}"
        )
    state.status = entry.to


def _counted(entry: Entry, detail: dict[str, Any]) -> int:
    """How many tries of the job this entry ends."""
    if "counted" in detail:
        return int(detail["counted"])
    if entry.event == "failed":
        error = detail.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        return int(entry.frm == Status.RUNNING and code not in UNCOUNTED)
    return int(entry.event in ("retrying", "completed"))


def _forgives_crashes(entry: Entry) -> bool:
    """Whether the crashes count anew: an operator's retry opened the job again, or its undoing begins."""
    begins_undo = entry.to == Status.COMPENSATING and entry.frm != Status.COMPENSATING
    return begins_undo or (entry.frm, entry.to) == (Status.FAILED, Status.PENDING)


def _is_legal(frm: str, to: str) -> bool:
    try:
        return Status(to) in NEXT[Status(frm)]
    except ValueError:
        return False
