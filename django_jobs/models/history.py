"""What happened to a job, and what was sent to it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_jobs.models.fields import JSONField, NameField, PartialIndex
from django_jobs.models.job import Job


class HistoryEntry(models.Model):
    """One recorded change of a job, numbered from 1 without gaps.

    What the job's own columns tell (enqueued, first claim, completion) has no row;
    ``django_jobs.observe.history`` derives it.
    """

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(
        Job,
        models.CASCADE,
        related_name="history",
        db_constraint=False,
        db_index=False,
        verbose_name=_("job"),
    )
    n = models.PositiveIntegerField(_("number"))
    at = models.DateTimeField(_("time"))
    event = models.CharField(_("event"), max_length=40)
    from_status = models.CharField(_("from"), max_length=20, null=True)
    to_status = models.CharField(_("to"), max_length=20, null=True)
    step = NameField(_("step"), max_length=900, null=True)
    attempt = models.PositiveIntegerField(_("attempt"), null=True)
    fence = models.PositiveIntegerField(default=0, db_default=0)
    worker = models.UUIDField(_("worker"), null=True)
    actor = models.CharField(_("actor"), max_length=200, null=True)
    detail = JSONField(_("detail"), null=True)

    class Meta:
        verbose_name = _("history entry")
        verbose_name_plural = _("history entries")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(name="django_jobs_history_numbers", fields=["job", "n"])
        ]

    def __str__(self) -> str:
        return f"{self.job_id} {self.n} {self.event}"


class Event(models.Model):
    """What ``send_event`` sent to a run: consumed once, oldest first."""

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(
        Job,
        models.CASCADE,
        related_name="events",
        db_constraint=False,
        db_index=False,
        verbose_name=_("job"),
    )
    name = NameField(_("name"))
    key_hash = models.CharField(max_length=32, null=True, help_text=_("Of receiver and key."))
    payload = JSONField(_("payload"), null=True)
    sent_at = models.DateTimeField(_("sent"))
    step_key = models.CharField(max_length=32, null=True, help_text=_("The wait that consumed it."))

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(name="django_jobs_event_key_once", fields=["key_hash"])
        ]
        indexes = [
            PartialIndex(
                name="django_jobs_events_waiting",
                fields=["job", "name", "id"],
                where=models.Q(step_key=None),
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} to {self.job_id}"


class Broadcast(models.Model):
    """The receivers of an event that was sent to all who waited, under a key: it is sent once."""

    key_hash = models.CharField(max_length=32, primary_key=True)
    receivers = JSONField(default=list)
    sent_at = models.DateTimeField(_("sent"), db_index=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.key_hash
