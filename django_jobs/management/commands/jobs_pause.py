"""``manage.py jobs_pause``."""

from __future__ import annotations

from django_jobs import lifecycle
from django_jobs.management.steering import SteeringCommand


class Command(SteeringCommand):
    help = "Pause jobs: what is under way finishes, and nothing more of them starts."
    command = lifecycle.Command.PAUSE
    done, verb = "Paused", "pause"
