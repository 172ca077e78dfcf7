"""Commands on queues, tasks, workers and schedules: buttons and list actions, as those on jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.urls import URLPattern, path

from django_jobs.admin import detail, telling
from django_jobs.admin.base import ReadOnlyAdmin
from django_jobs.admin.telling import Tally
from django_jobs.errors import JobsError


@dataclass(frozen=True)
class Act:
    """One command on a row of this kind."""

    name: str
    label: Any
    #: The action of the list.
    selected: Any
    #: The permission: ``has_<right>_permission`` of the admin.
    right: str
    #: Whether it would change this row.
    fits: Callable[[Any], bool]
    #: Does it; what it returns, if anything, is told.
    carry_out: Callable[[Any], Any]
    done: Any


def _on_selected(act: Act, model_admin: ActingAdmin, request: HttpRequest, queryset: Any) -> None:
    model_admin.act_on(request, act, queryset)


class ActingAdmin(ReadOnlyAdmin):
    """Pages of rows that can be acted upon."""

    change_form_template = "admin/django_jobs/change_form.html"
    acts: Sequence[Act] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "acts" in cls.__dict__:
            cls.actions = [
                telling.list_action(act.name, act.right, act.selected, partial(_on_selected, act))
                for act in cls.acts
            ]

    def may(self, request: HttpRequest, act: Act, row: Model | None = None) -> bool:
        allowed: Callable[..., bool] = getattr(self, f"has_{act.right}_permission")
        return self.has_view_permission(request, row) and allowed(request, row)

    def has_pause_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm("django_jobs.pause_job")

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"<path:object_id>/{act.name}/",
                self.admin_site.admin_view(partial(self.act_view, act=act)),
                name=f"{self.opts.app_label}_{self.opts.model_name}_{act.name}",
            )
            for act in self.acts
        ]
        return [*own, *super().get_urls()]

    def act_view(self, request: HttpRequest, object_id: str, act: Act) -> HttpResponse:
        """Carry out one command on one row."""
        row = self.posted_row(request, object_id, partial(self.may, act=act))
        if isinstance(row, HttpResponse):
            return row
        self.act_on(request, act, [row])
        return HttpResponseRedirect(detail.url(self, "change", row.pk) or "..")

    def posted_row(self, request: HttpRequest, object_id: str, may: Callable[..., bool]) -> Any:
        """The row that a POST is about, or the answer that refuses it."""
        if not may(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404
        if not may(request, row=row):
            raise PermissionDenied
        return row

    def act_on(self, request: HttpRequest, act: Act, rows: Iterable[Any]) -> None:
        """Carry out a command on each of these rows, and say what came of it."""
        tally = Tally()
        for row in rows:
            self._one(request, act, row, tally)
        telling.tell(request, act.done, tally)

    def _one(self, request: HttpRequest, act: Act, row: Any, tally: Tally) -> None:
        if not self.may(request, act, row):
            tally.refuse(telling.NOT_PERMITTED)
            return
        if not act.fits(row):
            tally.unchanged += 1
            return
        try:
            told = act.carry_out(row)
        except (JobsError, ValidationError) as error:
            messages.error(request, f"{row}: {error}")
            tally.refuse(type(error).__name__)
            return
        tally.changed += 1
        self.log_act(request, row, str(act.done))
        if isinstance(told, str):
            messages.info(request, told)

    def log_act(self, request: HttpRequest, row: Any, said: str) -> None:
        telling.log(request.user, [row], said)

    def buttons(self, request: HttpRequest, row: Any) -> list[dict[str, Any]]:
        return [
            {"verb": act, "url": detail.url(self, act.name, row.pk)}
            for act in self.acts
            if act.fits(row) and self.may(request, act, row)
        ]

    def page_extras(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page of a row shows besides its fields."""
        return {}

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        if obj is not None:
            context = {
                **context, "buttons": self.buttons(request, obj), **self.page_extras(request, obj),
            }  # fmt: skip
        return super().render_change_form(request, context, add, change, form_url, obj)
