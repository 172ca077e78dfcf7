"""One stored call of a task or a workflow: the row that is queued, claimed and recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from django_jobs import ids
from django_jobs.lifecycle import FINAL, Gate, Kind, Status
from django_jobs.models.commands import JobCommands, JobQuerySet
from django_jobs.models.fields import JSONField, NameField, PartialIndex

if TYPE_CHECKING:
    from django_jobs.models.step import TaskStatus

FINISHED = Q(finished_at__isnull=False)


class JobManager(models.Manager["Job"].from_queryset(JobQuerySet)):  # type: ignore[misc]
    """Jobs as people count them: without the units of a run that other workers claim."""

    def get_queryset(self) -> JobQuerySet:
        return super().get_queryset().exclude(kind=Kind.STEP)


class Job(JobCommands, models.Model):
    """One stored call of a task or a workflow.

    The first block is what people read, the second what the engine needs. No foreign key of the
    engine's tables has a database constraint: its check would lock the job's row on every insert
    of a step. ``manage.py jobs_check`` finds dangling rows.
    """

    id = models.UUIDField(_("ID"), primary_key=True, default=ids.job_id, editable=False)
    slug = NameField(_("slug"))
    kind = models.CharField(
        _("kind"), max_length=20, choices=[(k.value, k.value) for k in Kind], default=Kind.TASK
    )
    version = NameField(_("version"), null=True, blank=True)
    status = models.CharField(
        _("status"),
        max_length=20,
        choices=[(s.value, s.value) for s in Status],
        default=Status.PENDING,
        db_default=Status.PENDING,
    )
    queue_name = NameField(_("queue"), default="default", db_default="default")
    priority = models.SmallIntegerField(_("priority"), default=0, db_default=0)
    run_after = models.DateTimeField(
        _("not before"),
        null=True,
        blank=True,
        help_text=_("The earliest moment at which it becomes due; empty = at once."),
    )
    input = JSONField(_("input"), default=dict)
    output = JSONField(_("output"), null=True, blank=True)
    context = JSONField(_("context"), null=True, blank=True)
    error = JSONField(_("error"), null=True, blank=True)
    attempts = models.PositiveIntegerField(
        _("attempts"),
        default=0,
        db_default=0,
        help_text=_("Finished tries that completed or failed."),
    )
    crashes = models.PositiveIntegerField(_("crashes"), default=0, db_default=0)
    meta = JSONField(_("meta"), null=True, blank=True, default=dict)
    progress = models.FloatField(_("progress"), null=True, blank=True, help_text=_("From 0 to 1."))
    progress_note = models.CharField(
        _("progress note"), max_length=200, default="", db_default="", blank=True
    )
    concurrency_key = NameField(_("concurrency key"), null=True, blank=True)
    idempotency_key = NameField(_("idempotency key"), null=True, blank=True)
    parent = models.ForeignKey(
        "self",
        models.CASCADE,
        null=True,
        blank=True,
        related_name="children",
        db_constraint=False,
        db_index=False,
        verbose_name=_("parent"),
    )
    rerun_of = models.ForeignKey(
        "self",
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="reruns",
        db_constraint=False,
        db_index=False,
        verbose_name=_("re-run of"),
    )
    superseded_by = models.UUIDField(_("superseded by"), null=True, blank=True)
    schedule = models.ForeignKey(
        "Schedule",
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="jobs",
        db_constraint=False,
        db_index=False,
        verbose_name=_("schedule"),
    )
    slot = models.DateTimeField(
        _("slot"), null=True, blank=True, help_text=_("The nominal instant of its schedule.")
    )
    worker = models.UUIDField(_("worker"), null=True, blank=True)
    tenant_1 = NameField(null=True, blank=True)
    tenant_2 = NameField(null=True, blank=True)
    tenant_3 = NameField(null=True, blank=True)
    created_at = models.DateTimeField(_("created"))
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    args = JSONField(
        null=True, blank=True, help_text=_("Positional input, only from django.tasks.")
    )
    options = JSONField(null=True, blank=True, help_text=_("What the call itself set."))
    spec = JSONField(null=True, blank=True, help_text=_("The graph of a run built from data."))
    runner = models.CharField(max_length=20, default="db", db_default="db")
    lane = models.BigIntegerField(
        help_text=_("Stands for runner, queue, slug, version and need of permits.")
    )
    precedence = models.SmallIntegerField(
        default=0, db_default=0, help_text=_("Claim order: smaller first.")
    )
    turn = models.BigIntegerField(
        default=0, db_default=0, help_text=_("Fair share: smaller first.")
    )
    share = models.BigIntegerField(
        null=True, blank=True, help_text=_("Stands for its group in a queue with fair share.")
    )
    due_at = models.DateTimeField()
    gate = models.CharField(
        max_length=10,
        choices=[(g.value, g.value) for g in Gate],
        default=Gate.OPEN,
        db_default=Gate.OPEN,
    )
    fence = models.PositiveIntegerField(default=0, db_default=0)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    history_length = models.PositiveIntegerField(default=0, db_default=0)
    key_hash = models.CharField(max_length=32, null=True, blank=True)
    key_limit = models.PositiveIntegerField(null=True, blank=True)
    key_hold = models.BooleanField(default=False, db_default=False)
    rate_hash = models.CharField(max_length=32, null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField(
        null=True, blank=True, help_text=_("End of a run's own time limit.")
    )
    step_key = models.CharField(
        max_length=32, null=True, blank=True, help_text=_("The step that a unit drives.")
    )

    objects = JobManager()
    units = models.Manager["Job"]()

    if TYPE_CHECKING:
        steps: models.Manager[TaskStatus]

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        default_permissions = ("view",)
        permissions = [
            ("enqueue_job", _("Can enqueue jobs")),
            ("run_job", _("Can run jobs now")),
            ("cancel_job", _("Can cancel jobs")),
            ("retry_job", _("Can retry and re-run jobs")),
            ("pause_job", _("Can pause and resume jobs")),
            ("reschedule_job", _("Can change time, queue and priority of waiting jobs")),
            ("send_event_job", _("Can send events to runs")),
            ("view_payload_job", _("Can see input and output")),
        ]
        indexes = [
            PartialIndex(
                name="django_jobs_by_claim",
                fields=["lane", "precedence", "turn", "due_at", "id"],
                where=Q(status=Status.PENDING, gate=Gate.OPEN),
                mysql_fields=["status", "gate", "lane", "precedence", "turn", "due_at", "id"],
            ),
            PartialIndex(
                name="django_jobs_by_timer",
                fields=["run_after"],
                where=Q(status=Status.SLEEPING) | Q(status=Status.PENDING, gate=Gate.TIMER),
                mysql_fields=["status", "gate", "run_after"],
            ),
            PartialIndex(
                name="django_jobs_by_lease",
                fields=["lease_expires_at"],
                where=Q(lease_expires_at__isnull=False),
            ),
            PartialIndex(
                name="django_jobs_by_key",
                fields=["key_hash", "status", "gate", "precedence", "turn", "due_at", "id"],
                where=Q(key_hash__isnull=False, finished_at__isnull=True),
            ),
            PartialIndex(
                name="django_jobs_by_rate",
                fields=["rate_hash", "status", "gate", "precedence", "turn", "due_at", "id"],
                where=Q(rate_hash__isnull=False, finished_at__isnull=True),
            ),
            PartialIndex(
                name="django_jobs_by_share",
                fields=["share", "turn"],
                where=Q(share__isnull=False, status=Status.PENDING),
                mysql_fields=["share", "status", "turn"],
            ),
            PartialIndex(
                name="django_jobs_by_expiry",
                fields=["expires_at"],
                where=Q(expires_at__isnull=False),
            ),
            PartialIndex(
                name="django_jobs_by_deadline",
                fields=["deadline_at"],
                where=Q(deadline_at__isnull=False),
            ),
            PartialIndex(
                name="django_jobs_by_parent", fields=["parent"], where=Q(parent__isnull=False)
            ),
            PartialIndex(
                name="django_jobs_by_rerun_of", fields=["rerun_of"], where=Q(rerun_of__isnull=False)
            ),
            PartialIndex(
                name="django_jobs_by_schedule",
                fields=["schedule", "finished_at", "slot"],
                where=Q(schedule__isnull=False),
            ),
            PartialIndex(
                name="django_jobs_by_tenant_1",
                fields=["tenant_1", "id"],
                where=Q(tenant_1__isnull=False),
            ),
            PartialIndex(
                name="django_jobs_by_tenant_2",
                fields=["tenant_2", "id"],
                where=Q(tenant_2__isnull=False),
            ),
            PartialIndex(
                name="django_jobs_by_tenant_3",
                fields=["tenant_3", "id"],
                where=Q(tenant_3__isnull=False),
            ),
            # Nothing of the plain path enters these two: they serve the admin's live tabs and runs.
            PartialIndex(
                name="django_jobs_by_held",
                fields=["status", "id"],
                where=Q(status__in=[Status.PAUSED, Status.COMPENSATING])
                | Q(status=Status.PENDING, gate__in=[Gate.PERMIT, Gate.RATE]),
            ),
            PartialIndex(
                name="django_jobs_by_run",
                fields=["id"],
                where=Q(kind__in=[Kind.WORKFLOW, Kind.DAG]),
                mysql_fields=["kind", "id"],
            ),
            PartialIndex(
                name="django_jobs_by_done_status", fields=["status", "id"], where=FINISHED
            ),
            PartialIndex(name="django_jobs_by_done_slug", fields=["slug", "id"], where=FINISHED),
            PartialIndex(
                name="django_jobs_by_retention",
                fields=["finished_at"],
                where=FINISHED,
            ),
        ]
        constraints = [
            models.CheckConstraint(
                name="django_jobs_priority_range",
                condition=Q(priority__gte=-100, priority__lte=100),
            ),
            models.CheckConstraint(
                name="django_jobs_running_has_lease",
                condition=~Q(status=Status.RUNNING) | Q(lease_expires_at__isnull=False),
            ),
            models.CheckConstraint(
                name="django_jobs_final_is_finished",
                condition=~Q(status__in=sorted(FINAL)) | Q(finished_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.slug} {self.id}"


class WorkflowRunManager(JobManager):
    """Jobs whose target is a workflow."""

    def get_queryset(self) -> JobQuerySet:
        return super().get_queryset().filter(kind__in=[Kind.WORKFLOW, Kind.DAG])


class WorkflowRun(Job):
    """A job whose target is a workflow: a code workflow or a declared graph."""

    objects = WorkflowRunManager()  # type: ignore[misc]

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = _("workflow run")
        verbose_name_plural = _("workflow runs")


class Overview(Job):
    """The admin's dashboard: no rows of its own, but a place in the index of pages."""

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = _("dashboard")
        verbose_name_plural = _("dashboard")


def newest_first() -> list[Any]:
    """Ordering for lists: ids are time-ordered, so the primary key serves."""
    return [F("id").desc()]
