"""A database that restarts, and sessions that are killed, under working workers.

The server is one of its own, so that the tests beside these keep theirs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections

from django_jobs.models import Job
from tests import embedded_pg
from tests.app import jobs
from tests.engine.processes import RunJobs, eventually, lines, promise

ALIAS = "outage"


class Server:
    """A PostgreSQL that can be crashed and started again on the same data."""

    def __init__(self) -> None:
        self.settings = embedded_pg.start(
            fsync="on", synchronous_commit="on", full_page_writes="on"
        )
        self.base = Path(self.settings["HOST"])
        self.command = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")[:-1]
        self.owner = self.base.stat().st_uid, self.base.stat().st_gid
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return int((self.base / "data" / "postmaster.pid").read_text().split()[0])

    def crash(self) -> None:
        """An immediate shutdown: no checkpoint, every session cut."""
        pid = self.pid
        os.kill(pid, signal.SIGQUIT)
        if self.process is not None:
            self.process.wait()
        eventually(
            lambda: not (self.base / "data" / "postmaster.pid").exists(), "the server is gone"
        )

    def start(self) -> None:
        user, group = self.owner
        who: dict[str, Any] = (
            {"user": user, "group": group, "extra_groups": []} if os.geteuid() == 0 else {}
        )
        with (self.base / "second-log").open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd="/", stdout=log, stderr=log, **who)
        eventually(self._answers, "the server is back")

    def _answers(self) -> bool:
        try:
            self.ask("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host=str(self.base), user="postgres", dbname="postgres", autocommit=True
        ) as link:
            return link.execute(sql).fetchall()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()


@pytest.fixture
def server(django_db_blocker: Any) -> Iterator[Server]:
    server = Server()
    connections.databases[ALIAS] = {
        **connections["default"].settings_dict,
        "OPTIONS": {},
        **server.settings,
    }
    try:
        with django_db_blocker.unblock():
            call_command("migrate", database=ALIAS, verbosity=0)
            yield server
    finally:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.databases[ALIAS]
        server.stop()


def start_worker(server: Server, folder: Path) -> RunJobs:
    # Leases outlast what a busy machine needs for a restart; what is lost nevertheless runs again
    # before anybody's patience ends.
    return RunJobs(
        folder / "log", "--processes", 2, database=server.settings, LEASE=30, HEARTBEAT=1
    )


def completed() -> int:
    return Job.objects.using(ALIAS).filter(status="completed").count()


def test_p8_a_restart_of_the_database_repeats_nothing_and_counts_as_no_crash(
    server: Server, tmp_path: Path, record_property: Any
) -> None:
    """P8, W2: what was being written is kept and written once the database is back."""
    marks = tmp_path / "marks"
    count, runs = 400, 40
    jobs.dawdle.using(database=ALIAS).enqueue_many(
        [{"marks": str(marks), "word": f"job-{n}"} for n in range(count)]
    )
    jobs.three_marks.using(database=ALIAS).enqueue_many(
        [{"marks": str(marks), "word": f"run-{n}"} for n in range(runs)]
    )
    worker = start_worker(server, tmp_path)
    eventually(lambda: len(lines(marks)) > 60, "work is under way")
    connections[ALIAS].close()
    server.crash()
    server.start()
    back = time.monotonic()
    ended = completed()
    eventually(lambda: completed() > ended, "new outcomes arrive")
    what = "new outcomes arrive, once the database is back, after"
    promise(record_property, what, time.monotonic() - back, 5)
    eventually(lambda: completed() == count + runs, "everything is done")
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    noted = Counter(lines(marks))
    assert noted == Counter(
        [f"job-{n}" for n in range(count)]
        + [f"run-{n} {step}" for n in range(runs) for step in ("a", "b", "c")]
    )
    assert not Job.objects.using(ALIAS).filter(crashes__gt=0).exists()
    output = worker.output()
    assert output.count("The database is lost") <= 2
    assert "Traceback" not in output


def test_killed_sessions_cost_nothing(server: Server, tmp_path: Path) -> None:
    """W7: every session of the workers is killed again and again while they work."""
    marks = tmp_path / "marks"
    jobs.dawdle.using(database=ALIAS).enqueue_many(
        [{"marks": str(marks), "word": f"job-{n}"} for n in range(400)]
    )
    worker = start_worker(server, tmp_path)
    for step in (50, 150, 250):
        eventually(lambda step=step: len(lines(marks)) > step, "work is under way")  # type: ignore[misc]
        connections[ALIAS].close()
        server.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
    eventually(lambda: completed() == 400, "everything is done")
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    assert Counter(lines(marks)) == Counter(f"job-{n}" for n in range(400))
    assert not Job.objects.using(ALIAS).filter(crashes__gt=0).exists()


def test_c5_a_worker_starts_and_stops_while_the_database_is_away(
    server: Server, tmp_path: Path
) -> None:
    """C5, W7: it waits for the database to come, and does not wait for it in order to end."""
    marks, release = tmp_path / "marks", tmp_path / "release"
    job = jobs.hold.using(database=ALIAS).enqueue(marks=str(marks), release=str(release))
    connections[ALIAS].close()
    server.crash()
    worker = RunJobs(tmp_path / "log", database=server.settings, GRACE=1.0)
    eventually(lambda: "database is lost" in worker.output(), "it says that it waits")
    server.start()
    eventually(lambda: lines(marks), "the job runs")
    server.crash()
    worker.terminate()
    assert worker.wait() == 0, worker.output()
    assert "Traceback" not in worker.output()
    assert "ended by" not in worker.output()
    assert worker.output().count("database is lost") <= 3
    server.start()
    release.touch()
    successor = RunJobs(tmp_path / "successor", database=server.settings)
    eventually(lambda: completed() == 1, "another worker does the job")
    successor.terminate()
    assert successor.wait() == 0, successor.output()
    job.refresh_from_db()
    assert (job.attempts, len(lines(marks))) == (1, 2)
