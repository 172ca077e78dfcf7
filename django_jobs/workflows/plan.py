"""A step as it is asked for: its id, its input, its limits, and the steps around it."""

from __future__ import annotations

import contextvars
import inspect
from dataclasses import dataclass
from typing import Any

from django_jobs import conf, ids, jsonvalues
from django_jobs.definitions.context import StepCall
from django_jobs.definitions.options import check_step_id, seconds
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import Definition
from django_jobs.enqueueing import Prepared
from django_jobs.errors import ConfigurationError, InvalidInput, UnknownTask
from django_jobs.lifecycle import StepKind
from django_jobs.workflows import retrying

#: Kinds that a stored id must not change between.
GROUPS = {StepKind.TASK: "task", StepKind.INLINE: "task", StepKind.HTTP: "task"}


def group(kind: str) -> str:
    """What a stored id must stay, so that a replay may ask for it."""
    return GROUPS.get(StepKind(kind), str(kind))


@dataclass(frozen=True, slots=True)
class Planned:
    """A step as asked for in this pass; ``input`` is as stored, ``input_text`` its JSON."""

    call: StepCall
    definition: Definition | None
    kind: StepKind
    slug: str
    path: str
    key: str
    scope: Scope | None
    budget: retrying.Budget
    timeout: float | None
    input: dict[str, Any]
    input_text: str
    transactional: bool = False
    #: The checked call of a child run.
    child: Prepared | None = None

    @property
    def name(self) -> str:
        return f"{self.slug}/{self.path}"

    @property
    def retry(self) -> Retry | None:
        return self.budget.own


@dataclass(frozen=True, slots=True)
class Scope:
    """A step in hand: where the steps called within it belong.

    ``failures`` is how often it failed before this try. ``callback`` says that a callback of it
    runs, which has no steps.
    """

    step: Planned
    failures: int
    callback: bool = False

    @property
    def key(self) -> str:
        return self.step.key

    @property
    def path(self) -> str:
        return self.step.path

    @property
    def parent(self) -> Scope | None:
        return self.step.scope


#: The step within which the calling code runs.
scope_in_hand: contextvars.ContextVar[Scope | None] = contextvars.ContextVar(
    "django_jobs_scope", default=None
)


def plan(call: StepCall, run_retry: Retry | None) -> Planned:
    """Check a call and say what is to be done. Nothing of it has run when this raises."""
    step_id = check_step_id(call.step_id)
    definition, kind, slug = _target(call)
    scope = scope_in_hand.get()
    _check_scope(step_id, scope)
    path = f"{scope.path}/{step_id}" if scope else step_id
    timeout = seconds(call.timeout, "timeout") if call.timeout is not None else None
    if timeout is None and definition is not None:
        stated = definition.options.timeout
        timeout = seconds(stated, "timeout") if stated is not None else definition.timeout
    # The function gets what is stored, on a first try as on a later one.
    text = jsonvalues.dumps_plain(
        _step_input(call, definition), what="input", limit=conf.get().max_input
    )
    return Planned(
        call=call,
        definition=definition,
        kind=kind,
        slug=slug,
        path=path,
        key=ids.digest(slug, path),
        scope=scope,
        budget=retrying.Budget(own_retry(call, definition), run_retry),
        timeout=timeout or None,
        input=jsonvalues.loads(text),
        input_text=text,
        transactional=is_transactional(call, definition),
    )


def _check_scope(step_id: str, scope: Scope | None) -> None:
    if scope is None:
        return
    if scope.callback:
        raise ConfigurationError(
            f"Step {step_id!r} is called inside a callback of {scope.step.name}. Callbacks run at most once "
            "and have no steps; what must happen belongs in a step of the workflow."
        )
    if scope.step.transactional:
        raise ConfigurationError(
            f"Step {step_id!r} is called inside the transactional step {scope.path!r}. A transactional "
            "step has no steps of its own: its writes and its record commit together."
        )


def _target(call: StepCall) -> tuple[Definition | None, StepKind, str]:
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


def own_retry(call: StepCall, definition: Definition | None) -> Retry | None:
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


def is_transactional(call: StepCall, definition: Definition | None) -> bool:
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
