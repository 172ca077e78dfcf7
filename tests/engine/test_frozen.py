"""A process that is frozen within a transaction of the engine: the server lets go of its rows."""

from __future__ import annotations

import pytest
from django.db import connection, connections
from django.test import override_settings

from django_jobs.models import Job
from django_jobs.store.session import Session
from tests.app import jobs
from tests.engine.processes import eventually
from tests.support import vendor

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        "vendor() == 'sqlite'", reason="SQLite: a lock lasts as long as the process"
    ),
]


def test_l9_the_server_ends_a_transaction_of_which_nothing_more_is_heard() -> None:
    """L9: a frozen worker that holds a job's row lock would block its recovery for ever."""
    assert vendor() != "sqlite"
    job = jobs.echo.enqueue(value=1)
    other = connections.create_connection("default")

    def is_free() -> bool:
        with other.cursor() as cursor:
            cursor.execute("SELECT id FROM django_jobs_job FOR UPDATE SKIP LOCKED")
            return bool(cursor.fetchall())

    with override_settings(DJANGO_JOBS={"LEASE": 2, "HEARTBEAT": 0.5}):
        session = Session()
        session.own()
        with pytest.raises(Exception) as raised, session.transaction():
            session.run("UPDATE {job} SET progress = 0.5 WHERE id = %(id)s", id=job.pk)
            assert not is_free()
            eventually(is_free, "the server has ended the transaction", seconds=15)
            session.one("SELECT 1")
        assert session.dialect.is_lost(raised.value)
        session.reconnect()
        assert session.committed(lambda s: s.one("SELECT progress FROM {job}")) == (None,)
    other.close()
    connection.close()
    assert Job.objects.get().progress is None
