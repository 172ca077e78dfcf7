"""Buttons and list actions: each by its permission, by POST, with its line in the admin's log.

What a command may do to which job is decided by :mod:`django_jobs.control`; here it is only asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from django_jobs import control
from django_jobs.admin import detail, formatting
from django_jobs.admin.verbs import VERBS, Verb
from django_jobs.control import Counts
from django_jobs.errors import JobsError
from django_jobs.lifecycle import Command
from django_jobs.models import Job
from django_jobs.observe.stats import capped_count
from django_jobs.store.commands import Done

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = object

#: Jobs that the page which asks names, and up to how many it says what would become of them.
SAMPLE, FORESEEN = 10, 10_000


def _list_action(verb: Verb) -> Callable[..., Any]:
    @admin.action(permissions=[verb.right], description=verb.selected)
    def act(
        model_admin: SteeringAdmin, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        return model_admin.steer_selected(request, queryset, verb)

    act.__name__ = verb.name
    return act


class SteeringAdmin(Base):
    """What lets a job admin act on jobs."""

    confirm_template = "admin/django_jobs/confirm.html"
    actions = [_list_action(verb) for verb in VERBS.values()]

    # --- who may what -------------------------------------------------------------------------

    def has_pause_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.pause_job")

    def has_cancel_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.cancel_job")

    def has_retry_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.retry_job")

    def has_run_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.run_job")

    def may(self, request: HttpRequest, verb: Verb, job: Job | None = None) -> bool:
        """Whether this user may give this command, to this job."""
        allowed: Callable[..., bool] = getattr(self, f"has_{verb.right}_permission")
        return self.has_view_permission(request, job) and allowed(request, job)

    # --- one job ------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"<path:object_id>/{verb.name}/",
                self.admin_site.admin_view(partial(self.command_view, command=verb.command)),
                name=f"{self.opts.app_label}_{self.opts.model_name}_{verb.name}",
            )
            for verb in VERBS.values()
        ]
        return [*own, *super().get_urls()]

    def buttons(self, request: HttpRequest, job: Job) -> list[dict[str, Any]]:
        """The commands that would change this job, and that this user may give."""
        offered = set(control.offered(job))
        return [
            {"verb": verb, "url": detail.url(self, verb.name, job.pk)}
            for verb in VERBS.values()
            if verb.command in offered and self.may(request, verb, job)
        ]

    def command_view(self, request: HttpRequest, object_id: str, command: Command) -> HttpResponse:
        """Carry out a command on one job; some ask first, and act on ``post=yes``."""
        verb = VERBS[command]
        if not self.may(request, verb):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        job = self._job(request, object_id)
        if not self.may(request, verb, job):
            raise PermissionDenied
        page = detail.url(self, "change", job.pk) or ".."
        if verb.asks and request.POST.get("post") != "yes":
            context = {**self._question(verb, 1), "sample": self._named([job]), "back": page}
            return self._ask(request, context)
        if command == Command.RERUN:
            return HttpResponseRedirect(self._run_again(request, job) or page)
        self._carry_out(request, Job.objects.using(job._state.db).filter(pk=job.pk), verb)
        return HttpResponseRedirect(page)

    def _job(self, request: HttpRequest, object_id: str) -> Job:
        raise NotImplementedError

    def _run_again(self, request: HttpRequest, job: Job) -> str | None:
        """Re-run one job; the address of the new one, or None with the reason told."""
        try:
            again = control.rerun(job, actor=_actor(request), reason=_reason(request))
        except JobsError as error:
            messages.error(request, str(error))
            return None
        self._log(request, VERBS[Command.RERUN], [job.pk], str(job._state.db))
        messages.success(request, _("Run again as the job below."))
        return detail.url(self, "change", again.pk)

    # --- many jobs ----------------------------------------------------------------------------

    def steer_selected(
        self, request: HttpRequest, queryset: Any, verb: Verb
    ) -> HttpResponse | None:
        """Ask, with a count and a sample; on ``post=yes`` act and say what came of it."""
        if request.POST.get("post") == "yes":
            self._carry_out(request, queryset, verb)
            return None
        count = capped_count(queryset, FORESEEN)
        foreseen = control.preview(queryset, verb.command) if count <= FORESEEN else None
        context = {
            **self._question(verb, count),
            "capped": FORESEEN if count > FORESEEN else None,
            "foreseen": foreseen,
            "sample": self._named(queryset.order_by("-pk")[:SAMPLE]),
            "more": max(0, count - SAMPLE),
            "kept": [
                ("action", verb.name),
                ("select_across", request.POST.get("select_across", "0")),
                *((ACTION_CHECKBOX_NAME, pk) for pk in request.POST.getlist(ACTION_CHECKBOX_NAME)),
            ],
            "back": request.get_full_path(),
        }
        return self._ask(request, context)

    def _carry_out(self, request: HttpRequest, queryset: QuerySet[Any], verb: Verb) -> None:
        refused = self._forbidden(request, queryset, verb)
        if refused:
            queryset = queryset.exclude(pk__in=refused)
        counts = Counts(refused=len(refused))
        found: Any = queryset
        alias = str(queryset.db)
        how: dict[str, Any] = {}
        if verb.command == Command.CANCEL:
            how["cascade"] = "cascade" in request.POST

        def told(done: Done) -> None:
            self._log(request, verb, done.changed, alias)

        try:
            counts += control.steer_many(
                found,
                verb.command,
                actor=_actor(request),
                reason=_reason(request),
                told=told,
                **how,
            )
        except JobsError as error:
            messages.error(request, str(error))
            return
        level = messages.SUCCESS if counts.changed else messages.WARNING
        messages.add_message(request, level, _told(verb, counts))

    def _forbidden(self, request: HttpRequest, queryset: QuerySet[Any], verb: Verb) -> list[UUID]:
        """Those of the ticked jobs that this user may not touch, where a project says so by object."""
        if request.POST.get("select_across") == "1":
            return []
        return [job.pk for job in queryset if not self.may(request, verb, job)]

    # --- words --------------------------------------------------------------------------------

    def _question(self, verb: Verb, count: int) -> dict[str, Any]:
        shown = f"{formatting.number(FORESEEN)}+" if count > FORESEEN else formatting.number(count)
        return {
            "verb": verb,
            "title": verb.question % {"count": count, "shown": shown},
            "can_cascade": verb.command == Command.CANCEL,
        }

    def _named(self, jobs: Iterable[Any]) -> list[dict[str, Any]]:
        return [
            {
                "job": job,
                "url": detail.url(self, "change", job.pk),
                "short_id": formatting.short_id(job.pk),
                "status": formatting.badge(job.status),
            }
            for job in jobs
        ]

    def _ask(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.admin_site.name
        frame = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "changelist_url": detail.url(self, "changelist"),
            "reason": request.POST.get("reason", ""),
        }
        return TemplateResponse(request, self.confirm_template, {**frame, **context})

    def _log(self, request: HttpRequest, verb: Verb, changed: list[UUID], alias: str) -> None:
        """One line in the admin's log for each job that was changed."""
        if not changed:
            return
        reason = _reason(request)
        said = f"{verb.done}: {reason}" if reason else f"{verb.done}."
        rows = Job.units.using(alias).filter(pk__in=changed).only("id", "slug")
        LogEntry.objects.log_actions(request.user.pk, rows, CHANGE, said)  # type: ignore[arg-type]


def _actor(request: HttpRequest) -> str:
    return str(request.user.get_username())


def _reason(request: HttpRequest) -> str | None:
    return request.POST.get("reason", "").strip() or None


def _told(verb: Verb, counts: Counts) -> str:
    return _("%(done)s: %(changed)s changed, %(unchanged)s unchanged, %(refused)s refused.") % {
        "done": verb.done,
        "changed": formatting.number(counts.changed),
        "unchanged": formatting.number(counts.unchanged),
        "refused": formatting.number(counts.refused),
    }
