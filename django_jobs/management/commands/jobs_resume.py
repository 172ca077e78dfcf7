"""``manage.py jobs_resume``."""

from __future__ import annotations

from django_jobs import lifecycle
from django_jobs.management.steering import SteeringCommand


class Command(SteeringCommand):
    help = "Let paused jobs go on where they stopped."
    command = lifecycle.Command.RESUME
    done, verb = "Resumed", "resume"
