"""What can be asked of a schedule. Each method steps up to the room that answers it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from django.conf import settings as django_settings

from django_jobs import clock
from django_jobs.definitions.timing import Timing, timing_of, upcoming
from django_jobs.definitions.wording import in_words

if TYPE_CHECKING:
    from django_jobs.models.job import Job
    from django_jobs.models.schedule import Schedule
    from django_jobs.scheduling.orders import Backfill


@dataclass(frozen=True, slots=True)
class PastSlot:
    """A slot that was dealt with."""

    #: The nominal moment, in the zone of the schedule; and when it was dealt with.
    slot: datetime
    at: datetime
    #: fired, missed, overlapped, failed or backfilled.
    outcome: str
    #: The job it made, and that job's status; None for one that was pruned.
    job_id: UUID | None
    job_status: str | None
    #: Why it made none.
    error: dict[str, Any] | None


class ScheduleCommands:
    """The methods of :class:`Schedule`."""

    expression: str
    timezone: str
    anchor: datetime
    pk: Any
    _state: Any

    @property
    def zone_name(self) -> str:
        """The IANA name of its zone."""
        return self.timezone or django_settings.TIME_ZONE

    @property
    def timing(self) -> Timing:
        """When it fires; ConfigurationError where expression or zone make no sense."""
        return timing_of(self.expression, self.zone_name)

    def upcoming(self, n: int = 1, after: datetime | None = None) -> list[datetime]:
        """The next ``n`` slots after a moment (now by default), aware and in its zone.

        They are what an enabled schedule will fire; a paused one has them all the same.
        """
        return upcoming(self.timing, after or clock.now(), n, self.anchor)

    def in_words(self) -> str:
        """When it fires, in plain English with the zone: "every day at 09:00 (Europe/Zurich)"."""
        return in_words(self.expression, self.zone_name)

    def history(self, n: int = 50) -> list[PastSlot]:
        """The ``n`` newest slots that were dealt with, newest first."""
        from django_jobs.models.job import Job

        ticks = list(self.ticks.order_by("-slot")[:n])  # type: ignore[attr-defined]
        wanted = [tick.job_id for tick in ticks if tick.job_id is not None]
        found = Job.objects.using(self._state.db).filter(pk__in=wanted)
        statuses = dict(found.values_list("pk", "status"))
        return [
            PastSlot(
                slot=self._local(tick.slot), at=tick.created_at, outcome=tick.outcome, job_id=tick.job_id,
                job_status=statuses.get(tick.job_id), error=tick.error,
            )
            for tick in ticks
        ]  # fmt: skip

    def _local(self, moment: datetime) -> datetime:
        from django_jobs.errors import ConfigurationError

        try:
            return self.timing.local(moment)
        except ConfigurationError:
            return moment

    def pause(self) -> Self:
        """Fire nothing until :meth:`resume`; slots that pass meanwhile are not made up for."""
        from django_jobs.scheduling import orders

        orders.pause(self._row)
        return self._refreshed()

    def resume(self) -> Self:
        """Fire slots from now on. InvalidInput for a schedule that the code no longer has."""
        from django_jobs.scheduling import orders

        orders.resume(self._row)
        return self._refreshed()

    def run_now(self) -> Job:
        """Make one job at once, besides the slots; its input function gets the present moment."""
        from django_jobs.scheduling import orders

        return orders.run_now(self._row)

    def backfill(
        self, start: datetime, end: datetime, *, limit: int = 100, dry_run: bool = False
    ) -> Backfill:
        """Make the jobs of the slots from ``start`` to ``end`` that have none, oldest first."""
        from django_jobs.scheduling import orders

        return orders.backfill(self._row, start, end, limit=limit, dry_run=dry_run)

    @property
    def _row(self) -> Schedule:
        return self  # type: ignore[return-value]

    def _refreshed(self) -> Self:
        self.refresh_from_db()  # type: ignore[attr-defined]
        return self
