from __future__ import annotations

from datetime import datetime, timedelta

from django_jobs import Schedule, task


def told(slot: datetime) -> dict[str, str]:
    return {"slot": slot.isoformat()}


@task(
    schedules=[
        Schedule("0 */2 * * *", name="in Berlin", timezone="Europe/Berlin", input=told, misfire="all"),
        Schedule("30 2 * * *", name="in New York", timezone="America/New_York", input=told, misfire="all"),
        Schedule(every=timedelta(minutes=25), name="each 25", input=told, misfire="all"),
    ]
)  # fmt: skip
def strike(slot: str) -> str:
    return slot
