from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from testproject.shop.models import Order, Parcel, Rejection


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """What the workflow wrote is not edited by hand."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object | None = None) -> bool:
        return False


@admin.register(Order)
class OrderAdmin(ReadOnlyAdmin):
    list_display = ["reference", "customer", "total", "state", "charge_id", "job"]
    list_filter = ["state", "country"]
    search_fields = ["reference", "customer", "email"]

    @admin.display(description="Workflow run")
    def job(self, order: Order) -> SafeString | str:
        if order.job_id is None:
            return "-"
        try:
            url = reverse("admin:django_jobs_workflowrun_change", args=[order.job_id])
        except NoReverseMatch:
            return str(order.job_id)
        return format_html('<a href="{}">{}</a>', url, order.job_id)


@admin.register(Parcel)
class ParcelAdmin(ReadOnlyAdmin):
    list_display = ["code", "order", "pieces"]
    list_select_related = ["order"]
    search_fields = ["code", "order__reference"]


@admin.register(Rejection)
class RejectionAdmin(ReadOnlyAdmin):
    list_display = ["row", "reference", "reason", "detail"]
    list_filter = ["reason"]
    search_fields = ["reference"]
