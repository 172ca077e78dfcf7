"""What can be asked of a job, a queue or a task. The answers live in the rooms above the models.

Each method imports its room when called: the one upward step of this package, kept here so that
``job.cancel()`` reads as users expect while models stay below the store.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from asgiref.sync import sync_to_async
from django.db import models

from django_jobs.lifecycle import Command

if TYPE_CHECKING:
    from django_jobs.control import Counts
    from django_jobs.explain import Explanation
    from django_jobs.models.job import Job


class JobQuerySet(models.QuerySet[Any]):
    """A queryset of jobs. A command acts on all of it and returns how many it changed.

    The answer has the integers ``changed``, ``unchanged`` and ``refused``; InvalidTransition is
    never raised. As with ``delete()`` the manager has none of these: write ``Job.objects.all()``.
    """

    def pause(self, *, actor: object = None, reason: str | None = None) -> Counts:
        return self._steer(Command.PAUSE, actor=actor, reason=reason)

    def resume(self, *, actor: object = None, reason: str | None = None) -> Counts:
        return self._steer(Command.RESUME, actor=actor, reason=reason)

    def cancel(
        self,
        reason: str | None = None,
        *,
        cascade: bool = False,
        compensate: bool = False,
        actor: object = None,
    ) -> Counts:
        return self._steer(
            Command.CANCEL, actor=actor, reason=reason, cascade=cascade, compensate=compensate
        )

    def retry(self, *, actor: object = None, reason: str | None = None) -> Counts:
        return self._steer(Command.RETRY, actor=actor, reason=reason)

    def rerun(self, *, actor: object = None, reason: str | None = None) -> Counts:
        """Make a new job of each finished one."""
        return self._steer(Command.RERUN, actor=actor, reason=reason)

    def run_now(self, *, actor: object = None, reason: str | None = None) -> Counts:
        return self._steer(Command.RUN_NOW, actor=actor, reason=reason)

    def reschedule(
        self,
        *,
        run_after: datetime | timedelta | None = None,
        delay: float | timedelta | None = None,
        queue_name: str | None = None,
        priority: int | None = None,
        actor: object = None,
        reason: str | None = None,
    ) -> Counts:
        """Another time, queue or priority for those that wait and were never started."""
        from django_jobs.control import change_of

        change = change_of(
            run_after=run_after, delay=delay, queue_name=queue_name, priority=priority
        )
        return self._steer(Command.RESCHEDULE, actor=actor, reason=reason, change=change)

    async def apause(self, **how: Any) -> Counts:
        return await sync_to_async(self.pause)(**how)

    async def aresume(self, **how: Any) -> Counts:
        return await sync_to_async(self.resume)(**how)

    async def acancel(self, reason: str | None = None, **how: Any) -> Counts:
        return await sync_to_async(self.cancel)(reason, **how)

    async def aretry(self, **how: Any) -> Counts:
        return await sync_to_async(self.retry)(**how)

    async def arerun(self, **how: Any) -> Counts:
        return await sync_to_async(self.rerun)(**how)

    async def arun_now(self, **how: Any) -> Counts:
        return await sync_to_async(self.run_now)(**how)

    async def areschedule(self, **how: Any) -> Counts:
        return await sync_to_async(self.reschedule)(**how)

    def _steer(self, command: Command, **how: Any) -> Counts:
        from django_jobs.control import steer_many

        return steer_many(self, command, **how)


# A manager with these would be one slip away from stopping everything.
for _name in "pause resume cancel retry rerun run_now reschedule".split():
    for _method in (_name, f"a{_name}"):
        getattr(JobQuerySet, _method).queryset_only = True


class JobCommands:
    """Methods of one job. A command returns this very object, refreshed.

    ``actor`` (who) and ``reason`` (why) are stored with the history entry. A command that does not
    fit the status raises InvalidTransition and changes nothing; repeating one is harmless.
    """

    def pause(self, *, actor: object = None, reason: str | None = None) -> Self:
        """Start nothing more of it. What is under way finishes, and its result is kept."""
        return self._steer(Command.PAUSE, actor=actor, reason=reason)

    def resume(self, *, actor: object = None, reason: str | None = None) -> Self:
        """Let a paused job go on where it stopped, due now."""
        return self._steer(Command.RESUME, actor=actor, reason=reason)

    def cancel(
        self,
        reason: str | None = None,
        *,
        cascade: bool = False,
        compensate: bool = False,
        actor: object = None,
    ) -> Self:
        """End it now; a late result of a handler still under way is dropped.

        ``cascade`` cancels its live child runs too, and theirs. With ``compensate`` a run of which a
        step has completed is undone: what it has in hand is recorded, then its completed steps are
        compensated, the last completed first, and it ends as compensated.
        """
        return self._steer(
            Command.CANCEL, actor=actor, reason=reason, cascade=cascade, compensate=compensate
        )

    def retry(self, *, actor: object = None, reason: str | None = None) -> Self:
        """Open a failed job again, due now: completed steps stay, the failed step's budget is whole."""
        return self._steer(Command.RETRY, actor=actor, reason=reason)

    def compensate(self, *, actor: object = None, reason: str | None = None) -> Self:
        """Undo the completed steps of this failed run, the last completed first."""
        return self._steer(Command.COMPENSATE, actor=actor, reason=reason)

    async def acompensate(self, **how: Any) -> Self:
        return await sync_to_async(self.compensate)(**how)

    def rerun(
        self,
        *,
        input: dict[str, Any] | None = None,
        actor: object = None,
        reason: str | None = None,
    ) -> Job:
        """A new job with the call of this finished one, or with another ``input``; return the new job."""
        from django_jobs.control import rerun

        return rerun(self, input=input, actor=actor, reason=reason)  # type: ignore[arg-type]

    def run_now(self, *, actor: object = None, reason: str | None = None) -> Self:
        """Make it due now, if it waits for its time or for a retry."""
        return self._steer(Command.RUN_NOW, actor=actor, reason=reason)

    def reschedule(
        self,
        *,
        run_after: datetime | timedelta | None = None,
        delay: float | timedelta | None = None,
        queue_name: str | None = None,
        priority: int | None = None,
        actor: object = None,
        reason: str | None = None,
    ) -> Self:
        """Give a job that waits and was never started another time, queue or priority.

        ``run_after`` and ``delay`` are those of :meth:`using`; 0 is now. Raises InvalidInput,
        and InvalidTransition for a job that was started, and for the time of a paused one.
        """
        from django_jobs.control import change_of

        change = change_of(
            run_after=run_after, delay=delay, queue_name=queue_name, priority=priority
        )
        return self._steer(Command.RESCHEDULE, actor=actor, reason=reason, change=change)

    def explain(self) -> Explanation:
        """Why it is not running: every closed gate in order, and what opens it."""
        from django_jobs.explain import explain

        return explain(self)  # type: ignore[arg-type]

    async def apause(self, **how: Any) -> Self:
        return await sync_to_async(self.pause)(**how)

    async def aresume(self, **how: Any) -> Self:
        return await sync_to_async(self.resume)(**how)

    async def acancel(self, reason: str | None = None, **how: Any) -> Self:
        return await sync_to_async(self.cancel)(reason, **how)

    async def aretry(self, **how: Any) -> Self:
        return await sync_to_async(self.retry)(**how)

    async def arerun(self, **how: Any) -> Job:
        return await sync_to_async(self.rerun)(**how)

    async def arun_now(self, **how: Any) -> Self:
        return await sync_to_async(self.run_now)(**how)

    async def areschedule(self, **how: Any) -> Self:
        return await sync_to_async(self.reschedule)(**how)

    async def aexplain(self) -> Explanation:
        return await sync_to_async(self.explain)()

    def _steer(self, command: Command, **how: Any) -> Self:
        from django_jobs.control import steer

        return steer(self, command, **how)  # type: ignore[arg-type, return-value]

    #: False on the object that an enqueue returns for a job that lived already.
    created: bool = True

    @property
    def task_status(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The steps recorded so far: ``job.task_status[slug][step id]`` is a dict of six keys."""
        status: dict[str, dict[str, dict[str, Any]]] = {}
        for step in self.steps.exclude(step_id="").order_by("id"):  # type: ignore[attr-defined]
            status.setdefault(step.slug, {})[step.step_id] = step.as_status()
        return status

    def as_dict(self) -> dict[str, Any]:
        """Where it stands, with its steps in order of declaration, for callers of all kinds."""
        from django_jobs.observe.shape import as_dict

        return as_dict(self)  # type: ignore[arg-type]

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
