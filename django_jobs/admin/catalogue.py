"""Tasks, queues and workers: what there is to run, where it waits, and who runs it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs import clock, conf
from django_jobs.admin import detail, formatting
from django_jobs.admin.acting import Act, ActingAdmin
from django_jobs.admin.dashboard import more_than
from django_jobs.admin.filters import KindFilter, PausedFilter
from django_jobs.admin.paging import TitledChangeList
from django_jobs.admin.running import RunningAdmin
from django_jobs.models import Job, Queue, Task, Worker
from django_jobs.observe import stats
from django_jobs.store import catalogue, notify_all, workers
from django_jobs.store.session import Session, engine_alias


def _block(value: Any) -> SafeString | str:
    """A JSON value as preformatted text."""
    if value in (None, "", {}):
        return formatting.EMPTY
    return format_html('<pre class="dj-json">{}</pre>', formatting.pretty(value))


def _jobs_link(model_admin: admin.ModelAdmin[Any], **query: str) -> SafeString | str:
    listed = detail.url(model_admin, "changelist", model="job")
    if listed is None:
        return formatting.EMPTY
    return format_html('<a href="{}?{}">{}</a>', listed, urlencode(query), _("show"))


def _switches(kind: str) -> tuple[Act, Act]:
    """Pause and resume, fleet-wide and at once."""
    words = {
        "tasks": (gettext_lazy("Pause selected tasks"), gettext_lazy("Resume selected tasks")),
        "queues": (gettext_lazy("Pause selected queues"), gettext_lazy("Resume selected queues")),
    }[kind]
    return (
        Act(
            "pause", gettext_lazy("Pause"), words[0], "pause",
            lambda row: not row.paused, lambda row: row.pause(), gettext_lazy("Paused"),
        ),
        Act(
            "resume", gettext_lazy("Resume"), words[1], "pause",
            lambda row: row.paused, lambda row: row.resume(), gettext_lazy("Resumed"),
        ),
    )  # fmt: skip


@admin.register(Task)
class TaskAdmin(RunningAdmin, ActingAdmin):
    """The catalogue of registered tasks and workflows."""

    list_display = [
        "slug", "label", "shown_kind", "queue", "shown_versions", "state", "shown_seen", "jobs",
    ]  # fmt: skip
    list_filter = [KindFilter, PausedFilter]
    search_fields = ["slug__startswith", "label__icontains"]
    search_placeholder = gettext_lazy("slug or label")
    ordering = ["slug"]
    acts = _switches("tasks")
    readonly_fields = [
        "slug", "label", "shown_kind", "shown_description", "queue", "shown_versions", "shown_workers", "state",
        "first_seen", "last_seen", "jobs", "ended", "ran", "waited", "shown_input", "shown_output",
    ]  # fmt: skip
    fields = tuple(readonly_fields)

    @admin.display(description=gettext_lazy("queue"), ordering="queue_name")
    def queue(self, task: Task) -> str:
        return task.queue_name

    @admin.display(description=gettext_lazy("kind"), ordering="kind")
    def shown_kind(self, task: Task) -> str:
        return formatting.kind(task.kind)

    @admin.display(description=gettext_lazy("versions"))
    def shown_versions(self, task: Task) -> str:
        named = [str(version) for version in task.versions or [] if version is not None]
        return ", ".join(named) or formatting.EMPTY

    @admin.display(description=gettext_lazy("state"))
    def state(self, task: Task) -> SafeString | str:
        return formatting.badge("paused") if task.paused else _("open")

    @admin.display(description=gettext_lazy("last seen"), ordering="last_seen")
    def shown_seen(self, task: Task) -> SafeString | str:
        return formatting.moment(task.last_seen)

    @admin.display(description=gettext_lazy("jobs"))
    def jobs(self, task: Task) -> SafeString | str:
        return _jobs_link(self, slug=task.slug)

    def page_extras(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        if not self.has_enqueue_permission(request, row):
            return {}
        return {"links": [{"url": detail.url(self, "run", row.pk), "label": _("Run…")}]}

    @admin.display(description=gettext_lazy("workers that can run it"))
    def shown_workers(self, task: Task) -> str:
        codes = stats.live_codes(str(task._state.db))
        counted = {version: n for (slug, version), n in codes.items() if slug == task.slug}
        if set(counted) <= {None}:
            return formatting.number(counted.get(None, 0))
        return ", ".join(
            f"{version or formatting.EMPTY}: {formatting.number(n)}"
            for version, n in counted.items()
        )

    @admin.display(description=gettext_lazy("ended last"))
    def ended(self, task: Task) -> str:
        part = self._times(task)
        if not part.finished:
            return formatting.EMPTY
        return _("%(failed)s of %(finished)s failed") % {
            "failed": formatting.number(part.failed),
            "finished": formatting.number(part.finished),
        }

    @admin.display(description=gettext_lazy("from start to end"))
    def ran(self, task: Task) -> str:
        return _percents(self._times(task).ran)

    @admin.display(description=gettext_lazy("waited for a worker"))
    def waited(self, task: Task) -> str:
        return _percents(self._times(task).waited)

    def _times(self, task: Any) -> stats.Part:
        if not hasattr(task, "times_of_late"):
            task.times_of_late = stats.task_times(str(task._state.db), task.slug)
        part: stats.Part = task.times_of_late
        return part

    @admin.display(description=gettext_lazy("description"))
    def shown_description(self, task: Task) -> SafeString | str:
        if not task.description:
            return formatting.EMPTY
        return format_html('<span class="dj-text">{}</span>', task.description)

    @admin.display(description=gettext_lazy("input"))
    def shown_input(self, task: Task) -> SafeString | str:
        return _block(task.input_schema)

    @admin.display(description=gettext_lazy("output"))
    def shown_output(self, task: Task) -> SafeString | str:
        return _block(task.output_schema)


def _percents(value: Any) -> str:
    found = {percent: value(percent) for percent in (50, 95, 99)}
    if found[50] is None:
        return formatting.EMPTY
    return ", ".join(f"p{percent} {formatting.duration(one)}" for percent, one in found.items())


class QueueChangeList(TitledChangeList):
    """The queues, each with what it holds."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        depths = stats.depths(engine_alias()) if rows else {}
        for row in rows:
            row.depth = depths.get(row.name) or stats.Depth(row.name)
        self.result_list = rows


@admin.register(Queue)
class QueueAdmin(ActingAdmin):
    """The queues: what they hold, and their limits. Once edited here the row is the operator's."""

    list_display = [
        "name", "state", "ready", "running", "later", "longest", "workers", "shown_limit", "owner", "jobs",
    ]  # fmt: skip
    list_filter = [PausedFilter]
    search_fields = ["name__startswith"]
    ordering = ["name"]
    acts = _switches("queues")
    readonly_fields = ["name", "state", "owner", "jobs"]
    fields = ("name", "state", "owner", "jobs", "limit", "priority", "fair_by")

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.change_queue")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return QueueChangeList

    def save_model(
        self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool
    ) -> None:
        session = Session(obj._state.db, through_django=True)
        catalogue.edit_queue(
            session, obj.name, limit=obj.limit, priority=obj.priority, fair_by=obj.fair_by or None
        )
        # A greater limit may let in jobs that wait.
        notify_all(session.alias)

    @admin.display(description=gettext_lazy("state"))
    def state(self, queue: Queue) -> SafeString | str:
        return formatting.badge("paused") if queue.paused else _("open")

    @admin.display(description=gettext_lazy("ready"))
    def ready(self, queue: Any) -> str:
        return more_than(queue.depth.ready, queue.depth.more)

    @admin.display(description=gettext_lazy("in hand"))
    def running(self, queue: Any) -> str:
        return formatting.number(queue.depth.running)

    @admin.display(description=gettext_lazy("later"))
    def later(self, queue: Any) -> str:
        return formatting.number(queue.depth.later)

    @admin.display(description=gettext_lazy("longest wait"))
    def longest(self, queue: Any) -> str:
        return formatting.duration(queue.depth.waited)

    @admin.display(description=gettext_lazy("workers"))
    def workers(self, queue: Any) -> str:
        return formatting.number(queue.depth.workers)

    @admin.display(description=gettext_lazy("limit"))
    def shown_limit(self, queue: Queue) -> str:
        return formatting.EMPTY if queue.limit is None else str(queue.limit)

    @admin.display(description=gettext_lazy("set by"))
    def owner(self, queue: Queue) -> str:
        return _("operator") if queue.edited else _("settings")

    @admin.display(description=gettext_lazy("jobs"))
    def jobs(self, queue: Queue) -> SafeString | str:
        return _jobs_link(self, queue=queue.name)


def _drain(wanted: bool) -> Any:
    def ask(worker: Worker) -> None:
        session = Session(worker._state.db, through_django=True)
        workers.drain(session, worker.pk, wanted)

    return ask


@admin.register(Worker)
class WorkerAdmin(ActingAdmin):
    """The processes that run jobs, those of the past included until they are pruned."""

    list_display = [
        "shown_name", "state", "shown_queues", "threads", "jobs_in_hand", "shown_memory", "shown_started",
        "shown_beat",
    ]  # fmt: skip
    search_fields = ["hostname__startswith"]
    acts = (
        Act(
            "drain", gettext_lazy("Drain"), gettext_lazy("Drain selected workers"), "drain",
            lambda row: row.stopped_at is None and not row.drain, _drain(True), gettext_lazy("Drained"),
        ),
        Act(
            "undrain", gettext_lazy("Take jobs again"), gettext_lazy("Let selected workers take jobs again"),
            "drain", lambda row: row.stopped_at is None and row.drain, _drain(False),
            gettext_lazy("Taking jobs again"),
        ),
    )  # fmt: skip
    search_placeholder = gettext_lazy("host")
    ordering = ["-heartbeat_at"]
    readonly_fields = [
        "id", "hostname", "pid", "supervisor", "state", "drain", "shown_queues", "threads",
        "shown_memory", "started_at", "heartbeat_at", "stopped_at", "in_hand", "shown_codes",
    ]  # fmt: skip
    fields = tuple(readonly_fields)

    def has_drain_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.change_worker")

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.view_worker")

    @admin.display(description=gettext_lazy("worker"))
    def shown_name(self, worker: Worker) -> str:
        return str(worker)

    @admin.display(description=gettext_lazy("state"))
    def state(self, worker: Worker) -> SafeString | str:
        """Stopped, silent for longer than a lease, or what the row says."""
        if worker.stopped_at is not None:
            return formatting.badge("stopped")
        if worker.heartbeat_at < _now() - timedelta(seconds=conf.get().lease):
            return formatting.badge("silent")
        if worker.drain:
            return formatting.badge("draining")
        return formatting.badge(worker.status)

    @admin.display(description=gettext_lazy("queues"))
    def shown_queues(self, worker: Worker) -> str:
        return ", ".join(map(str, worker.queues or [])) or _("all")

    @admin.display(description=gettext_lazy("memory"))
    def shown_memory(self, worker: Worker) -> str:
        return formatting.EMPTY if worker.memory is None else f"{worker.memory / 2**20:.0f} MiB"

    @admin.display(description=gettext_lazy("started"), ordering="started_at")
    def shown_started(self, worker: Worker) -> SafeString | str:
        return formatting.moment(worker.started_at)

    @admin.display(description=gettext_lazy("last heartbeat"), ordering="heartbeat_at")
    def shown_beat(self, worker: Worker) -> SafeString | str:
        return formatting.moment(worker.heartbeat_at)

    @admin.display(description=gettext_lazy("jobs in hand"))
    def in_hand(self, worker: Worker) -> SafeString | str:
        held = (
            Job.objects.using(worker._state.db)
            .filter(lease_expires_at__isnull=False, worker=worker.pk)
            .only("id", "slug")
            .order_by("pk")
        )
        rows = [
            (detail.url(self, "change", job.pk, model="job") or "", job.slug, formatting.short_id(job.pk))
            for job in held[: detail.RELATED]
        ]  # fmt: skip
        if not rows:
            return formatting.EMPTY
        return format_html_join("\n", '<a class="dj-line" href="{}">{} {}</a>', rows)

    @admin.display(description=gettext_lazy("can run"))
    def shown_codes(self, worker: Worker) -> str:
        pairs = [pair for pair in worker.codes or [] if isinstance(pair, list) and len(pair) == 2]
        named = [f"{slug} ({version})" if version else str(slug) for slug, version in pairs]
        return Truncator(", ".join(named) or formatting.EMPTY).chars(4000)


def _now() -> Any:
    moment = clock.now()
    return moment if timezone.is_aware(timezone.now()) else timezone.make_naive(moment)
