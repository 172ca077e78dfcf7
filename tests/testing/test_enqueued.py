"""assert_enqueued() and what it says when it fails."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from django_jobs import WorkflowContext, task, workflow
from django_jobs.models import Job
from django_jobs.testing import assert_enqueued, assert_not_enqueued, drain
from tests.app import jobs

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("jobs_registry")]


def failure_of(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(*args, **kwargs)
    return str(caught.value)


def test_it_returns_the_newest_job_that_matches() -> None:
    jobs.add.enqueue(a=1, b=1)
    newest = jobs.add.enqueue(a=1, b=2)
    jobs.add.enqueue(a=2, b=3)
    assert assert_enqueued(jobs.add, a=1) == newest
    assert assert_enqueued("add", a=1) == newest


def test_a_job_that_has_run_counts() -> None:
    jobs.add.enqueue(a=1, b=1)
    drain()
    assert_enqueued(jobs.add, a=1, b=1)


def test_a_value_matches_as_typed_and_as_stored() -> None:
    jobs.price.enqueue(amount="9.90")
    assert_enqueued(jobs.price, amount=Decimal("9.90"))
    assert_enqueued(jobs.price, amount="9.90")
    with pytest.raises(AssertionError):
        assert_enqueued(jobs.price, amount=Decimal("9.91"))


def test_true_is_not_one() -> None:
    jobs.echo.enqueue(value=1)
    with pytest.raises(AssertionError):
        assert_enqueued(jobs.echo, value=True)


def test_a_field_that_the_job_does_not_have_does_not_match_none() -> None:
    jobs.echo.enqueue(value=1)
    with pytest.raises(AssertionError):
        assert_enqueued(jobs.echo, other=None)


def test_times_asks_for_exactly_so_many() -> None:
    jobs.add.enqueue(a=1, b=1)
    jobs.add.enqueue(a=1, b=2)
    assert_enqueued(jobs.add, times=2, a=1)
    assert "3 times" in failure_of(jobs.add, times=3, a=1)
    with pytest.raises(AssertionError):
        assert_enqueued(jobs.add, times=1)
    with pytest.raises(ValueError, match="assert_not_enqueued"):
        assert_enqueued(jobs.add, times=0)


def test_fields_named_like_an_option_go_into_input() -> None:
    @task
    def repeat(times: int, input: str) -> None: ...

    repeat.enqueue(times=3, input={"input": "x"})
    assert_enqueued(repeat, input={"times": 3, "input": "x"})
    with pytest.raises(AssertionError):
        assert_enqueued(repeat, input={"times": 4})


def test_what_using_sets_is_compared() -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    jobs.add.using(queue_name="mail", priority=3, meta={"by": "me"}).enqueue(a=1, b=1)
    jobs.add.using(run_after=moment).enqueue(a=2, b=1)
    jobs.add.using(delay=90).enqueue(a=3, b=1)
    assert_enqueued(jobs.add.using(queue_name="mail", priority=3, meta={"by": "me"}), a=1)
    assert_enqueued(jobs.add.using(run_after=moment), a=2)
    assert_enqueued(jobs.add.using(run_after=timedelta(seconds=90)), a=3)
    assert_enqueued(jobs.add.using(delay=90))
    for wrong in (
        {"queue_name": "default"}, {"priority": 4}, {"meta": {}}, {"delay": 10},
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            assert_enqueued(jobs.add.using(**wrong), a=1)


def test_versions_are_told_apart() -> None:
    @workflow("renew", version="1")
    def old(run: WorkflowContext) -> None: ...

    @workflow("renew", version="2")
    def new(run: WorkflowContext) -> None: ...

    old.enqueue()
    assert_enqueued(old)
    assert_enqueued("renew")
    assert "version '1'" in failure_of(new)


def test_a_failure_lists_what_was_enqueued() -> None:
    jobs.add.enqueue(a=1, b=1)
    jobs.add.using(queue_name="mail", priority=5).enqueue(a=2, b=2)
    text = failure_of(jobs.add, a=7)
    assert "Expected add(a=7) to be enqueued, but none was." in text
    assert "add(a=1, b=1)  pending, queue 'default'" in text
    assert "add(a=2, b=2)  pending, queue 'mail', priority 5" in text


def test_a_failure_shows_the_fields_in_the_order_of_the_signature() -> None:
    @task
    def order(item_number: int, a: int) -> None: ...

    order.enqueue(a=1, item_number=2)
    assert "order(item_number=2, a=1)" in failure_of(order, a=7)


def test_a_failure_names_the_tasks_that_were_enqueued_instead() -> None:
    assert "No job at all was enqueued." in failure_of(jobs.add)
    jobs.echo.enqueue(value=1)
    jobs.echo.enqueue(value=2)
    assert "No job of 'add' was enqueued. Enqueued were: echo (2)." in failure_of(jobs.add)


def test_a_failure_stays_readable_with_many_jobs() -> None:
    jobs.echo.enqueue_many([{"value": "x" * 1000} for _ in range(30)])
    text = failure_of(jobs.echo, value="y")
    assert "and 10 older ones" in text
    assert len(text) < 8000


def test_nothing_enqueued_can_be_asserted() -> None:
    jobs.add.enqueue(a=1, b=1)
    assert_not_enqueued(jobs.add, a=2)
    assert_not_enqueued(jobs.echo)
    with pytest.raises(AssertionError, match="but 1 were"):
        assert_not_enqueued(jobs.add, a=1)
    assert Job.objects.count() == 1
