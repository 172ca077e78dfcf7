"""Rate limits: never more than n starts in any window, over all workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_jobs import (
    RateLimit,
    RetryLater,
    WorkflowContext,
    clock,
    ids,
    run_job,
    run_jobs,
    task,
    workflow,
)
from django_jobs.definitions import registry
from django_jobs.definitions.task import Definition
from django_jobs.models import Job
from django_jobs.models.limits import RateStart, RateWait
from django_jobs.store import claims, rates
from django_jobs.store.session import Session
from django_jobs.testing import drain
from tests.examples import examples

pytestmark = pytest.mark.django_db
NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def noon() -> None:
    clock.freeze(NOON)


def limited(rate: str = "2/m", **options: object) -> Definition:
    @task("test.rated", rate_limit=RateLimit(rate, **options))  # type: ignore[arg-type]
    def rated(n: int = 0) -> int:
        return n

    return rated


def run() -> int:
    """Jobs that one call runs."""
    return run_jobs(limit=100).completed


def travel(seconds: float) -> None:
    clock.travel(timedelta(seconds=seconds))


def test_a_job_over_the_rate_stays_pending_and_runs_as_soon_as_it_fits() -> None:
    rated = limited()
    made = [rated.enqueue() for _ in range(5)]
    assert run() == 2
    assert [job.status for job in Job.objects.order_by("id")] == ["completed"] * 2 + ["pending"] * 3
    travel(59.999)
    assert run() == 0
    travel(0.001)
    assert run() == 2
    assert run_jobs().blocked == 1
    travel(60)
    assert run() == 1
    assert not Job.objects.exclude(status="completed").exists()
    assert {job.pk for job in made} == set(Job.objects.values_list("pk", flat=True))


def test_the_window_slides() -> None:
    rated = limited()
    for _ in range(9):
        rated.enqueue()
    ran = []
    for _ in range(16):
        ran.append(run_jobs(limit=1).completed)
        travel(10)
    # Two starts at 0 and 10 s; the third fits when the first is a minute old, and so on.
    assert ran == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]


@settings(max_examples=examples(15, 5))
@given(
    st.integers(1, 4), st.lists(st.sampled_from([0.0, 3.0, 20.0, 59.0, 60.0, 61.0]), max_size=12)
)
def test_never_more_than_n_starts_in_any_window(count: int, pauses: list[float]) -> None:
    Job.objects.all().delete()
    RateStart.objects.all().delete()
    RateWait.objects.all().delete()
    clock.freeze(NOON)
    known = registry.snapshot()
    rated = limited(f"{count}/m")
    for pause in pauses:
        for _ in range(3):
            rated.enqueue()
        run_jobs(limit=3)
        travel(pause)
    registry.restore(known)
    starts = sorted(job.started_at for job in Job.objects.exclude(started_at=None))
    for first, later in zip(starts, starts[count:], strict=False):
        assert later - first >= timedelta(minutes=1)


def test_each_key_has_a_window_of_its_own_and_a_falsy_key_none() -> None:
    rated = limited("1/m", key=lambda n: f"n{n}" if n else None)
    for n in (1, 1, 2, 0, 0, 0):
        rated.enqueue(n=n)
    assert run() == 5
    [left] = Job.objects.exclude(status="completed")
    assert left.input == {"n": 1}


def test_a_retry_counts_as_a_start_and_a_run_that_goes_on_does_not() -> None:
    @task("test.flaky", rate_limit="1/m", retries=2)
    def flaky() -> None:
        raise ValueError("broken")

    passes: list[int] = []

    @workflow("test.sleeper", rate_limit="1/m")
    def sleeper(run: WorkflowContext, n: int) -> int:
        passes.append(n)
        if len(passes) == 1:
            raise RetryLater(1)
        return n

    flaky.enqueue()
    first, second = sleeper.enqueue(n=1), sleeper.enqueue(n=2)
    run()
    travel(5)
    run()
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.status, second.status) == ("completed", "pending")
    assert Job.objects.get(slug="test.flaky").attempts == 1
    travel(60)
    run()
    assert Job.objects.get(slug="test.flaky").attempts == 2


def test_those_that_wait_are_out_of_the_claims_way() -> None:
    """They are gated, and one row says when the next of them fits."""
    rated = limited("1/h")
    for _ in range(30):
        rated.enqueue()
    assert run() == 1
    assert Job.objects.filter(gate="rate").count() == 29
    assert RateWait.objects.get().opens_at == NOON + timedelta(hours=1)
    assert Session().committed(claims.seconds_to_next_due) == 3600
    travel(3600)
    Session().committed(claims.open_gates)
    assert Job.objects.filter(gate="open", status="pending").count() == 1


def test_the_order_among_those_that_wait_is_that_of_the_queue() -> None:
    rated = limited("1/m")
    rated.enqueue()
    run()
    low, high = rated.enqueue(), rated.using(priority=5).enqueue()
    for expected in (high, low):
        travel(60)
        run()
        expected.refresh_from_db()
        assert expected.status == "completed"


def test_old_starts_are_forgotten_and_a_thousand_at_once_are_counted() -> None:
    rated = limited("1500/m")
    rated.enqueue_many([{} for _ in range(1600)])
    session = Session()

    def take() -> int:
        session.committed(claims.open_gates)
        return len(
            session.committed(
                lambda s: claims.claim(
                    s, claims.lanes(s), worker=ids.worker_id(), limit=1200, lease=15.0
                )
            )
        )

    assert take() + take() + take() == 1500
    travel(61)
    assert take() == 100
    assert RateStart.objects.count() == 1500


def test_a_wait_that_was_forgotten_is_found_by_the_sweep() -> None:
    rated = limited("1/m")
    for _ in range(3):
        rated.enqueue()
    assert run() == 1
    RateWait.objects.all().delete()
    travel(60)
    assert run_jobs().completed + run_jobs().completed == 1


def test_a_worker_without_the_code_lets_them_in_slowly() -> None:
    rated = limited("1/m")
    for _ in range(5):
        rated.enqueue()
    assert run() == 1
    registry.restore(
        {slug: known for slug, known in registry.snapshot().items() if slug != rated.slug}
    )
    travel(60)
    assert Session().committed(rates.let_in) == 1
    assert Session().committed(rates.let_in) == 0


def test_drain_moves_through_a_rate() -> None:
    rated = limited("2/m")
    for _ in range(5):
        rated.enqueue()
    assert drain().completed == 2
    report = drain(until=timedelta(minutes=3))
    assert (report.completed, report.blocked) == (3, 0)
    starts = [job.started_at - NOON for job in Job.objects.order_by("started_at", "id")]  # type: ignore[operator]
    assert [span.total_seconds() for span in starts] == [0, 0, 60, 60, 120]


def test_explain_and_run_job_name_and_keep_the_rate() -> None:
    rated = limited("1/m")
    rated.enqueue()
    second = rated.enqueue()
    assert run() == 1
    assert run_job(second.pk).completed == 0
    [gate] = [gate for gate in second.explain() if gate.name == "rate"]
    assert gate.about == {"rate": "1/m", "next": NOON + timedelta(minutes=1)}
    travel(60)
    assert run_job(second.pk).completed == 1
