"""Running jobs in the calling process: ``run_jobs`` and ``run_job``."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from uuid import UUID

from asgiref.sync import async_to_sync
from django.core.exceptions import ValidationError
from django.db import connections
from django.db.models import Q

from django_jobs import clock, conf, ids, jsonvalues
from django_jobs.definitions import registry
from django_jobs.errors import InvalidInput
from django_jobs.lifecycle import Gate, Kind, Status
from django_jobs.outcomes import Lost, Outcome
from django_jobs.store import claims as claiming
from django_jobs.store import leftovers, overview, undoing
from django_jobs.store.claims import Claim
from django_jobs.store.record import Finish
from django_jobs.store.session import Session, engine_alias
from django_jobs.store.steps import Answer
from django_jobs.worker import announcing, execution, intake
from django_jobs.worker.desk import Desk, DirectRecorder
from django_jobs.worker.execution import Environment, Execution
from django_jobs.worker.hands import Hands
from django_jobs.worker.heartbeat import renew
from django_jobs.worker.report import RunReport, count
from django_jobs.worker.sweep import sweep
from django_jobs.workflows.asking import running_loop, within_running_loop

T = TypeVar("T")
#: Jobs that run_jobs(where=…) asks for at once.
CHUNK = 100
#: Threads that run_jobs() uses at least, unless it is sequential.
THREADS = 4


def run_jobs(
    limit: int = 10,
    queue_name: str = "default",
    all_queues: bool = False,
    where: Q | None = None,
    sequential: bool = False,
    *,
    database: str | None = None,
) -> RunReport:
    """Run one batch: at most ``limit`` jobs that are due now, each once; report what came of them.

    What becomes due or unblocked meanwhile is left for the next call. Inside a transaction the
    jobs run one after the other in the calling thread. InvalidInput for a limit that is no number.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise InvalidInput(f"limit is a whole number, 0 or more, not {limit!r}.")
    batch = Batch(database or engine_alias(), None if all_queues else [queue_name], where)
    batch.prepare()
    return batch.run(batch.claim(limit), sequential=sequential)


def run_job(job_id: UUID | str, *, database: str | None = None) -> RunReport:
    """Run this job if it is due and nothing holds it back; all counts are 0 otherwise."""
    batch = Batch(database or engine_alias(), None, None)
    try:
        wanted = job_id if isinstance(job_id, UUID) else UUID(str(job_id))
    except (ValueError, ValidationError):
        return RunReport()
    batch.where = Q(pk=wanted)
    batch.prepare(only=wanted)
    claims = batch.claim_ids([wanted]) or batch.undoing(1, [wanted])
    return batch.run(claims, sequential=True)


class Batch:
    """One call's worth of jobs, under a worker identity of its own.

    ``spreads`` leaves steps of graphs to others, as workers do, so that each is a claim of its own.
    """

    spreads = False

    def __init__(self, alias: str, queues: list[str] | None, where: Q | None) -> None:
        self.alias = alias
        self.queues = queues
        self.where = where
        self.session = Session(alias)
        self.worker = ids.worker_id()
        self.settings = conf.get()

    def prepare(self, only: UUID | None = None) -> None:
        """Take back what the dead left, and let in what has become due."""
        sweep(self.session, only=only)
        self.session.committed(claiming.open_gates)

    def claim(self, limit: int) -> list[Claim]:
        if limit < 1:
            return []
        if self.where is not None and self.where:
            claims = self.claim_ids(self._matching(), limit)
            return claims + self.undoing(limit - len(claims), self._to_undo())
        chosen, _ = intake.mine(self.session.committed(claiming.lanes), self.queues)
        lease = self.settings.lease
        claims = self.session.committed(
            lambda s: claiming.claim(s, chosen, worker=self.worker, limit=limit, lease=lease)
        )
        return claims + self.undoing(limit - len(claims))

    def undoing(self, limit: int, among: list[UUID] | None = None) -> list[Claim]:
        """Take up to ``limit`` runs that are being undone and that nobody holds, of these or of all."""
        if limit < 1 or among == []:
            return []
        return self.session.committed(
            lambda s: undoing.take(
                s, registry.codes(), worker=self.worker, limit=limit, lease=self.settings.lease,
                queues=self.queues, among=among,
            )
        )  # fmt: skip

    def claim_ids(self, wanted: list[UUID], limit: int | None = None) -> list[Claim]:
        """Take these jobs, or the first ``limit`` of them that nothing holds back."""
        lease = self.settings.lease
        most = len(wanted) if limit is None else limit
        claims: list[Claim] = []
        for start in range(0, len(wanted), CHUNK):
            chunk, left = wanted[start : start + CHUNK], most - len(claims)
            claims += self.session.committed(
                lambda s, chunk=chunk, left=left: claiming.take_chosen(  # type: ignore[misc]
                    s, chunk, worker=self.worker, limit=left, lease=lease
                )
            )
            if len(claims) >= most:
                break
        return claims

    def _to_undo(self) -> list[UUID]:
        found = overview.scope(self.alias, self.queues, self.where)
        return list(found.filter(status=Status.COMPENSATING).values_list("pk", flat=True))

    def _matching(self) -> list[UUID]:
        found = overview.scope(self.alias, self.queues, self.where)
        # Those that wait for a permit are asked too: among these jobs they may be the first.
        gates = (Gate.OPEN, Gate.PERMIT, Gate.RATE)
        due = found.filter(status=Status.PENDING, gate__in=gates, due_at__lte=clock.now())
        codes = registry.codes()
        ordered = due.order_by("precedence", "turn", "due_at", "id").values_list(
            "pk", "slug", "version"
        )
        return [pk for pk, slug, version in ordered if (slug, version) in codes]

    # --- running ------------------------------------------------------------------------------

    def run(self, claims: list[Claim], *, sequential: bool) -> RunReport:
        """Execute ``claims`` and report."""
        return self.report(self.execute(claims, sequential=sequential))

    def execute(self, claims: list[Claim], *, sequential: bool) -> list[Outcome]:
        """Execute ``claims``, record what came of them, and return it."""
        if sequential or self._one_thread_only():
            return self._one_by_one(claims)
        return self._together(claims)

    def report(self, outcomes: list[Outcome]) -> RunReport:
        """The counts of ``outcomes``, and what is left in this scope now."""
        report = count(outcomes)
        left = overview.scope(self.alias, self.queues, self.where)
        waiting, next_due = overview.waiting(left)
        return RunReport(
            report.completed, report.failed, report.retried, report.canceled,
            waiting, overview.blocked(left), next_due,
        )  # fmt: skip

    def _one_thread_only(self) -> bool:
        """Whether other threads could not see these jobs: a transaction, or a database in memory."""
        connection = connections[self.alias]
        in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()  # type: ignore[attr-defined]
        return self.session.in_callers_transaction or in_memory

    def _one_by_one(self, claims: list[Claim]) -> list[Outcome]:
        bound = self._one_thread_only()
        recorder = DirectRecorder(self.alias, self.settings.lease)
        environment = Environment(
            recorder, CallingLoop(), None, same_thread=True, spreads=self.spreads
        )
        outcomes = []
        running: dict[UUID, Execution] = {}
        with Heartbeats(self.alias, claims, running, off=bound):
            for claim in claims:
                if claim is not claims[0]:
                    _look_again(recorder, claim)
                prepared = execution.prepare(claim, environment)
                if isinstance(prepared, Execution):
                    announcing.started(self.alias, claim)
                    running[claim.job_id] = prepared
                    outcome = run_here(prepared)
                else:
                    outcome = prepared
                running.pop(claim.job_id, None)
                if not bound:
                    leftovers.end_transactions()
                answer = recorder.write(Finish(claim, outcome))
                if claim.kind != Kind.STEP:
                    outcomes.append(outcome if answer == "written" else Lost())
                if answer in FOLLOWED:
                    after(self.alias, prepared, claim, outcome, answer)
                recorder.flush()
        return outcomes

    def _together(self, claims: list[Claim]) -> list[Outcome]:
        """Run in threads; the calling thread writes, renews leases and waits for what follows."""
        desk = Desk(self.alias, self.settings.lease)
        outcomes: list[Outcome] = []
        left = len(claims)
        followers: list[Future[None]] = []

        def concluded(claim: Claim, prepared: Execution | Outcome, outcome: Outcome) -> None:
            def told(answer: Answer) -> None:
                nonlocal left
                left -= 1
                hands.drop(claim)
                if claim.kind != Kind.STEP:
                    outcomes.append(outcome if answer == "written" else Lost())
                if answer in FOLLOWED:
                    followers.append(
                        hands.later(after, self.alias, prepared, claim, outcome, answer)
                    )

            desk.finish(Finish(claim, outcome), told)

        hands = Hands(self.alias, THREADS, desk, None, concluded)
        hands.start()
        hands.put(claims)
        beat = clock.monotonic()
        try:
            while left or not all(follower.done() for follower in followers):
                desk.wait(0.5 if left else 0.02)
                desk.flush(self.session)
                if clock.monotonic() - beat > self.settings.heartbeat:
                    beat = clock.monotonic()
                    renew(
                        self.session, list(hands.in_hand.values()), self.settings.lease,
                        is_in_hand=hands.holds, interrupt=hands.interrupt,
                    )  # fmt: skip
        except BaseException as error:
            desk.give_up(error)
            raise
        finally:
            hands.close()
        desk.flush(self.session)
        return outcomes


#: Answers to the write of an outcome that callbacks or signals follow.
FOLLOWED = ("written", "undoing")


def after(
    alias: str, prepared: Execution | Outcome, claim: Claim, outcome: Outcome, answer: Answer
) -> None:
    """Callbacks and signals, once the outcome is stored."""
    if answer == "undoing":
        announcing.undoing(alias, claim, outcome)
        return
    if isinstance(prepared, Execution) and execution.has_callback(prepared, outcome):
        error = execution.call_back(prepared, outcome)
        if error is not None:
            note_callback_error(alias, claim, error)
    announcing.ended(alias, claim, outcome)


def note_callback_error(alias: str, claim: Claim, error: BaseException) -> None:
    """An error of a callback is an entry of the job's history and changes nothing."""
    from django_jobs.store import history

    detail = {"error": jsonvalues.describe_error(error, names=conf.get().redact)}
    Session(alias).committed(
        lambda s: history.note(
            s, claim.job_id, event="callback_failed", worker=claim.worker, detail=detail
        )
    )


def _look_again(recorder: DirectRecorder, claim: Claim) -> None:
    """Hear of commands that were given while the jobs before this one ran."""
    status = recorder.status_of(claim)
    if status is None:
        claim.revoked = claim.revoked or "canceled"
    else:
        claim.hear(status)


class CallingLoop:
    """Runs coroutines to their end from the calling thread, whose connection their ORM calls use."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def work() -> T:
            return await coroutine

        if running_loop() is not None:
            return _in_thread(work())
        return async_to_sync(work)()


def run_here(prepared: Execution) -> Outcome:
    """Run a handler to its end, sync or async, in the calling thread where that is possible."""
    if not prepared.is_async:
        with within_running_loop():
            return prepared.run()
    if running_loop() is not None:
        return _in_thread(prepared.arun())
    return async_to_sync(prepared.arun)()


def _in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of another thread: the calling one has a loop that cannot wait for it."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(asyncio.run(coroutine))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    return done.result()


class Heartbeats:
    """Renews leases from a thread with its own connection while the calling thread runs handlers."""

    def __init__(
        self, alias: str, claims: list[Claim], running: dict[UUID, Execution], *, off: bool
    ) -> None:
        self._alias = alias
        self._running = running
        self._claims = claims
        self._off = off or not claims
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="jobs-heartbeat", daemon=True)

    def __enter__(self) -> None:
        if not self._off:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        if not self._off:
            self._stop.set()
            self._thread.join()

    def _beat(self) -> None:
        settings = conf.get()
        try:
            while not self._stop.wait(settings.heartbeat):
                renew(
                    Session(self._alias), self._claims, settings.lease,
                    is_in_hand=lambda claim: claim.job_id in self._running, interrupt=self._interrupt,
                )  # fmt: skip
        finally:
            connections.close_all()

    def _interrupt(self, claim: Claim) -> None:
        running = self._running.get(claim.job_id)
        if running is not None:
            running.interrupt()
