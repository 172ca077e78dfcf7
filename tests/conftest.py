from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import bytecode, cpu_times, fan_out
from tests.examples import examples

bytecode.keep(Path(__file__).resolve().parent.parent / ".pytest_cache" / "bytecode")

# No deadline for a single example: two databases are tested at the same time on few cores.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=examples(50))
hypothesis.settings.load_profile("suite")

# What Django's migrations filled, and what refills itself only by the signal that a flush sends.
KEPT_TABLES = {"auth_permission", "django_content_type", "django_migrations"}


def _delete_rows(test: Any) -> None:
    """Empty all tables after a test that commits.

    In place of Django's flush: TRUNCATE of some forty tables and the signal after it cost ten
    times as much as the tests themselves. Foreign keys are deferred or off, so the order is free.
    """
    from django.apps import apps
    from django.db import connections, transaction

    tables = {model._meta.db_table for model in apps.get_models(include_auto_created=True)}
    for alias in connections:
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            checks_now = connections[alias].vendor == "mysql"
            if checks_now:
                cursor.execute("SET foreign_key_checks = 0")
            for table in sorted(tables - KEPT_TABLES):
                cursor.execute(f"DELETE FROM {table}")
            if checks_now:
                cursor.execute("SET foreign_key_checks = 1")


@pytest.fixture(scope="session", autouse=True)
def _quick_teardown() -> None:
    from django.test import TransactionTestCase

    TransactionTestCase._fixture_teardown = _delete_rows  # type: ignore[attr-defined]


DATABASE_FIXTURES = {"db", "transactional_db", "django_db_setup", "live_server"}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    return fan_out.run(config) if fan_out.is_wanted(config) else None


def pytest_report_header() -> str:
    from django.db import connection

    return f"database: {connection.vendor}"


def _uses_database(item: pytest.Item) -> bool:
    from django.test import TransactionTestCase

    test_class = getattr(item, "cls", None)
    return (
        item.get_closest_marker("django_db") is not None
        or not DATABASE_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        or (test_class is not None and issubclass(test_class, TransactionTestCase))
    )


def _runs_everywhere(item: pytest.Item) -> bool:
    if item.get_closest_marker("every_database"):
        return True
    return _uses_database(item) and not item.get_closest_marker("once")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not fan_out.is_later_database():
        return
    left = [item for item in items if _runs_everywhere(item)]
    if len(left) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if not _runs_everywhere(item)])
        items[:] = left


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    cpu_times.begin(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "teardown":
        cpu_times.end(item)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> Generator[None]:
    yield
    _print_promised_times(terminalreporter)
    _print_cpu_times(terminalreporter)
    fan_out.write_counts(terminalreporter.stats)


def _print_promised_times(terminalreporter: Any) -> None:
    """The recovery times of RELIABILITY P8 as this run has measured them."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    seen = [text for one in reports for name, text in one.user_properties if name == "promised"]
    if seen:
        terminalreporter.section("promised times")
        for text in sorted(set(seen)):
            terminalreporter.write_line(text)


def _print_cpu_times(terminalreporter: Any) -> None:
    # A passed teardown's report is filed under "".
    reports = [one for name in ("", "error") for one in terminalreporter.stats.get(name, [])]
    if found := cpu_times.lines(reports):
        terminalreporter.section("CPU seconds of the tests by module")
        for line in found:
            terminalreporter.write_line(line)
