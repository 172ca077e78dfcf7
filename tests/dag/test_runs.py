"""Runs of graphs in one process: order, results, conditions, failures, retries."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from django_jobs import DAG, CancelJob, JobFailed, Retry, TaskContext, run_jobs, task, workflow
from django_jobs.errors import InvalidInput
from django_jobs.lifecycle import Status, StepStatus
from django_jobs.models import TaskStatus
from django_jobs.testing import clock, drain, registry

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def own_definitions():
    with registry():
        yield
    clock.reset()


def fails(ctx):
    raise ValueError(f"{ctx.step_id} is broken")


def returns(value):
    return lambda ctx: value


def steps_of(job):
    return {step.step_id: step for step in TaskStatus.objects.filter(job=job).order_by("id")}


def statuses(job):
    return {one.step_id: one.status for one in TaskStatus.objects.filter(job=job).order_by("id")}


def done(job):
    job.refresh_from_db()
    return job


def test_a_graph_runs_in_order_and_gives_all_outputs():
    order = []

    def note(value):
        def step(ctx):
            order.append(ctx.step_id)
            return value

        return step

    dag = (
        DAG("diamond")
        .step("d", note(4), after=["b", "c"])
        .step("a", note(1))
        .step("b", note(2), after="a")
        .step("c", note(3), after="a")
    )
    job = dag.enqueue(order_id=7)
    report = run_jobs(sequential=True)
    assert (report.completed, report.failed) == (1, 0)
    assert done(job).status == Status.COMPLETED
    assert order == ["a", "b", "c", "d"]
    assert job.output == {"d": 4, "a": 1, "b": 2, "c": 3}
    assert job.result() == job.output
    assert [one.done_no for one in steps_of(job).values()] == [1, 2, 3, 4]


def test_what_a_step_sees():
    seen = {}

    def look(ctx):
        seen.update(
            input=ctx.input, context=ctx.context, results=ctx.results, before=ctx.previous_steps,
            run=ctx.run.pk, step_id=ctx.step_id, attempt=ctx.attempt, key=ctx.idempotency_key,
            skipped=ctx.was_skipped("s"), errors=ctx.errors,
        )  # fmt: skip
        with pytest.raises(InvalidInput, match="nowhere"):
            ctx.was_skipped("nowhere")
        ctx.log.info("seen")
        return [1, (2, 3)]

    dag = (
        DAG("seen")
        .step("a", returns({"total": 120}))
        .step("b", returns("x"))
        .step("s", returns("never"), when=lambda ctx: False)
        .step("c", look, after=["s", "b"])
    )
    job = dag.enqueue(context={"shop": 3}, order_id=7)
    drain()
    assert done(job).status == Status.COMPLETED
    assert seen == {
        "input": {"order_id": 7}, "context": {"shop": 3}, "results": {"a": {"total": 120}, "b": "x"},
        "before": {"b": "x"}, "run": job.pk, "step_id": "c", "attempt": 1, "key": f"{job.pk}:inline/c",
        "skipped": True, "errors": {},
    }  # fmt: skip
    assert job.output == {"a": {"total": 120}, "b": "x", "c": [1, [2, 3]]}


def test_registered_tasks_get_their_input_and_show_under_their_slug():
    @task
    def priced(amount: Decimal, times: int = 1) -> Decimal:
        return amount * times

    @task(takes_context=True)
    def who(context: TaskContext, name: str) -> str:
        assert context.attempt == 1
        return f"{name} of {context.job.pk}"

    dag = (
        DAG("tasks")
        .step("p", priced, input={"amount": Decimal("2.50")})
        .step("q", priced, after="p", input=lambda ctx: {"amount": ctx.results["p"], "times": 2})
        .step("w", who, after="q", input={"name": "x"})
    )
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPLETED
    assert job.output == {"p": "2.50", "q": "5.00", "w": f"x of {job.pk}"}
    assert job.task_status["priced"]["q"]["input"] == {"amount": "2.50", "times": 2}
    assert job.task_status["priced"]["q"]["complete"]


def test_async_steps_run_in_graphs_with_and_without_sync_ones():
    async def first(ctx):
        return 1

    async def second(ctx):
        return ctx.previous_steps["a"] + 1

    whole = DAG("async").step("a", first).step("b", second, after="a")
    mixed = (
        DAG("mixed").step("a", first).step("b", returns(2), after="a").step("c", second, after="a")
    )
    jobs = [whole.enqueue(), mixed.enqueue()]
    drain()
    assert done(jobs[0]).output == {"a": 1, "b": 2}
    assert done(jobs[1]).output == {"a": 1, "b": 2, "c": 2}


def test_a_condition_skips_its_step_and_dependents_go_on():
    asked = []
    dag = (
        DAG("when")
        .step("a", returns(50))
        .step("gift", fails, after="a", when=lambda ctx: asked.append(1) or ctx.results["a"] > 100)
        .step("ship", lambda ctx: [ctx.was_skipped("gift"), ctx.previous_steps], after="gift")
    )
    job = dag.enqueue()
    drain()
    assert done(job).output == {"a": 50, "ship": [True, {}]}
    assert statuses(job)["gift"] == StepStatus.SKIPPED
    assert asked == [1]


def test_a_condition_is_asked_once_whatever_its_step_needs():
    asked, tried = [], []

    def step(ctx):
        tried.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return "done"

    dag = DAG("once").step(
        "a", step, when=lambda ctx: asked.append(1) or True, retries=Retry(max_attempts=3, delay=5, jitter=0)
    )  # fmt: skip
    job = dag.enqueue()
    drain(until=timedelta(minutes=1))
    assert done(job).status == Status.COMPLETED
    assert (asked, tried) == ([1], [1, 2, 3])


def test_an_error_in_a_condition_or_an_input_fails_the_step():
    @task
    def plus(a: int, b: int) -> int:
        return a + b

    for dag in (
        DAG("bad.when").step("a", returns(1), when=lambda ctx: ctx.results["nowhere"]),
        DAG("bad.input").step("a", plus, input=lambda ctx: ctx.results["nowhere"]),
        DAG("bad.dict").step("a", plus, input={"a": 1}),
        DAG("bad.over").map("a", plus, over=lambda ctx: ctx.results["nowhere"]),
    ):
        job = dag.enqueue()
        drain()
        assert done(job).status == Status.FAILED, dag
        assert job.error["step_id"] == "a"
        assert statuses(job) == {"a": StepStatus.FAILED}


def test_the_first_failure_stops_what_has_not_begun():
    ran = []

    def mark(ctx):
        ran.append(ctx.step_id)

    dag = (
        DAG("stop")
        .step("a", mark)
        .step("bad", fails, after="a")
        .step("c", mark, after="a")
        .step("below", mark, after="bad")
        .step("clean", mark, after="below", run_if="all_done")
    )
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.FAILED
    assert ran == ["a", "clean"]
    assert statuses(job) == {
        "a": "completed", "bad": "failed", "c": "canceled", "below": "canceled", "clean": "completed",
    }  # fmt: skip
    assert job.error["message"] == "bad is broken"
    assert job.error["type"].endswith("ValueError")
    assert job.error["step_id"] == "bad"
    with pytest.raises(JobFailed, match="bad is broken"):
        job.result()


def test_optional_failures_and_joins_over_failures():
    def join(ctx):
        return [ctx.previous_steps, sorted(ctx.errors), ctx.errors["bad"]["message"]]

    dag = (
        DAG("optional")
        .step("good", returns(1))
        .step("bad", fails, optional=True)
        .step("needs", returns(2), after="bad")
        .step("after", returns(3), after="needs")
        .step("join", join, after=["good", "bad"], run_if="all_done")
    )
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPLETED
    assert job.output == {"good": 1, "after": 3, "join": [{"good": 1}, ["bad"], "bad is broken"]}
    assert statuses(job)["needs"] == StepStatus.SKIPPED
    assert job.error is None


def test_retries_wait_for_their_time_and_keep_what_is_done():
    tried, others = [], []

    def flaky(ctx):
        tried.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return ctx.attempt

    dag = (
        DAG("retry")
        .step("a", flaky, retries=Retry(max_attempts=3, delay=60, jitter=0))
        .step("b", lambda ctx: others.append(1))
        .step("c", returns(1), after=["a", "b"])
    )
    clock.freeze(clock.now())
    job = dag.enqueue()
    report = drain()
    assert report.retried == 1
    assert done(job).status == Status.SLEEPING
    assert job.run_after == clock.now() + timedelta(seconds=60)
    assert job.error["message"] == "not yet"
    assert job.attempts == 1
    clock.travel(timedelta(seconds=59))
    drain()
    assert tried == [1]
    clock.travel(timedelta(seconds=1))
    drain()
    assert tried == [1, 2]
    drain(until=timedelta(minutes=2))
    assert done(job).status == Status.COMPLETED
    assert (tried, others) == ([1, 2, 3], [1])
    assert job.error is None
    step = steps_of(job)["a"]
    assert (step.total_tried, step.status) == (3, "completed")


def test_one_at_a_time_for_steps_that_say_so():
    order = []

    def note(ctx):
        order.append(ctx.step_id)

    dag = DAG("serial")
    for name in "abc":
        dag.step(name, note, parallel=False)
    dag.step("d", note)
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPLETED
    assert [one for one in order if one != "d"] == ["a", "b", "c"]


def test_a_map_runs_each_item_and_gives_their_outputs_in_order():
    @task
    def double(n: int, plus: int = 0) -> int:
        return 2 * n + plus

    dag = (
        DAG("maps")
        .step("list", returns([3, 1, 2]))
        .map(
            "item",
            lambda ctx: [ctx.index, ctx.item],
            over=lambda ctx: ctx.results["list"],
            after="list",
        )
        .map("task", double, over=lambda ctx: [1, {"n": 2, "plus": 1}], after="list")
        .map("none", double, over=lambda ctx: [], after="list")
        .step("sum", lambda ctx: ctx.results["task"], after=["item", "task", "none"])
    )
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPLETED
    assert job.output["item"] == [[0, 3], [1, 1], [2, 2]]
    assert job.output["task"] == [2, 5]
    assert job.output["none"] == []
    assert job.output["sum"] == [2, 5]
    assert set(job.task_status["double"]) == {"task", "task:0", "task:1", "none"}
    assert steps_of(job)["item"].kind == "map"


def test_one_failed_item_fails_its_map():
    ran = []

    def one(ctx):
        ran.append(ctx.item)
        if ctx.item == 2:
            raise ValueError("two")
        return ctx.item

    dag = DAG("mapfail").map("m", one, over=lambda ctx: [1, 2, 3]).step("b", one, after="m")
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.FAILED
    assert ran == [1, 2]
    assert statuses(job) == {"m": "failed", "m:0": "completed", "m:1": "failed", "b": "canceled"}
    assert job.error["message"] == "two"


def test_a_map_has_a_limit(settings):
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "STEP_LIMIT": 10}
    job = DAG("many").map("m", returns(1), over=lambda ctx: range(11)).enqueue()
    drain()
    assert done(job).status == Status.FAILED
    assert "STEP_LIMIT" in job.error["message"]


def test_graphs_and_workflows_run_as_child_runs():
    inner = DAG("inner").step("x", lambda ctx: ctx.input["n"] * 2)

    @workflow
    def add_one(run, n: int) -> int:
        return run.inline("plus", lambda: n + 1)

    dag = (
        DAG("outer")
        .step("a", returns(5))
        .step("in", inner, after="a", input=lambda ctx: {"n": ctx.results["a"]})
        .step("code", add_one, after="in", input=lambda ctx: {"n": ctx.results["in"]["x"]})
        .step("end", lambda ctx: ctx.previous_steps, after="code")
    )
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.COMPLETED
    assert job.output == {"a": 5, "in": {"x": 10}, "code": 11, "end": {"code": 11}}
    assert job.task_status["inner"]["in"]["output"] == {"x": 10}
    assert {child.slug for child in job.children.all()} == {"inner", "add_one"}


def test_a_failed_child_run_fails_its_step():
    inner = DAG("inner").step("x", fails)
    job = (
        DAG("outer").step("a", returns(1)).step("in", inner).step("b", fails, after="in").enqueue()
    )
    drain()
    assert done(job).status == Status.FAILED
    assert job.error["step_id"] == "in"
    assert job.error["message"] == "x is broken"


def test_retry_of_a_failed_run_keeps_what_is_completed():
    ran, broken = [], [True]

    def mark(ctx):
        ran.append(ctx.step_id)

    def once(ctx):
        if broken:
            raise ValueError("broken")
        return "mended"

    dag = (
        DAG("again")
        .step("a", mark)
        .step("b", once, after="a")
        .step("c", mark, after="b")
        .step("o", fails, optional=True)
    )
    job = dag.enqueue()
    drain()
    assert done(job).status == Status.FAILED
    broken.clear()
    job.retry()
    drain()
    assert done(job).status == Status.COMPLETED
    assert ran == ["a", "c"]
    assert job.output["b"] == "mended"


def test_cancel_job_in_a_step_cancels_the_run():
    def stop(ctx):
        raise CancelJob("enough")

    job = DAG("cancels").step("a", stop).step("b", fails, after="a").enqueue()
    drain()
    assert done(job).status == Status.CANCELED
    assert job.error["message"] == "enough"
    assert statuses(job)["a"] == StepStatus.CANCELED


def test_steps_of_one_run_overlap_in_threads(transactional_db):
    import threading

    if pytest.importorskip("django.db").connection.vendor == "sqlite":
        pytest.skip("the test's SQLite database is in memory")
    barrier = threading.Barrier(3, timeout=10)

    def meet(ctx):
        return barrier.wait() >= 0

    dag = DAG("overlap").step("a", meet).step("b", meet).step("c", meet)
    job = dag.enqueue()
    run_jobs()
    assert done(job).status == Status.COMPLETED


def test_as_dict_tells_where_a_run_stands():
    dag = (
        DAG("shape", version="2")
        .step("d", returns(1), after="c")
        .step("a", returns({"n": 1}))
        .step("skip", returns(1), when=lambda ctx: False)
        .step("b", fails, after="a", optional=True)
        .step("c", fails, after="a")
    )
    job = dag.enqueue(context={"shop": 1}, n=2)
    before = job.as_dict()
    assert before["status"] == "pending"
    assert [step["status"] for step in before["steps"]] == ["pending"] * 5
    drain()
    told = done(job).as_dict()
    assert told["id"] == str(job.pk)
    assert (told["slug"], told["kind"], told["version"], told["status"]) == (
        "shape",
        "dag",
        "2",
        "failed",
    )
    assert (told["context"], told["input"], told["output"]) == ({"shop": 1}, {"n": 2}, None)
    assert told["results"] == {"a": {"n": 1}}
    assert told["completed_steps"] == ["a"]
    assert told["failed_steps"] == ["b", "c"]
    assert told["skipped_steps"] == ["skip"]
    assert told["current_steps"] == []
    assert told["error"]["step_id"] == "c"
    assert [step["id"] for step in told["steps"]] == ["d", "a", "skip", "b", "c"]
    first = told["steps"][0]
    assert (first["status"], first["started_at"], first["attempts"]) == ("canceled", None, 0)
    assert set(first) == {
        "id", "slug", "kind", "status", "started_at", "finished_at", "attempts", "output", "error",
    }  # fmt: skip
