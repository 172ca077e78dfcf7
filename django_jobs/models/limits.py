"""Rows that bind: permits, rate windows, idempotency keys."""

from __future__ import annotations

from django.db import models

from django_jobs.models.fields import NameField


class Permit(models.Model):
    """One unit of a concurrency key or a limited queue, held by (job, fence) until its lease ends.

    Never a counter: two releases of one holder would let in too many.
    """

    id = models.BigAutoField(primary_key=True)
    key_hash = models.CharField(max_length=32)
    number = models.PositiveIntegerField()
    key_name = NameField(max_length=420)
    job_id = models.UUIDField()
    fence = models.PositiveIntegerField()
    most = models.PositiveIntegerField(
        default=1, db_default=1, help_text="The limit under which it was taken."
    )
    lease_expires_at = models.DateTimeField(
        null=True, help_text="Empty while a parked run holds on to it."
    )

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(name="django_jobs_permit_number", fields=["key_hash", "number"])
        ]
        indexes = [models.Index(name="django_jobs_permits_job", fields=["job_id"])]

    def __str__(self) -> str:
        return f"{self.key_name} #{self.number}"


class KeyLock(models.Model):
    """A row to lock until the end of a transaction, where the database has no lock of that kind.

    Used on MySQL and MariaDB only: their GET_LOCK belongs to the session. There are a few thousand
    of these rows at most.
    """

    number = models.PositiveIntegerField(primary_key=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.number)


class RateStart(models.Model):
    """One start that counts against a sliding window. Numbered, so that start k - n is found at once."""

    id = models.BigAutoField(primary_key=True)
    rate_hash = models.CharField(max_length=32)
    number = models.PositiveBigIntegerField()
    at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(name="django_jobs_rate_number", fields=["rate_hash", "number"])
        ]
        indexes = [models.Index(name="django_jobs_rate_at", fields=["at"])]

    def __str__(self) -> str:
        return f"{self.rate_hash} {self.at}"


class RateWait(models.Model):
    """A rate that jobs wait for, and when the next of them fits."""

    rate_hash = models.CharField(max_length=32, primary_key=True)
    opens_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.rate_hash} {self.opens_at}"


class IdempotencyKey(models.Model):
    """The live job of an idempotency key. A table of its own, so that plain jobs pay nothing."""

    key_hash = models.CharField(max_length=32, primary_key=True)
    job_id = models.UUIDField(db_index=True)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.key_hash
