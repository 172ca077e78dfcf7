"""One step of a declared graph: planned, run and recorded as the steps of code workflows are."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from django_jobs import conf, ids, jsonvalues
from django_jobs.definitions.context import StepCall, StepContext
from django_jobs.definitions.graph import Graph, Step
from django_jobs.definitions.task import Definition
from django_jobs.errors import ErrorDict, InvalidInput, JobFailed
from django_jobs.lifecycle import StepKind, StepStatus
from django_jobs.outcomes import Later, Outcome, TryAgain
from django_jobs.signals import step_skipped
from django_jobs.store.recorded import StepRecord
from django_jobs.store.steps import StepWrite
from django_jobs.workflows import retrying
from django_jobs.workflows.advance import Mark, Work
from django_jobs.workflows.passes import PassEnds
from django_jobs.workflows.plan import Planned, is_transactional, own_retry
from django_jobs.workflows.replay import Replay
from django_jobs.workflows.undo import mark
from django_jobs.workflows.view import RunView

ITEM = "item"


class StepSkipped(Exception):
    """The condition of a step said no."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one try of a step ended.

    A pending step is tried again after ``delay`` seconds. An ``outcome`` ends the whole pass.
    """

    work: Work
    status: StepStatus
    error: ErrorDict | None = None
    delay: float | None = None
    outcome: Outcome | None = None

    @property
    def mark(self) -> Mark:
        return Mark(self.status, waits=self.status is StepStatus.PENDING)


class GraphSteps(Replay):
    """What the driver of a run and the driver of a unit have in common."""

    graph: Graph
    #: What the run was enqueued with.
    context: dict[str, Any]
    #: Whether a failed run undoes its steps.
    is_saga: bool

    def look(self, step_ids: Iterable[str] | None) -> Mapping[str, StepRecord]:
        """The records of these steps, or of all, by id; steps that have none are left out."""
        raise NotImplementedError

    # --- doing --------------------------------------------------------------------------------

    async def perform(self, work: Work) -> Ended:
        """Start, run and record one step."""
        planned = self._planned(work)
        record = self._records.get(planned.key)
        self._ends.pop(planned.key, None)
        try:
            self._check_alive()
            await self._mark_start(planned, record)
        except PassEnds as end:
            return Ended(work, StepStatus.PENDING, outcome=end.outcome)
        return await self._go(work, planned, record)

    async def _go(self, work: Work, planned: Planned, record: StepRecord | None) -> Ended:
        try:
            planned = await self._asked(work, planned, record)
            await self._execute(planned, record)
        except StepSkipped:
            return Ended(work, StepStatus.SKIPPED)
        except JobFailed as error:
            return Ended(work, StepStatus.FAILED, error.error)
        except PassEnds as end:
            match end.outcome:
                case TryAgain(error=told, delay=delay):
                    return Ended(work, StepStatus.PENDING, told, delay)
                case Later(delay=delay):
                    return Ended(work, StepStatus.PENDING, None, delay)
                case _:
                    return Ended(work, StepStatus.PENDING, outcome=end.outcome)
        return Ended(work, StepStatus.COMPLETED)

    def _planned(self, work: Work) -> Planned:
        step = work.step
        definition = step.definition
        call = StepCall(
            work.id,
            step.target,
            inline=definition is None,
            retries=step.retries,
            timeout=step.timeout,
        )
        timeout = step.timeout
        if timeout is None and definition is not None:
            timeout = definition.options.timeout or definition.timeout  # type: ignore[assignment]
        self._works[key_of(self.graph, work)] = work
        return Planned(
            call=call, definition=definition, kind=kind_of(work),
            slug=step.slug, path=work.id, key=key_of(self.graph, work), scope=None,
            budget=retrying.Budget(own_retry(call, definition)), timeout=timeout, input={}, input_text="{}",
            transactional=is_transactional(call, definition),
        )  # fmt: skip

    @functools.cached_property
    def _works(self) -> dict[str, Work]:
        """The steps in hand, by key."""
        return {}

    def _compensation_of(self, step: Planned) -> str | None:
        work = self._works.get(step.key)
        if work is None or work.index is not None or not self.is_saga:
            return None
        return None if work.step.compensate is None else mark(work.step.compensate)

    # --- what the step itself says before it runs ---------------------------------------------

    async def _asked(self, work: Work, planned: Planned, record: StepRecord | None) -> Planned:
        """Ask the condition, once, and the input; their errors are failures of the step."""
        if was_asked(record):
            assert record is not None
            text = record.input or "{}"
            return replace(planned, input=jsonvalues.loads(text), input_text=text)
        tried = record.total_tried if record else 0
        try:
            if work.step.when is not None and work.index is None:
                ask = functools.partial(work.step.when, self._context_for(work, tried + 1))
                if not await self._io.call(ask, None):
                    await self._skip(planned)
                    raise StepSkipped
            return await self._with_input(work, planned, record)
        except (StepSkipped, PassEnds):
            raise
        except Exception as error:
            failures = record.failures if record else 0
            retrying.mark_condition(error)
            await self._fail(planned, tried + 1, failures + 1, error)
            raise AssertionError("unreachable") from error

    async def _skip(self, planned: Planned) -> None:
        await self._write(self._noted(planned, StepStatus.SKIPPED, 0, 0))
        await self._announce(step_skipped, planned)

    async def _with_input(self, work: Work, planned: Planned, record: StepRecord | None) -> Planned:
        definition = planned.definition
        if work.index is not None:
            item = self._item(work, record)
            stored = {ITEM: item} if definition is None else task_input(definition, item)
        elif definition is None:
            return planned
        else:
            stored = await self._input_of(work, definition, record)
        text = jsonvalues.dumps(stored, what="input", limit=conf.get().max_input)
        return replace(planned, input=jsonvalues.loads(text), input_text=text)

    async def _input_of(
        self, work: Work, definition: Definition, record: StepRecord | None
    ) -> dict[str, Any]:
        wanted = work.step.input
        if callable(wanted):
            number = (record.total_tried if record else 0) + 1
            ask = functools.partial(wanted, self._context_for(work, number))
            wanted = await self._io.call(ask, None)
        if wanted is None:
            wanted = {}
        if not isinstance(wanted, Mapping):
            raise InvalidInput(
                f"input= of step {work.id!r} gave {type(wanted).__name__}. It takes a dict, or a function "
                "of the context that returns one."
            )
        return definition.schema.dump_input(definition.schema.bind((), dict(wanted)))

    def _item(self, work: Work, record: StepRecord | None) -> Any:
        """The item of a map that this is about, as it was stored when the map began."""
        stored = jsonvalues.loads(record.input) if record and record.input else {}
        return stored.get(ITEM)

    # --- contexts -----------------------------------------------------------------------------

    def _call_of(self, step: Planned, number: int) -> Any:
        if step.definition is not None or step.key not in self._works:
            return super()._call_of(step, number)
        context = self._context_for(self._works[step.key], number, step.input)
        return functools.partial(step.call.target, context)

    def _context_for(
        self, work: Work, number: int, input: Mapping[str, Any] | None = None
    ) -> StepContext:
        return StepContext(
            View(self, work.step), step_id=work.id, attempt=number,
            idempotency_key=f"{self.run_id}:{work.step.slug}/{work.id}",
            item=(input or {}).get(ITEM), index=work.index,
        )  # fmt: skip

    def _code_of(self, error: BaseException) -> str | None:
        return "condition" if retrying.is_condition(error) else super()._code_of(error)

    def _noted_wait(
        self, step: Planned, status: StepStatus, tried: int, failures: int, delay: float | None
    ) -> StepWrite:
        noted = self._noted(step, status, tried, failures)
        noted.wake_after = delay
        return noted


class View(RunView):
    """What a step sees of its run: nothing is read before it is asked for."""

    _driver: GraphSteps

    def __init__(self, driver: GraphSteps, step: Step, error: ErrorDict | None = None) -> None:
        super().__init__(driver, error)
        self._step = step

    @property
    def context(self) -> dict[str, Any]:
        return self._driver.context

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        known = self._driver.look(None)
        return outputs(self._driver.graph, known)

    @functools.cached_property
    def _before(self) -> Mapping[str, StepRecord]:
        return self._driver.look(self._step.after)

    @functools.cached_property
    def previous_steps(self) -> dict[str, Any]:
        return {
            step_id: jsonvalues.loads(self._before[step_id].output)
            for step_id in self._step.after
            if step_id in self._before and self._before[step_id].status == StepStatus.COMPLETED
        }

    @functools.cached_property
    def errors(self) -> dict[str, dict[str, Any]]:
        return {
            step_id: jsonvalues.loads(self._before[step_id].error)
            for step_id in self._step.after
            if step_id in self._before and self._before[step_id].status == StepStatus.FAILED
        }

    def was_skipped(self, step_id: str) -> bool:
        if step_id not in self._driver.graph.steps:
            raise InvalidInput(
                f"was_skipped({step_id!r}): {self._driver.graph.name} has no such step."
            )
        record = self._driver.look([step_id]).get(step_id)
        return record is not None and record.status == StepStatus.SKIPPED


def kind_of(work: Work) -> StepKind:
    if work.step.kind is not StepKind.MAP or work.index is None:
        return work.step.kind
    return StepKind.INLINE if work.step.definition is None else StepKind.TASK


def key_of(graph: Graph, work: Work) -> str:
    return graph.keys[work.step.id] if work.index is None else ids.digest(work.step.slug, work.id)


def was_asked(record: StepRecord | None) -> bool:
    """Whether an earlier try came as far as the step's own function: its input stands."""
    if record is None or not record.total_tried:
        return False
    error = jsonvalues.loads(record.error) if record.error else None
    return not (isinstance(error, dict) and error.get("code") == "condition")


def task_input(definition: Definition, item: Any) -> dict[str, Any]:
    """The input of a task that is mapped: a dict is its keywords, anything else its first parameter."""
    schema = definition.schema
    bound = schema.bind((), item) if isinstance(item, dict) else schema.bind((item,), {})
    return schema.dump_input(bound)


def outputs(graph: Graph, records: Mapping[str, StepRecord]) -> dict[str, Any]:
    """``{step id: output}`` of every completed step, in order of declaration."""
    return {
        step_id: jsonvalues.loads(records[step_id].output)
        for step_id in graph.steps
        if step_id in records and records[step_id].status == StepStatus.COMPLETED
    }
