"""django-celery-beat's own rows, in a database of their own, become schedules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

SCRIPT = """
import json
import django
django.setup()
from datetime import datetime, timedelta, timezone
from io import StringIO
from celery import shared_task
from django.core.management import call_command
from django_celery_beat.models import *
from django_jobs import clock
from django_jobs.celery import from_celery
from django_jobs.models import Schedule

call_command("migrate", verbosity=0)

@shared_task(name="shop.report")
def report(region: str, days: int = 1) -> None: ...
from_celery(report)

def row(name, task="add", args=[1, 2], kwargs={}, **given):
    PeriodicTask.objects.create(name=name, task=task, args=json.dumps(args), kwargs=json.dumps(kwargs), **given)

def cron(*fields, zone="Europe/Zurich"):
    names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    return CrontabSchedule.objects.create(**dict(zip(names, fields)), timezone=zone)

later = clock.now() + timedelta(days=9)
clocked = ClockedSchedule.objects.create(clocked_time=later)
hourly = IntervalSchedule.objects.create(every=2, period="hours")
row("cron", crontab=cron("0", "9", "*", "*", "mon-fri"), queue="mail")
row("report", task="shop.report", args=["north"], kwargs={"days": 7}, crontab=cron("30", "2", "1", "*", "*"))
row("interval", interval=hourly)
row("clocked", clocked=clocked, one_off=True)
row("sun", solar=SolarSchedule.objects.create(event="sunrise", latitude=47, longitude=8))
row("both days", crontab=cron("0", "0", "1", "*", "mon"))
row("unknown", task="shop.gone", interval=hourly)
row("bad arguments", args=[1], interval=hourly)
row("once", interval=hourly, one_off=True)
row("expires", interval=hourly, expires=later)
row("begins later", interval=hourly, start_time=later)
row("off", interval=hourly, enabled=False)

def run(*options):
    said = StringIO()
    call_command("jobs_import_beat", *options, stdout=said)
    return said.getvalue().splitlines()

dry = run("--dry-run")
before = Schedule.objects.count()
said = run("--disable")
rows = list(Schedule.objects.order_by("name").values("slug", "name", "expression", "timezone", "input", "source"))
again = run()
enabled = list(PeriodicTask.objects.filter(enabled=True).order_by("name").values_list("name", flat=True))
print(json.dumps({"dry": dry, "before": before, "said": said, "rows": rows, "again": again, "on": enabled}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("beat")
    database = {
        "ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "TEST_DB": json.dumps(database),
             "TEST_APPS": "django_celery_beat"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rows_become_schedules_of_an_operator(outcome: Any) -> None:
    rows = {row["name"]: row for row in outcome["rows"]}
    assert rows.keys() == {"cron", "report", "interval", "clocked"}
    assert {row["source"] for row in rows.values()} == {"admin"}
    assert (rows["cron"]["expression"], rows["cron"]["timezone"]) == (
        "0 9 * * mon-fri",
        "Europe/Zurich",
    )
    assert rows["cron"]["input"] == {"a": 1, "b": 2}
    assert (rows["report"]["slug"], rows["report"]["input"]) == (
        "shop.report",
        {"region": "north", "days": 7},
    )


def test_what_cannot_be_imported_is_said_with_the_reason(outcome: Any) -> None:
    said = "\n".join(outcome["said"])
    for name, reason in {
        "sun": "follows the sun",
        "both days": "Celery wants both to match",
        "unknown": "Wrap it: from_celery(gone)",
        "bad arguments": "its arguments do not fit",
        "once": "to run once",
        "expires": "it expires",
        "begins later": "it begins only at",
    }.items():
        [line] = [line for line in outcome["said"] if f"NOT imported  {name} " in line]
        assert reason in line
    assert "its queue 'mail' has no effect here" in said
    assert outcome["said"][-1] == "4 imported, 7 not."
    assert "off" not in said


def test_a_dry_run_says_the_same_and_writes_nothing(outcome: Any) -> None:
    assert outcome["before"] == 0
    assert outcome["dry"][:-1] == outcome["said"][:-1]
    assert outcome["dry"][-1] == "4 would be imported, 7 not."


def test_imported_rows_are_switched_off_and_never_imported_twice(outcome: Any) -> None:
    assert outcome["again"][-1] == "0 imported, 7 not."
    assert not {"cron", "report", "interval", "clocked"} & set(outcome["on"])
