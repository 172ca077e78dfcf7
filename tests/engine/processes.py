"""Real ``manage.py runjobs`` processes on this process's test database, and how to wait for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from django.db import DatabaseError, connection, connections, transaction

from django_jobs.models import Job
from tests import nursery, watchdog
from tests.support import ROOT, subprocess_env, vendor

T = TypeVar("T")
#: Seconds after which a wait has failed, on a machine that is busy with other things.
PATIENCE = 60.0
#: Leases that end soon, and workers that look often. Seconds.
QUICK = {
    "LEASE": 2.0,
    "HEARTBEAT": 0.4,
    "SWEEP_INTERVAL": 0.3,
    "POLL_MIN": 0.05,
    "POLL_MAX": 0.2,
    "GRACE": 20.0,
}


def eventually(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first true value of ``condition``; AssertionError saying ``what`` when none comes."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.02)


def business() -> float:
    """Seconds by which a promise may be late, as the machine is busy with other things now.

    Three times ten starts of a bare interpreter: about half a second where nothing else runs.
    """
    begun = time.monotonic()
    for _ in range(10):
        subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)
    return 3 * (time.monotonic() - begun)


def in_thread(function: Callable[[], object]) -> threading.Thread:
    """Run ``function`` in a thread that leaves no connection behind."""

    def run() -> None:
        try:
            function()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def lines(path: Path) -> list[str]:
    """What handlers have noted outside of the database so far."""
    return path.read_text().splitlines() if path.exists() else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def in_state(pid: int, state: str) -> bool:
    """Whether a process is in this state of ``ps``: T is stopped, Z is dead and not yet waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] == state


def freeze(pid: int) -> None:
    """Stop a process in its tracks, but not within a transaction of its own.

    One that is frozen there keeps everybody out of SQLite; that is not what these tests are about.
    """

    def stopped() -> bool:
        os.kill(pid, signal.SIGSTOP)
        if _can_write():
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    eventually(stopped, f"process {pid} holds no lock")


def _can_write() -> bool:
    if vendor() == "sqlite":
        database = sqlite3.connect(connection.settings_dict["NAME"], timeout=0.3)
        try:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        except sqlite3.OperationalError:
            return False
        finally:
            database.close()
        return True
    try:
        with transaction.atomic():
            list(Job.objects.select_for_update(nowait=True))
    except DatabaseError:
        return False
    return True


class Tree:
    """A process that was started; with its children it forms a group. Its output goes to ``log``."""

    def __init__(self, log: Path, process: subprocess.Popen[bytes] | nursery.Forked) -> None:
        self.log = log
        self.process = process
        watchdog.guard(self.process.pid)

    @staticmethod
    def started(log: Path, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started itself."""
        return self.process.pid

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill_all(self) -> None:
        """kill -9 of the whole tree at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        watchdog.release(self.process.pid)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code; AssertionError with the log when it goes on for longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.log.stem} did not end.\n{self.output()}") from None

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class RunJobs(Tree):
    """One ``manage.py runjobs``: a supervisor and its children."""

    def __init__(
        self,
        log: Path,
        *arguments: object,
        database: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        given = list(map(str, arguments))
        if database is None and env is None:
            super().__init__(log, nursery.runjobs(log, given, {**QUICK, **settings}))
            return
        env = {**subprocess_env(TEST_JOBS=json.dumps({**QUICK, **settings})), **(env or {})}
        if database is not None:
            env["TEST_DB"] = json.dumps(database)
        command = [sys.executable, str(ROOT / "manage.py"), "runjobs", *given]
        super().__init__(log, self.started(log, command, env))


def promise(record: Callable[[str, object], None], what: str, seconds: float, limit: float) -> None:
    """Note a time that RELIABILITY promises, for the summary of the run, and hold it to its limit."""
    record("promised", f"{what}: {seconds:.1f} s (promised: {limit:g} s)")
    assert seconds < limit + business(), f"{what} took {seconds:.1f} s"
