"""The history of a job: what is printed folds to what is stored (S3)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_jobs import (
    CancelJob,
    Concurrency,
    Retry,
    RetryLater,
    TaskContext,
    WorkflowContext,
    task,
    workflow,
)
from django_jobs.models import Attempt, HistoryEntry, Job, TaskStatus
from django_jobs.observe.history import Entry, entries, fold
from django_jobs.store.session import Session
from django_jobs.testing import clock, drain
from django_jobs.worker.sweep import sweep
from tests.app import jobs
from tests.examples import examples
from tests.observe.life import Life
from tests.testing.helpers import kill_holder

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("jobs_clock", "jobs_registry"),
]


def assert_folds(job: Job) -> list[Entry]:
    """The printed history alone gives the stored state; return it."""
    job.refresh_from_db()
    history = entries(job)
    printed = [json.loads(json.dumps(entry.as_dict())) for entry in history]
    assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))
    state = fold(Entry.of(line) for line in printed)
    assert state.faults == []
    assert (state.status, state.attempts, state.crashes) == (job.status, job.attempts, job.crashes)
    stored = {f"{s.slug}/{s.step_id}": (s.status, s.total_tried) for s in job.steps.all()}
    assert {name: (step.status, step.tried) for name, step in state.steps.items()} == stored
    return history


def events(history: list[Entry]) -> list[str]:
    return [entry.event for entry in history]


# --- whatever happens -------------------------------------------------------------------------


def lives() -> Any:
    names = [
        "claim", "claim", "claim", "complete", "try again", "later", "fail", "corrupt", "cancel itself", "sleep",
        "park", "hand back", "callback fails", "callback of step fails", "crash", "crash", "pause", "resume",
        "resume", "cancel", "retry", "retry", "start a", "start a", "complete a", "step a fails",
        "step a fails for good", "start b", "complete b", "a moment passes", "a moment passes",
    ]  # fmt: skip
    return st.lists(st.sampled_from(names), max_size=25)


@settings(
    max_examples=examples(30, 10), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lives(), st.booleans())
def test_s3_whatever_happens_the_history_folds_to_the_stored_state(
    happened: list[str], is_workflow: bool
) -> None:
    clock.freeze(NOON)
    job = jobs.three_steps.enqueue(marks="") if is_workflow else jobs.add.enqueue(a=1, b=2)
    life = Life(job)
    assert_folds(job)
    for event in happened:
        life.happen(event)
        assert_folds(job)


# --- lives as the engine leads them -----------------------------------------------------------


def test_a_job_that_goes_straight_through_has_its_three_entries_without_a_row() -> None:
    clock.freeze(NOON)
    job = jobs.add.enqueue(a=1, b=2)
    clock.travel(timedelta(seconds=1))
    drain()
    history = assert_folds(job)
    assert HistoryEntry.objects.count() == 0
    assert [(e.event, e.frm, e.to, (e.at - NOON).total_seconds()) for e in history] == [
        ("enqueued", None, "pending", 0), ("claimed", "pending", "running", 1),
        ("completed", "running", "completed", 1),
    ]  # fmt: skip
    assert history[2].worker is not None


def test_retries_until_success(tmp_path: Path) -> None:
    job = jobs.flaky.enqueue(marks=str(tmp_path / "marks"), failures=2)
    drain()
    assert events(assert_folds(job)) == [
        "enqueued", "claimed", "retrying", "claimed", "retrying", "claimed", "completed",
    ]  # fmt: skip


def test_later_uses_no_attempt() -> None:
    asked: list[int] = []

    @task
    def not_yet() -> None:
        asked.append(1)
        if len(asked) < 3:
            raise RetryLater(0)

    job = not_yet.enqueue()
    drain()
    history = assert_folds(job)
    assert (events(history).count("later"), job.attempts) == (2, 1)


def test_a_job_that_cancels_itself() -> None:
    @task
    def stop() -> None:
        raise CancelJob("no need")

    job = stop.enqueue()
    drain()
    assert events(assert_folds(job)) == ["enqueued", "claimed", "canceled"]


def test_crashes_up_to_the_limit() -> None:
    clock.freeze(NOON)
    job = jobs.add.enqueue(a=1, b=2)
    for _ in range(3):
        kill_holder(job)
        clock.travel(timedelta(minutes=1))
        sweep(Session())
    history = assert_folds(job)
    assert (job.status, job.crashes, job.attempts) == ("failed", 3, 0)
    assert events(history) == [
        "enqueued", "claimed", "taken_back", "claimed", "taken_back", "claimed", "crashed",
    ]  # fmt: skip


def test_a_corrupt_row_has_no_attempt() -> None:
    job = jobs.add.enqueue(a=1, b=2)
    Job.objects.filter(pk=job.pk).update(input=[1])
    drain()
    history = assert_folds(job)
    assert (job.status, job.attempts, events(history)[-1]) == ("failed", 0, "failed")


def test_a_workflow_with_steps_that_fail_and_succeed() -> None:
    left = {"flaky": 2, "hopeless": 9}

    @task(retries=Retry(max_attempts=3, delay=0, jitter=0))
    def try_it(name: str) -> str:
        left[name] -= 1
        if left[name] >= 0:
            raise ValueError(name)
        return name

    @workflow
    def attempts_of_both(run: WorkflowContext) -> str:
        run.task("good", try_it, name="flaky")
        try:
            run.task("bad", try_it, name="hopeless")
        except Exception:
            return str(run.inline("rescue", lambda: "rescued"))
        return ""

    job = attempts_of_both.enqueue()
    drain()
    history = assert_folds(job)
    assert job.output == "rescued"
    of_steps = [(entry.event, entry.step) for entry in history if entry.step is not None]
    assert of_steps == [
        ("step_started", "try_it/good"), ("step_pending", "try_it/good"), ("step_pending", "try_it/good"),
        ("step_completed", "try_it/good"), ("step_started", "try_it/bad"), ("step_pending", "try_it/bad"),
        ("step_pending", "try_it/bad"), ("step_failed", "try_it/bad"), ("step_started", "inline/rescue"),
        ("step_completed", "inline/rescue"),
    ]  # fmt: skip


def test_nested_steps_and_their_parents() -> None:
    left = [1]

    @task(retries=Retry(max_attempts=3, delay=0, jitter=0))
    def inner() -> int:
        if left and left.pop():
            raise ValueError
        return 1

    @task(takes_context=True, retries=Retry(max_attempts=3, delay=0, jitter=0))
    def outer(context: TaskContext) -> int:
        return int(context.task("inner", inner))

    @workflow
    def nest(run: WorkflowContext) -> int:
        return int(run.task("outer", outer))

    job = nest.enqueue()
    drain()
    history = assert_folds(job)
    assert job.output == 1
    assert fold(history).steps["inner/outer/inner"].tried == 2


def test_a_step_that_runs_anew_on_every_pass() -> None:
    left = [1]

    @task(retries=Retry(max_attempts=9, delay=0, jitter=0, restore=False))
    def look() -> int:
        return len(left)

    @task(retries=Retry(max_attempts=9, delay=0, jitter=0))
    def once_broken() -> None:
        if left and left.pop():
            raise ValueError

    @workflow
    def anew(run: WorkflowContext) -> int:
        seen = run.task("look", look)
        run.task("broken", once_broken)
        return int(seen)

    job = anew.enqueue()
    drain()
    assert_folds(job)
    assert job.output == 0


def test_the_error_of_a_callback_stands_behind_the_end() -> None:
    def complain(*_: object) -> None:
        raise RuntimeError("callback")

    @task(on_success=complain)
    def fine() -> int:
        return 1

    @workflow
    def with_step(run: WorkflowContext) -> int:
        return int(run.task("fine", fine))

    plain, run = fine.enqueue(), with_step.enqueue()
    drain()
    assert events(assert_folds(plain)) == ["enqueued", "claimed", "completed", "callback_failed"]
    history = [entry for entry in assert_folds(run) if not entry.event.startswith("step_")]
    assert events(history) == ["enqueued", "claimed", "callback_failed", "completed"]


def test_superseded_and_dropped_jobs() -> None:
    @task(concurrency=Concurrency(key="newest", supersedes=True))
    def refresh() -> None: ...

    @task(concurrency=Concurrency(key="single", on_conflict="drop"))
    def single() -> None: ...

    old, new = refresh.enqueue(), refresh.enqueue()
    kept, dropped = single.enqueue(), single.enqueue()
    assert events(assert_folds(old)) == ["enqueued", "superseded"]
    assert events(assert_folds(dropped)) == ["enqueued", "canceled"]
    drain()
    for job in (new, kept):
        assert events(assert_folds(job)) == ["enqueued", "claimed", "completed"]


def test_a_result_that_came_while_the_job_was_paused_is_kept() -> None:
    life = Life(jobs.add.enqueue(a=1, b=2))
    for event in ("claim", "pause", "complete", "resume", "claim"):
        life.happen(event)
    history = assert_folds(life.job)
    assert "handed_back" in events(history)
    assert list(fold(history).steps) == ["add/"]


def test_a_contradiction_is_named() -> None:
    job = jobs.add.enqueue(a=1, b=2)
    drain()
    enqueued, _claimed, completed = entries(job)
    assert fold([enqueued, completed]).faults == [
        "entry 2 has the number 3",
        "entry 3 (completed) takes the job from running, but it is pending",
    ]


# --- the command ------------------------------------------------------------------------------


def printed(*arguments: str) -> list[dict[str, Any]]:
    out = StringIO()
    call_command("jobs_history", *arguments, stdout=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_the_command_prints_one_object_a_line_ordered_by_job_and_number() -> None:
    made = [jobs.add.enqueue(a=1, b=2), jobs.fail.enqueue()]
    drain()
    lines = printed()
    assert [line["job"] for line in lines] == [str(job.pk) for job in made for _ in range(3)]
    assert [line["n"] for line in lines] == [1, 2, 3, 1, 2, 3]
    assert set(lines[0]) == {
        "job", "n", "at", "event", "from", "to", "step", "attempt", "fence", "worker", "actor", "detail",
    }  # fmt: skip
    assert lines[5]["detail"]["error"]["message"] == "broken"
    assert lines[0]["at"] == pytest.approx(made[0].created_at.timestamp())


@pytest.mark.parametrize("option", [["--job"], []])
def test_the_command_prints_one_job(option: list[str]) -> None:
    jobs.add.enqueue(a=1, b=2)
    job = jobs.add.enqueue(a=1, b=2)
    assert [line["job"] for line in printed(*option, str(job.pk))] == [str(job.pk)]


@pytest.mark.parametrize("name", ["nothing", "0193b4c8-0000-7000-8000-000000000000"])
def test_an_unknown_job_is_an_error(name: str) -> None:
    with pytest.raises(CommandError, match="There is no job"):
        printed(name)


def test_every_page_is_printed() -> None:
    jobs.add.enqueue_many([{"a": n, "b": 1} for n in range(450)])
    assert len({line["job"] for line in printed()}) == 450


def test_the_history_of_one_job_needs_few_statements(
    django_assert_max_num_queries: Any,
) -> None:
    jobs.add.enqueue_many([{"a": n, "b": 1} for n in range(100)])
    with django_assert_max_num_queries(6):
        printed()
    assert Attempt.objects.count() == TaskStatus.objects.count() == 0
