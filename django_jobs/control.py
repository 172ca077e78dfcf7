"""Steering jobs: pause, resume, cancel, retry, rerun, run now, reschedule; one, or all of a queryset.

What a command does to a job of each status is the table of :mod:`django_jobs.lifecycle`. Each
command is one transaction a job, or a chunk of jobs, and repeating it is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import transaction
from django.dispatch import Signal

from django_jobs import enqueueing, ids, jsonvalues, lifecycle, signals
from django_jobs.definitions import registry
from django_jobs.definitions.options import check_name, seconds
from django_jobs.definitions.task import check_priority
from django_jobs.enqueueing import Prepared, check_moment
from django_jobs.errors import DuplicateJob, InvalidInput, InvalidTransition
from django_jobs.lifecycle import KEEP, REFUSE, Command, Kind, Status
from django_jobs.models import Job
from django_jobs.store import commands, history
from django_jobs.store.commands import ATTEMPTS_BEFORE, Done, Order
from django_jobs.store.jobs import NewJob
from django_jobs.store.rescheduling import Change
from django_jobs.store.session import Session, engine_alias

if TYPE_CHECKING:
    from django_jobs.models.commands import JobQuerySet

#: Jobs that one transaction of a queryset's command changes.
CHUNK = 1_000
#: Characters that are kept of a reason.
LONGEST_REASON = 2_000
SIGNALS = {
    Command.PAUSE: signals.job_paused,
    Command.RESUME: signals.job_resumed,
    Command.CANCEL: signals.job_canceled,
    Command.COMPENSATE: signals.run_compensating,
}
HINTS = {
    Command.RETRY: "rerun() makes a new job of it.",
    Command.RESUME: "retry() tries a failed one again, and rerun() makes a new job.",
    Command.RERUN: "Wait for its end, or cancel it first.",
    Command.RESCHEDULE: (
        "Only a job that waits and was never started has another time, queue or priority; the time of a paused "
        "one is its resume()."
    ),
}


@dataclass(frozen=True, slots=True)
class Counts:
    """What a command on a queryset came to: jobs changed, left as they are, and refused."""

    changed: int = 0
    unchanged: int = 0
    refused: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


# --- one job ----------------------------------------------------------------------------------


def steer(
    job: Job,
    command: Command,
    *,
    actor: object = None,
    reason: str | None = None,
    cascade: bool = False,
    compensate: bool = False,
    change: Change | None = None,
) -> Job:
    """Carry out ``command`` on one job and return it refreshed.

    ``cascade`` and ``compensate`` belong to a cancel: the child runs are canceled too; a run of which
    a step has completed undoes that, and ends as compensated. Raises InvalidTransition, which names
    command and status, and Job.DoesNotExist.
    """
    order = _order(command, actor, reason, cascade, compensate, change)
    if command == Command.COMPENSATE and job.kind not in (Kind.WORKFLOW, Kind.DAG):
        raise InvalidTransition(
            command, job.status, f"Only runs have steps to undo, and {job.slug!r} is a {job.kind}."
        )
    alias = _alias(job)
    done = Session(alias).committed(lambda s: commands.apply(s, order, [job.pk]))
    if job.pk in done.refused:
        raise InvalidTransition(command, done.refused[job.pk], HINTS.get(command, ""))
    _announce(order, done, alias)
    job.refresh_from_db(using=alias)
    return job


def rerun(
    job: Job,
    *,
    input: dict[str, Any] | None = None,
    actor: object = None,
    reason: str | None = None,
) -> Job:
    """Enqueue the call of a finished job anew and return the new job, whose ``rerun_of`` is this one.

    Everything but the idempotency key is as before; ``input`` replaces the stored one and is
    checked by the code of this process. Raises InvalidTransition, InvalidInput, UnknownTask,
    DuplicateJob where a key refuses it.
    """
    alias = _alias(job)
    order = _order(Command.RERUN, actor, reason)
    again = Session(alias, through_django=True).committed(
        lambda s: _rerun_one(s, order, job.pk, input)
    )
    if isinstance(again, str):
        raise InvalidTransition(Command.RERUN, again, HINTS[Command.RERUN])
    return again


def offered(job: Job) -> list[Command]:
    """The commands that would change ``job`` as it stands now."""
    possible = [command for command in lifecycle.COMMANDS if _would_change(job.status, command)]
    if Command.COMPENSATE in possible and job.kind not in (Kind.WORKFLOW, Kind.DAG):
        possible.remove(Command.COMPENSATE)
    if Command.RESCHEDULE in possible and job.started_at is not None:
        possible.remove(Command.RESCHEDULE)
    if Command.RUN_NOW in possible:
        session = Session(_alias(job))
        if not commands.can_run_now(session, job.pk, Status(job.status)):
            possible.remove(Command.RUN_NOW)
    return possible


def _would_change(status: str, command: Command) -> bool:
    return commands.effect(command, status) not in (KEEP, REFUSE)


def _order(
    command: Command,
    actor: object,
    reason: str | None,
    cascade: bool = False,
    compensate: bool = False,
    change: Change | None = None,
) -> Order:
    said = None if actor is None else jsonvalues.clean_text(str(actor))[:200]
    why = jsonvalues.clean_text(str(reason))[:LONGEST_REASON] if reason else None
    return Order(command, said or None, why, cascade, change, compensate)


def change_of(
    *,
    run_after: datetime | timedelta | None = None,
    delay: float | timedelta | None = None,
    queue_name: str | None = None,
    priority: int | None = None,
) -> Change:
    """What a reschedule is to change, checked: InvalidInput names what is wrong."""
    if run_after is not None and delay is not None:
        raise InvalidInput("Give run_after or delay, not both.")
    if isinstance(run_after, timedelta):
        run_after, delay = None, run_after
    change = Change(
        run_after=None if run_after is None else check_moment(run_after, "run_after"),
        delay=None if delay is None else seconds(delay, "delay"),
        queue_name=None if queue_name is None else check_name(queue_name, "queue_name"),
        priority=None if priority is None else check_priority(priority),
    )
    if change == Change():
        raise InvalidInput("Say what is to be different: run_after, delay, queue_name or priority.")
    return change


def _alias(job: Job) -> str:
    return job._state.db or engine_alias()


# --- many jobs --------------------------------------------------------------------------------


def steer_many(
    queryset: JobQuerySet,
    command: Command,
    *,
    actor: object = None,
    reason: str | None = None,
    cascade: bool = False,
    compensate: bool = False,
    change: Change | None = None,
    told: Callable[[Done], None] | None = None,
) -> Counts:
    """Carry out ``command`` on every job of ``queryset``, a chunk a transaction.

    No InvalidTransition is raised: such jobs are counted as refused. ``told`` is called with what
    became of each chunk, after its commit. Stopped halfway, the chunks done stay done, and the
    same call again does the rest.
    """
    order = _order(command, actor, reason, cascade, compensate, change)
    alias = _alias_of(queryset)
    carry_out: Callable[[Session, list[UUID]], Done]
    if command == Command.RERUN:
        session = Session(alias, through_django=True)
        carry_out = partial(_rerun_chunk, order=order)
    else:
        session = Session(alias)
        carry_out = partial(_apply_chunk, order=order)
    counts = Counts()
    for chunk in _chunks(queryset.using(alias)):
        done = session.committed(partial(carry_out, job_ids=chunk))
        _announce(order, done, alias)
        if told is not None:
            told(done)
        counts += Counts(len(done.changed), len(done.unchanged), len(done.refused))
    return counts


def preview(queryset: JobQuerySet, command: Command) -> Counts:
    """What :func:`steer_many` would come to, by the statuses as they are now."""
    counts = Counts()
    alias = _alias_of(queryset)
    for chunk in _chunks(queryset.using(alias)):
        rows = Job.units.using(alias).filter(pk__in=chunk).values_list("status", "started_at")
        for status, started_at in rows:
            cell = commands.effect(command, status)
            if command == Command.RESCHEDULE and started_at is not None:
                cell = REFUSE
            counts += Counts(
                int(cell not in (KEEP, REFUSE)), int(cell == KEEP), int(cell == REFUSE)
            )
    return counts


def _alias_of(queryset: JobQuerySet) -> str:
    """Where its jobs are changed: never on a replica that reads are routed to."""
    chosen: str | None = queryset._db  # type: ignore[attr-defined]
    return chosen or engine_alias()


def _apply_chunk(session: Session, job_ids: list[UUID], *, order: Order) -> Done:
    return commands.apply(session, order, job_ids)


def _chunks(queryset: JobQuerySet) -> Iterator[list[UUID]]:
    """The ids of ``queryset`` page by page; jobs that leave its filter meanwhile disturb nothing."""
    if queryset.query.is_sliced or queryset.query.combinator:
        listed = list(dict.fromkeys(queryset.values_list("pk", flat=True)))
        yield from (listed[start : start + CHUNK] for start in range(0, len(listed), CHUNK))
        return
    ordered = queryset.order_by("pk").values_list("pk", flat=True)
    page = list(ordered[:CHUNK])
    while page:
        yield list(dict.fromkeys(page))
        page = list(ordered.filter(pk__gt=page[-1])[:CHUNK])


def _announce(order: Order, done: Done, alias: str) -> None:
    """The signal of each change, after the commit of the caller's transaction, if there is one."""
    undone = set(done.undoing)
    _send_later(
        SIGNALS.get(order.command), [one for one in done.changed if one not in undone], alias
    )
    _send_later(signals.run_compensating, done.undoing, alias)


def _send_later(signal: Signal | None, changed: list[UUID], alias: str) -> None:
    if signal is None or not signal.receivers or not changed:
        return

    def send(changed: Iterable[UUID] = tuple(changed)) -> None:
        for job in Job.units.using(alias).filter(pk__in=list(changed)).order_by("pk"):
            details = {"error": job.error} if signal is signals.run_compensating else {}
            signals.announce(signal, Job, job=job, **details)

    transaction.on_commit(send, using=alias)


# --- rerun ------------------------------------------------------------------------------------


def _rerun_one(
    session: Session, order: Order, job_id: UUID, input: dict[str, Any] | None
) -> Job | str:
    """The new job, or the status for which there is none. One transaction of the caller's."""
    seen = commands.look(session, [job_id])
    if not seen:
        raise Job.DoesNotExist(f"There is no job {job_id}.")
    if commands.effect(Command.RERUN, seen[0].status) == REFUSE:
        return seen[0].status
    job = Job.units.using(session.alias).get(pk=job_id)
    prepared = _copy(job) if input is None else _with_input(job, input)
    history.note_many(
        session, {job_id: _detail(order, prepared)}, event=commands.EVENTS[order.command], actor=order.actor
    )  # fmt: skip
    [again] = enqueueing.write_prepared(
        registry.find(job.slug, job.version), [prepared], session.alias
    )
    return again


def _rerun_chunk(session: Session, job_ids: list[UUID], *, order: Order) -> Done:
    done = Done()
    fit: list[UUID] = []
    for seen in commands.look(session, job_ids):
        if commands.effect(Command.RERUN, seen.status) == REFUSE:
            done.refused[seen.job_id] = seen.status
        else:
            fit.append(seen.job_id)
    together: dict[str, list[tuple[Job, Prepared]]] = {}
    for job in Job.units.using(session.alias).filter(pk__in=fit).order_by("pk"):
        if _asks_of_its_key(job):
            _rerun_bound(session, order, job, done)
        else:
            together.setdefault(job.runner, []).append((job, _copy(job)))
    for pairs in together.values():
        details = {job.pk: _detail(order, prepared) for job, prepared in pairs}
        history.note_many(session, details, event=commands.EVENTS[order.command], actor=order.actor)
        enqueueing.write_prepared(None, [prepared for _, prepared in pairs], session.alias)
        done.changed += [job.pk for job, _ in pairs]
    return done


def _rerun_bound(session: Session, order: Order, job: Job, done: Done) -> None:
    """A job whose key may refuse, drop or supersede."""
    try:
        with session.transaction():
            _rerun_one(session, order, job.pk, None)
    except DuplicateJob:
        done.refused[job.pk] = job.status
    else:
        done.changed.append(job.pk)


def _asks_of_its_key(job: Job) -> bool:
    definition = registry.find(job.slug, job.version) if job.key_hash else None
    rule = definition.concurrency if definition is not None else None
    return rule is not None and (rule.supersedes or rule.on_conflict != "wait")


def _detail(order: Order, prepared: Prepared) -> dict[str, Any]:
    return {"job": str(prepared.row.id), **(order.detail or {})}


def _copy(job: Job) -> Prepared:
    """The call of ``job`` once more, as it is stored."""
    options = dict(job.options or {})
    options.pop(ATTEMPTS_BEFORE, None)
    row = NewJob(
        id=ids.job_id(), slug=job.slug, kind=job.kind, version=job.version, queue_name=job.queue_name,
        priority=job.priority, precedence=-job.priority, lane=0, input=_text(job.input) or "{}",
        runner=job.runner, meta=_text(job.meta or None), options=_text(options or None),
        context=_text(job.context), args=_text(job.args), spec=_text(job.spec),
        concurrency_key=job.concurrency_key, key_hash=job.key_hash, key_limit=job.key_limit,
        key_hold=job.key_hold, rate_hash=job.rate_hash, rerun_of=job.pk,
        tenants=(job.tenant_1, job.tenant_2, job.tenant_3),
    )  # fmt: skip
    row.lane = enqueueing.lane_of(row)
    return Prepared(row, job.input, job.context, job.meta or {})


def _with_input(job: Job, input: dict[str, Any]) -> Prepared:
    """The call of ``job`` with another input, checked as an enqueue is."""
    if not isinstance(input, dict):
        raise InvalidInput(f"rerun(input=…) takes a dict, not {type(input).__name__}.")
    copied = _copy(job)
    definition = registry.find(job.slug, job.version)
    if definition is None and job.spec is None:
        registry.get(job.slug, job.version or "")
    if definition is None:
        copied.row.input, copied.input = jsonvalues.dumps(input, what="input"), input
        return copied
    checked = enqueueing.prepare(definition, (), {"input": input})
    row = copied.row
    row.input, row.tenants, copied.input = checked.row.input, checked.row.tenants, checked.input
    if definition.concurrency is not None:
        row.concurrency_key, row.key_hash = checked.row.concurrency_key, checked.row.key_hash
        row.key_limit, row.key_hold = checked.row.key_limit, checked.row.key_hold
    row.rate_hash = checked.row.rate_hash
    row.lane = enqueueing.lane_of(row)
    return copied


def _text(value: Any) -> str | None:
    return None if value is None else jsonvalues.dumps(value, what="stored value")
