"""The tables: one noun a module."""

from django_jobs.models.catalogue import Queue, Task, Worker
from django_jobs.models.history import Broadcast, Event, HistoryEntry
from django_jobs.models.job import Job, Overview, WorkflowRun
from django_jobs.models.limits import IdempotencyKey, KeyLock, Permit, RateStart, RateWait
from django_jobs.models.schedule import Callback, OutboxMessage, Schedule, SeenSignature, Tick
from django_jobs.models.step import Attempt, LogLine, TaskStatus

__all__ = [
    "Attempt",
    "Broadcast",
    "Callback",
    "Event",
    "HistoryEntry",
    "IdempotencyKey",
    "Job",
    "KeyLock",
    "LogLine",
    "OutboxMessage",
    "Overview",
    "Permit",
    "Queue",
    "RateStart",
    "RateWait",
    "Schedule",
    "SeenSignature",
    "Task",
    "TaskStatus",
    "Tick",
    "Worker",
    "WorkflowRun",
]
