"""What there is to run, where it queues, and who runs it."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_jobs.models.commands import Pausable
from django_jobs.models.fields import JSONField, NameField


class Task(Pausable, models.Model):
    """The catalogue: one row for each registered task and workflow."""

    slug = NameField(_("slug"), unique=True)
    kind = models.CharField(_("kind"), max_length=20)
    label = models.CharField(_("label"), max_length=200, blank=True, default="")
    description = models.TextField(_("description"), blank=True, default="")
    queue_name = NameField(_("queue"), default="default")
    versions = JSONField(_("versions"), default=list)
    input_schema = JSONField(_("schema of the input"), null=True, blank=True)
    output_schema = JSONField(_("schema of the output"), null=True, blank=True)
    paused = models.BooleanField(_("paused"), default=False, db_default=False)
    first_seen = models.DateTimeField(_("first seen"), auto_now_add=True)
    last_seen = models.DateTimeField(_("last seen"), null=True, blank=True)

    class Meta:
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.label or self.slug


class Queue(Pausable, models.Model):
    """A named line of jobs. Once edited in the admin the row is the operator's."""

    name = NameField(_("name"), unique=True)
    paused = models.BooleanField(_("paused"), default=False, db_default=False)
    limit = models.PositiveIntegerField(
        _("limit"),
        null=True,
        blank=True,
        db_column="job_limit",
        help_text=_("At most so many jobs of it run at the same time; empty = no limit."),
    )
    priority = models.SmallIntegerField(_("priority"), default=0, db_default=0)
    fair_by = NameField(
        _("shared by"),
        null=True,
        blank=True,
        help_text=_("Share it by: tenant, key, or the name of an input field; empty = in order."),
    )
    turn = models.BigIntegerField(
        _("turn"),
        default=0,
        db_default=0,
        editable=False,
        help_text=_("How far its fair share stands."),
    )
    edited = models.BooleanField(
        _("set by an operator"), default=False, db_default=False, editable=False
    )

    #: What the settings say of a queue, until somebody saves something else.
    SET_UP = ("limit", "priority", "fair_by")

    class Meta:
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save; a change of what the settings could say makes the row the operator's."""
        chosen = kwargs.get("update_fields")
        if not self.edited and (chosen is None or set(chosen) & set(self.SET_UP)):
            rows = type(self)._base_manager.using(kwargs.get("using") or self._state.db)
            before = rows.filter(pk=self.pk).values_list(*self.SET_UP).first() if self.pk else None
            present = tuple(getattr(self, name) for name in self.SET_UP)
            self.edited = present != (before or (None, 0, None))
            if self.edited and chosen is not None:
                kwargs["update_fields"] = {*chosen, "edited"}
        super().save(*args, **kwargs)


class Worker(models.Model):
    """One process that runs jobs. For people to see; recovery never depends on this row."""

    id = models.UUIDField(_("ID"), primary_key=True, editable=False)
    supervisor = models.UUIDField(_("supervisor"), null=True)
    hostname = models.CharField(_("host"), max_length=200, blank=True)
    pid = models.PositiveIntegerField(_("process ID"), null=True)
    queues = JSONField(_("queues"), default=list)
    threads = models.PositiveIntegerField(_("threads"), default=1)
    status = models.CharField(_("status"), max_length=20, default="running")
    jobs_in_hand = models.PositiveIntegerField(_("jobs in hand"), default=0, db_default=0)
    memory = models.PositiveBigIntegerField(_("memory"), null=True, help_text=_("Resident bytes."))
    codes = JSONField(
        _("can run"), default=list, help_text=_("The (slug, version) pairs that it can run.")
    )
    drain = models.BooleanField(_("draining"), default=False, db_default=False)
    started_at = models.DateTimeField(_("started"))
    heartbeat_at = models.DateTimeField(_("last heartbeat"))
    stopped_at = models.DateTimeField(_("stopped"), null=True, blank=True)

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        default_permissions = ("view", "change")
        indexes = [models.Index(name="django_jobs_workers_heartbeat", fields=["heartbeat_at"])]

    def __str__(self) -> str:
        return f"{self.hostname}:{self.pid}"
