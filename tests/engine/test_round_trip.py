"""Typed values go through the real database and come back as they were, on each of them."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pydantic import BaseModel

from django_jobs import Retry, WorkflowContext, run_job, task, workflow
from django_jobs.definitions import registry
from tests.examples import examples

pytestmark = pytest.mark.django_db


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: Decimal
    at: date


class Order(BaseModel):
    number: UUID
    lines: list[Decimal]
    placed: datetime


TEXT = some.text(
    some.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20
)
MONEY = some.decimals(
    allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9
)
MOMENT = some.datetimes(
    min_value=datetime(1980, 1, 1), max_value=datetime(2200, 1, 1), timezones=some.just(UTC)
)
TYPES: dict[str, tuple[Any, some.SearchStrategy[Any]]] = {
    "int": (int, some.integers(-(2**63), 2**63 - 1)),
    "float": (float, some.floats(allow_nan=False, allow_infinity=False)),
    "text": (str, TEXT),
    "decimal": (Decimal, MONEY),
    "datetime": (datetime, MOMENT),
    "date": (date, some.dates()),
    "time": (time, some.times()),
    "timedelta": (timedelta, some.timedeltas(timedelta(days=-999), timedelta(days=999))),
    "uuid": (UUID, some.uuids()),
    "enum": (Colour, some.sampled_from(Colour)),
    "bytes": (bytes, some.binary(max_size=20)),
    "dataclass": (Point, some.builds(Point, x=MONEY, at=some.dates())),
    "model": (
        Order,
        some.builds(Order, number=some.uuids(), lines=some.lists(MONEY, max_size=3), placed=MOMENT),
    ),
    "optional": (Decimal | None, some.none() | MONEY),
    "tuple": (tuple[int, date], some.tuples(some.integers(0, 9), some.dates())),
    "set": (set[UUID], some.sets(some.uuids(), max_size=3)),
    "nested": (
        dict[str, list[Decimal]],
        some.dictionaries(TEXT, some.lists(MONEY, max_size=2), max_size=3),
    ),
}


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    saved = registry.snapshot()
    yield
    registry.restore(saved)


@pytest.mark.parametrize("name", TYPES)
def test_a_value_comes_back_as_it_was(name: str) -> None:
    """Input and output of a job, and of a step on its first pass and on a replay."""
    kind, values = TYPES[name]
    got: list[Any] = []

    def echo(value):  # type: ignore[no-untyped-def]
        got.append(value)
        return value

    echo.__annotations__ = {"value": kind, "return": kind}
    job_task = task("test.echo")(echo)

    def again(run, value):  # type: ignore[no-untyped-def]
        got.append(run.task("echo", job_task, value=value))
        if run.attempt == 1:
            raise LookupError
        return got[-1]

    again.__annotations__ = {"run": WorkflowContext, "value": kind, "return": kind}
    run = workflow("test.again", retries=Retry(max_attempts=2, delay=0, jitter=0))(again)

    @settings(max_examples=examples(15), suppress_health_check=list(HealthCheck), database=None)
    @given(values)
    def check(value: Any) -> None:
        got.clear()
        job = job_task.enqueue(value=value)
        assert run_job(job.pk).completed == 1
        assert job.result() == value
        again_job = run.enqueue(value=value)
        assert run_job(again_job.pk).retried == 1
        assert run_job(again_job.pk).completed == 1
        assert again_job.result() == value
        # The task's own value, then the step's on the first pass and on the replay, where it did not run.
        assert got == [value, value, value, value]
        assert {type(each) for each in got} == {type(value)}

    check()
