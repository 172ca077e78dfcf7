"""How the engine writes: whose clock, in which transactions, with what left behind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, models, transaction

from django_jobs import Concurrency, clock, failpoints, ids, run_jobs, task, workflow
from django_jobs.definitions.context import WorkflowContext
from django_jobs.models import HistoryEntry, Job, Permit, TaskStatus
from django_jobs.outcomes import Completed, HandedBack, Lost, TryAgain
from django_jobs.store import claims, record
from django_jobs.store.record import Finish
from django_jobs.store.session import Session
from django_jobs.worker import execution
from django_jobs.worker.desk import DirectRecorder
from django_jobs.worker.execution import Environment, Execution
from django_jobs.worker.local import CallingLoop
from tests.app import jobs, tasks
from tests.engine.processes import RunJobs, eventually
from tests.support import vendor

pytestmark = pytest.mark.django_db(transaction=True)
LEASE = 15.0


def claim(job: Job) -> claims.Claim:
    [held] = Session().committed(
        lambda s: claims.take(s, [job.pk], worker=ids.worker_id(), lease=LEASE)
    )
    return held


def test_l2_a_worker_is_known_by_a_random_id() -> None:
    """L2: each start has another, so that no restart is taken for the one before."""
    seen = set()
    for _ in range(3):
        job = jobs.add.enqueue(a=1, b=1)
        run_jobs()
        job.refresh_from_db()
        seen.add(job.worker)
    assert len(seen) == 3
    assert {worker.version for worker in seen} == {4}


def test_l4_what_is_due_is_decided_by_the_databases_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """L4: a worker whose clock is hours ahead takes nothing early and holds no longer lease."""
    if vendor() != "postgresql":
        pytest.skip("SQLite has no clock but the processes' own")
    later = jobs.add.using(delay=600).enqueue(a=1, b=1)
    now = jobs.add.enqueue(a=1, b=1)
    real = clock.now()
    monkeypatch.setattr(clock, "now", lambda: real + timedelta(hours=3))
    assert run_jobs().completed == 1
    later.refresh_from_db()
    now.refresh_from_db()
    assert (later.status, now.status) == ("pending", "completed")
    held = claim(jobs.add.enqueue(a=1, b=1))
    until = Job.objects.get(pk=held.job_id).lease_expires_at
    assert until is not None
    assert until < real + timedelta(minutes=5)


@pytest.mark.parametrize("why", ["deadline", "revoked"])
def test_l4_no_step_starts_under_a_lease_that_may_have_ended(why: str) -> None:
    """L4, P5: past its own deadline a worker starts nothing, and writes nothing."""
    ran: list[int] = []

    @workflow("test.deadline")
    def flow(run: WorkflowContext) -> None:
        run.inline("step", lambda: ran.append(1))

    held = claim(flow.enqueue())
    if why == "deadline":
        held.deadline = clock.monotonic() - 0.001
    else:
        held.revoked = "lease"
    recorder = DirectRecorder("default", LEASE)
    prepared = execution.prepare(held, Environment(recorder, CallingLoop(), None))
    outcome = prepared.run() if isinstance(prepared, Execution) else prepared
    assert isinstance(outcome, Lost | HandedBack)
    recorder.flush()
    assert ran == []
    assert not TaskStatus.objects.exists()


@pytest.mark.parametrize(
    "outcome", [Completed('"x"'), TryAgain({"type": "E", "message": "m"}, 1.0)]
)
def test_w1_an_outcome_is_written_whole_or_not_at_all(outcome: Any) -> None:
    """W1: status, history and permit change in one transaction."""
    job = tasks.visit.enqueue(marks="/dev/null")
    held = claim(job)
    before = Job.objects.filter(pk=job.pk).values().get()

    def power_cut() -> None:
        raise RuntimeError("power cut")

    with failpoints.at("record.before_commit", power_cut), pytest.raises(RuntimeError):
        Session().committed(lambda s: record.record(s, [Finish(held, outcome)]))
    assert Job.objects.filter(pk=job.pk).values().get() == before
    assert not HistoryEntry.objects.filter(job=job).exists()
    assert Permit.objects.count() == 1
    assert Session().committed(lambda s: record.record(s, [Finish(held, outcome)])) == ["written"]
    assert not Permit.objects.exists()
    job.refresh_from_db()
    assert (job.status, job.attempts) in [("completed", 1), ("pending", 1)]


def test_w3_a_step_costs_one_commit() -> None:
    """W3: the record of one step and the start of the next go in one transaction."""
    seen: list[list[tuple[str, str]]] = []
    commits: list[int] = []

    @workflow("test.commits")
    def flow(run: WorkflowContext) -> None:
        for name in ("one", "two", "three"):
            run.inline(name, look)

    def look() -> None:
        seen.append(list(TaskStatus.objects.order_by("id").values_list("step_id", "status")))

    flow.enqueue()
    with failpoints.at("record.after_commit", lambda: commits.append(1)):
        assert run_jobs(sequential=True).completed == 1
    assert seen == [
        [("one", "running")],
        [("one", "completed"), ("two", "running")],
        [("one", "completed"), ("two", "completed"), ("three", "running")],
    ]
    # The first start, two in between, and the last record with the outcome.
    assert len(commits) == 4


def test_w6_workers_need_no_notification(runjobs: Callable[..., RunJobs], marks: Path) -> None:
    """W6: polling alone is enough."""
    worker = runjobs("--threads", 2, NOTIFY=False)
    first = jobs.mark.enqueue(marks=str(marks), word="first")
    eventually(lambda: Job.objects.get(pk=first.pk).status == "completed", "it polls")
    second = jobs.mark.enqueue(marks=str(marks), word="second")
    eventually(lambda: Job.objects.get(pk=second.pk).status == "completed", "it polls again")
    worker.terminate()
    assert worker.wait() == 0


def transient_error() -> Exception:
    if vendor() == "postgresql":
        import psycopg

        return psycopg.errors.DeadlockDetected("deadlock detected")
    if vendor() == "mysql":
        import pymysql

        return pymysql.err.OperationalError(1213, "Deadlock found when trying to get lock")
    import sqlite3

    return sqlite3.OperationalError("database is locked")


def test_w7_whole_engine_transactions_are_repeated() -> None:
    """W7: on a deadlock or a lock, from the start, a bounded number of times."""
    tried: list[int] = []

    def work(session: Session) -> str:
        tried.append(1)
        session.run("INSERT INTO {queue} (name) VALUES ('again')")
        if len(tried) < 3:
            raise transient_error()
        return "done"

    assert Session().committed(work) == "done"
    assert len(tried) == 3

    def never(session: Session) -> None:
        tried.append(1)
        raise transient_error()

    tried.clear()
    with pytest.raises(type(transient_error())):
        Session().committed(never)
    assert 2 < len(tried) < 20


def test_w7_the_callers_transaction_is_never_repeated() -> None:
    """W7: an enqueue inside of one reports its error."""
    tried: list[int] = []

    def work(session: Session) -> None:
        tried.append(1)
        raise transient_error()

    with transaction.atomic(), pytest.raises(type(transient_error())):
        Session().committed(work)
    assert len(tried) == 1


def test_w8_uniqueness_needs_no_partial_index() -> None:
    """W8: MySQL has none, and Django skips a conditional constraint there without a word."""
    found = [
        constraint
        for model in apps.get_app_config("django_jobs").get_models()
        for constraint in model._meta.constraints
        if isinstance(constraint, models.UniqueConstraint)
    ]
    assert len(found) > 5
    assert [constraint.name for constraint in found if constraint.condition is not None] == []


def test_w9_enqueues_leave_the_callers_connection_as_it_was() -> None:
    """W9: no session state: no lock, no setting, no prepared statement is left."""
    if vendor() != "postgresql":
        pytest.skip("about a database server's sessions")

    def state() -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name, setting FROM pg_settings WHERE source = 'session'")
            settings = cursor.fetchall()
            cursor.execute("SELECT locktype FROM pg_locks WHERE locktype = 'advisory'")
            locks = cursor.fetchall()
            cursor.execute("SELECT name FROM pg_prepared_statements")
            return [*settings, *locks, *cursor.fetchall()]

    @task("test.traces", concurrency=Concurrency(key="k", supersedes=True))
    def traces() -> None: ...

    before, threshold = state(), connection.connection.prepare_threshold
    for n in range(10):
        traces.using(idempotency_key=f"{n}").enqueue()
        jobs.add.enqueue(a=1, b=1)
    jobs.add.enqueue_many([{"a": 1, "b": 1}] * 10)
    assert state() == before
    assert connection.connection.prepare_threshold == threshold
    assert connection.get_autocommit()
