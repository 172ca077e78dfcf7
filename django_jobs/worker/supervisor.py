"""The process that runs no user code: it starts children, and takes back what a dead one held."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connections

from django_jobs import clock, conf, ids
from django_jobs.store import leases, workers
from django_jobs.store.session import Session
from django_jobs.worker.charge import Charges
from django_jobs.worker.child import Child
from django_jobs.worker.intake import Plan

logger = logging.getLogger("django_jobs.worker")

#: Exit codes of a child.
DONE, FAILED_JOBS = 0, 3
#: Seconds between two looks at the children, and the longest pause before a restart.
LOOK, SLOWEST_RESTART = 0.1, 5.0


@dataclass
class Running:
    """A child as its supervisor sees it."""

    pid: int
    worker: UUID
    charges: Charges
    started: float


class Supervisor:
    """Keeps ``processes`` children alive until it is told to stop, or they are done."""

    def __init__(self, plan: Plan, *, processes: int = 1) -> None:
        self.plan = plan
        self.processes = processes
        self.id = ids.worker_id()
        self._children: dict[int, Running] = {}
        self._stops = 0
        self._failed_jobs = False
        self._restarts = 0

    def run(self) -> bool:
        """Supervise until the end; whether a job of theirs ended failed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for _ in range(self.processes):
            self._start()
        while self._children:
            self._reap()
            time.sleep(LOOK)
        connections.close_all()
        return self._failed_jobs

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stops += 1
        for child in list(self._children.values()):
            _send(child.pid, signal.SIGTERM)

    # --- children -----------------------------------------------------------------------------

    def _start(self) -> None:
        charges = Charges()
        worker = ids.worker_id()
        # A child must never share the parent's connections: closing its copy would end them.
        connections.close_all()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_child(self.plan, worker, self.id, charges, parent)
        self._children[pid] = Running(pid, worker, charges, clock.monotonic())
        logger.debug("Started worker %s as process %d.", worker, pid)
        if self._stops:
            _send(pid, signal.SIGTERM)

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done, status = pid, 0
            if done:
                self._ended(self._children.pop(pid), status)

    def _ended(self, child: Running, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code in (DONE, FAILED_JOBS):
            self._failed_jobs |= code == FAILED_JOBS
            self._take_back(child, "the worker process has ended", charged=False)
            if not self._stops and not self._is_finished():
                self._start()
            return
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        logger.error("Worker process %d ended by %s.", child.pid, how)
        self._take_back(child, f"worker process ended by {how}", charged=True)
        if not self._stops:
            self._restarts = (
                self._restarts + 1 if clock.monotonic() - child.started < SLOWEST_RESTART else 0
            )
            time.sleep(min(0.1 * 2 ** min(self._restarts, 6) - 0.1, SLOWEST_RESTART))
            self._start()

    def _is_finished(self) -> bool:
        """Whether a child that ended by itself is not to be replaced."""
        plan = self.plan
        return plan.once or plan.limit is not None or plan.idle_timeout is not None

    def _take_back(self, child: Running, message: str, *, charged: bool) -> None:
        """Free what the dead child held: what it really ran is charged, the rest handed back."""
        running = child.charges.running()
        limit = conf.get().crash_limit
        try:
            session = Session(self.plan.alias)
            for job in leases.held_by(session, child.worker):
                session.committed(
                    lambda s, job=job: leases.take_back(  # type: ignore[misc]
                        s, job, message=message, crash_limit=limit, dead=True,
                        charged=charged and job.job_id in running,
                    )
                )  # fmt: skip
            session.committed(
                lambda s: workers.sign_off(s, child.worker, "lost" if charged else "stopped")
            )
        except Exception:
            # The sweep of any worker will do it once the leases have ended.
            logger.warning(
                "What worker %s held could not be taken back now.", child.worker, exc_info=True
            )
        finally:
            connections.close_all()


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _become_child(
    plan: Plan, worker: UUID, supervisor: UUID, charges: Charges, parent: int
) -> None:
    """In the forked process: run, and leave without the parent's cleanup handlers."""
    code = 1
    try:
        child = Child(plan, supervisor=supervisor, charges=charges)
        child.id = worker
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: child.stop())
        child.watch_parent(parent)
        report = child.serve()
        code = FAILED_JOBS if report.failed else DONE
    except BaseException:
        logger.exception("The worker process failed.")
    finally:
        _flush_output()
        os._exit(code)


def _flush_output() -> None:
    import sys

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            logger.debug("A stream could not be flushed.", exc_info=True)
