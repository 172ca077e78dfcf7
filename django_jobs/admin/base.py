"""What all admin pages of this app have in common: they show, and change nothing."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from django_jobs.store.session import engine_alias


class ReadOnlyAdmin(admin.ModelAdmin):
    """Lists and pages for those with the view permission; nothing is added, edited or deleted."""

    list_per_page = 50
    show_full_result_count = False

    class Media:
        css = {"all": ["django_jobs/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found = self.model._default_manager.using(engine_alias()).all()
        ordering = self.get_ordering(request)
        return found.order_by(*ordering) if ordering else found

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
