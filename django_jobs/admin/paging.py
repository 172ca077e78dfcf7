"""Pages of big tables: by key, without counting what nobody reads."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.text import capfirst

from django_jobs.admin import formatting
from django_jobs.admin.filters import ChoiceFilter
from django_jobs.lifecycle import FINAL, Status
from django_jobs.models import Job
from django_jobs.observe import selection
from django_jobs.observe.stats import COUNT_LIMIT, capped_count

OLDER, NEWER = "before", "after"
#: Jobs that one page looks through where no index serves its filters.
LOOKED_THROUGH = 20_000
#: The same where an index leads to jobs that lie apart from each other in the table.
LOOKED_UP = 5_000
#: Statuses whose jobs an index has in order of their ids.
BY_STATUS = FINAL | {Status.PAUSED, Status.COMPENSATING}


class TitledChangeList(ChangeList):
    """A list that is called by what it lists."""

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().__init__(request, *args, **kwargs)
        self.title = capfirst(str(self.opts.verbose_name_plural))


class KeysetChangeList(TitledChangeList):
    """The newest first; the next page starts after the last key, so that deep ones cost the same."""

    by_key = True
    older_query: str | None = None
    newer_query: str | None = None
    newest_query: str | None = None
    #: Whether there are more rows than ``result_count`` says.
    count_is_capped = False
    #: Where the jobs that this page looks through end; None where it looks through all.
    edge: Any = None

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        self._cursors = {name: request.GET.get(name) for name in (OLDER, NEWER)}
        super().__init__(request, *args, **kwargs)

    def get_filters_params(self, params: Any = None) -> Any:
        # The first method of the base class that looks at the parameters of this request.
        for given in (self.params, self.filter_params):
            for name in (OLDER, NEWER):
                given.pop(name, None)
        return super().get_filters_params(params)

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return ["-pk"]

    def get_results(self, request: HttpRequest) -> None:
        before, after = self._key(OLDER), self._key(NEWER)
        rows, more = self._page(before, after)
        if before is None and after is not None and not more:
            # What is newer fits on one page: that is the first one.
            after = None
            rows, more = self._page(None, None)
        if rows and (more or after is not None):
            self.older_query = self.get_query_string({OLDER: rows[-1].pk})
        elif self.edge is not None and after is None:
            self.older_query = self.get_query_string({OLDER: self.edge})
        if rows and (before is not None or after is not None):
            self.newer_query = self.get_query_string({NEWER: rows[0].pk})
        elif self.edge is not None and after is not None:
            self.newer_query = self.get_query_string({NEWER: self.edge})
        if before is not None or after is not None:
            self.newest_query = self.get_query_string()
        self.found_rows = rows
        self._count(len(rows) if self.newest_query is None and not more else None)
        self.result_list = rows
        self.show_full_result_count = False
        self.full_result_count = None
        self.show_admin_actions = True
        self.can_show_all = False
        self.multi_page = more
        self.paginator = Paginator(rows, self.list_per_page)

    def _page(self, before: Any, after: Any) -> tuple[list[Any], bool]:
        """The rows of one page, newest first, and whether more follow in the direction asked for."""
        page, size = self.queryset, self.list_per_page
        self.edge = self._edge(before, after) if self.is_bounded else None
        if self.edge is not None:
            page = page.filter(**{"pk__gte" if before or not after else "pk__lte": self.edge})
        if before is not None:
            page = page.filter(pk__lt=before)
        elif after is not None:
            page = page.filter(pk__gt=after).order_by("pk")
        rows = list(page[: size + 1])
        more = len(rows) > size
        rows = rows[:size]
        return (rows[::-1] if before is None and after is not None else rows), more

    @property
    def is_bounded(self) -> bool:
        """Whether the database may have to look at every row to find those of one page."""
        active = [
            spec for spec in self.filter_specs if isinstance(spec, ChoiceFilter) and spec.value()
        ]
        indexed = (
            sum(spec.indexed for spec in active) + bool(self.query) + ("status" in self.params)
        )
        # Of runs an index says nothing of their status, nor one of statuses of their kind.
        indexed += bool(self.opts.proxy) and "status" in self.params
        return any(not spec.indexed for spec in active) or indexed > 1

    def _edge(self, before: Any, after: Any) -> Any:
        """The last id of those that are looked through from here; None where fewer are left."""
        # Units of runs are among them: so an index of ids alone answers.
        units: Any = Job.units
        found = units.using(self.queryset.db)
        status, most = self.params.get("status"), LOOKED_THROUGH
        if status in BY_STATUS:
            most = LOOKED_UP
            # Of these there is an index by status and id: rare ones are not sought among all jobs.
            found = found.filter(selection.of_status(status))
        if before is None and after is not None:
            found = found.filter(pk__gt=after).order_by("pk")
        else:
            found = (
                found.order_by("-pk")
                if before is None
                else found.filter(pk__lt=before).order_by("-pk")
            )
        ids = found.values_list("pk", flat=True)[most - 1 : most]
        return next(iter(ids), None)

    def _count(self, known: int | None) -> None:
        if self.is_bounded:
            # No count, and no promise: what this page has, and whether there may be more.
            self.result_count = len(self.found_rows)
            self.count_is_capped = self.edge is not None or known is None
            return
        found = capped_count(self.queryset) if known is None else known
        self.result_count = min(found, COUNT_LIMIT)
        self.count_is_capped = found > COUNT_LIMIT

    @property
    def shown_count(self) -> str:
        return formatting.number(self.result_count)

    def _key(self, name: str) -> Any:
        value = self._cursors[name]
        if not value:
            return None
        try:
            return self.opts.pk.to_python(value)
        except ValidationError as error:
            raise IncorrectLookupParameters from error
