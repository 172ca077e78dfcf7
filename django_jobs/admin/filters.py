"""What narrows a list of jobs, each in a form for which an index exists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db import connections
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_jobs.admin.formatting import STATUS_LABELS
from django_jobs.admin.paging import COUNT_LIMIT
from django_jobs.definitions import registry
from django_jobs.lifecycle import FINAL, Gate, Kind, Status
from django_jobs.models import Queue, Task, WorkflowRun
from django_jobs.store.session import engine_alias

#: Tabs that are always there; the others show when a job is in them.
USUAL = [
    Status.PENDING, Status.RUNNING, Status.SLEEPING, Status.PAUSED, Status.COMPLETED, Status.FAILED,
    Status.CANCELED,
]  # fmt: skip
#: More tasks than this are not searched by the beginning of their name.
MATCHES = 200
_HEX = re.compile(r"[0-9a-f]{4,32}\Z")


def of_status(status: str) -> Q:
    """Jobs of one status, said so that the partial indexes can be used."""
    if status == Status.PENDING:
        # One arm for each index that holds pending jobs.
        return reduce(or_, (Q(status=status, gate=gate) for gate in Gate))
    wanted = Q(status=status)
    if status in FINAL:
        wanted &= Q(finished_at__isnull=False)
    elif status == Status.RUNNING:
        wanted &= Q(lease_expires_at__isnull=False)
    return wanted


def of_slugs(slugs: Sequence[str]) -> Q:
    """Jobs of these tasks: the finished by their index, the live ones by what keeps them alive."""
    live = reduce(or_, (of_status(status) for status in Status if status not in FINAL))
    return Q(slug__in=slugs) & (Q(finished_at__isnull=False) | live)


def id_range(text: str) -> tuple[UUID, UUID] | None:
    """The least and the greatest id that begins with ``text``; None where it begins none."""
    digits = text.strip().lower().replace("-", "")
    if not _HEX.match(digits):
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def search(found: QuerySet[Any], text: str) -> QuerySet[Any]:
    """Jobs whose id or slug begins with ``text``."""
    text = text.strip()
    if not text:
        return found
    known = set(registry.snapshot())
    listed = Task.objects.using(found.db).filter(slug__startswith=text)
    known.update(listed.values_list("slug", flat=True)[:MATCHES])
    slugs = sorted(slug for slug in known if slug.startswith(text))[:MATCHES]
    wanted = of_slugs(slugs or [text])
    ends = id_range(text)
    if ends is not None:
        by_id = Q(pk__gte=ends[0], pk__lte=ends[1])
        wanted = wanted | by_id if slugs else by_id
    return found.filter(wanted)


def status_counts(found: QuerySet[Any]) -> dict[str, int]:
    """Jobs by status, each counted up to the limit, in one statement."""
    parts: list[str] = []
    params: list[Any] = []
    for status in Status:
        capped = found.filter(of_status(status)).order_by().values("pk")[: COUNT_LIMIT + 1]
        sql, values = capped.query.sql_with_params()
        parts.append(f"(SELECT COUNT(*) FROM ({sql}) counted)")
        params.extend(values)
    with connections[found.db].cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(parts)}", params)
        row = cursor.fetchone()
    return dict(zip(map(str, Status), row, strict=True))


class ChoiceFilter(admin.SimpleListFilter):
    """One value of a short list, offered as a select box above the list of jobs."""

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
        return queryset.filter(of_status(value)) if value else queryset


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
        return queryset.filter(of_slugs([value])) if value else queryset


class QueueFilter(ChoiceFilter):
    title = _("queue")
    parameter_name = "queue"

    def names(self, request: HttpRequest) -> Iterable[tuple[str, str]]:
        yield from Queue.objects.using(engine_alias()).values_list("name", "name")

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(queue_name=value) if value else queryset


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
        return [(str(kind), str(kind)) for kind in Kind if kind != Kind.STEP]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(kind=value) if value else queryset
