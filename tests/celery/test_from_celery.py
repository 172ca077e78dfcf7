"""Existing Celery tasks as jobs: what maps onto the job, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import celery
import pytest
from celery import current_task, shared_task
from celery.exceptions import Ignore, Reject

from django_jobs import ConfigurationError, InvalidInput, WorkflowContext, clock, run_job, workflow
from django_jobs.celery import from_celery
from django_jobs.models import Job
from django_jobs.testing import drain

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]


@pytest.fixture(autouse=True)
def frozen(as_before: None) -> Iterator[None]:
    clock.freeze(clock.now())
    yield
    clock.reset()


@shared_task(name="legacy.plus")
def plus(a: int, b: int = 1) -> int:
    return a + b


class Noisy(celery.Task):  # type: ignore[misc]
    """A base class with the hooks that Celery documents."""

    said: list[str] = []

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.said.append("before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.said.append(f"on_success {retval}")

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.said.append(f"on_retry {exc}")

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.said.append(f"on_failure {exc}")

    def after_return(self, status: str, *rest: Any) -> None:
        self.said.append(f"after_return {status}")


@shared_task(name="legacy.asks", bind=True, base=Noisy, max_retries=2)
def asks(self: Any, seen: str, countdown: float = 30) -> str:
    """Fail twice and ask for another try."""
    self.said.append(f"try {self.request.retries} {self.request.id == seen or bool(seen)}")
    if self.request.retries < 2:
        raise self.retry(exc=ValueError(f"not yet {self.request.retries}"), countdown=countdown)
    return f"{current_task.name} at last"


@shared_task(name="legacy.gives_up", bind=True, max_retries=1)
def gives_up(self: Any) -> None:
    raise self.retry(exc=ValueError("never"), countdown=5)


@shared_task(
    name="legacy.auto", autoretry_for=(OSError,), retry_backoff=10, retry_jitter=False, max_retries=3
)  # fmt: skip
def auto(error: str) -> None:
    raise {"OSError": OSError, "ValueError": ValueError}[error]("on purpose")


@shared_task(name="legacy.ends")
def ends(how: str) -> None:
    raise {"ignore": Ignore, "reject": Reject}[how]("enough")


@shared_task(name="legacy.moves", bind=True)
def moves(self: Any, n: int) -> None:
    raise self.retry(args=(n + 1,), countdown=0)


@shared_task(name="legacy.limited", time_limit=30, soft_time_limit=20)
def limited() -> None: ...


def run(job: Job) -> Job:
    run_job(job.pk)
    job.refresh_from_db()
    return job


def test_a_plain_task_is_a_job_on_celery_under_its_own_name() -> None:
    task = from_celery(plus)
    job = task.enqueue(1, b=2)
    assert (job.slug, job.runner) == ("legacy.plus", "celery")
    assert run(job).output == 3
    assert task.func.__name__ == "plus"
    assert from_celery(plus, "other", runner="db").enqueue(a=1).runner == "db"


def test_input_is_checked_by_the_signature() -> None:
    task = from_celery(plus)
    with pytest.raises(InvalidInput, match="is missing"):
        task.enqueue()
    with pytest.raises(InvalidInput):
        task.enqueue(a="three")


def test_self_retry_waits_in_the_database_and_counts_as_an_attempt() -> None:
    Noisy.said.clear()
    job = from_celery(asks).enqueue(seen="x")
    begun = clock.now()
    assert run(job).status == "pending"
    assert (job.run_after - begun).total_seconds() == 30
    assert (job.error["type"], job.error["message"]) == ("builtins.ValueError", "not yet 0")
    assert run(job).attempts == 1  # not due
    clock.travel(timedelta(seconds=30))
    assert run(job).attempts == 2
    clock.travel(timedelta(seconds=30))
    assert (run(job).status, job.output, job.attempts) == ("completed", "legacy.asks at last", 3)
    assert Noisy.said == [
        "before_start", "try 0 True", "on_retry not yet 0", "after_return RETRY",
        "before_start", "try 1 True", "on_retry not yet 1", "after_return RETRY",
        "before_start", "try 2 True", "on_success legacy.asks at last", "after_return SUCCESS",
    ]  # fmt: skip


def test_its_own_limit_of_retries_holds_and_an_operators_retry_begins_anew() -> None:
    job = from_celery(gives_up).enqueue()
    drain(timedelta(hours=1))
    job.refresh_from_db()
    assert (job.status, job.attempts, job.error["message"]) == ("failed", 2, "never")
    job.retry()
    drain(timedelta(hours=1))
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("failed", 4)


def test_autoretry_for_and_its_backoff_hold() -> None:
    task = from_celery(auto)
    job, other = task.enqueue(error="OSError"), task.enqueue(error="ValueError")
    waits = []
    for _ in range(4):
        begun = clock.now()
        if run(job).status == "pending":
            waits.append((job.run_after - begun).total_seconds())
            clock.freeze(job.run_after)
    assert waits == [10, 20, 40]
    assert (job.status, job.attempts, job.error["type"]) == ("failed", 4, "builtins.OSError")
    assert (run(other).status, other.attempts) == ("failed", 1)


@pytest.mark.parametrize("how", ["ignore", "reject"])
def test_ignore_and_reject_cancel_the_job(how: str) -> None:
    assert run(from_celery(ends).enqueue(how=how)).status == "canceled"


def test_a_retry_with_other_arguments_is_refused() -> None:
    job = run(from_celery(moves).enqueue(n=1))
    assert job.status == "failed"
    assert "the input of a job never changes" in job.error["message"]


def test_a_time_limit_becomes_the_jobs() -> None:
    assert from_celery(limited).timeout == 20
    assert from_celery(limited, "slower", timeout=90).timeout == 90


def test_own_retries_replace_celerys() -> None:
    job = from_celery(auto, retries=1).enqueue(error="ValueError")
    drain(timedelta(hours=1))
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("failed", 2)


def test_a_wrapped_task_is_a_step_of_a_workflow() -> None:
    task = from_celery(asks)

    @workflow
    def around(run: WorkflowContext) -> str:
        return run.task("ask", task, seen="x")  # type: ignore[no-any-return]

    job = around.enqueue()
    drain(timedelta(hours=1))
    job.refresh_from_db()
    assert (job.output, job.task_status["legacy.asks"]["ask"]["total_tried"]) == (
        "legacy.asks at last",
        3,
    )


def test_anything_else_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match="takes a Celery task"):
        from_celery(lambda: None)
