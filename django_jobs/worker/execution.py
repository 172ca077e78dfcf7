"""Executing a claim: from the stored input to an outcome. Nothing is written here but through the recorder."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from django.utils.module_loading import import_string

from django_jobs import clock, conf, jsonvalues
from django_jobs.definitions import registry
from django_jobs.definitions.context import TaskContext, WorkflowContext
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import Definition
from django_jobs.errors import CancelJob, DuplicateStepId, ErrorDict, JobFailed, RetryLater
from django_jobs.lifecycle import StepStatus
from django_jobs.outcomes import (
    Canceled,
    Completed,
    Failed,
    HandedBack,
    Later,
    Lost,
    Outcome,
    TryAgain,
)
from django_jobs.store.claims import Claim
from django_jobs.workflows import retrying
from django_jobs.workflows.attempt import Recorder
from django_jobs.workflows.io import Loop, LoopIO, ThreadIO, in_own_thread_context
from django_jobs.workflows.passes import PassEnds
from django_jobs.workflows.replay import Replay, StepLimit


@dataclass(slots=True)
class Environment:
    """What executing needs from its worker: the recorder, a loop, and threads for gathered steps."""

    recorder: Recorder
    loop: Loop
    pool: Executor | None
    #: Sync code of async handlers runs in the calling thread, within its transaction.
    same_thread: bool = False


@dataclass(slots=True)
class Execution:
    """A claim with its code and its typed input, ready to run."""

    claim: Claim
    definition: Definition
    retry: Retry | None
    timeout: float | None
    environment: Environment
    attempt: Replay | None = None

    @property
    def is_async(self) -> bool:
        return self.definition.is_async

    def run(self) -> Outcome:
        """Run the handler in the calling thread."""
        return self._guarded(self._run)

    async def arun(self) -> Outcome:
        """Run an ``async def`` handler on the running loop."""
        try:
            if self.environment.same_thread:
                return await self._arun()
            return await in_own_thread_context(self._arun())
        except BaseException as error:
            return self._after(error)

    def _run(self) -> Outcome:
        args, kwargs = self._arguments()
        started = clock.monotonic()
        with tenant_context(self.claim):
            value = self.definition.func(*args, **kwargs)
        if self.timeout is not None and clock.monotonic() - started > self.timeout:
            raise TimeoutError
        return self._completed(value)

    async def _arun(self) -> Outcome:
        args, kwargs = self._arguments()
        handler = self.definition.func(*args, **kwargs)
        try:
            with tenant_context(self.claim):
                if self.timeout is None:
                    value = await handler
                else:
                    async with asyncio.timeout(self.timeout):
                        value = await handler
        finally:
            # A pass ends only after the steps it started are recorded.
            if self.attempt is not None and self.attempt.under_way:
                await asyncio.gather(*self.attempt.under_way, return_exceptions=True)
        return self._completed(value)

    def _guarded(self, run: Callable[[], Outcome]) -> Outcome:
        try:
            return run()
        except BaseException as error:
            return self._after(error)

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        claim, definition = self.claim, self.definition
        stored = jsonvalues.loads(claim.input)
        args, kwargs = definition.schema.load_input(stored)
        if not definition.takes_context:
            return args, kwargs
        self.attempt = Replay(
            claim,
            self.environment.recorder,
            stored,
            thread_io=ThreadIO(
                self.environment.recorder, self.environment.loop, self.environment.pool
            ),
            loop_io=LoopIO(self.environment.recorder),
            run_retry=self.retry,
            in_run=claim.is_run,
        )
        return (self._context(claim.attempts + 1), *args), kwargs

    def _context(self, number: int) -> TaskContext | WorkflowContext:
        kind = WorkflowContext if self.claim.is_run else TaskContext
        assert self.attempt is not None
        return kind(self.attempt, attempt=number, idempotency_key=str(self.claim.job_id))

    def _completed(self, value: Any) -> Completed:
        output = self.definition.schema.dump_output(value)
        if output is None:
            return Completed(None, value)
        return Completed(
            jsonvalues.dumps(output, what="output", limit=conf.get().max_output), value
        )

    # --- after a failure ----------------------------------------------------------------------

    def _after(self, error: BaseException) -> Outcome:
        """What becomes of the job after ``error`` left its handler."""
        claim = self.claim
        if isinstance(error, PassEnds):
            return error.outcome
        if claim.revoked is not None:
            return Lost({"reason": claim.revoked})
        if isinstance(error, RetryLater):
            return Later(error.delay, str(error))
        if isinstance(error, CancelJob):
            return Canceled(cancel_error(error.reason))
        described = self._describe(error)
        delay = self._delay(error)
        if delay is None:
            return Failed(described, error)
        return TryAgain(described, delay, error)

    def _describe(self, error: BaseException) -> ErrorDict:
        code = None
        if isinstance(error, TimeoutError) and self.timeout is not None:
            code = "timeout"
        elif isinstance(error, StepLimit):
            code = "step_limit"
        described = jsonvalues.describe_error(error, code=code, names=conf.get().redact)
        if code == "timeout":
            described["message"] = f"The job timed out after {self.timeout:g} s."
        if self.claim.is_run:
            described["step_id"] = (
                error.error.get("step_id") if isinstance(error, JobFailed) else None
            )
        return described

    def _delay(self, error: BaseException) -> float | None:
        """Seconds until the next try; None when this failure is final."""
        tries = self.claim.attempts + 1
        if isinstance(error, StepLimit | DuplicateStepId):
            return None
        if self.claim.is_run:
            # The workflow's own code: its own setting only, unset = no retry.
            extra = self.retry.extra if self.retry is not None else None
            if not extra or tries > extra or not retrying.may_repeat(error, self.retry):
                return None
            return retrying.wait(None, 0, self.retry, tries, error)
        budget = retrying.Budget(self.retry)
        if tries > budget.step_extra or not retrying.may_repeat(error, self.retry):
            return None
        return retrying.wait(self.retry, tries, None, 0, error)


def prepare(claim: Claim, environment: Environment) -> Execution | Outcome:
    """The execution of ``claim``, or the outcome at once: no code here, a damaged row, a kept result."""
    definition = registry.find(claim.slug, claim.version)
    if definition is None:
        return HandedBack(f"this worker has no code for {claim.slug!r}")
    kept = [
        step for step in claim.steps if not step.step_id and step.status == StepStatus.COMPLETED
    ]
    if kept:
        return Completed(kept[0].output)
    try:
        stored = jsonvalues.loads(claim.input)
        options = jsonvalues.loads(claim.options) or {}
    except ValueError as error:
        return corrupt(f"The stored input is no JSON: {error}")
    if not isinstance(stored, dict):
        return corrupt(f"The stored input is no JSON object but {type(stored).__name__}.")
    retry = definition.retries
    if "retries" in options:
        retry = Retry.from_dict(options["retries"]).over(definition.retries)
    timeout = options.get("timeout", definition.timeout)
    return Execution(claim, definition, retry, timeout, environment)


def corrupt(message: str) -> Failed:
    """The end of a job whose stored row is damaged: no try of its handler is counted."""
    return Failed(
        {
            "type": "django_jobs.errors.JobsError",
            "message": message,
            "traceback": "",
            "code": "corrupt",
        },
        counted=False,
    )


def cancel_error(reason: str) -> ErrorDict:
    return {
        "type": "django_jobs.errors.CancelJob", "message": jsonvalues.clean_text(reason), "traceback": "",
        "code": "canceled",
    }  # fmt: skip


def call_back(execution: Execution, outcome: Outcome) -> BaseException | None:
    """Call on_success or on_failure after the outcome is stored; return the error it raised, if any."""
    definition = execution.definition
    match outcome:
        case Completed(value=value):
            callback, args = definition.on_success, (value,)
        case TryAgain(cause=cause):
            callback, args = definition.on_failure, (cause, False)  # type: ignore[assignment]
        case Failed(cause=cause) if cause is not None:
            callback, args = definition.on_failure, (cause, True)  # type: ignore[assignment]
        case _:
            return None
    if callback is None:
        return None
    try:
        if execution.attempt is None:
            execution.attempt = Replay(
                execution.claim, execution.environment.recorder, jsonvalues.loads(execution.claim.input),
                thread_io=ThreadIO(execution.environment.recorder, execution.environment.loop, None),
                loop_io=LoopIO(execution.environment.recorder), run_retry=None, in_run=False,
            )  # fmt: skip
        context = execution._context(execution.claim.attempts + 1)
        answer = callback(context, *args)
        if asyncio.iscoroutine(answer):
            execution.environment.loop.run(answer)
    except BaseException as error:
        return error
    return None


def has_callback(execution: Execution, outcome: Outcome) -> bool:
    definition = execution.definition
    if isinstance(outcome, Completed):
        return definition.on_success is not None
    return isinstance(outcome, TryAgain | Failed) and definition.on_failure is not None


def tenant_context(claim: Claim) -> contextlib.AbstractContextManager[Any]:
    """The context manager that the setting TENANT_CONTEXT names, entered around a handler."""
    path = conf.get().tenant_context
    if path is None:
        return contextlib.nullcontext()
    return _tenant_context(path)(claim)


@functools.lru_cache(maxsize=8)
def _tenant_context(path: str) -> Callable[[Any], Any]:
    return import_string(path)
