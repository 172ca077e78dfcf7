"""Real processes: started, watched, and killed with SIGKILL, children and all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

SECONDS_TO_START = 30.0


class ProcessFailed(RuntimeError):
    """A process of the demo ended by itself; the text has the end of its log."""


@dataclass(frozen=True)
class Entry:
    """One living process."""

    pid: int
    parent: int
    group: int
    command: str


def living() -> dict[int, Entry]:
    """Every process that is not a zombie, by pid."""
    return _from_proc() if Path("/proc/self/stat").exists() else _from_ps()


def _from_proc() -> dict[int, Entry]:
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        # A process may end while it is being read.
        with contextlib.suppress(OSError):
            # The name in parentheses may itself contain spaces and parentheses.
            state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            if state not in "ZX":
                pid = int(folder.name)
                found[pid] = Entry(pid, int(parent), int(group), command)
    return found


def _from_ps() -> dict[int, Entry]:
    columns = "pid=,ppid=,pgid=,state=,command="
    listing = subprocess.run(
        ["ps", "-A", "-o", columns], capture_output=True, text=True, check=True
    )
    found = {}
    for line in listing.stdout.splitlines():
        pid, parent, group, state, *command = line.split(None, 4)
        if not state.startswith("Z"):
            found[int(pid)] = Entry(int(pid), int(parent), int(group), "".join(command))
    return found


def family(root: int) -> list[Entry]:
    """``root``, its descendants, and what is left of its process group; parents first."""
    processes = living()
    chosen = {root} & set(processes)
    chosen |= {entry.pid for entry in processes.values() if entry.group == root}
    while more := {e.pid for e in processes.values() if e.parent in chosen} - chosen:
        chosen |= more
    return sorted((processes[pid] for pid in chosen), key=lambda e: (e.pid != root, e.pid))


def worker_children(root: int) -> list[int]:
    """The direct children of a supervisor that do its work (not multiprocessing's own helpers)."""
    return [
        entry.pid
        for entry in family(root)
        if entry.parent == root
        and "resource_tracker" not in entry.command
        and "forkserver" not in entry.command
    ]


def kill(pid: int) -> None:
    """SIGKILL; nothing happens when it is gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_family(root: int, spare: frozenset[int] = frozenset()) -> list[int]:
    """SIGKILL to ``root`` first, so that it replaces nobody, then to all its descendants."""
    killed: list[int] = []
    # Again until nobody is left who was born between the listing and the kill.
    while left := [e.pid for e in family(root) if e.pid not in {*killed, *spare}]:
        for pid in left:
            kill(pid)
        killed += left
    return killed


class Service:
    """A subprocess in a session of its own, whose output goes to a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: dict[str, str]) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        if self.process is None:
            raise ProcessFailed(f"The {self.name} was never started.")
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = self._open(log)

    def _open(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def check(self) -> None:
        """:class:`ProcessFailed` when it has ended though nobody asked it to."""
        if self.process is not None and self.process.poll() is not None:
            raise ProcessFailed(
                f"The {self.name} ended with code {self.process.returncode}. {self.last_lines()}"
            )

    def last_lines(self, count: int = 15) -> str:
        """The end of the log, for an error message."""
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return f"The end of {self.log}:\n  " + "\n  ".join(lines)

    def kill_tree(self) -> list[int]:
        """Kill it and all below it with SIGKILL; the pids, its own first."""
        if self.process is None:
            return []
        # Once it has ended and been waited for, its pid may be somebody else's.
        ended = self.process.poll() is not None
        killed = kill_family(self.pid, frozenset({self.pid} if ended else ()))
        self.process.wait()
        return killed

    def stop(self, patience: float = 30.0) -> int | None:
        """SIGTERM, and SIGKILL to what is left after ``patience`` seconds; the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self.kill_tree()
        return self.process.returncode


class ProviderService(Service):
    """The payment provider; ``url`` is known once it has started."""

    url: str = ""

    def __init__(self, ledger: Path, seed: int, log: Path, env: dict[str, str]) -> None:
        command = [sys.executable, "-m", "testproject.shop.provider"]
        command += ["--ledger", str(ledger), "--seed", str(seed)]
        super().__init__("payment provider", command, log, env)

    def _open(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        # It lives as long as this pipe, so it ends with us even if we are killed.
        process = subprocess.Popen(
            self.command,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        assert process.stdout is not None
        self.url = process.stdout.readline().decode().strip()
        if not self.url:
            process.wait(SECONDS_TO_START)
            raise ProcessFailed(f"The {self.name} did not start. {self.last_lines()}")
        return process

    def stop(self, patience: float = 5.0) -> int | None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        return super().stop(patience)


def wait_until_gone(pids: Sequence[int], seconds: float = 10.0) -> None:
    """Until none of ``pids`` lives; :class:`ProcessFailed` if one still does."""
    deadline = time.monotonic() + seconds
    while left := set(pids) & set(living()):
        if time.monotonic() > deadline:
            raise ProcessFailed(f"SIGKILL did not end {sorted(left)}.")
        time.sleep(0.02)
