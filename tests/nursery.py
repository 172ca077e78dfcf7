"""Starts ``manage.py runjobs`` by a fork of a process that has loaded Django before.

An interpreter's start costs the import of Django and of the package, which is most of what a short
test with a worker process needs; here each test process pays it once. What is forked has had no
thread, no connection and no command before. It leads a session of its own, with its own settings and
output, and ends as any interpreter does. The demo, the docs and Celery are started afresh.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests import cpu_times
from tests.support import ROOT, subprocess_env

#: Seconds for a start, on a machine that is busy with other things.
PATIENCE = 60.0
_lock = threading.Lock()
_nurseries: dict[str, Nursery] = {}


class Forked:
    """A process that the nursery has started, as ``subprocess.Popen`` would show it."""

    def __init__(self, pid: int, report: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._report = report

    def poll(self) -> int | None:
        with _lock:
            if self.returncode is None and self._report.exists():
                report = json.loads(self._report.read_text())
                self.returncode = report["code"]
                cpu_times.add(report["cpu"])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("runjobs", timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Nursery:
    """The process that forks; it ends with the one that made it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")
        self._count = 0
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
            cwd=ROOT,
            env=subprocess_env(),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    def start(self, log: Path, arguments: list[str], settings: dict[str, Any]) -> Forked:
        with _lock:
            self._count += 1
            report = Path(self._folder.name) / str(self._count)
            request = {
                "log": str(log),
                "arguments": arguments,
                "settings": settings,
                "report": str(report),
            }
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = self._socket.recv(64)
        assert answer, "the nursery has ended"
        return Forked(int(answer), report)


def runjobs(log: Path, arguments: list[str], settings: dict[str, Any]) -> Forked:
    """``manage.py runjobs`` with these arguments and ``DJANGO_JOBS`` on this process's test database."""
    database = subprocess_env()["TEST_DB"]
    with _lock:
        if database not in _nurseries:
            _nurseries[database] = Nursery()
    return _nurseries[database].start(log, arguments, settings)


# --- the other side ---------------------------------------------------------------------------


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; the request in the new process, None when the asking one is gone."""
    reports: dict[int, Path] = {}
    waking, woken = os.pipe()
    for end in (waking, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    lines = b""
    while True:
        ready, _, _ = select.select([requests, waking], [], [])
        if waking in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(waking, 4096)
            _report_ended(reports)
        if requests not in ready:
            continue
        received = requests.recv(65536)
        if not received:
            return None
        lines += received
        while b"\n" in lines:
            line, _, lines = lines.partition(b"\n")
            request: dict[str, Any] = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(waking)
                os.close(woken)
                return request
            reports[pid] = Path(request["report"])


def _report_ended(reports: dict[int, Path]) -> None:
    while reports:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        report = reports.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        draft = report.with_suffix(".draft")
        draft.write_text(json.dumps({"code": code, "cpu": usage.ru_utime + usage.ru_stime}))
        draft.rename(report)


def _become(request: dict[str, Any], requests: socket.socket) -> None:
    """A process of its own, which writes to its log and has its own settings."""
    from django.conf import settings
    from django.core.signals import setting_changed

    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ["TEST_JOBS"] = json.dumps(request["settings"])
    settings.DJANGO_JOBS = request["settings"]
    setting_changed.send(sender=None, setting="DJANGO_JOBS", value=request["settings"], enter=True)
    requests.sendall(str(os.getpid()).encode())
    requests.close()


def main(descriptor: int) -> None:
    import django

    django.setup()
    from django.core.management import execute_from_command_line
    from django.db import connections

    import django_jobs.management.commands.runjobs
    import django_jobs.worker.supervisor
    import tests.urls  # noqa: F401

    assert django_jobs.management.commands.runjobs
    assert not any(one.connection for one in connections.all(initialized_only=True))
    requests = socket.socket(fileno=descriptor)
    request = _serve(requests)
    if request is not None:
        _become(request, requests)
        sys.argv = ["manage.py", "runjobs", *request["arguments"]]
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main(int(sys.argv[1]))
