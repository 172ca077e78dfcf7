"""``manage.py jobs_retry``."""

from __future__ import annotations

from django_jobs import lifecycle
from django_jobs.management.steering import SteeringCommand


class Command(SteeringCommand):
    help = "Open failed jobs again: completed steps stay, the failed step's budget is whole."
    command = lifecycle.Command.RETRY
    done, verb = "Retried", "retry"
