"""Storing calls: everything is checked before the first statement, so a refusal writes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.conf import settings as django_settings
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.models.base import ModelState

from django_jobs import conf, ids, jsonvalues, signals
from django_jobs.definitions import registry
from django_jobs.definitions.dag import DAG
from django_jobs.definitions.limits import Concurrency
from django_jobs.definitions.options import NAME_LIMIT, Options, check_name, seconds
from django_jobs.definitions.task import Definition, check_priority
from django_jobs.errors import ConfigurationError, DuplicateJob, InvalidInput
from django_jobs.lifecycle import Gate
from django_jobs.models import Job
from django_jobs.store import catalogue, fairness, gates, keys, outbox, permits
from django_jobs.store import jobs as rows
from django_jobs.store.jobs import NewJob, Promise
from django_jobs.store.session import Session, engine_alias

#: Tenant columns of Job.
TENANT_COLUMNS = 3
#: Called with (jobs, alias) once an enqueue has written them; django_jobs.testing.inline_jobs() runs them so.
listeners: list[Callable[[list[Job], str], None]] = []
#: What happens to new jobs of a runner right after their commit: called with (jobs, alias).
starters: dict[str, Callable[[list[Job], str], None]] = {}
#: Seconds in which a process that sends its own messages is not helped by others.
HEAD_START = 5.0


def enqueue(task: str | Definition, /, *, version: str | None = None, **input: Any) -> Job:
    """Enqueue by name: ``enqueue("send_welcome", user_id=1)``; ``version=None`` is the one registered last.

    Raises UnknownTask, InvalidInput, DuplicateJob; nothing is written then.
    """
    if isinstance(task, str):
        definition = registry.latest(task) if version is None else registry.get(task, version)
    else:
        definition = task if version is None else task.using(version=version)
    return enqueue_one(definition, (), input)


def enqueue_one(definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
    """Store one call of ``definition``; see :meth:`Definition.enqueue`."""
    row = prepare(definition, args, kwargs)
    return _store(definition, [row])[0]


def enqueue_many(definition: Definition, inputs: Sequence[dict[str, Any]]) -> list[Job]:
    """Store many calls, all or none."""
    if definition.options.idempotency_key is not None:
        raise InvalidInput(
            "One idempotency_key cannot stand for many jobs. Enqueue them one by one with a key each."
        )
    prepared = []
    for index, item in enumerate(inputs):
        try:
            if not isinstance(item, dict):
                raise InvalidInput(f"an item is a dict of the input, not {type(item).__name__}.")
            prepared.append(prepare(definition, (), item))
        except InvalidInput as error:
            raise type(error)(f"Item {index}: {error}") from error
    return _store(definition, prepared) if prepared else []


@dataclass(slots=True)
class Prepared:
    """A checked call: the row, and its input as the job will show it."""

    row: NewJob
    input: dict[str, Any]
    context: Any
    meta: dict[str, Any]


def prepare(definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
    """Check one call and make its row. InvalidInput names what is wrong; nothing is written here."""
    settings, options = conf.get(), definition.options
    context = None
    if definition.kind != "task":
        definition.check()
        if "context" in kwargs and "context" not in definition.schema.parameter_names:
            kwargs = dict(kwargs)
            context = kwargs.pop("context")
    if "input" in kwargs:
        kwargs = _opened(definition, kwargs)
    schema = definition.schema
    bound = schema.bind(args, kwargs)
    required = (
        definition.required_input
        if definition.required_input is not None
        else settings.required_input
    )
    missing = [name for name in required if bound.get(name) in (None, "")]
    if missing:
        raise InvalidInput(
            f"{definition.slug!r} needs the input field {', '.join(map(repr, missing))}: it is required."
        )
    stored = schema.dump_input(bound)
    text = jsonvalues.dumps(stored, what="input", limit=settings.max_input)
    queue_name = (
        definition.queue_name
        if options.queue_name is None
        else check_name(options.queue_name, "queue_name")
    )
    priority = definition.priority if options.priority is None else check_priority(options.priority)
    runner = _runner(definition, queue_name)
    run_after, delay = _when(options)
    row = NewJob(
        id=ids.job_id(),
        slug=definition.slug,
        kind=str(definition.kind),
        version=definition.version,
        queue_name=queue_name,
        priority=priority,
        precedence=-priority,
        lane=0,
        input=text,
        runner=runner,
        run_after=run_after,
        delay=delay,
        tenants=tenants_of(stored, settings.tenant_fields),
    )
    if isinstance(definition, DAG):
        context = _of_graph(definition, row, context)
    if context is not None:
        row.context = jsonvalues.dumps(context, what="context", limit=settings.max_input)
    meta: dict[str, Any] = {}
    if options.meta is not None:
        if not isinstance(options.meta, dict):
            raise InvalidInput(f"meta is a dict, not {type(options.meta).__name__}.")
        meta = options.meta
        row.meta = jsonvalues.dumps(meta, what="meta", limit=settings.max_input)
    row.options = _call_settings(options)
    if options.idempotency_key is not None:
        row.idempotency_key = check_name(options.idempotency_key, "idempotency_key")
    if options.concurrency_key is not None or definition.concurrency or definition.rate_limit:
        _limit(definition, row, stored)
    if settings.tenant_concurrency is not None and row.key_hash is None and any(row.tenants):
        _limit_tenant(row, settings.tenant_concurrency)
    if options.expires is not None:
        _expire(row, options.expires)
    if options.debounce is not None:
        _debounce(row, options, stored)
    row.lane = lane_of(row)
    return Prepared(row, jsonvalues.loads(text), context, meta)


def _of_graph(dag: DAG, row: NewJob, context: Any) -> dict[str, Any]:
    """What a run of a graph needs besides; its context, laid over the spec's own."""
    if context is not None and not isinstance(context, dict):
        raise InvalidInput(f"context= of DAG {dag.slug!r} is a dict, not {type(context).__name__}.")
    for step in dag.check().steps.values():
        if step.http is not None:
            raise ConfigurationError(
                f"DAG {dag.slug!r}: step {step.id!r} is an HTTP step. HTTP steps are not in this release."
            )
    if dag.on_complete is not None or dag.on_error is not None:
        raise ConfigurationError(
            f"DAG {dag.slug!r}: on_complete and on_error are not in this release: nobody would be told."
        )
    if dag.spec is not None:
        row.spec = jsonvalues.dumps(dag.spec, what="spec")
        return {**dag.spec["context"], **(context or {})}
    return context or {}


def lane_of(row: NewJob) -> int:
    """The number of the lane this row queues in."""
    limited = row.key_limit is not None or row.rate_hash is not None
    return rows.lane(row.runner, row.queue_name, row.slug, row.version, limited=limited)


def _opened(definition: Definition, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``input={…}`` laid into the other keywords."""
    rest = {name: value for name, value in kwargs.items() if name != "input"}
    inner = kwargs["input"]
    if not isinstance(inner, dict):
        raise InvalidInput(
            f"input= of {definition.slug!r} takes the input as a dict. A parameter that is itself called "
            "'input' is written input={'input': …}."
        )
    twice = sorted(set(rest) & set(inner))
    if twice:
        raise InvalidInput(
            f"{definition.slug!r} got {', '.join(twice)} both as a keyword and within input=."
        )
    return {**rest, **inner}


def _runner(definition: Definition, queue_name: str) -> str:
    settings = conf.get()
    queue = settings.queues.get(queue_name)
    runner = (
        definition.options.runner
        or definition.runner
        or (queue and queue.runner)
        or settings.default_runner
    )
    if runner not in conf.RUNNERS:
        raise InvalidInput(f"runner is one of {', '.join(conf.RUNNERS)}, not {runner!r}.")
    return runner


def _when(options: Options) -> tuple[datetime | None, float | None]:
    if options.delay is not None and options.run_after is not None:
        raise InvalidInput("Give run_after or delay, not both.")
    if options.delay is not None:
        delay = seconds(options.delay, "delay")
        return None, delay or None
    if isinstance(options.run_after, timedelta):
        return None, seconds(options.run_after, "run_after") or None
    if options.run_after is None:
        return None, None
    return check_moment(options.run_after, "run_after"), None


def check_moment(value: object, what: str) -> datetime:
    """An aware datetime; InvalidInput otherwise."""
    if not isinstance(value, datetime):
        raise InvalidInput(f"{what} is a datetime or a timedelta, not {type(value).__name__}.")
    if value.tzinfo is None:
        if django_settings.USE_TZ:
            raise InvalidInput(
                f"{what} is the naive datetime {value}. Make it aware: django.utils.timezone.make_aware()."
            )
        from django.utils.timezone import make_aware

        value = make_aware(value)
    return value


def _expire(row: NewJob, expires: float | timedelta | datetime) -> None:
    if isinstance(expires, datetime):
        row.expires_at = check_moment(expires, "expires")
    else:
        row.expires = seconds(expires, "expires")


def _debounce(row: NewJob, options: Options, stored: dict[str, Any]) -> None:
    """Wait for ``debounce`` seconds, and replace the twin: of the same key, or with the same input."""
    if row.run_after is not None or row.delay is not None:
        raise InvalidInput("Give debounce or delay (run_after), not both: debounce is a delay.")
    assert options.debounce is not None
    row.delay = seconds(options.debounce, "debounce") or None
    if row.key_hash is None:
        # A key that only finds the twin: it needs no permit.
        tenants = [tenant or "" for tenant in row.tenants]
        row.key_hash = ids.digest("debounce", row.slug, *tenants, jsonvalues.canonical(stored))


def tenants_of(stored: dict[str, Any], fields: Sequence[str]) -> tuple[str | None, ...]:
    values: list[str | None] = [None] * TENANT_COLUMNS
    for index, name in enumerate(fields[:TENANT_COLUMNS]):
        value = stored.get(name)
        if value is not None:
            text = value if isinstance(value, str) else jsonvalues.canonical(value)
            values[index] = check_name(text, f"the tenant field {name!r}")
    return tuple(values)


def _call_settings(options: Options) -> str | None:
    """What the call sets for its execution, as JSON."""
    chosen: dict[str, Any] = {}
    if options.retries is not None:
        from django_jobs.definitions.retry import Retry

        retry = Retry.of(options.retries)
        assert retry is not None
        left_out = sorted(retry.given - {"restore"} - retry.to_dict().keys())
        if left_out:
            raise InvalidInput(
                f"using(retries=…) is stored as data, and {', '.join(left_out)} holds code. "
                "Give it to the task: @task(retries=Retry(…))."
            )
        chosen["retries"] = retry.to_dict()
    if options.timeout is not None:
        chosen["timeout"] = seconds(options.timeout, "timeout")
        if not chosen["timeout"]:
            raise InvalidInput("timeout must be longer than 0 s.")
    return jsonvalues.dumps(chosen, what="options") if chosen else None


def _limit(definition: Definition, row: NewJob, stored: dict[str, Any]) -> None:
    """Concurrency key and rate key of this call, from the validated, typed input."""
    concurrency = definition.concurrency
    values = _typed(definition, stored) if concurrency or definition.rate_limit else {}
    key = definition.options.concurrency_key
    if key is not None:
        check_name(key, "concurrency_key")
    elif concurrency is not None:
        key = _ask(concurrency.key, values, row.queue_name, definition.slug)
    if key:
        row.concurrency_key = check_name(str(key), "concurrency_key")
        row.key_hash = ids.digest("key", row.concurrency_key)
        if concurrency is None or concurrency.exclusive:
            row.key_limit = concurrency.limit if concurrency else 1
            row.key_hold = bool(concurrency and concurrency.hold)
    if definition.rate_limit is not None:
        rate = definition.rate_limit.key
        name = (
            definition.slug if rate is None else _ask(rate, values, row.queue_name, definition.slug)
        )
        if name:
            row.rate_hash = ids.digest(
                "rate", definition.slug, check_name(str(name), "the key of a rate limit")
            )


def _limit_tenant(row: NewJob, limit: int) -> None:
    """The default key of jobs that have none: their tenant."""
    tenants = [tenant or "" for tenant in row.tenants]
    row.concurrency_key = f"tenant {' / '.join(filter(None, tenants))}"[:NAME_LIMIT]
    row.key_hash = ids.digest("tenant", *tenants)
    row.key_limit = limit


def _typed(definition: Definition, stored: dict[str, Any]) -> dict[str, Any]:
    args, kwargs = definition.schema.load_input(stored)
    named = dict(zip(definition.schema.parameter_names, args, strict=False))
    return {**_defaults(definition.func), **named, **kwargs}


@lru_cache(maxsize=1024)
def _defaults(func: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(func).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _ask(key: Any, values: dict[str, Any], queue_name: str, slug: str) -> str | None:
    """The key a function gives for this input; a plain string stands for itself."""
    if isinstance(key, str):
        return key
    parameters = inspect.signature(key).parameters
    if "queue_name" in parameters:
        values = {"queue_name": queue_name, **values}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        values = {name: value for name, value in values.items() if name in parameters}
    try:
        return key(**values) or None
    except Exception as error:
        raise InvalidInput(
            f"The key function of {slug!r} raised {type(error).__name__}: {error}"
        ) from error


# --- writing ----------------------------------------------------------------------------------


def _store(definition: Definition, prepared: list[Prepared]) -> list[Job]:
    alias = definition.options.database or engine_alias()
    connection = connections[alias]
    # Jobs kept in another database than the caller's writes follow the caller's commit.
    if (
        alias != DEFAULT_DB_ALIAS
        and not connection.in_atomic_block
        and connections[DEFAULT_DB_ALIAS].in_atomic_block
    ):
        waiting = [_job(one, None, alias) for one in prepared]
        transaction.on_commit(lambda: write_prepared(definition, prepared, alias) and None)
        return waiting
    return write_prepared(definition, prepared, alias)


def write_prepared(
    definition: Definition | None, prepared: list[Prepared], alias: str
) -> list[Job]:
    """Store checked calls of one runner, by the key rules of ``definition`` where it is known."""
    session = Session(alias, through_django=True)
    if _is_bound(prepared):
        with session.transaction():
            jobs = write_within(session, definition, prepared)
    else:
        session.write_first()
        jobs = write_within(session, definition, prepared)
    if signals.job_enqueued.receivers:
        transaction.on_commit(lambda: announce(jobs), using=alias)
    starter = starters.get(prepared[0].row.runner)
    if starter is not None:
        transaction.on_commit(lambda: starter(jobs, alias), using=alias)
    for listener in list(listeners):
        listener(jobs, alias)
    return jobs


def write_within(
    session: Session, definition: Definition | None, prepared: list[Prepared]
) -> list[Job]:
    """The rows of these calls, in the caller's transaction where a key binds them; nothing is announced."""
    notify = conf.get().notify and prepared[0].row.runner == "db"
    catalogue.ensure_task(session, prepared[0].row.slug)
    _share(session, definition, prepared)
    if _is_bound(prepared):
        return _write_bound(session, definition, prepared, notify)
    return _insert(session, prepared, notify)


def _is_bound(prepared: list[Prepared]) -> bool:
    """Whether a key binds one of these calls."""
    return any(one.row.idempotency_key or one.row.key_hash or one.row.rate_hash for one in prepared)


def _insert(session: Session, prepared: list[Prepared], notify: bool) -> list[Job]:
    # What the engine itself inserts is committed by no transaction of Django's: nobody would look again.
    if session.through_django and _is_bound(prepared):
        _gate(session, prepared, notify)
    promise = _promise(prepared[0].row)
    if len(prepared) == 1:
        times = rows.insert(session, prepared[0].row, notify=notify, promise=promise)
    else:
        listed = [one.row for one in prepared]
        times = rows.insert_many(session, listed, notify=notify, promise=promise)
    return [_job(one, times, session.alias) for one in prepared]


def _gate(session: Session, prepared: list[Prepared], notify: bool) -> None:
    """Jobs that cannot start yet go behind their gate, and are looked after once they are committed."""
    gated = gates.assign(session, [one.row for one in prepared], _starts)
    if gated:
        alias, queue_name = session.alias, prepared[0].row.queue_name
        transaction.on_commit(
            lambda: gates.look_again(alias, gated, queue_name, notify=notify),
            using=alias,
            robust=True,
        )


def _starts(row: NewJob) -> int | None:
    """The number of starts that the window of this job's rate has."""
    definition = registry.find(row.slug, row.version)
    rate = definition.rate_limit if definition is not None else None
    return None if rate is None else rate.count


def _share(session: Session, definition: Definition | None, prepared: list[Prepared]) -> None:
    """The groups and turns of jobs whose queue, or whose call, asks for fair share."""
    asked = definition.options.fair_by if definition is not None else None
    shared = []
    for one in prepared:
        by = asked or fairness.fair_by(session, one.row.queue_name)
        if by is not None:
            fairness.share(one.row, _group(one, by, literal=asked is not None))
            shared.append(one.row)
    if shared:
        fairness.assign(session, shared)


def _group(one: Prepared, by: str, *, literal: bool) -> str | None:
    """The group of a call: its tenant, its key, an input field, or what the call itself names."""
    if literal and by not in fairness.OF_COLUMNS and by not in one.input:
        return by
    return fairness.group(by, one.row.tenants, one.row.concurrency_key, one.input)


def _promise(row: NewJob) -> Promise | None:
    """The message that goes with a job which others must be told of; one to come is told of when due."""
    if row.runner != outbox.CELERY or row.run_after is not None or row.delay is not None:
        return None
    return Promise(outbox.CELERY, HEAD_START if outbox.CELERY in starters else 0.0)


def _write_bound(
    session: Session, definition: Definition | None, prepared: list[Prepared], notify: bool
) -> list[Job]:
    """Insert calls that a key binds, serialized by that key until the caller's commit."""
    if definition is not None and prepared[0].row.idempotency_key is not None:
        existing = _reserve(session, definition, prepared[0].row)
        if existing is not None:
            return [existing]
    concurrency = definition.concurrency if definition is not None else None
    debounced = definition is not None and definition.options.debounce is not None
    asks = concurrency is not None and (concurrency.supersedes or concurrency.on_conflict != "wait")
    if not (asks or debounced):
        return _insert(session, prepared, notify)
    for key_hash in sorted({one.row.key_hash for one in prepared if one.row.key_hash}):
        keys.lock(session, key_hash)
    jobs = []
    for one in prepared:
        dropped = None if concurrency is None else _conflict(session, concurrency, one.row)
        [job] = _insert(session, [one], notify)
        if dropped is not None:
            keys.drop(session, job.pk, dropped)
            job.refresh_from_db()
        elif one.row.key_hash and concurrency is not None and concurrency.supersedes:
            _supersede(session, job, one.row.key_hash, None)
        elif one.row.key_hash and debounced:
            _supersede(session, job, one.row.key_hash, one.row.slug)
        jobs.append(job)
    return jobs


def _supersede(session: Session, job: Job, key_hash: str, slug: str | None) -> None:
    """Cancel those of the key that ``job`` replaces; it takes their place in the line."""
    if keys.supersede(session, key_hash, job.pk, slug) and job.gate == Gate.PERMIT:
        permits.let_in_of(session, {key_hash})
        job.refresh_from_db(fields=["gate"])


def _conflict(session: Session, concurrency: Concurrency, row: NewJob) -> UUID | None:
    """The holder because of whom this call is dropped; DuplicateJob where it is to be raised."""
    if concurrency.on_conflict == "wait" or row.key_hash is None:
        return None
    holders = keys.live(session, row.key_hash, concurrency.limit)
    if len(holders) < concurrency.limit:
        return None
    if concurrency.on_conflict == "drop":
        return holders[0]
    holder = Job.objects.using(session.alias).filter(pk=holders[0]).first()
    raise DuplicateJob(
        f"The concurrency key {row.concurrency_key!r} of {row.slug!r} is taken by job {holders[0]}.",
        holder,
    )


def _run_here(jobs: list[Job], alias: str) -> None:
    """The inline runner: the jobs run in this process, right after their commit."""
    from django_jobs.worker.local import run_job

    for job in jobs:
        run_job(job.pk, database=alias)
        job.refresh_from_db()


starters["inline"] = _run_here


def _reserve(session: Session, definition: Definition, row: NewJob) -> Job | None:
    """The job that holds the idempotency key already, or None when the key is now this row's."""
    if row.idempotency_key is None:
        return None
    scope = [tenant or "" for tenant in row.tenants]
    holder = keys.reserve(
        session, ids.digest("idempotency", *scope, row.slug, row.idempotency_key), row.id
    )
    if holder is None:
        return None
    job = Job.objects.using(session.alias).filter(pk=holder).first()
    if job is None or definition.options.on_duplicate == "raise":
        raise DuplicateJob(
            f"The idempotency key {row.idempotency_key!r} of {row.slug!r} belongs to job {holder}.",
            job,
        )
    job.created = False
    return job


def announce(jobs: list[Job]) -> None:
    """job_enqueued of jobs that are committed."""
    for job in jobs:
        signals.announce(signals.job_enqueued, Job, job=job)


def _job(one: Prepared, times: rows.Inserted | None, alias: str) -> Job:
    """The model instance of a row just written, without reading it back."""
    row = one.row
    job = _blank()
    job.__dict__.update(
        id=row.id, slug=row.slug, kind=row.kind, version=row.version, queue_name=row.queue_name,
        priority=row.priority, input=one.input, context=one.context, meta=one.meta, runner=row.runner,
        lane=row.lane, precedence=row.precedence, turn=row.turn, share=row.share, concurrency_key=row.concurrency_key,
        idempotency_key=row.idempotency_key, key_hash=row.key_hash, key_limit=row.key_limit,
        key_hold=row.key_hold, rate_hash=row.rate_hash, parent_id=row.parent, rerun_of_id=row.rerun_of,
        schedule_id=row.schedule, slot=row.slot, expires_at=row.expires_at,
        tenant_1=row.tenants[0], tenant_2=row.tenants[1], tenant_3=row.tenants[2],
        options=jsonvalues.loads(row.options),
    )  # fmt: skip
    if times is not None:
        job.__dict__.update(
            created_at=times.created_at,
            due_at=times.due_at,
            run_after=times.run_after,
            gate=times.gate,
        )
    job._state.adding = False
    job._state.db = alias
    return job


def _blank() -> Job:
    """An instance with every default set, for a tenth of what ``Job()`` costs."""
    global _prototype
    if _prototype is None:
        _prototype = {**Job(input=None, meta=None, id=None).__dict__}
    job = Job.__new__(Job)
    job.__dict__.update(_prototype)
    job._state = ModelState()
    return job


_prototype: dict[str, Any] | None = None


def get_job(job_id: UUID | str) -> Job:
    """The job of this id; Job.DoesNotExist for an unknown or malformed one."""
    try:
        wanted = job_id if isinstance(job_id, UUID) else UUID(str(job_id))
    except ValueError:
        raise Job.DoesNotExist(f"{job_id!r} is no job id.") from None
    return Job.objects.using(engine_alias()).get(pk=wanted)
