"""What an operator starts or sends by hand: a task with its input, an event to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs.admin import detail
from django_jobs.admin.inputform import UNSET, InputForm, JSONText
from django_jobs.definitions import registry
from django_jobs.errors import InvalidInput, JobsError
from django_jobs.events import send_event
from django_jobs.models import Job, Task

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = object


class CallForm(forms.Form):
    """What a single call may set besides its input."""

    queue_name = forms.CharField(label=gettext_lazy("Queue"), required=False, max_length=200)
    priority = forms.IntegerField(
        label=gettext_lazy("Priority"), required=False, min_value=-100, max_value=100
    )
    delay = forms.FloatField(
        label=gettext_lazy("Delay"), required=False, min_value=0, help_text=gettext_lazy("Seconds.")
    )

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in self.cleaned_data.items() if value not in (None, "")}


class EventForm(forms.Form):
    name = forms.CharField(label=gettext_lazy("Event"), max_length=200)
    payload = JSONText(
        label=gettext_lazy("Payload"), required=False, help_text=gettext_lazy("A JSON value.")
    )


class RunningAdmin(Base):
    """The "Run…" form of a task."""

    input_template = "admin/django_jobs/input.html"

    def has_enqueue_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.enqueue_job")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.run_view)
        name = f"{self.opts.app_label}_{self.opts.model_name}_run"
        return [path("<path:object_id>/run/", view, name=name), *super().get_urls()]

    def run_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the form of a task's input; on POST enqueue one job."""
        may = self.has_view_permission(request) and self.has_enqueue_permission(request)
        if not may or request.method not in ("GET", "HEAD", "POST"):
            raise PermissionDenied
        task = self.get_object(request, unquote(object_id))
        if task is None:
            raise Http404
        if not self.has_enqueue_permission(request, task):
            raise PermissionDenied
        given = request.POST if request.method == "POST" else None
        form, call = InputForm(_schema(task), given), CallForm(given, prefix="call")
        if given is not None and form.is_valid() and call.is_valid():
            job = self._enqueue(request, task, form, call)
            if job is not None:
                return HttpResponseRedirect(detail.url(self, "change", job.pk, model="job") or "..")
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request), "opts": self.opts, "media": self.media, "form": form,
            "options": call, "title": _("Run %(task)s") % {"task": task}, "submit": _("Run"),
            "here": task, "description": task.description, "back": detail.url(self, "change", task.pk),
            "changelist_url": detail.url(self, "changelist"),
        }  # fmt: skip
        return TemplateResponse(request, self.input_template, context)

    def _enqueue(
        self, request: HttpRequest, task: Task, form: InputForm, call: CallForm
    ) -> Job | None:
        """The new job, or None with the reason in the form."""
        try:
            definition: Any = registry.latest(task.slug)
            bound = definition.using(
                **call.given(), meta={"enqueued_by": request.user.get_username()}
            )
            job: Job = bound.enqueue(input=form.given())
        except InvalidInput as error:
            form.add_input_error(error)
            return None
        except JobsError as error:
            form.add_error(None, str(error))
            return None
        user: Any = request.user.pk
        LogEntry.objects.log_actions(user, [job], ADDITION, _("Enqueued."), single_object=True)
        messages.success(request, _("Enqueued as the job below."))
        return job


def _schema(task: Task) -> Any:
    known = registry.snapshot().get(task.slug)
    if known:
        return next(reversed(known.values())).schema.input_json_schema()
    return task.input_schema


class SendingAdmin(Base):
    """The form that sends an event to a run."""

    def has_send_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.send_event_job")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.event_view)
        name = f"{self.opts.app_label}_{self.opts.model_name}_send_event"
        return [path("<path:object_id>/send_event/", view, name=name), *super().get_urls()]

    def event_form(self, request: HttpRequest, job: Job, awaited: str) -> dict[str, Any] | None:
        """What the page of a live run needs to offer the form."""
        may = self.has_send_permission(request) and self.has_send_permission(request, job)
        if not may or job.finished_at is not None or job.kind == "task":
            return None
        form = EventForm(initial={"name": awaited}, auto_id="event_%s")
        return {"form": form, "url": detail.url(self, "send_event", job.pk)}

    def event_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        if not (self.has_view_permission(request) and self.has_send_permission(request)):
            raise PermissionDenied
        if request.method != "POST":
            raise PermissionDenied
        job: Any = self.get_object(request, unquote(object_id))
        if job is None:
            raise Http404
        if not self.has_send_permission(request, job):
            raise PermissionDenied
        form = EventForm(request.POST)
        if form.is_valid():
            self._send(request, job, form.cleaned_data["name"], form.cleaned_data["payload"])
        else:
            for name, errors in form.errors.items():
                messages.error(request, f"{form.fields[name].label}: {' '.join(map(str, errors))}")
        return HttpResponseRedirect(detail.url(self, "change", job.pk) or "..")

    def _send(self, request: HttpRequest, job: Job, name: str, payload: Any) -> None:
        try:
            send_event(
                name,
                None if payload is UNSET else payload,
                to=job.pk,
                actor=request.user.get_username(),
            )
        except JobsError as error:
            messages.error(request, str(error))
            return
        user: Any = request.user.pk
        said = _("Sent the event %(name)s.") % {"name": name}
        rows = [Job.units.using(job._state.db).get(pk=job.pk)]
        LogEntry.objects.log_actions(user, rows, CHANGE, said, single_object=True)
        messages.success(request, said)
