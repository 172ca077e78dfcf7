"""Making jobs of schedules: by the clock (ticking), and by order of an operator (orders)."""

from __future__ import annotations

from django_jobs.scheduling.ticking import TickReport, handle_schedules, next_slot, tick

__all__ = ["TickReport", "handle_schedules", "next_slot", "tick"]
