"""What can be asked of a job, a queue or a task. The answers live in the rooms above the models.

Each method imports its room when called: the one upward step of this package, kept here so that
``job.cancel()`` reads as users expect while models stay below the store.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from asgiref.sync import sync_to_async
from django.db import models

if TYPE_CHECKING:
    pass


class JobQuerySet(models.QuerySet[Any]):
    """A queryset of jobs."""


class JobCommands:
    """Methods of one job."""

    #: False on the object that an enqueue returns for a job that lived already.
    created: bool = True

    @property
    def task_status(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The steps recorded so far: ``job.task_status[slug][step id]`` is a dict of six keys."""
        status: dict[str, dict[str, dict[str, Any]]] = {}
        for step in self.steps.order_by("id"):  # type: ignore[attr-defined]
            status.setdefault(step.slug, {})[step.step_id] = step.as_status()
        return status

    def result(self, timeout: float | timedelta | None = None) -> Any:
        """Wait until the job has ended and return its typed output.

        ``timeout`` is counted in real seconds and never touches the job. Raises JobFailed,
        JobCanceled, WaitTimeout, or Job.DoesNotExist when the row is deleted meanwhile.
        """
        from django_jobs.waiting import result

        return result(self, timeout)  # type: ignore[arg-type]

    async def aresult(self, timeout: float | timedelta | None = None) -> Any:
        from django_jobs.waiting import aresult

        return await aresult(self, timeout)  # type: ignore[arg-type]


class Pausable:
    """A switch that stops claiming, fleet-wide and at once."""

    def pause(self) -> Self:
        """Let nothing of this be claimed until :meth:`resume`; what runs goes on."""
        return self._switch(True)

    def resume(self) -> Self:
        return self._switch(False)

    async def apause(self) -> Self:
        return await sync_to_async(self.pause)()

    async def aresume(self) -> Self:
        return await sync_to_async(self.resume)()

    def _switch(self, paused: bool) -> Self:
        from django_jobs.store import notify_all

        model: Any = type(self)
        row: Any = self
        model.objects.using(row._state.db).filter(pk=row.pk).update(paused=paused)
        row.paused = paused
        if not paused:
            notify_all(row._state.db)
        return self
