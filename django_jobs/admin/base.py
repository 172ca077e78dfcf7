"""What all admin pages of this app have in common: they show, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import label_for_field
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, QuerySet
from django.forms.widgets import Script
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.functional import Promise, cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from django_jobs.admin.filters import ChoiceFilter
from django_jobs.admin.paging import TitledChangeList
from django_jobs.store.session import engine_alias


class ReadOnlyAdmin(admin.ModelAdmin):
    """Lists and pages for those with the view permission; nothing is added, edited or deleted."""

    list_per_page = 50
    show_full_result_count = False
    change_list_template = "admin/django_jobs/change_list.html"
    #: Stands in the empty search box.
    search_placeholder: str | Promise = _("name")

    class Media:
        css = {"all": ["django_jobs/admin.css"]}
        js = [Script("django_jobs/live.js", type="module")]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found = self.rows(request).using(engine_alias())
        ordering = self.get_ordering(request)
        return found.order_by(*ordering) if ordering else found

    def rows(self, request: HttpRequest) -> QuerySet[Any]:
        """All that there is, before anything narrows it."""
        return self.model._default_manager.all()

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        return self._columns

    @cached_property
    def _columns(self) -> list[Any]:
        """Each cell with its heading, for narrow screens, which have no row of headings."""
        first, *others = self.list_display
        return [first, *(self._labelled(str(name)) for name in others)]

    def _labelled(self, name: str) -> Callable[[Any], SafeString | str]:
        method = getattr(self, name, None)
        label: Any = label_for_field(name, self.model, self)

        @admin.display(
            description=label,
            ordering=name if method is None else getattr(method, "admin_order_field", None),
        )
        def cell(row: Any) -> SafeString | str:
            value = getattr(row, name) if method is None else method(row)
            if value in (None, ""):
                return ""
            return format_html('<span class="dj-label">{}</span> {}', label, value)

        cell.__name__ = name
        shown: Any = cell
        if method is not None and hasattr(method, "empty_value_display"):
            shown.empty_value_display = method.empty_value_display
        return cell

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return TitledChangeList

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        if isinstance(response, TemplateResponse) and response.context_data is not None:
            changelist = response.context_data.get("cl")
            if changelist is not None:
                response.context_data |= self.toolbar(request, changelist)
        return response

    def toolbar(self, request: HttpRequest, changelist: Any) -> dict[str, Any]:
        """What stands above a list: the search box and a select box for each filter."""
        selects = [s for s in changelist.filter_specs if isinstance(s, ChoiceFilter)]
        own = {"q", *(spec.parameter_name for spec in selects)}
        return {
            "selects": [spec for spec in selects if not spec.typed],
            "typed": [spec for spec in selects if spec.typed],
            "typed_any": any(spec.value() for spec in selects if spec.typed),
            "kept": [pair for pair in changelist.params.items() if pair[0] not in own],
            "narrowed": any(changelist.params.values()),
            "search_placeholder": self.search_placeholder,
        }

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
