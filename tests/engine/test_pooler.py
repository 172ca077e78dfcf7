"""Behind PgBouncer in transaction mode: nothing is prepared, and new jobs are found without LISTEN."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections
from django.test import override_settings

from django_jobs.models import Job
from django_jobs.store.session import Session
from django_jobs.worker.wakeup import Listener
from tests import embedded_pgbouncer
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually, lines
from tests.support import vendor  # noqa: F401  (a condition below names it)

ALIAS = "pooled"
IS_REQUIRED = "pgbouncer" in os.environ.get("TEST_REQUIRE", "").split(",")

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("vendor() != 'postgresql'", reason="PgBouncer serves PostgreSQL only"),
    pytest.mark.skipif(
        embedded_pgbouncer.find_pooler() is None and not IS_REQUIRED,
        reason="NOT TESTED: there is no PgBouncer here (apt-get install pgbouncer)",
    ),
]


@pytest.fixture(params=["transaction"])
def pooled(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[dict[str, Any]]:
    """The database of this test by way of a pooler, as a further alias."""
    kept = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    server = {name: connection.settings_dict[name] for name in kept}
    with embedded_pgbouncer.running(server, request.param) as entry:
        connections.databases[ALIAS] = {**connection.settings_dict, **entry}
        try:
            yield entry
        finally:
            connections[ALIAS].close()
            del connections[ALIAS]
            del connections.databases[ALIAS]


def completed() -> int:
    return Job.objects.filter(status="completed").count()


def test_w9_a_storm_through_the_pooler_loses_and_repeats_nothing(
    pooled: dict[str, Any], tmp_path: Path
) -> None:
    """W9: no statement relies on a session. Many processes share a few connections to the server."""
    marks = tmp_path / "marks"
    count, runs = 300, 30
    jobs.dawdle.using(database=ALIAS).enqueue_many(
        [{"marks": str(marks), "word": f"job-{n}"} for n in range(count)]
    )
    workers = [RunJobs(tmp_path / f"log-{n}", "--processes", 2, database=pooled) for n in range(2)]
    eventually(lambda: completed() > 20, "the work has begun")
    for n in range(runs):
        jobs.three_marks.using(database=ALIAS).enqueue(marks=str(marks), word=f"run-{n}")
    eventually(lambda: completed() == count + runs, "everything is done")
    for worker in workers:
        worker.terminate()
    for worker in workers:
        assert worker.wait() == 0, worker.output()
        assert "A pooler stands before PostgreSQL" in worker.output()
        assert "LISTEN_DSN" in worker.output()
        assert "Traceback" not in worker.output()
        assert "prepared statement" not in worker.output()
        assert "is lost" not in worker.output()
    assert Counter(lines(marks)) == Counter(
        [f"job-{n}" for n in range(count)]
        + [f"run-{n} {step}" for n in range(runs) for step in ("a", "b", "c")]
    )
    assert not Job.objects.filter(crashes__gt=0).exists()


def listen() -> tuple[Listener, threading.Event]:
    heard = threading.Event()
    listener = Listener(ALIAS, heard.set)
    listener.start()
    return listener, heard


def assert_hears(listener: Listener, heard: threading.Event) -> None:
    """It is told of a job, beyond the look that it takes at its start."""
    try:
        eventually(lambda: listener.listening and heard.is_set(), "it listens")
        heard.clear()
        jobs.echo.using(database=ALIAS).enqueue(value=1)
        assert heard.wait(10)
    finally:
        listener.stop()


def test_w9_a_listener_that_would_hear_nothing_says_so_and_leaves_polling_on(
    pooled: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "django_jobs.worker"):
        listener, heard = listen()
        eventually(lambda: "LISTEN_DSN" in caplog.text, "it says what is missing")
    assert not listener.listening
    assert not heard.is_set()
    listener.stop()


def test_w9_listen_dsn_leads_past_the_pooler(pooled: dict[str, Any]) -> None:
    direct = connection.settings_dict
    dsn = f"host={direct['HOST']} user={direct['USER']} dbname={direct['NAME']}"
    with override_settings(DJANGO_JOBS={"LISTEN_DSN": dsn}):
        assert_hears(*listen())


@pytest.mark.parametrize("pooled", ["session"], indirect=True)
def test_a_pooler_that_keeps_sessions_apart_is_listened_through(pooled: dict[str, Any]) -> None:
    assert_hears(*listen())


def test_statements_are_prepared_on_the_server_s_own_connections_only(
    pooled: dict[str, Any],
) -> None:
    for alias, expected in (("default", True), (ALIAS, False)):
        session = Session(alias)
        session.use_prepared_statements(True)
        for _ in range(3):
            session.together([("SELECT COUNT(*) FROM {job}", {})])
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1")
        known = connections[alias].connection.execute(
            "SELECT COUNT(*) FROM pg_prepared_statements WHERE name LIKE 'jobs_%'"
        )
        assert bool(known.fetchone()[0]) is expected
        connections[alias].close()
