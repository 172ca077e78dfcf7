"""Several admin sites at once: Django's own, and one of the project's choice with its own subclasses."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin
from django.urls import path

from django_jobs.models import Job


def _operations() -> admin.AdminSite:
    from tests.admin.test_permissions import OursAdmin

    site = admin.AdminSite(name="operations")
    for model in apps.get_app_config("django_jobs").get_models():
        if model is Job:
            site.register(model, OursAdmin)
        elif admin.site.is_registered(model):
            site.register(model, type(admin.site.get_model_admin(model)))
    return site


operations = _operations()
urlpatterns = [path("admin/", admin.site.urls), path("operations/", operations.urls)]
