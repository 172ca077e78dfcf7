"""What all sides of a comparison share: the protocol, the clockwork, the plain database link.

A side is a script that runs in an environment of its own, so this module imports nothing but the
standard library, and psycopg where PostgreSQL is used. ``python SIDE.py '{"measure": …}'`` prepares
an empty database, runs one measure once, and prints one JSON object as its last line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

#: Seconds between two looks whether all is done; each look is one cheap statement.
LOOK = 0.2
#: Jobs that a worker has done before anything is timed, and seconds it rests after them.
WARM_UP, REST = 50, 1.0
#: Pick-ups that are timed by the latency measure, and seconds between them at least.
PICK_UPS, GAP = 200, 0.03
#: Jobs of one call where very many are enqueued.
CHUNK = 20_000


class Missing(Exception):
    """This side does not have what the measure asks for; the text says what."""


class Worker:
    """A worker process of a side; it and its children end with this script's process group."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            env={**os.environ, **environment},
            text=True,
        )

    def wait_for_line(self, text: str = "ready") -> None:
        """Wait until the worker has printed ``text``; RuntimeError when it ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return
        raise RuntimeError(f"the worker ended with {self.process.wait()} before it was ready")

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()


class Side:
    """One system in one measure. Subclasses say how it is prepared, fed, run and read."""

    #: What of the default settings was changed for the comparison.
    settings = "defaults"

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.count = int(request.get("count", 1000))
        self.processes = int(request.get("processes", 1))
        self.database: dict[str, str] = request["database"]
        #: Handlers of the latency measure append the moment of their call to this file.
        self.calls = Path(request.get("calls") or tempfile.mkstemp(prefix="bench-calls-")[1])

    # --- what a side says -----------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the tables."""
        raise NotImplementedError

    def run_worker(self) -> None:
        """Be a worker: print ``ready`` and run until killed. Called in a process of its own."""
        raise NotImplementedError

    def start_workers(self) -> list[Worker]:
        """Start ``self.processes`` workers and return when they can take jobs."""
        request = {**self.request, "measure": "worker", "calls": str(self.calls)}
        command = [sys.executable, sys.argv[0], json.dumps(request)]
        workers = [Worker(command) for _ in range(self.processes)]
        for worker in workers:
            worker.wait_for_line()
        return workers

    def add(self, count: int, kind: str = "noop") -> None:
        """Enqueue ``count`` jobs by the fastest way that the side offers, in one commit."""
        raise NotImplementedError

    def add_one(self, kind: str = "noop") -> None:
        """Enqueue one job in a transaction of its own."""
        raise NotImplementedError

    def left(self) -> int:
        """How many jobs are not finished."""
        raise NotImplementedError

    def mark(self) -> Any:
        """A moment of the clock that :meth:`span` reads."""
        return self.value("SELECT now()")

    def span(self, mark: Any) -> tuple[int, float]:
        """How many jobs ended since ``mark``; seconds from their first claim to the last outcome."""
        raise NotImplementedError

    # --- measures -------------------------------------------------------------------------------

    def measure(self) -> dict[str, Any]:
        name = self.request["measure"]
        if name == "worker":
            self.run_worker()
            return {}
        self.prepare()
        result: dict[str, Any] = getattr(self, f"measure_{name}")()
        return {"settings": self.settings, **result}

    def measure_jobs(self) -> dict[str, Any]:
        """Jobs per second: idle workers, then one commit with all jobs; claim to last outcome."""
        with self.working() as workers:
            before = self.spent(workers)
            rate = self.rate(self.count)
            return {"value": rate, **per_job(before, self.spent(workers), self.count)}

    def measure_due(self) -> dict[str, Any]:
        """Jobs per second for the first ``count`` outcomes out of ``size`` jobs that are due."""
        size = int(self.request["size"])
        for begin in range(0, size, CHUNK):
            self.add(min(CHUNK, size - begin))
        if self.database.get("HOST"):
            # As autovacuum does after such a load.
            self.link().execute("VACUUM ANALYZE")
        mark = self.mark()
        workers = self.start_workers()
        try:
            while True:
                time.sleep(LOOK)
                done, seconds = self.span(mark)
                if done >= self.count:
                    return {"value": done / seconds}
        finally:
            for worker in workers:
                worker.stop()

    def measure_enqueue(self) -> dict[str, Any]:
        """Jobs per second by one client, each enqueued in a commit of its own; no worker runs."""
        for _ in range(WARM_UP):
            self.add_one()
        began = time.perf_counter()
        for _ in range(self.count):
            self.add_one()
        return {"value": self.count / (time.perf_counter() - began)}

    def measure_bulk(self) -> dict[str, Any]:
        """Jobs per second by one client with the side's call for many, in one commit."""
        self.add(WARM_UP)
        began = time.perf_counter()
        self.add(self.count)
        return {"value": self.count / (time.perf_counter() - began)}

    def measure_latency(self) -> dict[str, Any]:
        """Milliseconds from the call that enqueues to the handler's first line; worker idle."""
        with self.working():
            known = len(self.called())
            waits = []
            for number in range(PICK_UPS):
                # Not in step with any period of the worker's.
                time.sleep(GAP + (number % 7) * 0.0037)
                began = time.time()
                self.add_one("stamp")
                while len(moments := self.called()) <= known + number:
                    time.sleep(0.001)
                waits.append((moments[known + number] - began) * 1000)
        waits.sort()
        return {
            "value": statistics.median(waits),
            "p99": waits[int(len(waits) * 0.99) - 1],
            "max": waits[-1],
        }

    def measure_idle(self) -> dict[str, Any]:
        """CPU seconds per minute of the idle worker's processes, and its statements per second."""
        seconds = float(self.request.get("seconds", 30))
        with self.working() as workers:
            time.sleep(2)
            self.log_statements()
            cpu, began = cpu_seconds(family(workers)), time.perf_counter()
            before = self.statements()
            time.sleep(seconds)
            passed = time.perf_counter() - began
            used = cpu_seconds(family(workers)) - cpu
            said = self.statements() - before
            return {"value": used / passed * 60, "statements": said / passed}

    def measure_steps(self) -> dict[str, Any]:
        """Durable steps per second; ``runs`` runs of ``steps`` steps each, claim to last outcome."""
        runs, steps = int(self.request["runs"]), int(self.request["steps"])
        with self.working("run1", 5) as workers:
            before = self.spent(workers)
            rate = self.rate(runs, f"run{steps}")
            used = per_job(before, self.spent(workers), runs * steps)
            return {"value": rate * steps, **used}

    def measure_memory(self) -> dict[str, Any]:
        """Proportional set size of the idle worker's processes, in MB."""
        with self.working() as workers:
            time.sleep(2)
            return {"value": memory(workers), "processes": len(family(workers))}

    @contextlib.contextmanager
    def working(self, kind: str = "noop", warm_up: int = WARM_UP) -> Iterator[list[Worker]]:
        """Workers that have done their first jobs and wait for more."""
        workers = self.start_workers()
        try:
            time.sleep(REST)
            self.add(warm_up, kind)
            self.wait_until_done()
            time.sleep(REST)
            yield workers
        finally:
            for worker in workers:
                worker.stop()

    def rate(self, count: int, kind: str = "noop") -> float:
        """Jobs per second for ``count`` jobs put before workers that wait."""
        mark = self.mark()
        self.add(count, kind)
        self.wait_until_done()
        done, seconds = self.span(mark)
        if done != count:
            raise RuntimeError(f"{done} of {count} jobs have ended")
        return done / seconds

    def spent(self, workers: list[Worker]) -> dict[str, float]:
        """CPU seconds used so far by the workers' processes, and by the database's."""
        spent = {"worker_us": cpu_seconds(family(workers))}
        if self.database.get("HOST"):
            backend = self.value("SELECT pg_backend_pid()")
            spent["database_us"] = cpu_seconds(descendants([parent_of(backend)]))
        return spent

    def wait_until_done(self) -> None:
        """The runner's time limit ends a wait in vain."""
        while self.left():
            time.sleep(LOOK)

    def called(self) -> list[float]:
        return [float(line) for line in self.calls.read_text().split()]

    # --- PostgreSQL -----------------------------------------------------------------------------

    def link(self) -> Any:
        """A psycopg connection of the observer's own, in autocommit."""
        import psycopg

        if not hasattr(self, "_link"):
            self._link = psycopg.connect(**self.dsn(), autocommit=True)
        return self._link

    def dsn(self) -> dict[str, str]:
        return {
            "host": self.database["HOST"],
            "user": self.database["USER"],
            "dbname": self.database["NAME"],
        }

    def url(self, scheme: str = "postgresql") -> str:
        base = self.database
        return f"{scheme}://{base['USER']}@/{base['NAME']}?host={base['HOST']}"

    def value(self, sql: str, params: Any = None) -> Any:
        return self.link().execute(sql, params).fetchone()[0]

    def row(self, sql: str, params: Any = None) -> Any:
        return self.link().execute(sql, params).fetchone()

    def commits(self) -> int:
        """Transactions of this database so far, committed."""
        if not self.database.get("HOST"):
            return 0
        # The counters of other sessions arrive up to a second late.
        time.sleep(1.2)
        sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        return int(self.value(sql))

    def log_statements(self) -> None:
        """Write each statement of this database to the server's log, in sessions open already too."""
        self.link().execute("ALTER SYSTEM SET log_statement = 'all'")
        self.link().execute("SELECT pg_reload_conf()")
        time.sleep(0.5)

    def statements(self) -> int:
        """Statements in the server's log, without BEGIN and COMMIT."""
        log = (Path(self.database["HOST"]) / "log").read_text(errors="replace")
        said = re.findall(r"LOG:  (?:statement|execute [^:]*): *(\w*)", log)
        return sum(word.upper() not in ("BEGIN", "COMMIT", "ROLLBACK") for word in said)


def between(first: datetime | None, last: datetime | None) -> float:
    """Seconds from the first to the last moment; 0 where there is none."""
    return (last - first).total_seconds() if first is not None and last is not None else 0.0


def note_call(path: str | Path) -> None:
    """The latency handler's first line."""
    moment = time.time()
    with open(path, "a") as file:
        file.write(f"{moment!r}\n")


def per_job(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    """Microseconds of CPU that each of ``count`` jobs has cost."""
    return {name: (after[name] - before[name]) / count * 1e6 for name in before}


def family(workers: list[Worker]) -> list[int]:
    """The process ids of the workers and all their descendants."""
    return descendants([worker.process.pid for worker in workers])


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(roots: list[int]) -> list[int]:
    """``roots`` and all processes below them."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(parent_of(int(entry.name)), []).append(int(entry.name))
    found = list(roots)
    for pid in found:
        found.extend(parents.get(pid, []))
    return found


def cpu_seconds(processes: list[int]) -> float:
    """User and system time used so far by these processes."""
    total = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def memory(workers: list[Worker]) -> float:
    """Proportional set size in MB: pages that processes share are counted once."""
    total = 0
    for pid in family(workers):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)
        total += int(match[1]) if match else 0
    return total / 1024


def ready() -> None:
    """Tell the starter that this worker takes jobs from now on."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def main(make: Callable[[dict[str, Any]], Side]) -> None:
    """Run what the request asks for and print the answer as one line of JSON."""
    request = json.loads(sys.argv[1])
    try:
        answer = make(request).measure()
    except Missing as error:
        answer = {"missing": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Threads of a peer's library must not keep the process.
    os._exit(0)
