"""Workflow runs: jobs whose target is a workflow."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from django_jobs.admin.jobs import JobAdmin
from django_jobs.lifecycle import Kind
from django_jobs.models import WorkflowRun

#: What narrows a list of runs by an index of its own.
NARROWING = ("status", "slug", "q", "key", "worker", "tenant_1", "tenant_2", "tenant_3")


@admin.register(WorkflowRun)
class WorkflowRunAdmin(JobAdmin):
    """The list of runs; a run's page is that of its job."""

    def rows(self, request: HttpRequest) -> QuerySet[Any]:
        if not any(request.GET.get(name) for name in NARROWING):
            return super().rows(request)
        # Said so that the index of runs does not fit: PostgreSQL would walk through all of it, as it
        # takes the few runs that failed to lie anywhere among the others.
        every: QuerySet[Any] = self.model.units.exclude(kind__in=[Kind.TASK, Kind.STEP])
        return every
