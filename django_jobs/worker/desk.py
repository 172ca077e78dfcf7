"""Between those who execute and the one thread that writes: natural batching, no timer.

Whoever has something to record puts it on the desk; the database thread takes all that lies there
and commits it together. Alone, an item is written at once; under load the batch grows while the
last commit is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from django_jobs import clock, failpoints, jsonvalues
from django_jobs.outcomes import Failed
from django_jobs.store import leases
from django_jobs.store.claims import Claim
from django_jobs.store.record import Finish, Item, record
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer

logger = logging.getLogger("django_jobs.worker")

#: Seconds for which a posted item may wait for company.
PATIENCE = 0.005


@dataclass(slots=True)
class Entry:
    """Something to be written, and who waits for it."""

    item: Item
    done: Future[Answer] | None = None
    then: Callable[[Answer], None] | None = None
    #: Whether it is known what became of it.
    settled: bool = False


class Desk:
    """A :class:`~django_jobs.workflows.attempt.Recorder` for many threads and one writer."""

    always_look = False

    def __init__(self, alias: str, lease: float) -> None:
        self.alias = alias
        self.lease = lease
        self._entries: deque[Entry] = deque()
        self._call = threading.Event()
        self._urgent = threading.Event()
        #: Writes at once, in the calling thread, what it can; None says that it has not.
        self.shortcut: Callable[[Item], Answer | None] = _no_shortcut

    # --- for those who execute ----------------------------------------------------------------

    def post(self, item: Item) -> None:
        self._entries.append(Entry(item))
        if not self._call.is_set():
            self._call.set()

    def write(self, item: Item) -> Answer:
        answer = self.shortcut(item)
        return self._submit(item).result() if answer is None else answer

    async def awrite(self, item: Item) -> Answer:
        return await asyncio.wrap_future(self._submit(item))

    def finish(self, item: Finish, then: Callable[[Answer], None]) -> None:
        """Record an outcome and call ``then`` with the answer, in the database thread."""
        self._entries.append(Entry(item, None, then))
        self._ring()

    def renew(self, claim: Claim) -> bool:
        session = Session(self.alias)
        sent = clock.monotonic()
        ours = session.committed(lambda s: leases.renew(s, [claim], self.lease))
        if claim.job_id not in ours:
            return False
        claim.deadline = sent + self.lease * 0.9
        return True

    def status_of(self, claim: Claim) -> str | None:
        return leases.status_of(Session(self.alias), claim)

    def _submit(self, item: Item) -> Future[Answer]:
        done: Future[Answer] = Future()
        self._entries.append(Entry(item, done))
        self._ring()
        return done

    def _ring(self) -> None:
        # Whoever finds them set comes before the writer's next look at the entries.
        if not self._urgent.is_set():
            self._urgent.set()
        if not self._call.is_set():
            self._call.set()

    # --- for the one who writes ---------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Sleep until something must be written, at most ``seconds``.

        What was only posted waits a moment for company: the record of a step for the next start.
        """
        ends = clock.monotonic() + seconds
        while not self._urgent.is_set():
            first = self._oldest()
            if first is None:
                if not self._call.wait(max(ends - clock.monotonic(), 0.0)):
                    break
                self._call.clear()
                continue
            came = self._urgent.wait(PATIENCE)
            if came or self._oldest() is first or clock.monotonic() >= ends:
                break  # else somebody has taken it along
        self._call.clear()
        self._urgent.clear()

    def _oldest(self) -> Entry | None:
        try:
            return self._entries[0]
        except IndexError:
            return None

    def wake(self) -> None:
        self._ring()

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def take(self) -> list[Entry]:
        """Everything on the desk, in order."""
        # Only who holds the pen takes; what is put on it meanwhile is left to the next round.
        return [self._entries.popleft() for _ in range(len(self._entries))]

    def flush(self, session: Session) -> None:
        """Write everything on the desk in one transaction and tell those who wait."""
        entries = self.take()
        try:
            settle(session, entries)
        except Exception:
            self.put_back(entries)
            raise

    def put_back(self, entries: list[Entry]) -> None:
        """Keep what could not be written, in its place: the database will be back."""
        self._entries.extendleft(entry for entry in reversed(entries) if not entry.settled)

    def give_up(self, error: BaseException) -> None:
        """Tell those who wait that nothing will be written any more."""
        for entry in self.take():
            if entry.done is not None:
                entry.done.set_exception(error)


def _no_shortcut(item: Item) -> Answer | None:
    """Everything is left to the one who writes."""
    return None


def settle(session: Session, entries: list[Entry]) -> None:
    """Write ``entries`` together; one by one where the batch as a whole is refused.

    A lost connection is raised, and leaves those unsettled that may not be written.
    """
    if not entries:
        return
    try:
        answers = session.committed(lambda s: record(s, [entry.item for entry in entries]))
    except Exception as error:
        if session.dialect.is_lost(error):
            raise
        _settle_each(session, entries)
        return
    failpoints.reach("record.after_commit")
    for entry, answer in zip(entries, answers, strict=True):
        tell(entry, answer)


def tell(entry: Entry, answer: Answer) -> None:
    entry.settled = True
    if entry.done is not None:
        entry.done.set_result(answer)
    if entry.then is not None:
        entry.then(answer)


def _settle_each(session: Session, entries: list[Entry]) -> None:
    """Write ``entries`` one by one. What the database cannot take now stays unsettled, and is raised."""
    trouble: Exception | None = None
    for entry in entries:
        try:
            _settle_alone(session, entry)
        except Exception as error:
            if session.dialect.is_lost(error) or not session.dialect.is_trouble(error):
                raise
            trouble = error
    if trouble is not None:
        raise trouble


def _settle_alone(session: Session, entry: Entry) -> None:
    """Write one item of a refused batch; an outcome that cannot be stored becomes a failure."""
    try:
        [answer] = session.committed(lambda s: record(s, [entry.item]))
    except Exception as error:
        if session.dialect.is_trouble(error):
            raise
        if not isinstance(entry.item, Finish):
            entry.settled = True
            logger.warning(
                "Something of job %s could not be recorded.", entry.item.claim.job_id, exc_info=True
            )
            if entry.done is not None:
                entry.done.set_exception(error)
            return
        job_id = entry.item.claim.job_id
        logger.warning("The outcome of job %s was refused by the database.", job_id, exc_info=True)
        refused = Finish(entry.item.claim, Failed(jsonvalues.describe_error(error)))
        [answer] = session.committed(lambda s: record(s, [refused]))
    tell(entry, answer)


class DirectRecorder:
    """A recorder for one thread that executes and writes by itself."""

    always_look = True

    def __init__(self, alias: str, lease: float) -> None:
        self.alias = alias
        self.lease = lease
        self.session = Session(alias)
        self._posted: list[Item] = []

    def post(self, item: Item) -> None:
        self._posted.append(item)

    def write(self, item: Item) -> Answer:
        items = [*self._posted, item]
        answers = self.session.committed(lambda s: record(s, items))
        del self._posted[: len(items) - 1]
        failpoints.reach("record.after_commit")
        return answers[-1]

    async def awrite(self, item: Item) -> Answer:
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.write, thread_sensitive=True)(item)

    def flush(self) -> None:
        if self._posted:
            items, self._posted = self._posted, []
            self.session.committed(lambda s: record(s, items))

    def renew(self, claim: Claim) -> bool:
        return claim.job_id in self.session.committed(
            lambda s: leases.renew(s, [claim], self.lease)
        )

    def status_of(self, claim: Claim) -> str | None:
        return leases.status_of(self.session, claim)
