"""Why a job is not running: every closed gate in order, and what opens it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from django_jobs import conf
from django_jobs.definitions import registry
from django_jobs.lifecycle import DRIVEN, FINAL_STEPS, WAITS, Gate, Kind, Status, StepKind
from django_jobs.models import Job, OutboxMessage, Permit, Queue, Task, TaskStatus, Worker
from django_jobs.store import admission, rates
from django_jobs.store.outbox import CELERY
from django_jobs.store.session import Session, engine_alias

#: Heartbeats after which a worker that shows none is not counted on.
SILENT_BEATS = 3


@dataclass(frozen=True, slots=True)
class ClosedGate:
    """Something that keeps a job from running. ``name`` is for programs, the texts are for people."""

    name: str
    why: str
    opens: str
    #: What the texts name, as data: ids, keys, moments.
    about: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.why} {self.opens}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The closed gates of a job in the order in which they are passed. Iterable; false without any."""

    job: Any
    status: str
    gates: tuple[ClosedGate, ...]
    #: What is to be said where no gate is closed.
    summary: str

    def __iter__(self) -> Iterator[ClosedGate]:
        return iter(self.gates)

    def __len__(self) -> int:
        return len(self.gates)

    def __str__(self) -> str:
        if not self.gates:
            return self.summary
        return "\n".join(str(gate) for gate in self.gates)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "job": str(self.job), "status": self.status, "summary": str(self),
            "gates": [asdict(gate) for gate in self.gates],
        }  # fmt: skip


def explain(job: Job) -> Explanation:
    """What keeps ``job`` from running now, read from the database; Job.DoesNotExist when it is gone."""
    alias = job._state.db or engine_alias()
    row = Job.units.using(alias).get(pk=job.pk)
    look = Look(row, alias)
    gates = tuple(gate for part in PARTS if (gate := part(look)) is not None)
    return Explanation(row.pk, row.status, gates, look.summary)


class Look:
    """One look at a job and what is around it."""

    def __init__(self, job: Job, alias: str) -> None:
        self.job = job
        self.alias = alias
        self.now = _now(alias)
        #: It is to be undone, and nobody does.
        self.is_left = job.status == Status.COMPENSATING and job.lease_expires_at is None
        waits = job.status in (Status.PENDING, Status.SLEEPING, Status.PAUSED)
        self.is_waiting = waits or self.is_left
        self._workers: list[Worker] | None = None

    @property
    def summary(self) -> str:
        job = self.job
        if job.status in DRIVEN and not self.is_left:
            return f"It is {job.status} on worker {job.worker}."
        return "Nothing holds it back: it runs as soon as a worker is free."

    @property
    def workers(self) -> list[Worker]:
        """Those alive that serve the job's queue."""
        if self._workers is None:
            silent = self.now - timedelta(seconds=SILENT_BEATS * max(conf.get().heartbeat, 4.0))
            alive = Worker.objects.using(self.alias).filter(
                status="running", heartbeat_at__gte=silent
            )
            name = self.job.queue_name
            self._workers = [one for one in alive if not one.queues or name in one.queues]
        return self._workers


def _now(alias: str) -> datetime:
    session = Session(alias)
    row = session.one("SELECT {now}")
    moment = session.dialect.time(row[0]) if row else None
    assert moment is not None
    return moment


# --- gate by gate -----------------------------------------------------------------------------


def _final(look: Look) -> ClosedGate | None:
    job = look.job
    if job.status in (Status.FAILED, Status.COMPENSATION_FAILED):
        said = (job.error or {}).get("message", "")
        return ClosedGate(
            "status", f"It is {job.status}: {said}".strip(), "retry() opens it again."
        )
    if job.finished_at is not None:
        return ClosedGate("status", f"It is {job.status}.", "rerun() makes a new job of it.")
    return None


def _paused(look: Look) -> ClosedGate | None:
    if look.job.status != Status.PAUSED:
        return None
    entry = look.job.history.filter(to_status=Status.PAUSED).order_by("-n").first()
    actor = entry.actor if entry is not None else None
    detail = entry.detail if entry is not None and isinstance(entry.detail, dict) else {}
    error = detail.get("error")
    said = detail.get("reason") or (error.get("message") if isinstance(error, dict) else None)
    by = f" by {actor}" if actor else ""
    return ClosedGate(
        "status", f"It is paused{by}{f': {said}' if said else '.'}", "resume() opens it.",
        {"actor": actor, "reason": said},
    )  # fmt: skip


def _held(look: Look) -> ClosedGate | None:
    job = look.job
    if not look.is_waiting or job.lease_expires_at is None or job.lease_expires_at < look.now:
        return None
    return ClosedGate(
        "lease", f"Worker {job.worker} still has a step of it in hand.",
        f"It opens with the end of that step, or at {_moment(job.lease_expires_at)} if the worker is gone.",
        {"worker": str(job.worker), "until": job.lease_expires_at},
    )  # fmt: skip


def _due(look: Look) -> ClosedGate | None:
    job = look.job
    if job.status != Status.PENDING:
        return None
    due = job.run_after if job.gate == Gate.TIMER and job.run_after else job.due_at
    if due <= look.now:
        return None
    return ClosedGate(
        "due", f"It is not due before {_moment(due)}.", "It opens then, or by run_now().",
        {"due": due},
    )  # fmt: skip


def _undoing(look: Look) -> ClosedGate | None:
    job = look.job
    if not look.is_left:
        return None
    if job.run_after is not None and job.run_after > look.now:
        return ClosedGate(
            "undo", "It waits for the next try of a compensation.", f"It opens at {_moment(job.run_after)}.",
            {"due": job.run_after},
        )  # fmt: skip
    units = Job.units.using(look.alias).filter(parent=job, kind=Kind.STEP, finished_at=None).count()
    if units:
        return ClosedGate(
            "units", f"It is undone once its steps in hand have ended: {units}.", "It opens with their end.",
            {"units": units},
        )  # fmt: skip
    return None


def _asleep(look: Look) -> ClosedGate | None:
    job = look.job
    if job.status != Status.SLEEPING:
        return None
    waits = TaskStatus.objects.using(look.alias).filter(job_id=job.pk, kind__in=WAITS)
    waiting = waits.exclude(status__in=FINAL_STEPS).order_by("id").first()
    until = f"It opens at {_moment(job.run_after)}" if job.run_after else "It opens"
    about: dict[str, Any] = {"due": job.run_after}
    if job.gate != Gate.WAIT or waiting is None:
        said = (job.error or {}).get("message")
        why = "It waits for its next try" + (f" after: {said}" if said else ".")
        return ClosedGate("retry", why, f"{until}, or by run_now().", about)
    about = {**about, "step": waiting.step_id}
    if waiting.kind == StepKind.EVENT:
        return ClosedGate(
            "event", f"It waits for the event {waiting.event_name!r} (step {waiting.step_id}).",
            f"send_event({waiting.event_name!r}, to=job) opens it"
            + (f", or its time limit at {_moment(job.run_after)}." if job.run_after else "."),
            {**about, "event": waiting.event_name},
        )  # fmt: skip
    if waiting.kind == StepKind.CHILD:
        return ClosedGate(
            "child", f"It waits for its child run {waiting.child} (step {waiting.step_id}).",
            "It opens with the end of that run.", {**about, "child": str(waiting.child)},
        )  # fmt: skip
    return ClosedGate("timer", f"It sleeps (step {waiting.step_id}).", f"{until}.", about)


def _expired(look: Look) -> ClosedGate | None:
    job = look.job
    if not look.is_waiting or job.expires_at is None or job.started_at is not None:
        return None
    if job.expires_at > look.now:
        return None
    return ClosedGate(
        "expired", f"It should have started before {_moment(job.expires_at)}, and will be canceled.",
        "rerun() makes a new job of it then.", {"expires": job.expires_at},
    )  # fmt: skip


def _queue(look: Look) -> ClosedGate | None:
    name = look.job.queue_name
    queues = Queue.objects.using(look.alias).filter(name=name, paused=True)
    if not look.is_waiting or not queues.exists():
        return None
    return ClosedGate(
        "queue", f"The queue {name!r} is paused.", f"Queue.objects.get(name={name!r}).resume() opens it.",
        {"queue": name},
    )  # fmt: skip


def _task(look: Look) -> ClosedGate | None:
    slug = look.job.slug
    tasks = Task.objects.using(look.alias).filter(slug=slug, paused=True)
    if not look.is_waiting or not tasks.exists():
        return None
    return ClosedGate(
        "task", f"The task {slug!r} is paused.", f"Task.objects.get(slug={slug!r}).resume() opens it.",
        {"task": slug},
    )  # fmt: skip


def _worker(look: Look) -> ClosedGate | None:
    job = look.job
    if not look.is_waiting or job.runner != "db" or look.workers:
        return None
    return ClosedGate(
        "worker", f"No live worker serves the queue {job.queue_name!r}.",
        f"manage.py runjobs --queue {job.queue_name} opens it.", {"queue": job.queue_name},
    )  # fmt: skip


def _code(look: Look) -> ClosedGate | None:
    job = look.job
    if not look.is_waiting or job.runner != "db" or not look.workers or job.spec is not None:
        return None
    if any([job.slug, job.version] in one.codes for one in look.workers):
        return None
    version = f" version {job.version!r}" if job.version is not None else ""
    return ClosedGate(
        "code", f"No worker has this code: {job.slug!r}{version}.",
        "A worker of a release that has it opens it.", {"slug": job.slug, "version": job.version},
    )  # fmt: skip


def _key(look: Look) -> ClosedGate | None:
    job = look.job
    if not look.is_waiting or job.key_hash is None or job.key_limit is None:
        return None
    held = Permit.objects.using(look.alias).filter(key_hash=job.key_hash).exclude(job_id=job.pk)
    live = held.filter(Q(lease_expires_at__isnull=True) | Q(lease_expires_at__gte=look.now))
    units = list(live.order_by("number"))
    # The strictest limit of those that hold the key counts.
    if len(units) < min([job.key_limit, *(unit.most for unit in units)]):
        return None
    holders = [str(unit.job_id) for unit in units]
    return ClosedGate(
        "key", f"The concurrency key {job.concurrency_key!r} is held by job {', '.join(holders)}.",
        "It opens with the end of that job." if len(holders) == 1 else "It opens with the end of one of them.",
        {"key": job.concurrency_key, "holders": holders},
    )  # fmt: skip


def _queue_limit(look: Look) -> ClosedGate | None:
    name = look.job.queue_name
    limit = (
        Queue.objects.using(look.alias).filter(name=name).values_list("limit", flat=True).first()
    )
    if not look.is_waiting or limit is None:
        return None
    free = admission.free(Session(look.alias), {name: limit})[name]
    if free > 0:
        return None
    running = limit - free
    return ClosedGate(
        "queue_limit", f"The queue {name!r} is full: {running} of its jobs run, its limit is {limit}.",
        "It opens with the end of one of them, or with a higher limit of the queue.",
        {"queue": name, "limit": limit, "running": running},
    )  # fmt: skip


def _rate(look: Look) -> ClosedGate | None:
    job = look.job
    if job.status != Status.PENDING or job.rate_hash is None:
        return None
    definition = registry.find(job.slug, job.version)
    if (
        definition is None
        or definition.rate_limit is None
        or (definition.kind != Kind.TASK and job.started_at)
    ):
        return None
    window = rates.window(Session(look.alias), job.rate_hash, job.slug, job.version)
    if window is None or window.room or window.behind is None:
        return None
    return ClosedGate(
        "rate", f"Its rate of {definition.rate_limit.rate} is used up.",
        f"It opens at {_moment(window.behind)} for the first that waits.",
        {"rate": definition.rate_limit.rate, "next": window.behind},
    )  # fmt: skip


def _broker(look: Look) -> ClosedGate | None:
    """A job of the Celery runner: whether the broker was told, and when."""
    job = look.job
    if job.runner != CELERY or job.status != Status.PENDING or job.gate != Gate.OPEN:
        return None
    if job.due_at > look.now or (job.lease_expires_at and job.lease_expires_at >= look.now):
        return None
    messages = OutboxMessage.objects.using(look.alias).filter(job_id=job.pk, kind=CELERY)
    message = messages.filter(status="pending").order_by("id").first()
    duty = "a runjobs worker, or Celery's beat with our ticks or our scheduler, publishes it."
    if message is None:
        return ClosedGate(
            "broker", "It is not published to Celery's broker yet.", f"It opens when {duty}"
        )
    about = {"published": message.sent_at, "tries": message.tries, "error": message.error}
    if message.error:
        return ClosedGate(
            "broker", f"It could not be published to Celery's broker: {message.error.get('message', '')}",
            f"It opens with the next try at {_moment(message.next_try_at)}, when {duty}", about,
        )  # fmt: skip
    if message.sent_at is None:
        return ClosedGate(
            "broker", "It is promised to Celery's broker, and not published yet.", f"It opens when {duty}", about
        )  # fmt: skip
    return ClosedGate(
        "celery", f"It waits for a Celery worker since it was published at {_moment(message.sent_at)}.",
        "celery -A <project> worker opens it; "
        f"if the message is lost, it is published again after {_moment(message.next_try_at)}.",
        about,
    )  # fmt: skip


PARTS: tuple[Callable[[Look], ClosedGate | None], ...] = (
    _final, _paused, _held, _due, _asleep, _undoing, _expired, _queue, _task, _worker, _code, _key, _queue_limit,
    _rate, _broker,
)  # fmt: skip


def _moment(value: datetime | None) -> str:
    return value.isoformat(timespec="seconds") if value is not None else "an unknown time"
