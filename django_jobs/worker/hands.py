"""Those who execute: threads that take their next job from one line, and the asyncio loop."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import reset_queries

from django_jobs import clock
from django_jobs.outcomes import HandedBack, Lost, Outcome
from django_jobs.store import leftovers
from django_jobs.store.claims import Claim
from django_jobs.worker import announcing, execution
from django_jobs.worker.charge import Charges
from django_jobs.worker.execution import Environment, Execution
from django_jobs.worker.loop import LoopThread
from django_jobs.workflows.attempt import Recorder

if TYPE_CHECKING:
    from django_jobs.worker.isolation import Isolation

logger = logging.getLogger("django_jobs.worker")

#: Async handlers at the same time in one process.
ASYNC_LIMIT = 100
#: Prefetch at most so many jobs beyond those that run, and at most so many seconds of work.
PREFETCH, PREFETCH_SECONDS = 500, 0.1

#: The same for jobs that keep a permit from others while they wait in the line.
LIMITED_SECONDS, LIMITED_AHEAD = 0.02, 100
#: Seconds after which jobs that wait behind long ones are handed back.
LONGEST_WAIT = 1.0
#: Seconds that a handler may take beyond its limit to notice it by itself.
MERCY = 0.1


class Overdue(BaseException):
    """A handler came back after its time-out was recorded: its thread ends."""


@dataclass(frozen=True, slots=True)
class Running:
    """A handler with a time limit that runs in a thread; ``limit`` is the monotonic end of it."""

    claim: Claim
    execution: Execution
    limit: float


Concluded = Callable[[Claim, "Execution | Outcome", Outcome], None]


class Hands:
    """Executes claims and reports each outcome to ``concluded``."""

    def __init__(
        self,
        alias: str,
        threads: int,
        recorder: Recorder,
        charges: Charges | None,
        concluded: Concluded,
        isolation: Isolation | None = None,
        *,
        spreads: bool = False,
    ) -> None:
        self.alias = alias
        self.threads = threads
        self.loop = LoopThread()
        self._charges = charges
        self._concluded = concluded
        self._isolation = isolation
        self._running: dict[UUID, Running] = {}
        self._put_at = clock.monotonic()
        #: Set when a handler outlived its time limit: its thread cannot be ended but with the process.
        self.has_runaway = False
        self._line: deque[Claim] = deque()
        self._turn = threading.Condition()
        self._idle = 0
        self._closed = False
        self._async_places = threading.BoundedSemaphore(ASYNC_LIMIT)
        #: Async handlers under way; they take no thread.
        self._on_loop = 0
        self._async_running: dict[UUID, Execution] = {}
        #: Every claim that is waiting or running here, by job.
        self.in_hand: dict[UUID, Claim] = {}
        #: Moving average of a job's seconds.
        self.average = 0.01
        self.pool = ThreadPoolExecutor(max(threads * 2, 4), thread_name_prefix="jobs-step")
        self._environment = Environment(recorder, self.loop, self.pool, spreads=spreads)

    def start(self) -> None:
        leftovers.watch_connections()
        for number in range(self.threads):
            threading.Thread(target=self._work, name=f"jobs-{number}", daemon=True).start()

    def close(self) -> None:
        """Let the threads end once they are free; nothing more is started."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.loop.stop()

    def room(self, leaving: int = 0) -> int:
        """How many jobs to take: for the free threads, and as many as will be run within a moment.

        ``leaving`` of those in hand have ended and are about to be recorded. Small top-ups cost a
        statement each, so a busy worker asks again only when a good part of its line is used up.
        """
        ahead = min(int(self.threads * PREFETCH_SECONDS / max(self.average, 1e-6)), PREFETCH)
        in_hand = len(self.in_hand) - leaving - self._on_loop
        wanted = self.threads + ahead - in_hand
        return wanted if in_hand <= 0 or wanted >= max(1, ahead // 2) else 0

    def free(self, leaving: int = 0) -> int:
        """How many jobs would start at once: for jobs that are not to wait with a permit in hand."""
        ahead = min(int(self.threads * LIMITED_SECONDS / max(self.average, 1e-6)), LIMITED_AHEAD)
        in_hand = len(self.in_hand) - leaving - self._on_loop
        return max(self.threads + ahead - in_hand, 0)

    def put(self, claims: list[Claim]) -> None:
        """Add claims to the line."""
        for claim in claims:
            self.in_hand[claim.job_id] = claim
        self._put_at = clock.monotonic()
        with self._turn:
            self._line.extend(claims)
            if self._idle:
                self._turn.notify(len(claims))

    def take_unstarted(self) -> list[Claim]:
        """Empty the line."""
        unstarted = []
        while self._line:
            try:
                unstarted.append(self._line.popleft())
            except IndexError:
                break
        return unstarted

    @property
    def is_stuck(self) -> bool:
        """Whether claimed jobs wait behind long ones, while another worker might run them."""
        return bool(self._line) and clock.monotonic() - self._put_at > LONGEST_WAIT

    def overdue(self) -> list[Running]:
        """Handlers in threads that have outlived their time limit, each told once."""
        if not self._running:
            return []
        present = clock.monotonic()
        # A run that is being undone has no limit any more.
        late = [
            one
            for one in list(self._running.values())
            if present > one.limit and not one.claim.is_undoing
        ]
        for one in late:
            self._running.pop(one.claim.job_id, None)
        return late

    def conclude_overdue(self, running: Running) -> None:
        """Record the time-out while the handler still runs, and give its thread a successor.

        Nothing is injected into running code: it could land in a driver or a ``finally``. The
        permit of the job stays taken until the process has ended.
        """
        claim = running.claim
        claim.keeps_permit = True
        outcome = running.execution.timed_out()
        claim.revoked = "timeout"
        self.has_runaway = True
        self._concluded(claim, running.execution, outcome)
        threading.Thread(target=self._work, name="jobs-successor", daemon=True).start()

    def interrupt(self, claim: Claim) -> None:
        """Stop the handler of a revoked claim, as far as running code can be stopped from outside."""
        prepared = self._async_running.get(claim.job_id)
        if prepared is not None and prepared.claim is claim:
            prepared.interrupt()

    def holds(self, claim: Claim) -> bool:
        """Whether exactly this claim waits or runs here still."""
        return self.in_hand.get(claim.job_id) is claim

    @property
    def has_one_busy(self) -> bool:
        """Whether one thread executes at most, and nothing on the loop."""
        return self.threads - self._idle <= 1 and not self._on_loop

    def drop(self, claim: Claim) -> None:
        """Forget this claim, and not a later one of the same job that came with the same answer."""
        if self.holds(claim):
            del self.in_hand[claim.job_id]

    def later(self, function: Callable[..., Any], *args: Any) -> Future[None]:
        """Run something small after an outcome is stored, outside of the database thread."""

        def work() -> None:
            try:
                function(*args)
            except Exception:
                logger.exception("What follows an outcome failed.")
            finally:
                clean_up()

        return self.pool.submit(work)

    # --- executing ----------------------------------------------------------------------------

    def _next(self) -> Claim | None:
        try:
            return self._line.popleft()
        except IndexError:
            pass
        with self._turn:
            while not self._line:
                if self._closed:
                    return None
                self._idle += 1
                self._turn.wait()
                self._idle -= 1
            return self._line.popleft()

    def _work(self) -> None:
        while True:
            try:
                claim = self._next()
            except IndexError:
                continue  # another thread was faster
            if claim is None:
                return
            try:
                self._execute(claim)
            except Overdue:
                return
            except BaseException as error:
                # Whatever a handler or the engine around it raises, this thread goes on.
                logger.exception("Job %s could not be executed.", claim.job_id)
                self._conclude(
                    claim, Lost(), HandedBack(f"the worker failed: {type(error).__name__}")
                )
            finally:
                clean_up()

    def _execute(self, claim: Claim) -> None:
        if claim.revoked is not None:
            self._conclude(claim, Lost(), Lost())
            return
        if claim.deadline and clock.monotonic() > claim.deadline:
            # Nobody may have taken it yet; under its fence it can still be given back uncharged.
            self._conclude(claim, Lost(), HandedBack("its lease could not be renewed"))
            return
        if self._charges is not None:
            claim.charge = self._charges.enter(claim.job_id, claim.fence)
        started = clock.perf()
        prepared = execution.prepare(claim, self._environment)
        if not isinstance(prepared, Execution):
            self._conclude(claim, prepared, prepared)
            return
        if prepared.settled is not None:
            self._conclude(claim, prepared, prepared.settled)
            return
        announcing.started(self.alias, claim)
        if self._isolation is not None and self._isolation.is_wanted(claim, prepared):
            self._delegate(self._isolation, claim, prepared)
            return
        if prepared.is_async:
            self._async_places.acquire()
            self._on_loop += 1
            self._async_running[claim.job_id] = prepared
            self.loop.submit(prepared.arun()).add_done_callback(
                lambda done: self._async_done(claim, prepared, done, started)
            )
            return
        if prepared.timeout is None:
            outcome = prepared.run()
        else:
            outcome = self._run_limited(claim, prepared, prepared.timeout)
        self._learn(started)
        if prepared.definition.acknowledge == "each":
            claim.acknowledged = threading.Event()
        self._conclude(claim, prepared, outcome)
        if claim.acknowledged is not None:
            claim.acknowledged.wait()

    def _run_limited(self, claim: Claim, prepared: Execution, timeout: float) -> Outcome:
        self._running[claim.job_id] = Running(claim, prepared, clock.monotonic() + timeout + MERCY)
        outcome = prepared.run()
        if self._running.pop(claim.job_id, None) is None:
            raise Overdue  # its time-out is recorded, and this thread has a successor
        return outcome

    def _delegate(self, isolation: Isolation, claim: Claim, prepared: Execution) -> None:
        """Run a job in a process of its own; the calling thread waits for it."""
        # The supervisor charges the process that runs it, not this one.
        self._leave(claim)
        ended = isolation.run(claim, prepared.timeout)
        if ended.killed and claim.revoked is None:
            self._conclude(claim, prepared, prepared.timed_out())
        elif ended.outcome is not None:
            self._conclude(claim, prepared, ended.outcome)
        else:
            self._conclude(claim, prepared, Lost({"delegated": ended}))

    def _async_done(
        self, claim: Claim, prepared: Execution, done: Future[Outcome], started: float
    ) -> None:
        self._async_places.release()
        self._on_loop -= 1
        if self._async_running.get(claim.job_id) is prepared:
            del self._async_running[claim.job_id]
        if done.cancelled() or done.exception() is not None:
            self._conclude(claim, prepared, HandedBack("the worker's loop ended"))
        else:
            self._conclude(claim, prepared, done.result())

    def _learn(self, started: float) -> None:
        # A race between threads costs a little accuracy, nothing else.
        self.average += (clock.perf() - started - self.average) * 0.05

    def _conclude(self, claim: Claim, prepared: Execution | Outcome, outcome: Outcome) -> None:
        self._leave(claim)
        self._concluded(claim, prepared, outcome)

    def _leave(self, claim: Claim) -> None:
        place, claim.charge = claim.charge, None
        if place is not None and self._charges is not None:
            self._charges.leave(place)


def clean_up() -> None:
    """Leave nothing of a handler to the next one in this thread."""
    if not leftovers.has_opened():
        return  # most handlers use no connection
    leftovers.tidy()
    reset_queries()  # Django keeps the last thousands of them where DEBUG is on
