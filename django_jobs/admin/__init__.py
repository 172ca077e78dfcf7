"""The pages in the Django admin: they read the tables and act through the rooms below."""

from django_jobs.admin.catalogue import QueueAdmin, TaskAdmin, WorkerAdmin
from django_jobs.admin.dashboard import OverviewAdmin
from django_jobs.admin.jobs import JobAdmin
from django_jobs.admin.runs import WorkflowRunAdmin
from django_jobs.admin.schedules import ScheduleAdmin

__all__ = [
    "JobAdmin", "OverviewAdmin", "QueueAdmin", "ScheduleAdmin", "TaskAdmin", "WorkerAdmin", "WorkflowRunAdmin",
]  # fmt: skip
