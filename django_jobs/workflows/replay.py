"""Code workflows: the handler runs from the top, recorded steps are answered from the store."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from django_jobs import clock, conf, failpoints, ids, jsonvalues
from django_jobs.definitions.context import StepCall, TaskContext
from django_jobs.definitions.options import check_step_id, seconds
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import Definition
from django_jobs.errors import (
    CancelJob,
    ConfigurationError,
    DuplicateStepId,
    ErrorDict,
    InvalidInput,
    JobFailed,
    JobsError,
    NonDeterministic,
    RetryLater,
    UnknownTask,
)
from django_jobs.lifecycle import StepKind, StepStatus
from django_jobs.outcomes import HandedBack, Later, Lost, Parked, TryAgain
from django_jobs.store.claims import Claim, StepRecord
from django_jobs.store.record import NoteWrite
from django_jobs.store.record import record as write_all
from django_jobs.store.session import Session
from django_jobs.store.steps import StepWrite
from django_jobs.workflows import retrying
from django_jobs.workflows.attempt import Attempt, Recorder
from django_jobs.workflows.io import IO, LoopIO, ThreadIO, drive, on_loop
from django_jobs.workflows.passes import PassEnds

#: Kinds that a stored id must not change between.
GROUPS = {StepKind.TASK: "task", StepKind.INLINE: "task", StepKind.HTTP: "task"}


class StepLimit(JobsError):
    """The run has as many steps as a run may have."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A step in hand: where the steps called within it belong."""

    path: str
    key: str
    slug: str
    budget: retrying.Budget
    failures: int
    parent: Scope | None = None
    transactional: bool = False

    @property
    def name(self) -> str:
        return f"{self.slug}/{self.path}"


_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar(
    "django_jobs_scope", default=None
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A step as asked for in this pass."""

    call: StepCall
    definition: Definition | None
    kind: StepKind
    slug: str
    path: str
    key: str
    scope: Scope | None
    budget: retrying.Budget
    retry: Retry | None
    timeout: float | None
    input: dict[str, Any]
    transactional: bool = False

    @property
    def name(self) -> str:
        return f"{self.slug}/{self.path}"


class Replay(Attempt):
    """The driver of one pass: answers recorded steps, runs and records the others."""

    def __init__(
        self,
        claim: Claim,
        recorder: Recorder,
        input: dict[str, Any],
        *,
        thread_io: ThreadIO,
        loop_io: LoopIO,
        run_retry: Retry | None,
        in_run: bool,
    ) -> None:
        super().__init__(claim, recorder, input)
        self._thread_io = thread_io
        self._loop_io = loop_io
        self._run_retry = run_retry if run_retry is not None else (Retry() if in_run else None)
        self._records = {step.step_key: step for step in claim.steps if step.step_id}
        self._groups: dict[str, set[str]] = {}
        for step in self._records.values():
            self._groups.setdefault(step.step_id, set()).add(_group(StepKind(step.kind)))
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._done_no = max((step.done_no or 0 for step in self._records.values()), default=0)
        self._marked = False
        #: Steps under way on an event loop; a pass ends only after they are recorded.
        self.under_way: set[asyncio.Future[Any]] = set()

    @property
    def step_in_hand(self) -> str | None:
        scope = _scope.get()
        return None if scope is None else scope.key

    @property
    def task_status(self) -> dict[str, dict[str, dict[str, Any]]]:
        status: dict[str, dict[str, dict[str, Any]]] = {}
        for step in list(self._records.values()):
            status.setdefault(step.slug, {})[step.step_id] = _as_status(step)
        return status

    # --- what contexts call -------------------------------------------------------------------

    def step(self, call: StepCall) -> Any:
        return self._started(self._one(call))

    def gather(self, calls: list[StepCall]) -> Any:
        return self._started(self._all(calls))

    @property
    def _io(self) -> IO:
        return self._loop_io if on_loop() else self._thread_io

    def _started(self, work: Coroutine[Any, Any, Any]) -> Any:
        """On a loop an awaitable; in a thread the result itself."""
        if not on_loop():
            return drive(work)
        task = asyncio.ensure_future(work)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        return task

    async def _one(self, call: StepCall) -> Any:
        return await self._run(self._reserve([self._plan(call)])[0])

    async def _all(self, calls: list[StepCall]) -> list[Any]:
        planned = self._reserve([self._plan(call) for call in calls])
        results = await self._io.together([functools.partial(self._run, step) for step in planned])
        self._raise_worst(results)
        return results

    @staticmethod
    def _raise_worst(results: list[Any]) -> None:
        """Raise what ends the pass first, then the first failure; every sibling is recorded by now."""
        failures = [result for result in results if isinstance(result, BaseException)]
        ends = [failure for failure in failures if isinstance(failure, PassEnds)]
        if ends:
            raise max(ends, key=lambda end: _severity(end.outcome))
        if failures:
            raise failures[0]

    # --- planning -----------------------------------------------------------------------------

    def _plan(self, call: StepCall) -> Planned:
        step_id = check_step_id(call.step_id)
        definition, kind, slug = self._target(call)
        scope = _scope.get()
        if scope is not None and scope.transactional:
            raise ConfigurationError(
                f"Step {step_id!r} is called inside the transactional step {scope.path!r}. A transactional "
                "step has no steps of its own: its writes and its record commit together."
            )
        path = f"{scope.path}/{step_id}" if scope else step_id
        own = _own_retry(call, definition)
        timeout = seconds(call.timeout, "timeout") if call.timeout is not None else None
        if timeout is None and definition is not None:
            stated = definition.options.timeout
            timeout = seconds(stated, "timeout") if stated is not None else definition.timeout
        return Planned(
            call=call, definition=definition, kind=kind, slug=slug, path=path, key=ids.digest(slug, path),
            scope=scope, budget=retrying.Budget(own, self._run_retry), retry=own, timeout=timeout or None,
            input=_step_input(call, definition), transactional=_is_transactional(call, definition),
        )  # fmt: skip

    def _target(self, call: StepCall) -> tuple[Definition | None, StepKind, str]:
        if call.inline:
            if isinstance(call.target, Definition):
                raise UnknownTask(
                    f"{call.target!r} is registered: call it by run.task(), not run.inline()."
                )
            if not callable(call.target):
                raise ConfigurationError(
                    f"run.inline({call.step_id!r}, …) takes a function, not {call.target!r}."
                )
            return None, StepKind.INLINE, "inline"
        if not isinstance(call.target, Definition):
            name = getattr(call.target, "__qualname__", repr(call.target))
            raise UnknownTask(
                f"{name} is no registered task. Decorate it with @task, or call it by run.inline({call.step_id!r}, …)."
            )
        return call.target, StepKind.TASK, call.target.slug

    def _reserve(self, planned: list[Planned]) -> list[Planned]:
        """Note the ids of this pass; refuse a second use before anything of it runs."""
        with self._lock:
            keys = [step.key for step in planned]
            for step in planned:
                if step.key in self._seen or keys.count(step.key) > 1:
                    raise DuplicateStepId(
                        f"The step id {step.path!r} of {step.slug!r} is used twice in one pass of "
                        f"{self.claim.slug!r}. Give each call an id of its own."
                    )
                self._check_kind(step)
            self._seen.update(keys)
            known = len(self._records)
            new = [step for step in planned if step.key not in self._records]
            if known + len(new) > conf.get().step_limit:
                raise StepLimit(
                    f"The run has {known} steps and asks for {len(new)} more; STEP_LIMIT is {conf.get().step_limit}."
                )
        return planned

    def _check_kind(self, step: Planned) -> None:
        groups = self._groups.get(step.path)
        if groups and _group(step.kind) not in groups:
            stored = ", ".join(sorted(groups))
            raise PassEnds(
                Parked(
                    jsonvalues.describe_error(
                        NonDeterministic(
                            f"The step id {step.path!r} is stored as {stored}, and this pass asks for a {step.kind}. "
                            "Give the new step another id, or register a new version of the workflow."
                        ),
                        code="non_deterministic",
                    )
                )
            )

    # --- running ------------------------------------------------------------------------------

    async def _run(self, step: Planned) -> Any:
        record = self._records.get(step.key)
        if record is not None:
            if record.status == StepStatus.COMPLETED and self._restores(step, record):
                return self._load(step, record.output)
            if record.status == StepStatus.FAILED and record.error is not None:
                raise _stored_failure(step.name, record)
        self._check_alive()
        await self._mark_start(step, record)
        return await self._execute(step, record)

    def _restores(self, step: Planned, record: StepRecord) -> bool:
        restore = step.retry.restore if step.retry is not None else True
        if callable(restore):
            return bool(restore(step.input, _as_status(record)))
        return bool(restore)

    def _check_alive(self) -> None:
        """Start nothing under a fence that is known, or may be presumed, to be stale."""
        claim = self.claim
        if claim.revoked is not None or (claim.deadline and clock.monotonic() > claim.deadline):
            raise PassEnds(Lost({"reason": claim.revoked or "lease"}))

    async def _mark_start(self, step: Planned, record: StepRecord | None) -> None:
        mark = self._write_of(step, record, StepStatus.RUNNING)
        if not self._marked and record is None:
            # The claim itself is the start mark of the first step: no commit of its own.
            self._marked = True
            self.recorder.post(mark)
        else:
            self._marked = True
            match await self._io.write(mark):
                case "paused":
                    raise PassEnds(HandedBack("paused"))
                case "lost":
                    raise PassEnds(Lost({"step": step.name}))
        self._remember(mark)

    async def _execute(self, step: Planned, record: StepRecord | None) -> Any:
        tried = record.total_tried if record else 0
        failures = record.failures if record else 0
        scope = Scope(
            step.path, step.key, step.slug, step.budget, failures, step.scope, step.transactional
        )
        token = _scope.set(scope)
        started = clock.monotonic()
        try:
            if step.transactional:
                done = await self._io.call(
                    functools.partial(self._in_transaction, step, tried + 1, failures), None
                )
            else:
                value = await self._io.call(self._call_of(step, tried + 1), step.timeout)
                if step.timeout is not None and clock.monotonic() - started > step.timeout:
                    raise TimeoutError
                done = self._done(step, tried + 1, failures, self._dump(step, value))
        except PassEnds:
            raise
        except RetryLater as later:
            await self._note_pending(step, tried, failures)
            raise PassEnds(Later(later.delay, str(later))) from later
        except CancelJob:
            raise
        except asyncio.CancelledError:
            if self.claim.revoked is not None:
                raise PassEnds(Lost({"reason": self.claim.revoked})) from None
            raise
        except BaseException as error:
            code = (
                "timeout" if isinstance(error, TimeoutError) and step.timeout is not None else None
            )
            return await self._fail(step, tried + 1, failures + 1, error, code)
        finally:
            _scope.reset(token)
        return await self._complete(step, done)

    def _call_of(self, step: Planned, number: int) -> Any:
        definition, call = step.definition, step.call
        if definition is None:
            return call.target
        args, kwargs = definition.schema.load_input(step.input)
        if definition.takes_context:
            context = TaskContext(
                self, attempt=number, idempotency_key=f"{self.claim.job_id}:{step.name}"
            )
            args = (context, *args)
        return functools.partial(definition.func, *args, **kwargs)

    def _in_transaction(self, step: Planned, tried: int, failures: int) -> StepWrite:
        """Run a transactional step: its writes and its record commit together, or not at all."""
        session = Session(self.recorder.alias)
        started = clock.monotonic()
        with transaction.atomic(using=session.alias):
            session.limit_transaction(conf.get().lease * 0.8)
            output = self._dump(step, self._call_of(step, tried)())
            if step.timeout is not None and clock.monotonic() - started > step.timeout:
                raise TimeoutError
            done = self._done(step, tried, failures, output)
            failpoints.reach("transactional.before_record")
            # The fence is checked last, right before the commit, under the lock of the job's row.
            if write_all(session, [done]) != ["written"]:
                raise PassEnds(Lost({"step": step.name}))
        return done

    def _dump(self, step: Planned, value: Any) -> str:
        if step.definition is not None:
            value = step.definition.schema.dump_output(value)
        return jsonvalues.dumps(value, what="output", limit=conf.get().max_output)

    def _done(self, step: Planned, tried: int, failures: int, output: str) -> StepWrite:
        with self._lock:
            self._done_no += 1
            number = self._done_no
        done = self._write_of(step, None, StepStatus.COMPLETED)
        done.output, done.total_tried, done.failures, done.done_no = output, tried, failures, number
        done.again = step.retry is not None and step.retry.restore is not True
        return done

    async def _complete(self, step: Planned, done: StepWrite) -> Any:
        callback = step.definition.on_success if step.definition else None
        if step.transactional:
            pass  # recorded already
        elif callback is None:
            # Committed with the next step's start, the outcome, or after a moment: one commit a step.
            self.recorder.post(done)
        elif await self._io.write(done) == "lost":
            raise PassEnds(Lost({"step": step.name}))
        self._remember(done)
        result = self._load(step, done.output)
        if callback is not None:
            await self._call_back(step, callback, done.total_tried, result)
        return result

    async def _fail(
        self, step: Planned, tried: int, failures: int, error: BaseException, code: str | None
    ) -> Any:
        described = jsonvalues.describe_error(error, code=code, names=conf.get().redact)
        described["step_id"] = step.path
        if code == "timeout":
            described["message"] = f"The step timed out after {step.timeout:g} s."
        delay = self._next_try(step, failures, error)
        final = delay is None
        failed = self._write_of(step, None, StepStatus.FAILED if final else StepStatus.PENDING)
        failed.error, failed.total_tried, failed.failures = described, tried, failures
        if await self._io.write(failed) == "lost":
            raise PassEnds(Lost({"step": step.name}))
        self._remember(failed)
        if step.definition is not None and step.definition.on_failure is not None:
            await self._call_back(step, step.definition.on_failure, tried, error, final)
        if final:
            raise _failure(step.name, described) from error
        await self._fail_parents(step, described, error)
        raise PassEnds(TryAgain(described, delay or 0.0, error)) from error

    async def _fail_parents(
        self, step: Planned, described: ErrorDict, error: BaseException
    ) -> None:
        """A failed try of a nested step is a failed try of each step around it."""
        scope = step.scope
        while scope is not None:
            record = self._records[scope.key]
            mark = StepWrite(
                claim=self.claim, step_key=scope.key, step_id=scope.path, slug=scope.slug, kind=record.kind,
                status=StepStatus.PENDING, input=record.input, error=described,
                total_tried=record.total_tried + 1, failures=record.failures + 1, parent_key=record.parent_key,
            )  # fmt: skip
            if await self._io.write(mark) == "lost":
                raise PassEnds(Lost({"step": scope.name}))
            self._remember(mark)
            scope = scope.parent

    def _next_try(self, step: Planned, failures: int, error: BaseException) -> float | None:
        """Seconds until the next try of a failed step; None when this failure is final."""
        budget = step.budget
        if not retrying.may_repeat(error, step.retry) or failures > budget.step_extra:
            return None
        if budget.run_extra is not None and self.claim.attempts >= budget.run_extra:
            return None
        scope = step.scope
        while scope is not None:
            if scope.failures + 1 > scope.budget.step_extra:
                return None
            scope = scope.parent
        return retrying.wait(step.retry, failures, self._run_retry, self.claim.attempts + 1, error)

    async def _note_pending(self, step: Planned, tried: int, failures: int) -> None:
        mark = self._write_of(step, None, StepStatus.PENDING)
        mark.total_tried, mark.failures = tried, failures
        await self._io.write(mark)

    async def _call_back(self, step: Planned, callback: Any, number: int, *args: Any) -> None:
        """Call on_success or on_failure; an error in it is recorded and changes nothing."""
        context = TaskContext(
            self, attempt=number, idempotency_key=f"{self.claim.job_id}:{step.name}"
        )
        try:
            await self._io.call(functools.partial(callback, context, *args), None)
        except PassEnds:
            raise
        except BaseException as error:
            described = jsonvalues.describe_error(error, names=conf.get().redact)
            self.recorder.post(
                NoteWrite(self.claim, "callback_failed", step.name, {"error": described})
            )

    # --- records ------------------------------------------------------------------------------

    def _write_of(self, step: Planned, record: StepRecord | None, status: StepStatus) -> StepWrite:
        return StepWrite(
            claim=self.claim,
            step_key=step.key,
            step_id=step.path,
            slug=step.slug,
            kind=step.kind,
            status=status,
            input=jsonvalues.dumps(step.input, what="input", limit=conf.get().max_input),
            total_tried=record.total_tried if record else 0,
            failures=record.failures if record else 0,
            parent_key=step.scope.key if step.scope else None,
            again=record is not None and record.status == StepStatus.COMPLETED,
        )

    def _remember(self, write: StepWrite) -> None:
        with self._lock:
            known = self._records.get(write.step_key)
            self._records[write.step_key] = StepRecord(
                id=known.id if known else None, step_key=write.step_key, step_id=write.step_id, slug=write.slug,
                kind=write.kind, status=write.status, input=write.input, output=write.output,
                error=jsonvalues.dumps(write.error, what="error") if write.error else None,
                total_tried=write.total_tried, failures=write.failures, done_no=write.done_no,
                wake_at=known.wake_at if known else None, event_name=write.event_name, child=write.child,
                parent_key=write.parent_key,
            )  # fmt: skip
            self._groups.setdefault(write.step_id, set()).add(_group(StepKind(write.kind)))

    def _load(self, step: Planned, output: str | None) -> Any:
        stored = jsonvalues.loads(output)
        return stored if step.definition is None else step.definition.schema.load_output(stored)


def _own_retry(call: StepCall, definition: Definition | None) -> Retry | None:
    """The call's settings over those of ``using()`` over the task's, key by key."""
    levels = [Retry.of(call.retries)]
    if definition is not None:
        levels += [Retry.of(definition.options.retries), definition.retries]
    merged: Retry | None = None
    for level in reversed([level for level in levels if level is not None]):
        merged = level.over(merged)
    return merged


def _step_input(call: StepCall, definition: Definition | None) -> dict[str, Any]:
    if definition is None:
        return {}
    kwargs = dict(call.kwargs)
    if "input" in kwargs:
        inner = kwargs.pop("input")
        if not isinstance(inner, dict):
            raise InvalidInput(
                f"input= of step {call.step_id!r} takes the input as a dict, not {type(inner).__name__}."
            )
        kwargs.update(inner)
    return definition.schema.dump_input(definition.schema.bind(call.args, kwargs))


def _is_transactional(call: StepCall, definition: Definition | None) -> bool:
    chosen = call.transactional
    if chosen is None:
        chosen = definition is not None and definition.transactional
    function = call.target if definition is None else definition.func
    if chosen and inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"The step {call.step_id!r} is transactional and async. A transaction of Django belongs to one "
            "thread: make the function a plain def."
        )
    return bool(chosen)


def _group(kind: StepKind) -> str:
    return GROUPS.get(kind, str(kind))


def _as_status(step: StepRecord) -> dict[str, Any]:
    return {
        "input": jsonvalues.loads(step.input) or {},
        "output": jsonvalues.loads(step.output),
        "complete": step.status == StepStatus.COMPLETED,
        "total_tried": step.total_tried,
        "error": jsonvalues.loads(step.error),
        "status": str(step.status),
    }


def _stored_failure(name: str, record: StepRecord) -> JobFailed:
    return _failure(name, jsonvalues.loads(record.error))


def _failure(name: str, error: ErrorDict) -> JobFailed:
    kind = str(error.get("type", "")).rpartition(".")[2]
    return JobFailed(f"Step {name} failed: {kind}: {error.get('message')}", error)


def _severity(outcome: Any) -> tuple[int, float]:
    """Which of several ends of a pass holds: the graver one, then the one that waits longest."""
    order = [Later, TryAgain, HandedBack, Parked, Lost]
    rank = order.index(type(outcome)) if type(outcome) in order else 0
    return rank, float(getattr(outcome, "delay", 0.0) or 0.0)
