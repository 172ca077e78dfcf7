"""TENANT_CONTEXT: entered around whatever a project runs for a job, and left behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from django_jobs import InvalidInput, TaskContext, WorkflowContext, conf, run_jobs, task, workflow
from django_jobs.errors import ConfigurationError
from django_jobs.models import Job
from tests.app import tenancy
from tests.app.tenancy import here

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = {"TENANT_FIELDS": ["org"], "TENANT_CONTEXT": "tests.app.tenancy.tenant"}


@pytest.fixture(autouse=True)
def entered() -> Iterator[None]:
    tenancy.log.clear()
    with override_settings(DJANGO_JOBS=SETTINGS):
        yield
    assert here() == "nobody nobody en"


@pytest.mark.parametrize("sequential", [True, False])
def test_it_is_entered_with_the_job_around_each_handler_and_left_before_the_next(
    sequential: bool,
) -> None:
    @task("test.seen")
    def seen(org: str) -> str:
        return here()

    @task("test.broken")
    def broken(org: str) -> None:
        raise ValueError(here())

    made = [seen.enqueue(org="a"), broken.enqueue(org="b"), seen.enqueue(org="b")]
    run_jobs(sequential=sequential)
    for job in made:
        job.refresh_from_db()
    assert made[0].output == "a a de"
    assert made[1].error["message"] == "b b fr"
    assert made[2].output == "b b fr"
    entered = [line for line in tenancy.log if line.startswith("enter")]
    assert sorted(entered) == [
        "enter a test.seen a",
        "enter b test.broken b",
        "enter b test.seen b",
    ]
    assert len(tenancy.log) == 6


@pytest.mark.parametrize("sequential", [True, False])
def test_steps_and_callbacks_are_inside_whatever_thread_they_run_in(sequential: bool) -> None:
    heard: list[str] = []

    @task("test.step")
    def step(org: str) -> str:
        return here()

    @workflow("test.run", on_success=lambda context, output: heard.append(here()))
    def run(run: WorkflowContext, org: str) -> list[Any]:
        one = run.task("one", step, org=org)
        many = run.gather(*(run.call(f"g{n}", step, org=org) for n in range(4)))
        return [one, *many, run.inline("inline", here)]

    job = run.enqueue(org="a")
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert job.output == ["a a de"] * 6
    assert heard == ["a a de"]


def test_async_handlers_have_it_too_and_do_not_mix() -> None:
    @task("test.aseen", takes_context=True)
    async def aseen(context: TaskContext, org: str) -> list[str]:
        before = tenancy.current.get()
        await asyncio.sleep(0.01)
        return [before, tenancy.current.get()]

    made = [aseen.enqueue(org=org) for org in ("a", "b", "c")]
    run_jobs()
    for job, org in zip(made, "abc", strict=True):
        job.refresh_from_db()
        assert job.output == [org, org]


def test_an_async_context_is_entered_around_async_handlers_and_refused_around_others() -> None:
    @task("test.aseen")
    async def aseen(org: str) -> str:
        return tenancy.current.get()

    @task("test.seen")
    def seen(org: str) -> None: ...

    async_only = {**SETTINGS, "TENANT_CONTEXT": "tests.app.tenancy.AsyncTenant"}
    with override_settings(DJANGO_JOBS=async_only):
        one, other = aseen.enqueue(org="a"), seen.enqueue(org="a")
        run_jobs()
    one.refresh_from_db()
    other.refresh_from_db()
    assert (one.output, tenancy.log) == ("async a", ["left"])
    assert "__enter__" in other.error["message"]


def test_a_path_that_names_nothing_fails_the_job_with_the_reason() -> None:
    @task("test.seen")
    def seen(org: str) -> None: ...

    job = seen.enqueue(org="a")
    with override_settings(DJANGO_JOBS={"TENANT_CONTEXT": "tests.app.tenancy.nothing"}):
        assert run_jobs().failed == 1
    job.refresh_from_db()
    assert "tests.app.tenancy.nothing" in job.error["message"]


def test_required_fields_are_asked_of_every_enqueue_unless_a_task_says_otherwise() -> None:
    @task("test.needs")
    def needs(org: str = "", env: str = "") -> None: ...

    @task("test.free", required_input=[])
    def free(org: str = "") -> None: ...

    with override_settings(DJANGO_JOBS={"REQUIRED_INPUT": ["org", "env"]}):
        with pytest.raises(InvalidInput, match="'env'"):
            needs.enqueue(org="a")
        with pytest.raises(InvalidInput, match=r"Item 1: .*'org', 'env'"):
            needs.enqueue_many([{"org": "a", "env": "b"}, {}])
        assert not Job.objects.exists()
        free.enqueue()
    assert Job.objects.count() == 1


def test_there_are_three_columns_for_tenants() -> None:
    with override_settings(DJANGO_JOBS={"TENANT_FIELDS": ["a", "b", "c", "d"]}):
        with pytest.raises(ConfigurationError, match="at most three"):
            conf.get()
