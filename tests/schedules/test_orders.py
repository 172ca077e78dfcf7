"""What an operator does: rows of their own, pause, resume, run now, backfill, and the command."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command

from django_jobs import Schedule, handle_schedules, task
from django_jobs.checks import check_schedules
from django_jobs.errors import InvalidInput
from django_jobs.models import Job, Tick
from django_jobs.models import Schedule as Row
from django_jobs.store import schedules as store
from django_jobs.store.session import Session
from django_jobs.testing import clock, drain
from tests.schedules.test_ticking import at, counts, scheduled, slots

pytestmark = pytest.mark.django_db(transaction=True)


def own(**values: Any) -> Row:
    return Row.objects.create(
        **{
            "name": "own",
            "slug": "add",
            "expression": "@hourly",
            "input": {"a": 1, "b": 2},
            **values,
        }
    )


def command(*arguments: object, **options: Any) -> list[str]:
    out = StringIO()
    call_command("jobs_schedules", *map(str, arguments), stdout=out, **options)
    return out.getvalue().splitlines()


# --- rows of an operator ------------------------------------------------------------------------


def test_a_row_of_an_operator_fires_after_the_moment_it_was_saved() -> None:
    clock.freeze(at(9))
    row = own(timezone="Asia/Tokyo")
    assert counts() == (0, 0, 0)
    clock.freeze(at(10))
    assert counts() == (1, 0, 0)
    drain()
    [job] = row.jobs.all()
    assert (job.output, job.slot) == (3, at(10))


def test_an_edit_fires_nothing_and_counts_from_the_moment_it_was_saved() -> None:
    row = own()
    clock.freeze(at(9, 20))
    row.expression = "10,30 * * * *"
    row.save()
    assert counts() == (0, 0, 0)
    clock.freeze(at(9, 30))
    assert counts() == (1, 0, 0)
    row.refresh_from_db()
    clock.freeze(at(10, 0))
    row.queue_name = "other"
    row.save()
    assert row.next_slot == at(10, 10), "what does not change the times leaves them"
    row.enabled = False
    row.save()
    clock.freeze(at(11, 0))
    row.enabled = True
    row.save()
    assert counts() == (0, 0, 0)
    assert slots() == [at(9, 30)]


def test_a_stale_object_does_not_take_back_what_the_engine_wrote() -> None:
    stale = own()
    clock.freeze(at(9))
    handle_schedules()
    stale.misfire = "skip"
    stale.save()
    row = Row.objects.get()
    assert (row.misfire, row.last_slot, row.next_slot) == ("skip", at(9), at(10))
    assert counts() == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "field", "text"),
    [
        ({"expression": "61 * * * *"}, "expression", "61"),
        ({"expression": "0 0 30 2 *"}, "expression", "never matches"),
        ({"expression": "1," * 600 + "1 * * * *"}, "expression", "at most 1000 characters"),
        ({"expression": "@at 2020-01-01T00:00:00+00:00"}, "expression", "lies in the past"),
        ({"expression": "@at tomorrow"}, "expression", "Write an ISO date"),
        ({"expression": "@every 10"}, "expression", "Write the units"),
        ({"timezone": "Mars/Base"}, "timezone", "no time zone 'Mars/Base'"),
        ({"slug": "unknown"}, "slug", "No task or workflow 'unknown'"),
        ({"version": "9"}, "version", "Version '9' of 'add'"),
        ({"input": {"a": 1}}, "input", "'b'"),
        ({"input": [1]}, "input", "JSON object"),
        ({"input": {"a": "x", "b": 2}}, "input", "a"),
        ({"grace": -1.0}, "grace", "0 or more"),
        ({"name": "line\nbreak"}, "name", "control character"),
        ({"queue_name": "q\x07"}, "queue_name", "control character"),
        ({"misfire": "never"}, "misfire", "never"),
    ],
)
def test_a_row_that_could_not_fire_is_refused_by_field(
    values: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        own(**values)
    messages = " ".join(caught.value.message_dict[field])
    assert text in messages or "at most 1000" in messages
    assert not Row.objects.exists()


def test_a_row_of_the_code_can_only_be_switched() -> None:
    scheduled(Schedule("@hourly", name="daily"))
    row = Row.objects.get()
    row.expression = "@daily"
    with pytest.raises(ValidationError, match="defined in the code"):
        row.save()
    row = Row.objects.get()
    row.enabled = False
    row.save()
    assert not Row.objects.get().enabled


def test_a_row_of_an_operator_is_not_taken_over_by_the_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own(slug="echo", name="daily", input={})

    @task("unrelated", schedules=[Schedule("@daily", name="daily")])
    def unrelated() -> None:
        pass

    handle_schedules()
    assert Row.objects.get(slug="echo").source == "admin"
    Row.objects.filter(slug="unrelated").update(source="admin", expression="@hourly")
    handle_schedules()
    assert Row.objects.get(slug="unrelated").expression == "@hourly"
    assert "an operator has made one of that name" in caplog.text


def test_two_edits_of_one_moment_do_not_overwrite_each_other() -> None:
    own()
    session = Session(through_django=True)
    _, [first] = store.read(session)
    _, [second] = store.read(session)
    assert store.change(session, first, queue_name="one")
    assert not store.change(session, second, queue_name="two")
    assert Row.objects.get().queue_name == "one"


def test_the_check_finds_an_input_that_the_target_would_refuse() -> None:
    @task("needs", schedules=[Schedule("@daily"), Schedule("@hourly", input={"day": "x"})])
    def needs(day: str) -> None:
        pass

    [found] = check_schedules(None)
    assert found.id == "django_jobs.E008"
    assert "'@daily' of 'needs'" in found.msg and "needs" in str(found.hint)


# --- orders -------------------------------------------------------------------------------------


def test_run_now_makes_a_job_besides_the_slots() -> None:
    row = own()
    job = row.run_now()
    assert (job.schedule_id, job.slot, row.history()) == (row.pk, None, [])
    drain()
    job.refresh_from_db()
    assert job.output == 3
    clock.freeze(at(9))
    assert counts() == (1, 0, 0)


def test_history_tells_each_slot_newest_first_with_its_job() -> None:
    row = own(timezone="Asia/Tokyo", misfire="skip")
    clock.freeze(at(10, 30))
    handle_schedules()
    drain()
    newest, oldest = row.history()
    assert (newest.outcome, newest.job_status, newest.slot.isoformat()) == (
        "fired",
        "completed",
        "2026-03-02T19:00:00+09:00",
    )
    assert (oldest.outcome, oldest.job_id, oldest.slot) == ("missed", None, at(9))
    assert newest.at == at(10, 30)
    assert [slot.isoformat() for slot in row.upcoming(2)] == [
        "2026-03-02T20:00:00+09:00",
        "2026-03-02T21:00:00+09:00",
    ]


def test_backfill_makes_each_missing_job_once() -> None:
    row = own(misfire="skip")
    clock.freeze(at(12, 30))
    handle_schedules()
    dry = row.backfill(at(6), at(12), dry_run=True)
    assert ([slot.hour for slot in dry.slots], dry.present, dry.jobs) == (
        [6, 7, 8, 9, 10, 11],
        1,
        [],
    )
    assert Job.objects.count() == 1
    first = row.backfill(at(6), at(12), limit=4)
    assert (len(first.jobs), first.is_cut) == (4, True)
    assert len(row.backfill(at(6), at(12)).jobs) == 2
    again = row.backfill(at(6), at(12))
    assert (again.jobs, again.present) == ([], 7)
    assert slots() == [at(hour) for hour in range(6, 13)]
    assert set(Tick.objects.values_list("outcome", flat=True)) == {"fired", "backfilled"}
    row.refresh_from_db()
    assert row.next_slot == at(13)


def test_backfill_refuses_what_is_no_past_range() -> None:
    row = own()
    for start, end, text in (
        (at(8), at(7), "before it starts"),
        (at(8), at(9), "in the future"),
        (datetime(2026, 3, 2, 7), at(8), "aware"),
    ):
        with pytest.raises(InvalidInput, match=text):
            row.backfill(start, end)
    with pytest.raises(InvalidInput, match="limit"):
        row.backfill(at(7), at(8), limit=0)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 9 * * *", "every day at 09:00 (Europe/Zurich)"),
        ("0 9,17 * * 1-5", "on weekdays at 09:00 and 17:00 (Europe/Zurich)"),
        ("*/15 * * * *", "every 15 minutes (Europe/Zurich)"),
        ("* * * * * *", "every second (Europe/Zurich)"),
        ("5 * * * *", "minute 5 of every hour (Europe/Zurich)"),
        ("0 0 1 1 *", "on day 1 of the month at 00:00 in January (Europe/Zurich)"),
        ("0 9 * 7 *", "every day in July at 09:00 (Europe/Zurich)"),
        ("0 9 L * *", "on the last day of the month at 09:00 (Europe/Zurich)"),
        ("0 9 * * 5#3", "on the third Friday of the month at 09:00 (Europe/Zurich)"),
        ("0 9 13 * fri", "on day 13 of the month or on Friday at 09:00 (Europe/Zurich)"),
        ("*/5 8-18 * * 0,6", "every 5 minutes of hour 8-18 on Saturday and Sunday (Europe/Zurich)"),
        ("@every 1h30m", "every 1 hour 30 minutes"),
        ("@every 60s", "every minute"),
        ("@at 2030-01-31T08:00:00+00:00", "once, on 2030-01-31 at 09:00:00 (Europe/Zurich)"),
        ("x", "never: x (Europe/Zurich) is not understood"),
    ],
)
def test_in_words(expression: str, words: str) -> None:
    assert Row(expression=expression, timezone="Europe/Zurich").in_words() == words


# --- the command --------------------------------------------------------------------------------


def test_the_command_lists_next_slots_with_the_offset_of_their_zone() -> None:
    scheduled(Schedule("30 2 * * *", name="nightly", timezone="Europe/Berlin"))
    clock.freeze(datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert command("--next", 2) == [
        "report  nightly  30 2 * * *  Europe/Berlin  2026-03-29T03:00:00+02:00 2026-03-30T02:30:00+02:00"
    ]
    [line] = command("--json", "--next", 1)
    assert json.loads(line)["next"] == ["2026-03-29T03:00:00+02:00"]
    [line] = command("--next", 0, "--words")
    assert line.endswith("every day at 02:30 (Europe/Berlin)")


def test_the_command_carries_out_orders() -> None:
    own()
    assert command("--slug", "add", "--pause")[0].endswith("paused")
    assert command("--name", "own", "--resume")[0].endswith(at(11).isoformat())
    assert command("--run-now") == [f"Job {Job.objects.get().pk}."]
    clock.freeze(at(12, 30))
    assert command("--backfill", "2026-03-02T09:00", "2026-03-02T12:00", "--dry-run")[-1] == (
        "Would make 4 jobs; 0 slots have one already."
    )
    done = command("--backfill", "2026-03-02T09:00", "2026-03-02T12:00", "--limit", 2)
    assert done[-1] == "Made 2 jobs; 0 slots have one already. More are left: --limit was 2."
    assert Job.objects.count() == 3


def test_the_command_says_what_is_wrong() -> None:
    own()
    own(name="second")
    for arguments, text in (
        (["--pause"], "the filters fit 2"),
        (["--name", "own", "--backfill", "x", "y"], "no date and time"),
        (["--name", "own", "--backfill", "2026-03-02", "2027-03-02"], "in the future"),
        (["--next", "-1"], "--next"),
        (["--name", "none", "--pause"], "No schedule fits"),
        # It was to make no job.
        (["--name", "own", "--run-now", "--dry-run"], "--dry-run is for --backfill"),
    ):
        with pytest.raises(CommandError, match=text):
            command(*arguments)
    assert not Job.objects.exists()


def test_deleting_a_schedule_keeps_its_jobs() -> None:
    row = own()
    clock.travel(timedelta(hours=1))
    handle_schedules()
    row.delete()
    job = Job.objects.get()
    assert job.schedule_id is None and not Tick.objects.exists()
