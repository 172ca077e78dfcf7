"""What the system checks say of a database that does not suit the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection

from tests.support import vendor

pytestmark = pytest.mark.django_db(transaction=True)


def only_on(database: str) -> None:
    if vendor() != database:
        pytest.skip(f"a setting of {database}")


def found(*, connects: bool = True) -> set[str]:
    checks = run_checks(databases=["default"] if connects else None)
    return {one.id for one in checks if str(one.id).startswith("django_jobs.")}  # type: ignore[misc]


@contextmanager
def settings(**changed: Any) -> Iterator[None]:
    """The default database's settings, and a connection that follows them."""
    before = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update(changed)
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(before)


def options(**changed: Any) -> dict[str, Any]:
    return {"OPTIONS": {**connection.settings_dict["OPTIONS"], **changed}}


def test_the_settings_of_these_tests_suit() -> None:
    assert found() == set()


def test_without_autocommit_no_worker_could_write_and_none_starts() -> None:
    with settings(AUTOCOMMIT=False):
        assert found(connects=False) == {"django_jobs.E009"}


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("default_transaction_read_only=on", "E011"),
        ("default_transaction_isolation=serializable", "W003"),
    ],
)
def test_a_server_that_only_reads_or_isolates_otherwise_is_named(setting: str, code: str) -> None:
    only_on("postgresql")
    with settings(**options(options=f"-c {setting}")):
        assert found() == {f"django_jobs.{code}"}


def test_tables_without_transactions_are_named() -> None:
    only_on("mysql")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_jobs_ratestart ENGINE = MyISAM")
        try:
            assert found() == {"django_jobs.E012"}
        finally:
            cursor.execute("ALTER TABLE django_jobs_ratestart ENGINE = InnoDB")


def test_another_isolation_is_named_before_anything_connects() -> None:
    only_on("mysql")
    with settings(**options(isolation_level="repeatable read")):
        assert found(connects=False) == {"django_jobs.E006"}


def test_a_journal_that_keeps_writers_waiting_is_named() -> None:
    only_on("sqlite")
    with settings(**options(init_command="PRAGMA journal_mode=DELETE;")):
        assert found() == {"django_jobs.W002"}
