"""Code workflows: the handler runs from the top, recorded steps are answered from the store."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Coroutine
from typing import Any

from django.dispatch import Signal

from django_jobs import clock, conf, enqueueing, failpoints, jsonvalues, signals
from django_jobs.definitions.context import StepCall, TaskContext
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import Definition
from django_jobs.errors import (
    CancelJob,
    ConfigurationError,
    DuplicateStepId,
    ErrorDict,
    InvalidOutput,
    JobCanceled,
    JobFailed,
    JobsError,
    NonDeterministic,
    NotSerializable,
    RetryLater,
)
from django_jobs.lifecycle import WAITS, StepKind, StepStatus
from django_jobs.models import Job, TaskStatus
from django_jobs.outcomes import (
    Canceled,
    Failed,
    HandedBack,
    Later,
    Lost,
    Outcome,
    Parked,
    Sleeping,
    TryAgain,
)
from django_jobs.store.claims import Claim
from django_jobs.store.record import Item, NoteWrite
from django_jobs.store.record import record as write_all
from django_jobs.store.recorded import StepRecord
from django_jobs.store.session import Session
from django_jobs.store.steps import StepWrite
from django_jobs.store.waits import Wait
from django_jobs.workflows import retrying, waiting
from django_jobs.workflows.asking import on_loop
from django_jobs.workflows.attempt import Attempt, Recorder
from django_jobs.workflows.io import IO, LoopIO, ThreadIO, called, drive, is_being_canceled
from django_jobs.workflows.passes import PassEnds
from django_jobs.workflows.plan import Planned, Scope, group, plan, scope_in_hand
from django_jobs.workflows.secrets import Secrets

#: Tries of a transactional step whose COMMIT got no answer and did not happen.
COMMIT_TRIES = 3


class StepLimit(JobsError):
    """The run has as many steps as a run may have."""


class CommitLost(Exception):
    """The connection went with the COMMIT of a transactional step."""


class Replay(Attempt):
    """The driver of one pass: answers recorded steps, runs and records the others.

    ``retry`` is the job's own: the workflow's of a run. ``run_extra`` is W, the extra passes of
    the job; None is unlimited.
    """

    #: Places in the order of completion from one step to a wait that ends after it.
    apart = 1

    def __init__(
        self,
        claim: Claim,
        recorder: Recorder,
        input: dict[str, Any],
        definition: Definition,
        *,
        thread_io: ThreadIO,
        loop_io: LoopIO,
        retry: Retry | None,
        run_extra: int | None,
    ) -> None:
        super().__init__(claim, recorder, input, definition)
        self._thread_io = thread_io
        self._loop_io = loop_io
        self._retry = retry
        self._run_extra = run_extra
        self._records = {step.step_key: step for step in claim.steps if step.step_id}
        self._groups: dict[str, set[str]] = {}
        for step in self._records.values():
            self._groups.setdefault(step.step_id, set()).add(group(step.kind))
        self._seen: set[str] = set()
        #: Every step of the run that is recorded or was asked for.
        self._known = set(self._records)
        self._lock = threading.Lock()
        self._done_no = max((step.done_no or 0 for step in self._records.values()), default=0)
        self._marked = bool(self._records) or claim.fence > 1
        #: How the pass ended within each step, by its key; under None for the handler itself.
        self._ends: dict[str | None, PassEnds] = {}
        #: The waits that this pass has found not to be over.
        self._parked: set[str] = set()
        #: A mistake that fails the run even where the handler catches it.
        self.mistake: JobsError | None = None
        #: Monotonic end of the job's time limit, and the limit in seconds.
        self.ends_at: float | None = None
        self.time_limit = 0.0
        #: The outcome is stored; only callbacks follow.
        self.is_over = False
        #: Steps under way on an event loop; a pass ends only after they are recorded.
        self.under_way: set[asyncio.Future[Any]] = set()

    @property
    def step_in_hand(self) -> str | None:
        scope = scope_in_hand.get()
        return None if scope is None else scope.key

    @property
    def secrets_in_hand(self) -> Secrets:
        scope = scope_in_hand.get()
        return self.secrets if scope is None else self._secrets(scope.step)

    @property
    def end(self) -> Outcome | None:
        """The outcome of a pass that ended early, even where the handler caught that."""
        end = self._ends.get(None)
        if end is not None and isinstance(end.outcome, Sleeping):
            # Several waits at once: the first that is over wakes the run.
            return Sleeping(keys=frozenset(self._parked))
        return None if end is None else end.outcome

    @property
    def task_status(self) -> dict[str, dict[str, dict[str, Any]]]:
        status: dict[str, dict[str, dict[str, Any]]] = {}
        for step in list(self._records.values()):
            status.setdefault(step.slug, {})[step.step_id] = _as_status(step)
        return status

    # --- what contexts call -------------------------------------------------------------------

    def step(self, call: StepCall) -> Any:
        self._check_going_on()
        return self._started(self._one(call))

    def gather(self, calls: list[StepCall]) -> Any:
        self._check_going_on()
        return self._started(self._all(calls))

    @property
    def _io(self) -> IO:
        return self._loop_io if on_loop() else self._thread_io

    def _check_going_on(self) -> None:
        """Start nothing, such as a step in a ``finally``, where this pass has ended."""
        if self.is_over:
            raise ConfigurationError(
                f"A callback of {self.claim.slug!r} calls a step. Callbacks run at most once and have no "
                "steps; what must happen belongs in a step of the workflow."
            )
        end = self._ends.get(self.step_in_hand)
        if end is not None:
            raise end

    def _started(self, work: Coroutine[Any, Any, Any]) -> Any:
        """On a loop an awaitable; in a thread the result itself."""
        if not on_loop():
            return drive(work)
        task = asyncio.ensure_future(work)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        return task

    async def _one(self, call: StepCall) -> Any:
        try:
            return await self._run(self._reserve([self._plan(call)])[0])
        except PassEnds as end:
            self._note_end(end)
            raise

    async def _all(self, calls: list[StepCall]) -> list[Any]:
        try:
            planned = self._reserve([self._plan(call) for call in calls])
            results = await self._io.together(
                [functools.partial(self._run, step) for step in planned]
            )
            _raise_worst(results)
            return results
        except PassEnds as end:
            self._note_end(end)
            raise

    def _plan(self, call: StepCall) -> Planned:
        if waiting.is_wait(call):
            return waiting.plan_wait(call, self.claim)
        planned = plan(call, self._run_level)
        if call.compensate is not None:
            self._note_compensation(planned)
        return planned

    def _note_compensation(self, step: Planned) -> None:
        """Take note of what undoes a step; refused where nothing ever would."""
        raise ConfigurationError(
            f"The step {step.path!r} of {self.claim.slug!r} has compensate=, but only the steps of a workflow "
            "itself are undone. Give it to the step of the workflow around this one."
        )

    def _compensation_of(self, step: Planned) -> str | None:
        """What undoes the step, for its record; None where a failed run leaves it as it is."""
        return None

    @property
    def _run_level(self) -> Retry | None:
        """The workflow's retries, to which a step's fall through; a task's job has none."""
        return self._retry if self.claim.is_run else None

    def _note_end(self, end: PassEnds) -> None:
        with self._lock:
            key = self.step_in_hand
            known = self._ends.get(key)
            if known is None or _severity(end.outcome) > _severity(known.outcome):
                self._ends[key] = end

    # --- planning -----------------------------------------------------------------------------

    def _reserve(self, planned: list[Planned]) -> list[Planned]:
        """Note the ids of this pass; refuse a second use before anything of it runs."""
        with self._lock:
            keys = [step.key for step in planned]
            is_twice = len(set(keys)) < len(keys)
            for step in planned:
                if step.key in self._seen or (is_twice and keys.count(step.key) > 1):
                    self.mistake = DuplicateStepId(
                        f"The step id {step.path!r} of {step.slug!r} is used twice in one pass of "
                        f"{self.claim.slug!r}. Give each call an id of its own."
                    )
                    raise self.mistake
                self._check_kind(step)
            known = len(self._known)
            self._seen.update(keys)
            self._known.update(keys)
            new = len(self._known) - known
            limit = conf.get().step_limit
            if new and known + new > limit:
                self.mistake = StepLimit(
                    f"The run has {known} steps and asks for {new} more; STEP_LIMIT is {limit}."
                )
                raise self.mistake
        return planned

    def _check_kind(self, step: Planned) -> None:
        groups = self._groups.get(step.path)
        if groups and group(step.kind) not in groups:
            stored = ", ".join(sorted(groups))
            error = NonDeterministic(
                f"The step id {step.path!r} is stored as {stored}, and this pass asks for a {step.kind}. "
                "Give the new step another id, or register a new version of the workflow."
            )
            described = jsonvalues.describe_error(error, code="non_deterministic")
            raise PassEnds(Parked({**described, "step_id": step.path}))

    # --- running ------------------------------------------------------------------------------

    async def _run(self, step: Planned) -> Any:
        record = self._records.get(step.key)
        if record is not None:
            if record.status == StepStatus.COMPLETED and self._restores(step, record):
                return self._load(step, record.output, timed_out=record.failures > 0)
            if record.status == StepStatus.FAILED and record.error is not None:
                raise _failure(step, jsonvalues.loads(record.error))
        self._check_alive()
        if step.kind in WAITS:
            return await self._wait_for(step)
        await self._mark_start(step, record)
        return await self._execute(step, record)

    async def _wait_for(self, step: Planned) -> Any:
        """Begin a wait, or look at it again; the pass ends where it is not over."""
        with self._lock:
            self._done_no += self.apart
            wait = waiting.begin(step, self.claim, self._done_no)
            wait.compensation = self._compensation_of(step)
        match await self._io.write(wait):
            case "paused":
                raise PassEnds(HandedBack("paused"))
            case "lost":
                raise PassEnds(Lost({"step": step.name}))
        self._marked = True
        self._remember_wait(wait)
        if wait.enqueued is not None:
            enqueued = [wait.enqueued]
            await self._io.call(lambda: enqueueing.announce(enqueued), None)
        if wait.status == StepStatus.SLEEPING:
            self._parked.add(step.key)
            raise PassEnds(Sleeping(keys=frozenset([step.key])))
        if wait.error is not None:
            await self._announce(signals.step_failed, step, error=wait.error)
            raise _failure(step, wait.error)
        await self._announce(signals.step_completed, step)
        return self._load(step, wait.output, timed_out=wait.timed_out)

    def _restores(self, step: Planned, record: StepRecord) -> bool:
        restore = step.retry.restore if step.retry is not None else True
        if callable(restore):
            return bool(restore(step.input, _as_status(record)))
        return bool(restore)

    def _check_alive(self) -> None:
        """Start nothing under a fence that is known, or may be presumed, to be stale, nor out of time."""
        claim = self.claim
        if self.ends_at is not None and clock.monotonic() > self.ends_at:
            raise retrying.timed_out("job", self.time_limit)
        if claim.revoked is not None:
            raise PassEnds(Lost({"reason": claim.revoked}))
        if claim.is_halted:
            raise PassEnds(HandedBack("paused"))
        if claim.deadline and clock.monotonic() > claim.deadline:
            # Nobody may have taken it yet; under its fence it can still be given back uncharged.
            raise PassEnds(HandedBack("its lease could not be renewed"))

    async def _mark_start(self, step: Planned, record: StepRecord | None) -> None:
        mark = self._write_of(step, record, StepStatus.RUNNING)
        if self._marked or self.recorder.always_look:
            match await self._io.write(mark):
                case "paused":
                    raise PassEnds(HandedBack("paused"))
                case "lost":
                    raise PassEnds(Lost({"step": step.name}))
        else:
            # The claim itself is the start mark of the job's first step: no commit of its own.
            self._marked = True
            self.recorder.post(mark)
        self._remember(mark)

    async def _execute(self, step: Planned, record: StepRecord | None) -> Any:
        tried = record.total_tried if record else 0
        failures = record.failures if record else 0
        scope = Scope(step, failures)
        token = scope_in_hand.set(scope)
        try:
            done = await self._try(step, tried + 1, failures)
        except PassEnds as end:
            return await self._end_early(step, tried, failures, end)
        except RetryLater as error:
            again = PassEnds(Later(error.delay, str(error)))
            return await self._end_early(step, tried, failures, again)
        except CancelJob as error:
            last = PassEnds(Canceled(cancel_error(error.reason)))
            return await self._end_early(step, tried, failures, last)
        except BaseException as error:
            if is_being_canceled():
                # A time limit, or the worker: the step ends with its pass.
                self.recorder.post(self._noted(step, StepStatus.CANCELED, tried, failures))
                raise
            return await self._fail(step, tried + 1, failures + 1, error)
        finally:
            scope_in_hand.reset(token)
        return await self._complete(step, done)

    async def _try(self, step: Planned, number: int, failures: int) -> StepWrite:
        """Run the function once and make the record of its success."""
        if step.transactional:
            attempt = functools.partial(self._in_transaction, step, number, failures)
            return await self._io.call(attempt, None)
        started = clock.monotonic()
        value = await self._io.call(self._call_of(step, number), step.timeout)
        if step.key in self._ends:
            raise self._ends[step.key]  # the function caught what was not for it
        _check_time(step, started)
        return self._done(step, number, failures, self._dump(step, value))

    def _call_of(self, step: Planned, number: int) -> Any:
        definition, call = step.definition, step.call
        if definition is None:
            return call.target
        args, kwargs = definition.schema.load_input(jsonvalues.loads(step.input_text))
        if definition.takes_context:
            args = (self._context_of(step, number), *args)
        return functools.partial(definition.func, *args, **kwargs)

    def _context_of(self, step: Planned, number: int) -> TaskContext:
        key = f"{self.run_id}:{step.name}"
        return TaskContext(self, attempt=number, idempotency_key=key)

    def _in_transaction(self, step: Planned, number: int, failures: int) -> StepWrite:
        """Run a transactional step: its writes and its record commit together, or not at all."""
        for left in reversed(range(COMMIT_TRIES)):
            try:
                return self._commit_with_record(step, number, failures)
            except CommitLost as lost:
                done = self._done_before(step)
                if done is not None:
                    return done
                if not left:
                    raise (lost.__cause__ or lost) from None
        raise AssertionError("unreachable")

    def _commit_with_record(self, step: Planned, number: int, failures: int) -> StepWrite:
        session = Session(self.recorder.alias)
        started = clock.monotonic()
        done: StepWrite | None = None
        try:
            with session.limited_transaction(conf.get().lease * 0.8):
                with session.alone(f"The transactional step {step.path!r}"):
                    output = self._dump(step, called(self._call_of(step, number)))
                _check_time(step, started)
                record = self._done(step, number, failures, output)
                failpoints.reach("transactional.before_record")
                # The fence is checked last, right before the commit, under the lock of the job's row.
                if write_all(session, [self._item_of(record)]) != ["written"]:
                    raise PassEnds(Lost({"step": step.name}))
                done = record
            failpoints.reach("transactional.after_commit")
        except Exception as error:
            if done is not None and session.dialect.is_lost(error):
                session.connection.close()
                raise CommitLost from error
            raise
        return done

    def _done_before(self, step: Planned) -> StepWrite | None:
        """The record that a COMMIT without an answer has left under our fence, if it happened."""
        row = Session(self.recorder.alias).one(
            "SELECT {text(output)}, total_tried, failures, done_no FROM {taskstatus} WHERE job_id = %(job)s "
            "AND step_key = %(key)s AND status = 'completed' AND fence = %(fence)s",
            job=self.run_id, key=step.key, fence=self.claim.fence,
        )  # fmt: skip
        if row is None:
            return None
        done = self._noted(step, StepStatus.COMPLETED, row[1], row[2])
        done.output, done.done_no = row[0], row[3]
        return done

    def _dump(self, step: Planned, value: Any) -> str:
        limit = conf.get().max_output
        if step.definition is not None:
            output = step.definition.schema.dump_output(value)
            return jsonvalues.dumps_plain(output, what="output", limit=limit)
        try:
            return jsonvalues.dumps(value, what="output", limit=limit)
        except NotSerializable as error:
            raise InvalidOutput(f"step {step.name}: {error}") from None

    def _done(self, step: Planned, tried: int, failures: int, output: str) -> StepWrite:
        with self._lock:
            self._done_no += 1
            number = self._done_no
        done = self._noted(step, StepStatus.COMPLETED, tried, failures)
        done.output, done.done_no = output, number
        done.again = step.retry is not None and step.retry.restore is not True
        return done

    async def _complete(self, step: Planned, done: StepWrite) -> Any:
        callback = step.definition.on_success if step.definition else None
        if step.transactional:
            pass  # recorded already
        elif (
            callback is None and not signals.step_completed.receivers and not self._must_know(step)
        ):
            # Committed with the next step's start, the outcome, or after a moment: one commit a step.
            self.recorder.post(done)
        elif await self._io.write(done) == "lost":
            raise PassEnds(Lost({"step": step.name}))
        self._remember(done)
        result = self._load(step, done.output)
        if callback is not None:
            await self._call_back(step, callback, done.total_tried, result)
        await self._announce(signals.step_completed, step)
        return result

    def _must_know(self, step: Planned) -> bool:
        """Whether the answer to the record of a completed step decides what comes next."""
        return False

    async def _announce(self, signal: Signal, step: Planned, **details: Any) -> None:
        """Send a signal of a step whose record is committed, if anybody listens."""
        if not signal.receivers:
            return

        def send() -> None:
            row = TaskStatus.objects.using(self.recorder.alias).filter(
                job_id=self.run_id, step_key=step.key
            )
            signals.announce(signal, Job, job=self.job, step=row.first(), **details)

        await self._io.call(send, None)

    # --- ends that are no success -------------------------------------------------------------

    async def _fail(self, step: Planned, tried: int, failures: int, error: BaseException) -> Any:
        """Record a failed try; raise what the caller of the step gets, or the end of the pass."""
        secrets = self._secrets(step)
        described = secrets.describe(error, code=self._code_of(error))
        self.secrets.learn(secrets)
        delay = self._next_try(step, failures, error)
        await self._note_failure(step, tried, failures, described, error, delay)
        if delay is None:
            raise _failure(step, described) from error
        raise PassEnds(TryAgain({**described, "step_id": step.path}, delay, error)) from error

    async def _end_early(self, step: Planned, tried: int, failures: int, end: PassEnds) -> Any:
        """The pass ends within this step: a failed try of a step in it is one of this step too."""
        match end.outcome:
            case TryAgain(error=error, delay=delay, cause=cause):
                described = {key: value for key, value in error.items() if key != "step_id"}
                await self._note_failure(
                    step, tried + 1, failures + 1, described, cause or end, delay
                )
            case Later(delay=delay):
                await self._write(
                    self._noted_wait(step, StepStatus.PENDING, tried, failures, delay)
                )
            case Canceled():
                await self._write(self._noted(step, StepStatus.CANCELED, tried, failures))
            case Lost():
                pass
            case _:
                await self._write(self._noted(step, StepStatus.PENDING, tried, failures))
        raise end

    async def _note_failure(
        self,
        step: Planned,
        tried: int,
        failures: int,
        described: ErrorDict,
        error: BaseException,
        delay: float | None,
    ) -> None:
        final = delay is None
        status = StepStatus.FAILED if final else StepStatus.PENDING
        failed = self._noted_wait(step, status, tried, failures, delay)
        failed.error = described
        await self._write(failed)
        if step.definition is not None and step.definition.on_failure is not None:
            await self._call_back(step, step.definition.on_failure, tried, error, final)
        await self._announce(signals.step_failed, step, error=described)

    def _code_of(self, error: BaseException) -> str | None:
        return "timeout" if retrying.is_timed_out(error) else None

    def _next_try(self, step: Planned, failures: int, error: BaseException) -> float | None:
        """Seconds until the next try of a failed step; None when this failure is final."""
        passes = self.claim.tries
        if self._run_extra is not None and passes > self._run_extra:
            return None
        if retrying.is_misuse(error) or failures > step.budget.step_extra:
            return None
        judges, levels = step.budget.judges, [(step.retry, failures)]
        scope = step.scope
        while scope is not None:
            if scope.failures + 1 > scope.step.budget.step_extra:
                return None
            judges += scope.step.budget.judges
            levels.append((scope.step.retry, scope.failures + 1))
            scope = scope.parent
        if not retrying.may_repeat(error, [*judges, self._retry]):
            return None
        return retrying.wait([*levels, (self._retry, passes)], error)

    async def _call_back(self, step: Planned, callback: Any, number: int, *args: Any) -> None:
        """Call on_success or on_failure; an error in it is recorded and changes nothing."""
        context = self._context_of(step, number)
        token = scope_in_hand.set(Scope(step, 0, callback=True))
        try:
            await self._io.call(functools.partial(callback, context, *args), None)
        except BaseException as error:
            if is_being_canceled():
                raise
            detail = {"error": self._secrets(step).describe(error)}
            self.recorder.post(NoteWrite(self.claim, "callback_failed", step.name, detail))
        finally:
            scope_in_hand.reset(token)

    def call_after(self, callback: Any) -> None:
        """Call a callback of the job itself, from a thread, once the outcome is stored."""
        self.is_over = True
        drive(self._thread_io.call(callback, None))

    # --- records ------------------------------------------------------------------------------

    async def _write(self, mark: StepWrite) -> None:
        if await self._io.write(mark) == "lost":
            raise PassEnds(Lost({"step": f"{mark.slug}/{mark.step_id}"}))
        self._remember(mark)

    def _write_of(self, step: Planned, record: StepRecord | None, status: StepStatus) -> StepWrite:
        return StepWrite(
            claim=self.claim,
            step_key=step.key,
            step_id=step.path,
            slug=step.slug,
            kind=step.kind,
            status=status,
            input=step.input_text,
            total_tried=record.total_tried if record else 0,
            failures=record.failures if record else 0,
            parent_key=step.scope.key if step.scope else None,
            again=record is not None and record.status == StepStatus.COMPLETED,
            compensation=self._compensation_of(step),
        )

    def _noted(self, step: Planned, status: StepStatus, tried: int, failures: int) -> StepWrite:
        """A record of ``step`` with these counts."""
        mark = self._write_of(step, None, status)
        mark.total_tried, mark.failures = tried, failures
        return mark

    def _noted_wait(
        self, step: Planned, status: StepStatus, tried: int, failures: int, delay: float | None
    ) -> StepWrite:
        """The record of a step that is tried again after ``delay`` seconds; here its run waits for that."""
        return self._noted(step, status, tried, failures)

    def _item_of(self, write: StepWrite) -> Item:
        """How a record goes to the database."""
        return write

    def _remember(self, write: StepWrite) -> None:
        with self._lock:
            known = self._records.get(write.step_key)
            self._records[write.step_key] = StepRecord(
                id=known.id if known else None, step_key=write.step_key, step_id=write.step_id, slug=write.slug,
                kind=write.kind, status=write.status, input=write.input, output=write.output,
                error=jsonvalues.dumps(write.error, what="error") if write.error else None,
                total_tried=write.total_tried, failures=write.failures, done_no=write.done_no,
                wake_at=known.wake_at if known else None, event_name=write.event_name, child=write.child,
                parent_key=write.parent_key, compensation=write.compensation,
            )  # fmt: skip
            self._groups.setdefault(write.step_id, set()).add(group(write.kind))

    def _remember_wait(self, wait: Wait) -> None:
        with self._lock:
            known = self._records.get(wait.step_key)
            self._records[wait.step_key] = StepRecord(
                id=known.id if known else None, step_key=wait.step_key, step_id=wait.step_id, slug=wait.slug,
                kind=wait.kind, status=wait.status, input=wait.input, output=wait.output,
                error=jsonvalues.dumps(wait.error, what="error") if wait.error else None,
                total_tried=int(wait.status != StepStatus.SLEEPING), failures=int(wait.timed_out), done_no=wait.done_no,
                wake_at=known.wake_at if known else None, event_name=wait.event_name, child=wait.child,
                compensation=wait.compensation,
            )  # fmt: skip
            self._groups.setdefault(wait.step_id, set()).add(group(wait.kind))

    def _secrets(self, step: Planned) -> Secrets:
        return Secrets(step.definition, step.input, around=self.secrets)

    def _load(self, step: Planned, output: str | None, *, timed_out: bool = False) -> Any:
        if step.kind == StepKind.EVENT and timed_out and step.call.wait is not None:
            return step.call.wait.default
        stored = jsonvalues.loads(output)
        return stored if step.definition is None else step.definition.schema.load_output(stored)


def cancel_error(reason: str) -> ErrorDict:
    """The error of a job whose handler raised CancelJob."""
    return {
        "type": "django_jobs.errors.CancelJob", "message": jsonvalues.clean_text(reason), "traceback": "",
        "code": "canceled",
    }  # fmt: skip


def _raise_worst(results: list[Any]) -> None:
    """Raise what ends the pass first, then the first failure; every sibling is recorded by now."""
    failures = [result for result in results if isinstance(result, BaseException)]
    ends = [failure for failure in failures if isinstance(failure, PassEnds)]
    if ends:
        raise max(ends, key=lambda end: _severity(end.outcome))
    if failures:
        raise failures[0]


def _check_time(step: Planned, started: float) -> None:
    """Refuse what came too late. A thread cannot be stopped, but its result can."""
    if step.timeout is not None and clock.monotonic() - started > step.timeout:
        raise retrying.timed_out("step", step.timeout)


def _as_status(step: StepRecord) -> dict[str, Any]:
    return {
        "input": jsonvalues.loads(step.input) or {},
        "output": jsonvalues.loads(step.output),
        "complete": step.status == StepStatus.COMPLETED,
        "total_tried": step.total_tried,
        "error": jsonvalues.loads(step.error),
        "status": str(step.status),
    }


def _failure(step: Planned, error: ErrorDict) -> JobFailed:
    kind = str(error.get("type", "")).rpartition(".")[2]
    message = f"Step {step.name} failed: {kind}: {error.get('message')}"
    # Only a child run can have been canceled while its parent goes on.
    is_canceled = step.kind == StepKind.CHILD and kind == CancelJob.__name__
    failed = JobCanceled(message, error) if is_canceled else JobFailed(message, error)
    return retrying.mark_step_failure(failed, step.path)


def _severity(outcome: Outcome) -> tuple[int, float]:
    """Which of several ends of a pass holds: the graver one, then the one that waits longest."""
    order = [Sleeping, Later, TryAgain, Failed, HandedBack, Parked, Canceled, Lost]
    rank = order.index(type(outcome)) if type(outcome) in order else 0
    return rank, float(getattr(outcome, "delay", 0.0) or 0.0)
