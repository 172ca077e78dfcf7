"""Executing a claim: from the stored input to an outcome. Nothing is written here but through the recorder."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from django_jobs import clock, conf, jsonvalues
from django_jobs.definitions import registry
from django_jobs.definitions.context import TaskContext, WorkflowContext
from django_jobs.definitions.dag import DAG
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import Definition
from django_jobs.errors import (
    CancelJob,
    ErrorDict,
    InvalidInput,
    JobFailed,
    NonRetryable,
    RetryLater,
)
from django_jobs.lifecycle import StepStatus
from django_jobs.outcomes import (
    Canceled,
    Compensated,
    CompensationFailed,
    Completed,
    Failed,
    HandedBack,
    Later,
    Lost,
    Outcome,
    TryAgain,
    Undoing,
)
from django_jobs.store import leftovers
from django_jobs.store.claims import Claim
from django_jobs.worker import graphs, tenancy
from django_jobs.workflows import retrying
from django_jobs.workflows.attempt import Recorder
from django_jobs.workflows.coded import CodeRun
from django_jobs.workflows.driver import RunDriver
from django_jobs.workflows.forks import leave_if_forked
from django_jobs.workflows.io import (
    Loop,
    LoopIO,
    ThreadIO,
    drive,
    in_own_thread_context,
    is_being_canceled,
    limited,
)
from django_jobs.workflows.passes import PassEnds
from django_jobs.workflows.replay import Replay, StepLimit, cancel_error
from django_jobs.workflows.secrets import Secrets

logger = logging.getLogger("django_jobs.worker")

#: Seconds after which a run is taken again whose undoing could not be begun.
UNDO_PAUSE = 1.0


@dataclass(slots=True)
class Environment:
    """What executing needs from its worker: the recorder, a loop, and threads for gathered steps."""

    recorder: Recorder
    loop: Loop
    pool: Executor | None
    #: Sync code of async handlers runs in the calling thread, within its transaction.
    same_thread: bool = False
    #: Other workers may do steps of the graphs that are run here.
    spreads: bool = False
    #: The runner of the steps that are left to others: that of the worker itself.
    runner: str = "db"


@dataclass(slots=True)
class Execution:
    """A claim with its code and its typed input, ready to run."""

    claim: Claim
    definition: Definition
    input: dict[str, Any]
    retry: Retry | None
    #: Seconds that this claim may take: of a run, what is left of its limit.
    timeout: float | None
    environment: Environment
    #: The time limit as it was stated, for messages.
    limit: float | None = None
    #: The outcome where it is known before the handler runs: only what follows it is left.
    settled: Completed | Failed | None = None
    attempt: Replay | None = None
    #: What runs an async handler, once it runs.
    task: asyncio.Task[Any] | None = None
    #: For a claim of a graph: its driver takes the place of the handler.
    graph: graphs.Plan | None = None

    @property
    def is_async(self) -> bool:
        return self.definition.is_async if self.graph is None else self.graph.is_async

    @property
    def isolation(self) -> str:
        return self.definition.isolation if self.graph is None else self.graph.isolation

    def run(self) -> Outcome:
        """Run the handler in the calling thread, in a context of its own."""
        if self.settled is not None:
            return self.settled
        work = self._undo_to_end if self.claim.is_undoing else self._run_to_end
        return leftovers.alone(work)

    async def arun(self) -> Outcome:
        """Run an ``async def`` handler on the running loop."""
        if self.settled is not None:
            return self.settled
        self.task = asyncio.current_task()
        process = os.getpid()
        try:
            work = self._aundo_to_end() if self.claim.is_undoing else self._arun_to_end(process)
            if self.environment.same_thread:
                return await work
            return await in_own_thread_context(work)
        except BaseException as error:
            leave_if_forked(process, error)
            return self._after(error)

    def interrupt(self) -> None:
        """Cancel an async handler that runs; one in a thread learns by its next step. From any thread."""
        task, self.task = self.task, None
        if task is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                task.get_loop().call_soon_threadsafe(task.cancel)

    def _run_to_end(self) -> Outcome:
        process = os.getpid()
        try:
            outcome = self._run() if self.graph is None else self._run_graph(self.graph)
            leave_if_forked(process)
            outcome = self._ended(outcome)
        except BaseException as error:
            leave_if_forked(process, error)
            outcome = self._after(error)
        if isinstance(outcome, Failed) and isinstance(self.attempt, CodeRun):
            return self._here(self.attempt.end_failed(outcome))
        return outcome

    async def _arun_to_end(self, process: int) -> Outcome:
        try:
            work: Coroutine[Any, Any, Outcome]
            work = self._arun() if self.graph is None else self._arun_graph(self.graph)
            outcome = await work
            leave_if_forked(process)
            outcome = self._ended(outcome)
        except BaseException as error:
            leave_if_forked(process, error)
            outcome = self._after(error)
        if isinstance(outcome, Failed) and isinstance(self.attempt, CodeRun):
            return await self._there(self.attempt.end_failed(outcome))
        return outcome

    # --- undoing ------------------------------------------------------------------------------

    def _undo_to_end(self) -> Outcome:
        """Undo a run that was taken over; the handler of a code workflow tells what undoes its steps."""
        try:
            if self.graph is not None:
                return self._run_graph(self.graph)
            run = self._look_back()
            error: BaseException | None = None
            try:
                args, kwargs = self._loaded(run)
                with tenancy.entered(self.claim, self.environment.recorder.alias):
                    self.definition.func(*args, **kwargs)
            except BaseException as raised:
                error = raised
            run.looked_back(error)
            return self._here(run.undo_stored())
        except Exception as error:
            return _not_undone(error)

    async def _aundo_to_end(self) -> Outcome:
        try:
            if self.graph is not None:
                return await self._arun_graph(self.graph)
            run = self._look_back()
            error: BaseException | None = None
            try:
                args, kwargs = self._loaded(run)
                async with tenancy.aentered(self.claim, self.environment.recorder.alias):
                    await self.definition.func(*args, **kwargs)
            except BaseException as raised:
                if is_being_canceled():
                    raise
                error = raised
            while run.under_way:
                await asyncio.gather(*run.under_way, return_exceptions=True)
            run.looked_back(error)
            return await self._there(run.undo_stored())
        except Exception as error:
            return _not_undone(error)

    def _look_back(self) -> CodeRun:
        self.attempt = run = self._replay(self.environment.pool)
        assert isinstance(run, CodeRun)
        run.look_back()
        return run

    def _here(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Undo in this thread, with the tenant's context around it as around a handler."""
        with tenancy.entered(self.claim, self.environment.recorder.alias):
            return drive(work)

    async def _there(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        async with tenancy.aentered(self.claim, self.environment.recorder.alias):
            return await work

    # --- running ------------------------------------------------------------------------------

    def _run(self) -> Completed:
        args, kwargs = self._arguments()
        started = clock.monotonic()
        with tenancy.entered(self.claim, self.environment.recorder.alias):
            value = self.definition.func(*args, **kwargs)
        if self.timeout is not None and clock.monotonic() - started > self.timeout:
            raise self._time_is_up()
        return self._completed(value)

    async def _arun(self) -> Completed:
        args, kwargs = self._arguments()
        try:
            async with tenancy.aentered(self.claim, self.environment.recorder.alias):
                handler = self.definition.func(*args, **kwargs)
                if self.timeout is None:
                    value = await handler
                else:
                    async with limited("job", self.timeout, stated=self.limit):
                        value = await handler
        except BaseException as error:
            if self.attempt is not None and (
                retrying.is_timed_out(error) or isinstance(error, asyncio.CancelledError)
            ):
                for step in self.attempt.under_way:
                    step.cancel()
            raise
        finally:
            # A pass ends only after the steps it started are recorded.
            while self.attempt is not None and self.attempt.under_way:
                await asyncio.gather(*self.attempt.under_way, return_exceptions=True)
        return self._completed(value)

    def _run_graph(self, plan: graphs.Plan) -> Outcome:
        with tenancy.entered(self.claim, self.environment.recorder.alias):
            return plan.run()

    async def _arun_graph(self, plan: graphs.Plan) -> Outcome:
        async with tenancy.aentered(self.claim, self.environment.recorder.alias):
            return await plan.arun()

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.definition.takes_context:
            return self._loaded(None)
        self.attempt = self._replay(self.environment.pool)
        if self.timeout is not None:
            self.attempt.ends_at = clock.monotonic() + self.timeout
            self.attempt.time_limit = self.limit or self.timeout
        return self._loaded(self.attempt)

    def _loaded(self, attempt: Replay | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the handler is called with: the context, where it takes one, and the typed input."""
        try:
            args, kwargs = self.definition.schema.load_input(self.input)
        except InvalidInput as error:
            # Another try would read the same row by the same code.
            raise NonRetryable(str(error)) from error
        if attempt is None or not self.definition.takes_context:
            return args, kwargs
        kind: type[TaskContext | WorkflowContext]
        kind = WorkflowContext if self.claim.is_run else TaskContext
        return (self._context(kind), *args), kwargs

    def _replay(self, pool: Executor | None) -> Replay:
        claim, environment = self.claim, self.environment
        driver = CodeRun if claim.is_run else Replay
        return driver(
            claim,
            environment.recorder,
            jsonvalues.loads(claim.input),
            self.definition,
            thread_io=ThreadIO(
                environment.recorder,
                environment.loop,
                pool,
                own_context=not environment.same_thread,
                around=functools.partial(tenancy.entered, claim, environment.recorder.alias),
            ),
            loop_io=LoopIO(environment.recorder),
            retry=self.retry,
            run_extra=self._extra,
        )

    def _context(self, kind: type[TaskContext | WorkflowContext]) -> TaskContext | WorkflowContext:
        assert self.attempt is not None
        claim = self.claim
        return kind(self.attempt, attempt=claim.attempts + 1, idempotency_key=str(claim.job_id))

    def _completed(self, value: Any) -> Completed:
        output = self.definition.schema.dump_output(value)
        if output is None:
            return Completed(None)
        return Completed(jsonvalues.dumps_plain(output, what="output", limit=conf.get().max_output))

    # --- after a failure ----------------------------------------------------------------------

    @property
    def _extra(self) -> int | None:
        """Extra tries of the job: W of a run (None is unlimited), T of a task."""
        if not self.claim.is_run:
            return retrying.Budget(self.retry).step_extra
        return None if self.retry is None else self.retry.extra

    def _ended(self, outcome: Outcome) -> Outcome:
        """The outcome of a pass, even where its handler caught what was not for it."""
        if self.attempt is None:
            return outcome
        if self.attempt.mistake is not None:
            return self._failed(self.attempt.mistake)
        return self.attempt.end or outcome

    def _after(self, error: BaseException) -> Outcome:
        """What becomes of the job after ``error`` left its handler."""
        return self._ended(self._outcome_of(error))

    def _outcome_of(self, error: BaseException) -> Outcome:
        claim = self.claim
        if isinstance(error, PassEnds):
            return error.outcome
        if claim.revoked is not None:
            return Lost({"reason": claim.revoked})
        if isinstance(error, RetryLater):
            return Later(error.delay, str(error))
        if isinstance(error, CancelJob):
            return Canceled(cancel_error(error.reason))
        delay = self._delay(error)
        if delay is None:
            return self._failed(error)
        return TryAgain(self._describe(error), delay, error)

    def timed_out(self) -> Outcome:
        """The outcome of a handler that is over its limit, whether it still runs or not."""
        return self._outcome_of(self._time_is_up())

    def out_of_time(self) -> Failed:
        """The end of a run whose time was over before this claim."""
        error = self._time_is_up()
        return Failed(self._describe(error), error, counted=False)

    def _time_is_up(self) -> TimeoutError:
        return retrying.timed_out("job", self.limit or 0.0)

    def _failed(self, error: BaseException) -> Failed:
        return Failed(self._describe(error), error)

    def _describe(self, error: BaseException) -> ErrorDict:
        code = None
        if retrying.is_timed_out(error):
            code = "timeout"
        elif isinstance(error, StepLimit):
            code = "step_limit"
        if self.attempt is not None:
            secrets = self.attempt.secrets
        else:
            secrets = Secrets(self.definition, jsonvalues.loads(self.claim.input))
        described = secrets.describe(error, code=code)
        if self.claim.is_run:
            described["step_id"] = retrying.failed_step(error)
        return described

    def _delay(self, error: BaseException) -> float | None:
        """Seconds until the next try; None when this failure is final."""
        if self.claim.is_run and retrying.is_timed_out(error):
            return None  # no pass would have any time left
        tries = self.claim.tries
        # A workflow's own code: W only, unset = no retry.
        if tries > (self._extra or 0):
            return None
        judges = [self.retry] if self.claim.is_run else retrying.Budget(self.retry).judges
        if not retrying.may_repeat(error, judges):
            return None
        return retrying.wait([(self.retry, tries)], error)


def prepare(claim: Claim, environment: Environment) -> Execution | Outcome:
    """The execution of ``claim``, or the outcome at once: no code here, a damaged row, a kept result."""
    if claim.revoked is not None:
        return Lost({"reason": claim.revoked})
    if claim.is_halted:
        return HandedBack("paused")
    prepared = _prepared(claim, environment)
    if claim.is_undoing and isinstance(prepared, Failed):
        # Its row is damaged: nothing of it can be undone until that is mended.
        return CompensationFailed(prepared.error)
    return prepared


def _prepared(claim: Claim, environment: Environment) -> Execution | Outcome:
    definition = registry.find(claim.slug, claim.version)
    if definition is None:
        return HandedBack(f"this worker has no code for {claim.slug!r}")
    try:
        stored = jsonvalues.loads(claim.input)
        options = (claim.options and jsonvalues.loads(claim.options)) or {}
    except ValueError as error:
        return corrupt(f"The stored input is no JSON: {error}")
    if not isinstance(stored, dict):
        return corrupt(f"The stored input is no JSON object but {type(stored).__name__}.")
    if isinstance(definition, DAG):
        plan = graphs.plan(claim, definition, environment)
        if not isinstance(plan, graphs.Plan):
            return plan
        return _of_graph(claim, definition, stored, options, environment, plan)
    retry = definition.retries
    if "retries" in options:
        retry = Retry.from_dict(options["retries"]).over(definition.retries)
    limit = None if claim.is_undoing else options.get("timeout", definition.timeout)
    left = claim.time_left(limit) if claim.is_run and limit is not None else limit
    return _settled(Execution(claim, definition, stored, retry, left, environment, limit))


def _of_graph(
    claim: Claim,
    dag: DAG,
    stored: dict[str, Any],
    options: dict[str, Any],
    environment: Environment,
    plan: graphs.Plan,
) -> Execution:
    """The execution of a claim of a graph: a limit is that of the whole run, and units have none."""
    is_limited = claim.is_run and not claim.is_undoing
    limit = options.get("timeout", dag.timeout) if is_limited else None
    left = None if limit is None else claim.time_left(limit)
    prepared = Execution(
        claim, dag, stored, None, left, environment, limit, attempt=plan.driver, graph=plan
    )
    if left is not None and isinstance(plan.driver, RunDriver):
        plan.driver.over_at = clock.monotonic() + left
        plan.driver.out_of_time = prepared.out_of_time
    return _settled(prepared)


def _settled(prepared: Execution) -> Execution:
    """``prepared``, with its outcome where that is known already. What is being undone has its outcome."""
    claim = prepared.claim
    if claim.is_undoing:
        return prepared
    prepared.settled = _kept(claim)
    over = claim.is_run and prepared.timeout is not None and prepared.timeout <= 0
    if prepared.settled is None and over:
        prepared.settled = prepared.out_of_time()
    return prepared


def _not_undone(error: BaseException) -> Outcome:
    """The engine, or what it enters around handlers, kept the run from being undone: later again."""
    if isinstance(error, PassEnds) and isinstance(error.outcome, Lost):
        return error.outcome
    logger.exception("A run could not be undone now.", exc_info=error)
    return Undoing(UNDO_PAUSE, f"{type(error).__name__}: {jsonvalues.clean_text(str(error))}"[:500])


def _kept(claim: Claim) -> Completed | Failed | None:
    """The outcome that came while the job was being paused, and was kept for this claim."""
    for kept in claim.steps:
        if not kept.step_id and kept.status == StepStatus.COMPLETED:
            return Completed(kept.output)
        if not kept.step_id and kept.status == StepStatus.FAILED:
            error = jsonvalues.loads(kept.error)
            return Failed(error, JobFailed(str(error.get("message")), error), counted=False)
    return None


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


#: Outcomes of which on_failure is told; of a run that is undone, once that has ended.
ERRORS = (TryAgain, Failed, Compensated, CompensationFailed)


def call_back(execution: Execution, outcome: Outcome) -> BaseException | None:
    """Call on_success or on_failure after the outcome is stored; return the error it raised, if any."""
    definition = execution.definition
    try:
        match outcome:
            case Completed(output=output):
                # As result() gives it, not as the handler left it.
                value = definition.schema.load_output(jsonvalues.loads(output))
                callback, args = definition.on_success, (value,)
            case TryAgain(cause=cause):
                callback, args = definition.on_failure, (cause, False)  # type: ignore[assignment]
            case (
                Failed(cause=cause) | Compensated(cause=cause) | CompensationFailed(cause=cause)
            ) if cause is not None:
                callback, args = definition.on_failure, (cause, True)  # type: ignore[assignment]
            case _:
                return None
        if callback is None:
            return None
        if execution.attempt is None:
            execution.attempt = execution._replay(None)
        context = execution._context(TaskContext)
        with tenancy.entered(execution.claim, execution.environment.recorder.alias):
            execution.attempt.call_after(functools.partial(callback, context, *args))
    except BaseException as error:
        return error
    return None


def has_callback(execution: Execution, outcome: Outcome) -> bool:
    definition = execution.definition
    if isinstance(outcome, Completed):
        return definition.on_success is not None
    return isinstance(outcome, ERRORS) and definition.on_failure is not None
