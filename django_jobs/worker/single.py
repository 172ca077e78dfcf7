"""One job by its id, for a process that somebody else schedules: a worker of Celery.

The calling thread writes, renews the lease and watches the clock; the handler runs in a thread of
its own, with its own connection. So a signal that the scheduler of the process sends never lands
in a handler, and a handler that hangs holds up no heartbeat.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

from django_jobs import clock, conf, ids
from django_jobs.outcomes import HandedBack, Lost, Outcome
from django_jobs.store import claims as claiming
from django_jobs.store import outbox, undoing
from django_jobs.store.claims import Claim
from django_jobs.store.record import Finish, Item
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer
from django_jobs.store.units import Offer
from django_jobs.worker import announcing, execution, intake, relay
from django_jobs.worker.desk import Desk
from django_jobs.worker.execution import Environment, Execution
from django_jobs.worker.hands import MERCY, clean_up
from django_jobs.worker.heartbeat import TRUSTED, renew, say_lost
from django_jobs.worker.local import FOLLOWED, after
from django_jobs.worker.loop import LoopThread

logger = logging.getLogger("django_jobs.worker")

#: Threads for the gathered steps of a run.
STEP_THREADS = 4
#: Seconds between two looks at a handler that is over its time or canceled.
LOOK = 0.05
#: Longest pause between two tries while the database is away.
LONGEST_PAUSE = 1.0

#: A handler's execution, or the outcome at once, and the outcome.
Ended = tuple["Execution | Outcome", Outcome]


class Hand(threading.Thread):
    """A thread that lives as long as its process and runs one function after the other."""

    def __init__(self) -> None:
        super().__init__(name="jobs-hand", daemon=True)
        self._line: queue.SimpleQueue[tuple[Callable[[], Ended], Future[Ended]]] = (
            queue.SimpleQueue()
        )

    def submit(self, function: Callable[[], Ended]) -> Future[Ended]:
        done: Future[Ended] = Future()
        self._line.put((function, done))
        return done

    def run(self) -> None:
        while True:
            function, done = self._line.get()
            try:
                result = function()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(result)
            finally:
                clean_up()


class OfferingDesk(Desk):
    """A desk that says so when steps of a graph were given to others."""

    def __init__(self, alias: str, lease: float, offered: Callable[[], None]) -> None:
        super().__init__(alias, lease)
        self._offered = offered

    def _submit(self, item: Item) -> Future[Answer]:
        done = super()._submit(item)
        if isinstance(item, Offer):
            done.add_done_callback(lambda _: self._offered())
        return done


class Seat:
    """A place where one job at a time runs: a process, or one thread of a pool.

    ``end_process`` ends the process at once, for a handler that cannot be stopped otherwise; None
    where other jobs run in it too. ``interruptions`` are what the process's scheduler raises in the
    calling thread when a job's time is up.
    """

    def __init__(
        self,
        alias: str,
        *,
        runner: str,
        end_process: Callable[[], None] | None = None,
        interruptions: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.alias = alias
        self.runner = runner
        self.worker = ids.worker_id()
        self.end_process = end_process
        self.interruptions = interruptions
        self.session = Session(alias)
        self.desk = OfferingDesk(alias, conf.get().lease, self.tell)
        self.pool = ThreadPoolExecutor(STEP_THREADS, thread_name_prefix="jobs-step")
        self.environment = Environment(
            self.desk, LoopThread(), self.pool, spreads=True, runner=runner
        )
        self.hand = Hand()
        self.hand.start()

    def run(self, job_id: UUID) -> tuple[Claim, Outcome] | None:
        """Run this job if it is due and nothing holds it back; None when it was not taken.

        An outcome that was not written, as the job is somebody else's by now, is Lost.
        """
        claim = self._take(job_id)
        return None if claim is None else (claim, Sitting(self, claim).run())

    def tell(self) -> None:
        """Send what the outbox promises, beside the job: others may be due now that nobody was told of."""
        self.pool.submit(self._relay)

    def _relay(self) -> None:
        try:
            relay.relay(Session(self.alias))
        except Exception:
            logger.warning("The outbox could not be read; others will do it.", exc_info=True)
        finally:
            clean_up()

    def _take(self, job_id: UUID) -> Claim | None:
        """Claim the job, and forget what is promised to be said of it: it has been said."""
        lease = conf.get().lease

        def work(s: Session) -> list[Claim]:
            row = s.one("SELECT slug, version, runner FROM {job} WHERE id = %(id)s", id=job_id)
            if row is not None and row[2] == self.runner and not intake.has_code(row[0], row[1]):
                # The message stays promised: another worker may have the code.
                logger.warning(
                    "Job %s of %r (version %s) was sent here, but this worker has no code for it.",
                    job_id, row[0], row[1],
                )  # fmt: skip
                return []
            outbox.forget(s, self.runner, job_id)
            if row is None or row[2] != self.runner:
                return []
            taken = claiming.take_chosen(s, [job_id], worker=self.worker, limit=1, lease=lease)
            return taken or undoing.take(
                s, [(row[0], row[1])], worker=self.worker, limit=1, lease=lease, among=[job_id]
            )

        sent = clock.monotonic()
        claims = self.session.committed(work)
        for claim in claims:
            claim.deadline = sent + lease * TRUSTED
        return claims[0] if claims else None


class Sitting:
    """One job at its seat, from the claim to its end."""

    def __init__(self, seat: Seat, claim: Claim) -> None:
        self.seat = seat
        self.claim = claim
        self.settings = conf.get()
        self._beat_at = clock.monotonic()
        self._failures = 0
        self._execution: Execution | None = None
        #: Monotonic end of the handler's time, and of the patience with one that is canceled.
        self._limit: float | None = None
        self._patience: float | None = None

    def run(self) -> Outcome:
        running = self.seat.hand.submit(self._execute)
        running.add_done_callback(lambda _: self.seat.desk.wake())
        while not running.done():
            try:
                self._attend()
                if self._is_overdue():
                    return self._conclude_overdue(running)
            except self.seat.interruptions:
                self._limit = clock.monotonic()
        error = running.exception()
        if error is not None:
            logger.error("Job %s could not be executed.", self.claim.job_id, exc_info=error)
            return self._conclude(Lost(), HandedBack(f"the worker failed: {type(error).__name__}"))
        return self._conclude(*running.result())

    # --- in the hand's thread -----------------------------------------------------------------

    def _execute(self) -> Ended:
        claim = self.claim
        if clock.monotonic() > claim.deadline:
            # Nobody may have taken it yet; under its fence it can still be given back uncharged.
            return Lost(), HandedBack("its lease could not be renewed")
        prepared = execution.prepare(claim, self.seat.environment)
        if not isinstance(prepared, Execution):
            return prepared, prepared
        if prepared.settled is not None:
            return prepared, prepared.settled
        announcing.started(self.seat.alias, claim)
        self._execution = prepared
        if prepared.is_async:
            return prepared, self.seat.environment.loop.run(prepared.arun())
        if prepared.timeout is not None:
            self._limit = clock.monotonic() + prepared.timeout + MERCY
        return prepared, prepared.run()

    # --- in the calling thread ----------------------------------------------------------------

    def _attend(self) -> None:
        """Write what the handler asks for, and renew the lease in time."""
        left = self._beat_at + self.settings.heartbeat - clock.monotonic()
        is_watched = self._limit is not None or self._patience is not None
        self.seat.desk.wait(max(min(left, LOOK if is_watched else left), 0.0))
        self._write()
        if clock.monotonic() - self._beat_at >= self.settings.heartbeat:
            self._renew()
        if self._patience is not None and clock.monotonic() > self._patience:
            self._leave("was canceled and did not stop")

    def _write(self) -> None:
        """Write what lies on the desk. Nothing is lost with a connection: it stays there."""
        session = self.seat.session
        try:
            self.seat.desk.flush(session)
            self._failures = 0
        except Exception as error:
            if not session.dialect.is_lost(error):
                self.seat.desk.give_up(error)
                raise
            self._is_lost(error)

    def _renew(self) -> None:
        self._beat_at = clock.monotonic()
        session = self.seat.session
        try:
            renew(
                session, [self.claim], self.settings.lease,
                is_in_hand=lambda claim: True, interrupt=self._interrupt,
            )  # fmt: skip
        except Exception as error:
            if not session.dialect.is_lost(error):
                raise
            self._is_lost(error)

    def _is_lost(self, error: Exception) -> None:
        if not self._failures:
            logger.warning("The database is lost (%s); trying again.", type(error).__name__)
        self._failures += 1
        self.seat.session.reconnect()
        time.sleep(min(0.1 * 2 ** min(self._failures, 5), LONGEST_PAUSE))

    def _interrupt(self, claim: Claim) -> None:
        """The job is ours no more: an async handler is canceled, one in a process of its own ended."""
        running = self._execution
        if running is None:
            return
        running.interrupt()
        if running.isolation == "process" and self._patience is None:
            self._patience = clock.monotonic() + self.settings.grace

    def _is_overdue(self) -> bool:
        return (
            self._execution is not None
            and self._limit is not None
            and clock.monotonic() >= self._limit
            # A run that is being undone has no limit any more.
            and not self.claim.is_undoing
        )

    # --- the end ------------------------------------------------------------------------------

    def _conclude(self, prepared: Execution | Outcome, outcome: Outcome) -> Outcome:
        answer = self._record(outcome)
        if isinstance(outcome, Lost) or answer == "lost":
            say_lost(self.claim)
            return Lost()
        if answer in FOLLOWED:
            announcing.log(self.claim, outcome)
            self._follow(prepared, outcome, self.seat.hand, answer)
        return outcome

    def _record(self, outcome: Outcome) -> Answer:
        """Write the outcome, however long the database is away: its fence decides whether it counts."""
        answers: list[Answer] = []
        self.seat.desk.finish(Finish(self.claim, outcome), answers.append)
        while not answers:
            try:
                self._write()
            except self.seat.interruptions:
                continue  # the handler has ended, and only its outcome is left to write
        return answers[0]

    def _follow(
        self,
        prepared: Execution | Outcome,
        outcome: Outcome,
        where: Hand | ThreadPoolExecutor,
        answer: Answer,
    ) -> None:
        """Callbacks and signals are the user's code: not for the thread that writes."""

        def work() -> Ended:
            try:
                after(self.seat.alias, prepared, self.claim, outcome, answer)
            finally:
                clean_up()
            return prepared, outcome

        error = where.submit(work).exception()
        if error is not None:
            logger.error("What follows an outcome failed.", exc_info=error)

    def _conclude_overdue(self, running: Future[Ended]) -> Outcome:
        """Record the time-out while the handler still runs, then wait for its end.

        Nothing is injected into running code. The permit stays taken until the handler has really
        stopped; where the process is the job's own, it is ended after the grace.
        """
        claim, prepared = self.claim, self._execution
        assert prepared is not None
        claim.keeps_permit = True
        outcome = prepared.timed_out()
        claim.revoked = "timeout"
        answer = self._record(outcome)
        if answer in FOLLOWED:
            announcing.log(claim, outcome)
            self._follow(prepared, outcome, self.seat.pool, answer)
        logger.warning("Job %s outlived its time limit.", claim.job_id)
        own = prepared.isolation == "process"
        ends = clock.monotonic() + (0.0 if own else self.settings.grace)
        while not running.done():
            if self.seat.end_process is not None and clock.monotonic() >= ends:
                self._leave("outlived its time limit")
            try:
                self.seat.desk.wait(LOOK)
                self._write()
                if clock.monotonic() - self._beat_at >= self.settings.heartbeat:
                    self._renew()
            except self.seat.interruptions:
                continue
        claim.keeps_permit = False
        self._record(Lost())
        return outcome

    def _leave(self, why: str) -> None:
        """End this process, where it is the job's own: nothing else stops its handler."""
        self._patience = None
        if self.seat.end_process is not None:
            logger.warning("Job %s %s; its process is ended.", self.claim.job_id, why)
            self.seat.end_process()
