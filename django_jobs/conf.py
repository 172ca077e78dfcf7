"""The settings: one dict ``DJANGO_JOBS``, read into one frozen, typed object.

:func:`get` raises on a wrong value; :func:`problems` lists everything wrong for the system check.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from django_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from django_jobs.definitions.retry import Retry

NAME = "DJANGO_JOBS"
RUNNERS = ("db", "inline", "celery")
DAY = 86_400.0


class Problem(NamedTuple):
    """One thing wrong with the settings: what it is, the remedy, and the key it is about."""

    message: str
    hint: str
    key: str


class _Wrong(Exception):
    """A value was refused; the text says what is expected."""


Reader = Callable[[Any], Any]


# --- readers: one per kind of value -----------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not _is_number(value) or value <= 0:
        raise _Wrong("a number of seconds or a timedelta above 0")
    return float(value)


def _seconds_or_zero(value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not _is_number(value) or value < 0:
        raise _Wrong("a number of seconds or a timedelta, 0 or more")
    return float(value)


def _age(value: Any) -> float | None:
    try:
        return None if value is None else _seconds_or_zero(value)
    except _Wrong as error:
        raise _Wrong(f"{error}, or None to keep rows for ever") from None


def _whole(low: int, high: int | None = None) -> Reader:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise _Wrong(f"a whole number, {low} or more")
        if high is not None and value > high:
            raise _Wrong(f"a whole number from {low} to {high}")
        return value

    return read


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("True or False")
    return value


def _text_or_none(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _Wrong("a text, or None")
    return value


def _limit_or_none(value: Any) -> int | None:
    try:
        return None if value is None else _whole(1)(value)
    except _Wrong as error:
        raise _Wrong(f"{error}, or None for no limit") from None


def _span_or_none(value: Any) -> float | None:
    try:
        return None if value is None else _seconds(value)
    except _Wrong as error:
        raise _Wrong(f"{error}, or None for never") from None


def _tenant_fields(value: Any) -> tuple[str, ...]:
    names = _names(value)
    if len(names) > 3:
        raise _Wrong("at most three names: there are three columns for them")
    return names


def _names(value: Any) -> tuple[str, ...]:
    good = isinstance(value, list | tuple) and all(isinstance(n, str) and n for n in value)
    if not good:
        raise _Wrong('a list of names, for example ["org_id"]')
    return tuple(value)


def _ports(value: Any) -> tuple[int, ...]:
    read = _whole(1, 65_535)
    if not isinstance(value, list | tuple):
        raise _Wrong("a list of port numbers, for example [443]")
    return tuple(read(port) for port in value)


def _hosts(value: Any) -> tuple[str, ...]:
    for host in _names(value):
        if "/" in host or "@" in host:
            raise _Wrong('a list of bare host names, for example ["jobs.internal"]')
    return tuple(host.lower().rstrip(".") for host in value)


def _url_or_none(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith(("https://", "http://")):
        raise _Wrong("an address that begins with https:// (or http://), or None")
    return value


def _dotted_or_none(value: Any) -> str | None:
    if value is None:
        return None
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise _Wrong('a dotted path such as "shop.tenants.tenant_context", or None')
    return str(value)


def _runner(value: Any) -> str:
    if value not in RUNNERS:
        raise _Wrong(f"one of {', '.join(map(repr, RUNNERS))}")
    return str(value)


def _app_or_none(value: Any) -> str | None:
    if value is None:
        return None
    module, _, name = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise _Wrong('the place of a Celery app such as "mysite.celery:app", or None')
    return str(value)


def _queue_map(value: Any) -> Mapping[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else [(None, None)]
    for name, target in pairs:
        if not isinstance(target, str) or not target:
            raise _Wrong('a dict of names, for example {"mail": "mail-workers"}')
        _queue_name(name)
    return MappingProxyType(dict(value))


def _signing_secrets(value: Any) -> tuple[str, ...]:
    expected = 'a list of secrets, each "whsec_" followed by base64 of at least 16 bytes'
    for secret in _names(value):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise _Wrong(expected) from None
        if not secret.startswith("whsec_") or len(key) < 16:
            raise _Wrong(expected)
    return tuple(value)


def _retries(value: Any) -> Retry | None:
    from django_jobs.definitions.retry import Retry

    try:
        return Retry.of(value)
    except ConfigurationError as error:
        raise _Wrong(f"a number of extra tries or a Retry ({error})") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """What ``QUEUES`` says about one queue. Once edited in the admin, the row is the operator's."""

    limit: int | None = None
    priority: int = 0
    fair_by: str | None = None
    runner: str | None = None


_QUEUE_READERS: dict[str, Reader] = {
    "limit": lambda value: None if value is None else _whole(1)(value),
    "priority": _whole(-100, 100),
    "fair_by": _text_or_none,
    "runner": lambda value: None if value is None else _runner(value),
}


def _queues(value: Any) -> Mapping[str, QueueSettings]:
    if not isinstance(value, Mapping):
        raise _Wrong('a dict such as {"mail": {"limit": 4}}')
    return MappingProxyType({_queue_name(name): _queue(name, value[name]) for name in value})


def _queue_name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        raise _Wrong(f"queue names of 1 to 200 printable characters, not {name!r}")
    return name


def _queue(name: str, options: Any) -> QueueSettings:
    if not isinstance(options, Mapping):
        raise _Wrong(f"a dict for the queue {name!r}, with any of {', '.join(_QUEUE_READERS)}")
    read = {}
    for key, value in options.items():
        if key not in _QUEUE_READERS:
            known = ", ".join(_QUEUE_READERS)
            raise _Wrong(f"for the queue {name!r} only the keys {known}, not {key!r}")
        try:
            read[key] = _QUEUE_READERS[key](value)
        except _Wrong as error:
            raise _Wrong(f"for {key} of the queue {name!r} {error}") from None
    return QueueSettings(**read)


# --- the settings -----------------------------------------------------------------------------


def _key(
    default: Any,
    read: Reader,
    doc: str,
    *,
    unit: str = "",
    group: str = "Running",
    secret: bool = False,
) -> Any:
    """A field read by ``read``; its metadata also feeds the reference page of the docs."""
    # A factory even for plain values: dataclasses refuse an unhashable default.
    return field(
        default_factory=lambda: default,
        repr=not secret,
        metadata={"read": read, "doc": doc, "unit": unit, "group": group, "secret": secret},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsSettings:
    """Every setting with its default. Times are seconds (float), sizes bytes.

    The attribute ``lease`` is the key ``DJANGO_JOBS["LEASE"]``, and so on.
    """

    lease: float = _key(
        15.0,
        _seconds,
        "How long a worker may drive a job without renewing its right to it.",
        unit="s",
    )
    heartbeat: float = _key(
        5.0, _seconds, "How often a worker renews its leases; at most half of LEASE.", unit="s"
    )
    grace: float = _key(
        25.0,
        _seconds_or_zero,
        "How long jobs in hand may go on after SIGTERM before they are handed back.",
        unit="s",
    )
    poll_min: float = _key(
        0.2,
        _seconds,
        "Shortest pause between two looks for work, where no notification comes.",
        unit="s",
    )
    poll_max: float = _key(
        2.0,
        _seconds,
        "Longest pause between two looks for work, where no notification comes.",
        unit="s",
    )
    crash_limit: int = _key(
        3, _whole(1), "After so many deaths of its worker a job is failed with the code crashed."
    )
    step_limit: int = _key(
        1000, _whole(1), "After so many steps a run is failed with the code step_limit."
    )
    retries: Retry | None = _key(  # noqa: RUF009 (a field, as all others here)
        None,
        _retries,
        "Retries of tasks that say nothing themselves: a number of extra tries or a Retry.",
    )
    default_runner: str = _key(
        "db", _runner, 'Who executes jobs unless told otherwise: "db", "inline" or "celery".'
    )
    queues: Mapping[str, QueueSettings] = _key(
        MappingProxyType({}),
        _queues,
        "Settings of queues by name: limit, priority, fair_by, runner.",
    )
    ageing: float | None = _key(
        None,
        _span_or_none,
        "A due job gains one priority for each such span that it waits; None = never.",
        unit="s",
    )
    schedules: bool = _key(True, _switch, "Whether workers also tick the schedules.")
    sweep: bool = _key(True, _switch, "Whether workers take back jobs whose lease has ended.")
    sweep_interval: float = _key(
        3.0, _seconds, "How often a worker looks for leases that have ended.", unit="s"
    )

    database: str | None = _key(
        None,
        _text_or_none,
        "Alias of the database that holds the jobs; None is the default one.",
        group="Database",
    )
    listen_dsn: str | None = _key(
        None,
        _text_or_none,
        "Address of a direct PostgreSQL connection for LISTEN, where a pooler stands between.",
        group="Database",
        secret=True,
    )
    notify: bool = _key(
        True,
        _switch,
        "Whether an enqueue wakes workers by NOTIFY (PostgreSQL only).",
        group="Database",
    )
    prepare: bool = _key(
        True,
        _switch,
        "Whether workers prepare their statements; never done where a pooler is noticed.",
        group="Database",
    )

    keep_completed: float | None = _key(
        7 * DAY,
        _age,
        "How long completed, canceled and compensated jobs are kept; None keeps them.",
        unit="s",
        group="Retention",
    )
    keep_failed: float | None = _key(
        90 * DAY,
        _age,
        "How long failed and compensation_failed jobs are kept; None keeps them.",
        unit="s",
        group="Retention",
    )

    required_input: tuple[str, ...] = _key(
        (), _names, "Input fields without which every enqueue is refused.", group="Input"
    )
    tenant_fields: tuple[str, ...] = _key(
        (),
        _tenant_fields,
        "Input fields copied to indexed columns; together they are the tenant.",
        group="Input",
    )
    tenant_context: str | None = _key(
        None,
        _dotted_or_none,
        "Dotted path of a context manager entered around every handler.",
        group="Input",
    )
    tenant_concurrency: int | None = _key(
        None,
        _limit_or_none,
        "At most so many jobs of one tenant at the same time, of tasks without a key of their own.",
        group="Input",
    )
    max_input: int = _key(
        1_048_576,
        _whole(1024),
        "Largest input of a job or step as JSON.",
        unit="bytes",
        group="Input",
    )
    max_output: int = _key(
        1_048_576,
        _whole(1024),
        "Largest output of a job or step as JSON.",
        unit="bytes",
        group="Input",
    )
    max_event: int = _key(
        65_536, _whole(1024), "Largest payload of an event as JSON.", unit="bytes", group="Input"
    )
    redact: tuple[str, ...] = _key(
        (),
        _names,
        "Names of further fields that are hidden wherever inputs and errors are shown.",
        group="Input",
    )

    celery_app: str | None = _key(
        None,
        _app_or_none,
        'The Celery app that sends, as "mysite.celery:app"; None is the project\'s current one.',
        group="Celery",
    )
    celery_queues: Mapping[str, str] = _key(
        MappingProxyType({}),
        _queue_map,
        "Celery queue of each of our queues; the others go where Celery routes them.",
        group="Celery",
    )
    celery_republish: float = _key(
        60.0,
        _seconds,
        "A due job that no Celery worker took is published again after so long, then twice as long, and so on.",
        unit="s",
        group="Celery",
    )

    run_secret: str | None = _key(
        None,
        _text_or_none,
        "Bearer token of the HTTP endpoints; None refuses every bearer.",
        group="HTTP",
        secret=True,
    )
    webhook_secrets: tuple[str, ...] = _key(
        (),
        _signing_secrets,
        "Signing secrets whsec_…: every one signs, any one verifies.",
        group="HTTP",
        secret=True,
    )
    http_allowed_hosts: tuple[str, ...] = _key(
        (),
        _hosts,
        "Hosts that steps and webhooks may call on any port, by http, in private nets.",
        group="HTTP",
    )
    http_allowed_ports: tuple[int, ...] = _key(
        (443,), _ports, "Ports that steps and webhooks may call.", group="HTTP"
    )
    http_allow_plain: bool = _key(
        False, _switch, "Whether steps and webhooks may call http:// addresses.", group="HTTP"
    )
    http_base_url: str | None = _key(
        None,
        _url_or_none,
        "Address to which relative addresses of steps are joined.",
        group="HTTP",
    )
    callback_base_url: str | None = _key(
        None,
        _url_or_none,
        "Public address of our own URLs, for the callbacks of parked steps.",
        group="HTTP",
    )

    @property
    def database_alias(self) -> str:
        """The alias of the engine's database, ``default`` unless ``DATABASE`` says otherwise."""
        return self.database or "default"

    @property
    def extra_tries(self) -> int:
        """What ``RETRIES`` gives to a task that says nothing: a number of extra tries."""
        return (self.retries.extra or 0) if self.retries else 0


FIELDS = {one.name.upper(): one for one in fields(JobsSettings)}

_cached: JobsSettings | None = None


def get() -> JobsSettings:
    """The settings as they are now; ConfigurationError names every wrong value."""
    global _cached
    if _cached is None:
        values, wrong = _read()
        if wrong:
            text = " ".join(f"{problem.message} {problem.hint}" for problem in wrong)
            raise ConfigurationError(text)
        _cached = JobsSettings(**values)
    return _cached


def problems() -> list[Problem]:
    """Everything wrong with ``DJANGO_JOBS``: wrong values, and keys that do not exist."""
    return [*_read()[1], *_unknown_keys()]


def forget(*, setting: str | None = None, **_: Any) -> None:
    """Read the settings again at the next :func:`get`; called by ``setting_changed``."""
    global _cached
    if setting in (None, NAME):
        _cached = None


setting_changed.connect(forget, dispatch_uid="django_jobs.conf")


def _raw() -> Any:
    return getattr(django_settings, NAME, None) or {}


def _read() -> tuple[dict[str, Any], list[Problem]]:
    raw = _raw()
    if not isinstance(raw, Mapping):
        message = f"{NAME} must be a dict, not {type(raw).__name__}."
        return {}, [Problem(message, f'Write {NAME} = {{"LEASE": 15, …}}.', NAME)]
    values: dict[str, Any] = {}
    wrong: list[Problem] = []
    for key, one in FIELDS.items():
        if key in raw:
            try:
                values[one.name] = one.metadata["read"](raw[key])
            except _Wrong as error:
                wrong.append(_wrong_value(key, raw[key], error))
    return values, wrong or _contradictions(values)


def _wrong_value(key: str, value: Any, error: _Wrong) -> Problem:
    shown = "its value" if FIELDS[key].metadata["secret"] else repr(value)
    return Problem(f'{NAME}["{key}"] cannot be {shown}.', f"Give {error}.", key)


def _contradictions(values: dict[str, Any]) -> list[Problem]:
    """What no single key shows: two values that do not go together."""
    made = JobsSettings(**values)
    found = []
    if made.heartbeat > made.lease / 2:
        found.append(
            Problem(
                f'{NAME}["HEARTBEAT"] ({made.heartbeat:g} s) is more than half of '
                f'{NAME}["LEASE"] ({made.lease:g} s), so one late heartbeat would lose the lease.',
                f"Set HEARTBEAT to {made.lease / 2:g} or less, or raise LEASE.",
                "HEARTBEAT",
            )
        )
    if made.poll_min > made.poll_max:
        found.append(
            Problem(
                f'{NAME}["POLL_MIN"] ({made.poll_min:g} s) is more than '
                f'{NAME}["POLL_MAX"] ({made.poll_max:g} s).',
                "Set POLL_MIN to POLL_MAX or less.",
                "POLL_MIN",
            )
        )
    return found


def _unknown_keys() -> list[Problem]:
    raw = _raw()
    if not isinstance(raw, Mapping):
        return []
    return [_unknown_key(str(key)) for key in raw if key not in FIELDS]


def _unknown_key(key: str) -> Problem:
    near = difflib.get_close_matches(key.upper(), FIELDS, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(FIELDS))}."
    return Problem(f"{NAME} has an unknown key {key!r}.", hint, key)
