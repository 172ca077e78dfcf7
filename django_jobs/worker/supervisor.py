"""The process that runs no user code: it starts children, and takes back what a dead one held."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import threading
import time
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from django.db import connections

from django_jobs import clock, conf, ids
from django_jobs.lifecycle import Status
from django_jobs.store import leases, workers
from django_jobs.store.session import Session
from django_jobs.worker.charge import Charges
from django_jobs.worker.child import Child
from django_jobs.worker.intake import Plan
from django_jobs.worker.isolation import RECORDED, RECORDED_FAILED, Link, become_isolated

logger = logging.getLogger("django_jobs.worker")

#: Exit codes of a child.
DONE, FAILED_JOBS = 0, 3
#: What a child is told: finish what runs, or hand it back now.
STOP, STOP_NOW = signal.SIGTERM, signal.SIGUSR1
#: What the supervisor listens to.
SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds between two looks at the children, and the longest pause before a restart.
LOOK, SLOWEST_RESTART = 0.1, 5.0


@dataclass
class Running:
    """A child as its supervisor sees it."""

    pid: int
    worker: UUID
    plan: Plan
    charges: Charges
    link: Link
    started: float

    def plan_of_successor(self) -> Plan | None:
        """The same without what this child has executed of its limit; None when nothing is left."""
        if self.plan.limit is None:
            return self.plan
        left = self.plan.limit - self.charges.entered
        return replace(self.plan, limit=left) if left > 0 else None


@dataclass
class Isolated:
    """A process that runs one job of a child."""

    pid: int
    child: Running
    job_id: UUID
    fence: int
    killed: bool = False


class Supervisor:
    """Keeps ``processes`` children alive until it is told to stop, or they are done."""

    def __init__(self, plan: Plan, *, processes: int = 1) -> None:
        self.plan = plan
        self.processes = processes
        self.id = ids.worker_id()
        self._children: dict[int, Running] = {}
        self._isolated: dict[int, Isolated] = {}
        self._selector = selectors.DefaultSelector()
        self._stops = 0
        self._failed_jobs = False
        self._restarts = 0

    def run(self) -> bool:
        """Supervise until the end; whether a job of theirs ended failed."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        for plan in self._plans():
            self._start(plan)
        while self._children:
            self._reap()
            for key, _ in self._selector.select(LOOK):
                self._hear(key.data)
        connections.close_all()
        return self._failed_jobs

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stops += 1
        for child in list(self._children.values()):
            _send(child.pid, STOP if self._stops == 1 else STOP_NOW)

    # --- children -----------------------------------------------------------------------------

    def _plans(self) -> list[Plan]:
        """One for each child. A limit is the command's, so that each child gets a share of it."""
        limit = self.plan.limit
        if limit is None:
            return [self.plan] * self.processes
        each, rest = divmod(limit, self.processes)
        shares = [each + (number < rest) for number in range(self.processes)]
        return [replace(self.plan, limit=share) for share in shares if share]

    def _start(self, plan: Plan) -> None:
        charges = Charges()
        worker = ids.worker_id()
        ours, theirs = Link.pair()
        # A child must never share the parent's connections: closing its copy would end them.
        connections.close_all()
        parent = os.getpid()
        # Until the child has handlers of its own, a signal would run its copy of ours and be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, STOP_NOW})
        pid = os.fork()
        if pid == 0:
            _become_child(plan, worker, self.id, charges, theirs, parent)
        theirs.close()
        child = Running(pid, worker, plan, charges, ours, clock.monotonic())
        self._children[pid] = child
        self._selector.register(ours.end, selectors.EVENT_READ, child)
        logger.debug("Started worker %s as process %d.", worker, pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, STOP_NOW})
        if self._stops:
            _send(pid, STOP)

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done, status = pid, 0
            if done:
                child = self._children.pop(pid)
                self._selector.unregister(child.link.end)
                child.link.close()
                for one in [one for one in self._isolated.values() if one.child is child]:
                    _send(one.pid, signal.SIGKILL)
                    os.waitpid(one.pid, 0)
                    del self._isolated[one.pid]
                self._ended(child, status)
        for pid in list(self._isolated):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._isolated_ended(self._isolated.pop(pid), os.waitstatus_to_exitcode(status))

    # --- jobs in processes of their own -------------------------------------------------------

    def _hear(self, child: Running) -> None:
        """A child asks for a job to be run in a process of its own, or to be killed there."""
        message = child.link.receive()
        if message is None:
            return
        if "run" in message:
            self._isolate(child, UUID(message["run"]), message["fence"])
            return
        for one in self._isolated.values():
            if str(one.job_id) == message["kill"]:
                one.killed = True
                _send(one.pid, signal.SIGKILL)

    def _isolate(self, child: Running, job_id: UUID, fence: int) -> None:
        connections.close_all()
        pid = os.fork()
        if pid == 0:
            for number in (*SIGNALS, STOP_NOW):
                signal.signal(number, signal.SIG_IGN)
            become_isolated(self.plan.alias, job_id, fence, child.worker)
        self._isolated[pid] = Isolated(pid, child, job_id, fence)

    def _isolated_ended(self, one: Isolated, code: int) -> None:
        if code not in (RECORDED, RECORDED_FAILED) and not one.killed:
            how = _how(code)
            logger.error("The process of job %s ended by %s.", one.job_id, how)
            self._take_back(
                one.child, f"worker process ended by {how}", charged=True, only=one.job_id
            )
        one.child.link.send(ended=str(one.job_id), status=code, killed=one.killed)

    def _ended(self, child: Running, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code in (DONE, FAILED_JOBS):
            self._failed_jobs |= code == FAILED_JOBS
            self._take_back(child, "the worker process has ended", charged=False)
            if not self._stops and not self._is_finished():
                self._start(child.plan)
            return
        how = _how(code)
        logger.error("Worker process %d ended by %s.", child.pid, how)
        self._take_back(child, f"worker process ended by {how}", charged=True)
        plan = child.plan_of_successor()
        if plan is not None and not self._stops:
            self._restarts = (
                self._restarts + 1 if clock.monotonic() - child.started < SLOWEST_RESTART else 0
            )
            time.sleep(min(0.1 * 2 ** min(self._restarts, 6) - 0.1, SLOWEST_RESTART))
            self._start(plan)

    def _is_finished(self) -> bool:
        """Whether a child that ended by itself is not to be replaced."""
        plan = self.plan
        return plan.once or plan.limit is not None or plan.idle_timeout is not None

    def _take_back(
        self, child: Running, message: str, *, charged: bool, only: UUID | None = None
    ) -> None:
        """Free what the dead child held: what it really ran is charged, the rest handed back.

        ``only`` is the one job that an isolated process of a living child held.
        """
        running = child.charges.running() if only is None else {only}
        limit = conf.get().crash_limit
        try:
            session = Session(self.plan.alias)
            held = leases.held_by(session, child.worker)
            for job in [job for job in held if only in (None, job.job_id)]:
                outcome = session.committed(
                    lambda s, job=job: leases.take_back(  # type: ignore[misc]
                        s, job, message=message, crash_limit=limit, dead=True,
                        charged=charged and job.job_id in running,
                    )
                )  # fmt: skip
                self._failed_jobs |= outcome == Status.FAILED
            if only is None:
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


def _how(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _become_child(
    plan: Plan, worker: UUID, supervisor: UUID, charges: Charges, link: Link, parent: int
) -> None:
    """In the forked process: run, and leave without the parent's cleanup handlers."""
    code = 1
    try:
        child = Child(plan, supervisor=supervisor, charges=charges, link=link)
        child.id = worker
        _listen(child)
        child.watch_parent(parent)
        report = child.serve()
        code = FAILED_JOBS if report.failed else DONE
    except BaseException:
        logger.exception("The worker process failed.")
    finally:
        _flush_output()
        os._exit(code)


def _listen(child: Child) -> None:
    """Let signals stop ``child``.

    The handlers only ring: what they interrupt may hold the locks that stopping needs. A SIGTERM
    to the whole group reaches a child directly and by its supervisor: once counts.
    """
    rings, bell = os.pipe()

    def answer() -> None:
        told: set[bytes] = set()
        while number := os.read(rings, 1):
            if number not in told:
                told.add(number)
                child.stop()

    threading.Thread(target=answer, name="jobs-signals", daemon=True).start()
    for number in (STOP, STOP_NOW):
        signal.signal(number, lambda number, frame: os.write(bell, bytes([number])))
    # Ctrl-C reaches a child as well; its supervisor tells it what to do.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, STOP_NOW})


def _flush_output() -> None:
    import sys

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            logger.debug("A stream could not be flushed.", exc_info=True)
