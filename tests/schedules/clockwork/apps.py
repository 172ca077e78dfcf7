"""An app with schedules of its own, for the worker processes of the fleet only."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from django.apps import AppConfig


class ClockworkConfig(AppConfig):
    name = "tests.schedules.clockwork"
    label = "clockwork"

    def ready(self) -> None:
        from django_jobs import signals

        signals.schedule_fired.connect(note_fired, dispatch_uid="clockwork")


def note_fired(slot: datetime, **kwargs: Any) -> None:
    """Say which process made the job of a slot. After the commit: a kill may keep it from that."""
    from tests.app.jobs import note

    note(os.environ["CLOCKWORK_MARKS"], os.environ["CLOCKWORK_ROLE"], os.getpid(), slot.isoformat())
