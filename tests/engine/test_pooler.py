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
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from django_jobs.models import Job
from django_jobs.store.session import Session
from django_jobs.worker.wakeup import Listener
from tests import embedded_pg, embedded_pgbouncer
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually, lines

DIRECT, ALIAS = "direct", "pooled"
IS_REQUIRED = "pgbouncer" in os.environ.get("TEST_REQUIRE", "").split(",")

pytestmark = pytest.mark.skipif(
    embedded_pgbouncer.find_pooler() is None and not IS_REQUIRED,
    reason="NOT TESTED: there is no PgBouncer here (apt-get install pgbouncer)",
)


@pytest.fixture(scope="module")
def server(django_db_blocker: Any) -> Iterator[dict[str, Any]]:
    """A PostgreSQL of these tests' own: a pooler keeps connections to it when a test has ended."""
    entry = embedded_pg.start()
    connections.databases[DIRECT] = {
        **connections["default"].settings_dict, "OPTIONS": {}, "PORT": "", **entry,
    }  # fmt: skip
    with django_db_blocker.unblock():
        call_command("migrate", database=DIRECT, verbosity=0)
    yield entry
    _forget(DIRECT)


@pytest.fixture(params=["transaction"])
def pooled(
    request: pytest.FixtureRequest, server: dict[str, Any], django_db_blocker: Any
) -> Iterator[dict[str, Any]]:
    """The same database by way of a pooler."""
    with (
        embedded_pgbouncer.running(server, request.param) as entry,
        django_db_blocker.unblock(),
    ):
        connections.databases[ALIAS] = {**connections.databases[DIRECT], **entry}
        yield entry
        Job.objects.using(ALIAS).all().delete()
        _forget(ALIAS)


def _forget(alias: str) -> None:
    connections[alias].close()
    del connections[alias]
    del connections.databases[alias]


def completed() -> int:
    return Job.objects.using(ALIAS).filter(status="completed").count()


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
    eventually(
        lambda: all("LISTEN_DSN" in worker.output() for worker in workers),
        "both say what is missing",
    )
    for worker in workers:
        worker.terminate()
    for worker in workers:
        assert worker.wait() == 0, worker.output()
        assert "A pooler stands before PostgreSQL" in worker.output()
        assert "Traceback" not in worker.output()
        assert "prepared statement" not in worker.output()
        assert "is lost" not in worker.output()
    assert Counter(lines(marks)) == Counter(
        [f"job-{n}" for n in range(count)]
        + [f"run-{n} {step}" for n in range(runs) for step in ("a", "b", "c")]
    )
    assert not Job.objects.using(ALIAS).filter(crashes__gt=0).exists()


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


def test_w9_listen_dsn_leads_past_the_pooler(
    pooled: dict[str, Any], server: dict[str, Any]
) -> None:
    dsn = f"host={server['HOST']} user={server['USER']} dbname={server['NAME']}"
    with override_settings(DJANGO_JOBS={"LISTEN_DSN": dsn}):
        assert_hears(*listen())


@pytest.mark.parametrize("pooled", ["session"], indirect=True)
def test_a_pooler_that_keeps_sessions_apart_is_listened_through(pooled: dict[str, Any]) -> None:
    assert_hears(*listen())


def test_statements_are_prepared_on_the_server_s_own_connections_only(
    pooled: dict[str, Any],
) -> None:
    for alias, expected in ((DIRECT, True), (ALIAS, False)):
        session = Session(alias)
        session.own(prepare=True)
        for _ in range(3):
            session.together([("SELECT COUNT(*) FROM {job}", {})])
        known = connections[alias].connection.execute(
            "SELECT COUNT(*) FROM pg_prepared_statements WHERE name LIKE 'jobs_%'"
        )
        assert bool(known.fetchone()[0]) is expected
        connections[alias].close()
