"""Running a finished job again with another input: a form filled with the one it had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs import control
from django_jobs.admin import detail, formatting, telling
from django_jobs.admin.inputform import InputForm
from django_jobs.admin.verbs import VERBS, Verb
from django_jobs.definitions import registry
from django_jobs.errors import InvalidInput, JobsError
from django_jobs.lifecycle import Command
from django_jobs.models import Job, Task

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = object


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label=gettext_lazy("Reason (optional, kept with the job)"), required=False, max_length=2000
    )


class RerunningAdmin(Base):
    """The form that re-runs one job with another input."""

    input_template = "admin/django_jobs/input.html"

    if TYPE_CHECKING:

        def may(self, request: HttpRequest, verb: Verb, job: Job | None = None) -> bool: ...
        def may_see_payload(self, request: HttpRequest, obj: Model | None = None) -> bool: ...
        def _job(self, request: HttpRequest, object_id: str) -> Job: ...

    def has_enqueue_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.enqueue_job")

    def may_rerun_edited(self, request: HttpRequest, job: Job | None = None) -> bool:
        """Who edits an input sees it, and enqueues what they like."""
        return (
            self.may(request, VERBS[Command.RERUN], job)
            and self.has_enqueue_permission(request, job)
            and self.may_see_payload(request, job)
        )

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.rerun_edited_view)
        name = f"{self.opts.app_label}_{self.opts.model_name}_rerun_edited"
        return [path("<path:object_id>/rerun_edited/", view, name=name), *super().get_urls()]

    def rerun_links(self, request: HttpRequest, job: Job) -> list[dict[str, Any]]:
        """The way to the form, from the page of a finished job."""
        if job.finished_at is None or not self.may_rerun_edited(request, job):
            return []
        return [
            {
                "url": detail.url(self, "rerun_edited", job.pk),
                "label": _("Re-run with other input…"),
            }
        ]

    def rerun_edited_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the stored input as a form; on POST enqueue the job anew with what it says."""
        if request.method not in ("GET", "HEAD", "POST") or not self.may_rerun_edited(request):
            raise PermissionDenied
        job = self._job(request, object_id)
        if not self.may_rerun_edited(request, job):
            raise PermissionDenied
        page = detail.url(self, "change", job.pk) or ".."
        if job.finished_at is None:
            messages.error(request, _("This job has not ended yet."))
            return HttpResponseRedirect(page)
        given = request.POST if request.method == "POST" else None
        names = formatting.secret_names(job.slug)
        form = InputForm(_schema(job), given, stored=job.input, secret_names=names)
        reason = ReasonForm(given, prefix="call")
        if given is not None and form.is_valid() and reason.is_valid():
            again = self._rerun_edited(request, job, form, reason.cleaned_data["reason"])
            if again is not None:
                return HttpResponseRedirect(detail.url(self, "change", again.pk) or page)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request), "opts": self.opts, "media": self.media, "form": form,
            "options": reason, "title": _("Re-run %(task)s with other input") % {"task": job.slug},
            "submit": _("Re-run"), "here": _("Re-run"), "back": page,
            "description": _("What is not changed stays as it was, secrets too: they are not shown."),
            "changelist_url": detail.url(self, "changelist"),
        }  # fmt: skip
        return TemplateResponse(request, self.input_template, context)

    def _rerun_edited(
        self, request: HttpRequest, job: Job, form: InputForm, reason: str
    ) -> Job | None:
        """The new job, or None with the reason in the form."""
        try:
            again = control.rerun(
                job, input=form.edited(), actor=request.user.get_username(), reason=reason or None
            )
        except InvalidInput as error:
            form.add_input_error(error)
            return None
        except JobsError as error:
            form.add_error(None, str(error))
            return None
        said = f"{VERBS[Command.RERUN].done}: {reason}".rstrip(": ")
        telling.log(request.user, [Job.units.using(job._state.db).get(pk=job.pk)], said)
        messages.success(request, _("Run again as the job below."))
        return again


def _schema(job: Job) -> Any:
    """The schema of the code that the new job will run by, or what the catalogue knows of it."""
    definition = registry.find(job.slug, job.version)
    if definition is not None:
        return definition.schema.input_json_schema()
    known = Task.objects.using(job._state.db).filter(slug=job.slug)
    return known.values_list("input_schema", flat=True).first()
