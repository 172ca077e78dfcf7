"""Undoing a run: its completed steps are compensated in reverse order of completion, each a step of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from django_jobs import ids, jsonvalues
from django_jobs.definitions.context import StepCall, StepContext
from django_jobs.definitions.graph import Step
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import Definition
from django_jobs.errors import CancelJob, ErrorDict, NonRetryable
from django_jobs.lifecycle import StepKind, StepStatus
from django_jobs.store.recorded import StepRecord
from django_jobs.workflows import retrying
from django_jobs.workflows.plan import Planned, own_retry

SLUG = "undo"


def undo_id(step_id: str) -> str:
    return f"undo:{step_id}"


def plan_undo(step: Step, record: StepRecord) -> Planned:
    """The step that undoes ``step``: its retries are those of the step itself, counted anew."""
    target = step.compensate
    definition = target if isinstance(target, Definition) else None
    path = undo_id(step.id)
    call = StepCall(path, target, inline=definition is None, retries=step.retries)
    text = "{}"
    if definition is not None:
        text = jsonvalues.dumps(_input_for(definition, record), what="input")
    return Planned(
        call=call, definition=definition, kind=StepKind.COMPENSATION, slug=SLUG, path=path,
        key=ids.digest(SLUG, path), scope=None, budget=retrying.Budget(_retry(step, call)),
        timeout=step.timeout, input=jsonvalues.loads(text), input_text=text,
    )  # fmt: skip


def _retry(step: Step, call: StepCall) -> Retry | None:
    return own_retry(call, step.definition)


def _input_for(definition: Definition, record: StepRecord) -> dict[str, Any]:
    """A task as a compensation gets what its parameters name of the step's own input."""
    stored = jsonvalues.loads(record.input) if record.input else {}
    names = definition.schema.parameter_names
    return {name: value for name, value in stored.items() if name in names}


def call_of(function: Callable[[StepContext], Any], context: StepContext) -> Callable[[], Any]:
    """The call of a compensation; CancelJob in it is a failure of it."""

    def failed(error: CancelJob) -> NonRetryable:
        return NonRetryable(f"A compensation cannot cancel its run: {error.reason}")

    async def acall(context: StepContext) -> Any:
        try:
            return await function(context)
        except CancelJob as error:
            raise failed(error) from error

    def call(context: StepContext) -> Any:
        try:
            return function(context)
        except CancelJob as error:
            raise failed(error) from error

    chosen: Any = acall if inspect.iscoroutinefunction(function) else call
    return functools.partial(chosen, context)


def as_seen(error: ErrorDict) -> ErrorDict:
    """The failure as a compensation sees it."""
    return {key: error.get(key) for key in ("type", "message", "code", "step_id")}


def left_to_undo(
    steps: dict[str, Step], keys: dict[str, str], records: dict[str, StepRecord]
) -> list[tuple[Step, StepRecord]]:
    """The completed steps whose compensation has not completed, the last completed first."""
    found = []
    for step in steps.values():
        record = records.get(keys[step.id])
        if step.compensate is None or record is None or record.status != StepStatus.COMPLETED:
            continue
        undone = records.get(ids.digest(SLUG, undo_id(step.id)))
        if undone is None or undone.status != StepStatus.COMPLETED:
            found.append((step, record))
    return sorted(found, key=lambda pair: -(pair[1].done_no or 0))
