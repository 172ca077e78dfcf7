"""What only MariaDB and MySQL can get wrong: isolation, limits that outlast, locks by name."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection, connections, transaction

from django_jobs.models import KeyLock, Queue
from django_jobs.store.session import Session
from tests.engine.processes import eventually

pytestmark = pytest.mark.django_db(transaction=True)


def value_of(name: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT @@SESSION.{name}")
        return cursor.fetchone()[0]


def found() -> list[str | None]:
    return [one.id for one in run_checks(databases=["default"]) if one.id != "models.W037"]


def test_this_server_and_django_s_isolation_are_accepted() -> None:
    assert [one for one in found() if str(one).startswith("django_jobs.")] == []


def test_another_isolation_is_refused() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        assert "django_jobs.E006" in found()
    finally:
        connection.close()


def test_limits_of_a_transaction_end_with_it() -> None:
    before = value_of("wait_timeout"), value_of("innodb_lock_wait_timeout")
    with Session().limited_transaction(7.0):
        assert (value_of("wait_timeout"), value_of("innodb_lock_wait_timeout")) == (7, 7)
    assert (value_of("wait_timeout"), value_of("innodb_lock_wait_timeout")) == before
    with pytest.raises(ZeroDivisionError), Session().limited_transaction(7.0):
        1 / 0  # noqa: B018
    assert (value_of("wait_timeout"), value_of("innodb_lock_wait_timeout")) == before


def test_the_server_ends_a_transaction_that_idles_beyond_its_limit() -> None:
    queue = Queue.objects.create(name="held")
    other = connections.create_connection("default")
    session = Session()
    with pytest.raises(Exception) as raised, session.limited_transaction(1.0):
        Queue.objects.filter(pk=queue.pk).update(priority=1)

        def is_free() -> bool:
            with other.cursor() as cursor:
                cursor.execute("SELECT id FROM django_jobs_queue FOR UPDATE SKIP LOCKED")
                return bool(cursor.fetchall())

        assert not is_free()
        eventually(is_free, "the server has ended the frozen transaction")
        Queue.objects.filter(pk=queue.pk).update(priority=2)
    other.close()
    assert session.dialect.is_lost(raised.value)
    connection.close()
    assert Queue.objects.get().priority == 0


def test_a_name_is_locked_until_the_end_of_the_transaction_and_rows_are_bounded() -> None:
    order: list[str] = []
    trying = threading.Event()

    def second() -> None:
        try:
            session = Session(through_django=True)
            with transaction.atomic():
                trying.set()
                session.dialect.lock_name(session, 5 + 4096)
                order.append("second")
        finally:
            connection.close()

    thread = threading.Thread(target=second)
    session = Session(through_django=True)
    with transaction.atomic():
        session.dialect.lock_name(session, 5)
        thread.start()
        assert trying.wait(30)
        session.dialect.lock_name(session, 6)
        thread.join(0.5)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert sorted(KeyLock.objects.values_list("number", flat=True)) == [5, 6]
