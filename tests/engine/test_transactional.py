"""Steps whose writes commit with their record: RELIABILITY P3, L9, W4."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import OperationalError, connection, connections, transaction
from django.db.models import F

from django_jobs import TaskContext, WorkflowContext, failpoints, run_jobs, task, workflow
from django_jobs.models import Job, Queue, TaskStatus
from django_jobs.store.session import Session
from django_jobs.testing import clock, drain

pytestmark = pytest.mark.django_db(transaction=True)
EITHER_WAY = pytest.mark.parametrize("sequential", [True, False])


def effects() -> list[str]:
    """The rows that steps wrote."""
    return list(Queue.objects.filter(name__startswith="effect").values_list("name", flat=True))


@EITHER_WAY
def test_p3_the_writes_commit_with_the_record(sequential: bool) -> None:
    """P3, L9: within the step there is one transaction; after it both are there, once."""
    inside: list[bool] = []

    @task("test.effect", transactional=True)
    def effect() -> str:
        inside.append(connection.in_atomic_block)
        Queue.objects.create(name="effect")
        return "written"

    @workflow("test.transactional", retries=1)
    def flow(run: WorkflowContext) -> str:
        value = run.task("step", effect)
        assert not connection.in_atomic_block
        if run.attempt == 1:
            raise OSError("another pass")
        return value  # type: ignore[no-any-return]

    clock.freeze(datetime(2030, 1, 1, tzinfo=UTC))
    job = flow.enqueue()
    for _ in range(2):
        run_jobs(sequential=sequential)
        clock.travel(timedelta(minutes=1))
    assert job.result() == "written"
    assert (inside, effects()) == ([True], ["effect"])


@EITHER_WAY
def test_p3_an_exception_takes_the_writes_with_it(sequential: bool) -> None:
    """P3: neither a write nor a completed record is left of a try that raised."""

    @workflow("test.raises")
    def flow(run: WorkflowContext) -> None:
        def write() -> None:
            Queue.objects.create(name="effect")
            raise OSError("after the write")

        run.inline("step", write, transactional=True)

    job = flow.enqueue()
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert job.status == "failed"
    assert job.task_status["inline"]["step"]["status"] == "failed"
    assert effects() == []


@EITHER_WAY
def test_p3_a_lost_fence_takes_the_writes_with_it(sequential: bool) -> None:
    """P3, L3: the fence is checked last, before the commit; a taken-over job keeps no effect."""

    @workflow("test.lost")
    def flow(run: WorkflowContext) -> None:
        run.inline("step", lambda: Queue.objects.create(name="effect").name, transactional=True)

    def take_over() -> None:
        Job.units.update(fence=F("fence") + 1)

    job = flow.enqueue()
    with failpoints.at("transactional.before_record", take_over):
        report = run_jobs(sequential=sequential)
    assert (report.completed, report.failed, report.retried) == (0, 0, 0)
    assert effects() == []
    assert not TaskStatus.objects.filter(status="completed").exists()
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("running", 0)


@EITHER_WAY
def test_w2_a_commit_without_an_answer_is_looked_up(
    sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W2: the COMMIT happened and the connection went: the step is done, once, and the run goes on."""
    lost = OperationalError("server closed the connection unexpectedly")
    is_lost = type(Session().dialect).is_lost
    monkeypatch.setattr(
        type(Session().dialect),
        "is_lost",
        lambda self, error: error is lost or is_lost(self, error),
    )
    ran: list[int] = []

    @workflow("test.unanswered")
    def flow(run: WorkflowContext) -> str:
        def write() -> str:
            ran.append(1)
            return Queue.objects.create(name="effect").name

        return run.inline("step", write, transactional=True)  # type: ignore[no-any-return]

    def lose() -> None:
        if len(ran) == 1:
            raise lost

    job = flow.enqueue()
    with failpoints.at("transactional.after_commit", lose):
        run_jobs(sequential=sequential)
    assert job.result() == "effect"
    assert (len(ran), effects()) == (1, ["effect"])


def test_w2_a_commit_that_did_not_happen_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """W2: not done, so repeat; no retry of the step is used up."""
    lost = OperationalError("server closed the connection unexpectedly")
    is_lost = type(Session().dialect).is_lost
    monkeypatch.setattr(
        type(Session().dialect),
        "is_lost",
        lambda self, error: error is lost or is_lost(self, error),
    )
    ran: list[int] = []

    @workflow("test.undone")
    def flow(run: WorkflowContext) -> str:
        def write() -> str:
            ran.append(1)
            if len(ran) == 1:
                # Django runs this as part of the COMMIT, whose answer is lost with it.
                transaction.on_commit(undo)
            return Queue.objects.create(name=f"effect {len(ran)}").name

        return run.inline("step", write, transactional=True)  # type: ignore[no-any-return]

    def undo() -> None:
        Queue.objects.filter(name="effect 1").delete()
        TaskStatus.objects.filter(step_id="step").delete()
        raise lost

    job = flow.enqueue()
    run_jobs(sequential=True)
    assert job.result() == "effect 2"
    assert effects() == ["effect 2"]
    assert job.task_status["inline"]["step"]["total_tried"] == 1


def test_steps_within_a_transactional_step_are_refused_for_good() -> None:
    """W3: each step is a commit of its own, so the two do not go together."""
    ran: list[int] = []

    @task("test.outer", transactional=True, takes_context=True, retries=3)
    def outer(context: TaskContext) -> None:
        Queue.objects.create(name="effect")
        context.inline("inner", lambda: ran.append(1))

    @workflow("test.inner")
    def flow(run: WorkflowContext) -> None:
        run.task("step", outer)

    job = flow.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("failed", 1)
    error = job.task_status["test.outer"]["step"]["error"]
    assert error["type"].endswith("ConfigurationError")
    assert "'inner'" in error["message"]
    assert "'step'" in error["message"]
    assert (ran, effects()) == ([], [])


def test_an_async_function_cannot_be_transactional() -> None:
    ran: list[int] = []

    @task("test.async")
    async def step() -> None:
        ran.append(1)

    @workflow("test.async.run")
    def flow(run: WorkflowContext) -> None:
        run.task("step", step, transactional=True)

    job = flow.enqueue()
    drain()
    job.refresh_from_db()
    assert job.error["type"].endswith("ConfigurationError")
    assert "plain def" in job.error["message"]
    assert ran == []


@EITHER_WAY
def test_l9_no_transaction_is_open_while_other_steps_run(sequential: bool) -> None:
    """L9: neither in the handler nor in an ordinary step."""
    seen: list[bool] = []

    def look(*_: Any) -> None:
        seen.append(connection.in_atomic_block or not connection.get_autocommit())

    @workflow("test.open")
    def flow(run: WorkflowContext) -> None:
        look()
        run.inline("one", look)
        run.gather(run.call("two", plain), run.call("three", plain))
        look()

    @task("test.plain", on_success=look)
    def plain() -> None:
        look()

    job = flow.enqueue()
    run_jobs(sequential=sequential)
    assert job.result() is None
    assert seen == [False] * 7


def test_a_transactional_step_works_in_an_async_workflow() -> None:
    @workflow("test.async.flow")
    async def flow(run: WorkflowContext) -> str:
        return await run.inline(  # type: ignore[no-any-return]
            "step", lambda: Queue.objects.create(name="effect").name, transactional=True
        )

    for sequential in (True, False):
        Queue.objects.filter(name="effect").delete()
        job = flow.enqueue()
        run_jobs(sequential=sequential)
        assert job.result() == "effect"
        assert effects() == ["effect"]


@pytest.fixture
def elsewhere(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """The alias of another database, with one table."""
    alias = "elsewhere"
    connections.databases[alias] = {
        **connections["default"].settings_dict,
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "elsewhere.sqlite3"),
        "OPTIONS": {},
    }
    try:
        # Not by ensure_connection(): a test may use no other database than those it was begun with.
        connections[alias].connect()
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE notes (text varchar(20))")
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]


def notes(alias: str) -> list[str]:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT text FROM notes")
        return [row[0] for row in cursor.fetchall()]


def test_w4_a_transactional_step_writes_to_no_other_database(elsewhere: str) -> None:
    """W4: refused as it starts to; nothing of the step remains, and no try is made again."""
    tried: list[int] = []

    @workflow("test.elsewhere", retries=3)
    def flow(run: WorkflowContext) -> None:
        def write() -> None:
            tried.append(1)
            Queue.objects.create(name="effect")
            assert notes(elsewhere) == ["before"]  # reading is allowed
            connections[elsewhere].cursor().execute("INSERT INTO notes VALUES ('late')")

        run.inline("before", lambda: insert(elsewhere, "before"))
        run.inline("step", write, transactional=True)

    job = flow.enqueue()
    run_jobs(sequential=True)
    job.refresh_from_db()
    assert (job.status, len(tried), effects()) == ("failed", 1, [])
    error = job.task_status["inline"]["step"]["error"]
    assert error["type"].endswith("ConfigurationError")
    assert all(word in error["message"] for word in ("'step'", "'elsewhere'", "'default'"))
    assert notes(elsewhere) == ["before"]


def insert(alias: str, text: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO notes VALUES (%s)", [text])


def test_w4_transactional_tasks_without_a_model_beside_their_records_are_a_check_error(
    elsewhere: str, settings: Any
) -> None:
    """W4: where all of the project's tables are kept in another database."""

    def found() -> list[str | None]:
        return [one.id for one in run_checks() if str(one.id).startswith("django_jobs.E014")]

    @task("test.never", transactional=True)
    def never() -> None: ...

    assert found() == []
    settings.DJANGO_JOBS = {"DATABASE": elsewhere}
    assert found() == ["django_jobs.E014"]
