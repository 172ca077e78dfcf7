"""The test suite's own machinery: what it starts, what it counts and what it forbids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import embedded_pg
from tests.network_guard import OutsideConnection
from tests.support import ROOT, subprocess_env, vendor

needs_postgresql = pytest.mark.skipif(
    embedded_pg.find_bindir() is None, reason="no PostgreSQL binaries here"
)
COUNT_USERS = """
import django
django.setup()
from django.contrib.auth.models import User
from django.db import connection
print(connection.vendor, User.objects.count())
"""
# No tables: none of what is looked at here needs one.
SETTINGS = "from tests.settings import *\nINSTALLED_APPS = []\nMIDDLEWARE = []\n"
SUITE = """
import pytest
from django.db import connection

@pytest.mark.django_db
def test_fails_on_postgresql_only():
    assert connection.vendor == "sqlite"

@pytest.mark.django_db
@pytest.mark.once
def test_runs_once():
    pass

def test_needs_no_database():
    pytest.skip("said")
"""


def run_pytest(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a person's ``pytest`` on a suite of its own that has this suite's conftest."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **extra}
    for name in ("TEST_DB", "TEST_DATABASE", "TEST_COUNTS_FILE", "TEST_LATER_DATABASE"):
        if name not in extra:
            environment.pop(name, None)
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    (folder / "bare_settings.py").write_text(SETTINGS)
    (folder / "test_suite.py").write_text(SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--ds=bare_settings",
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run(
        [*command, "--rootdir", str(folder), str(folder), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_socket_to_another_machine_raises() -> None:
    with pytest.raises(OutsideConnection), socket.socket() as outside:
        outside.connect(("192.0.2.1", 80))
    with (
        pytest.raises(OutsideConnection),
        socket.socket(type=socket.SOCK_DGRAM) as outside,
    ):
        outside.sendto(b"", ("192.0.2.1", 80))


def test_a_name_of_another_machine_is_not_looked_up() -> None:
    with pytest.raises(OutsideConnection):
        socket.create_connection(("db.example", 80))


def test_a_socket_to_this_machine_is_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(("localhost", server.getsockname()[1])) as client:
            assert client.getpeername()[1] == server.getsockname()[1]


@pytest.mark.django_db(transaction=True)
def test_a_subprocess_sees_the_rows_of_the_test_database() -> None:
    from django.contrib.auth.models import User

    User.objects.create(username="seen-from-outside")
    command = [sys.executable, "-c", COUNT_USERS]
    seen = subprocess.run(command, env=subprocess_env(), capture_output=True, text=True)
    assert seen.stdout.split() == [vendor(), "1"], seen.stderr


@needs_postgresql
def test_one_call_runs_every_database_and_closes_on_one_summary(tmp_path: Path) -> None:
    run = run_pytest(tmp_path)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
    assert "sqlite: 2 passed, 0 failed, 1 skipped (exit code 0)" in run.stdout
    assert "postgresql: 0 passed, 1 failed, 0 skipped (exit code 1)" in run.stdout
    assert run.stdout.splitlines()[-1] == "2 passed, 1 failed, 1 skipped"


@needs_postgresql
def test_a_selection_that_needs_no_database_is_no_failure(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "-k", "runs_once")
    assert run.returncode == pytest.ExitCode.OK, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"


@needs_postgresql
def test_a_selection_that_matches_nothing_says_so(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "-k", "no_such_test")
    assert run.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, run.stdout + run.stderr


def test_a_required_database_that_cannot_be_had_is_a_failure(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "-k", "runs_once", TEST_REQUIRE="mariadb", MARIADB_URL="")
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
    assert "mariadb: REQUIRED" in run.stdout
    assert run.stdout.splitlines()[-1].endswith("1 failed, 0 skipped")


def test_a_named_database_runs_alone(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, TEST_DATABASE="sqlite")
    assert run.returncode == pytest.ExitCode.OK, run.stdout + run.stderr
    assert "all databases" not in run.stdout


@needs_postgresql
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_postgresql_is_gone_after_a_kill_of_the_process_that_started_it(tmp_path: Path) -> None:
    # Many open files, as a test run has: not every shell knows descriptors above 9 by number.
    script = "import os, time; kept = [os.dup(0) for _ in range(12)]; from tests import embedded_pg"
    script += "; print(embedded_pg.start()['HOST'], flush=True)"
    owner = subprocess.Popen(
        [sys.executable, "-c", f"{script}; time.sleep(600)"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert (folder / "data" / "postmaster.pid").exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
    assert not _processes_mentioning(str(folder))


def _processes_mentioning(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words:
            found.append(words)
    return found
