"""Code workflows: nested steps, caught failures, several at once, limits, ids, what is stored."""

from __future__ import annotations

import itertools
import logging
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from django_jobs import (
    DuplicateStepId,
    JobFailed,
    TaskContext,
    UnknownTask,
    WorkflowContext,
    run_jobs,
    task,
    workflow,
)
from django_jobs.definitions.task import Definition
from django_jobs.lifecycle import Status
from django_jobs.models import Attempt, Job, LogLine, TaskStatus
from django_jobs.outcomes import Completed, Failed
from django_jobs.store import history
from django_jobs.store.session import Session
from django_jobs.testing import clock, drain, registry
from django_jobs.workflows import attempt

pytestmark = pytest.mark.django_db
LONG = timedelta(hours=10)


@pytest.fixture(autouse=True)
def frozen() -> None:
    clock.freeze(datetime(2030, 1, 1, tzinfo=UTC))


def ended(job: Job, status: str) -> Job:
    job.refresh_from_db()
    assert job.status == status, job.error
    return job


def pause_under_way(job: Job) -> None:
    """What an operator's pause does to a job while its handler runs."""
    moved = Session().committed(
        lambda s: history.move(
            s, job.pk, event="paused", frm=[Status.RUNNING], to=Status.PAUSED, sets="gate = 'open'"
        )
    )
    assert moved == 1


# --- steps within steps -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("child", "parent", "run"), list(itertools.product([0, 1, 3], [0, 2, 3], [None, 0, 2, 9]))
)
def test_a_nested_step_has_the_tries_that_it_its_parent_and_the_run_allow(
    child: int, parent: int, run: int | None
) -> None:
    """1 + min(T child, T parent, W); each failure is one of the child and one of the parent."""
    told: list[tuple[str, int, bool]] = []
    tried: list[int] = []

    def teller(name: str) -> Any:
        return lambda context, error, final: told.append((name, context.attempt, final))

    @task("test.child", retries=child, on_failure=teller("child"))
    def inner() -> None:
        tried.append(1)
        raise OSError("no")

    @task("test.parent", retries=parent, takes_context=True, on_failure=teller("parent"))
    def outer(context: TaskContext) -> None:
        context.task("child", inner)

    @workflow("test.nested", retries=run)
    def flow(context: WorkflowContext) -> None:
        context.task("parent", outer)

    job = flow.enqueue()
    drain(until=LONG)
    tries = 1 + min(child, parent, 99 if run is None else run)
    assert len(tried) == tries
    assert ended(job, "failed").attempts == tries
    assert job.task_status["test.child"]["parent/child"]["total_tried"] == tries
    assert job.task_status["test.parent"]["parent"]["total_tried"] == tries
    assert {step.status for step in job.steps.all()} == {"failed"}
    assert told == [
        (name, number, number == tries)
        for number in range(1, tries + 1)
        for name in ("child", "parent")
    ]
    by_step = Attempt.objects.filter(job=job, step__isnull=False)
    assert by_step.count() == 2 * tries


def test_two_failures_in_one_try_of_a_parent_are_one_failure_of_it() -> None:
    @task("test.child", retries=2)
    def inner() -> None:
        raise OSError("no")

    @task("test.parent", retries=2, takes_context=True)
    def outer(context: TaskContext) -> None:
        context.gather(context.call("a", inner), context.call("b", inner))

    @workflow("test.nested")
    def flow(context: WorkflowContext) -> None:
        context.task("parent", outer)

    job = flow.enqueue()
    drain(until=LONG)
    assert ended(job, "failed").attempts == 3
    assert job.task_status["test.parent"]["parent"]["total_tried"] == 3
    assert {s["total_tried"] for s in job.task_status["test.child"].values()} == {3}


def test_a_job_of_a_task_limits_the_tries_of_its_steps() -> None:
    tried: list[int] = []

    @task("test.child", retries=5)
    def inner() -> None:
        tried.append(1)
        raise OSError("no")

    @task("test.alone", retries=1, takes_context=True)
    def outer(context: TaskContext) -> None:
        context.task("child", inner)

    job = outer.enqueue()
    drain(until=LONG)
    assert (ended(job, "failed").attempts, len(tried)) == (2, 2)


def test_a_completed_child_of_a_failing_parent_is_not_run_again() -> None:
    """P5: no step starts after its record is committed."""
    ran: list[str] = []

    @task("test.child")
    def inner(word: str) -> None:
        ran.append(word)

    @task("test.parent", retries=2, takes_context=True)
    def outer(context: TaskContext) -> None:
        context.task("child", inner, word=f"{context.attempt}")
        raise OSError("no")

    @workflow("test.nested")
    def flow(context: WorkflowContext) -> None:
        context.task("left", outer)

    job = flow.enqueue()
    drain(until=LONG)
    assert ended(job, "failed").attempts == 3
    assert ran == ["1"]


# --- failures that are caught -----------------------------------------------------------------


def test_a_caught_failure_is_the_same_when_fresh_and_when_replayed() -> None:
    seen: list[tuple[Any, ...]] = []

    @task("test.fails", retries=0)
    def fails() -> None:
        raise OSError("the shop is closed")

    @workflow("test.catching", retries=3)
    def flow(run: WorkflowContext) -> str:
        try:
            run.task("step", fails)
        except JobFailed as error:
            cause = None if error.__cause__ is None else type(error.__cause__)
            seen.append((type(error), str(error), error.error, cause))
        if run.attempt < 3:
            raise KeyError("another pass")
        return "went on"

    job = flow.enqueue()
    drain(until=LONG)
    assert ended(job, "completed").output == "went on"
    assert [entry[3] for entry in seen] == [OSError, None, None]
    assert seen[0][:3] == seen[1][:3] == seen[2][:3]
    kind, text, error, _ = seen[0]
    assert kind is JobFailed
    assert "OSError: the shop is closed" in text
    assert set(error) == {"type", "message", "traceback", "code"}
    assert (error["type"], error["code"]) == ("builtins.OSError", None)
    assert job.task_status["test.fails"]["step"]["total_tried"] == 1


def test_a_failure_with_tries_left_is_not_for_the_handler_to_catch() -> None:
    """The pass ends there, and no step starts in a ``finally`` of it."""
    tried: list[str] = []

    @task("test.flaky", retries=1)
    def flaky() -> str:
        tried.append("step")
        if tried.count("step") == 1:
            raise OSError("no")
        return "second try"

    @workflow("test.swallowing")
    def flow(run: WorkflowContext) -> str:
        value = "nothing"
        try:
            value = run.task("step", flaky)
        except BaseException:
            value = "swallowed"
        finally:
            run.inline("clean-up", lambda: tried.append("clean-up"))
        return value

    job = flow.enqueue()
    assert drain().retried == 1
    assert (ended(job, "sleeping").error or {})["step_id"] == "step"
    drain(until=LONG)
    assert ended(job, "completed").output == "second try"
    assert tried == ["step", "step", "clean-up"]


def test_a_pass_that_ends_is_not_swallowed_by_a_handler_without_further_steps() -> None:
    tried: list[int] = []

    @task("test.flaky", retries=1)
    def flaky() -> None:
        tried.append(1)
        if len(tried) == 1:
            raise OSError("no")

    @task("test.parent", takes_context=True, retries=1)
    def parent(context: TaskContext) -> str:
        try:
            context.task("child", flaky)
        except BaseException:
            return "swallowed"
        return "done"

    @workflow("test.swallowing")
    def flow(run: WorkflowContext) -> str:
        try:
            return run.task("step", parent)  # type: ignore[no-any-return]
        except BaseException:
            return "swallowed"

    job = flow.enqueue()
    drain(until=LONG)
    assert ended(job, "completed").output == "done"
    assert (job.attempts, len(tried)) == (2, 2)


# --- several at once --------------------------------------------------------------------------


def test_siblings_of_a_failed_step_are_recorded() -> None:
    """P2: a finished step's result is never lost."""
    ran: list[str] = []

    @task("test.sibling")
    def sibling(word: str) -> str:
        ran.append(word)
        if word == "bad":
            raise OSError("no")
        return word

    @workflow("test.siblings", retries=1)
    def flow(run: WorkflowContext) -> list[str]:
        calls = [run.call(word, sibling, word=word) for word in ("a", "bad", "b")]
        calls[1] = run.call("bad", sibling, word="bad", retries=1)
        return run.gather(*calls)  # type: ignore[no-any-return]

    job = flow.enqueue()
    drain(until=LONG)
    assert ended(job, "failed").attempts == 2
    assert ran == ["a", "bad", "b", "bad"]
    states = {name: record["status"] for name, record in job.task_status["test.sibling"].items()}
    assert states == {"a": "completed", "bad": "failed", "b": "completed"}


@pytest.mark.django_db(transaction=True)
def test_steps_that_gather_steps_of_their_own_never_wait_for_a_full_pool() -> None:
    clock.reset()

    @task("test.leaf")
    def leaf(n: int) -> int:
        return n

    @task("test.branch", takes_context=True)
    def branch(context: TaskContext, n: int) -> int:
        return sum(context.map("leaf", leaf, range(n)))

    @workflow("test.tree")
    def tree(run: WorkflowContext) -> list[int]:
        return run.map("branch", branch, [4] * 24)  # type: ignore[no-any-return]

    job = tree.enqueue()
    run_jobs()
    assert ended(job, "completed").output == [6] * 24
    assert TaskStatus.objects.filter(job=job, status="completed").count() == 24 * 5


# --- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("caught", [False, True])
@pytest.mark.parametrize("how", ["in turn", "gather", "map", "nested"])
def test_i7_an_id_used_twice_fails_the_run_before_the_second_use(how: str, caught: bool) -> None:
    """I7: raised before the second use runs; asked together, neither runs; no retry mends it."""
    ran: list[str] = []

    @task("test.once", retries=5)
    def once(word: str) -> str:
        ran.append(word)
        return word

    @task("test.twice", takes_context=True, retries=5)
    def twice(context: TaskContext) -> None:
        context.task("id", once, word="first")
        context.task("id", once, word="second")

    @workflow("test.duplicate", retries=5)
    def flow(run: WorkflowContext) -> None:
        try:
            if how == "in turn":
                run.task("id", once, word="first")
                run.task("id", once, word="second")
            elif how == "gather":
                run.gather(run.call("id", once, word="a"), run.call("id", once, word="b"))
            elif how == "map":
                run.task("id:1", once, word="first")
                run.map("id", once, ["a", "b"])
            else:
                run.task("parent", twice)
        except (DuplicateStepId, JobFailed):
            if not caught:
                raise

    job = flow.enqueue()
    drain(until=LONG)
    ended(job, "failed")
    assert job.attempts == 1
    assert job.error["type"].endswith("DuplicateStepId")
    assert "id" in job.error["message"]
    assert ran == ([] if how == "gather" else ["first"])
    if how == "in turn":
        assert job.task_status["test.once"]["id"]["output"] == "first"


def test_i7_another_kind_under_a_stored_id_parks_the_run() -> None:
    """I7: nothing runs; the run is paused with the reason, and resumes when the code is back."""
    ran: list[str] = []

    @task("test.kind")
    def step(word: str) -> None:
        ran.append(word)

    @workflow("test.kinds", retries=3)
    def flow(run: WorkflowContext) -> str:
        run.task("first", step, word="first")
        if run.attempt == 1:
            raise OSError("another pass")
        run.gather(run.call("second", step, word="second"), run.call("first-2", step, word="2"))
        return "done"

    job = flow.enqueue()
    drain()
    # A record as a sleep of an older version of the code has left it.
    TaskStatus.objects.create(
        job=job,
        step_key="f" * 32,
        step_id="first-2",
        slug="sleep",
        kind="sleep",
        status="completed",
    )
    drain(until=LONG)
    ended(job, "paused")
    assert ran == ["first"]
    assert job.attempts == 1
    assert job.error["type"].endswith("NonDeterministic")
    assert job.error["code"] == "non_deterministic"
    assert "first-2" in job.error["message"]
    assert "sleep" in job.error["message"]


def test_other_slugs_under_one_id_are_other_steps() -> None:
    @task("test.left")
    def left() -> str:
        return "left"

    @task("test.right")
    def right() -> str:
        return "right"

    @workflow("test.slugs")
    def flow(run: WorkflowContext) -> list[str]:
        return [
            run.task("id", left),
            run.task("id", right),
            run.inline("id", lambda: "inline"),
            run.task("ID", left),
            run.task("id ", left),
        ]

    job = flow.enqueue()
    drain()
    assert ended(job, "completed").output == ["left", "right", "inline", "left", "left"]
    assert {slug: set(ids) for slug, ids in job.task_status.items()} == {
        "test.left": {"id", "ID", "id "}, "test.right": {"id"}, "inline": {"id"},
    }  # fmt: skip


@pytest.mark.parametrize("step_id", ["a/b", "", "x" * 201, "line\nbreak", 7])
def test_r9_a_bad_step_id_is_refused(step_id: Any) -> None:
    """R9: '/' joins nested ids; empty, long and control characters are refused at the call."""
    ran: list[int] = []

    @workflow("test.ids")
    def flow(run: WorkflowContext) -> None:
        run.inline(step_id, lambda: ran.append(1))

    job = flow.enqueue()
    drain()
    assert ended(job, "failed").error["type"].endswith("InvalidInput")
    assert ran == []


def test_a_function_that_is_no_task_is_named_before_it_is_called() -> None:
    ran: list[int] = []
    passes: list[int] = []

    def not_a_task() -> None:
        ran.append(1)

    @workflow("test.unknown", retries=2)
    def flow(run: WorkflowContext) -> None:
        passes.append(1)
        run.task("step", not_a_task)

    job = flow.enqueue()
    drain(until=LONG)
    assert ended(job, "failed").error["type"].endswith(UnknownTask.__name__)
    assert "not_a_task" in job.error["message"]
    assert (ran, len(passes)) == ([], 3)
    assert not job.steps.exists()


@pytest.mark.parametrize("caught", [False, True])
def test_a_run_ends_at_its_step_limit(settings: Any, caught: bool) -> None:
    settings.DJANGO_JOBS = {"STEP_LIMIT": 5}
    ran: list[int] = []

    @workflow("test.limit", retries=3)
    def flow(run: WorkflowContext, count: int) -> None:
        try:
            for number in range(count):
                run.inline(f"step-{number}", lambda: ran.append(1))
        except Exception:
            if not caught:
                raise

    enough, many = flow.enqueue(count=5), flow.enqueue(count=6)
    drain(until=LONG)
    ended(enough, "completed")
    assert ended(many, "failed").error["code"] == "step_limit"
    assert (many.attempts, len(ran)) == (1, 10)


# --- what goes in and comes out ---------------------------------------------------------------


def test_a_steps_output_has_its_type_on_the_first_run_and_on_a_replay() -> None:
    seen: list[tuple[Any, ...]] = []

    @task("test.typed")
    def typed(amount: Decimal) -> Decimal:
        assert isinstance(amount, Decimal)
        return amount * 2

    @task("test.untyped")
    def untyped(items: Any) -> Any:
        assert items == [1, [2]]
        items.append("changed")
        return (1, (2, 3))

    @workflow("test.types", retries=1)
    def flow(run: WorkflowContext) -> Decimal:
        items: list[Any] = [1, (2,)]
        price = run.task("price", typed, amount=Decimal("4.50"))
        pair = run.task("pair", untyped, items=items)
        inline = run.inline("inline", lambda: {"pair": (1, 2)})
        seen.append((price, type(price), pair, inline, items))
        if run.attempt == 1:
            raise OSError("another pass")
        return price  # type: ignore[no-any-return]

    job = flow.enqueue()
    drain(until=LONG)
    ended(job, "completed")
    first = (Decimal("9.00"), Decimal, [1, [2, 3]], {"pair": [1, 2]}, [1, (2,)])
    assert seen == [first, first]
    assert job.result() == Decimal("9.00")


def test_the_shape_of_task_status_for_handlers_and_from_outside() -> None:
    seen: list[Any] = []

    @task("test.shape")
    def shape(n: int) -> int:
        return n + 1

    @workflow("test.shapes")
    def flow(run: WorkflowContext) -> None:
        run.task("step", shape, n=1)
        run.inline("inline", lambda: None)
        seen.append(run.task_status)

    job = flow.enqueue()
    drain()
    done = {"complete": True, "total_tried": 1, "error": None, "status": "completed"}
    assert job.task_status == seen[0] == {
        "test.shape": {"step": {"input": {"n": 1}, "output": 2, **done}},
        "inline": {"inline": {"input": {}, "output": None, **done}},
    }  # fmt: skip


# --- paused under way -------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Completed, Failed])
def test_c1_what_a_paused_job_brings_is_kept(outcome: type) -> None:
    """C1, P2: after the resume the job ends as it had, without running again."""
    ran: list[int] = []

    @task("test.paused", takes_context=True)
    def work(context: TaskContext) -> str:
        ran.append(1)
        pause_under_way(context.job)
        if outcome is Failed:
            raise OSError("no")
        return "done"

    job = work.enqueue()
    drain()
    ended(job, "paused")
    Session().committed(
        lambda s: history.move(
            s, job.pk, event="resumed", frm=[Status.PAUSED], to=Status.PENDING, sets="gate = 'open'"
        )
    )
    drain()
    ended(job, "completed" if outcome is Completed else "failed")
    assert (job.attempts, len(ran)) == (1, 1)
    assert job.output == ("done" if outcome is Completed else None)
    if outcome is Failed:
        assert job.error["message"] == "no"


def test_c1_the_step_in_hand_of_a_paused_run_is_recorded_and_no_other_starts() -> None:
    """C1, P5: status paused at once, the step's result kept, the next one not begun."""
    ran: list[str] = []

    @task("test.step")
    def step(word: str) -> str:
        ran.append(word)
        return word

    @workflow("test.paused.run")
    def flow(run: WorkflowContext) -> str:
        def pausing() -> str:
            pause_under_way(run.job)
            return step.func("first")  # type: ignore[no-any-return]

        run.inline("first", pausing)
        return run.task("second", step, word="second")  # type: ignore[no-any-return]

    job = flow.enqueue()
    drain()
    ended(job, "paused")
    assert ran == ["first"]
    assert job.task_status == {
        "inline": {
            "first": {
                "input": {}, "output": "first", "complete": True, "total_tried": 1, "error": None,
                "status": "completed",
            }
        }
    }  # fmt: skip


# --- logs and secrets -------------------------------------------------------------------------


def test_r9_a_log_is_cut_at_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """R9: 10,000 lines or 1 MiB an attempt, marked as truncated."""
    assert (attempt.LOG_LINES, attempt.LOG_BYTES) == (10_000, 1_048_576)
    monkeypatch.setattr(attempt, "LOG_LINES", 20)
    monkeypatch.setattr(attempt, "LOG_BYTES", 3_000)

    @task("test.log", takes_context=True)
    def talk(context: TaskContext, lines: int, length: int) -> None:
        for _ in range(lines):
            context.log.info("x" * length)

    @task("test.log.odd", takes_context=True)
    def odd(context: TaskContext) -> None:
        context.log.info("100 % of %s", *["it"])
        context.log.info("%d", "no number")
        context.log.info("nul \x00 and \ud800")
        try:
            raise OSError("50 % off")
        except OSError:
            context.log.exception("caught %s", "it")

    many, long = talk.enqueue(lines=30, length=5), talk.enqueue(lines=30, length=1_000)
    strange = odd.enqueue()
    drain()
    for job, kept in ((many, 20), (long, 3)):
        ended(job, "completed")
        texts = list(
            LogLine.objects.filter(job=job).order_by("id").values_list("message", flat=True)
        )
        assert len(texts) == kept + 1
        assert "truncated" in texts[-1]
        assert not any("truncated" in text for text in texts[:-1])
    ended(strange, "completed")
    texts = list(
        LogLine.objects.filter(job=strange).order_by("id").values_list("message", flat=True)
    )
    assert len(texts) == 4
    assert "\ufffd" in texts[2]
    assert texts[3].startswith("caught it\n")
    assert "OSError: 50 % off" in texts[3]


@pytest.mark.parametrize("declared", ["task", "setting"])
def test_x4_declared_secrets_are_kept_out_of_errors_and_logs(
    declared: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """X4: by name and by value, in steps and jobs, in errors, logs and notes."""
    settings.DJANGO_JOBS = {"REDACT": ["pin"]} if declared == "setting" else {}
    options: dict[str, Any] = {"redact": ["pin"]} if declared == "task" else {}
    caplog.set_level(logging.DEBUG, "django_jobs.task")

    @task("test.secret", takes_context=True, **options)
    def pay(context: TaskContext, pin: str, password: str) -> None:
        context.log.info("paying with %s", pin)
        context.progress(0.5, f"pin {pin}")
        raise OSError(f"refused: {pin}, and {password} too")

    # Source lines are part of a traceback, so the value stands in none.
    password = "-".join(["pass", "phrase"])

    @workflow("test.secret.run", **options)
    def flow(run: WorkflowContext, pin: str) -> None:
        run.log.info("a run with %s", pin)
        run.task("step", pay, pin=pin, password=password)

    plain = pay.enqueue(pin="hunter-4711", password=password)
    run = flow.enqueue(pin="hunter-4711")
    drain()
    for job in (plain, run):
        ended(job, "failed")
        stored = [job.error, job.progress_note]
        stored += [step.error for step in job.steps.all()]
        stored += [row.error for row in Attempt.objects.filter(job=job)]
        stored += [row.detail for row in job.history.all()]
        stored += [line.message for line in job.log_lines.all()]
        text = repr(stored) + caplog.text
        for secret in ("hunter-4711", password):
            assert secret not in text
        assert "refused: ********" in job.error["message"]


# --- definitions used twice -------------------------------------------------------------------


def test_a_definition_may_be_both_a_job_and_a_step() -> None:
    with registry():

        @task("test.both", takes_context=True)
        def both(context: TaskContext) -> list[Any]:
            return [context.attempt, context.idempotency_key, context.job.slug]

        @workflow("test.both.run")
        def flow(run: WorkflowContext) -> list[list[Any]]:
            return [run.task("a", both), run.task("b", both)]

        chosen: Definition = both
        alone, run = chosen.enqueue(), flow.enqueue()
        drain()
        assert ended(alone, "completed").output == [1, str(alone.pk), "test.both"]
        assert ended(run, "completed").output == [
            [1, f"{run.pk}:test.both/a", "test.both.run"],
            [1, f"{run.pk}:test.both/b", "test.both.run"],
        ]
