"""Jobs: the list, and one job with all that is recorded of it."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.db.models.fields.json import KT
from django.db.models.functions import Left
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator, capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs.admin import detail, filters, formatting
from django_jobs.admin.base import ReadOnlyAdmin
from django_jobs.admin.paging import KeysetChangeList
from django_jobs.admin.rerunning import RerunningAdmin
from django_jobs.admin.running import SendingAdmin
from django_jobs.admin.steering import SteeringAdmin
from django_jobs.lifecycle import DRIVEN, Status
from django_jobs.models import Job
from django_jobs.observe import selection, stats

#: Columns that the list needs; the big JSON columns are not among them.
LISTED = (
    "id slug kind status queue_name priority created_at started_at finished_at attempts crashes "
    "progress progress_note"
).split()
PAYLOAD_PERMISSION = "django_jobs.view_payload_job"


@admin.register(Job)
class JobAdmin(SteeringAdmin, RerunningAdmin, SendingAdmin, ReadOnlyAdmin):
    """Whatever was enqueued, tasks and workflow runs alike."""

    detail_template = "admin/django_jobs/job.html"
    step_template = "admin/django_jobs/step.html"
    list_display = [
        "name", "shown_status", "queue", "priority", "created", "started", "took", "tries", "problem",
    ]  # fmt: skip
    list_filter = [
        filters.StatusFilter, filters.SlugFilter, filters.QueueFilter, filters.SinceFilter, filters.KeyFilter,
        filters.WorkerFilter, filters.CodeFilter, filters.TagFilter,
    ]  # fmt: skip
    search_fields = ["slug", "id"]
    search_placeholder = gettext_lazy("slug or id")
    search_help_text = gettext_lazy("The beginning of a task's slug or of a job's id.")
    ordering = ["-pk"]
    sortable_by = ()

    # --- permissions: on the pages of runs as well, those of jobs ------------------------------

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.view_job")

    def may_see_payload(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Whether input, output, context, meta and events are shown to this user."""
        return request.user.has_perm(PAYLOAD_PERMISSION)

    # --- the list -----------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        return KeysetChangeList

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        return [*super().get_list_filter(request), *filters.tenant_filters()]

    def toolbar(self, request: HttpRequest, changelist: Any) -> dict[str, Any]:
        return {
            **super().toolbar(request, changelist),
            "tabs": self.tabs(request, changelist),
            "matching": self.matching_buttons(request, changelist),
        }

    def tabs(self, request: HttpRequest, changelist: KeysetChangeList) -> list[dict[str, Any]]:
        """A link for each status; with numbers where nothing else narrows the list."""
        chosen = changelist.params.get("status")
        narrowed = any(v for name, v in changelist.params.items() if name != "status")
        # Of runs alone they could be counted by looking at each job only.
        narrowed = narrowed or bool(self.opts.proxy)
        counts = {} if narrowed else stats.status_counts(changelist.root_queryset)
        shown = [
            status
            for status in Status
            if status in filters.USUAL or counts.get(status) or status == chosen
        ]
        tabs = [
            {
                "label": _("all"),
                "query": changelist.get_query_string(remove=["status"]),
                "selected": not chosen,
            }
        ]
        for status in shown:
            tabs.append(
                {
                    "label": formatting.STATUS_LABELS[status],
                    "query": changelist.get_query_string({"status": str(status)}),
                    "selected": chosen == status,
                    "status": str(status).replace("_", "-"),
                    "count": _count(counts.get(status)),
                }
            )
        return tabs

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found = super().get_queryset(request)
        if request.resolver_match and str(request.resolver_match.url_name).endswith("_changelist"):
            found = found.only(*LISTED).annotate(
                error_type=Left(KT("error__type"), 200),
                error_message=Left(KT("error__message"), 300),
            )
        return found

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        found = selection.of_search(term, str(queryset.db), only_runs=bool(self.opts.proxy))
        return queryset.filter(found), False

    @admin.display(description=gettext_lazy("job"))
    def name(self, job: Job) -> SafeString:
        return format_html(
            '<span class="dj-slug">{}</span> <span class="dj-id" title="{}">{}</span>',
            job.slug, job.pk, formatting.short_id(job.pk),
        )  # fmt: skip

    @admin.display(description=gettext_lazy("status"))
    def shown_status(self, job: Job) -> SafeString | str:
        shown = formatting.badge(job.status)
        if job.progress is not None and job.finished_at is None:
            return format_html(
                '{} <span class="dj-quiet" title="{}">{}</span>',
                shown, job.progress_note, f"{job.progress:.0%}",
            )  # fmt: skip
        return shown

    @admin.display(description=gettext_lazy("queue"))
    def queue(self, job: Job) -> str:
        return job.queue_name

    @admin.display(description=gettext_lazy("created"))
    def created(self, job: Job) -> SafeString | str:
        return formatting.moment(job.created_at)

    @admin.display(description=gettext_lazy("started"))
    def started(self, job: Job) -> SafeString | str:
        return formatting.moment(job.started_at)

    @admin.display(description=gettext_lazy("duration"))
    def took(self, job: Job) -> str:
        return formatting.span(job.started_at, job.finished_at, running=job.status in DRIVEN)

    @admin.display(description=gettext_lazy("attempts"))
    def tries(self, job: Job) -> SafeString | str:
        if not job.crashes:
            return str(job.attempts)
        return format_html(
            '{} <span class="dj-quiet" title="{}">+{}</span>', job.attempts, _("crashes"), job.crashes
        )  # fmt: skip

    @admin.display(description=gettext_lazy("error"), empty_value="")
    def problem(self, job: Any) -> SafeString | str:
        line = formatting.one_line(
            {"type": job.error_type, "message": job.error_message}, limit=300
        )
        if not line:
            return ""
        return format_html(
            '<span class="dj-problem" title="{}">{}</span>', line, Truncator(line).chars(90)
        )

    # --- one job ------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_step"
        view = self.admin_site.admin_view(self.step_view)
        return [path("<path:object_id>/step/<int:step_id>/", view, name=name), *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The page of one job. It only shows, so only GET is served."""
        job = self._found(request, object_id)
        shown = detail.job_context(self, request, job, payload=self.may_see_payload(request, job))
        awaited = next((row.row.event_name or "" for row in shown["steps"].rows if row.waits), "")
        context = {
            **self._page(request, job),
            **shown,
            "event_form": self.event_form(request, job, awaited),
            "buttons": self.buttons(request, job),
            "links": self.rerun_links(request, job),
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.detail_template, context)

    def step_view(self, request: HttpRequest, object_id: str, step_id: int) -> HttpResponse:
        """One step with its whole input and output."""
        job = self._found(request, object_id)
        shown = detail.step_context(
            self, request, job, step_id, payload=self.may_see_payload(request, job)
        )
        if shown is None:
            raise Http404(_("This job has no such step."))
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.step_template, {**self._page(request, job), **shown})

    def _found(self, request: HttpRequest, object_id: str) -> Job:
        """The job of a page that only shows."""
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        return self._job(request, object_id)

    def _job(self, request: HttpRequest, object_id: str) -> Job:
        if not self.has_view_permission(request):
            raise PermissionDenied
        job = self.get_object(request, unquote(object_id))
        if job is None:
            raise Http404(_("There is no job %(id)s.") % {"id": object_id})
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        return job

    def _page(self, request: HttpRequest, job: Job) -> dict[str, Any]:
        return {
            **self.admin_site.each_context(request),
            "title": capfirst(job.slug),
            "subtitle": None,
            "opts": self.opts,
            "original": job,
            "job": job,
            "media": self.media,
            "changelist_url": detail.url(self, "changelist"),
            "change_url": detail.url(self, "change", job.pk),
        }


def _count(found: int | None) -> str:
    if not found:
        return ""
    limit = stats.COUNT_LIMIT
    return f"{formatting.number(limit)}+" if found > limit else formatting.number(found)
