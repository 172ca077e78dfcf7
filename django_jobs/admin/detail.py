"""What the page of one job shows, read in few statements whatever the job's size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Coalesce, Length
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from django_jobs.admin import formatting, pictures, timeline
from django_jobs.admin.tries import of_job as tries_of_job
from django_jobs.admin.tries import share_out
from django_jobs.explain import explain
from django_jobs.lifecycle import DRIVEN, Kind, Status, StepKind, StepStatus
from django_jobs.models import Event, Job, LogLine, TaskStatus, Worker

if TYPE_CHECKING:
    from django_jobs.admin.jobs import JobAdmin

#: Rows of one section on one page.
STEPS, ATTEMPTS, LOG_LINES, ENTRIES, RELATED = 100, 50, 300, 100, 50
#: Compensations of a run that are counted.
UNDONE = 1_000
#: Input and output of a step are shown in the list up to this many characters.
INLINE_PAYLOAD = 20_000


@dataclass(frozen=True)
class Payload:
    """A JSON value under a heading; ``text`` is None when it is not shown, for ``reason``."""

    title: str
    text: str | None
    note: str = ""
    reason: str = ""
    link: str = ""
    open: bool = False


@dataclass(frozen=True)
class Fact:
    label: str
    value: Any
    link: str | None = None
    title: str = ""


@dataclass
class Problem:
    """An error dict as shown."""

    line: str
    kind: str
    message: str
    code: str
    traceback: str
    step: str = ""


@dataclass
class Step:
    """One step of a run, ready for the table."""

    row: TaskStatus
    kind: str
    depth: int
    status: SafeString | str
    started: SafeString | str
    finished: SafeString | str
    took: str
    worker: str
    problem: Problem | None
    payloads: list[Payload] = field(default_factory=list)
    child_url: str | None = None
    waits: str = ""


@dataclass(frozen=True)
class Section:
    """Rows of one kind, and where the rest of them is."""

    rows: list[Any]
    more: str | None = None
    first: str | None = None


def url(model_admin: Any, what: str, *args: object, model: str | None = None) -> str | None:
    """The address of a page of this admin site; None where the model has no page on it."""
    opts = model_admin.opts
    name = f"{model_admin.admin_site.name}:{opts.app_label}_{model or opts.model_name}_{what}"
    try:
        return reverse(name, args=args)
    except NoReverseMatch:
        return None


def problem(error: Any) -> Problem | None:
    """An error dict, or whatever stands in its place, as shown."""
    if error is None:
        return None
    if not isinstance(error, dict):
        error = {"message": error}
    text = {name: "" if error.get(name) is None else str(error[name]) for name in error}
    line = formatting.one_line(error)
    message = text.get("message", "")
    return Problem(
        line=line,
        kind=text.get("type", ""),
        # Not twice: the line says all of a short message.
        message="" if line.endswith(message) else message,
        code=text.get("code", ""),
        traceback=text.get("traceback", ""),
        step=text.get("step_id", ""),
    )


def payload(title: str, value: Any, *, names: Iterable[str], shown: bool, **extra: Any) -> Payload:
    if not shown:
        return Payload(
            title, None, reason=_("hidden: needs the permission to see input and output")
        )
    text = formatting.pretty(value, tuple(names))
    return Payload(title, text, note=formatting.size(len(text)), **extra)


def section(
    found: QuerySet[Any], request: HttpRequest, name: str, limit: int, *, newest: bool = False
) -> Section:
    """One page of rows by id; ``?name=id`` is where it goes on."""
    start = request.GET.get(name, "")
    if start.isdecimal() and len(start) < 19:
        found = found.filter(pk__lt=start) if newest else found.filter(pk__gt=start)
    else:
        start = ""
    rows = list(found.order_by("-pk" if newest else "pk")[: limit + 1])
    more = None
    if len(rows) > limit:
        rows = rows[:limit]
        more = f"?{name}={rows[-1].pk}#{name}"
    return Section(rows[::-1] if newest else rows, more, f"?#{name}" if start else None)


def job_context(
    model_admin: JobAdmin, request: HttpRequest, job: Job, *, payload: bool
) -> dict[str, Any]:
    """Everything on a job's page besides the admin's own frame."""
    alias = str(job._state.db)
    steps = _step_rows(job, alias, request)
    tries = section(tries_of_job(alias, job.pk), request, "attempts", ATTEMPTS, newest=True)
    lines = section(
        LogLine.objects.using(alias).filter(job_id=job.pk), request, "log", LOG_LINES, newest=True
    )
    shared, others = share_out(tries.rows, lines.rows)
    entries = section(
        job.history.using(alias),
        request,
        "history",
        ENTRIES,
        newest=True,
    )
    workers = _workers(
        alias,
        [job.worker, *(row.worker for part in (steps, tries, entries) for row in part.rows)],
    )
    related = _related(model_admin, job, alias)
    names = formatting.secret_names(job.slug)
    running = job.status in DRIVEN
    return {
        "status": formatting.badge(job.status),
        "facts": _facts(model_admin, request, job, workers),
        "waiting": explain(job) if job.finished_at is None and not running else None,
        "problem": problem(job.error),
        "progress": None if job.progress is None else round(max(0.0, min(job.progress, 1.0)) * 100),
        "moments": timeline.moments(
            job, entries.rows, workers, complete=entries.more is None, names=names
        ),
        "entries": entries,
        "payloads": _job_payloads(job, names, shown=payload),
        "waterfall": pictures.waterfall(job, steps.rows),
        "graph": pictures.graph(job, alias),
        "undone": _undone(job, alias),
        "steps": Section(
            _steps(model_admin, job, alias, steps.rows, workers, payload=payload),
            steps.more, steps.first,
        ),
        "attempts": Section(
            [_attempt(row, workers, shared.get(row.pk, [])) for row in tries.rows],
            tries.more, tries.first,
        ),
        "log": Section(others, lines.more, lines.first),
        "log_elsewhere": bool(shared),
        "events": _events(job, alias, names, shown=payload),
        "related": related,
        "running": running,
    }  # fmt: skip


def step_context(
    model_admin: JobAdmin, request: HttpRequest, job: Job, step_id: int, *, payload: bool
) -> dict[str, Any] | None:
    """One step with its whole payload; None when the job has no such step."""
    alias = str(job._state.db)
    row = TaskStatus.objects.using(alias).filter(job_id=job.pk, pk=step_id).first()
    if row is None:
        return None
    workers = _workers(alias, [row.worker])
    step = _step(model_admin, row, 0, workers)
    step.payloads = _step_payloads(row, shown=payload, opened=True)
    return {"step": step, "title": f"{row.slug} / {row.step_id}"}


# --- parts ------------------------------------------------------------------------------------


def _workers(alias: str, ids: Iterable[UUID | None]) -> dict[UUID, Worker]:
    wanted = {one for one in ids if one is not None}
    if not wanted:
        return {}
    found = Worker.objects.using(alias).only("id", "hostname", "pid")
    return {row.pk: row for row in found.filter(pk__in=wanted)}


def _facts(
    model_admin: JobAdmin, request: HttpRequest, job: Job, workers: dict[UUID, Worker]
) -> list[Fact]:
    moment, full = formatting.moment, formatting.full_moment
    running = job.status in DRIVEN
    facts = [
        Fact(_("id"), str(job.pk)),
        Fact(_("kind"), formatting.kind(job.kind)),
        Fact(_("version"), job.version),
        Fact(_("queue"), job.queue_name, _list_of(model_admin, "queue", job.queue_name)),
        Fact(_("priority"), job.priority),
        Fact(_("created"), moment(job.created_at), title=full(job.created_at)),
        Fact(_("not before"), moment(job.run_after) if job.run_after else None),
        Fact(_("started"), moment(job.started_at) if job.started_at else None),
        Fact(_("finished"), moment(job.finished_at) if job.finished_at else None),
        Fact(
            _("duration"),
            formatting.span(job.started_at, job.finished_at, running=running)
            if job.started_at and (running or job.finished_at)
            else None,
        ),
        Fact(
            _("waited"),
            formatting.span(max(job.run_after or job.created_at, job.created_at), job.started_at)
            if job.started_at
            else None,
        ),
        Fact(_("attempts"), job.attempts),
        Fact(_("crashes"), job.crashes or None),
        Fact(
            _("worker"),
            formatting.worker_name(job.worker, workers),
            url(model_admin, "change", job.worker, model="worker")
            if job.worker in workers and request.user.has_perm("django_jobs.view_worker")
            else None,
            title=str(job.worker or ""),
        ),
        Fact(_("lease until"), moment(job.lease_expires_at) if job.lease_expires_at else None),
        Fact(_("concurrency key"), job.concurrency_key),
        Fact(_("idempotency key"), job.idempotency_key),
        Fact(_("expires"), moment(job.expires_at) if job.expires_at else None),
        Fact(_("time limit ends"), moment(job.deadline_at) if job.deadline_at else None),
        Fact(_("schedule slot"), moment(job.slot) if job.slot else None),
        Fact(_("runner"), job.runner if job.runner != "db" else None),
    ]
    return [fact for fact in facts if fact.value not in (None, "")]


def _list_of(model_admin: Any, name: str, value: str) -> str | None:
    from urllib.parse import urlencode

    listed = url(model_admin, "changelist")
    return f"{listed}?{urlencode({name: value})}" if listed else None


def _job_payloads(job: Job, names: tuple[str, ...], *, shown: bool) -> list[Payload]:
    values = [
        (_("Input"), job.input, True),
        (_("Positional input"), job.args, False),
        (_("Output"), job.output, job.finished_at is not None and job.error is None),
        (_("Context"), job.context, False),
        (_("Meta"), job.meta or None, False),
        (_("Call options"), job.options, False),
        (_("Graph"), job.spec, False),
    ]
    return [
        payload(title, value, names=names, shown=shown)
        for title, value, always in values
        if always or value is not None
    ]


def _related(model_admin: JobAdmin, job: Job, alias: str) -> list[dict[str, Any]]:
    """Links to the jobs that belong to this one."""
    few = Job.objects.using(alias).only("id", "slug", "status", "created_at", "kind")
    listed: list[tuple[str, Job]] = []
    single = {
        job.parent_id: _("parent"),
        job.rerun_of_id: _("re-run of"),
        job.superseded_by: _("superseded by"),
    }
    single.pop(None, None)
    if single:
        listed += [(single[row.pk], row) for row in few.filter(pk__in=single)]
    children = few.filter(parent_id=job.pk).order_by("pk")[:RELATED]
    reruns = few.filter(rerun_of_id=job.pk).order_by("pk")[:RELATED]
    listed += [(_("child"), row) for row in children]
    listed += [(_("re-run"), row) for row in reruns]
    return [
        {
            "relation": relation,
            "job": row,
            "url": url(model_admin, "change", row.pk, model=_page_of(row)),
            "short_id": formatting.short_id(row.pk),
            "status": formatting.badge(row.status),
            "created": formatting.moment(row.created_at),
        }
        for relation, row in listed
    ]


def _page_of(job: Job) -> str:
    return "workflowrun" if job.kind in (Kind.WORKFLOW, Kind.DAG) else "job"


def _step_rows(job: Job, alias: str, request: HttpRequest) -> Section:
    """Steps without their payloads, whose sizes are known before they are fetched."""
    zero = Coalesce(Length(Cast("input", TextField())), 0)
    out = Coalesce(Length(Cast("output", TextField())), 0)
    found = (
        TaskStatus.objects.using(alias)
        .filter(job_id=job.pk)
        .defer("input", "output", "compensation")
        .annotate(payload_size=zero + out)
    )
    return section(found, request, "steps", STEPS)


def _steps(
    model_admin: JobAdmin,
    job: Job,
    alias: str,
    rows: list[Any],
    workers: dict[UUID, Worker],
    *,
    payload: bool,
) -> list[Step]:
    small = [row.pk for row in rows if row.payload_size <= INLINE_PAYLOAD] if payload else []
    values: dict[int, TaskStatus] = {}
    if small:
        found = TaskStatus.objects.using(alias).filter(pk__in=small)
        values = {row.pk: row for row in found.only("id", "slug", "status", "input", "output")}
    depths: dict[str | None, int] = {None: -1}
    shown = []
    for row in rows:
        depths[row.step_key] = depth = depths.get(row.parent_key, 0) + 1
        step = _step(model_admin, row, min(depth, 4), workers)
        if row.pk in values:
            step.payloads = _step_payloads(values[row.pk], shown=True)
        elif not payload:
            step.payloads = _step_payloads(row, shown=False)
        else:
            step.payloads = [
                Payload(
                    _("Input and output"),
                    None,
                    reason=formatting.size(row.payload_size),
                    link=url(model_admin, "step", job.pk, row.pk) or "",
                )
            ]
        shown.append(step)
    return shown


def _step(model_admin: JobAdmin, row: TaskStatus, depth: int, workers: dict[UUID, Worker]) -> Step:
    waits = ""
    if row.finished_at is None and row.wake_at is not None:
        waits = _("until %(moment)s") % {"moment": formatting.full_moment(row.wake_at)}
    if row.finished_at is None and row.event_name:
        waits = _("for the event %(name)s %(until)s") % {"name": row.event_name, "until": waits}
    return Step(
        row=row,
        kind=formatting.kind(row.kind),
        depth=depth,
        status=formatting.badge(row.status),
        started=formatting.moment(row.started_at),
        finished=formatting.moment(row.finished_at),
        took=formatting.span(
            row.started_at, row.finished_at, running=row.status == StepStatus.RUNNING
        ),
        worker=formatting.worker_name(row.worker, workers),
        problem=problem(row.error),
        child_url=url(model_admin, "change", row.child, model="job") if row.child else None,
        waits=waits.strip(),
    )


def _step_payloads(row: TaskStatus, *, shown: bool, opened: bool = False) -> list[Payload]:
    if not shown:
        return [payload(_("Input and output"), None, names=(), shown=False)]
    names = formatting.secret_names(row.slug)
    values = [(_("Input"), row.input)]
    if row.output is not None or row.complete:
        values.append((_("Output"), row.output))
    return [payload(title, one, names=names, shown=True, open=opened) for title, one in values]


def _attempt(row: Any, workers: dict[UUID, Worker], lines: list[LogLine]) -> dict[str, Any]:
    return {
        "row": row,
        "step": f"{row.step_slug} / {row.step_name}" if row.step_slug else "",
        "status": formatting.badge(row.status),
        "worker": formatting.worker_name(row.worker, workers),
        "started": formatting.moment(row.started_at),
        "took": formatting.span(
            row.started_at, row.finished_at, running=row.status == StepStatus.RUNNING
        ),
        "problem": problem(row.error),
        "lines": lines,
        "size": formatting.number(len(lines)),
    }


def _undone(job: Job, alias: str) -> str:
    """How far a run is undone, in words; nothing for one that never began to be."""
    if job.kind not in (Kind.WORKFLOW, Kind.DAG) or not (
        job.status.startswith("compensat") or job.status in (Status.FAILED, Status.CANCELED)
    ):
        return ""
    found = TaskStatus.objects.using(alias).filter(job_id=job.pk, kind=StepKind.COMPENSATION)
    statuses = list(found.values_list("status", flat=True)[:UNDONE])
    if not statuses:
        return ""
    done = statuses.count(StepStatus.COMPLETED)
    said = _("%(done)s of %(all)s compensations completed") % {
        "done": formatting.number(done),
        "all": formatting.number(len(statuses)),
    }
    if failed := statuses.count(StepStatus.FAILED):
        said += _(", %(failed)s failed") % {"failed": formatting.number(failed)}
    return said


def _events(job: Job, alias: str, names: tuple[str, ...], *, shown: bool) -> list[dict[str, Any]]:
    if job.kind == Kind.TASK:
        return []
    found = Event.objects.using(alias).filter(job_id=job.pk).order_by("-pk")
    if not shown:
        found = found.defer("payload")
    return [
        {
            "row": row,
            "sent": formatting.moment(row.sent_at),
            "payload": payload(
                _("Payload"), row.payload if shown else None, names=names, shown=shown
            ),
        }
        for row in found[:RELATED]
    ]
