"""``DAG``: a workflow declared as a graph of steps."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Self

from django_jobs.definitions import drawing, registry
from django_jobs.definitions.graph import Graph, HttpCall, Step
from django_jobs.definitions.limits import Concurrency
from django_jobs.definitions.options import NOTHING, check_name, check_step_id, seconds
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.schema import Schema
from django_jobs.definitions.task import Definition, check_compensation, check_priority
from django_jobs.errors import ConfigurationError, InvalidInput, UnknownTask
from django_jobs.lifecycle import Kind, StepKind

Seconds = float | timedelta
Retries = int | Retry


class DAG(Definition):
    """A workflow declared as a graph: ``DAG("slug").step("a", f).step("b", g, after="a")``.

    It is registered at once and each method returns the same object. ``after=`` may name a step
    that is added later, so unknown names and cycles are found when the graph is complete: by
    ``manage.py check``, :meth:`check`, or the first enqueue, whichever comes first.

    ``timeout`` is the time the whole run may take, from its start. A DAG undoes its completed
    steps after a failure if ``saga=True``, or if any step has a ``compensate`` and ``saga`` is not
    False. ``on_compensation_error`` is "stop" or "continue".
    """

    _steps: dict[str, Step]
    _graph: Graph | None
    _place: str
    spec: dict[str, Any] | None
    saga: bool | None
    on_complete: str | None
    on_error: str | None
    on_compensation_error: str

    def __init__(
        self,
        slug: str,
        *,
        version: str | None = None,
        label: str = "",
        queue_name: str = "default",
        priority: int = 0,
        timeout: Seconds | None = None,
        saga: bool | None = None,
        on_complete: str | None = None,
        on_error: str | None = None,
        on_compensation_error: str = "stop",
        concurrency: Any = None,
    ) -> None:
        self._build(
            _caller(), True, slug, version=version, label=label, queue_name=queue_name, priority=priority,
            timeout=timeout, saga=saga, on_complete=on_complete, on_error=on_error,
            on_compensation_error=on_compensation_error, concurrency=concurrency,
        )  # fmt: skip

    def _build(self, place: str, registered: bool, slug: str, **given: Any) -> None:
        try:
            values = _checked(slug, given)
        except (InvalidInput, ConfigurationError) as error:
            raise ConfigurationError(f"{place}: DAG {slug!r}: {error}") from error
        schema = Schema(_takes_any_input, takes_context=True, what=f"DAG {slug!r}")
        fixed = {"slug": slug, "func": _takes_any_input, "schema": schema, "kind": Kind.DAG,
                 "takes_context": True, "options": NOTHING}  # fmt: skip
        own: dict[str, Any] = {"_steps": {}, "_graph": None, "_place": place, "spec": None}
        for name, value in {**fixed, **values, **own}.items():
            object.__setattr__(self, name, value)
        if registered:
            registry.register(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> DAG:
        """A DAG of HTTP steps from JSON data, camelCase or snake_case.

        The whole spec is checked at once: ConfigurationError lists every fault by step and field.
        A spec is data only: it is not registered, and is stored with each job.
        """
        from django_jobs.definitions.spec import read_spec

        return read_spec(cls, spec, _caller())

    # --- building -----------------------------------------------------------------------------

    def step(
        self,
        id: str,
        target: Any,
        /,
        *,
        after: str | Iterable[str] = (),
        when: Callable[[Any], Any] | None = None,
        input: Mapping[str, Any] | Callable[[Any], Any] | None = None,
        compensate: Any = None,
        retries: Retries | None = None,
        timeout: Seconds | None = None,
        optional: bool = False,
        run_if: str | None = None,
        parallel: bool = True,
    ) -> Self:
        """Add a step. ``target`` is a function of the StepContext, a registered task, or a
        workflow or DAG that then runs as a child run.

        Tasks and child runs get their input from ``input``: a dict, or a function of the
        StepContext that returns one. ``when`` is asked once the step is ready; a falsy answer
        skips it.
        """
        kind = _kind_of(target)
        if kind is None:
            raise self._wrong(id, f"takes a function, a task, a workflow or a DAG, not {target!r}.")
        if kind is StepKind.INLINE and input is not None:
            raise self._wrong(
                id, "is a function, which gets all it needs from its context. input= is for tasks."
            )
        return self._add(
            id, kind=kind, target=target, after=after, when=when, input=input, compensate=compensate,
            retries=retries, timeout=timeout, optional=optional, run_if=run_if, parallel=parallel,
        )  # fmt: skip

    def map(
        self,
        id: str,
        target: Any,
        /,
        *,
        over: Callable[[Any], Iterable[Any]],
        after: str | Iterable[str] = (),
        when: Callable[[Any], Any] | None = None,
        retries: Retries | None = None,
        timeout: Seconds | None = None,
        optional: bool = False,
        run_if: str | None = None,
        parallel: bool = True,
    ) -> Self:
        """Add a step that runs ``target`` once for each item of ``over(context)``, at the same time.

        Its output is the list of theirs, in order. They are recorded as ``id:0``, ``id:1``, … A
        function finds its item in ``context.item``; a task gets a dict as its keywords, and any
        other item as its first parameter.
        """
        kind = _kind_of(target)
        if kind not in (StepKind.INLINE, StepKind.TASK):
            raise self._wrong(id, f"maps a function or a task, not {target!r}.")
        if not callable(over):
            raise self._wrong(id, f"needs over= as a function of the context, not {over!r}.")
        return self._add(
            id, kind=StepKind.MAP, target=target, after=after, when=when, over=over, retries=retries,
            timeout=timeout, optional=optional, run_if=run_if, parallel=parallel,
        )  # fmt: skip

    def http_step(
        self,
        id: str,
        /,
        *,
        url: str,
        after: str | Iterable[str] = (),
        compensation: str | None = None,
        headers: Mapping[str, str] | None = None,
        callback: bool = False,
        when: Callable[[Any], Any] | None = None,
        retries: Retries | None = None,
        timeout: Seconds | None = None,
        optional: bool = False,
        run_if: str | None = None,
        parallel: bool = True,
    ) -> Self:
        """Add a step that posts JSON to ``url``; ``compensation`` is the URL that undoes it."""
        for name, value in (("url", url), ("compensation", compensation)):
            if (name == "url" or value is not None) and (not isinstance(value, str) or not value):
                raise self._wrong(id, f"needs {name}= as a text, not {value!r}.")
        call = HttpCall(
            url=url, headers=dict(headers or {}), callback=callback, compensation=compensation
        )
        return self._add(
            id, kind=StepKind.HTTP, after=after, when=when, retries=retries, timeout=timeout,
            optional=optional, run_if=run_if, parallel=parallel, http=call,
        )  # fmt: skip

    def _add(self, id: str, **given: Any) -> Self:
        try:
            step = _step(id, given)
        except (InvalidInput, ConfigurationError) as error:
            raise ConfigurationError(f"DAG {self.slug!r}, step {id!r}: {error}") from error
        if step.id in self._steps:
            raise ConfigurationError(
                f"DAG {self.slug!r} has a step {step.id!r} already. Give each step an id of its own."
            )
        self._steps[step.id] = step
        object.__setattr__(self, "_graph", None)
        return self

    def _wrong(self, id: object, text: str) -> ConfigurationError:
        return ConfigurationError(f"DAG {self.slug!r}: step {id!r} {text}")

    # --- asking -------------------------------------------------------------------------------

    def check(self) -> Graph:
        """The complete graph; ConfigurationError names the DAG and the steps at fault."""
        if self._graph is None:
            object.__setattr__(self, "_graph", Graph(f"DAG {self.slug!r}", self._steps.values()))
        assert self._graph is not None
        return self._graph

    @property
    def graph(self) -> dict[str, Any]:
        """The graph as data: ``{"nodes": [{"id", "kind", …}], "edges": [{"from", "to"}]}``."""
        return self.check().as_dict()

    def mermaid(self) -> str:
        """The graph as Mermaid text."""
        return drawing.mermaid(self.drawn())

    def svg(self, statuses: Mapping[str, str] | None = None) -> str:
        """The graph as an SVG element, each step with the class of its status in ``statuses``."""
        return drawing.svg(self.drawn(statuses), title=self.name)

    def drawn(self, statuses: Mapping[str, str] | None = None) -> list[drawing.Node]:
        """The nodes for :mod:`django_jobs.definitions.drawing`."""
        known = statuses or {}
        return [
            drawing.Node(step.id, step.id, known.get(step.id, ""), step.after, kind=str(step.kind))
            for step in self.check().steps.values()
        ]

    @property
    def is_saga(self) -> bool:
        """Whether a failed run undoes its completed steps."""
        if self.saga is not None:
            return self.saga
        return any(step.can_be_undone for step in self._steps.values())

    @property
    def place(self) -> str:
        return self._place

    @property
    def is_async(self) -> bool:
        """Whether a run is driven on the event loop: all of its functions are async."""
        return bool(self._steps) and all(step.is_async for step in self._steps.values())

    def _with_options(self, options: Any) -> Self:
        copied = copy.copy(self)
        object.__setattr__(copied, "options", options)
        return copied


def _takes_any_input(context: Any, **input: Any) -> Any:
    """The signature of every DAG: any keyword is input."""
    raise ConfigurationError("A DAG is not a function. Enqueue it: dag.enqueue(**input).")


def _caller() -> str:
    """Where a DAG is being made, for messages."""
    frame = sys._getframe(2)
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}"


def _checked(slug: str, given: dict[str, Any]) -> dict[str, Any]:
    if "/" in check_name(slug, "a slug"):
        raise InvalidInput("a slug holds no '/'; use '.' or '-'.")
    values = dict(given)
    if values["version"] is not None:
        check_name(values["version"], "version")
    check_name(values["queue_name"], "queue_name")
    check_priority(values["priority"])
    values["timeout"] = _limit(values["timeout"])
    if values["saga"] not in (None, True, False):
        raise InvalidInput(f"saga is True, False or None, not {values['saga']!r}.")
    if values["on_compensation_error"] not in ("stop", "continue"):
        raise InvalidInput(
            f"on_compensation_error is 'stop' or 'continue', not {values['on_compensation_error']!r}."
        )
    for name in ("on_complete", "on_error"):
        if values[name] is not None and not isinstance(values[name], str):
            raise InvalidInput(f"{name} is a URL, not {values[name]!r}.")
    values["concurrency"] = Concurrency.of(values["concurrency"])
    return values


def _step(id: str, given: dict[str, Any]) -> Step:
    values = dict(given)
    values["after"] = _names(values["after"])
    values["retries"] = Retry.of(values["retries"])
    values["timeout"] = _limit(values["timeout"])
    if values["run_if"] not in (None, "all_done"):
        raise InvalidInput(f"run_if is 'all_done' or left out, not {values['run_if']!r}.")
    if values["when"] is not None and not callable(values["when"]):
        raise InvalidInput(f"when= is a function of the context, not {values['when']!r}.")
    wanted = values.get("input")
    if wanted is not None and not isinstance(wanted, Mapping) and not callable(wanted):
        raise InvalidInput(f"input= is a dict or a function of the context, not {wanted!r}.")
    check_compensation(values.get("compensate"))
    for name in ("optional", "parallel"):
        if not isinstance(values[name], bool):
            raise InvalidInput(f"{name} is True or False, not {values[name]!r}.")
    return Step(id=check_step_id(id), **values)


def _kind_of(target: Any) -> StepKind | None:
    if isinstance(target, Definition):
        return StepKind.TASK if target.kind is Kind.TASK else StepKind.CHILD
    if isinstance(target, str):
        raise UnknownTask(f"A step takes the task itself, not its name {target!r}. Import it.")
    return StepKind.INLINE if callable(target) else None


def _names(after: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(after, str):
        return (after,)
    try:
        names = tuple(dict.fromkeys(after))
    except TypeError:
        names = (after,)  # type: ignore[assignment]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise InvalidInput(f"after= takes ids of steps, not {wrong[0]!r}.")
    return names


def _limit(timeout: Seconds | None) -> float | None:
    if timeout is None:
        return None
    limit = seconds(timeout, "timeout")
    if not limit:
        raise InvalidInput("timeout must be longer than 0 s.")
    return limit
