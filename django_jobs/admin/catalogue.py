"""Tasks, queues and workers: what there is to run, where it waits, and who runs it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs import clock, conf
from django_jobs.admin import detail, formatting
from django_jobs.admin.base import ReadOnlyAdmin
from django_jobs.admin.filters import KindFilter, PausedFilter
from django_jobs.models import Job, Queue, Task, Worker


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


@admin.register(Task)
class TaskAdmin(ReadOnlyAdmin):
    """The catalogue of registered tasks and workflows."""

    list_display = [
        "slug", "label", "kind", "queue", "shown_versions", "state", "shown_seen", "jobs",
    ]  # fmt: skip
    list_filter = [KindFilter, PausedFilter]
    search_fields = ["slug__startswith", "label__icontains"]
    search_placeholder = gettext_lazy("slug or label")
    ordering = ["slug"]
    readonly_fields = [
        "slug", "label", "kind", "shown_description", "queue", "shown_versions", "state", "first_seen",
        "last_seen", "jobs", "shown_input", "shown_output",
    ]  # fmt: skip
    fields = tuple(readonly_fields)

    @admin.display(description=gettext_lazy("queue"), ordering="queue_name")
    def queue(self, task: Task) -> str:
        return task.queue_name

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


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin):
    """The queues, with their limits."""

    list_display = ["name", "state", "shown_limit", "priority", "shown_fair_by", "owner", "jobs"]
    list_filter = [PausedFilter]
    search_fields = ["name__startswith"]
    ordering = ["name"]
    readonly_fields = ["name", "state", "shown_limit", "priority", "shown_fair_by", "owner", "jobs"]
    fields = tuple(readonly_fields)

    @admin.display(description=gettext_lazy("state"))
    def state(self, queue: Queue) -> SafeString | str:
        return formatting.badge("paused") if queue.paused else _("open")

    @admin.display(description=gettext_lazy("limit"))
    def shown_limit(self, queue: Queue) -> str:
        return formatting.EMPTY if queue.limit is None else str(queue.limit)

    @admin.display(description=gettext_lazy("fair by"))
    def shown_fair_by(self, queue: Queue) -> str:
        return queue.fair_by or formatting.EMPTY

    @admin.display(description=gettext_lazy("set by"))
    def owner(self, queue: Queue) -> str:
        return _("operator") if queue.edited else _("settings")

    @admin.display(description=gettext_lazy("jobs"))
    def jobs(self, queue: Queue) -> SafeString | str:
        return _jobs_link(self, queue=queue.name)


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """The processes that run jobs, those of the past included until they are pruned."""

    list_display = [
        "shown_name", "state", "shown_queues", "threads", "jobs_in_hand", "shown_memory", "shown_started",
        "shown_beat",
    ]  # fmt: skip
    search_fields = ["hostname__startswith"]
    search_placeholder = gettext_lazy("host")
    ordering = ["-heartbeat_at"]
    readonly_fields = [
        "id", "hostname", "pid", "supervisor", "state", "drain", "shown_queues", "threads",
        "shown_memory", "started_at", "heartbeat_at", "stopped_at", "in_hand", "shown_codes",
    ]  # fmt: skip
    fields = tuple(readonly_fields)

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
