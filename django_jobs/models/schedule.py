"""Schedules and their ticks; what is promised to be sent."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_jobs.models.fields import JSONField, NameField, PartialIndex


class Schedule(models.Model):
    """When a task or workflow is enqueued by itself."""

    id = models.BigAutoField(primary_key=True)
    name = NameField(max_length=300)
    slug = NameField()
    version = NameField(null=True, blank=True)
    expression = models.CharField(max_length=1000)
    timezone = models.CharField(max_length=100, blank=True, default="")
    input = JSONField(default=dict, blank=True)
    queue_name = NameField(null=True, blank=True)
    misfire = models.CharField(
        max_length=10,
        choices=[("one", _("one")), ("skip", _("skip")), ("all", _("all"))],
        default="one",
    )
    grace = models.FloatField(null=True, blank=True, help_text=_("Seconds."))
    overlap = models.CharField(
        max_length=10, choices=[("allow", _("allow")), ("skip", _("skip"))], default="allow"
    )
    enabled = models.BooleanField(default=True)
    source = models.CharField(max_length=10, default="admin", editable=False)
    removed = models.BooleanField(default=False, editable=False)
    anchor = models.DateTimeField(help_text=_("Nothing before this moment fires."))
    next_slot = models.DateTimeField(null=True, blank=True)
    last_slot = models.DateTimeField(null=True, blank=True)
    error = JSONField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        default_permissions = ("view", "change")
        constraints = [
            models.UniqueConstraint(name="django_jobs_schedule_name", fields=["slug", "name"])
        ]
        indexes = [
            PartialIndex(
                name="django_jobs_schedules_next",
                fields=["next_slot"],
                where=models.Q(enabled=True),
            )
        ]

    def __str__(self) -> str:
        return f"{self.slug}: {self.name}"


class Tick(models.Model):
    """One nominal instant of a schedule that was dealt with: the row that makes it fire once."""

    id = models.BigAutoField(primary_key=True)
    schedule = models.ForeignKey(Schedule, models.CASCADE, related_name="ticks", db_index=False)
    slot = models.DateTimeField()
    job_id = models.UUIDField(null=True)
    outcome = models.CharField(max_length=20)
    created_at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(name="django_jobs_tick_once", fields=["schedule", "slot"])
        ]

    def __str__(self) -> str:
        return f"{self.schedule_id} {self.slot}"


class OutboxMessage(models.Model):
    """A promise to send: a webhook or a broker message, written with the change it tells of."""

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=20)
    job_id = models.UUIDField(null=True, db_index=True)
    target = models.TextField()
    body = JSONField(null=True)
    status = models.CharField(max_length=20, default="pending")
    tries = models.PositiveIntegerField(default=0)
    next_try_at = models.DateTimeField()
    lease_expires_at = models.DateTimeField(null=True)
    error = JSONField(null=True)
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("webhook")
        verbose_name_plural = _("webhooks")
        default_permissions = ("view",)
        indexes = [
            PartialIndex(
                name="django_jobs_outbox_due",
                fields=["next_try_at"],
                where=models.Q(status="pending"),
                mysql_fields=["status", "next_try_at"],
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


class SeenSignature(models.Model):
    """A signed request that was accepted; its exact bytes are refused for the window's length."""

    key_hash = models.CharField(max_length=32, primary_key=True)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.key_hash


class Callback(models.Model):
    """A one-time URL on which a step waits; only the hash of its token is stored."""

    token_hash = models.CharField(max_length=64, primary_key=True)
    job_id = models.UUIDField(db_index=True)
    step_key = models.CharField(max_length=32)
    attempt = models.PositiveIntegerField()
    used_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.job_id} {self.step_key}"
