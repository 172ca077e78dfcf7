"""Schedules and their ticks; what is promised to be sent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Self

from django.conf import settings as django_settings
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, models
from django.utils.translation import gettext_lazy as _

from django_jobs import clock
from django_jobs.definitions import registry
from django_jobs.definitions.options import check_name
from django_jobs.definitions.timing import zone_of
from django_jobs.errors import ConfigurationError, JobsError
from django_jobs.models.catalogue import Task
from django_jobs.models.fields import JSONField, NameField, PartialIndex
from django_jobs.models.schedule_commands import ScheduleCommands

#: What an operator decides of a schedule; of one from the code only the last.
OPERATORS = (
    "name", "slug", "version", "expression", "timezone", "input", "queue_name", "misfire", "grace",
    "overlap", "enabled",
)  # fmt: skip


class Schedule(ScheduleCommands, models.Model):
    """When a task or workflow is enqueued by itself.

    :meth:`save` is for operators: it validates, raises ValidationError, and lets the row fire slots
    after that moment only. Of a row that exists it writes what operators decide, never what the
    engine keeps.
    """

    id = models.BigAutoField(primary_key=True)
    name = NameField(_("name"), max_length=300)
    slug = NameField(_("slug"))
    version = NameField(_("version"), null=True, blank=True)
    expression = models.CharField(_("expression"), max_length=1000)
    timezone = models.CharField(_("time zone"), max_length=100, blank=True, default="")
    input = JSONField(_("input"), default=dict, blank=True)
    queue_name = NameField(_("queue"), null=True, blank=True)
    misfire = models.CharField(
        _("misfire"),
        max_length=10,
        choices=[("one", _("one")), ("skip", _("skip")), ("all", _("all"))],
        default="one",
    )
    grace = models.FloatField(_("grace"), null=True, blank=True, help_text=_("Seconds."))
    overlap = models.CharField(
        _("overlap"),
        max_length=10,
        choices=[("allow", _("allow")), ("skip", _("skip"))],
        default="allow",
    )
    enabled = models.BooleanField(_("enabled"), default=True)
    source = models.CharField(_("source"), max_length=10, default="admin", editable=False)
    removed = models.BooleanField(_("removed from the code"), default=False, editable=False)
    anchor = models.DateTimeField(
        _("counts from"),
        default=clock.now,
        editable=False,
        help_text=_("Intervals count from this moment."),
    )
    next_slot = models.DateTimeField(_("next slot"), null=True, blank=True)
    last_slot = models.DateTimeField(_("last slot"), null=True, blank=True)
    error = JSONField(_("error"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    changed_at = models.DateTimeField(_("changed"), default=clock.now, editable=False)

    if TYPE_CHECKING:
        ticks: models.Manager[Tick]

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

    def save(self, *args: Any, **kwargs: Any) -> None:
        alias = kwargs.get("using") or self._state.db or DEFAULT_DB_ALIAS
        self.full_clean()
        fields = self._restart(alias)
        if not self._state.adding:
            asked: Sequence[str] | None = kwargs.get("update_fields")
            chosen = OPERATORS if asked is None else [one for one in asked if one in OPERATORS]
            kwargs["update_fields"] = [*chosen, *fields]
        super().save(*args, **kwargs)
        self._remember()

    # --- as loaded, to see what an operator changes ------------------------------------------

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> Self:
        row = super().from_db(*args, **kwargs)
        row._remember()
        return row

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        super().refresh_from_db(*args, **kwargs)
        self._remember()

    def _remember(self) -> None:
        self._loaded = {name: self.__dict__.get(name) for name in OPERATORS}

    def _has_changed(self, *names: str) -> bool:
        loaded = getattr(self, "_loaded", None)
        return loaded is None or any(loaded[name] != getattr(self, name) for name in names)

    # --- validation --------------------------------------------------------------------------

    def clean_fields(self, exclude: Collection[str] | None = None) -> None:
        if not self.timezone:
            self.timezone = django_settings.TIME_ZONE
        super().clean_fields(exclude=exclude)

    def clean(self) -> None:
        """Refuse what could not fire; each message is for the field it is about."""
        wrong: dict[str, Any] = {}
        if self.source == "code":
            self._check_code_row(wrong)
        else:
            self._check_names(wrong)
            self._check_timing(wrong)
            self._check_target(wrong)
            if self.grace is not None and not 0 <= self.grace < float("inf"):
                wrong["grace"] = _("Give a number of seconds, 0 or more, or leave it empty.")
        if wrong:
            raise ValidationError(wrong)

    def _check_code_row(self, wrong: dict[str, Any]) -> None:
        for name in OPERATORS[:-1]:
            if self._has_changed(name):
                wrong[name] = _("This schedule is defined in the code; change it there.")
        if self.enabled and self.removed:
            wrong["enabled"] = _("This schedule is no longer defined in the code.")

    def _check_names(self, wrong: dict[str, Any]) -> None:
        for name in ("name", "slug", "queue_name", "version"):
            value = getattr(self, name)
            if name in ("queue_name", "version") and not value:
                setattr(self, name, None)
                continue
            try:
                check_name(value, name)
            except JobsError as error:
                wrong[name] = str(error)

    def _check_timing(self, wrong: dict[str, Any]) -> None:
        field = "timezone"
        try:
            zone_of(self.timezone)
            field = "expression"
            following = self.timing.next(clock.now(), self.anchor)
        except ConfigurationError as error:
            wrong[field] = str(error)
            return
        if following is None and self.enabled and self._has_changed("expression", "enabled"):
            wrong["expression"] = _("It lies in the past, so it would never fire.")

    def _check_target(self, wrong: dict[str, Any]) -> None:
        try:
            latest = registry.latest(self.slug)
            definition = registry.get(self.slug, self.version) if self.version else latest
        except JobsError as error:
            if self.slug in registry.snapshot():
                wrong.setdefault("version", str(error))
            # A process without the code may still know the catalogue.
            elif not Task.objects.using(self._state.db).filter(slug=self.slug).exists():
                wrong.setdefault("slug", str(error))
            return
        if not isinstance(self.input, dict):
            wrong["input"] = _("The input is a JSON object, with a key for each parameter.")
            return
        try:
            definition.schema.dump_input(definition.schema.bind((), self.input))
        except JobsError as error:
            wrong["input"] = str(error)

    # --- saving ------------------------------------------------------------------------------

    def _restart(self, alias: str) -> list[str]:
        """Let it wait for its next slot from now where its times have changed; the engine's fields to write."""
        from django_jobs.scheduling.orders import present

        moment = present(alias)
        self.changed_at = moment
        if not self._has_changed("expression", "timezone", "enabled"):
            return ["changed_at"]
        if not self._state.adding and self._has_changed("expression"):
            self.anchor = moment
        floor = max(moment, self.last_slot or moment)
        self.next_slot = self.timing.next(floor, self.anchor) if self.enabled else None
        self.error = None
        return ["changed_at", "anchor", "next_slot", "error"]


class Tick(models.Model):
    """One nominal instant of a schedule that was dealt with: the row that makes it fire once."""

    id = models.BigAutoField(primary_key=True)
    schedule = models.ForeignKey(
        Schedule, models.CASCADE, verbose_name=_("schedule"), related_name="ticks", db_index=False
    )
    slot = models.DateTimeField(_("slot"))
    job_id = models.UUIDField(null=True)
    outcome = models.CharField(_("outcome"), max_length=20)
    error = JSONField(_("error"), null=True)
    created_at = models.DateTimeField(_("created"))

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
    kind = models.CharField(_("kind"), max_length=20)
    job_id = models.UUIDField(null=True, db_index=True)
    target = models.TextField(_("target"))
    body = JSONField(_("body"), null=True)
    status = models.CharField(_("status"), max_length=20, default="pending")
    tries = models.PositiveIntegerField(_("tries"), default=0)
    next_try_at = models.DateTimeField(_("next try"))
    lease_expires_at = models.DateTimeField(null=True)
    error = JSONField(_("error"), null=True)
    created_at = models.DateTimeField(_("created"))
    sent_at = models.DateTimeField(_("sent"), null=True)

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
