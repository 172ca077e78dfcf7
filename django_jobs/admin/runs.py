"""Workflow runs: jobs whose target is a workflow."""

from __future__ import annotations

from django.contrib import admin

from django_jobs.admin.jobs import JobAdmin
from django_jobs.models import WorkflowRun


@admin.register(WorkflowRun)
class WorkflowRunAdmin(JobAdmin):
    """The list of runs; a run's page is that of its job."""
