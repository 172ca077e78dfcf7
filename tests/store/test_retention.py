"""What is kept, what goes, and what goes with it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from django_jobs import clock as engine_clock
from django_jobs import ids
from django_jobs.lifecycle import FINAL, Status
from django_jobs.models import (
    Attempt,
    Callback,
    Event,
    HistoryEntry,
    IdempotencyKey,
    Job,
    LogLine,
    OutboxMessage,
    Permit,
    Schedule,
    SeenSignature,
    TaskStatus,
    Tick,
    Worker,
)
from django_jobs.store import retention
from django_jobs.store.session import Session
from django_jobs.testing import clock, drain
from tests.app import jobs

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("jobs_clock"),
]


@pytest.fixture(autouse=True)
def _noon(jobs_clock: Any) -> None:
    clock.freeze(NOON)


def make(status: str = "completed", age: timedelta = 8 * DAY, **fields: Any) -> Job:
    """A stored job that ended ``age`` ago."""
    now = engine_clock.now()
    final = Status(status) in FINAL
    values: dict[str, Any] = {
        "slug": "add", "status": status, "lane": 0, "due_at": now - age, "created_at": now - age,
        "finished_at": now - age if final else None,
        "lease_expires_at": now + DAY if status == "running" else None,
    }  # fmt: skip
    return Job.units.create(**{**values, **fields})


def add_rows(job: Job) -> None:
    """A row in every table that belongs to a job."""
    now = engine_clock.now()
    step = TaskStatus.objects.create(
        job=job, step_key=ids.digest("a"), step_id="a", slug="add", kind="task", status="completed"
    )
    Attempt.objects.create(job=job, step=step, number=1, status="failed")
    Attempt.objects.create(job=job, number=1, status="failed")
    LogLine.objects.create(job=job, at=now, level="info", message="hello")
    HistoryEntry.objects.create(job=job, n=1, at=now, event="failed")
    Event.objects.create(job=job, name="order.approved", sent_at=now)
    Permit.objects.create(key_hash=job.pk.hex, number=1, key_name="k", job_id=job.pk, fence=1)
    IdempotencyKey.objects.create(key_hash=job.pk.hex, job_id=job.pk, expires_at=now + DAY)
    Callback.objects.create(token_hash=job.pk.hex, job_id=job.pk, step_key="a", attempt=1)


OF_A_JOB = (TaskStatus, Attempt, LogLine, HistoryEntry, Event, Permit, IdempotencyKey, Callback)


def prune(**options: Any) -> retention.Pruned:
    return retention.prune(Session(), **options)


def left() -> set[Any]:
    return set(Job.units.values_list("pk", flat=True))


@pytest.mark.parametrize("status", sorted(FINAL))
def test_each_final_status_is_kept_as_long_as_its_setting_says(status: str) -> None:
    limit = 90 * DAY if "failed" in status else 7 * DAY
    young = make(status, limit)
    make(status, limit + timedelta(microseconds=1))
    assert prune().jobs == 1
    assert left() == {young.pk}


@pytest.mark.parametrize("status", sorted(set(Status) - FINAL))
def test_live_jobs_stay_however_old(status: str) -> None:
    job = make(status, 1000 * DAY)
    assert prune().jobs == 0
    assert left() == {job.pk}


@override_settings(DJANGO_JOBS={"KEEP_COMPLETED": None, "KEEP_FAILED": 60})
def test_none_keeps_for_ever_and_settings_hold_at_once() -> None:
    kept = make("completed", 10_000 * DAY)
    make("failed", timedelta(minutes=2))
    assert prune().jobs == 1
    assert left() == {kept.pk}


def test_time_is_that_of_the_engine() -> None:
    job = jobs.add.enqueue(a=1, b=2)
    drain()
    clock.travel(7 * DAY)
    assert prune().jobs == 0
    clock.travel(timedelta(seconds=1))
    assert prune().jobs == 1
    assert not Job.objects.filter(pk=job.pk).exists()


def test_all_rows_of_a_job_go_with_it_and_no_others() -> None:
    old, young = make(), make(age=DAY)
    add_rows(old)
    add_rows(young)
    pruned = prune()
    assert (pruned.done, dict(pruned.rows)) == (
        True,
        {
            "job": 1, "taskstatus": 1, "attempt": 2, "logline": 1, "historyentry": 1, "event": 1, "permit": 1,
            "idempotencykey": 1, "callback": 1,
        },
    )  # fmt: skip
    for model in OF_A_JOB:
        assert {row.job_id for row in model.objects.all()} == {young.pk}, model


def test_children_stay_while_their_parent_lives() -> None:
    parent = make("sleeping", kind="workflow")
    child = make(parent=parent)
    assert prune().jobs == 0
    Job.units.filter(pk=parent.pk).update(status="failed", finished_at=engine_clock.now())
    assert prune().jobs == 1
    assert left() == {parent.pk}
    assert not Job.units.filter(pk=child.pk).exists()


def test_a_run_stays_while_a_child_of_it_lives() -> None:
    parent = make(kind="workflow")
    child = make("running", parent=parent)
    assert prune().jobs == 0
    Job.units.filter(pk=child.pk).update(
        status="failed", finished_at=engine_clock.now(), lease_expires_at=None
    )
    assert prune().jobs == 1
    child.refresh_from_db()
    assert child.parent_id is None


def test_units_stay_with_their_run_and_go_with_it() -> None:
    run = make(age=DAY, kind="dag")
    unit = make(kind="step", parent=run)
    failed_unit = make("failed", age=DAY, kind="step", parent=run)
    add_rows(failed_unit)
    assert prune().jobs == 0
    assert left() == {run.pk, unit.pk, failed_unit.pk}
    clock.travel(8 * DAY)
    assert prune().jobs == 3
    assert not LogLine.objects.exists()


def test_a_rerun_outlives_the_job_it_repeats() -> None:
    old = make()
    again = make("pending", rerun_of=old)
    prune()
    again.refresh_from_db()
    assert again.rerun_of_id is None


@pytest.mark.parametrize("chunk", [1, 3, 7, 500])
def test_chunks_of_any_size_delete_the_same(chunk: int) -> None:
    parent = make("sleeping")
    kept = {make(parent=parent).pk for _ in range(4)} | {make(age=DAY).pk, parent.pk}
    for _ in range(6):
        make()
    pruned = prune(chunk=chunk)
    assert (pruned.jobs, pruned.done) == (6, True)
    assert left() == kept


def test_a_call_stops_when_its_time_is_over_and_says_so() -> None:
    for _ in range(3):
        make()
    pruned = prune(seconds=0)
    assert (pruned.jobs, pruned.done) == (0, False)
    assert prune(seconds=60).done


def test_a_dry_run_counts_and_deletes_nothing() -> None:
    add_rows(make())
    SeenSignature.objects.create(key_hash="a", expires_at=NOON - DAY)
    would = prune(dry_run=True)
    assert len(left()) == 1
    assert prune().rows == would.rows
    assert left() == set()


def test_two_pruners_at_once_delete_each_job_once() -> None:
    for _ in range(60):
        add_rows(make())
    found: list[int] = []

    def work() -> None:
        try:
            found.append(prune(chunk=5).jobs)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.append(prune().jobs)
    assert sum(found) == 60
    assert left() == set()


# --- other rows -------------------------------------------------------------------------------


def test_ticks_go_once_their_schedule_has_passed_them() -> None:
    schedule = Schedule.objects.create(
        name="daily", slug="echo", expression="0 9 * * *", anchor=NOON, last_slot=NOON - 9 * DAY
    )
    for slot, age in ((NOON - 10 * DAY, 10 * DAY), (NOON - 8 * DAY, 8 * DAY), (NOON, DAY)):
        Tick.objects.create(schedule=schedule, slot=slot, outcome="fired", created_at=NOON - age)
    assert prune().rows["tick"] == 1
    assert Tick.objects.count() == 2
    Schedule.objects.update(last_slot=NOON)
    assert prune().rows["tick"] == 1


def test_workers_go_once_they_have_been_silent() -> None:
    for age in (DAY, 8 * DAY):
        Worker.objects.create(id=uuid4(), started_at=NOON - age, heartbeat_at=NOON - age)
    assert prune().rows["worker"] == 1


def test_outbox_messages_go_only_once_they_are_settled() -> None:
    for status, age in (
        ("pending", 1000), ("sent", 8), ("sent", 6), ("failed", 8), ("failed", 91),
    ):  # fmt: skip
        OutboxMessage.objects.create(
            kind="webhook", target="x", status=status, next_try_at=NOON, created_at=NOON - age * DAY
        )
    assert prune().rows["outboxmessage"] == 2
    kept = OutboxMessage.objects.order_by("id").values_list("status", flat=True)
    assert list(kept) == ["pending", "sent", "failed"]


def test_expired_idempotency_keys_go_unless_their_job_lives() -> None:
    live, over = make("pending"), make(age=DAY)
    for job in (live, over):
        IdempotencyKey.objects.create(key_hash=job.pk.hex, job_id=job.pk, expires_at=NOON - DAY)
    IdempotencyKey.objects.create(key_hash="young", job_id=over.pk, expires_at=NOON + DAY)
    assert prune().rows["idempotencykey"] == 1
    assert set(IdempotencyKey.objects.values_list("key_hash", flat=True)) == {live.pk.hex, "young"}


def test_signatures_go_when_their_window_is_over() -> None:
    for name, moment in (("old", NOON - DAY), ("young", NOON + DAY)):
        SeenSignature.objects.create(key_hash=name, expires_at=moment)
    prune()
    assert [row.key_hash for row in SeenSignature.objects.all()] == ["young"]


# --- the command ------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    out = StringIO()
    call_command("prunejobs", *arguments, stdout=out)
    return out.getvalue().strip()


def test_the_command_says_what_it_deleted() -> None:
    add_rows(make())
    line = "1 jobs, 1 steps, 2 attempts, 1 log lines, 1 history entries, 1 events, 1 permits, "
    line += "1 idempotency keys, 1 callbacks."
    assert command("--dry-run") == f"Would delete {line}"
    assert command("--chunk", "1") == f"Deleted {line}"
    assert command() == "Nothing to delete."


def test_the_command_refuses_a_chunk_that_cannot_be() -> None:
    with pytest.raises(CommandError, match="--chunk"):
        command("--chunk", "0")
