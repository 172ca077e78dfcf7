"""What leads to undoing besides a failure in hand: cancels, time limits, crash limits; and kills on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db.models import Q

from django_jobs import DAG, Concurrency, NonRetryable, WorkflowContext, run_jobs, signals, workflow
from django_jobs.models import Job, Permit, Queue, TaskStatus
from django_jobs.testing import clock, drain, registry
from django_jobs.worker import local
from tests.app.jobs import note
from tests.control.rows import assert_folds, assert_sound
from tests.control.test_races import Batch, Gate
from tests.engine.processes import in_thread, lines
from tests.waits.test_kills import LATER, in_process

pytestmark = pytest.mark.django_db(transaction=True)
KINDS = ("code", "graph")
START = datetime(2030, 1, 1, tzinfo=UTC)
#: Edges from one life to the next; 1 tries every edge, as ``python -m tests.long sagas kills`` does.
STRIDE = int(os.environ.get("TEST_KILL_STRIDE") or 5)


@pytest.fixture(autouse=True)
def own_definitions() -> Iterator[None]:
    with registry():
        yield
        for job in Job.objects.all():
            assert_folds(job)
        assert_sound()
    clock.reset()


def done(job: Job) -> Job:
    job.refresh_from_db()
    return job


def saga(kind: str, steps: dict[str, Callable[[], Any]], log: list[str], **options: Any) -> Any:
    """One step after the other, each undone by a function that notes it."""
    if kind == "graph":
        dag = DAG("saga", **options)
        before: tuple[str, ...] = ()
        for name, does in steps.items():
            dag.step(
                name, lambda ctx, does=does: does(), after=before, compensate=lambda ctx: log.append(ctx.step_id)
            )  # fmt: skip
            before = (name,)
        return dag

    @workflow("saga", **options)
    def flow(run: WorkflowContext) -> None:
        for name, does in steps.items():
            run.inline(name, does, compensate=lambda ctx: log.append(ctx.step_id))

    return flow


def later() -> None:
    from django_jobs import RetryLater

    raise RetryLater(3600)


def fine() -> int:
    return 1


# --- cancel(compensate=True) ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["sleeping", "paused", "queryset", "async", "command"])
def test_a_run_that_waits_is_undone_by_a_cancel(kind: str, how: str) -> None:
    log: list[str] = []
    sent: list[Any] = []

    def heard(signal: Any, job: Job, **_: Any) -> None:
        sent.append((signal, job.error["code"] if job.error else None))

    watched = (signals.job_canceled, signals.run_compensating, signals.run_compensated)
    for one in watched:
        one.connect(heard)
    try:
        job = saga(kind, {"a": fine, "b": fine, "c": later}, log).enqueue()
        drain()
        assert done(job).status == "sleeping"
        if how == "paused":
            job.pause()
        match how:
            case "queryset":
                counts = Job.objects.filter(pk=job.pk).cancel("enough", compensate=True)
                assert (counts.changed, counts.refused) == (1, 0)
            case "async":
                async_to_sync(job.acancel)("enough", compensate=True)
            case "command":
                call_command("jobs_cancel", "--id", str(job.pk), "--compensate", "--reason=enough")
            case _:
                job.cancel("enough", compensate=True, actor="olga")
        assert done(job).status == "compensating"
        drain()
    finally:
        for one in watched:
            one.disconnect(heard)
    assert done(job).status == "compensated", job.error
    assert log == ["b", "a"]
    assert (job.error["code"], job.error["message"]) == ("canceled", "enough")
    assert TaskStatus.objects.get(job=job, step_id="c").status == "canceled"
    assert sent == [(signals.run_compensating, "canceled"), (signals.run_compensated, "canceled")]


@pytest.mark.parametrize("kind", KINDS)
def test_c3_the_step_in_hand_is_recorded_and_none_starts_before_the_undoing(kind: str) -> None:
    log: list[str] = []
    gate = Gate()
    steps = {
        "a": fine,
        "b": lambda: (log.append("b"), gate.hold())[1],
        "c": lambda: log.append("c"),
    }
    job = saga(kind, steps, log).enqueue()
    batch = Batch()
    assert gate.reached.wait(20)
    job.cancel(compensate=True)
    assert (job.status, job.lease_expires_at is not None) == ("compensating", True)
    # Nobody undoes it while the step is in hand.
    run_jobs(all_queues=True)
    assert log == ["b"]
    assert "It is compensating on worker" in str(job.explain())
    gate.opened.set()
    batch.end()
    drain()
    assert done(job).status == "compensated"
    assert log == ["b", "b", "a"]
    assert TaskStatus.objects.get(job=job, step_id="b").status == "completed"
    assert not TaskStatus.objects.filter(job=job, step_id="c").exclude(status="canceled").exists()


def test_c3_no_run_is_undone_before_its_units_have_ended() -> None:
    log: list[str] = []
    gate = Gate()

    def does(ctx: Any) -> None:
        log.append(ctx.step_id)
        if ctx.step_id != "a":
            gate.hold()

    def undoes(ctx: Any) -> None:
        log.append(f"undo {ctx.step_id}")

    dag = DAG("units").step("a", does, compensate=undoes)
    for name in "bc":
        dag.step(name, does, after="a", compensate=undoes)
    job = dag.step("end", does, after=["b", "c"]).enqueue()
    spread = worker()
    spread.execute(spread.claim(1), sequential=True)
    [unit] = spread.claim(1)
    thread = in_thread(lambda: spread.execute([unit], sequential=True))
    assert gate.reached.wait(20)
    job.cancel(compensate=True)
    assert worker().undoing(5) == []
    assert "steps in hand have ended: 1" in str(job.explain())
    gate.opened.set()
    thread.join(20)
    drain()
    assert done(job).status == "compensated"
    assert log in (["a", one, f"undo {one}", "undo a"] for one in "bc")
    assert {unit.status for unit in Job.units.filter(kind="step")} == {"completed", "canceled"}


def worker() -> local.Batch:
    batch = local.Batch("default", None, None)
    batch.spreads = True
    return batch


@pytest.mark.parametrize("cascade", [False, True])
def test_a_cascade_undoes_the_children_too(cascade: bool) -> None:
    log: list[str] = []

    @workflow("below")
    def below(run: WorkflowContext) -> None:
        run.inline("x", fine, compensate=lambda ctx: log.append("x"))
        run.sleep("long", 3600)

    @workflow("above")
    def above(run: WorkflowContext) -> None:
        run.inline("a", fine, compensate=lambda ctx: log.append("a"))
        run.child("below", below)

    job = above.enqueue()
    drain()
    job.cancel(cascade=cascade, compensate=True)
    drain()
    child = Job.objects.get(parent=job)
    assert done(job).status == "compensated"
    assert child.status == ("compensated" if cascade else "sleeping")
    assert sorted(log) == (["a", "x"] if cascade else ["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_which_nothing_has_completed_is_simply_canceled(kind: str) -> None:
    log: list[str] = []
    job = saga(kind, {"a": later}, log).enqueue()
    drain()
    assert job.cancel(compensate=True).status == "canceled"
    drain()
    assert (done(job).status, log) == ("canceled", [])


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["asleep", "in a step"])
def test_a_run_out_of_time_is_undone(kind: str, when: str) -> None:
    log: list[str] = []
    sent: list[Any] = []

    def heard(signal: Any, error: Any, **_: Any) -> None:
        sent.append((signal, error["code"]))

    def slow() -> int:
        time.sleep(0.3)
        return 1

    clock.freeze(START)
    last = later if when == "asleep" else slow
    steps = {"a": fine, "b": last, "c": lambda: log.append("c")}
    watched = (signals.job_failed, signals.run_compensating, signals.run_compensated)
    for one in watched:
        one.connect(heard)
    try:
        job = saga(kind, steps, log, timeout=60 if when == "asleep" else 0.2).enqueue()
        drain()
        clock.freeze(START + timedelta(hours=2))
        drain()
    finally:
        for one in watched:
            one.disconnect(heard)
    assert done(job).status == "compensated", job.error
    assert job.error["code"] == "timeout"
    assert log == (["a"] if when == "asleep" else ["b", "a"])
    assert sent == [(signals.run_compensating, "timeout"), (signals.run_compensated, "timeout")]


@pytest.mark.parametrize("kind", KINDS)
def test_undoing_has_no_time_limit_any_more(kind: str) -> None:
    log: list[str] = []
    steps = {"a": fine, "bad": lambda: 1 / 0}
    clock.freeze(START)
    job = saga(kind, steps, log, timeout=60).enqueue()
    with dying_in("undo:a"):
        drain(until=timedelta(seconds=50))
    assert done(job).status == "compensating"
    clock.travel(timedelta(hours=3))
    drain()
    assert (done(job).status, log) == ("compensated", ["a"])


class Dies(BaseException):
    pass


@contextlib.contextmanager
def dying_in(step_id: str) -> Iterator[None]:
    """As if the worker died whenever this step begins: nothing more is written, and its lease stays."""
    from django_jobs.worker.desk import DirectRecorder
    from django_jobs.workflows.replay import Replay

    execute, write = Replay._execute, DirectRecorder.write

    async def executed(self: Any, step: Any, record: Any) -> Any:
        if step.path == step_id:
            raise Dies
        return await execute(self, step, record)

    def written(self: Any, item: Any) -> Any:
        if type(item).__name__ == "Finish":
            raise Dies
        return write(self, item)

    Replay._execute, DirectRecorder.write = executed, written  # type: ignore[method-assign]
    try:
        with pytest.raises(Dies):
            yield
    finally:
        Replay._execute, DirectRecorder.write = execute, write  # type: ignore[method-assign]


def die_often(job: Job, step_id: str, times: int) -> None:
    for _ in range(times):
        with dying_in(step_id):
            drain()
        clock.travel(LATER)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saga_that_kills_its_workers_is_undone(kind: str) -> None:
    """The crash limit of its driver is a failure like others: what was completed is undone."""
    log: list[str] = []
    clock.freeze(START)
    steps = {"a": fine, "b": lambda: os.kill(os.getpid(), signal.SIGKILL)}
    job = saga(kind, steps, log).enqueue()
    for _ in range(3):
        assert in_process(drain) is None
        clock.travel(LATER)
    drain()
    assert done(job).status == "compensated", job.error
    assert (job.error["code"], log) == ("crashed", ["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_p10_a_compensation_that_kills_its_workers_fails_and_may_be_retried(kind: str) -> None:
    log: list[str] = []
    clock.freeze(START)
    job = saga(kind, {"a": fine, "bad": lambda: 1 / 0}, log).enqueue()
    die_often(job, "undo:a", 3)
    drain()
    assert (done(job).status, log) == ("compensation_failed", [])
    assert job.error["code"] is None, "the original error stays"
    undone = job.task_status["undo"]["undo:a"]
    assert (undone["status"], undone["error"]["code"]) == ("failed", "crashed")
    assert job.retry().crashes == 0
    drain()
    assert (done(job).status, log) == ("compensated", ["a"])


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_kill_between_a_failed_compensation_and_the_end_changes_nothing(policy: str) -> None:
    """With "stop" nothing further is undone, whoever takes over."""
    log: list[str] = []

    def broken(ctx: Any) -> None:
        raise NonRetryable("no")

    dag = DAG("s", on_compensation_error=policy)
    dag.step("a", lambda ctx: 1, compensate=lambda ctx: log.append("a"))
    dag.step("b", lambda ctx: 1, after="a", compensate=broken)
    dag.step("bad", broken, after="b")
    clock.freeze(START)
    job = dag.enqueue()
    with dying_in("nowhere"):
        drain()
    clock.travel(LATER)
    drain()
    assert done(job).status == "compensation_failed"
    # P4: the record of the last one may have gone with the kill.
    assert set(log) == (set() if policy == "stop" else {"a"})


# --- keys, queues, others ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_p6_who_undoes_holds_the_permit_of_the_key(kind: str) -> None:
    log: list[str] = []
    clock.freeze(START)
    key = Concurrency(key=lambda: "k")
    first = saga(kind, {"a": fine, "bad": lambda: 1 / 0}, log, concurrency=key).enqueue()
    with dying_in("undo:a"):
        drain()
    clock.travel(LATER)
    gate = Gate()

    @workflow("other", concurrency=key)
    def other(run: WorkflowContext) -> None:
        gate.hold()

    second = other.enqueue()
    batch = Batch(where=Q(pk=second.pk))
    assert gate.reached.wait(20)
    run_jobs(all_queues=True)
    assert done(first).status == "compensating"
    assert Permit.objects.get().job_id == second.pk
    gate.opened.set()
    batch.end()
    drain()
    assert (done(first).status, done(second).status, log) == ("compensated", "completed", ["a"])
    assert not Permit.objects.exists()


def test_of_a_paused_queue_nothing_is_undone() -> None:
    log: list[str] = []
    job = saga("code", {"a": fine, "b": later}, log).enqueue()
    drain()
    job.cancel(compensate=True)
    Queue.objects.get(name="default").pause()
    drain()
    assert log == []
    assert "is paused" in str(job.explain())
    Queue.objects.get(name="default").resume()
    drain()
    assert (done(job).status, log) == ("compensated", ["a"])


# --- kill -9 ----------------------------------------------------------------------------------


def noted(kind: str, marks: Path) -> Any:
    def does(name: str) -> Callable[..., Any]:
        return lambda *_: note(str(marks), name)

    def fails(*_: Any) -> None:
        raise NonRetryable("broken")

    if kind == "graph":
        dag = DAG("killed").step("a", does("a"), compensate=does("undo a"))
        dag.step("b", does("b"), after="a", compensate=does("undo b"))
        dag.step("beside", does("beside"), after="a")
        return dag.step("bad", fails, after=["b", "beside"])

    @workflow("killed")
    def flow(run: WorkflowContext) -> None:
        run.inline("a", does("a"), compensate=does("undo a"))
        run.inline("b", does("b"), compensate=does("undo b"))
        run.inline("beside", does("beside"))
        run.inline("bad", fails)

    return flow


@pytest.mark.parametrize("canceled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_undone_in_order_whatever_edge_kills_its_worker(
    kind: str, canceled: bool, marks: Path
) -> None:
    definition = noted(kind, marks)
    edge = 1 + KINDS.index(kind) + 2 * canceled - STRIDE
    while True:
        edge = max(edge + STRIDE, 1)
        marks.unlink(missing_ok=True)
        clock.freeze(START)
        job = definition.enqueue()
        passed = in_process(drain, edge)
        if (
            canceled
            and passed is None
            and done(job).finished_at is None
            and job.status != "compensating"
        ):
            job.cancel(compensate=True)
        clock.freeze(START + LATER)
        assert in_process(drain) is not None
        job.refresh_from_db()
        lasted = lines(marks)
        if job.status == "canceled":
            assert not [line for line in lasted if line.startswith("undo")]
        else:
            assert job.status == "compensated", (edge, job.status, job.error)
            undone = [line for line in lasted if line.startswith("undo")]
            completed = set(job.steps.filter(status="completed").values_list("step_id", flat=True))
            assert {line.removeprefix("undo ") for line in undone} == completed & {"a", "b"}
            # P4: only the step in hand may have been run once more.
            assert len(lasted) <= len(set(lasted)) + 1, (edge, lasted)
            assert list(dict.fromkeys(undone)) == [
                one for one in ("undo b", "undo a") if one in undone
            ]
            first = lasted.index(undone[0]) if undone else len(lasted)
            assert all(line.startswith("undo") for line in lasted[first:]), lasted
        assert_sound()
        assert_folds(job)
        Job.units.all().delete()
        if passed is not None:
            break
    assert edge > 10
