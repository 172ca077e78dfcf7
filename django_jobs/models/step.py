"""The records of a run's steps, of tries, and what handlers logged."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_jobs.lifecycle import AttemptStatus, StepKind, StepStatus
from django_jobs.models.fields import JSONField, NameField, PartialIndex
from django_jobs.models.job import Job


class TaskStatus(models.Model):
    """The stored record of one step; ids rise in order of first start."""

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(
        Job,
        models.CASCADE,
        related_name="steps",
        db_constraint=False,
        db_index=False,
        verbose_name=_("job"),
    )
    step_key = models.CharField(
        max_length=32, help_text=_("Hash of path and slug, unique within the run.")
    )
    step_id = NameField(_("step ID"), max_length=700)
    slug = NameField(_("slug"))
    kind = models.CharField(
        _("kind"), max_length=20, choices=[(k.value, k.value) for k in StepKind]
    )
    parent_key = models.CharField(max_length=32, null=True, blank=True)
    status = models.CharField(
        _("status"), max_length=20, choices=[(s.value, s.value) for s in StepStatus]
    )
    input = JSONField(_("input"), null=True, blank=True)
    output = JSONField(_("output"), null=True, blank=True)
    error = JSONField(_("error"), null=True, blank=True)
    total_tried = models.PositiveIntegerField(_("tries"), default=0, db_default=0)
    failures = models.PositiveIntegerField(
        default=0, db_default=0, help_text=_("Failed tries that count against the step's retries.")
    )
    fence = models.PositiveIntegerField(default=0, db_default=0)
    worker = models.UUIDField(_("worker"), null=True, blank=True)
    done_no = models.PositiveIntegerField(
        null=True, blank=True, help_text=_("Order of completion in the run.")
    )
    wake_at = models.DateTimeField(_("wakes"), null=True, blank=True)
    event_name = NameField(_("event"), null=True, blank=True)
    child = models.UUIDField(
        _("child run"),
        null=True,
        blank=True,
        help_text=_("The child run, or the unit, that does it."),
    )
    compensation = JSONField(null=True, blank=True)
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    class Meta:
        verbose_name = _("step")
        verbose_name_plural = _("steps")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                name="django_jobs_step_once_per_run", fields=["job", "step_key"]
            )
        ]
        indexes = [
            PartialIndex(
                name="django_jobs_steps_event",
                fields=["event_name"],
                where=models.Q(event_name__isnull=False, finished_at__isnull=True),
            ),
            PartialIndex(
                name="django_jobs_steps_child",
                fields=["child"],
                where=models.Q(child__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.slug}/{self.step_id}"

    @property
    def complete(self) -> bool:
        return self.status == StepStatus.COMPLETED

    @property
    def parent(self) -> TaskStatus | None:
        """The step within which this one was called."""
        if self.parent_key is None:
            return None
        return TaskStatus.objects.filter(job_id=self.job_id, step_key=self.parent_key).first()

    def as_status(self) -> dict[str, object]:
        """The six keys that handlers and ``Job.task_status`` show."""
        return {
            "input": {} if self.input is None else self.input,
            "output": self.output,
            "complete": self.complete,
            "total_tried": self.total_tried,
            "error": self.error,
            "status": self.status,
        }


class Attempt(models.Model):
    """A try that did not simply succeed at once, and every try after a first one."""

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(
        Job,
        models.CASCADE,
        related_name="tries",
        db_constraint=False,
        db_index=False,
        verbose_name=_("job"),
    )
    step = models.ForeignKey(
        TaskStatus,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="tries",
        db_constraint=False,
        db_index=False,
        verbose_name=_("step"),
    )
    number = models.PositiveIntegerField(_("number"))
    status = models.CharField(
        _("status"), max_length=20, choices=[(s.value, s.value) for s in AttemptStatus]
    )
    error = JSONField(_("error"), null=True, blank=True)
    fence = models.PositiveIntegerField(default=0, db_default=0)
    worker = models.UUIDField(_("worker"), null=True, blank=True)
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        default_permissions = ()
        indexes = [models.Index(name="django_jobs_attempts_job", fields=["job", "id"])]

    def __str__(self) -> str:
        return f"{self.job_id} #{self.number} {self.status}"


class LogLine(models.Model):
    """A line that a handler wrote with ``context.log``."""

    id = models.BigAutoField(primary_key=True)
    job = models.ForeignKey(
        Job,
        models.CASCADE,
        related_name="log_lines",
        db_constraint=False,
        db_index=False,
        verbose_name=_("job"),
    )
    step_key = models.CharField(max_length=32, null=True, blank=True)
    fence = models.PositiveIntegerField(default=0, db_default=0)
    at = models.DateTimeField(_("time"))
    level = models.CharField(_("level"), max_length=20)
    message = models.TextField(_("message"))

    class Meta:
        verbose_name = _("log line")
        verbose_name_plural = _("log lines")
        default_permissions = ()
        indexes = [models.Index(name="django_jobs_log_job", fields=["job", "id"])]

    def __str__(self) -> str:
        return f"{self.level} {self.message[:80]}"
