"""What commands bring with them: reasons, budgets, steps, keys, children, signals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction

from django_jobs import (
    Concurrency,
    DuplicateJob,
    InvalidInput,
    JobFailed,
    Retry,
    UnknownTask,
    WorkflowContext,
    clock,
    ids,
    run_jobs,
    signals,
    task,
    workflow,
)
from django_jobs.definitions import registry
from django_jobs.lifecycle import Status
from django_jobs.models import HistoryEntry, Job, Permit, WorkflowRun
from django_jobs.store import claims
from django_jobs.store.session import Session
from django_jobs.testing import drain
from tests.app import jobs
from tests.control.rows import assert_folds, assert_sound, make, stored

pytestmark = pytest.mark.django_db
NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def take(job: Job) -> list[claims.Claim]:
    return Session().committed(lambda s: claims.take(s, [job.pk], worker=ids.worker_id(), lease=15))


# --- what is kept ------------------------------------------------------------------------------


def test_a_cancel_keeps_its_reason_in_the_error_and_its_actor_in_the_history() -> None:
    job = jobs.add.enqueue(a=1, b=2).cancel("no longer wanted", actor="olga")
    assert (job.error["code"], job.error["message"]) == ("canceled", "no longer wanted")
    assert job.finished_at is not None
    [entry] = HistoryEntry.objects.filter(job=job)
    assert (entry.event, entry.actor) == ("canceled", "olga")
    assert entry.detail["reason"] == "no longer wanted"


def test_a_cancel_without_a_reason_says_who() -> None:
    assert jobs.echo.enqueue().cancel(actor="olga").error["message"] == "Canceled by olga."
    assert jobs.echo.enqueue().cancel().error["message"] == "Canceled."


def test_reasons_and_actors_of_any_text_are_kept_storable() -> None:
    job = jobs.echo.enqueue().pause(actor="x" * 500, reason="nul \0 and \ud800")
    [entry] = HistoryEntry.objects.filter(job=job)
    assert len(entry.actor or "") == 200
    assert entry.detail["reason"] == "nul \ufffd and \ufffd"


def test_a_canceled_run_keeps_its_completed_steps() -> None:
    @workflow
    def stops_itself(run: WorkflowContext) -> None:
        run.inline("first", lambda: 1)
        run.inline("second", lambda: Job.objects.get(slug="stops_itself").cancel("enough").status)
        run.inline("third", lambda: 3)

    job = stops_itself.enqueue()
    report = drain()
    job.refresh_from_db()
    assert (job.status, job.attempts, report.completed) == ("canceled", 0, 0)
    status = job.task_status["inline"]
    assert status["first"]["output"] == 1
    assert (status["second"]["complete"], status["second"]["output"]) == (False, None)
    assert status["second"]["status"] == "canceled"
    assert "third" not in status
    assert_sound()
    assert_folds(job)


def test_a_paused_run_starts_nothing_more_and_goes_on_where_it_stopped() -> None:
    ran: list[str] = []

    @workflow
    def pauses_itself(run: WorkflowContext) -> list[str]:
        def pause() -> str:
            Job.objects.get(slug="pauses_itself").pause()
            return "paused"

        run.inline("first", lambda: ran.append("first"))
        run.inline("second", pause)
        run.inline("third", lambda: ran.append("third"))
        return ran

    job = pauses_itself.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, ran, job.lease_expires_at) == ("paused", ["first"], None)
    assert job.task_status["inline"]["second"]["output"] == "paused"
    drain()
    assert ran == ["first"]
    job.resume()
    drain()
    job.refresh_from_db()
    assert (job.status, ran) == ("completed", ["first", "third"])
    assert_sound()
    assert_folds(job)


def test_a_pause_before_the_first_step_keeps_it_from_starting() -> None:
    ran: list[str] = []

    @workflow
    def pauses_at_once(run: WorkflowContext) -> None:
        if not ran:
            ran.append("pass")
            run.job.pause()
        run.inline("only", lambda: ran.append("step"))

    job = pauses_at_once.enqueue()
    drain()
    assert ran == ["pass"]
    job.resume()
    drain()
    assert ran == ["pass", "step"]
    assert_folds(Job.objects.get(pk=job.pk))


def test_a_result_that_comes_while_a_task_is_paused_is_kept_for_the_resume() -> None:
    told: list[str] = []

    def note(sender: Any, job: Job, **_: Any) -> None:
        told.append(job.status)

    @task
    def pauses_itself() -> int:
        told.append("ran")
        Job.objects.get(slug="pauses_itself").pause()
        return 7

    signals.job_completed.connect(note)
    try:
        job = pauses_itself.enqueue()
        report = drain()
        job.refresh_from_db()
        assert (job.status, job.output, report.completed) == ("paused", None, 0)
        assert told == ["ran"]
        job.resume()
        assert drain().completed == 1
    finally:
        signals.job_completed.disconnect(note)
    job.refresh_from_db()
    assert (job.status, job.output, job.attempts) == ("completed", 7, 1)
    assert told == ["ran", "completed"]
    assert_sound()


def test_a_failure_that_comes_while_a_task_is_paused_uses_its_try() -> None:
    ran: list[int] = []

    @task(retries=Retry(max_attempts=2, delay=0, jitter=0))
    def pauses_and_fails() -> None:
        ran.append(1)
        if len(ran) == 1:
            Job.objects.get(slug="pauses_and_fails").pause()
        raise ValueError("broken")

    job = pauses_and_fails.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, job.attempts, job.error["message"]) == ("paused", 1, "broken")
    job.resume()
    drain()
    job.refresh_from_db()
    assert (job.status, job.attempts, len(ran)) == ("failed", 2, 2)


def test_a_last_failure_that_comes_while_a_task_is_paused_is_its_end_after_the_resume() -> None:
    ran: list[int] = []

    @task
    def pauses_and_ends() -> None:
        ran.append(1)
        Job.objects.get(slug="pauses_and_ends").pause()
        raise ValueError("broken")

    job = pauses_and_ends.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("paused", 1)
    job.resume()
    drain()
    job.refresh_from_db()
    assert (job.status, job.attempts, job.error["message"], ran) == ("failed", 1, "broken", [1])
    assert_sound()
    job.retry()
    drain()
    assert len(ran) == 2


def test_a_job_that_cancels_itself_while_it_is_paused_is_canceled() -> None:
    from django_jobs import CancelJob

    @task
    def gives_up() -> None:
        Job.objects.get(slug="gives_up").pause()
        raise CancelJob("pointless")

    job = gives_up.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, job.error["message"]) == ("canceled", "pointless")
    assert_sound()
    assert_folds(job)


# --- due times ---------------------------------------------------------------------------------


def test_resume_makes_a_delayed_job_due_now_and_keeps_the_place_of_one_that_waited() -> None:
    clock.freeze(NOON)
    late = jobs.add.using(delay=3600).enqueue(a=1, b=2)
    old = jobs.add.enqueue(a=1, b=2)
    late.pause()
    old.pause()
    clock.travel(timedelta(minutes=1))
    late.resume()
    old.resume()
    assert (late.due_at, late.gate) == (NOON + timedelta(minutes=1), "open")
    assert old.due_at == NOON
    assert drain().completed == 2


def test_run_now_leaves_a_due_job_as_it_is() -> None:
    job = jobs.add.enqueue(a=1, b=2)
    before = stored(job)
    job.run_now()
    assert stored(job) == before
    assert Job.objects.filter(pk=job.pk).run_now().unchanged == 1


def test_run_now_wakes_a_run_that_waits_for_its_retry() -> None:
    clock.freeze(NOON)
    job = make(Status.SLEEPING, "workflow")
    assert run_jobs().completed == 0
    job.run_now()
    assert run_jobs().completed == 1


# --- retry -------------------------------------------------------------------------------------


def test_retry_runs_the_failed_step_anew_with_its_whole_budget() -> None:
    ran: list[str] = []
    broken = [True]

    @task(retries=Retry(max_attempts=2, delay=0, jitter=0))
    def charge() -> str:
        ran.append("charge")
        if broken:
            raise ValueError("card refused")
        return "charged"

    @workflow(retries=1)
    def order(run: WorkflowContext) -> str:
        run.inline("before", lambda: ran.append("before"))
        return str(run.task("charge", charge))

    job = order.enqueue()
    drain()
    job.refresh_from_db()
    assert (job.status, job.attempts, ran) == ("failed", 2, ["before", "charge", "charge"])
    job.retry(actor="olga")
    assert (job.status, job.crashes, job.finished_at) == ("pending", 0, None)
    drain()
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("failed", 4)
    assert ran.count("charge") == 4
    broken.clear()
    job.retry()
    drain()
    job.refresh_from_db()
    assert (job.status, job.output, job.error) == ("completed", "charged", None)
    assert (ran.count("before"), ran.count("charge")) == (1, 5)
    assert job.task_status["charge"]["charge"]["total_tried"] == 5
    assert_sound()
    assert_folds(job)


def test_retry_of_a_task_gives_it_a_whole_budget() -> None:
    ran: list[int] = []

    @task(retries=Retry(max_attempts=3, delay=0, jitter=0))
    def hopeless() -> None:
        ran.append(1)
        raise ValueError("no")

    job = hopeless.enqueue()
    drain()
    assert len(ran) == 3
    job.retry()
    drain()
    assert len(ran) == 6
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("failed", 6)


def test_retry_leaves_a_failure_that_the_run_has_caught() -> None:
    ran: list[str] = []
    broken = [True]

    @task
    def cheap() -> None:
        ran.append("cheap")
        raise ValueError("sold out")

    @task
    def dear() -> str:
        ran.append("dear")
        if broken:
            raise ValueError("closed")
        return "bought"

    @workflow
    def shopping(run: WorkflowContext) -> str:
        try:
            run.task("cheap", cheap)
        except JobFailed:
            return str(run.task("dear", dear))
        return ""

    job = shopping.enqueue()
    drain()
    broken.clear()
    job.retry()
    drain()
    job.refresh_from_db()
    assert (job.status, job.output, ran) == ("completed", "bought", ["cheap", "dear", "dear"])


def test_retry_resets_all_steps_that_failed_together() -> None:
    broken = [True]

    @task
    def part(n: int) -> int:
        if broken:
            raise ValueError(n)
        return n

    @workflow
    def whole(run: WorkflowContext) -> list[int]:
        return list(run.gather(*(run.call(f"p{n}", part, n=n) for n in range(3))))

    job = whole.enqueue()
    drain()
    broken.clear()
    job.retry()
    drain()
    job.refresh_from_db()
    assert (job.status, job.output) == ("completed", [0, 1, 2])


def test_retry_runs_a_nested_step_anew() -> None:
    broken = [True]

    @task
    def inner() -> int:
        if broken:
            raise ValueError("inner")
        return 1

    @task(takes_context=True)
    def outer(context: Any) -> int:
        return int(context.task("inner", inner))

    @workflow
    def nest(run: WorkflowContext) -> int:
        return int(run.task("outer", outer))

    job = nest.enqueue()
    drain()
    broken.clear()
    job.retry()
    drain()
    job.refresh_from_db()
    assert (job.status, job.output) == ("completed", 1)


def test_retry_forgives_crashes() -> None:
    job = make(Status.FAILED, "task")
    Job.objects.filter(pk=job.pk).update(crashes=3)
    assert job.retry().crashes == 0


# --- rerun -------------------------------------------------------------------------------------


def test_rerun_is_a_new_job_with_the_same_call_but_for_the_idempotency_key() -> None:
    clock.freeze(NOON)
    call = jobs.echo.using(
        queue_name="mail", priority=5, meta={"from": "test"}, idempotency_key="once", retries=2,
        concurrency_key="alone", timeout=9,
    )  # fmt: skip
    job = call.enqueue(value={"n": 1})
    drain()
    again = job.rerun(actor="olga", reason="lost mail")
    assert again.pk != job.pk
    for name in (
        "slug",
        "queue_name",
        "priority",
        "meta",
        "input",
        "options",
        "concurrency_key",
        "lane",
        "key_hash",
    ):
        assert getattr(again, name) == getattr(Job.objects.get(pk=job.pk), name), name
    assert (again.rerun_of_id, again.idempotency_key, again.attempts) == (job.pk, None, 0)
    [entry] = HistoryEntry.objects.filter(job=job, event="rerun")
    assert (entry.actor, entry.detail) == ("olga", {"job": str(again.pk), "reason": "lost mail"})
    drain()
    again.refresh_from_db()
    assert (again.status, again.output) == ("completed", {"n": 1})
    assert_sound()


def test_rerun_after_a_retry_begins_with_a_whole_budget() -> None:
    job = jobs.fail.enqueue()
    drain()
    job.retry()
    drain()
    assert Job.objects.get(pk=job.pk).options == {"attempts_before": 1}
    assert job.rerun().options is None


def test_rerun_with_another_input_checks_it() -> None:
    job = make(Status.COMPLETED, "task")
    with pytest.raises(InvalidInput):
        job.rerun(input={"a": "no number", "b": 2})
    assert Job.objects.count() == 1
    assert job.rerun(input={"a": 5, "b": 6}).input == {"a": 5, "b": 6}


def test_rerun_without_the_code_copies_the_call_and_refuses_another_input() -> None:
    job = make(Status.COMPLETED, "task")
    known = registry.snapshot()
    registry.restore({slug: one for slug, one in known.items() if slug != "add"})
    try:
        assert job.rerun().input == {"a": 1, "b": 2}
        with pytest.raises(UnknownTask):
            job.rerun(input={"a": 5, "b": 6})
    finally:
        registry.restore(known)


def test_rerun_obeys_the_rule_of_its_key() -> None:
    @task(concurrency=Concurrency(key=lambda: "one", on_conflict="raise"))
    def alone() -> None: ...

    first = alone.enqueue()
    drain()
    alone.enqueue()
    with pytest.raises(DuplicateJob):
        first.rerun()
    assert HistoryEntry.objects.filter(job=first).count() == 0
    counts = Job.objects.filter(pk=first.pk).rerun()
    assert (counts.changed, counts.refused) == (0, 1)


# --- keys, children ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["cancel", "pause"])
def test_who_waits_behind_a_job_that_goes_is_let_in(command: str) -> None:
    first, second, third = (jobs.echo.using(concurrency_key="one").enqueue() for _ in range(3))
    take(first)
    assert take(second) == []
    assert take(third) == []
    Permit.objects.all().delete()
    Session().committed(
        lambda s: s.run("UPDATE {job} SET gate = 'open' WHERE id = %(id)s", id=second.pk)
    )
    getattr(second, command)()
    assert Job.objects.get(pk=third.pk).gate == "open"


def test_a_sleeping_run_that_holds_its_permit_gives_it_up_when_it_is_canceled() -> None:
    @workflow(
        concurrency=Concurrency(key=lambda: "one", hold=True),
        retries=Retry(max_attempts=2, delay=60),
    )
    def holds(run: WorkflowContext) -> None:
        raise ValueError("later")

    first, second = holds.enqueue(), holds.enqueue()
    drain()
    assert [Job.objects.get(pk=job.pk).status for job in (first, second)] == ["sleeping", "pending"]
    first.refresh_from_db()
    first.cancel()
    assert Permit.objects.count() == 0
    assert Job.objects.get(pk=second.pk).gate == "open"
    assert_sound()


def family() -> tuple[Job, Job, Job]:
    parent, child, grandchild = (jobs.echo.enqueue() for _ in range(3))
    Job.objects.filter(pk=child.pk).update(parent=parent)
    Job.objects.filter(pk=grandchild.pk).update(parent=child)
    return parent, child, grandchild


def test_cancel_leaves_children_alone_unless_told_to_cascade() -> None:
    family_of_three = family()
    family_of_three[0].cancel()
    assert [Job.objects.get(pk=job.pk).status for job in family_of_three] == [
        "canceled", "pending", "pending",
    ]  # fmt: skip
    family_of_three[0].cancel(cascade=True)
    assert {Job.objects.get(pk=job.pk).status for job in family_of_three} == {"canceled"}


def test_cancel_with_cascade_reaches_all_below() -> None:
    parent, child, grandchild = family()
    done = jobs.echo.enqueue()
    drain_one(done)
    Job.objects.filter(pk=done.pk).update(parent=parent)
    counts = Job.objects.filter(pk=parent.pk).cancel("all of it", cascade=True)
    assert (counts.changed, counts.unchanged, counts.refused) == (1, 0, 0)
    statuses = [Job.objects.get(pk=job.pk).status for job in (parent, child, grandchild, done)]
    assert statuses == ["canceled", "canceled", "canceled", "completed"]
    assert Job.objects.get(pk=grandchild.pk).error["message"] == "all of it"


def drain_one(job: Job) -> None:
    from django_jobs import run_job

    assert run_job(job.pk).completed == 1


def test_cancel_with_compensation_is_a_cancel_where_nothing_is_to_be_undone() -> None:
    assert jobs.echo.enqueue().cancel(compensate=True).status == "canceled"
    assert jobs.three_steps.enqueue(marks="/dev/null").cancel(compensate=True).status == "canceled"


# --- querysets, signals, async -----------------------------------------------------------------


def test_a_command_on_a_queryset_counts_and_changes_only_what_it_matches() -> None:
    pending = [make(Status.PENDING, "task") for _ in range(3)]
    make(Status.PAUSED, "task")
    make(Status.COMPLETED, "task")
    other = make(Status.PENDING, "workflow")
    counts = Job.objects.filter(slug="add").pause(actor="olga")
    assert (counts.changed, counts.unchanged, counts.refused) == (3, 1, 1)
    assert Job.objects.filter(pk__in=[job.pk for job in pending], status="paused").count() == 3
    assert Job.objects.get(pk=other.pk).status == "pending"
    assert WorkflowRun.objects.filter(status="pending").pause().changed == 1
    assert_sound()


def test_a_slice_and_a_union_can_be_commanded() -> None:
    for _ in range(4):
        jobs.echo.enqueue()
    assert Job.objects.order_by("-id")[:2].pause().changed == 2
    assert [job.status for job in Job.objects.order_by("id")] == ["pending"] * 2 + ["paused"] * 2
    both = Job.objects.filter(status="paused").union(Job.objects.filter(status="pending"))
    assert both.cancel().changed == 4


def test_the_manager_itself_has_no_commands() -> None:
    assert not hasattr(Job.objects, "cancel")
    assert not hasattr(Job.objects, "acancel")


def test_many_chunks_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_jobs.control.CHUNK", 2)
    jobs.echo.enqueue_many([{"value": n} for n in range(5)])
    assert Job.objects.filter(status="pending").pause().changed == 5
    assert Job.objects.filter(status="paused").resume().changed == 5
    assert Job.objects.all().cancel().changed == 5
    assert Job.objects.all().rerun().changed == 5
    assert Job.objects.filter(status="pending").count() == 5
    assert_sound()


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    known: list[tuple[str, str]] = []
    receivers: list[tuple[Any, Any]] = []
    for name in ("job_paused", "job_resumed", "job_canceled", "job_enqueued"):

        def hear(sender: Any, job: Job, name: str = name, **_: Any) -> None:
            assert sender is Job
            known.append((name, job.status))

        getattr(signals, name).connect(hear)
        receivers.append((getattr(signals, name), hear))
    yield known
    for signal, hear in receivers:
        signal.disconnect(hear)


@pytest.mark.django_db(transaction=True)
def test_signals_come_after_the_commit_and_only_for_a_change(heard: list[tuple[str, str]]) -> None:
    job = jobs.echo.enqueue()
    heard.clear()
    with transaction.atomic():
        job.pause()
        assert heard == []
    job.pause()
    job.resume()
    Job.objects.filter(pk=job.pk).cancel()
    assert heard == [
        ("job_paused", "paused"),
        ("job_resumed", "pending"),
        ("job_canceled", "canceled"),
    ]
    job.refresh_from_db()
    job.rerun()
    assert heard[-1] == ("job_enqueued", "pending")


@pytest.mark.django_db(transaction=True)
def test_a_command_in_a_transaction_that_rolls_back_never_was() -> None:
    job = jobs.echo.enqueue()
    before = stored(job)
    with pytest.raises(RuntimeError), transaction.atomic():
        job.cancel()
        raise RuntimeError
    assert stored(job) == before


@pytest.mark.django_db(transaction=True)
def test_every_command_has_an_async_twin() -> None:
    async def all_of_them(job: Job) -> list[Any]:
        said: list[Any] = [(await job.apause()).status, (await job.aresume()).status]
        said += [(await job.arun_now()).status, (await job.acancel("so")).status]
        again = await job.arerun()
        chosen = Job.objects.filter(pk=again.pk)
        for twin in ("apause", "aresume", "aretry", "arun_now", "acancel", "arerun"):
            counts = await getattr(chosen, twin)()
            said.append((counts.changed, counts.unchanged, counts.refused))
        return said

    assert asyncio.run(all_of_them(jobs.echo.enqueue())) == [
        "paused", "pending", "pending", "canceled",
        (1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 0), (1, 0, 0), (1, 0, 0),
    ]  # fmt: skip
    failed = make(Status.FAILED, "task")
    assert asyncio.run(failed.aretry()).status == "pending"


def test_a_job_that_never_was_changes_nothing() -> None:
    assert Job.objects.filter(pk=uuid4()).cancel().changed == 0
