"""Jobs in a process of their own: for hard time limits, and for jobs suspected of killing workers.

A child has threads and must not fork, so it asks its supervisor, which has none. They talk by
datagrams of JSON over a pair of sockets: the child says ``run`` and ``kill``, the supervisor
answers ``ended``.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from asgiref.sync import async_to_sync
from django.db import connections

from django_jobs import conf
from django_jobs.outcomes import Failed, HandedBack, Later, Outcome
from django_jobs.store import claims as claiming
from django_jobs.store import leftovers
from django_jobs.store.claims import Claim
from django_jobs.store.dialects.base import Dialect
from django_jobs.store.record import Finish
from django_jobs.store.session import Session
from django_jobs.worker import announcing, execution
from django_jobs.worker.desk import DirectRecorder
from django_jobs.worker.execution import Environment, Execution
from django_jobs.worker.local import FOLLOWED, CallingLoop, after

T = TypeVar("T")
logger = logging.getLogger("django_jobs.worker")

#: A job that was charged with so many crashes runs alone, so that a neighbour is never hit again.
SUSPECT = 2
#: Exit codes of an isolated process: its job is recorded, and did not or did end failed; or its
#: outcome could not be recorded, as the database was away for too long.
RECORDED, RECORDED_FAILED, UNRECORDED = 0, 3, 4
#: What else the child may be told in their place: no process could be started, or it has ended
#: together with the supervisor.
REFUSED, ABANDONED = -1000, -1001
#: Seconds after which a job is tried again that got no process.
PAUSE = 1.0
#: Seconds for which an isolated process tries to record its outcome.
STUBBORN = 60.0
#: Seconds between two looks at whether the job was canceled meanwhile.
LOOK = 0.2
#: Seconds between two looks of an isolated process at whether its supervisor lives.
PARENT_LOOK = 0.5
LONGEST_MESSAGE = 4096


@dataclass(frozen=True, slots=True)
class Delegated:
    """What an isolated process did with a job: it recorded the outcome itself, or it died."""

    status: int
    killed: bool

    @property
    def failed(self) -> bool:
        return self.status == RECORDED_FAILED

    @property
    def outcome(self) -> Outcome | None:
        """What the child has to record in its place; None where that is done."""
        if self.status == REFUSED:
            return Later(PAUSE, "no process could be started for it")
        if self.status == ABANDONED:
            return HandedBack("its process has ended with the supervisor")
        if self.status == UNRECORDED:
            return HandedBack("its outcome could not be recorded")
        return None


class Link:
    """One end of the pair between a child and its supervisor."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        return cls(one), cls(other)

    def send(self, **message: Any) -> bool:
        """Whether the other end is still there to hear it."""
        try:
            self.end.send(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other end is closed."""
        try:
            raw = self.end.recv(LONGEST_MESSAGE)
        except OSError:
            return None
        return json.loads(raw) if raw else None

    def close(self) -> None:
        self.end.close()


class Isolation:
    """The child's side: run a claim elsewhere and wait for its end."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._is_abandoned = False
        self._waiting: dict[str, tuple[threading.Event, list[Delegated]]] = {}
        threading.Thread(target=self._listen, name="jobs-isolation", daemon=True).start()

    @staticmethod
    def is_wanted(claim: Claim, prepared: Execution) -> bool:
        return prepared.isolation == "process" or claim.crashes >= SUSPECT

    def run(self, claim: Claim, limit: float | None) -> Delegated:
        """Run ``claim`` in a process of its own, killed after ``limit`` seconds or when revoked."""
        key = str(claim.job_id)
        ended, answers = threading.Event(), list[Delegated]()
        self._waiting[key] = (ended, answers)
        if self._is_abandoned or not self._link.send(run=key, fence=claim.fence):
            self._tell(key, Delegated(ABANDONED, killed=False))
        deadline = None if limit is None else time.monotonic() + limit
        revoked_at: float | None = None
        while not ended.wait(LOOK):
            present = time.monotonic()
            if claim.revoked is not None:
                revoked_at = revoked_at or present
            over = deadline is not None and present >= deadline
            if over or (revoked_at is not None and present >= revoked_at + conf.get().grace):
                self._link.send(kill=key)
                deadline = revoked_at = None
        self._waiting.pop(key, None)
        return answers[0]

    def kill_all(self) -> None:
        for key in list(self._waiting):
            self._link.send(kill=key)

    def abandon(self) -> None:
        """The supervisor is gone, and with it the isolated processes after a moment."""
        self._is_abandoned = True
        time.sleep(2 * PARENT_LOOK)
        for key in list(self._waiting):
            self._tell(key, Delegated(ABANDONED, killed=False))

    def _listen(self) -> None:
        while (message := self._link.receive()) is not None:
            self._tell(message["ended"], Delegated(message["status"], message["killed"]))

    def _tell(self, key: str, delegated: Delegated) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting[1].append(delegated)
            waiting[0].set()


def become_isolated(alias: str, job_id: UUID, fence: int, worker: UUID, parent: int) -> NoReturn:
    """In the forked process: run one claimed job, record its outcome, and leave."""
    code = 1
    try:
        _die_with(parent)
        code = _run_one(alias, job_id, fence, worker)
    except BaseException:
        logger.exception("The isolated process of job %s failed.", job_id)
    finally:
        os._exit(code)


def _run_one(alias: str, job_id: UUID, fence: int, worker: UUID) -> int:
    leftovers.watch_connections()
    dialect = Session(alias).dialect
    claim = _stubbornly(dialect, lambda: claiming.read_claim(Session(alias), job_id, fence, worker))
    if claim is None:
        return RECORDED  # somebody else has it by now
    recorder = DirectRecorder(alias, conf.get().lease)
    prepared = execution.prepare(
        claim, Environment(recorder, CallingLoop(), None, same_thread=True)
    )
    outcome: Outcome
    if isinstance(prepared, Execution):
        announcing.started(alias, claim)
        outcome = async_to_sync(prepared.arun)() if prepared.is_async else prepared.run()
    else:
        outcome = prepared
    # Within a transaction that the handler has left open, the outcome would be rolled back with it.
    leftovers.tidy()
    try:
        answer = _stubbornly(dialect, lambda: recorder.write(Finish(claim, outcome)))
    except Exception as error:
        if not dialect.is_trouble(error):
            raise
        logger.warning("The outcome of job %s could not be recorded: %s", job_id, error)
        return UNRECORDED
    if answer in FOLLOWED:
        announcing.log(claim, outcome)
        after(alias, prepared, claim, outcome, answer)
    recorder.flush()
    return RECORDED_FAILED if isinstance(outcome, Failed) else RECORDED


def _stubbornly(dialect: Dialect, work: Callable[[], T]) -> T:
    """Call ``work`` until the database takes it, at most :data:`STUBBORN` seconds long."""
    ends = time.monotonic() + STUBBORN
    while True:
        try:
            return work()
        except Exception as error:
            if not dialect.is_trouble(error) or time.monotonic() > ends:
                raise
            connections.close_all()
            time.sleep(LOOK)


def _die_with(parent: int) -> None:
    """Without its supervisor nobody would keep this process to its limit."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_LOOK)
        os._exit(1)

    threading.Thread(target=watch, name="jobs-parent", daemon=True).start()
