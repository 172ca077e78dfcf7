"""What narrows a list of jobs, each in a form for which an index exists."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_jobs import conf
from django_jobs.admin.formatting import KIND_LABELS, STATUS_LABELS
from django_jobs.definitions import registry
from django_jobs.lifecycle import Kind, Status
from django_jobs.models import Queue, Task, WorkflowRun
from django_jobs.observe import selection
from django_jobs.store.session import engine_alias

#: Tabs that are always there; the others show when a job is in them.
USUAL = [
    Status.PENDING, Status.RUNNING, Status.SLEEPING, Status.PAUSED, Status.COMPLETED, Status.FAILED,
    Status.CANCELED,
]  # fmt: skip
#: Presets of the filter by time of creation.
SPANS: dict[str, tuple[timedelta, Any]] = {
    "15m": (timedelta(minutes=15), _("last 15 minutes")),
    "1h": (timedelta(hours=1), _("last hour")),
    "1d": (timedelta(days=1), _("last 24 hours")),
    "7d": (timedelta(days=7), _("last 7 days")),
    "30d": (timedelta(days=30), _("last 30 days")),
}


class ChoiceFilter(admin.SimpleListFilter):
    """One value of a short list, offered as a select box above the list of jobs."""

    #: Whether an index serves it. Without one, a page looks at a bounded number of rows.
    indexed = True
    #: A value to be typed, instead of chosen.
    typed = False

    def has_output(self) -> bool:
        return True

    def names(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """The values and their labels."""
        raise NotImplementedError

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        choices: dict[str, Any] = dict(self.names(request))
        chosen = self.used_parameters.get(str(self.parameter_name))
        if chosen and chosen not in choices:
            choices[chosen] = chosen
        return sorted(choices.items(), key=lambda pair: str(pair[1]).lower())

    def options(self) -> list[dict[str, Any]]:
        """The choices as the template's select box shows them."""
        return [
            {"value": value, "label": label, "selected": str(value) == self.value()}
            for value, label in self.lookup_choices
        ]


class StatusFilter(admin.SimpleListFilter):
    """Chosen by the tabs above the list."""

    title = _("status")
    parameter_name = "status"

    def has_output(self) -> bool:
        return True

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        return [(str(status), STATUS_LABELS[status]) for status in Status]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(selection.of_status(value)) if value else queryset


class SlugFilter(ChoiceFilter):
    title = _("task")
    parameter_name = "slug"
    model: type[Model]

    def __init__(
        self,
        request: HttpRequest,
        params: dict[str, list[str]],
        model: type[Model],
        model_admin: admin.ModelAdmin[Any],
    ) -> None:
        self.model = model
        super().__init__(request, params, model, model_admin)

    def names(self, request: HttpRequest) -> Iterable[tuple[str, str]]:
        only_runs = issubclass(self.model, WorkflowRun)
        listed = Task.objects.using(engine_alias())
        if only_runs:
            listed = listed.exclude(kind=Kind.TASK)
        yield from listed.values_list("slug", "slug")
        for definition in registry.every():
            if not only_runs or definition.kind != Kind.TASK:
                yield definition.slug, definition.slug

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(selection.of_slugs([value])) if value else queryset


class QueueFilter(ChoiceFilter):
    title = _("queue")
    parameter_name = "queue"
    indexed = False

    def names(self, request: HttpRequest) -> Iterable[tuple[str, str]]:
        yield from Queue.objects.using(engine_alias()).values_list("name", "name")

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(queue_name=value) if value else queryset


class SinceFilter(ChoiceFilter):
    title = _("created")
    parameter_name = "since"

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        return [(name, label) for name, (_span, label) in SPANS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = SPANS.get(self.value() or "")
        if chosen is None:
            return queryset
        return queryset.filter(pk__gte=selection.first_id(selection.ago(chosen[0])))


class TypedFilter(ChoiceFilter):
    """One value, typed: there may be any number of them."""

    typed = True

    def lookups(
        self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]
    ) -> list[tuple[str, Any]]:
        return []

    def condition(self, value: str) -> Any:
        raise NotImplementedError

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = (self.value() or "").strip()
        return queryset.filter(self.condition(value)) if value else queryset


class KeyFilter(TypedFilter):
    title = _("concurrency key (live jobs)")
    parameter_name = "key"

    def condition(self, value: str) -> Any:
        return selection.of_key(value)


class WorkerFilter(TypedFilter):
    title = _("in hand of worker (id)")
    parameter_name = "worker"

    def condition(self, value: str) -> Any:
        return selection.of_worker(value)


class CodeFilter(TypedFilter):
    title = _("failure code")
    parameter_name = "code"
    indexed = False

    def condition(self, value: str) -> Any:
        return selection.of_code(value)


class TagFilter(TypedFilter):
    title = _("tag")
    parameter_name = "tag"
    indexed = False

    def condition(self, value: str) -> Any:
        return selection.of_tag(value)


class TenantFilter(TypedFilter):
    """One of ``TENANT_FIELDS``; its column is that of its place in the list."""

    column = ""

    def condition(self, value: str) -> Any:
        return {self.column: value}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = (self.value() or "").strip()
        return queryset.filter(**self.condition(value)) if value else queryset


def tenant_filters() -> list[type[TenantFilter]]:
    """A filter for each of ``TENANT_FIELDS``."""
    names = conf.get().tenant_fields
    return [
        type(f"{column}_filter", (TenantFilter,), {"title": name, "parameter_name": column, "column": column})
        for column, name in zip(selection.TENANT_COLUMNS, names, strict=False)
    ]  # fmt: skip


#: Parameters of the list of jobs that a selection has under a name of its own.
SELECTED = {name: name for name in ("status", "slug", "queue", "key", "worker", "code", "tag")}


def selection_of(changelist: Any, *, until_id: str) -> tuple[selection.Selection, list[str]]:
    """What a list of jobs is narrowed to, as plain values; and the names of what cannot be said so.

    A filter that a project has added is among those: leaving it out would act on too many jobs.
    """
    tenants = dict.fromkeys(selection.TENANT_COLUMNS, "")
    values: dict[str, Any] = {"search": changelist.query, "until_id": until_id}
    unknown: list[str] = []
    for name in changelist.get_filters_params():
        value = changelist.params.get(name, "")
        if name in SELECTED:
            values[SELECTED[name]] = value.strip()
        elif name in tenants:
            tenants[name] = value.strip()
        elif name == SinceFilter.parameter_name:
            if value in SPANS:
                values["since"] = selection.ago(SPANS[value][0]).isoformat()
        else:
            unknown.append(name)
    only_runs = issubclass(changelist.model, WorkflowRun)
    found = selection.Selection(**values, tenants=tuple(tenants.values()), only_runs=only_runs)
    return found, sorted(unknown)


class PausedFilter(ChoiceFilter):
    title = _("paused")
    parameter_name = "paused"

    def names(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        return [("1", _("yes")), ("0", _("no"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(paused=value == "1") if value in ("0", "1") else queryset


class KindFilter(ChoiceFilter):
    title = _("kind")
    parameter_name = "kind"

    def names(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        return [(str(kind), KIND_LABELS[kind]) for kind in Kind if kind != Kind.STEP]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(kind=value) if value else queryset
