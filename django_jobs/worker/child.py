"""One worker process: threads and a loop that execute, one database thread that claims and records."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import connections, reset_queries

from django_jobs import clock, conf, ids, signals
from django_jobs.definitions import registry
from django_jobs.models import Worker
from django_jobs.outcomes import HandedBack, Lost, Outcome
from django_jobs.store import claims as claiming
from django_jobs.store import catalogue, leases, workers
from django_jobs.store.claims import Claim, Lane
from django_jobs.store.record import Finish
from django_jobs.store.session import Session
from django_jobs.worker import announcing, execution
from django_jobs.worker.charge import Charges
from django_jobs.worker.desk import Desk
from django_jobs.worker.execution import Environment, Execution
from django_jobs.worker.local import after
from django_jobs.worker.loop import LoopThread
from django_jobs.worker.report import RunReport, count
from django_jobs.worker.sweep import sweep

logger = logging.getLogger("django_jobs.worker")

#: Prefetch at most this many jobs beyond those that run, and at most this many seconds of work.
PREFETCH = 500
PREFETCH_SECONDS = 0.25
#: Async handlers at the same time.
ASYNC_LIMIT = 100


@dataclass(frozen=True)
class Plan:
    """What a worker is told to do."""

    alias: str
    queues: list[str] | None = None
    excluded: list[str] = field(default_factory=list)
    threads: int = 4
    once: bool = False
    limit: int | None = None
    max_jobs: int | None = None
    max_memory: int | None = None
    idle_timeout: float | None = None
    schedules: bool = True


class Child:
    """A process that runs jobs until it is told to stop, or nothing is left to do."""

    def __init__(
        self, plan: Plan, *, supervisor: UUID | None = None, charges: Charges | None = None
    ) -> None:
        self.plan = plan
        self.settings = conf.get()
        self.id = ids.worker_id()
        self.supervisor = supervisor
        self.charges = charges
        self.desk = Desk(plan.alias, self.settings.lease)
        self.loop = LoopThread()
        self._waiting: deque[Claim] = deque()
        self._in_hand: dict[UUID, Claim] = {}
        self._turn = threading.Condition()
        self._stopping = threading.Event()
        self._hand_back_now = threading.Event()
        self._finished = False
        self._average = 0.05
        self._lanes: list[Lane] = []
        self._unknown: set[str] = set()
        self._look_again = True
        self.report = RunReport()
        self._taken = 0
        self._last_work = clock.monotonic()

    # --- life ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Claim nothing more; what runs may go on for the grace time. A second call hands back now."""
        if self._stopping.is_set():
            self._hand_back_now.set()
        self._stopping.set()
        self.desk.wake()

    def watch_parent(self, parent: int) -> None:
        """Stop when the supervisor is gone: nobody would take back what this process holds."""

        def watch() -> None:
            while os.getppid() == parent and not self._finished:
                self._stop_wait(1.0)
            if not self._finished:
                logger.warning("The supervisor is gone; this worker stops after the job in hand.")
                self.stop()

        threading.Thread(target=watch, name="jobs-parent", daemon=True).start()

    def serve(self) -> RunReport:
        """Run until stopped; in the calling thread, which becomes the database thread."""
        session = Session(self.plan.alias)
        self._prepare_connection(session)
        steps = ThreadPoolExecutor(max(self.plan.threads * 2, 4), thread_name_prefix="jobs-step")
        self._environment = Environment(self.desk, self.loop, steps)
        threads = [
            threading.Thread(target=self._work, name=f"jobs-{number}", daemon=True)
            for number in range(self.plan.threads)
        ]
        for thread in threads:
            thread.start()
        beat = threading.Thread(target=self._beat, name="jobs-heartbeat", daemon=True)
        self._register(session)
        if not self._beats_here(session):
            beat.start()
        try:
            self._rounds(session)
        finally:
            self._finished = True
            with self._turn:
                self._turn.notify_all()
            self.desk.flush(session)
            self._sign_off(session)
            steps.shutdown(wait=False, cancel_futures=True)
        return self.report

    def _prepare_connection(self, session: Session) -> None:
        session.connection.ensure_connection()
        if session.vendor == "postgresql" and self.settings.prepare:
            session.connection.connection.prepare_threshold = 5
            session.prepare = True

    def _beats_here(self, session: Session) -> bool:
        """On SQLite leases are renewed by the process's one writer."""
        return session.vendor == "sqlite"

    def _register(self, session: Session) -> None:
        session.committed(
            lambda s: workers.register(
                s, self.id, supervisor=self.supervisor, hostname=platform.node(), pid=os.getpid(),
                queues=self.plan.queues or [], threads=self.plan.threads,
                codes=[[slug, version] for slug, version in sorted(registry.codes(), key=str)],
            )
        )  # fmt: skip
        session.committed(catalogue.sync)
        self._announce(signals.worker_started)

    def _sign_off(self, session: Session) -> None:
        with contextlib.suppress(Exception):
            session.committed(lambda s: workers.sign_off(s, self.id))
            self._announce(signals.worker_stopped)

    def _announce(self, signal: Any) -> None:
        if signal.receivers:
            row = Worker.objects.using(self.plan.alias).filter(pk=self.id).first()
            signals.announce(signal, Worker, worker=row)

    # --- the database thread ------------------------------------------------------------------

    def _rounds(self, session: Session) -> None:
        next_sweep = next_beat = 0.0
        grace_ends: float | None = None
        while True:
            present = clock.monotonic()
            if present >= next_beat:
                next_beat = present + self.settings.heartbeat
                self._heartbeat(session)
            if present >= next_sweep and not self._stopping.is_set():
                next_sweep = present + self.settings.sweep_interval
                sweep(session)
                self._look_again = True
            self._round(session)
            if self._stopping.is_set():
                grace_ends = grace_ends or present + self.settings.grace
                self._give_back_waiting(session, "the worker stops")
                if not self._in_hand and self.desk.is_empty:
                    return
                if present >= grace_ends or self._hand_back_now.is_set():
                    self._give_back_running(session)
                    return
            elif self._is_done():
                return
            self.desk.wait(self._pause())

    def _round(self, session: Session) -> None:
        """Write what lies on the desk, then claim what there is room for."""
        self.desk.flush(session)
        room = self._room()
        if room <= 0 or self._stopping.is_set() or not self._look_again:
            return
        taken = self._claim(session, room)
        self._taken += len(taken)
        # A short batch means that the lanes ran dry: look again when called or after a pause.
        self._look_again = len(taken) >= room
        if taken:
            self._last_work = clock.monotonic()
            self._dispatch(taken)

    def _claim(self, session: Session, room: int) -> list[Claim]:
        lease = self.settings.lease
        sent = clock.monotonic()

        def work(s: Session) -> list[Claim]:
            found: list[Claim] = []
            if self._lanes:
                found = claiming.claim(s, self._lanes, worker=self.id, limit=room, lease=lease)
            if len(found) < room:
                claiming.open_gates(s)
                self._lanes = self._mine(claiming.lanes(s))
                if self._lanes:
                    found += claiming.claim(
                        s, self._lanes, worker=self.id, limit=room - len(found), lease=lease
                    )
            return found

        taken = session.committed(work)
        for claim in taken:
            claim.deadline = sent + lease * 0.9
        return taken

    def _mine(self, lanes: list[Lane]) -> list[Lane]:
        codes = registry.codes()
        mine = []
        for lane in lanes:
            if lane.runner == "celery" or lane.queue_name in self.plan.excluded:
                continue
            if self.plan.queues is not None and lane.queue_name not in self.plan.queues:
                continue
            if (lane.slug, lane.version) in codes:
                mine.append(lane)
            elif lane.slug not in self._unknown:
                self._unknown.add(lane.slug)
                logger.warning(
                    "Jobs of %r (version %s) wait, but this worker has no code for them.",
                    lane.slug,
                    lane.version,
                )
        return mine

    def _room(self) -> int:
        """How many jobs to claim: the free threads, and as many as will be run within a moment."""
        ahead = min(int(PREFETCH_SECONDS / self._average), PREFETCH) if self._average else PREFETCH
        wanted = self.plan.threads + ahead - len(self._in_hand)
        left = self.plan.limit if self.plan.limit is not None else None
        if self.plan.max_jobs is not None:
            left = self.plan.max_jobs if left is None else min(left, self.plan.max_jobs)
        if left is not None:
            wanted = min(wanted, left - self._taken)
        # Small top-ups cost a statement each: wait until a good part of the batch is used up.
        return (
            wanted if wanted >= min(self.plan.threads, ahead // 2 or 1) or not self._in_hand else 0
        )

    def _pause(self) -> float:
        """Seconds to sleep unless called."""
        if self.plan.once and not self._in_hand:
            return 0.0
        if self._look_again and self._room() > 0:
            return 0.0
        idle = clock.monotonic() - self._last_work
        pause = min(self.settings.poll_max, max(self.settings.poll_min, idle / 4))
        return max(pause + ids.jitter(pause * 0.2), 0.01)

    def _is_done(self) -> bool:
        if self._in_hand or not self.desk.is_empty:
            return False
        for most in (self.plan.limit, self.plan.max_jobs):
            if most is not None and self._taken >= most:
                return True
        if self.plan.once and not self._look_again:
            return True
        idle = self.plan.idle_timeout
        return idle is not None and clock.monotonic() - self._last_work > idle

    def look(self) -> None:
        """There may be work: a notification, or the end of a pause."""
        self._look_again = True
        self.desk.wake()

    # --- handing out and taking in ------------------------------------------------------------

    def _dispatch(self, taken: list[Claim]) -> None:
        for claim in taken:
            self._in_hand[claim.job_id] = claim
        with self._turn:
            self._waiting.extend(taken)
            self._turn.notify(len(taken))

    def _next(self) -> Claim | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            pass
        with self._turn:
            while not self._waiting:
                if self._finished:
                    return None
                self._turn.wait(1.0)
            return self._waiting.popleft()

    def _work(self) -> None:
        """A thread that executes: the next waiting job, until the worker ends."""
        while (claim := self._next()) is not None:
            try:
                self._execute(claim)
            except BaseException:
                logger.exception("Job %s could not be executed.", claim.job_id)
            finally:
                clean_up()

    def _execute(self, claim: Claim) -> None:
        if claim.revoked is not None or clock.monotonic() > claim.deadline:
            self._conclude(claim, Lost(), Lost())
            return
        if self.charges is not None:
            self.charges.enter(claim.job_id, claim.fence)
        prepared = execution.prepare(claim, self._environment)
        if not isinstance(prepared, Execution):
            self._conclude(claim, prepared, prepared)
            return
        announcing.started(self.plan.alias, claim)
        started = clock.perf()
        if prepared.is_async:
            future = self.loop.submit(prepared.arun())
            future.add_done_callback(lambda done: self._conclude(claim, prepared, _result(done)))
            if len(self._in_hand) > ASYNC_LIMIT:
                future.exception()
            return
        outcome = prepared.run()
        # A race of threads here costs a little accuracy, nothing else.
        self._average += (clock.perf() - started - self._average) * 0.05
        self._conclude(claim, prepared, outcome)

    def _conclude(self, claim: Claim, prepared: Execution | Outcome, outcome: Outcome) -> None:
        """Put an outcome on the desk."""
        if self.charges is not None:
            self.charges.leave(claim.job_id)

        def told(answer: str) -> None:
            self._in_hand.pop(claim.job_id, None)
            self._look_again = True
            if answer != "written":
                logger.warning(
                    "Job %s: the lease was lost; its result was not written.", claim.job_id
                )
                return
            self._note(outcome)
            follow_up = isinstance(prepared, Execution) and execution.has_callback(
                prepared, outcome
            )
            if follow_up or announcing.wanted(outcome):
                self._later(after, self.plan.alias, prepared, claim, outcome)

        if isinstance(outcome, Lost):
            self._in_hand.pop(claim.job_id, None)
            logger.warning(
                "Job %s: the lease was lost; nothing more of it is written.", claim.job_id
            )
            self.desk.wake()
            return
        self.desk.finish(Finish(claim, outcome), told)

    def _later(self, function: Callable[..., Any], *args: Any) -> None:
        assert self._environment.pool is not None

        def work() -> None:
            try:
                function(*args)
            finally:
                clean_up()

        self._environment.pool.submit(work)

    def _note(self, outcome: Outcome) -> None:
        self.report += count([outcome])

    # --- leases -------------------------------------------------------------------------------

    def _heartbeat(self, session: Session) -> None:
        """In the database thread: what this process shows of itself, and on SQLite its leases."""
        if self._beats_here(session):
            self._renew(session)
        session.committed(lambda s: workers.beat(s, self.id, jobs_in_hand=len(self._in_hand)))

    def _beat(self) -> None:
        """The heartbeat thread, with a connection of its own."""
        try:
            while not self._finished:
                self._stop_wait(self.settings.heartbeat)
                try:
                    self._renew(Session(self.plan.alias))
                except Exception:
                    logger.warning("Leases could not be renewed; trying again.", exc_info=True)
                    connections[self.plan.alias].close()
        finally:
            connections.close_all()

    def _stop_wait(self, seconds: float) -> None:
        with self._turn:
            if not self._finished:
                ends = clock.monotonic() + seconds
                while not self._finished and (left := ends - clock.monotonic()) > 0:
                    self._turn.wait(left)

    def _renew(self, session: Session) -> None:
        held = list(self._in_hand.values())
        if not held:
            return
        sent = clock.monotonic()
        ours = session.committed(lambda s: leases.renew(s, held, self.settings.lease))
        for claim in held:
            if claim.job_id in ours:
                claim.deadline = sent + self.settings.lease * 0.9
            elif claim.job_id in self._in_hand and claim.revoked is None:
                claim.revoked = "lease"

    # --- giving back --------------------------------------------------------------------------

    def _give_back_waiting(self, session: Session, reason: str) -> None:
        unstarted: list[Claim] = []
        with self._turn:
            while self._waiting:
                unstarted.append(self._waiting.popleft())
        self._give_back(session, unstarted, reason)

    def _give_back_running(self, session: Session) -> None:
        running = list(self._in_hand.values())
        for claim in running:
            claim.revoked = "handed back"
        self._give_back(session, running, "the worker stopped before it ended")

    def _give_back(self, session: Session, claims: list[Claim], reason: str) -> None:
        for claim in claims:
            self.desk.finish(Finish(claim, HandedBack(reason)), lambda _: None)
        self.desk.flush(session)
        for claim in claims:
            self._in_hand.pop(claim.job_id, None)


def _result(future: Any) -> Outcome:
    error = future.exception()
    if error is not None:
        return HandedBack("the worker's loop ended")
    return future.result()  # type: ignore[no-any-return]


def clean_up() -> None:
    """Leave nothing of a handler to the next one in this thread."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            if connection.in_atomic_block or connection.needs_rollback:
                connection.close()
            else:
                connection.close_if_unusable_or_obsolete()
    reset_queries()
