"""inline_jobs(): jobs run where they are enqueued."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from django.test import TestCase, TransactionTestCase

from django_jobs import Retry, task
from django_jobs.models import Job
from django_jobs.testing import clock, drain, inline_jobs
from tests.app import jobs
from tests.testing.helpers import IN_BOTH_TEST_CASES, status_of


class OutsideOfTransactions(TransactionTestCase):
    def test_a_job_has_ended_when_enqueue_returns(self) -> None:
        with inline_jobs():
            job = jobs.add.enqueue(a=1, b=2)
            self.assertEqual((job.status, job.output), ("completed", 3))
        self.assertEqual(jobs.add.enqueue(a=1, b=2).status, "pending")

    def test_in_a_transaction_a_job_runs_after_the_commit(self) -> None:
        with inline_jobs():
            with transaction.atomic():
                job = jobs.add.enqueue(a=1, b=2)
                self.assertEqual(job.status, "pending")
            self.assertEqual(job.status, "completed")

    def test_a_rolled_back_job_never_runs(self) -> None:
        with inline_jobs():
            with self.assertRaises(RuntimeError), transaction.atomic():
                jobs.add.enqueue(a=1, b=2)
                raise RuntimeError
        self.assertFalse(Job.objects.exists())


class WithinTheTransactionOfTheTest(TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        with inline_jobs():
            cls.early = jobs.add.enqueue(a=1, b=2)

    def test_a_job_of_set_up_test_data_has_run(self) -> None:
        self.assertEqual(self.early.status, "completed")

    def test_a_job_has_ended_when_enqueue_returns(self) -> None:
        with inline_jobs():
            job = jobs.add.enqueue(a=1, b=2)
            self.assertEqual(job.status, "completed")

    def test_a_job_of_a_nested_block_runs_at_the_end(self) -> None:
        with inline_jobs():
            with transaction.atomic():
                job = jobs.add.enqueue(a=1, b=2)
            self.assertEqual(status_of(job), "pending")
        self.assertEqual(status_of(job), "completed")

    def test_a_job_of_a_nested_block_runs_where_its_commit_is_simulated(self) -> None:
        with inline_jobs():
            with self.captureOnCommitCallbacks(execute=True), transaction.atomic():
                job = jobs.add.enqueue(a=1, b=2)
            self.assertEqual(status_of(job), "completed")

    def test_a_rolled_back_job_never_runs(self) -> None:
        with inline_jobs():
            with self.assertRaises(RuntimeError), transaction.atomic():
                job = jobs.add.enqueue(a=1, b=2)
                raise RuntimeError
        self.assertFalse(Job.objects.filter(pk=job.pk).exists())

    @inline_jobs()
    def test_it_decorates(self) -> None:
        self.assertEqual(jobs.add.enqueue(a=1, b=2).status, "completed")


both = [*IN_BOTH_TEST_CASES, pytest.mark.usefixtures("jobs_clock", "jobs_registry", "jobs_inline")]


def marked(function):  # type: ignore[no-untyped-def]
    for mark in both:
        function = mark(function)
    return function


@marked
def test_what_a_job_enqueues_runs_as_well() -> None:
    @task
    def parent(left: int) -> int:
        return parent.enqueue(left=left - 1).output + 1 if left else 0

    assert parent.enqueue(left=3).output == 3


@marked
def test_what_an_async_job_enqueues_runs_as_well() -> None:
    @task
    async def parent(left: int) -> int:
        if not left:
            return 0
        child = await parent.aenqueue(left=left - 1)
        return int(child.output) + 1

    assert parent.enqueue(left=2).output == 2


@marked
def test_a_failure_is_stored_and_not_raised() -> None:
    job = jobs.fail.enqueue(text="no luck")
    assert (job.status, job.error["message"]) == ("failed", "no luck")


@marked
def test_a_job_that_is_not_due_stays_as_it_is() -> None:
    later = jobs.add.using(delay=60).enqueue(a=1, b=2)
    assert later.status == "pending"
    assert drain(until=timedelta(minutes=2)).completed == 1


@marked
def test_a_retry_waits_for_its_time() -> None:
    @task(retries=Retry(max_attempts=2, delay=5, jitter=0))
    def broken() -> None:
        raise ValueError

    job = broken.enqueue()
    assert (job.status, job.attempts) == ("pending", 1)
    clock.travel(timedelta(seconds=5))
    assert drain().failed == 1


@marked
def test_many_jobs_run_in_order() -> None:
    made = jobs.add.enqueue_many([{"a": n, "b": 1} for n in range(3)])
    assert [job.output for job in made] == [1, 2, 3]


@marked
def test_jobs_of_every_runner_run() -> None:
    assert jobs.add.using(runner="celery").enqueue(a=1, b=2).status == "completed"
    assert jobs.add.using(runner="inline").enqueue(a=1, b=2).status == "completed"
