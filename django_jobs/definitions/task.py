"""``@task``: a function that can be enqueued. A definition is a frozen value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from asgiref.sync import sync_to_async

from django_jobs.definitions import registry
from django_jobs.definitions.limits import Concurrency, RateLimit
from django_jobs.definitions.options import NOTHING, OPTION_NAMES, Options, check_name, seconds
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.schedule import Schedule, check_schedules
from django_jobs.definitions.schema import UNSET, Schema
from django_jobs.errors import ConfigurationError, InvalidInput
from django_jobs.lifecycle import Kind

if TYPE_CHECKING:
    from django_jobs.models import Job

CALL_ONLY = (
    "idempotency_key",
    "run_after",
    "delay",
    "concurrency_key",
    "meta",
    "on_duplicate",
    "debounce",
    "expires",
    "fair_by",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Definition:
    """What a task and a workflow have in common: a name, a function, settings, and ``enqueue``."""

    slug: str
    func: Callable[..., Any]
    schema: Schema
    kind: Kind = Kind.TASK
    version: str | None = None
    label: str = ""
    queue_name: str = "default"
    priority: int = 0
    retries: Retry | None = None
    timeout: float | None = None
    takes_context: bool = False
    on_success: Callable[..., Any] | None = None
    on_failure: Callable[..., Any] | None = None
    concurrency: Concurrency | None = None
    rate_limit: RateLimit | None = None
    schedules: tuple[Schedule, ...] = ()
    required_input: tuple[str, ...] | None = None
    transactional: bool = False
    isolation: Literal["thread", "process"] = "thread"
    acknowledge: Literal["batch", "each"] = "batch"
    runner: str | None = None
    redact: tuple[str, ...] = ()
    options: Options = field(default=NOTHING)

    @property
    def name(self) -> str:
        return self.label or self.slug

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.func)

    @property
    def place(self) -> str:
        """Where it is defined, for messages."""
        return f"{self.func.__module__}.{self.func.__qualname__}"

    def check(self) -> object:
        """Raise ConfigurationError for what can only be seen once everything is defined."""
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, without a job."""
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        version = f" version {self.version!r}" if self.version is not None else ""
        return f"<{self.kind} {self.slug!r}{version}>"

    def using(self, **options: Any) -> Self:
        """A copy with these options for its calls; see the reference of ``using``.

        Raises InvalidInput for an unknown option, UnknownTask for a ``version`` not registered here.
        """
        unknown = sorted(set(options) - OPTION_NAMES)
        if unknown:
            raise InvalidInput(
                f"using() of {self.slug!r} does not know {', '.join(unknown)}. Known: {', '.join(sorted(OPTION_NAMES))}."
            )
        chosen: Any = self
        if options.get("version") is not None and options["version"] != self.version:
            chosen = registry.get(self.slug, options["version"])
        return chosen._with_options(Options(**options).laid_over(self.options))

    def _with_options(self, options: Options) -> Self:
        return replace(self, options=options)

    def enqueue(self, *args: Any, **kwargs: Any) -> Job:
        """Store one call in the caller's transaction and return its job.

        An input field named ``input`` (or ``context`` of a workflow) goes into ``input={…}``.
        Raises InvalidInput, UnknownTask, DuplicateJob; nothing is written then.
        """
        from django_jobs.enqueueing import enqueue_one

        return enqueue_one(self, args, kwargs)

    def enqueue_many(self, inputs: Iterable[dict[str, Any]]) -> list[Job]:
        """Store many calls, all or none; InvalidInput names the index of a bad item."""
        from django_jobs.enqueueing import enqueue_many

        return enqueue_many(self, list(inputs))

    async def aenqueue(self, *args: Any, **kwargs: Any) -> Job:
        """:meth:`enqueue` from async code."""
        return await sync_to_async(functools.partial(self.enqueue, *args, **kwargs))()

    async def aenqueue_many(self, inputs: Iterable[dict[str, Any]]) -> list[Job]:
        return await sync_to_async(self.enqueue_many)(list(inputs))


class Task(Definition):
    """A registered function."""


class Workflow(Definition):
    """A registered handler that is re-run from the top, its recorded steps answered from the store."""


def build(
    cls: type[Definition],
    kind: Kind,
    func: Callable[..., Any],
    slug: str | None,
    given: dict[str, Any],
) -> Any:
    """Check the decorator's keywords and register the definition; ConfigurationError names the place."""
    place = f"{func.__module__}.{func.__qualname__}"
    for name in CALL_ONLY:
        if name in given:
            raise ConfigurationError(
                f"{place}: {name} belongs to one call, not to a definition. "
                f"Use {func.__name__}.using({name}=…).enqueue(…)."
            )
    unknown = sorted(set(given) - KNOWN[kind])
    if unknown:
        raise ConfigurationError(
            f"{place}: @{kind} does not know {', '.join(unknown)}. Known: {', '.join(sorted(KNOWN[kind]))}."
        )
    try:
        name = check_name(slug or func.__name__, "a slug")
        if "/" in name:
            raise InvalidInput(f"the slug {name!r} holds '/'; use '.' or '-'.")
        checked = _checked(given)
    except (InvalidInput, ConfigurationError) as error:
        raise ConfigurationError(f"{place}: {error}") from error
    takes_context = kind is not Kind.TASK or checked.pop("takes_context", False)
    schema = Schema(
        func,
        takes_context=takes_context,
        input_schema=checked.pop("input_schema", None),
        output_schema=checked.pop("output_schema", UNSET),
        what=f"{kind} {name!r}",
    )
    definition = cls(
        slug=name, func=func, schema=schema, kind=kind, takes_context=takes_context, **checked
    )
    registry.register(definition)
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        object.__setattr__(definition, attribute, getattr(func, attribute))
    return definition


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    checked = dict(given)
    if "queue_name" in checked:
        check_name(checked["queue_name"], "queue_name")
    if "priority" in checked:
        checked["priority"] = check_priority(checked["priority"])
    checked["retries"] = Retry.of(checked.get("retries"))
    if checked.get("timeout") is not None:
        checked["timeout"] = seconds(checked["timeout"], "timeout")
        if not checked["timeout"]:
            raise InvalidInput("timeout must be longer than 0 s.")
    if checked.get("version") is not None:
        check_name(checked["version"], "version")
    for name, allowed in (("isolation", ("thread", "process")), ("acknowledge", ("batch", "each"))):
        if checked.get(name, allowed[0]) not in allowed:
            raise InvalidInput(
                f"{name} is {allowed[0]!r} or {allowed[1]!r}, not {checked[name]!r}."
            )
    if checked.get("runner") not in (None, "db", "inline", "celery"):
        raise InvalidInput(f"runner is 'db', 'inline' or 'celery', not {checked['runner']!r}.")
    checked["concurrency"] = Concurrency.of(checked.get("concurrency"))
    if isinstance(checked.get("rate_limit"), str):
        checked["rate_limit"] = RateLimit(checked["rate_limit"])
    checked["schedules"] = check_schedules(checked.get("schedules"))
    checked["redact"] = tuple(checked.get("redact") or ())
    if checked.get("required_input") is not None:
        checked["required_input"] = tuple(checked["required_input"])
    return checked


def check_compensation(undo: Any) -> None:
    """Refuse what cannot undo a step; None is no compensation."""
    if undo is None or isinstance(undo, Task):
        return
    if isinstance(undo, Definition) or not callable(undo):
        raise InvalidInput(f"compensate= is a function of the context or a task, not {undo!r}.")


def check_priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -100 <= value <= 100:
        raise InvalidInput(
            f"priority is a whole number from -100 to 100 (larger first), not {value!r}."
        )
    return value


_COMMON = frozenset(
    "label queue_name priority retries timeout on_success on_failure concurrency rate_limit schedules required_input "
    "runner redact input_schema output_schema acknowledge".split()
)
KNOWN: dict[Kind, frozenset[str]] = {
    Kind.TASK: _COMMON | {"takes_context", "transactional", "isolation"},
    Kind.WORKFLOW: _COMMON | {"version"},
}


@overload
def task(slug: Callable[..., Any], /) -> Task: ...
@overload
def task(slug: str | None = None, /, **options: Any) -> Callable[[Callable[..., Any]], Task]: ...
def task(slug: Any = None, /, **options: Any) -> Any:
    """Register a function as a task: ``@task`` or ``@task("slug", retries=3, …)``.

    Options: label, queue_name, priority (-100 to 100, larger first), retries (extra tries or a
    Retry), timeout (s), takes_context, on_success, on_failure, concurrency, rate_limit, schedules,
    input_schema, output_schema, required_input, transactional, isolation, acknowledge, runner,
    redact. Raises ConfigurationError or DuplicateSlug, naming the place.
    """
    if callable(slug):
        return build(Task, Kind.TASK, slug, None, {})
    return lambda func: build(Task, Kind.TASK, func, slug, options)


@overload
def workflow(slug: Callable[..., Any], /) -> Workflow: ...
@overload
def workflow(
    slug: str | None = None, /, **options: Any
) -> Callable[[Callable[..., Any]], Workflow]: ...
def workflow(slug: Any = None, /, **options: Any) -> Any:
    """Register a handler as a code workflow; its first parameter is the WorkflowContext.

    Options as of :func:`task`, and ``version``.
    """
    if callable(slug):
        return build(Workflow, Kind.WORKFLOW, slug, None, {})
    return lambda func: build(Workflow, Kind.WORKFLOW, func, slug, options)
