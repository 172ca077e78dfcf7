"""The process that runs no user code: it starts children, and takes back what a dead one held."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import selectors
import signal
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from django.db import connections

from django_jobs import clock, conf, ids
from django_jobs.lifecycle import Status
from django_jobs.store import leases, workers
from django_jobs.store.session import Session
from django_jobs.worker.charge import Charges
from django_jobs.worker.child import Child
from django_jobs.worker.hands import ASYNC_LIMIT
from django_jobs.worker.intake import Plan
from django_jobs.worker.isolation import (
    RECORDED,
    RECORDED_FAILED,
    REFUSED,
    UNRECORDED,
    Link,
    become_isolated,
)
from django_jobs.workflows.forks import listen

logger = logging.getLogger("django_jobs.worker")

#: Exit codes of a child: it is done, or it is to be replaced; the second of each says that a job of
#: it ended failed.
DONE, FAILED_JOBS = 0, 3
REPLACED, REPLACED_FAILED = 4, 5
#: What a child is told: finish what runs, or hand it back now.
STOP, STOP_NOW = signal.SIGTERM, signal.SIGUSR1
#: What the supervisor listens to.
SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds between two looks at the children, and the longest pause before a restart.
LOOK, SLOWEST_RESTART = 0.1, 5.0
#: Seconds after which a child is killed that has been told to end now, or whose grace is over.
PATIENCE_NOW, PATIENCE = 0.7, 3.0
#: Seconds between two tries to take back what a dead child held.
REPEAT = 1.0


@dataclass
class Running:
    """A child as its supervisor sees it."""

    pid: int
    worker: UUID
    plan: Plan
    charges: Charges
    link: Link
    started: float
    #: Killed by the supervisor as it did not end in time, by no fault of its jobs.
    killed: bool = False
    #: Messages for which its end of the link had no room.
    unsent: list[dict[str, Any]] = field(default_factory=list)

    def plan_of_successor(self) -> Plan | None:
        """The same without what this child has executed of its limit; None when nothing is left."""
        if self.plan.limit is None:
            return self.plan
        left = self.plan.limit - self.charges.entered
        return replace(self.plan, limit=left) if left > 0 else None

    def tell(self, **message: Any) -> None:
        """Send what can be sent; a frozen child must not hold its supervisor up."""
        self.unsent.append(message)
        self.send_unsent()

    def send_unsent(self) -> None:
        while self.unsent and self.link.send(**self.unsent[0]):
            del self.unsent[0]


@dataclass
class Isolated:
    """A process that runs one job of a child."""

    pid: int
    child: Running
    job_id: UUID
    fence: int
    killed: bool = False


@dataclass
class Estate:
    """What a dead child, or one isolated process of a living one (``only``), has left."""

    child: Running
    message: str
    charged: bool
    only: UUID | None = None
    next_try: float = 0.0
    tries: int = 0


class Supervisor:
    """Keeps ``processes`` children alive until it is told to stop, or they are done."""

    def __init__(self, plan: Plan, *, processes: int = 1) -> None:
        self.plan = plan
        self.processes = processes
        self.id = ids.worker_id()
        self._children: dict[int, Running] = {}
        self._isolated: dict[int, Isolated] = {}
        self._selector = selectors.DefaultSelector()
        #: Children to be started, and when.
        self._due: list[tuple[float, Plan]] = []
        self._estates: list[Estate] = []
        self._stops = 0
        self._ends: float | None = None
        self._failed_jobs = False
        #: How many executions the children that have ended had begun.
        self.executions = 0
        self._restarts = 0
        self._next_touch = 0.0

    def run(self) -> bool:
        """Supervise until the end; whether a job of theirs ended failed."""
        # A parent that ignores it would have its children buried unseen.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        self._due = [(0.0, plan) for plan in self._plans()]
        while self._children or (self._due and not self._stops):
            self._start_due()
            self._reap()
            self._settle_estates()
            self._kill_late()
            self._show_health()
            for key, _ in self._selector.select(LOOK):
                self._hear(key.data)
        # One more signal must not turn a good end into a death by it.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self._settle_estates(last=True)
        connections.close_all()
        return self._failed_jobs

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stops += 1
        if self._stops <= 2:
            patience = PATIENCE_NOW if self._stops > 1 else conf.get().grace + PATIENCE
            self._ends = clock.monotonic() + patience
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

    def _start_due(self) -> None:
        present = clock.monotonic()
        due = [plan for when, plan in self._due if when <= present]
        self._due = [(when, plan) for when, plan in self._due if when > present]
        for plan in due:
            if not self._stops:
                self._start(plan)

    def _start(self, plan: Plan) -> None:
        # Twice the threads: one that outlives its time limit gets a successor.
        charges = Charges(2 * plan.threads + ASYNC_LIMIT)
        worker = ids.worker_id()
        ours, theirs = Link.pair()
        # A child must never share the parent's connections: closing its copy would end them.
        connections.close_all()
        parent = os.getpid()
        # Until the child has handlers of its own, a signal would run its copy of ours and be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, STOP_NOW})
        pid = 0
        try:
            pid = os.fork()
            if pid == 0:
                self._forget_others()
                _become_child(plan, worker, self.id, charges, theirs, parent)
            ours.end.setblocking(False)
            child = Running(pid, worker, plan, charges, ours, clock.monotonic())
            self._children[pid] = child
            self._selector.register(ours.end, selectors.EVENT_READ, child)
            logger.debug("Started worker %s as process %d.", worker, pid)
        except OSError as error:
            logger.error("No worker process can be started (%s); trying again.", error)
            self._due.append((clock.monotonic() + REPEAT, plan))
            ours.close()
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, STOP_NOW})
        if self._stops and pid:
            _send(pid, STOP if self._stops == 1 else STOP_NOW)

    def _forget_others(self) -> None:
        """In a forked process: close what belongs to its supervisor."""
        self._selector.close()
        for other in self._children.values():
            other.link.close()

    def _reap(self) -> None:
        for pid in [*self._children, *self._isolated]:
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done, status = pid, 0
            if done:
                self._gone(pid, status)
        # As the first process of a container, bury what handlers have left behind, too.
        while os.getpid() == 1:
            try:
                done, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not done:
                return
            self._gone(done, status)

    def _gone(self, pid: int, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if pid in self._isolated:
            self._isolated_ended(self._isolated.pop(pid), code)
        if pid not in self._children:
            return
        child = self._children.pop(pid)
        self._selector.unregister(child.link.end)
        child.link.close()
        for one in [one for one in self._isolated.values() if one.child is child]:
            _send(one.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one.pid, 0)
            del self._isolated[one.pid]
        self._ended(child, code)

    def _kill_late(self) -> None:
        """End children that cannot be told: a database that never answers, a handler that holds all."""
        if self._ends is None or clock.monotonic() < self._ends:
            return
        for child in self._children.values():
            if not child.killed:
                child.killed = True
                _send(child.pid, signal.SIGKILL)

    def _show_health(self) -> None:
        """Touch the health file while every child there should be reaches the database.

        One that has not for as long as a lease is as good as dead: others take over its jobs.
        """
        present, lease = clock.monotonic(), conf.get().lease
        if self.plan.health_file is None or present < self._next_touch or self._due:
            return
        self._next_touch = present + 1.0
        if all(present - child.charges.pulsed_at < lease for child in self._children.values()):
            try:
                Path(self.plan.health_file).touch()
            except OSError as error:
                logger.warning("The health file cannot be touched: %s", error)
                self._next_touch = present + lease

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
            if str(one.job_id) == message["kill"] and one.child is child:
                one.killed = True
                _send(one.pid, signal.SIGKILL)

    def _isolate(self, child: Running, job_id: UUID, fence: int) -> None:
        connections.close_all()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            logger.error("No process can be started for job %s: %s", job_id, error)
            child.tell(ended=str(job_id), status=REFUSED, killed=False)
            return
        if pid == 0:
            self._forget_others()
            for number in (*SIGNALS, STOP_NOW):
                listen(number, lambda: None)
            become_isolated(self.plan.alias, job_id, fence, child.worker, parent)
        self._isolated[pid] = Isolated(pid, child, job_id, fence)

    def _isolated_ended(self, one: Isolated, code: int) -> None:
        if code not in (RECORDED, RECORDED_FAILED, UNRECORDED) and not one.killed:
            how = _how(code)
            logger.error("The process of job %s ended by %s.", one.job_id, how)
            self._take_back(
                Estate(one.child, f"worker process ended by {how}", charged=True, only=one.job_id)
            )
        one.child.tell(ended=str(one.job_id), status=code, killed=one.killed)

    # --- what the dead have left --------------------------------------------------------------

    def _ended(self, child: Running, code: int) -> None:
        self.executions += child.charges.entered
        if code in (DONE, FAILED_JOBS, REPLACED, REPLACED_FAILED) or child.killed:
            self._failed_jobs |= code in (FAILED_JOBS, REPLACED_FAILED)
            self._take_back(Estate(child, "the worker process has ended", charged=False))
            if code in (REPLACED, REPLACED_FAILED) or not self._is_finished():
                # One that came to nothing must not be followed by the next at once.
                self._plan_successor(child, hurry=child.charges.entered > 0)
            return
        how = _how(code)
        logger.error("Worker process %d ended by %s.", child.pid, how)
        self._take_back(Estate(child, f"worker process ended by {how}", charged=True))
        self._plan_successor(child, hurry=False)

    def _plan_successor(self, child: Running, *, hurry: bool) -> None:
        plan = child.plan_of_successor()
        if plan is None or self._stops:
            return
        present = clock.monotonic()
        short = not hurry and present - child.started < SLOWEST_RESTART
        self._restarts = self._restarts + 1 if short else 0
        pause = min(0.1 * 2 ** min(self._restarts, 6) - 0.1, SLOWEST_RESTART)
        self._due.append((present + pause, plan))

    def _is_finished(self) -> bool:
        """Whether a child that ended by itself is not to be replaced."""
        plan = self.plan
        return plan.once or plan.limit is not None or plan.idle_timeout is not None

    def _take_back(self, estate: Estate) -> None:
        self._estates.append(estate)
        self._settle_estates()

    def _settle_estates(self, *, last: bool = False) -> None:
        """Free what the dead held; what the database does not take now is tried again."""
        present = clock.monotonic()
        for estate in [one for one in self._estates if last or one.next_try <= present]:
            try:
                self._settle(estate)
            except Exception as error:
                estate.tries += 1
                estate.next_try = clock.monotonic() + REPEAT
                logger.log(
                    logging.WARNING if estate.tries == 1 else logging.DEBUG,
                    "What worker %s held cannot be taken back now (%s).",
                    estate.child.worker, type(error).__name__,
                )  # fmt: skip
                if last or estate.tries * REPEAT > 2 * conf.get().lease:
                    # The sweep of any worker does it once the leases have ended.
                    self._estates.remove(estate)
                break
            else:
                self._estates.remove(estate)
            finally:
                connections.close_all()

    def _settle(self, estate: Estate) -> None:
        """What the dead process really ran is charged, the rest handed back."""
        child, only = estate.child, estate.only
        running = child.charges.running()
        limit = conf.get().crash_limit
        session = Session(self.plan.alias)
        held = leases.held_by(session, child.worker)
        for job in [job for job in held if only in (None, job.job_id)]:
            charged = estate.charged and (only is not None or (job.job_id, job.fence) in running)
            outcome = session.committed(
                lambda s, job=job, charged=charged: leases.take_back(  # type: ignore[misc]
                    s, job, message=estate.message, crash_limit=limit, dead=True, charged=charged
                )
            )
            self._failed_jobs |= outcome == Status.FAILED
        if only is None:
            status = "lost" if estate.charged else "stopped"
            session.committed(lambda s: workers.sign_off(s, child.worker, status))


def _how(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _become_child(
    plan: Plan, worker: UUID, supervisor: UUID, charges: Charges, link: Link, parent: int
) -> NoReturn:
    """In the forked process: run, and leave without the parent's cleanup handlers."""
    code = 1
    try:
        child = Child(plan, supervisor=supervisor, charges=charges, link=link)
        child.id = worker
        _listen(child)
        child.watch_parent(parent)
        report = child.serve()
        code = (REPLACED if child.is_replaced else DONE) if not report.failed else (
            REPLACED_FAILED if child.is_replaced else FAILED_JOBS
        )  # fmt: skip
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

    def ring(number: int) -> None:
        os.write(bell, bytes([number]))

    threading.Thread(target=answer, name="jobs-signals", daemon=True).start()
    for number in (STOP, STOP_NOW):
        listen(number, functools.partial(ring, number))
    # Ctrl-C reaches a child as well; its supervisor tells it what to do.
    listen(signal.SIGINT, lambda: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, STOP_NOW})


def _flush_output() -> None:
    import sys

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            logger.debug("A stream could not be flushed.", exc_info=True)
