"""The steps of a run that hold no worker: sleeps, waits for events, child runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django_jobs import enqueueing, ids, jsonvalues
from django_jobs.definitions.context import StepCall, WaitFor
from django_jobs.definitions.options import check_name, check_step_id, seconds
from django_jobs.definitions.task import Definition
from django_jobs.enqueueing import Prepared
from django_jobs.errors import ConfigurationError, InvalidInput, UnknownTask
from django_jobs.lifecycle import Kind, StepKind
from django_jobs.models import Job
from django_jobs.store.claims import Claim
from django_jobs.store.session import Session
from django_jobs.store.waits import Wait
from django_jobs.workflows import retrying
from django_jobs.workflows.plan import Planned, scope_in_hand

#: What a call of a child run may not set: its tries are those of its own target.
NOT_OF_A_CHILD = ("retries", "transactional", "compensate")


def is_wait(call: StepCall) -> bool:
    """Whether ``call`` is a wait; a workflow as the target of any step method is a child run."""
    if call.wait is not None:
        return True
    return isinstance(call.target, Definition) and call.target.kind != Kind.TASK


def plan_wait(call: StepCall, claim: Claim) -> Planned:
    """Check a wait and say what it is. Nothing of it has begun when this raises."""
    wait = call.wait or WaitFor(StepKind.CHILD, seconds=call.timeout)
    step_id = check_step_id(call.step_id)
    _check_place(wait.kind, step_id, claim)
    definition, child = None, None
    if wait.kind == StepKind.CHILD:
        definition = _target(call)
        child = _prepare_child(definition, call, claim)
        text = child.row.input
    else:
        text = jsonvalues.dumps(_input(wait), what="input")
    slug = str(wait.kind) if definition is None else definition.slug
    return Planned(
        call=call, definition=definition, kind=wait.kind, slug=slug, path=step_id, key=ids.digest(slug, step_id),
        scope=None, budget=retrying.Budget(None), timeout=_limit(wait), input=jsonvalues.loads(text),
        input_text=text, child=child,
    )  # fmt: skip


def begin(step: Planned, claim: Claim, done_no: int) -> Wait:
    """The item to be written for ``step``, be it new or known."""
    wait = step.call.wait
    return Wait(
        claim=claim, step_key=step.key, step_id=step.path, slug=step.slug, kind=step.kind, input=step.input_text,
        done_no=done_no, wake_after=step.timeout, wake_at=wait.until if wait is not None else None,
        event_name=wait.event if wait is not None else None, enqueue=_enqueue(step),
    )  # fmt: skip


def _check_place(kind: StepKind, step_id: str, claim: Claim) -> None:
    scope = scope_in_hand.get()
    if scope is not None:
        raise ConfigurationError(
            f"{kind} inside step {scope.path!r}: the {kind} {step_id!r} would hold a worker, for a step has to be "
            "run to its end. Wait in the workflow's own code, between two steps."
        )
    if not claim.is_run:
        raise ConfigurationError(
            f"The {kind} {step_id!r} is asked for in the task {claim.slug!r}. Only a workflow can wait without "
            "holding a worker: decorate the handler with @workflow."
        )


def _input(wait: WaitFor) -> dict[str, Any]:
    """What is shown as the input of a sleep or of a wait for an event."""
    if wait.kind == StepKind.EVENT:
        limit = _limit(wait)
        return {"name": check_name(wait.event, "an event's name"), "timeout": limit}
    if wait.until is not None:
        return {"until": _moment(wait.until).isoformat()}
    return {"seconds": _limit(wait)}


def _limit(wait: WaitFor) -> float | None:
    if wait.kind == StepKind.SLEEP and wait.until is None:
        if wait.seconds is None:
            raise InvalidInput("A sleep takes a duration: a timedelta or a number of seconds.")
        return seconds(wait.seconds, "A sleep")
    return None if wait.seconds is None else seconds(wait.seconds, "timeout")


def _moment(until: datetime) -> datetime:
    return enqueueing.check_moment(until, "sleep_until()")


# --- child runs -------------------------------------------------------------------------------


def _target(call: StepCall) -> Definition:
    if not isinstance(call.target, Definition):
        name = getattr(call.target, "__qualname__", repr(call.target))
        raise UnknownTask(
            f"{name} is no registered workflow or task. Decorate it with @workflow to run it as a child."
        )
    for option in NOT_OF_A_CHILD:
        if getattr(call, option) is not None:
            raise ConfigurationError(
                f"The step {call.step_id!r} is a child run, and of the options it takes timeout= only. "
                f"{option} belongs to the definition of {call.target.slug!r}."
            )
    if call.target.options.idempotency_key is not None:
        raise ConfigurationError(
            f"The child run {call.step_id!r} has an idempotency_key. It needs none: a step starts its child once."
        )
    return call.target


def _prepare_child(definition: Definition, call: StepCall, claim: Claim) -> Prepared:
    """The child's row: in the parent's queue unless its definition, or using(), names another."""
    options: dict[str, Any] = {}
    if definition.options.queue_name is None and definition.queue_name == "default":
        options["queue_name"] = claim.queue_name
    if (definition.options.runner or definition.runner) == "inline":
        options["runner"] = "db"  # it would run within the transaction that records the step
    placed = definition.using(**options) if options else definition
    prepared = enqueueing.prepare(placed, call.args, dict(call.kwargs))
    prepared.row.parent = claim.job_id
    return prepared


def _enqueue(step: Planned) -> Callable[[Session], Job] | None:
    if step.child is None:
        return None
    return functools.partial(_insert_child, step.definition, step.child)


def _insert_child(definition: Definition | None, prepared: Prepared, session: Session) -> Job:
    [job] = enqueueing.write_within(session, definition, [prepared])
    return job
