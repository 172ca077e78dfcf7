"""Another time, queue and priority for jobs that wait: place in line, keys, fair share, and who is refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from django_jobs import InvalidInput, InvalidTransition, clock, run_jobs, task
from django_jobs.lifecycle import CHANGE, COMMANDS, Command, Status
from django_jobs.models import HistoryEntry, Job, Queue
from django_jobs.testing import clock as test_clock
from tests.app import jobs
from tests.control.rows import KINDS, assert_folds, assert_sound, make, stored

pytestmark = pytest.mark.django_db


def read(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", list(Status))
def test_only_jobs_that_wait_are_changed(status: Status, kind: str) -> None:
    job = make(status, kind)
    before = stored(job)
    change: dict[str, Any] = {"queue_name": "mail", "priority": 7, "actor": "olga", "reason": "why"}
    if COMMANDS[Command.RESCHEDULE][status] != CHANGE:
        with pytest.raises(InvalidTransition, match=f"reschedule.*{status}"):
            job.reschedule(**change)
        assert stored(job) == before
        counts = Job.objects.filter(pk=job.pk).reschedule(**change)
        assert (counts.changed, counts.unchanged, counts.refused) == (0, 0, 1)
        assert stored(job) == before
        return
    assert job.reschedule(**change) is job
    assert (job.queue_name, job.priority, job.precedence, job.status) == ("mail", 7, -7, status)
    entry = HistoryEntry.objects.filter(job_id=job.pk).latest("n")
    assert (entry.event, entry.actor, entry.detail) == (
        "rescheduled",
        "olga",
        {
            "reason": "why",
            "queue_name": {"from": "default", "to": "mail"},
            "priority": {"from": 0, "to": 7},
        },
    )
    assert_sound()
    assert_folds(job)
    after = stored(job)
    assert Job.objects.filter(pk=job.pk).reschedule(**change).unchanged == 1
    assert stored(job) == after


def test_a_moved_job_is_claimed_in_its_new_queue_and_only_there() -> None:
    job = jobs.add.enqueue(a=1, b=2)
    enqueued_there = jobs.add.using(queue_name="mail").enqueue(a=1, b=2)
    job.reschedule(queue_name="mail")
    assert job.lane == read(enqueued_there).lane
    assert Queue.objects.filter(name="mail").exists()
    assert run_jobs(queue_name="default").completed == 0
    assert run_jobs(queue_name="mail").completed == 2


def test_priority_is_the_order_of_claims() -> None:
    first, second = jobs.add.enqueue(a=1, b=2), jobs.add.enqueue(a=3, b=4)
    second.reschedule(priority=1)
    run_jobs(limit=1, sequential=True)
    assert [read(job).status for job in (first, second)] == ["pending", "completed"]


def test_time_to_come_and_back_again() -> None:
    test_clock.freeze(datetime.fromisoformat("2030-01-31T09:00:00+00:00"))
    try:
        job = jobs.add.enqueue(a=1, b=2)
        job.reschedule(run_after=clock.now() + timedelta(hours=1))
        assert (job.gate, job.due_at) == ("timer", job.run_after)
        assert run_jobs().completed == 0
        entry = HistoryEntry.objects.get(job_id=job.pk)
        assert entry.detail["run_after"] == {"from": None, "to": "2030-01-31T10:00:00+00:00"}
        job.reschedule(delay=7200)
        test_clock.travel(timedelta(hours=1, minutes=1))
        assert run_jobs().completed == 0
        job.reschedule(delay=0)
        assert run_jobs().completed == 1
    finally:
        test_clock.reset()


def test_a_job_that_was_started_is_refused_whatever_its_status() -> None:
    job = jobs.add.enqueue(a=1, b=2)
    Job.objects.filter(pk=job.pk).update(started_at=clock.now())
    with pytest.raises(InvalidTransition, match="never started"):
        read(job).reschedule(priority=3)
    assert (read(job).priority, HistoryEntry.objects.count()) == (0, 0)


def test_a_paused_job_has_no_time() -> None:
    job = jobs.add.enqueue(a=1, b=2)
    job.pause()
    with pytest.raises(InvalidTransition, match="resume"):
        job.reschedule(delay=60)
    assert job.reschedule(queue_name="mail").queue_name == "mail"
    job.resume()
    assert run_jobs(queue_name="mail").completed == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "Say what"),
        ({"run_after": timedelta(1), "delay": 1}, "not both"),
        ({"run_after": "soon"}, "run_after"),
        ({"run_after": datetime(2030, 1, 1)}, "naive"),
        ({"delay": -1}, "delay"),
        ({"queue_name": ""}, "queue_name"),
        ({"queue_name": "a\x00b"}, "queue_name"),
        ({"priority": 101}, "priority"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    change: dict[str, Any], said: str
) -> None:
    job = jobs.add.enqueue(a=1, b=2)
    before = stored(job)
    with pytest.raises(InvalidInput, match=said):
        job.reschedule(**change)
    with pytest.raises(InvalidInput, match=said):
        Job.objects.all().reschedule(**change)
    assert stored(job) == before


def test_the_next_of_a_key_comes_forward_when_its_first_leaves() -> None:
    @task("resched.keyed", concurrency=lambda n: "k")
    def keyed(n: int) -> int:
        return n

    first, second, third = (keyed.enqueue(n=n) for n in range(3))
    assert [read(job).gate for job in (first, second, third)] == ["open", "permit", "permit"]
    first.reschedule(delay=3600)
    assert [read(job).gate for job in (first, second, third)] == ["timer", "open", "permit"]
    third.reschedule(queue_name="elsewhere", priority=5)
    assert run_jobs(all_queues=True, limit=10).completed == 1
    assert run_jobs(all_queues=True, limit=10).completed == 1
    first.reschedule(delay=0)
    assert run_jobs(all_queues=True).completed == 1
    assert_sound()


def test_a_fair_queue_gives_who_arrives_its_turn(settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": {"fair": {"fair_by": "a"}}}
    there = [jobs.add.using(queue_name="fair").enqueue(a=1, b=n) for n in range(3)]
    other = jobs.add.enqueue(a=2, b=0)
    same = jobs.add.enqueue(a=1, b=9)
    for job in (other, same):
        job.reschedule(queue_name="fair")
    turns = [read(job).turn for job in (*there, other, same)]
    assert turns == [0, 1, 2, 0, 3]
    assert read(same).share == read(there[0]).share != read(other).share
    same.reschedule(queue_name="default")
    assert (same.turn, same.share) == (0, None)


def test_many_at_once_are_counted() -> None:
    waiting = jobs.add.enqueue_many([{"a": n, "b": n} for n in range(12)])
    Job.objects.filter(pk=waiting[0].pk).update(priority=4, precedence=-4)
    make(Status.COMPLETED, "task")
    counts = Job.objects.all().reschedule(priority=4)
    assert (counts.changed, counts.unchanged, counts.refused) == (11, 1, 1)
    assert not hasattr(Job.objects, "reschedule")


def test_from_the_command_line() -> None:
    job = jobs.add.enqueue(a=1, b=2)

    def say(*words: str) -> str:
        out = StringIO()
        call_command("jobs_reschedule", *words, stdout=out)
        return out.getvalue().strip()

    assert say("--slug", "add", "--to-queue", "mail", "--priority=3", "--run-after=2030-01-31T09:00:00+01:00") == (
        "Rescheduled 1 job, 0 unchanged, 0 refused."
    )  # fmt: skip
    job.refresh_from_db()
    assert (job.queue_name, job.priority) == ("mail", 3)
    assert job.run_after == datetime.fromisoformat("2030-01-31T08:00:00+00:00")
    assert say("--slug", "add", "--delay=0", "--dry-run").startswith("Would reschedule 1 job")
    for words, said in ((("--all",), "Say what"), (("--all", "--run-after=soon"), "soon")):
        with pytest.raises(CommandError, match=said):
            say(*words)
