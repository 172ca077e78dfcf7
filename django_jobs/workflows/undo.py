"""Undoing a run: its completed steps are compensated in reverse order of completion, each a step of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.dispatch import Signal

from django_jobs import ids, jsonvalues, signals
from django_jobs.definitions.context import StepCall, StepContext, StepView
from django_jobs.definitions.task import Definition
from django_jobs.errors import CancelJob, ErrorDict, JobFailed, NonDeterministic, NonRetryable
from django_jobs.lifecycle import StepKind, StepStatus
from django_jobs.models import Job
from django_jobs.outcomes import (
    Compensated,
    CompensationFailed,
    Failed,
    Later,
    Lost,
    Outcome,
    TryAgain,
    Undoing,
)
from django_jobs.store.recorded import StepRecord
from django_jobs.store.undoing import BeginUndo
from django_jobs.workflows import retrying
from django_jobs.workflows.passes import PassEnds
from django_jobs.workflows.plan import Planned, is_transactional
from django_jobs.workflows.replay import Replay

SLUG = "undo"
#: The code of the error of a run that somebody canceled.
CANCELED = "canceled"


NO_BUDGET = retrying.Budget(None)


@dataclass(frozen=True, slots=True)
class Undo:
    """A completed step that is to be undone by ``target``, with the retries and the limit of the step.

    Without a target ``missing`` says why it is not known.
    """

    record: StepRecord
    target: Any = None
    budget: retrying.Budget = NO_BUDGET
    timeout: float | None = None
    missing: str = ""

    @property
    def step_id(self) -> str:
        return self.record.step_id

    @property
    def path(self) -> str:
        return undo_id(self.step_id)

    @property
    def key(self) -> str:
        return ids.digest(SLUG, self.path)


@dataclass(frozen=True, slots=True)
class Tried:
    """How one try of a compensation ended; a pending one is tried again after ``delay`` seconds."""

    status: StepStatus
    error: ErrorDict | None = None
    delay: float | None = None
    outcome: Outcome | None = None


def undo_id(step_id: str) -> str:
    return f"undo:{step_id}"


def mark(target: Any) -> str:
    """What the record of a step keeps of its compensation: that there is one, and its name."""
    if isinstance(target, Definition):
        name = target.slug
    else:
        name = (
            f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', repr(target))}"
        )
    return jsonvalues.dumps({"by": jsonvalues.clean_text(name, 500)}, what="compensation")


class Compensating(Replay):
    """The driver of a run that can undo what the run has completed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: What is being undone, by the key of the compensation, and why.
        self._undoing: dict[str, Undo] = {}
        self._undone_for: ErrorDict | None = None

    @property
    def stops_at_failure(self) -> bool:
        """Whether a compensation that has failed for good ends the undoing."""
        return True

    def completed(self) -> Iterable[Undo]:
        """The completed steps of the run that have, or should have, a compensation."""
        raise NotImplementedError

    def undo_view(self, undo: Undo, error: ErrorDict) -> StepView:
        """What the compensation sees of the run."""
        raise NotImplementedError

    def left_to_undo(self) -> list[Undo]:
        """Those whose compensation has not completed, the last completed first."""
        found = []
        for undo in self.completed():
            undone = self._records.get(undo.key)
            if undone is None or undone.status != StepStatus.COMPLETED:
                found.append(undo)
        return sorted(found, key=lambda undo: -(undo.record.done_no or 0))

    # --- beginning ----------------------------------------------------------------------------

    async def end_failed(self, failed: Failed) -> Outcome:
        """The end of a run that has failed: what it has completed is undone, where that is to be undone."""
        if not self.left_to_undo():
            return failed
        match await self._io.write(BeginUndo(self.claim, failed.error)):
            case "paused":
                return failed  # kept for the next claim
            case "lost":
                return Lost({"reason": "while beginning to undo"})
        self.claim.is_undoing = True
        await self._announce_run(signals.run_compensating, failed.error)
        return await self.undo(failed.error, failed.cause)

    async def undo_stored(self) -> Outcome:
        """Undo a run that was taken over, for the failure that its row tells."""
        error = dict(self.job.error or {"type": "", "message": "", "code": None, "step_id": None})
        cause = None if error.get("code") == CANCELED else JobFailed(str(error["message"]), error)
        return await self.undo(error, cause)

    async def _announce_run(self, signal: Signal, error: ErrorDict) -> None:
        if signal.receivers:
            await self._io.call(
                lambda: signals.announce(signal, Job, job=self.job, error=error), None
            )

    # --- undoing ------------------------------------------------------------------------------

    async def undo(self, error: ErrorDict, cause: BaseException | None) -> Outcome:
        """Undo what is completed, the last first; a compensation that has completed is not run again."""
        self._undone_for = {key: error.get(key) for key in ("type", "message", "code", "step_id")}
        # The retries and the time limit of the run were those of its way here.
        self._retry = self._run_extra = self.ends_at = None
        self._ends.clear()
        failed: ErrorDict | None = None
        for undo in self.left_to_undo():
            known = self._records.get(undo.key)
            if known is not None and known.status == StepStatus.FAILED:
                tried = Tried(StepStatus.FAILED, jsonvalues.loads(known.error))
            else:
                tried = await self._undo_one(undo, known)
            if tried.outcome is not None:
                return _handed_on(tried.outcome)
            if tried.status is StepStatus.PENDING:
                return Undoing(tried.delay)
            if tried.status is StepStatus.FAILED:
                failed = failed or tried.error
                if self.stops_at_failure:
                    break
        if failed is not None:
            return CompensationFailed(failed, cause)
        return Compensated(error, cause)

    async def _undo_one(self, undo: Undo, known: StepRecord | None) -> Tried:
        planned = plan_undo(undo)
        self._undoing[planned.key] = undo
        try:
            self._check_alive()
            await self._mark_start(planned, known)
            await self._execute(planned, known)
        except JobFailed as error:
            return Tried(StepStatus.FAILED, error.error)
        except PassEnds as end:
            match end.outcome:
                case TryAgain(error=told, delay=delay):
                    return Tried(StepStatus.PENDING, told, delay)
                case Later(delay=delay):
                    return Tried(StepStatus.PENDING, None, delay)
                case _:
                    return Tried(StepStatus.PENDING, outcome=end.outcome)
        finally:
            self._ends.clear()
        return Tried(StepStatus.COMPLETED)

    def _call_of(self, step: Planned, number: int) -> Any:
        undo = self._undoing.get(step.key)
        if undo is None:
            return super()._call_of(step, number)
        if undo.missing:
            return functools.partial(_is_missing, undo.missing)
        if step.definition is not None:
            return without_cancel(super()._call_of(step, number))
        assert self._undone_for is not None
        context = StepContext(
            self.undo_view(undo, self._undone_for), step_id=undo.step_id, attempt=number,
            idempotency_key=f"{self.run_id}:{step.name}",
        )  # fmt: skip
        return without_cancel(functools.partial(undo.target, context))


def _handed_on(outcome: Outcome) -> Outcome:
    """The end of a claim that could not undo all: somebody else goes on."""
    return outcome if isinstance(outcome, Lost) else Undoing(0.0, "its worker gives it back")


def plan_undo(undo: Undo) -> Planned:
    """The step that undoes another one: its retries are those of that step, counted anew."""
    target = undo.target
    definition = target if isinstance(target, Definition) else None
    call = StepCall(undo.path, target, inline=definition is None)
    text = "{}"
    if definition is not None:
        text = jsonvalues.dumps(_input_for(definition, undo.record), what="input")
    return Planned(
        call=call, definition=definition, kind=StepKind.COMPENSATION, slug=SLUG, path=undo.path,
        key=undo.key, scope=None, budget=undo.budget, timeout=undo.timeout, input=jsonvalues.loads(text),
        input_text=text, transactional=is_transactional(call, definition),
    )  # fmt: skip


def _input_for(definition: Definition, record: StepRecord) -> dict[str, Any]:
    """A task as a compensation gets what its parameters name of the step's own input."""
    stored = jsonvalues.loads(record.input) if record.input else {}
    names = definition.schema.parameter_names
    return {name: value for name, value in stored.items() if name in names}


def _is_missing(why: str) -> None:
    raise NonDeterministic(why)


def without_cancel(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call of a compensation: CancelJob in it is a failure of it."""

    def failed(error: CancelJob) -> NonRetryable:
        return NonRetryable(f"A compensation cannot cancel its run: {error.reason}")

    async def acall() -> Any:
        try:
            return await call()
        except CancelJob as error:
            raise failed(error) from error

    def scall() -> Any:
        try:
            return call()
        except CancelJob as error:
            raise failed(error) from error

    target = call.func if isinstance(call, functools.partial) else call
    return acall if inspect.iscoroutinefunction(target) else scall
