"""The builder of graphs: what it makes, and what it refuses with which words."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from django_jobs import DAG, Retry, enqueue, task, workflow
from django_jobs.definitions import registry as known
from django_jobs.errors import ConfigurationError, DuplicateSlug, UnknownTask
from django_jobs.lifecycle import StepKind
from django_jobs.testing import registry


@pytest.fixture(autouse=True)
def own_definitions():
    with registry():
        yield


def one(ctx):
    return 1


async def two(ctx):
    return 2


def test_building_returns_the_same_object_and_registers_it():
    dag = DAG("order.process")
    assert dag.step("a", one) is dag
    assert known.latest("order.process") is dag
    assert dag.place.startswith(f"{__name__}:")


def test_after_may_name_a_step_that_is_added_later():
    dag = DAG("later").step("b", one, after="a").step("a", one)
    assert [step.id for step in dag.check().topological] == ["a", "b"]
    assert dag.graph["edges"] == [{"from": "a", "to": "b"}]
    assert [node["id"] for node in dag.graph["nodes"]] == ["b", "a"]


def test_a_duplicate_step_id_is_refused_at_once_and_the_first_stays():
    dag = DAG("twice").step("a", one)
    with pytest.raises(ConfigurationError, match="DAG 'twice' has a step 'a' already"):
        dag.step("a", two)
    assert dag.check()["a"].target is one


@pytest.mark.parametrize("use", ["check", "enqueue", "graph", "svg"])
def test_a_cycle_is_named_with_all_its_steps(use):
    dag = (
        DAG("round")
        .step("start", one)
        .step("a", one, after=["start", "c"])
        .step("b", one, after="a")
        .step("c", one, after="b")
    )
    with pytest.raises(ConfigurationError) as caught:
        getattr(dag, use) if use == "graph" else getattr(dag, use)()
    assert "'round'" in str(caught.value)
    assert all(f"'{name}'" in str(caught.value) for name in "abc")
    assert "'start'" not in str(caught.value)


def test_an_unknown_dependency_and_an_empty_dag_are_refused():
    with pytest.raises(ConfigurationError, match="DAG 'lost': step 'a' comes after 'x'"):
        DAG("lost").step("a", one, after="x").check()
    with pytest.raises(ConfigurationError, match="DAG 'empty' has no steps"):
        DAG("empty").check()


# Since Django 6.0 the checks of models ask the database.
@pytest.mark.django_db
@pytest.mark.once
def test_manage_py_check_reports_the_graph():
    DAG("checked").step("a", one, after="nowhere")
    with pytest.raises(SystemCheckError, match=r"(?s)E002.*checked.*'a'.*'nowhere'"):
        call_command("check")


def test_slug_and_version_are_those_of_tasks_and_workflows():
    DAG("v", version="1").step("a", one)
    DAG("v", version="2").step("a", one)
    with pytest.raises(DuplicateSlug):
        DAG("v", version="2")
    with pytest.raises(DuplicateSlug):
        task("v")(lambda: None)
    with pytest.raises(DuplicateSlug):
        DAG("inline")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"priority": 101}, "priority"),
        ({"queue_name": ""}, "queue_name"),
        ({"saga": "yes"}, "saga"),
        ({"on_compensation_error": "ignore"}, "on_compensation_error"),
        ({"on_complete": 7}, "on_complete"),
        ({"version": ""}, "version"),
    ],
)
def test_options_of_a_dag_are_checked(given, told):
    with pytest.raises(ConfigurationError, match=f"DAG 'bad': .*{told}"):
        DAG("bad", **given)
    assert "bad" not in known.snapshot()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"run_if": "sometimes"}, "run_if"),
        ({"when": True}, "when"),
        ({"compensate": "undo"}, "compensate"),
        ({"optional": 1}, "optional"),
        ({"parallel": None}, "parallel"),
        ({"after": [1]}, "after"),
        ({"after": 5}, "after"),
        ({"input": {"a": 1}}, "input"),
    ],
)
def test_options_of_a_step_are_checked(given, told):
    with pytest.raises(ConfigurationError, match=rf"(?s)DAG 'bad'.*'a'.*{told}"):
        DAG("bad").step("a", one, **given)


def test_a_step_takes_functions_tasks_workflows_and_graphs():
    @task
    def charge(total: int) -> int:
        return total

    @workflow
    def ship(run):
        return None

    inner = DAG("inner").step("x", one)
    dag = (
        DAG("kinds", timeout=timedelta(hours=1))
        .step("f", one)
        .step("t", charge, input={"total": 3}, retries=Retry(max_attempts=3), timeout=5)
        .step("w", ship)
        .step("d", inner)
        .map("m", charge, over=lambda ctx: [1, 2])
        .http_step("h", url="https://example.com/")
    )
    graph = dag.check()
    kinds = [step.kind for step in graph.steps.values()]
    assert kinds == [
        StepKind.INLINE, StepKind.TASK, StepKind.CHILD, StepKind.CHILD, StepKind.MAP, StepKind.HTTP,
    ]  # fmt: skip
    assert [step.slug for step in graph.steps.values()] == [
        "inline", "charge", "ship", "inner", "charge", "http",
    ]  # fmt: skip
    assert dag.timeout == 3600.0
    with pytest.raises(ConfigurationError, match=r"not its name"):
        DAG("text").step("a", "charge")
    with pytest.raises(UnknownTask):
        DAG("text2").step("a", "charge")
    with pytest.raises(ConfigurationError, match="takes a function"):
        DAG("number").step("a", 5)


def test_a_step_called_like_an_item_of_a_map_is_refused():
    dag = DAG("items").map("page", one, over=lambda ctx: []).step("page:3", one)
    with pytest.raises(ConfigurationError, match="'page:3'"):
        dag.check()


def test_saga_is_said_or_follows_from_a_compensation():
    assert not DAG("s1").step("a", one).is_saga
    assert DAG("s2").step("a", one, compensate=two).is_saga
    assert DAG("s3", saga=True).step("a", one).is_saga
    assert not DAG("s4", saga=False).step("a", one, compensate=two).is_saga


def test_using_copies_the_options_and_shares_the_graph():
    dag = DAG("opt").step("a", one)
    dag.check()
    other = dag.using(queue_name="fast", priority=5)
    assert other.options.queue_name == "fast"
    assert dag.options.queue_name is None
    assert other.check() is dag.check()


def test_a_dag_is_not_called():
    with pytest.raises(ConfigurationError, match="enqueue"):
        DAG("called").step("a", one)(None)


def test_http_steps_are_refused_at_enqueue(db):
    from django_jobs.models import Job

    dag = DAG("http.one").step("a", one).http_step("ship", url="https://example.com/", after="a")
    with pytest.raises(ConfigurationError, match=r"'ship'.*not in this release"):
        dag.enqueue()
    with pytest.raises(ConfigurationError, match="not in this release"):
        enqueue("http.one")
    told = DAG("told", on_error="https://example.com/").step("a", one)
    with pytest.raises(ConfigurationError, match="on_error"):
        told.enqueue()
    assert not Job.objects.exists()
