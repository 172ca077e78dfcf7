"""One attempt at a job: what its contexts ask for, and what the engine is told of it."""

from __future__ import annotations

import logging
import threading
import traceback
from typing import Any, Protocol
from uuid import UUID

from django_jobs import clock, jsonvalues
from django_jobs.definitions.task import Definition
from django_jobs.errors import InvalidInput, LeaseLost
from django_jobs.lifecycle import Status
from django_jobs.models import Job
from django_jobs.store.claims import Claim
from django_jobs.store.record import Item, LogWrite, ProgressWrite
from django_jobs.store.steps import Answer
from django_jobs.workflows.asking import blocking
from django_jobs.workflows.secrets import Secrets

LOG_LINES = 10_000
LOG_BYTES = 1_048_576
#: Seconds between two looks at the row for ``cancel_requested``.
CANCEL_LOOK = 1.0


class Recorder(Protocol):
    """The way from an attempt to the database."""

    alias: str
    #: True where nobody else reports a cancel, so that each question asks the row.
    always_look: bool

    def post(self, item: Item) -> None:
        """Write ``item`` soon; whoever waits on a later item of the same claim waits on it as well."""

    def write(self, item: Item) -> Answer:
        """Write ``item`` and what was posted before; return once it is committed."""
        ...

    async def awrite(self, item: Item) -> Answer: ...
    def renew(self, claim: Claim) -> bool:
        """Renew the lease now; whether it is still ours."""
        ...

    def status_of(self, claim: Claim) -> str | None:
        """The job's status if the claim still holds it, else None."""
        ...


class AttemptLog:
    """Stores what a handler logs, cut at 10,000 lines or 1 MiB an attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._lock = threading.Lock()
        self._lines = 0
        self._bytes = 0
        self._logger = logging.getLogger("django_jobs.task")

    def debug(self, message: object, *args: object) -> None:
        self._add(logging.DEBUG, _formatted(message, args))

    def info(self, message: object, *args: object) -> None:
        self._add(logging.INFO, _formatted(message, args))

    def warning(self, message: object, *args: object) -> None:
        self._add(logging.WARNING, _formatted(message, args))

    def error(self, message: object, *args: object) -> None:
        self._add(logging.ERROR, _formatted(message, args))

    def exception(self, message: object, *args: object) -> None:
        """As ``error``, with the traceback of the exception in hand."""
        self._add(logging.ERROR, f"{_formatted(message, args)}\n{traceback.format_exc()}")

    def _add(self, level: int, text: str) -> None:
        attempt = self._attempt
        claim = attempt.claim
        text = attempt.secrets_in_hand.hide(jsonvalues.clean_text(text, LOG_BYTES))
        self._logger.log(level, "%s %s: %s", claim.slug, claim.job_id, text)
        with self._lock:
            if self._lines > LOG_LINES or self._bytes > LOG_BYTES:
                return
            self._lines += 1
            self._bytes += len(text.encode())
            if self._lines > LOG_LINES or self._bytes > LOG_BYTES:
                text = "… truncated: the log of this attempt has reached its limit."
        name = logging.getLevelName(level).lower()
        attempt.post(LogWrite(claim, [(name, text, attempt.step_in_hand)]))


class Mute:
    """A log that keeps nothing."""

    def debug(self, message: object, *args: object) -> None: ...
    def info(self, message: object, *args: object) -> None: ...
    def warning(self, message: object, *args: object) -> None: ...
    def error(self, message: object, *args: object) -> None: ...
    def exception(self, message: object, *args: object) -> None: ...


def _formatted(message: object, args: tuple[object, ...]) -> str:
    """``message % args`` whatever they are: a line of log never fails a handler."""
    try:
        text = str(message)
    except Exception:
        return f"<unprintable {type(message).__qualname__}>"
    if not args:
        return text
    try:
        return text % args
    except Exception:
        return f"{text} <{len(args)} arguments that do not fit>"


class Attempt:
    """What every kind of job offers to its context."""

    def __init__(
        self, claim: Claim, recorder: Recorder, input: dict[str, Any], definition: Definition
    ) -> None:
        self.claim = claim
        self.recorder = recorder
        self.input = input
        self.secrets = Secrets(definition, input)
        self.version = claim.version
        self.log = AttemptLog(self)
        self._job: Job | None = None
        self._looked = 0.0
        self._is_to_be_undone = False

    @property
    def run_id(self) -> UUID:
        """The job whose steps these are: a unit does a step of its run."""
        return self.claim.job_id

    @property
    def step_in_hand(self) -> str | None:
        """Key of the step within which the calling code runs."""
        return None

    @property
    def secrets_in_hand(self) -> Secrets:
        """What to hide of the calling code's errors and log lines."""
        return self.secrets

    @property
    def job(self) -> Job:
        """The row, read once when first asked for."""
        if self._job is None:
            rows = Job.units.using(self.recorder.alias)
            self._job = blocking(lambda: rows.get(pk=self.run_id))
        return self._job

    @property
    def cancel_requested(self) -> bool:
        if self.claim.revoked is not None:
            return True
        present = clock.monotonic()
        if self.recorder.always_look or present - self._looked >= CANCEL_LOOK:
            self._looked = present
            status = blocking(lambda: self.recorder.status_of(self.claim))
            if status is None:
                self.claim.revoked = "canceled"
            # A cancel that undoes: what is in hand is recorded all the same.
            self._is_to_be_undone = status == Status.COMPENSATING and not self.claim.is_undoing
        return self.claim.revoked is not None or self._is_to_be_undone

    def progress(self, fraction: float, note: str) -> None:
        if (
            isinstance(fraction, bool)
            or not isinstance(fraction, int | float)
            or not 0 <= fraction <= 1
        ):
            raise InvalidInput(f"progress() takes a fraction from 0 to 1, not {fraction!r}.")
        text = self.secrets_in_hand.hide(jsonvalues.clean_text(str(note), 800))[:200]
        self.post(ProgressWrite(self.claim, float(fraction), text))

    def heartbeat(self) -> None:
        if not blocking(lambda: self.recorder.renew(self.claim)):
            raise LeaseLost(self.claim.job_id, self.claim.fence)

    def post(self, item: Item) -> None:
        self.recorder.post(item)
