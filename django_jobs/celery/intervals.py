"""How often Celery's beat looks after the jobs. Read by settings modules, so it imports nothing else."""

from __future__ import annotations

from typing import Any

TICK = "django_jobs.tick"
#: What beat asks for, and the seconds between two times.
INTERVALS = {"schedules": 1.0, "due": 1.0, "rescue": 3.0, "outbox": 1.0}
#: Seconds for which a tick waits at least for a worker; the next one replaces it.
WAITS = 5.0


def beat_schedule() -> dict[str, dict[str, Any]]:
    """Entries for ``CELERY_BEAT_SCHEDULE``: schedules, due jobs, rescue and outbox.

    A tick that no worker takes in time expires, so that none pile up while all are busy. Any
    number of beats may send them.
    """
    return {
        f"django_jobs.{what}": {
            "task": TICK,
            "schedule": seconds,
            "args": (what,),
            "options": {"expires": max(2 * seconds, WAITS), "ignore_result": True},
        }
        for what, seconds in INTERVALS.items()
    }
