"""Sleeps, events and child runs with the clock moved: what they return, record, refuse and survive."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from django_jobs import (
    Concurrency,
    InvalidInput,
    InvalidTransition,
    JobCanceled,
    JobFailed,
    TaskContext,
    WorkflowContext,
    run_job,
    send_event,
    task,
    workflow,
)
from django_jobs.models import Event, Job, TaskStatus
from django_jobs.testing import clock, drain
from tests.app.workflows import approval, invoice, sleeper, with_invoice
from tests.control.rows import assert_folds, assert_sound

pytestmark = pytest.mark.django_db
START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def frozen() -> None:
    clock.freeze(START)


def now(job: Job, status: str) -> Job:
    job.refresh_from_db()
    assert job.status == status, (job.status, job.error)
    return job


def sound(*jobs: Job) -> None:
    assert_sound()
    for job in jobs:
        job.refresh_from_db()
        assert_folds(job)


# --- sleeps -----------------------------------------------------------------------------------


def test_a_sleep_ends_the_pass_and_wakes_at_its_moment() -> None:
    job = sleeper.enqueue(days=30)
    assert drain().waiting == 1
    now(job, "sleeping")
    assert job.run_after == START + 30 * DAY
    assert job.task_status["sleep"]["cool-off"]["status"] == "sleeping"
    clock.freeze(START + 30 * DAY - timedelta(microseconds=1))
    drain()
    now(job, "sleeping")
    clock.freeze(START + 30 * DAY)
    drain()
    assert now(job, "completed").output == "awake"
    assert job.task_status["sleep"]["cool-off"] == {
        "input": {"seconds": 30 * 86400.0}, "output": None, "complete": True, "total_tried": 1, "error": None,
        "status": "completed",
    }  # fmt: skip
    assert (job.attempts, job.run_after) == (1, None)
    sound(job)


def test_drain_until_moves_the_clock_through_sleeps() -> None:
    job = sleeper.enqueue(days=30)
    drain(until=31 * DAY)
    now(job, "completed")
    assert job.finished_at == START + 30 * DAY


def test_i6_a_pause_does_not_move_the_wake_up() -> None:
    job = sleeper.enqueue(days=10)
    drain()
    job.refresh_from_db()
    job.pause()
    clock.travel(4 * DAY)
    job.resume()
    drain()
    assert now(job, "sleeping").run_after == START + 10 * DAY
    job.pause()
    clock.travel(20 * DAY)
    drain()
    now(job, "paused").resume()
    drain()
    now(job, "completed")
    sound(job)


def test_run_now_wakes_no_durable_wait() -> None:
    job = sleeper.enqueue(days=10)
    drain()
    job.refresh_from_db()
    job.run_now()
    drain()
    assert now(job, "sleeping").run_after == START + 10 * DAY


def test_sleep_until_takes_a_moment_and_one_that_has_passed_is_now() -> None:
    @workflow("test.until")
    def until(run: WorkflowContext) -> str:
        run.sleep_until("past", START - DAY)
        run.sleep_until("later", START + DAY)
        return run.job.status

    job = until.enqueue()
    drain()
    assert now(job, "sleeping").run_after == START + DAY
    assert job.task_status["sleep"]["past"]["complete"]
    drain(until=2 * DAY)
    now(job, "completed")
    sound(job)


@pytest.mark.parametrize("wrong", ["1 day", None, -1, float("nan"), True])
def test_a_sleep_takes_a_duration(wrong: Any) -> None:
    @workflow("test.wrong")
    def flow(run: WorkflowContext) -> None:
        run.sleep("cool-off", wrong)

    job = flow.enqueue()
    drain()
    error = now(job, "failed").error or {}
    assert error["type"] == "django_jobs.errors.InvalidInput"
    assert "duration" in error["message"]
    assert not TaskStatus.objects.filter(job=job).exists()


@pytest.mark.parametrize("kind", ["sleep", "event", "child"])
def test_a_wait_inside_of_a_step_is_refused(kind: str) -> None:
    @workflow("test.inside")
    def flow(run: WorkflowContext) -> None:
        def step() -> None:
            if kind == "sleep":
                run.sleep("wait", 1)
            elif kind == "event":
                run.wait_for_event("wait", "go")
            else:
                run.child("wait", sleeper, days=1)

        run.inline("outer", step, retries=5)

    job = flow.enqueue()
    drain()
    error = now(job, "failed").error or {}
    assert f"{kind} inside step 'outer'" in error["message"]
    assert "ConfigurationError" in error["message"]
    assert [step.step_id for step in job.steps.all()] == ["outer"]
    assert Job.objects.count() == 1


def test_a_task_cannot_wait() -> None:
    @task("test.waiting_task", takes_context=True)
    def waits(context: TaskContext) -> None:
        context.task("child", sleeper, days=1)

    job = waits.enqueue()
    drain()
    assert "Only a workflow can wait" in (now(job, "failed").error or {})["message"]


# --- events -----------------------------------------------------------------------------------


def test_an_event_wakes_the_run_that_waits_for_it() -> None:
    job = approval.enqueue()
    other = approval.enqueue()
    drain()
    assert now(job, "sleeping").run_after is None
    assert send_event("order.approved", {"by": "olga"}, to=job) == [job.pk]
    now(job, "pending")
    now(other, "sleeping")
    drain()
    assert now(job, "completed").output == {"by": "olga"}
    assert job.task_status["event"]["approval"]["output"] == {"by": "olga"}
    now(other, "sleeping")
    sound(job, other)


def test_an_event_of_another_name_is_kept_and_wakes_nobody() -> None:
    job = approval.enqueue()
    drain()
    send_event("order.refused", to=job.pk)
    now(job, "sleeping")
    assert Event.objects.get(job=job).step_key is None


def test_i4_an_event_sent_before_the_wait_is_kept_and_each_is_consumed_once_oldest_first() -> None:
    @workflow("test.three_events")
    def flow(run: WorkflowContext) -> list[Any]:
        return [run.wait_for_event(f"wait {n}", "go", timeout=DAY) for n in range(3)]

    job = flow.enqueue()
    send_event("go", 1, to=job)
    send_event("go", 2, to=str(job.pk))
    drain(until=2 * DAY)
    assert now(job, "completed").output == [1, 2, None]
    assert set(Event.objects.values_list("step_key", flat=True)) == {
        step.step_key for step in job.steps.filter(step_id__in=["wait 0", "wait 1"])
    }
    sound(job)


def test_a_wait_that_times_out_returns_the_default_on_every_pass() -> None:
    nothing = object()
    seen: list[Any] = []

    @workflow("test.default")
    def flow(run: WorkflowContext) -> bool:
        answer = run.wait_for_event("approval", "order.approved", timeout=7 * DAY, default=nothing)
        seen.append(answer)
        run.sleep("more", 1)
        return answer is nothing

    job = flow.enqueue()
    drain()
    assert now(job, "sleeping").run_after == START + 7 * DAY
    drain(until=8 * DAY)
    assert now(job, "completed").output is True
    assert seen == [nothing, nothing]
    sound(job)


def test_a_payload_of_none_is_no_timeout() -> None:
    job = approval.enqueue(days=1)
    drain()
    send_event("order.approved", to=job)
    drain()
    assert now(job, "completed").output is None


def test_i4_an_event_after_the_limit_is_too_late_however_late_the_run_looks() -> None:
    job = approval.enqueue(days=7)
    drain()
    clock.freeze(START + 7 * DAY + timedelta(seconds=1))
    send_event("order.approved", "late", to=job)
    drain()
    assert now(job, "completed").output == "nobody"
    assert Event.objects.get().step_key is None


def test_i4_an_event_within_the_limit_counts_however_late_the_run_looks() -> None:
    job = approval.enqueue(days=7)
    drain()
    clock.freeze(START + 7 * DAY)
    send_event("order.approved", "in time", to=job)
    clock.travel(DAY)
    drain()
    assert now(job, "completed").output == "in time"


def test_a_key_counts_once_for_each_receiver() -> None:
    job, other = approval.enqueue(), approval.enqueue()
    drain()
    for _ in range(3):
        assert send_event("order.approved", "yes", to=job, key="delivery 7") == [job.pk]
    assert send_event("order.approved", "yes", to=other, key="delivery 7") == [other.pk]
    assert Event.objects.count() == 2
    drain()
    now(job, "completed")
    # Known already: no transition is asked for.
    assert send_event("order.approved", "yes", to=job, key="delivery 7") == [job.pk]


def test_without_a_receiver_all_who_wait_now_get_it_and_nothing_is_kept() -> None:
    waiting = [approval.enqueue() for _ in range(3)]
    drain()
    paused = waiting[2]
    paused.refresh_from_db()
    paused.pause()
    late = approval.enqueue()
    assert set(send_event("order.approved", "all")) == {job.pk for job in waiting}
    # They have what they wait for, though none has looked yet.
    assert send_event("order.approved", "again") == []
    drain()
    assert [now(job, "completed").output for job in waiting[:2]] == ["all", "all"]
    now(late, "sleeping")
    now(paused, "paused").resume()
    drain()
    assert now(paused, "completed").output == "all"
    sound(*waiting, late)


def test_a_repeated_key_without_a_receiver_returns_the_first_list() -> None:
    job = approval.enqueue()
    drain()
    assert send_event("nobody.waits", key="k1") == []
    assert send_event("order.approved", 1, key="k2") == [job.pk]
    drain()
    other = approval.enqueue()
    drain()
    assert send_event("order.approved", 2, key="k2") == [job.pk]
    assert send_event("order.approved", 2, key="k1") == []
    now(other, "sleeping")


def test_i4_an_event_to_a_finished_run_is_refused_with_its_status() -> None:
    job = approval.enqueue()
    job.cancel()
    with pytest.raises(InvalidTransition, match="canceled"):
        send_event("order.approved", to=job)
    assert not Event.objects.exists()


def test_an_event_that_cannot_be_stored_is_refused_and_nothing_is_written() -> None:
    @task("test.no_run")
    def plain() -> None: ...

    job = approval.enqueue()
    for wrong in (
        {"name": "", "to": job},
        {"name": "x" * 201, "to": job},
        {"name": "go", "payload": {"n": float("nan")}, "to": job},
        {"name": "go", "payload": object(), "to": job},
        {"name": "go", "payload": "x" * 70_000, "to": job},
        {"name": "go", "to": job, "key": ""},
        {"name": "go", "to": "no id"},
        {"name": "go", "to": plain.enqueue()},
    ):
        with pytest.raises(InvalidInput):
            send_event(**wrong)  # type: ignore[arg-type]
    with pytest.raises(Job.DoesNotExist):
        send_event("go", to="00000000-0000-7000-8000-000000000000")
    assert not Event.objects.exists()


def test_an_event_while_the_run_is_paused_is_kept() -> None:
    job = approval.enqueue()
    drain()
    job.refresh_from_db()
    job.pause()
    send_event("order.approved", "yes", to=job)
    drain()
    now(job, "paused").resume()
    drain()
    assert now(job, "completed").output == "yes"


def test_an_event_does_not_shorten_the_wait_for_a_next_try() -> None:
    tried: list[datetime] = []

    @task("test.flaky_beside", retries=1)
    def flaky() -> None:
        tried.append(clock.now())
        if len(tried) == 1:
            raise OSError("no")

    @workflow("test.beside")
    def flow(run: WorkflowContext) -> Any:
        return run.gather(run.call("wait", run.wait_for_event, "go"), run.call("flaky", flaky))

    job = flow.enqueue()
    drain()
    send_event("go", 1, to=job)
    drain()
    assert (now(job, "sleeping").gate, len(tried)) == ("timer", 1)
    drain(until=DAY)
    assert now(job, "completed").output == [1, None]
    assert len(tried) == 2
    sound(job)


# --- several waits at once --------------------------------------------------------------------


def test_several_waits_park_until_the_first_that_is_due() -> None:
    passes: list[datetime] = []

    @workflow("test.several")
    def flow(run: WorkflowContext) -> Any:
        passes.append(clock.now())
        return run.gather(
            run.call("short", run.sleep, DAY),
            run.call("long", run.sleep_until, START + 3 * DAY),
            run.call("event", run.wait_for_event, "go", timeout=5 * DAY, default="nobody"),
        )

    job = flow.enqueue()
    drain()
    assert now(job, "sleeping").run_after == START + DAY
    drain(until=2 * DAY)
    assert now(job, "sleeping").run_after == START + 3 * DAY
    send_event("go", "came", to=job)
    drain()
    assert now(job, "sleeping").run_after == START + 3 * DAY
    drain(until=2 * DAY)
    assert now(job, "completed").output == [None, None, "came"]
    assert passes == [START, START + DAY, START + 2 * DAY, START + 3 * DAY]
    sound(job)


def test_async_waits_park_together_and_steps_beside_them_are_run() -> None:
    @task("test.beside_async")
    async def double(n: int) -> int:
        return 2 * n

    @workflow("test.several_async")
    async def flow(run: WorkflowContext) -> Any:
        return await asyncio.gather(
            run.sleep("nap", DAY),
            run.wait_for_event("event", "go"),
            run.task("double", double, n=4),
            run.child("child", sleeper, days=2),
        )

    job = flow.enqueue()
    drain()
    assert now(job, "sleeping").run_after == START + DAY
    assert job.task_status["test.beside_async"]["double"]["output"] == 8
    send_event("go", "came", to=job)
    drain(until=4 * DAY)
    assert now(job, "completed").output == [None, "came", 8, "awake"]
    sound(job)


def test_a_wait_that_the_code_no_longer_asks_for_does_not_keep_the_run_awake() -> None:
    asked = ["old"]

    @workflow("test.changed")
    def flow(run: WorkflowContext) -> None:
        run.sleep(asked[0], 10 * DAY if asked[0] == "old" else 30 * DAY)

    job = flow.enqueue()
    drain()
    asked[0] = "new"
    report = drain(until=20 * DAY)
    assert (report.waiting, now(job, "sleeping").run_after) == (1, START + 40 * DAY)


# --- child runs -------------------------------------------------------------------------------


def test_a_child_is_a_job_of_its_own_and_its_typed_output_comes_back() -> None:
    job = with_invoice.using(queue_name="orders").enqueue(order_id=2)
    drain()
    child = Job.objects.get(parent=job)
    assert (child.slug, child.status, child.queue_name) == ("invoice", "sleeping", "orders")
    assert now(job, "sleeping").run_after is None
    record = job.task_status["invoice"]["invoice"]
    assert (record["status"], record["input"]["order_id"]) == ("sleeping", 2)
    drain(until=2 * DAY)
    assert now(job, "completed").output == "3.00"
    assert job.steps.get().child == child.pk
    assert Job.objects.count() == 2
    sound(job, child)


def test_a_child_that_fails_fails_its_parent_for_good_and_a_retry_retries_the_child() -> None:
    kept: list[str] = []

    @task("test.once_in_child")
    def once() -> None:
        kept.append("ran")

    @workflow("test.moody")
    def moody(run: WorkflowContext) -> str:
        run.task("once", once)
        if len(kept) == 1:
            kept.append("failed")
            raise ValueError("not today")
        return "well"

    @workflow("test.hopeful", retries=3)
    def hopeful(run: WorkflowContext) -> Any:
        return run.child("moody", moody)

    job = hopeful.enqueue()
    drain(until=DAY)
    error = now(job, "failed").error or {}
    assert "test.moody/moody failed: ValueError: not today" in error["message"]
    assert (error["step_id"], job.attempts) == ("moody", 1)
    child = Job.objects.get(parent=job)
    job.retry()
    drain()
    assert now(job, "completed").output == "well"
    now(child, "completed")
    assert kept == ["ran", "failed"]
    assert Job.objects.filter(parent=job).count() == 1
    sound(job, child)


def test_the_failure_of_a_child_can_be_caught_and_is_the_same_on_every_pass() -> None:
    seen: list[tuple[type, str, Any]] = []

    @workflow("test.catches")
    def catches(run: WorkflowContext) -> str:
        try:
            run.child("invoice", invoice, order_id=-1)
        except JobFailed as error:
            seen.append((type(error), str(error), error.error))
        run.sleep("more", DAY)
        return "went on"

    job = catches.enqueue()
    drain(until=5 * DAY)
    assert now(job, "completed").output == "went on"
    assert seen[0] == seen[1]
    assert seen[0][2]["message"] == "no order -1"


def test_a_canceled_child_is_a_failure_of_its_own_kind_and_a_retry_starts_another() -> None:
    job = with_invoice.enqueue(order_id=2)
    drain()
    child = Job.objects.get(parent=job)
    child.cancel("not needed")
    now(job, "pending")
    drain()
    error = now(job, "failed").error or {}
    assert error["type"] == "django_jobs.errors.JobCanceled"
    assert "not needed" in error["message"]
    job.retry()
    drain(until=3 * DAY)
    assert now(job, "completed").output == "3.00"
    assert Job.objects.filter(parent=job).count() == 2
    with pytest.raises(JobCanceled):
        child.result()
    sound(job, child)


def test_a_wait_for_a_child_has_a_limit_and_the_child_goes_on() -> None:
    @workflow("test.impatient")
    def impatient(run: WorkflowContext) -> Any:
        return run.child("invoice", invoice, order_id=2, timeout=3600)

    job = impatient.enqueue()
    drain()
    assert now(job, "sleeping").run_after == START + timedelta(hours=1)
    drain(until=timedelta(hours=2))
    error = now(job, "failed").error or {}
    assert "timed out" in error["message"]
    assert job.task_status["invoice"]["invoice"]["error"]["code"] == "timeout"
    child = Job.objects.get(parent=job)
    now(child, "sleeping")
    drain(until=2 * DAY)
    now(child, "completed")
    sound(job, child)


def test_map_and_call_with_a_workflow_start_child_runs() -> None:
    @workflow("test.many")
    def many(run: WorkflowContext) -> list[Decimal]:
        first = run.map("invoice", invoice, [1, {"order_id": 2, "amount": "2.25"}, 3])
        [last] = run.gather(run.call("last", invoice, order_id=4))
        return [*first, last]

    job = many.enqueue()
    drain()
    assert Job.objects.filter(parent=job, status="sleeping").count() == 3
    drain(until=5 * DAY)
    assert now(job, "completed").output == ["1.50", "4.50", "4.50", "6.00"]
    assert set(job.task_status["invoice"]) == {"invoice:0", "invoice:1", "invoice:2", "last"}
    sound(job)


def test_a_bad_input_of_a_child_is_an_error_of_the_runs_own_code() -> None:
    @workflow("test.wrong_child")
    def flow(run: WorkflowContext) -> None:
        run.child("invoice", invoice, order_id="many")

    job = flow.enqueue()
    drain()
    assert (now(job, "failed").error or {})["type"] == "django_jobs.errors.InvalidInput"
    assert Job.objects.count() == 1


@pytest.mark.parametrize("cascade", [False, True])
def test_a_canceled_parent_takes_its_children_along_only_with_cascade(cascade: bool) -> None:
    @workflow("test.grandparent")
    def grandparent(run: WorkflowContext) -> Any:
        return run.child("parent", with_invoice, order_id=2)

    job = grandparent.enqueue()
    drain()
    job.refresh_from_db()
    job.cancel("enough", cascade=cascade)
    below = Job.objects.exclude(pk=job.pk)
    assert set(below.values_list("status", flat=True)) == {"canceled" if cascade else "sleeping"}
    drain(until=3 * DAY)
    statuses = sorted(below.values_list("status", flat=True))
    assert statuses == (["canceled", "canceled"] if cascade else ["completed", "completed"])
    sound(job, *below)


def test_a_task_may_be_a_child_and_one_that_its_key_drops_is_canceled() -> None:
    @task("test.exclusive", concurrency=Concurrency(key="one", on_conflict="drop"))
    def exclusive(n: int) -> int:
        return n + 1

    @workflow("test.with_task")
    def flow(run: WorkflowContext) -> Any:
        return run.child("first", exclusive, n=1)

    job = flow.enqueue()
    drain()
    assert now(job, "completed").output == 2
    assert Job.objects.get(parent=job).kind == "task"
    holder = exclusive.enqueue(n=3)
    other = flow.enqueue()
    run_job(other.pk)
    error = now(other, "failed").error or {}
    assert error["type"] == "django_jobs.errors.JobCanceled"
    assert str(holder.pk) in error["message"]


# --- another kind under a stored id -----------------------------------------------------------


@pytest.mark.parametrize("later", ["sleep", "event", "child", "task"])
@pytest.mark.parametrize("first", ["sleep", "event", "child", "task"])
def test_i7_a_stored_id_stays_of_its_kind(first: str, later: str) -> None:
    asked = [first]

    @workflow("test.kinds")
    def flow(run: WorkflowContext) -> None:
        match asked[0]:
            case "sleep":
                run.sleep("step", DAY)
            case "event":
                run.wait_for_event("step", "go")
            case "child":
                run.child("step", sleeper, days=1)
            case _:
                run.inline("step", lambda: 1)
        run.sleep("after", DAY)

    job = flow.enqueue()
    drain()
    asked[0] = later
    job.refresh_from_db()
    job.pause()
    job.resume()
    drain()
    if first == later:
        now(job, "sleeping")
    else:
        error = now(job, "paused").error or {}
        assert error["type"].endswith("NonDeterministic")
        assert "'step'" in error["message"]
    assert_sound()


# --- lost wake-ups ----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["event", "child", "cancel of the child", "nothing"])
def test_what_comes_between_the_last_look_and_falling_asleep_is_not_missed(what: str) -> None:
    @workflow("test.late_look")
    def flow(run: WorkflowContext) -> Any:
        try:
            if what == "event":
                return run.wait_for_event("wait", "go")
            return run.child("child", approval)
        except JobFailed as error:
            return type(error).__name__
        except BaseException:
            # The pass has found nothing, and its end is not written yet.
            child = Job.objects.filter(parent=run.job).first()
            if what == "event":
                send_event("go", "just in time", to=run.job)
            elif what == "cancel of the child" and child is not None:
                child.cancel()
            elif what == "child" and child is not None:
                send_event("order.approved", "just in time", to=child)
                run_job(child.pk)
            raise

    job = flow.enqueue()
    run_job(job.pk)
    now(job, "sleeping" if what == "nothing" else "pending")
    if what != "nothing":
        drain()
        assert now(job, "completed").output in ("just in time", "JobCanceled")
    sound(job)
