"""Numbers for people, against rows whose numbers are known."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_jobs import clock
from django_jobs.lifecycle import Status
from django_jobs.models import Job, Queue, Schedule, Task
from django_jobs.observe import stats
from django_jobs.observe.selection import Selection
from tests.admin import shop

pytestmark = pytest.mark.django_db


def test_what_a_queue_holds_is_counted_by_what_keeps_it_from_running() -> None:
    now = clock.now()
    later = now + timedelta(hours=1)
    Queue.objects.create(name="idle", limit=3)
    Queue.objects.create(name="shut", paused=True)
    Task.objects.create(slug="stopped", kind="task", paused=True)
    for number in range(3):
        shop.make_job(queue_name="mail", lane=1, due_at=now - timedelta(minutes=number))
    shop.make_job("stopped", queue_name="mail", lane=2)
    shop.make_job(queue_name="mail", gate="timer", run_after=later)
    shop.make_job(queue_name="mail", gate="permit", key_hash="k", key_limit=1)
    shop.make_job(queue_name="mail", status=Status.SLEEPING, run_after=later)
    shop.make_job(queue_name="mail", status=Status.PAUSED)
    shop.make_job(queue_name="mail", status=Status.RUNNING)
    shop.make_job(queue_name="mail", status=Status.COMPLETED)
    shop.make_job(queue_name="shut", lane=3)
    shop.make_worker(queues=["mail"])
    shop.make_worker(heartbeat_at=now - timedelta(minutes=5))
    found = stats.depths("default")
    assert list(found) == ["idle", "mail", "shut"]
    mail = found["mail"]
    assert (mail.ready, mail.blocked, mail.later, mail.held, mail.stopped, mail.running) == (
        4, 1, 2, 1, 1, 1,
    )  # fmt: skip
    assert mail.workers == 1 and found["idle"].workers == 0
    assert mail.waited is not None and 119 < mail.waited.total_seconds() < 180
    assert (found["shut"].ready, found["shut"].blocked, found["shut"].waited) == (1, 1, None)
    assert found["idle"].limit == 3 and not mail.more


def test_long_lines_are_counted_up_to_a_limit() -> None:
    now = clock.now()
    Job.units.bulk_create(
        [Job(slug="bulk", lane=7, created_at=now, due_at=now) for _ in range(stats.COUNT_LIMIT + 5)]
    )
    queue = stats.depths("default")["default"]
    assert (queue.ready, queue.more) == (stats.COUNT_LIMIT, True)


def test_what_ended_is_told_part_by_part() -> None:
    now = clock.now()
    for seconds, status in ((10, "completed"), (20, "completed"), (30, "failed")):
        shop.make_job(
            status=status, created_at=now - timedelta(minutes=10), started_at=now - timedelta(minutes=9),
            finished_at=now - timedelta(minutes=9) + timedelta(seconds=seconds),
        )  # fmt: skip
    shop.make_job(status=Status.COMPLETED, finished_at=now - timedelta(hours=3))
    parts = stats.activity("default", timedelta(hours=1), parts=2)
    assert [part.finished for part in parts] == [0, 3]
    assert [part.failed for part in parts] == [0, 1]
    assert parts[0].ran(50) is None
    assert [round(parts[1].ran(percent) or 0) for percent in (50, 99)] == [20, 30]
    assert round(parts[1].waited(50) or 0) == 60


def test_more_than_can_be_counted_is_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "COUNTED", 10)
    now = clock.now()
    for number in range(60):
        end = now - timedelta(minutes=60) + timedelta(minutes=number, seconds=30)
        shop.make_job(status=Status.COMPLETED, finished_at=end)
    [part] = stats.activity("default", timedelta(hours=1), parts=1)
    assert part.estimated
    assert 54 <= part.finished <= 66


def test_failures_are_grouped_by_task_and_error() -> None:
    now = clock.now()
    for minutes in (1, 2, 3):
        shop.make_job(
            status=Status.FAILED, error=shop.ERROR, finished_at=now - timedelta(minutes=minutes)
        )
    shop.make_job("other", Status.FAILED, error={"type": "builtins.KeyError", "message": "x"})
    shop.make_job("old", Status.FAILED, error=shop.ERROR, finished_at=now - timedelta(days=2))
    groups, more = stats.failures("default", timedelta(hours=1))
    assert not more
    assert [(one.slug, one.type, one.count) for one in groups] == [
        ("charge_card", "shop.payments.CardDeclined", 3),
        ("other", "builtins.KeyError", 1),
    ]
    assert groups[0].last - groups[0].first == timedelta(minutes=2)


def test_late_schedules_are_those_whose_slot_has_passed() -> None:
    now = clock.now()
    for name, ago, enabled in (("late", 120, True), ("soon", 5, True), ("off", 120, False)):
        row = Schedule.objects.create(
            name=name, slug="add", input={"a": 1, "b": 2}, expression="* * * * *", enabled=enabled
        )
        Schedule.objects.filter(pk=row.pk).update(next_slot=now - timedelta(seconds=ago))
    assert [one.name for one in stats.late_schedules("default")] == ["late"]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [stats.percentile(values, p) for p in (50, 95, 99)] == [50, 95, 99]
    assert stats.percentile([3.0], 99) == 3.0
    assert stats.percentile([], 50) is None


def test_a_selection_survives_being_stored() -> None:
    shop.make_job("a", Status.FAILED, queue_name="x", error={"code": "boom", "type": "E"})
    shop.make_job("a", Status.FAILED, queue_name="y", error=shop.ERROR)
    wanted = Selection(status="failed", slug="a", queue="x", code="boom")
    again = Selection.read(wanted.as_dict())
    assert again == wanted
    assert [job.queue_name for job in again.jobs("default")] == ["x"]
    last = Job.objects.order_by("pk").first()
    assert last is not None
    assert Selection(until_id=str(last.pk)).jobs("default").count() == 1
    assert (
        Selection(since=(clock.now() + timedelta(days=1)).isoformat()).jobs("default").count() == 0
    )
    assert Selection(worker="nonsense").jobs("default").count() == 0
