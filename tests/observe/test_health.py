"""jobs_check: silent about what may be, and never about what must not be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connections
from hypothesis import HealthCheck, given, settings

from django_jobs import Concurrency, run_jobs, task
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
    TaskStatus,
)
from django_jobs.observe import health
from django_jobs.store.session import Session
from django_jobs.testing import clock, drain
from tests.app import jobs
from tests.examples import examples
from tests.observe.life import Life
from tests.observe.test_history import lives
from tests.testing.helpers import kill_holder

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("jobs_clock", "jobs_registry"),
]


def found() -> list[str]:
    return [f"{one.rule}: {one.message}" for one in health.findings(Session())]


# --- silent about what may be -----------------------------------------------------------------


@settings(
    max_examples=examples(30, 10), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lives())
def test_whatever_the_engine_does_nothing_is_found(happened: list[str]) -> None:
    clock.freeze(NOON)
    life = Life(jobs.three_steps.enqueue(marks=""))
    for event in happened:
        life.happen(event)
    assert found() == []


def test_jobs_of_all_kinds_pass(tmp_path: Path) -> None:
    @task(concurrency=Concurrency(key="one", limit=2))
    def exclusive() -> None: ...

    jobs.add.enqueue(a=1, b=2)
    jobs.fail.enqueue()
    jobs.flaky.enqueue(marks=str(tmp_path / "marks"), failures=1)
    jobs.three_steps.enqueue(marks=str(tmp_path / "other"))
    jobs.add.using(delay=60, idempotency_key="one").enqueue(a=1, b=2)
    for _ in range(3):
        exclusive.enqueue()
    assert found() == []
    drain()
    assert found() == []
    held = exclusive.enqueue()
    kill_holder(held)
    assert found() == []
    assert Permit.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_system_at_work_is_not_accused() -> None:
    jobs.add.enqueue_many([{"a": n, "b": 1} for n in range(300)])
    for n in range(20):
        jobs.three_steps.enqueue(marks="/dev/null")
        jobs.fail.enqueue(text=str(n))
    over = threading.Event()
    accused: list[str] = []

    def look() -> None:
        try:
            while not over.is_set():
                accused.extend(found())
        finally:
            connections.close_all()

    looking = threading.Thread(target=look)
    looking.start()
    while run_jobs(limit=40).ended:
        pass
    over.set()
    looking.join()
    assert accused == []
    assert found() == []


# --- never silent about what must not be ------------------------------------------------------


def completed() -> Job:
    job = jobs.add.enqueue(a=1, b=2)
    drain()
    return job


def running() -> Job:
    job = jobs.add.enqueue(a=1, b=2)
    kill_holder(job)
    return job


def retried() -> Job:
    job = jobs.flaky.enqueue(marks="/dev/null", failures=0)
    life = Life(job)
    for event in ("claim", "try again", "claim", "try again", "claim", "complete"):
        life.happen(event)
    return job


def with_steps() -> Job:
    job = jobs.three_steps.enqueue(marks="/dev/null")
    drain()
    return job


def change(job: Job, **values: Any) -> None:
    Job.units.filter(pk=job.pk).update(**values)


def holding() -> Job:
    @task(concurrency=Concurrency(key="one", limit=1))
    def exclusive() -> None: ...

    job = exclusive.enqueue()
    kill_holder(job)
    return job


def step(**values: Any) -> Callable[[Job], Any]:
    return lambda job: job.steps.filter(step_id="second").update(**values)


ERROR = {"type": "builtins.ValueError", "message": "x", "traceback": "", "code": None}
DAMAGE: dict[str, tuple[Callable[[], Job], Callable[[Job], Any], str]] = {
    "a status nobody wrote into the history": (
        completed, lambda job: change(job, status="failed", error=ERROR),
        "S3: its history tells status running, but stored is failed",
    ),
    "an attempt too many": (
        retried, lambda job: change(job, attempts=4), "S3: its history tells attempts 3, but stored is 4"
    ),
    "a crash that is not in the history": (
        completed, lambda job: change(job, crashes=1), "S3: its history tells crashes 0, but stored is 1"
    ),
    "a gap in the numbers": (
        retried, lambda job: HistoryEntry.objects.filter(job=job, n=2).delete(),
        "S3: its history has the numbers 1, 3, 4",
    ),
    "an entry missing at the end": (
        retried, lambda job: change(job, history_length=5), "S3: history_length is 5, but it has 4 entries"
    ),
    "a status that cannot follow": (
        retried, lambda job: HistoryEntry.objects.filter(job=job, n=1).update(to_status="compensated"),
        "S3: its history contradicts itself",
    ),
    "an unknown status": (completed, lambda job: change(job, status="lost"), "S1: has the unknown status"),
    "a final job with a lease": (
        completed, lambda job: change(job, lease_expires_at=NOON), "L1: is completed and still has a lease"
    ),
    "a live job with an end": (
        running, lambda job: change(job, finished_at=NOON), "S1: is running, and finished_at is"
    ),
    "a completed job with an error": (
        completed, lambda job: change(job, error=ERROR), "P2: is completed and has an error"
    ),
    "a completed step without an end": (
        with_steps, step(finished_at=None), "P2: step inline/second is completed, but has no end"
    ),
    "a failed step without an error": (
        with_steps, step(status="failed"), "P2: step inline/second is failed, but has no end or no error"
    ),
    "two steps completed as one number": (
        with_steps, step(done_no=1), "P2: 2 steps completed as number 1"
    ),
    "a step of a future fence": (
        with_steps, step(fence=9), "L3: step inline/second was written under fence 9, the job has 1"
    ),
    "a try recorded twice": (
        with_steps,
        lambda job: [
            Attempt.objects.create(job=job, step=job.steps.first(), number=1, status="failed") for _ in "ab"
        ],
        "P2: try 1 of a step is recorded twice",
    ),
    "an attempt that nobody runs": (
        completed, lambda job: Attempt.objects.create(job=job, number=2, fence=2, status="running"),
        "L3: attempt 2 (fence 2) counts as running, but nobody runs it",
    ),
    "a run without a permit": (
        holding, lambda job: Permit.objects.all().delete(), "P6: runs without a permit of its key 'one'"
    ),
    "a permit of an old fence": (
        holding, lambda job: Permit.objects.update(fence=9), "L8: permit 1 of 'one' (fence 9) is held, but"
    ),
    "a permit beyond the limit": (
        holding, lambda job: Permit.objects.update(number=2), "P6: permit 2 of 'one' (fence 1) lies beyond"
    ),
    "a permit of a dead job": (
        completed,
        lambda job: Permit.objects.create(key_hash="a", number=1, key_name="k", job_id=job.pk, fence=1),
        "L8: permit 1 of 'k' (fence 1) is held by a job that is completed",
    ),
    "a permit of no job": (
        completed,
        lambda job: Permit.objects.create(key_hash="a", number=1, key_name="k", job_id=uuid4(), fence=1),
        "L8: permit 1 of 'k' (fence 1) is held by a job that does not exist",
    ),
    "a parent that is gone": (
        completed, lambda job: change(job, parent_id=uuid4()), "dangling: its parent"
    ),
    "a slot that fired twice": (
        completed,
        lambda job: Job.units.update(
            slot=NOON,
            schedule=Schedule.objects.create(name="daily", slug="echo", expression="0 9 * * *", anchor=NOON),
        ),
        "P7: schedule",
    ),
    "a step of no job": (
        completed,
        lambda job: TaskStatus.objects.create(
            job_id=uuid4(), step_key="a", step_id="a", slug="add", kind="task", status="running"
        ),
        "dangling: step",
    ),
    "an attempt of no job": (
        completed, lambda job: Attempt.objects.create(job_id=uuid4(), number=1, status="failed"),
        "dangling: attempt",
    ),
    "an attempt of no step": (
        completed, lambda job: Attempt.objects.create(job=job, step_id=10**6, number=1, status="failed"),
        "dangling: attempt",
    ),
    "a history entry of no job": (
        completed, lambda job: HistoryEntry.objects.create(job_id=uuid4(), n=1, at=NOON, event="woken"),
        "dangling: history entry",
    ),
    "a log line of no job": (
        completed, lambda job: LogLine.objects.create(job_id=uuid4(), at=NOON, level="info", message=""),
        "dangling: log line",
    ),
    "an event of no job": (
        completed, lambda job: Event.objects.create(job_id=uuid4(), name="e", sent_at=NOON), "dangling: event"
    ),
    "an idempotency key of no job": (
        completed,
        lambda job: IdempotencyKey.objects.create(key_hash="a" * 32, job_id=uuid4(), expires_at=NOON),
        "dangling: idempotency key aaaaaaaa…",
    ),
    "a callback of no job": (
        completed,
        lambda job: Callback.objects.create(token_hash="b" * 64, job_id=uuid4(), step_key="", attempt=1),
        "dangling: callback bbbbbbbb…",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(name: str) -> None:
    make, damage, expected = DAMAGE[name]
    clock.freeze(NOON)
    job = make()
    if name == "a slot that fired twice":
        make()
    assert found() == []
    damage(job)
    assert any(line.startswith(expected) for line in found()), found()


def test_a_canceled_job_may_stop_for_a_while_but_not_for_ever() -> None:
    clock.freeze(NOON)
    life = Life(holding())
    life.happen("cancel")
    assert Permit.objects.count() == 1
    assert found() == []
    clock.travel(timedelta(minutes=2))
    assert found() == ["L8: permit 1 of 'one' (fence 1) is held by a job that is canceled"]


# --- the command ------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("jobs_check", *arguments, stdout=out)
    except SystemExit as end:
        return int(str(end.code)), out.getvalue()
    return 0, out.getvalue()


def test_the_command_is_silent_when_all_is_well() -> None:
    completed()
    assert command() == (0, "")


def test_the_command_prints_a_line_a_finding_and_fails() -> None:
    job = completed()
    change(job, attempts=2, crashes=1)
    code, text = command()
    assert code == 1
    assert text.splitlines() == [
        f"S3 job {job.pk}: its history tells attempts 1, but stored is 2",
        f"S3 job {job.pk}: its history tells crashes 0, but stored is 1",
    ]


def test_the_command_counts_in_json() -> None:
    holding()
    OutboxMessage.objects.create(kind="webhook", target="x", next_try_at=NOON, created_at=NOON)
    code, text = command("--json")
    assert (code, json.loads(text)) == (
        0, {"findings": [], "leases": 1, "permits": 1, "outbox": 1},
    )  # fmt: skip
    change(completed(), attempts=9)
    code, text = command("--json")
    assert code == 1
    assert json.loads(text)["findings"][0]["rule"] == "S3"


def test_large_tables_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PAGE", 7)
    monkeypatch.setattr(health, "LISTED", 5)
    for n in range(30):
        LogLine.objects.create(job_id=uuid4(), at=NOON, level="info", message=str(n))
    lines = found()
    assert len(lines) == 6
    assert lines[-1] == "dangling: more than 5 findings; the rest is left out"
    monkeypatch.setattr(health, "LISTED", 100)
    assert len(found()) == 30
