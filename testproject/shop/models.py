"""What the shop knows: orders, the parcels packed for them, and rows of a file it refused."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """One order of an imported file; ``row`` counts from 1 below the file's header."""

    class State(models.TextChoices):
        NEW = "new"
        SHIPPED = "shipped"
        REJECTED = "rejected"

    reference = models.TextField(unique=True)
    row = models.PositiveIntegerField(unique=True)
    customer = models.TextField(blank=True)
    email = models.TextField(blank=True)
    country = models.TextField(blank=True)
    items = models.TextField(blank=True)
    shipping = models.DecimalField(max_digits=11, decimal_places=2)
    total = models.DecimalField(max_digits=11, decimal_places=2)
    state = models.CharField(max_length=10, choices=State.choices, default=State.NEW)
    charge_id = models.CharField(max_length=40, blank=True)
    job_id = models.UUIDField(null=True, blank=True)

    class Meta:
        ordering = ["row"]

    def __str__(self) -> str:
        return self.reference


class Parcel(models.Model):
    """What leaves the warehouse: one for each order that was paid."""

    order = models.OneToOneField(Order, models.CASCADE, related_name="parcel")
    code = models.CharField(max_length=20, unique=True)
    pieces = models.PositiveIntegerField()

    def __str__(self) -> str:
        return self.code


class Rejection(models.Model):
    """A row that was not turned into a charge, and why."""

    row = models.PositiveIntegerField(unique=True)
    reference = models.TextField(blank=True)
    reason = models.CharField(max_length=40)
    detail = models.TextField(blank=True)

    class Meta:
        ordering = ["row"]

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"
