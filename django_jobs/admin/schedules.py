"""Schedules: when each fires, what became of its slots, and what an operator may do about it."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib import admin, messages
from django.db.models import Model
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs.admin import detail, formatting
from django_jobs.admin.acting import Act, ActingAdmin
from django_jobs.admin.filters import ChoiceFilter
from django_jobs.errors import ConfigurationError, JobsError
from django_jobs.models import Schedule
from django_jobs.models.schedule import OPERATORS
from django_jobs.store.schedules import BACKFILLED, FAILED, FIRED, MISSED, OVERLAPPED
from django_jobs.store.session import engine_alias

#: Slots to come and past ones on a schedule's page, and slots that a backfill names.
NEXT, PAST, NAMED = 5, 20, 20


#: What became of a slot.
OUTCOMES: dict[str, Any] = {
    FIRED: gettext_lazy("fired"),
    MISSED: gettext_lazy("missed"),
    OVERLAPPED: gettext_lazy("left out: the job before was not done"),
    FAILED: gettext_lazy("failed"),
    BACKFILLED: gettext_lazy("backfilled"),
}


class EnabledFilter(ChoiceFilter):
    title = gettext_lazy("paused")
    parameter_name = "paused"

    def names(self, request: HttpRequest) -> list[tuple[str, Any]]:
        return [("1", _("yes")), ("0", _("no"))]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return queryset.filter(enabled=value == "0") if value in ("0", "1") else queryset


def _run_now(schedule: Schedule) -> str:
    job = schedule.run_now()
    return _("Made the job %(id)s.") % {"id": job.pk}


@admin.register(Schedule)
class ScheduleAdmin(ActingAdmin):
    """What fires by itself. Those of the code are changed there; an operator pauses them."""

    change_form_template = "admin/django_jobs/schedule.html"
    backfill_template = "admin/django_jobs/backfill.html"
    list_display = ["name", "slug", "words", "state", "following", "last", "owner"]
    list_filter = [EnabledFilter]
    search_fields = ["name__startswith", "slug__startswith"]
    search_placeholder = gettext_lazy("name or slug")
    ordering = ["slug", "name"]
    acts = (
        Act(
            "run_now", gettext_lazy("Run now"), gettext_lazy("Run now the selected schedules"), "change",
            lambda row: not row.removed, _run_now, gettext_lazy("Run now"),
        ),
        Act(
            "pause", gettext_lazy("Pause"), gettext_lazy("Pause selected schedules"), "change",
            lambda row: row.enabled, Schedule.pause, gettext_lazy("Paused"),
        ),
        Act(
            "resume", gettext_lazy("Resume"), gettext_lazy("Resume selected schedules"), "change",
            lambda row: not row.enabled and not row.removed, Schedule.resume, gettext_lazy("Resumed"),
        ),
    )  # fmt: skip

    # --- permissions: one to see, one for all else ----------------------------------------------

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.change_schedule")

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.has_change_permission(request)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [] if obj is None or obj.source != "code" else list(OPERATORS)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return list(OPERATORS)

    def save_model(
        self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool
    ) -> None:
        obj.save(using=obj._state.db or engine_alias())

    # --- the list -------------------------------------------------------------------------------

    @admin.display(description=gettext_lazy("fires"))
    def words(self, schedule: Schedule) -> str:
        return _words(schedule)

    @admin.display(description=gettext_lazy("state"))
    def state(self, schedule: Schedule) -> SafeString | str:
        if schedule.removed:
            return _("removed from the code")
        if schedule.error:
            return formatting.badge("failed")
        return _("on") if schedule.enabled else formatting.badge("paused")

    @admin.display(description=gettext_lazy("next slot"), ordering="next_slot")
    def following(self, schedule: Schedule) -> SafeString | str:
        return formatting.moment(schedule.next_slot)

    @admin.display(description=gettext_lazy("last slot"), ordering="last_slot")
    def last(self, schedule: Schedule) -> SafeString | str:
        return formatting.moment(schedule.last_slot)

    @admin.display(description=gettext_lazy("set by"))
    def owner(self, schedule: Schedule) -> str:
        return _("code") if schedule.source == "code" else _("operator")

    # --- one schedule -----------------------------------------------------------------------------

    def page_extras(self, request: HttpRequest, row: Schedule) -> dict[str, Any]:
        try:
            slots = [formatting.in_zone(slot) for slot in row.upcoming(NEXT)]
        except ConfigurationError:
            slots = []
        return {
            "in_words": _words(row),
            "upcoming": slots,
            "problem": detail.problem(row.error),
            "past": [self._past(one) for one in row.history(PAST)],
            "zone": row.zone_name,
            "backfill_url": detail.url(self, "backfill", row.pk)
            if self.has_change_permission(request, row) and not row.removed
            else None,
        }

    def _past(self, one: Any) -> dict[str, Any]:
        return {
            "slot": formatting.in_zone(one.slot),
            "at": formatting.moment(one.at),
            "outcome": OUTCOMES.get(one.outcome, one.outcome),
            "error": formatting.one_line(one.error) if one.error else "",
            "url": detail.url(self, "change", one.job_id, model="job") if one.job_status else None,
            "short_id": formatting.short_id(one.job_id),
            "status": formatting.badge(one.job_status) if one.job_status else "",
        }

    # --- backfill -----------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.backfill_view)
        name = f"{self.opts.app_label}_{self.opts.model_name}_backfill"
        return [path("<path:object_id>/backfill/", view, name=name), *super().get_urls()]

    def backfill_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Make up for slots of the past: first which they are, then, on ``post=yes``, their jobs."""
        row = self.posted_row(request, object_id, partial(self._may_backfill))
        if isinstance(row, HttpResponse):
            return row
        page = detail.url(self, "change", row.pk) or ".."
        given = {name: request.POST.get(name, "") for name in ("start", "end")}
        try:
            start, end = (_local(given[name], row) for name in ("start", "end"))
            sure = request.POST.get("post") == "yes"
            found = row.backfill(start, end, dry_run=not sure)
        except (JobsError, ValueError) as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(page)
        if sure:
            said = _("Backfilled %(n)s slots.") % {"n": len(found.slots)}
            self.log_act(request, row, said)
            messages.success(request, said)
            return HttpResponseRedirect(page)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request), **given, "opts": self.opts, "media": self.media,
            "title": _("Backfill %(name)s?") % {"name": row}, "back": page, "is_cut": found.is_cut,
            "changelist_url": detail.url(self, "changelist"), "count": len(found.slots),
            "slots": [formatting.in_zone(slot) for slot in found.slots[:NAMED]],
            "more": max(0, len(found.slots) - NAMED),
        }  # fmt: skip
        return TemplateResponse(request, self.backfill_template, context)

    def _may_backfill(self, request: HttpRequest, row: Model | None = None) -> bool:
        return self.has_view_permission(request, row) and self.has_change_permission(request, row)


def _words(schedule: Schedule) -> str:
    try:
        return capfirst(schedule.in_words())
    except ConfigurationError as error:
        return str(error)


def _local(text: str, schedule: Schedule) -> datetime:
    """A wall time of the schedule's zone, as the browser's field gives it."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(schedule.zone_name))
