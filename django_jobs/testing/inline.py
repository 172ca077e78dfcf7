"""Jobs that run where they are enqueued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connections, transaction

if TYPE_CHECKING:
    from django_jobs.models import Job


@contextmanager
def inline_jobs() -> Iterator[None]:
    """Run each job as it is enqueued, before ``enqueue()`` returns; context manager or decorator.

    Whatever its runner, a job runs by the rules of ``run_job()``: one that is not due stays as it
    is, and a failure is stored, not raised. Within a transaction jobs run after its commit. The
    transaction of ``TestCase`` itself never commits, so it does not count: directly in it jobs run
    at once, and those enqueued in an ``atomic()`` block below it run when ``inline_jobs()`` ends,
    or before that by ``captureOnCommitCallbacks(execute=True)``. Holds for all threads.
    """
    from django_jobs.enqueueing import listeners

    runner = InlineRunner()
    listeners.append(runner.stored)
    try:
        yield
        runner.finish()
    finally:
        listeners.remove(runner.stored)


class InlineRunner:
    """Runs what is enqueued within one :func:`inline_jobs` block."""

    def __init__(self) -> None:
        #: Jobs of transactions that a test's own transaction keeps from committing.
        self._later: list[tuple[str, UUID]] = []

    def stored(self, jobs: list[Job], alias: str) -> None:
        """Called by enqueue once ``jobs`` are written."""
        connection = connections[alias]
        if not connection.in_atomic_block or _is_in_test_transaction_only(alias):
            self._run(jobs, alias)
            return
        transaction.on_commit(lambda: self._run(jobs, alias), using=alias)
        if _is_in_test_transaction(alias):
            self._later += [(alias, job.pk) for job in jobs]

    def finish(self) -> None:
        """Run what its transaction could not; jobs rolled back meanwhile are gone."""
        from django_jobs.worker.local import run_job

        while self._later:
            alias, job_id = self._later.pop(0)
            if _is_in_test_transaction_only(alias):
                run_job(job_id, database=alias)

    def _run(self, jobs: list[Job], alias: str) -> None:
        from django_jobs.worker.local import run_job

        for job in jobs:
            run_job(job.pk, database=alias)
            job.refresh_from_db()


def _blocks_of_test(alias: str) -> list[bool]:
    """For each open transaction block, outermost first, whether it is one of TestCase."""
    blocks: list[Any] = connections[alias].atomic_blocks
    return [block._from_testcase for block in blocks]


def _is_in_test_transaction(alias: str) -> bool:
    """Whether the outermost transaction is the one that TestCase rolls back."""
    return any(_blocks_of_test(alias)[:1])


def _is_in_test_transaction_only(alias: str) -> bool:
    # TestCase opens one block for its class and one for each test.
    blocks = _blocks_of_test(alias)
    return bool(blocks) and all(blocks)
