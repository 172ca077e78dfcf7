"""Graphs from data: the whole spec is checked, and each fault is told by step and field."""

from __future__ import annotations

import copy

import pytest

from django_jobs import DAG
from django_jobs.definitions import registry
from django_jobs.errors import ConfigurationError

SPEC = {
    "id": "order.ship",
    "steps": [
        {"id": "validate", "url": "https://example.com/validate"},
        {
            "id": "charge",
            "url": "https://example.com/charge",
            "dependsOn": ["validate"],
            "parallel": True,
            "retries": {"maxAttempts": 5, "backoff": "exponential", "maxDelay": 30},
            "timeout": 20,
            "compensation": "https://example.com/refund",
        },
        {"id": "count", "url": "https://example.com/count", "dependsOn": ["charge"], "runIf": "all_done"},
    ],
    "context": {"shop": 1},
    "onComplete": "https://example.com/done",
    "timeout": 3600,
}  # fmt: skip


def changed(**keys):
    spec = copy.deepcopy(SPEC)
    spec.update(keys)
    return spec


def faults(spec) -> str:
    with pytest.raises(ConfigurationError) as caught:
        DAG.from_spec(spec)
    return str(caught.value)


def test_a_whole_spec_becomes_a_graph_that_is_not_registered():
    dag = DAG.from_spec(SPEC)
    steps = dag.check().steps
    assert list(steps) == ["validate", "charge", "count"]
    charge = steps["charge"]
    assert charge.retries.max_attempts == 5
    assert charge.retries.max_delay == 30
    assert charge.timeout == 20
    assert charge.http.compensation == "https://example.com/refund"
    assert charge.parallel
    assert not steps["validate"].parallel
    assert steps["count"].over_failures
    assert dag.is_saga
    assert dag.timeout == 3600
    assert dag.on_complete == "https://example.com/done"
    assert registry.find("order.ship") is None
    assert dag.spec["context"] == {"shop": 1}
    DAG.from_spec(SPEC)


def test_defaults_of_a_spec():
    dag = DAG.from_spec({"id": "d", "steps": [{"id": "a", "url": "https://example.com/"}]})
    step = dag.check()["a"]
    assert dag.timeout == 24 * 3600
    assert step.timeout == 300
    assert (step.retries.max_attempts, step.retries.delay, step.retries.backoff) == (
        3,
        1.0,
        "fixed",
    )


def test_snake_case_is_the_same_spec():
    snake = {
        "id": "s",
        "on_complete": "https://example.com/done",
        "steps": [
            {"id": "a", "url": "https://example.com/"},
            {"id": "b", "url": "https://example.com/", "depends_on": ["a"], "run_if": "all_done",
             "retries": {"max_attempts": 2}},
        ],
    }  # fmt: skip
    dag = DAG.from_spec(snake)
    assert dag.check()["b"].after == ("a",)
    assert dag.check()["b"].retries.max_attempts == 2
    assert dag.on_complete == "https://example.com/done"


def test_an_explicit_saga_false_wins_over_compensations():
    assert not DAG.from_spec(changed(saga=False)).is_saga


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://example.com/"),
        ("url", "/relative"),
        ("url", "https://user:secret@example.com/"),
        ("url", None),
        ("dependsOn", ["nowhere"]),
        ("dependsOn", 3),
        ("parallel", "yes"),
        ("retries", {"maxAttempts": 0}),
        ("retries", {"tries": 3}),
        ("retries", "many"),
        ("timeout", -1),
        ("compensation", "not a url"),
        ("optional", 1),
        ("runIf", "never"),
        ("callback", "x"),
        ("headers", {"a": 1}),
        ("colour", "red"),
    ],
)
def test_a_fault_names_its_step_and_field(field, value):
    spec = copy.deepcopy(SPEC)
    spec["steps"][1][field] = value
    told = faults(spec)
    assert "'order.ship'" in told
    assert f"step 'charge', field '{field}'" in told


@pytest.mark.parametrize("key", ["colour", "timeout", "saga", "onError", "context", "steps", "id"])
def test_a_fault_of_the_run_names_its_field(key):
    assert f"field '{key}'" in faults(changed(**{key: 0}))


def test_all_faults_are_told_at_once():
    spec = copy.deepcopy(SPEC)
    spec["steps"][0]["url"] = "nope"
    spec["steps"][1]["timeout"] = 0
    spec["steps"].append({"id": "charge", "url": "https://example.com/"})
    spec["extra"] = 1
    told = faults(spec)
    assert all(
        part in told
        for part in ("'validate', field 'url'", "'charge', field 'timeout'", "field 'extra'")
    )


def test_duplicate_ids_and_cycles_of_a_spec():
    spec = copy.deepcopy(SPEC)
    spec["steps"].append({"id": "count", "url": "https://example.com/"})
    assert "step 'count', field 'id'" in faults(spec)
    spec = copy.deepcopy(SPEC)
    spec["steps"][0]["dependsOn"] = ["count"]
    told = faults(spec)
    assert "field 'dependsOn'" in told
    assert all(f"'{name}'" in told for name in ("validate", "charge", "count"))


def test_relative_urls_are_joined_to_the_base(settings):
    settings.DJANGO_JOBS = {
        **settings.DJANGO_JOBS,
        "HTTP_BASE_URL": "https://shop.example.com/api/",
    }
    dag = DAG.from_spec({"id": "rel", "steps": [{"id": "a", "url": "charge"}]})
    assert dag.check()["a"].http.url == "https://shop.example.com/api/charge"


def test_no_spec_at_all():
    assert "object" in faults([])
    assert "'steps'" in faults({"id": "x"})
    assert "step 0" in faults({"id": "x", "steps": ["a"]})
