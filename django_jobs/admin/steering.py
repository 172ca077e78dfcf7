"""Buttons and list actions: each by its permission, by POST, with its line in the admin's log.

What a command may do to which job is decided by :mod:`django_jobs.control`; here it is only asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import ADDITION
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db import transaction
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

from django_jobs import control, ids
from django_jobs.admin import bulk, detail, filters, formatting, orders, telling
from django_jobs.admin.telling import Tally
from django_jobs.admin.verbs import EVERY, VERBS, Verb
from django_jobs.errors import JobsError
from django_jobs.lifecycle import Command
from django_jobs.models import Job
from django_jobs.observe.stats import capped_count
from django_jobs.store.commands import Done
from django_jobs.store.session import engine_alias

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = object

#: Jobs that the page which asks names, and up to how many it says what would become of them.
SAMPLE, FORESEEN = 10, 10_000


def _on_selected(
    verb: Verb, model_admin: SteeringAdmin, request: HttpRequest, queryset: Any
) -> HttpResponse | None:
    return model_admin.steer_selected(request, queryset, verb)


class SteeringAdmin(Base):
    """What lets a job admin act on jobs."""

    confirm_template = "admin/django_jobs/confirm.html"
    actions = [
        telling.list_action(verb.name, verb.right, verb.selected, partial(_on_selected, verb))
        for verb in VERBS.values()
    ]

    # --- who may what -------------------------------------------------------------------------

    def has_pause_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.pause_job")

    def has_cancel_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.cancel_job")

    def has_retry_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.retry_job")

    def has_run_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.run_job")

    def has_reschedule_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.reschedule_job")

    def may(self, request: HttpRequest, verb: Verb, job: Job | None = None) -> bool:
        """Whether this user may give this command, to this job."""
        allowed: Callable[..., bool] = getattr(self, f"has_{verb.right}_permission")
        return self.has_view_permission(request, job) and allowed(request, job)

    def get_urls(self) -> list[URLPattern]:
        base = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        all_of = [
            path(
                f"matching/{verb.name}/",
                view(partial(self.matching_view, command=verb.command)),
                name=f"{base}_matching_{verb.name}",
            )
            for verb in VERBS.values()
        ]
        one = [
            path(
                f"<path:object_id>/{verb.name}/",
                view(partial(self.command_view, command=verb.command)),
                name=f"{base}_{verb.name}",
            )
            for verb in EVERY.values()
        ]
        return [*all_of, *one, *super().get_urls()]

    # --- one job ------------------------------------------------------------------------------

    def buttons(self, request: HttpRequest, job: Job) -> list[dict[str, Any]]:
        """The commands that would change this job, and that this user may give."""
        offered = set(control.offered(job))
        return [
            {"verb": verb, "url": detail.url(self, verb.name, job.pk)}
            for verb in EVERY.values()
            if verb.command in offered and self.may(request, verb, job)
        ]

    def command_view(self, request: HttpRequest, object_id: str, command: Command) -> HttpResponse:
        """Carry out a command on one job; some ask first, and act on ``post=yes``."""
        verb = EVERY[command]
        refusal = self._refusal(request, verb)
        if refusal is not None:
            return refusal
        job = self._job(request, object_id)
        if not self.may(request, verb, job):
            raise PermissionDenied
        page = detail.url(self, "change", job.pk) or ".."
        form = _form(request, command)
        if verb.asks and not _is_answered(request, form):
            context = {**_question(verb, 1, form), "sample": self._named([job]), "back": page}
            return self._ask(request, context)
        if command == Command.RERUN:
            return HttpResponseRedirect(self._run_again(request, job) or page)
        if command == Command.COMPENSATE:
            self._undo(request, job)
        else:
            found = Job.objects.using(job._state.db).filter(pk=job.pk)
            self._steer(request, found, verb, form)
        return HttpResponseRedirect(page)

    def _refusal(self, request: HttpRequest, verb: Verb) -> HttpResponse | None:
        """The answer to who may not, or did not POST."""
        if not self.may(request, verb):
            raise PermissionDenied
        return None if request.method == "POST" else HttpResponseNotAllowed(["POST"])

    def _job(self, request: HttpRequest, object_id: str) -> Job:
        raise NotImplementedError

    def _run_again(self, request: HttpRequest, job: Job) -> str | None:
        """Re-run one job; the address of the new one, or None with the reason told."""
        try:
            again = control.rerun(job, actor=_actor(request), reason=_reason(request))
        except JobsError as error:
            messages.error(request, str(error))
            return None
        self._log(request, VERBS[Command.RERUN], [job.pk], str(job._state.db), _reason(request))
        messages.success(request, _("Run again as the job below."))
        return detail.url(self, "change", again.pk)

    def _undo(self, request: HttpRequest, job: Job) -> None:
        """Compensate one run; a job that has nothing to undo says so."""
        verb, reason = EVERY[Command.COMPENSATE], _reason(request)
        try:
            control.steer(job, verb.command, actor=_actor(request), reason=reason)
        except JobsError as error:
            messages.error(request, str(error))
            return
        self._log(request, verb, [job.pk], str(job._state.db), reason)
        messages.success(request, f"{verb.done}.")

    # --- many jobs ----------------------------------------------------------------------------

    def steer_selected(
        self, request: HttpRequest, queryset: Any, verb: Verb
    ) -> HttpResponse | None:
        """Ask, with a count and a sample; on ``post=yes`` act and say what came of it."""
        if request.POST.get("select_across") == "1":
            return self._steer_matching(request, verb)
        form = _form(request, verb.command)
        if _is_answered(request, form):
            self._steer(request, queryset, verb, form)
            return None
        kept = [
            ("action", verb.name),
            *((ACTION_CHECKBOX_NAME, pk) for pk in request.POST.getlist(ACTION_CHECKBOX_NAME)),
        ]
        return self._ask_about(request, queryset, verb, form, kept=kept)

    def matching_view(self, request: HttpRequest, command: Command) -> HttpResponse:
        """Give a command to all jobs that match the filters of the list: as a job of its own."""
        verb = VERBS[command]
        return self._refusal(request, verb) or self._steer_matching(request, verb)

    def _steer_matching(self, request: HttpRequest, verb: Verb) -> HttpResponse:
        listed = detail.url(self, "changelist") or ".."
        try:
            changelist: Any = self.get_changelist_instance(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(listed)
        until = _known_id(request.POST.get("until")) or str(ids.job_id())
        selection, unknown = filters.selection_of(changelist, until_id=until)
        back = f"{listed}{changelist.get_query_string()}"
        if unknown:
            said = _(
                "This list is narrowed by %(names)s, which a job of its own cannot apply. Select jobs one by one."
            )
            messages.error(request, said % {"names": ", ".join(unknown)})
            return HttpResponseRedirect(back)
        form = _form(request, verb.command)
        if _is_answered(request, form):
            order = {
                "command": verb.name, "selection": selection.as_dict(), "values": form.values(),
                "actor": str(request.user.pk), "actor_name": _actor(request), "reason": _reason(request) or "",
                "site": self.admin_site.name, "model": str(self.opts.model_name),
            }  # fmt: skip
            return HttpResponseRedirect(self._enqueue_order(request, verb, order) or back)
        found = selection.narrow(self.get_queryset(request))  # type: ignore[arg-type]
        context = {
            "action": f"{detail.url(self, f'matching_{verb.name}')}{changelist.get_query_string()}",
            "as_job": True,
            "back": back,
        }
        return self._ask_about(request, found, verb, form, kept=[("until", until)], **context)

    def _enqueue_order(self, request: HttpRequest, verb: Verb, order: dict[str, Any]) -> str | None:
        """The address of the job that carries out ``order``, or None with the reason told."""
        said = f"{verb.label}: {order['reason']}".rstrip(": ")
        try:
            # Together: without its line in the log nobody gave the order.
            with transaction.atomic(using=engine_alias()):
                job = bulk.act_on_matching.enqueue(input=order)
                telling.log(request.user, [job], said, ADDITION)
        except JobsError as error:
            messages.error(request, str(error))
            return None
        messages.success(request, _("The job below does it; this page shows how far it is."))
        return detail.url(self, "change", job.pk, model="workflowrun") or detail.url(
            self, "change", job.pk
        )

    def _ask_about(
        self,
        request: HttpRequest,
        queryset: Any,
        verb: Verb,
        form: orders.OrderForm,
        **context: Any,
    ) -> HttpResponse:
        """Ask, with a count, a sample, and what would become of them where that is soon known."""
        count = capped_count(queryset, FORESEEN)
        return self._ask(
            request,
            {
                **_question(verb, count, form),
                "capped": FORESEEN if count > FORESEEN else None,
                "foreseen": control.preview(queryset, verb.command) if count <= FORESEEN else None,
                "sample": self._named(queryset.order_by("-pk")[:SAMPLE]),
                "more": max(0, count - SAMPLE),
                "back": request.get_full_path(),
                **context,
            },
        )

    # --- doing it -----------------------------------------------------------------------------

    def _steer(
        self, request: HttpRequest, queryset: QuerySet[Any], verb: Verb, form: orders.OrderForm
    ) -> None:
        try:
            tally = self.carry_out(request, queryset, verb, form.values(), _reason(request))
        except JobsError as error:
            messages.error(request, str(error))
        else:
            telling.tell(request, verb.done, tally)

    def carry_out(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        verb: Verb,
        values: Mapping[str, Any],
        reason: str | None,
    ) -> Tally:
        """Give ``verb`` to those of ``queryset`` to which the user of ``request`` may; what came of it."""
        tally = Tally()
        forbidden = [job.pk for job in queryset if not self.may(request, verb, job)]
        tally.refuse(telling.NOT_PERMITTED, len(forbidden))
        found: Any = queryset.exclude(pk__in=forbidden) if forbidden else queryset

        def told(done: Done) -> None:
            self._log(request, verb, done.changed, str(queryset.db), reason)
            tally.add(done)

        how = orders.arguments(verb.command, values)
        control.steer_many(
            found, verb.command, actor=_actor(request), reason=reason or None, told=told, **how
        )
        return tally

    def _log(
        self, request: HttpRequest, verb: Verb, changed: list[UUID], alias: str, reason: str | None
    ) -> None:
        """One line in the admin's log for each job that was changed."""
        said = f"{verb.done}: {reason}" if reason else f"{verb.done}."
        if changed:
            rows = Job.units.using(alias).filter(pk__in=changed).only("id", "slug")
            telling.log(request.user, rows, said)

    # --- words --------------------------------------------------------------------------------

    def matching_buttons(self, request: HttpRequest, changelist: Any) -> list[dict[str, Any]]:
        """The commands that this user may give to all jobs that match the list's filters."""
        query = changelist.get_query_string()
        return [
            {"verb": verb, "url": f"{detail.url(self, f'matching_{verb.name}')}{query}"}
            for verb in VERBS.values()
            if self.may(request, verb)
        ]

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


def _form(request: HttpRequest, command: Command) -> orders.OrderForm:
    """The command's form, bound once the page that asks was answered."""
    return orders.form_of(command, request.POST if request.POST.get("post") == "yes" else None)


def _is_answered(request: HttpRequest, form: orders.OrderForm) -> bool:
    return request.POST.get("post") == "yes" and form.is_valid()


def _question(verb: Verb, count: int, form: orders.OrderForm) -> dict[str, Any]:
    shown = f"{formatting.number(FORESEEN)}+" if count > FORESEEN else formatting.number(count)
    title = verb.question % {"count": count, "shown": shown}
    return {"verb": verb, "title": title, "form": form}


def _known_id(text: str | None) -> str | None:
    try:
        return str(UUID(text or ""))
    except ValueError:
        return None


def _actor(request: HttpRequest) -> str:
    return str(request.user.get_username())


def _reason(request: HttpRequest) -> str | None:
    return request.POST.get("reason", "").strip() or None
