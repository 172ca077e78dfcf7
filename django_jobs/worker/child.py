"""One worker process: hands that execute, one database thread that claims and records."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import connections

from django_jobs import clock, conf, ids, signals
from django_jobs.definitions import registry
from django_jobs.lifecycle import Kind, Status
from django_jobs.models import Worker
from django_jobs.outcomes import Completed, Failed, HandedBack, Lost, Outcome
from django_jobs.store import catalogue, leases, undoing, workers
from django_jobs.store.claims import Claim
from django_jobs.store.exchange import exchange
from django_jobs.store.record import Finish
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer
from django_jobs.worker import announcing, execution, relay
from django_jobs.worker.charge import Charges
from django_jobs.worker.desk import Desk, Entry, settle, tell
from django_jobs.worker.execution import Execution
from django_jobs.worker.hands import Hands
from django_jobs.worker.heartbeat import TRUSTED, renew, say_lost
from django_jobs.worker.intake import Intake, Plan
from django_jobs.worker.isolation import Isolation, Link
from django_jobs.worker.local import after
from django_jobs.worker.pen import Pen
from django_jobs.worker.report import RunReport, report_of
from django_jobs.worker.sweep import sweep
from django_jobs.worker.timetable import Timetable
from django_jobs.worker.wakeup import watch

logger = logging.getLogger("django_jobs.worker")

#: Seconds between two pulses at most, so that a dead worker is noticed in time.
LONGEST_PULSE = 4.0


class Child:
    """A process that runs jobs until it is told to stop, or nothing is left to do."""

    def __init__(
        self,
        plan: Plan,
        *,
        supervisor: UUID | None = None,
        charges: Charges | None = None,
        link: Link | None = None,
    ) -> None:
        self.plan = plan
        self.settings = conf.get()
        self.id = ids.worker_id()
        self.supervisor = supervisor
        #: How many tries have ended in each way.
        self._ended: Counter[type[Outcome]] = Counter()
        self.desk = Desk(plan.alias, self.settings.lease)
        self._pen = Pen(self.desk, lambda: self.hands.has_one_busy and not self._lost)
        self.intake = Intake(plan)
        self.isolation = None if link is None else Isolation(link)
        self._charges = charges
        self.hands = Hands(
            plan.alias,
            plan.threads,
            self.desk,
            charges,
            self._concluded,
            self.isolation,
            spreads=True,
        )
        ticks = plan.schedules and self.settings.schedules
        self.timetable = Timetable(plan.alias) if ticks else None
        #: Nothing more is claimed; ``_told`` says that somebody asked for it, and wants it soon.
        self._stopping = threading.Event()
        self._told = threading.Event()
        self._stop_now = threading.Event()
        #: Whether another process is to take the place of this one when it ends.
        self.is_replaced = False
        self._is_registered = False
        #: An operator wants this process to finish what it has and to claim nothing more.
        self._draining = False
        self._over = threading.Event()
        self._listening = lambda: False
        self._relay: relay.Relay | None = None
        self._taken = 0
        self._dry = False
        self._next_pulse = 0.0
        self._lost = self._reconnects = 0
        self._ends: float | None = None

    # --- life ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Claim nothing more; what runs may go on for the grace time. A second call hands back now."""
        if self._told.is_set():
            self._stop_now.set()
        self._told.set()
        self._stopping.set()
        self.desk.wake()

    def _replace(self) -> None:
        """Claim nothing more, and leave to a successor once what runs has ended."""
        self.is_replaced = True
        self._stopping.set()

    def watch_parent(self, parent: int) -> None:
        """Stop when the supervisor is gone: nobody would take back what this process holds."""

        def look() -> None:
            while not self._over.wait(1.0):
                if os.getppid() != parent:
                    logger.warning("The supervisor is gone; this worker stops.")
                    self.stop()
                    if self.isolation is not None:
                        self.isolation.abandon()
                    return

        threading.Thread(target=look, name="jobs-parent", daemon=True).start()

    def serve(self) -> RunReport:
        """Run until the end; the calling thread becomes the database thread."""
        session = Session(self.plan.alias)
        session.own(prepare=self.settings.prepare)
        self._pen.lend(session)
        self.hands.start()
        if not self._beats_here(session):
            threading.Thread(target=self._beat, name="jobs-heartbeat", daemon=True).start()
        watcher = None if self.plan.once else watch(self.plan.alias, self._hint)
        if watcher is not None:
            self._listening = lambda: watcher.listening
        self._relay = None if self.plan.once else relay.start(self.plan.alias)
        if self.timetable is not None and self.plan.once:
            self.timetable.run_once()
        elif self.timetable is not None:
            self.timetable.start()
        try:
            self._rounds(session)
            if self.plan.once:
                relay.relay(session)
        finally:
            self._over.set()
            if self.timetable is not None:
                self.timetable.stop()
            self.hands.close()
            if watcher is not None:
                watcher.stop()
            if self._relay is not None:
                self._relay.stop()
            self._sign_off(session)
        return report_of(self._ended)

    def _hint(self) -> None:
        self.intake.look_soon()
        self.desk.wake()

    def _register(self, session: Session) -> None:
        catalogue.sync(session)
        session.committed(
            lambda s: workers.register(
                s, self.id, supervisor=self.supervisor, hostname=platform.node(), pid=os.getpid(),
                queues=self.plan.queues or [], threads=self.plan.threads,
                codes=[[slug, version] for slug, version in sorted(registry.codes(), key=str)],
            )
        )  # fmt: skip
        self._is_registered = True
        self._announce(signals.worker_started)

    def _sign_off(self, session: Session) -> None:
        if not self._is_registered:
            return
        with contextlib.suppress(Exception):
            session.committed(lambda s: workers.sign_off(s, self.id))
            self._announce(signals.worker_stopped)

    def _announce(self, signal: Any) -> None:
        if signal.receivers:
            row = Worker.objects.using(self.plan.alias).filter(pk=self.id).first()
            signals.announce(signal, Worker, worker=row)

    # --- the database thread ------------------------------------------------------------------

    def _rounds(self, session: Session) -> None:
        while True:
            with self._pen:
                self._work(session)
                if self._has_stopped() if self._stopping.is_set() else self._is_done():
                    return
                pause = self._pause()
            self.desk.wait(pause)

    def _work(self, session: Session) -> None:
        """All that is to be done now."""
        self._keep_time()
        try:
            if not self._is_registered and not self._told.is_set():
                self._register(session)
            if self._lost:
                session.one("SELECT 1")  # a round with nothing to do would take it for back
            if clock.monotonic() >= self._next_pulse:
                self._pulse(session)
            self._round(session)
            self._is_back(session)
            if self.hands.is_stuck:
                self._give_back(session, self.hands.take_unstarted(), "it waited behind long jobs")
            if self._stopping.is_set():
                self._give_back(session, self.hands.take_unstarted(), "the worker stops")
        except Exception as error:
            if not session.dialect.is_trouble(error):
                raise
            self._is_lost(session, error)

    def _is_lost(self, session: Session, error: Exception) -> None:
        if not self._lost:
            logger.warning("The database is lost (%s); trying again.", self._said(session, error))
        self._lost += 1
        session.reconnect()
        # After a reconnect the owners that live renew first.
        self._next_pulse = clock.monotonic() + self.settings.heartbeat
        self.intake.look_soon()
        self._over.wait(min(0.1 * 2 ** min(self._lost, 5), 1.0))

    @staticmethod
    def _said(session: Session, error: Exception) -> str:
        """What is wrong: of a broken connection its kind is enough, else the database's own words."""
        kind = type(error).__name__
        return kind if session.dialect.is_lost(error) else f"{kind}: {str(error).strip()[:200]}"

    def _is_back(self, session: Session) -> None:
        if self._lost:
            self._lost = 0
            logger.info("The database is back.")
        if session.reconnects != self._reconnects:
            self._reconnects = session.reconnects
            self._next_pulse = max(self._next_pulse, clock.monotonic() + self.settings.heartbeat)
            self._give_back_orphans(session)

    def _pulse(self, session: Session) -> None:
        """Show that this process lives, and do what the look that comes with it asks for."""
        self._next_pulse = clock.monotonic() + min(
            self.settings.heartbeat, self.settings.sweep_interval, LONGEST_PULSE
        )
        if self._beats_here(session):
            self._renew(session)
        memory = resident_bytes()
        seen = workers.pulse(session, self.id, jobs_in_hand=len(self.hands.in_hand), memory=memory)
        self._draining = seen.drain
        if self._charges is not None:
            self._charges.pulse()
        has_duty = seen.expired or seen.gated or self.settings.ageing is not None
        if has_duty and not self._stopping.is_set():
            sweep(session)
        if seen.expired or seen.ready or (seen.due_in is not None and seen.due_in <= 0):
            self.intake.look_soon()
        elif seen.due_in is not None:
            self.intake.look_in(seen.due_in)
        if self._relay is not None:
            self._relay.look()
        if self.timetable is not None:
            self.timetable.tell(seen.slot, seen.slot_in)
        most = self.plan.max_memory
        grown = most is not None and memory is not None and memory > most * 2**20
        # One that is too small for the project itself must not keep a process from its first job.
        if grown and self._taken and not self._stopping.is_set():
            logger.info("This process has grown beyond %s MB and is replaced.", most)
            self._replace()

    def _round(self, session: Session) -> None:
        """Write what lies on the desk and take what there is room for, in one transaction."""
        entries = self.desk.take()
        try:
            self._exchange(session, entries)
        except BaseException:
            # Nothing is lost with a connection: what was not written stays on the desk.
            self.desk.put_back(entries)
            raise

    def _exchange(self, session: Session, entries: list[Entry]) -> None:
        leaving = sum(isinstance(entry.item, Finish) for entry in entries)
        room = self._room(leaving)
        if room > 0 and self.intake.wants_look:
            session.committed(self.intake.refresh)
            self._take_undoing(session, room)
            if not self.intake.lanes:
                self._run_dry(session)
        wants = room > 0 and bool(self.intake.lanes)
        if not entries and not wants:
            return
        sent = clock.monotonic()
        lease = self.settings.lease
        try:
            answers, taken = exchange(
                session, [entry.item for entry in entries], self.intake.lanes if wants else [],
                worker=self.id, limit=room, lease=lease, limited=self.hands.free(leaving),
            )  # fmt: skip
        except Exception as error:
            if session.dialect.is_lost(error) or not entries:
                raise
            # One by one, so that a single bad item costs only itself; nothing was taken.
            settle(session, entries)
            return
        for claim in taken:
            claim.deadline = sent + lease * TRUSTED
        if taken:
            self._taken += len(taken)
            self._dry = False
            self.intake.took()
            self.hands.put(taken)
        for entry, answer in zip(entries, answers, strict=True):
            tell(entry, answer)
        if wants and len(taken) < room:
            self._run_dry(session)

    def _take_undoing(self, session: Session, room: int) -> None:
        """Runs that are being undone and lost their holder, or whose compensation is tried again now."""
        sent = clock.monotonic()
        lease = self.settings.lease
        taken = session.committed(
            lambda s: undoing.take(
                s,
                registry.codes(),
                worker=self.id,
                limit=room,
                lease=lease,
                queues=self.plan.queues,
                excluded=self.plan.excluded,
            )
        )
        for claim in taken:
            claim.deadline = sent + lease * TRUSTED
        if taken:
            self._taken += len(taken)
            self.intake.took()
            self.hands.put(taken)
        due = session.committed(undoing.seconds_to_next)
        if due is not None:
            self.intake.look_in(due)

    def _run_dry(self, session: Session) -> None:
        """The known lanes gave less than there is room for."""
        self.intake.ran_dry(session, listening=self._listening())
        self._dry = True

    def _keep_time(self) -> None:
        """End handlers that are past their limit, as far as running code can be ended."""
        for running in self.hands.overdue():
            self.hands.conclude_overdue(running)
        if self.hands.has_runaway and not self._stopping.is_set():
            logger.warning("A handler outlived its time limit; this process is replaced.")
            self._replace()

    def _room(self, leaving: int = 0) -> int:
        if self._stopping.is_set() or self._draining:
            return 0
        room = self.hands.room(leaving)
        for most in (self.plan.limit, self.plan.max_jobs):
            if most is not None:
                room = min(room, most - self._taken)
        return room

    def _pause(self) -> float:
        """Seconds to sleep unless called."""
        if self._room() > 0 and self.intake.lanes:
            return 0.0
        until = self._next_pulse - clock.monotonic()
        if self._room() > 0:
            until = min(until, self.intake.pause)
        return max(until, 0.0) if not self._stopping.is_set() else 0.1

    def _is_done(self) -> bool:
        if self.hands.in_hand or not self.desk.is_empty:
            return False
        if self.plan.limit is not None and self._taken >= self.plan.limit:
            return True
        if self.plan.max_jobs is not None and self._taken >= self.plan.max_jobs:
            self.is_replaced = True
            return True
        if self.plan.once:
            return self._dry or self._draining
        limit = self.plan.idle_timeout
        return limit is not None and self.intake.idle > limit

    # --- outcomes -----------------------------------------------------------------------------

    def _concluded(self, claim: Claim, prepared: Execution | Outcome, outcome: Outcome) -> None:
        """An executing thread is done with a claim: put its outcome on the desk."""
        if isinstance(outcome, Lost):
            delegated = outcome.detail.get("delegated")
            if delegated is not None:
                self._ended[Failed] += int(delegated.failed)
                self.intake.look_soon()
                self._dry = False
            else:
                say_lost(claim)
            # Its permit, if it has one, ends with the handler.
            self.desk.finish(Finish(claim, Lost()), lambda _: self._drop(claim))
            return

        def told(answer: Answer) -> None:
            self._drop(claim)
            if answer == "lost":
                self._learn_why(claim)
                return
            if answer in ("paused", "undoing"):
                self.intake.look_soon()
                self._dry = False
                if answer == "undoing":
                    announcing.log(claim, outcome)
                    self.hands.later(announcing.undoing, self.plan.alias, claim, outcome)
                return
            if claim.kind != Kind.STEP:
                self._ended[type(outcome)] += 1
            if not (isinstance(outcome, Completed) and claim.plain):
                # It may have freed a permit, woken a parent, or be due again at once.
                self.intake.look_soon()
                self._dry = False
                announcing.log(claim, outcome)
            follows = isinstance(prepared, Execution) and execution.has_callback(prepared, outcome)
            if follows or announcing.wanted(outcome):
                self.hands.later(after, self.plan.alias, prepared, claim, outcome, answer)

        self.desk.finish(Finish(claim, outcome), told)

    # --- leases -------------------------------------------------------------------------------

    def _beats_here(self, session: Session) -> bool:
        """On SQLite leases are renewed by the process's one writer."""
        return session.vendor == "sqlite"

    def _beat(self) -> None:
        """The heartbeat thread, with a connection of its own."""
        session = Session(self.plan.alias)
        session.own()
        try:
            while not self._over.wait(self.settings.heartbeat):
                try:
                    self._renew(session)
                except Exception as error:
                    logger.debug("Leases could not be renewed: %s.", type(error).__name__)
                    connections[self.plan.alias].close()
        finally:
            connections.close_all()

    def _renew(self, session: Session) -> None:
        held = list(self.hands.in_hand.values())
        if not held:
            return
        renew(
            session, held, self.settings.lease,
            is_in_hand=self.hands.holds,
            interrupt=self.hands.interrupt,
        )  # fmt: skip

    def _drop(self, claim: Claim) -> None:
        self.hands.drop(claim)
        if claim.acknowledged is not None:
            claim.acknowledged.set()

    def _learn_why(self, claim: Claim) -> None:
        """The end of a claim that was lost between two heartbeats."""
        if claim.revoked is None:
            found = leases.standing(Session(self.plan.alias), [claim.job_id]).get(claim.job_id)
            canceled = found is not None and found.status == Status.CANCELED
            claim.revoked = "canceled" if canceled else "lease"
        say_lost(claim)

    # --- stopping -----------------------------------------------------------------------------

    def _has_stopped(self) -> bool:
        """Whether nothing is left to do, or no time to do it in."""
        if not self.hands.in_hand and self.desk.is_empty:
            return True
        if self._ends is None and (self._told.is_set() or self.hands.has_runaway):
            self._ends = clock.monotonic() + self.settings.grace
        over = self._ends is not None and clock.monotonic() >= self._ends
        if not over and not self._stop_now.is_set():
            return False
        # What still runs is handed back by the supervisor, once nothing of it runs any more.
        for claim in list(self.hands.in_hand.values()):
            claim.revoked = "handed back"
        if self.isolation is not None:
            self.isolation.kill_all()
        return True

    def _give_back_orphans(self, session: Session) -> None:
        """Claims whose commit was never answered are ours, and nobody runs them."""
        for job in leases.held_by(session, self.id):
            if job.job_id not in self.hands.in_hand:
                session.committed(
                    lambda s, job=job: leases.take_back(  # type: ignore[misc]
                        s, job, message="the answer to its claim was lost", charged=False, dead=True,
                        crash_limit=self.settings.crash_limit,
                    )
                )  # fmt: skip

    def _give_back(self, session: Session, claims: list[Claim], reason: str) -> None:
        self._taken -= len(claims)
        for claim in claims:
            self.desk.finish(Finish(claim, HandedBack(reason)), lambda _: None)
            self.hands.drop(claim)
        self.desk.flush(session)


def resident_bytes() -> int | None:
    """The memory this process holds now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
