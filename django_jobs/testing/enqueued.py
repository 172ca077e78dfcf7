"""Asserting what was enqueued."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django_jobs.errors import InvalidInput

if TYPE_CHECKING:
    from django_jobs.definitions.options import Options
    from django_jobs.definitions.task import Definition
    from django_jobs.models import Job

#: Jobs that a failed assertion lists, and characters shown of an input.
LISTED, SHOWN = 20, 200
#: Seconds by which the two times of one INSERT may differ.
SAME_INSERT = 1.0
MISSING = object()


def assert_enqueued(task: Definition | str, /, *, times: int | None = None, **input: Any) -> Job:
    """Assert that ``task`` was enqueued with these input fields; return the newest such job.

    Fields not named may hold anything; a value matches as stored or as typed. What ``using()``
    sets is compared too: queue_name, priority, version, run_after or delay, meta,
    idempotency_key, concurrency_key. ``times`` asks for exactly so many. Jobs that have run
    meanwhile count as well. A field called ``times`` or ``input`` goes into ``input={…}``.
    """
    if times is not None and times < 1:
        raise ValueError("times counts from 1; for none there is assert_not_enqueued().")
    wanted, jobs = _input_of(input), _jobs(task)
    matching = [job for job in jobs if _matches(task, job, wanted)]
    if not matching or (times is not None and len(matching) != times):
        found = f"{len(matching)} of them were" if times is not None else "none was"
        how_often = "" if times is None else f" {times} times"
        raise AssertionError(
            f"Expected {_call(_slug(task), wanted)}{_stated(task)} to be enqueued{how_often}, "
            f"but {found}.\n{_listing(task, jobs)}"
        )
    return matching[-1]


def assert_not_enqueued(task: Definition | str, /, **input: Any) -> None:
    """Assert that no job of ``task`` with these input fields was enqueued; as :func:`assert_enqueued`."""
    wanted, jobs = _input_of(input), _jobs(task)
    matching = [job for job in jobs if _matches(task, job, wanted)]
    if matching:
        raise AssertionError(
            f"Expected no {_call(_slug(task), wanted)}{_stated(task)} to be enqueued, "
            f"but {len(matching)} were.\n{_listing(task, matching)}"
        )


def _input_of(given: dict[str, Any]) -> dict[str, Any]:
    """The keywords with ``input={…}`` laid into them."""
    fields = dict(given)
    inner = fields.pop("input", {})
    if not isinstance(inner, dict):
        raise InvalidInput(f"input= takes the fields as a dict, not {type(inner).__name__}.")
    return {**fields, **inner}


def _slug(task: Definition | str) -> str:
    return task if isinstance(task, str) else task.slug


def _jobs(task: Definition | str) -> list[Job]:
    from django_jobs.models import Job
    from django_jobs.store.session import engine_alias

    alias = engine_alias() if isinstance(task, str) else task.options.database or engine_alias()
    return list(Job.units.using(alias).filter(slug=_slug(task)).order_by("created_at", "id"))


def _matches(task: Definition | str, job: Job, wanted: dict[str, Any]) -> bool:
    if not (isinstance(task, str) or _is_call_of(task, job)):
        return False
    typed = _typed(task, job)
    return all(
        _same(job.input.get(name, MISSING), value) or _same(typed.get(name, MISSING), value)
        for name, value in wanted.items()
    )


def _same(found: Any, value: Any) -> bool:
    # 1 == True and 1 == 1.0, but an input of True is another input than 1.
    return bool(found == value) and isinstance(found, bool) == isinstance(value, bool)


def _typed(task: Definition | str, job: Job) -> dict[str, Any]:
    """The input as the handler would get it; nothing where it no longer fits."""
    from django_jobs.definitions import registry

    definition = registry.find(job.slug, job.version) if isinstance(task, str) else task
    if definition is None:
        return {}
    try:
        args, kwargs = definition.schema.load_input(job.input)
    except InvalidInput:
        return {}
    return {**dict(zip(definition.schema.parameter_names, args, strict=False)), **kwargs}


def _is_call_of(task: Definition, job: Job) -> bool:
    return job.version == task.version and _fits_options(task.options, job)


def _fits_options(options: Options, job: Job) -> bool:
    plain = ("queue_name", "priority", "meta", "idempotency_key", "concurrency_key")
    for name in plain:
        value = getattr(options, name)
        if value is not None and getattr(job, name) != value:
            return False
    after = options.delay if options.delay is not None else options.run_after
    return after is None or _fits_time(after, job)


def _fits_time(after: float | timedelta | datetime, job: Job) -> bool:
    if isinstance(after, datetime):
        return job.run_after == after
    span = after.total_seconds() if isinstance(after, timedelta) else float(after)
    start = job.run_after or job.created_at
    return abs((start - job.created_at).total_seconds() - span) < SAME_INSERT


def _stated(task: Definition | str) -> str:
    """What ``using()`` asked for, for the message."""
    from dataclasses import fields

    if isinstance(task, str):
        return ""
    stated = {
        field.name: getattr(task.options, field.name)
        for field in fields(task.options)
        if getattr(task.options, field.name) is not None
    }
    return (
        f" with {', '.join(f'{name}={value!r}' for name, value in stated.items())}"
        if stated
        else ""
    )


def _call(slug: str, input: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in input.items())
    return f"{slug}({_cut(text)})"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _listing(task: Definition | str, jobs: list[Job]) -> str:
    from django_jobs.models import Job

    if jobs:
        lines = [f"Enqueued of {_slug(task)!r}:", *(_line(job) for job in jobs[-LISTED:])]
        if len(jobs) > LISTED:
            lines.append(f"  and {len(jobs) - LISTED} older ones")
        return "\n".join(lines)
    others = Counter(Job.units.values_list("slug", flat=True))
    if not others:
        return "No job at all was enqueued."
    counts = ", ".join(f"{slug} ({number})" for slug, number in sorted(others.items()))
    return f"No job of {_slug(task)!r} was enqueued. Enqueued were: {counts}."


def _line(job: Job) -> str:
    text = ", ".join(
        f"{name}={json.dumps(job.input[name], ensure_ascii=False)}" for name in _field_names(job)
    )
    details = [str(job.status), f"queue {job.queue_name!r}"]
    if job.version is not None:
        details.append(f"version {job.version!r}")
    if job.priority:
        details.append(f"priority {job.priority}")
    if job.run_after is not None:
        details.append(f"due at {job.run_after.isoformat()}")
    return f"  {job.slug}({_cut(text)})  {', '.join(details)}"


def _field_names(job: Job) -> list[str]:
    """The fields of the input in the order of the signature, which jsonb does not keep."""
    from django_jobs.definitions import registry

    definition = registry.find(job.slug, job.version)
    declared = definition.schema.parameter_names if definition is not None else ()
    return sorted(
        job.input, key=lambda name: declared.index(name) if name in declared else len(declared)
    )
