"""What only SQLite can get wrong: a project with the settings that ``startproject`` writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest
from django.core.checks import run_checks
from django.db import connection, transaction

from django_jobs.models import Job
from tests.app import jobs
from tests.engine.processes import in_thread

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def deferred() -> Iterator[None]:
    """Transactions that begin by taking no lock, as Django's default has them."""
    options = connection.settings_dict["OPTIONS"]
    before = options.pop("transaction_mode")
    connection.close()
    yield
    options["transaction_mode"] = before
    connection.close()


@pytest.mark.parametrize("bound", [False, True])
def test_w7_an_enqueue_waits_for_another_writer_instead_of_failing(bound: bool) -> None:
    """W7: in a deferred transaction a read that becomes a write fails at once, whatever the timeout."""
    other = sqlite3.connect(
        connection.settings_dict["NAME"], isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN IMMEDIATE")
    ended: list[str] = []

    def enqueue() -> None:
        with transaction.atomic():
            jobs.echo.using(idempotency_key="once" if bound else None).enqueue(value=1)
        ended.append("committed")

    thread = in_thread(enqueue)
    thread.join(0.3)
    waits = thread.is_alive()
    other.execute("COMMIT")
    other.close()
    thread.join(30)
    assert waits
    assert ended == ["committed"]
    assert Job.objects.count() == 1


def test_deferred_transactions_are_named_by_every_command() -> None:
    assert "django_jobs.W001" in [one.id for one in run_checks()]
