"""What the tests of the testing tools share."""

from __future__ import annotations

import pytest

from django_jobs import conf, ids
from django_jobs.models import Job
from django_jobs.store import claims
from django_jobs.store.claims import Claim
from django_jobs.store.session import Session

#: Marks that run a test twice: with and without a transaction around it.
IN_BOTH_TEST_CASES = [
    pytest.mark.usefixtures("test_case"),
    pytest.mark.parametrize(
        "test_case",
        [
            pytest.param("plain", marks=pytest.mark.django_db(transaction=True)),
            pytest.param("atomic", marks=pytest.mark.django_db),
        ],
        ids=["TransactionTestCase", "TestCase"],
        indirect=True,
    ),
]


def kill_holder(job: Job) -> Claim:
    """Claim ``job`` as a worker that dies at once: nobody will renew the lease."""
    [claim] = Session().committed(
        lambda s: claims.take(s, [job.pk], worker=ids.worker_id(), lease=conf.get().lease)
    )
    return claim


def status_of(job: Job) -> str:
    job.refresh_from_db()
    return job.status
