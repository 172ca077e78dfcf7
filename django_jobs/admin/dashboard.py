"""The overview: what waits, how it goes, what fails, and what somebody should look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_jobs import clock
from django_jobs.admin import charts, detail, formatting
from django_jobs.admin.base import ReadOnlyAdmin
from django_jobs.admin.filters import SPANS
from django_jobs.admin.formatting import number
from django_jobs.lifecycle import Status
from django_jobs.models import Job, Overview, Schedule
from django_jobs.observe import stats
from django_jobs.observe.stats import Depth, Part
from django_jobs.store.session import engine_alias

#: Periods that can be chosen, by the names of the filter by time.
PERIODS = ("1h", "1d", "7d")
#: Failed jobs among those that ended, from so many on, that are worth an alert.
FAILURE_SHARE, FAILURE_LEAST = 0.2, 10


@dataclass(frozen=True)
class Alert:
    """Something that somebody should look at."""

    text: str
    link: str | None = None


@admin.register(Overview)
class OverviewAdmin(ReadOnlyAdmin):
    """One page without rows of its own."""

    template = "admin/django_jobs/dashboard.html"

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.view_job")

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        chosen = request.GET.get("period", "")
        period = chosen if chosen in PERIODS else PERIODS[0]
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            **_overview(self, SPANS[period][0]),
            "title": _("Dashboard"),
            "opts": self.opts,
            "media": self.media,
            "periods": [
                {"query": f"?period={name}", "label": SPANS[name][1], "selected": name == period}
                for name in PERIODS
            ],
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.template, context)

    def change_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        raise PermissionDenied

    def history_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        raise PermissionDenied


def _overview(model_admin: Any, span: timedelta) -> dict[str, Any]:
    alias = engine_alias()
    counts = stats.status_counts(Job.objects.using(alias).all())
    workers = stats.live_workers(alias)
    depths = stats.depths(alias, workers)
    parts = stats.activity(alias, span)
    failures, more = stats.failures(alias, span)
    late = stats.late_schedules(alias)
    finished, failed = sum(part.finished for part in parts), sum(part.failed for part in parts)
    about = "~" if any(part.estimated for part in parts) else ""
    waits = [queue.waited for queue in depths.values() if queue.waited is not None]
    return {
        "alerts": list(_alerts(model_admin, depths.values(), late, finished, failed)),
        "tiles": _tiles(model_admin, counts),
        "facts": [
            detail.Fact(_("longest wait"), formatting.duration(max(waits, default=None))),
            detail.Fact(_("workers alive"), number(len(workers)), detail.url(model_admin, "changelist", model="worker")),
            detail.Fact(_("jobs in hand"), number(sum(queue.running for queue in depths.values()))),
            detail.Fact(_("ended in this time"), f"{about}{number(finished)}"),
            detail.Fact(_("schedules late"), number(len(late)), detail.url(model_admin, "changelist", model="schedule")),
        ],
        "charts": _charts(parts),
        "failures": [_failure(model_admin, one) for one in failures[:20]],
        "failures_more": more,
        "failures_limit": stats.FAILURES,
        "queues": [queue_row(model_admin, queue) for queue in depths.values()],
    }  # fmt: skip


def _alerts(
    model_admin: Any,
    depths: Any,
    late: Sequence[Schedule],
    finished: int,
    failed: int,
) -> Iterator[Alert]:
    for queue in depths:
        link = jobs_link(model_admin, queue=queue.name, status=Status.PENDING)
        if queue.paused and queue.ready:
            yield Alert(
                ngettext(
                    "The queue %(name)s is paused; %(count)s job waits in it.",
                    "The queue %(name)s is paused; %(count)s jobs wait in it.",
                    queue.ready,
                )
                % {"name": queue.name, "count": more_than(queue.ready, queue.more)}, link,
            )  # fmt: skip
        elif queue.ready > queue.blocked and not queue.workers:
            yield Alert(
                ngettext(
                    "%(count)s job waits in the queue %(name)s, and no live worker serves it.",
                    "%(count)s jobs wait in the queue %(name)s, and no live worker serves it.",
                    queue.ready,
                )
                % {"name": queue.name, "count": more_than(queue.ready, queue.more)}, link,
            )  # fmt: skip
    if failed >= FAILURE_LEAST and failed >= FAILURE_SHARE * finished:
        yield Alert(
            _("%(share)s of the jobs that ended in this time failed.")
            % {"share": f"{failed / finished:.0%}"},
            jobs_link(model_admin, status=Status.FAILED),
        )
    for schedule in late:
        yield Alert(
            _("The schedule %(name)s is late: its slot %(slot)s has not been dealt with.")
            % {"name": schedule, "slot": formatting.full_moment(schedule.next_slot)},
            detail.url(model_admin, "change", schedule.pk, model="schedule"),
        )


def more_than(count: int, more: bool) -> str:
    return f"{number(count)}+" if more else number(count)


def jobs_link(model_admin: Any, **query: Any) -> str | None:
    """The list of jobs, narrowed."""
    listed = detail.url(model_admin, "changelist", model="job")
    return f"{listed}?{urlencode(query)}" if listed else None


def _tiles(model_admin: Any, counts: dict[str, int]) -> list[dict[str, Any]]:
    limit = stats.COUNT_LIMIT
    return [
        {
            "label": formatting.STATUS_LABELS[status],
            "status": str(status).replace("_", "-"),
            "count": more_than(min(counts[status], limit), counts[status] > limit),
            "url": jobs_link(model_admin, status=str(status)),
        }
        for status in Status
        if counts[status] or not status.startswith("compensat")
    ]


def _charts(parts: list[Part]) -> list[charts.Chart]:
    times = [_("Time"), *charts.PERCENTS.values()]
    return [
        charts.bars(
            _("Jobs that ended"), parts, _("ended well"), _("failed"), [_("Time"), _("Ended"), _("Failed")]
        ),
        charts.lines(_("Waited for a worker"), parts, Part.waited, formatting.duration, times),
        charts.lines(_("From start to end"), parts, Part.ran, formatting.duration, times),
    ]  # fmt: skip


def _failure(model_admin: Any, one: stats.Failures) -> dict[str, Any]:
    return {
        "slug": one.slug,
        "line": formatting.one_line({"type": one.type, "message": one.message}, 160),
        "count": number(one.count),
        "first": formatting.moment(one.first),
        "last": formatting.moment(one.last),
        "list": jobs_link(model_admin, slug=one.slug, status=Status.FAILED),
        "newest": detail.url(model_admin, "change", one.newest, model="job"),
    }


def queue_row(model_admin: Any, queue: Depth) -> dict[str, Any]:
    """The numbers of a queue as shown."""
    return {
        "name": queue.name,
        "paused": queue.paused,
        "limit": formatting.EMPTY if queue.limit is None else queue.limit,
        "url": jobs_link(model_admin, queue=queue.name),
        "ready": more_than(queue.ready, queue.more),
        "running": number(queue.running),
        "later": number(queue.later),
        "held": number(queue.held),
        "stopped": number(queue.stopped),
        "waited": formatting.duration(queue.waited),
        "workers": queue.workers,
    }


def now_text() -> str:
    """When a page was drawn."""
    return formatting.full_moment(clock.now())
