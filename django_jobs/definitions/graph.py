"""A declared graph as a value: its steps, what each waits for, and what is wrong with it."""

from __future__ import annotations

import graphlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from django_jobs import ids
from django_jobs.definitions.retry import Retry
from django_jobs.definitions.task import Definition
from django_jobs.errors import ConfigurationError
from django_jobs.lifecycle import StepKind

#: Slugs under which steps without a task of their own are recorded.
INLINE, HTTP = "inline", "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """What an HTTP step sends where; the compensation is a URL as well."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    callback: bool = False
    compensation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node of a graph. ``target`` is a function, a task, a workflow or a DAG; None for HTTP."""

    id: str
    kind: StepKind
    target: Any = None
    after: tuple[str, ...] = ()
    when: Callable[[Any], Any] | None = None
    input: Any = None
    over: Callable[[Any], Iterable[Any]] | None = None
    compensate: Any = None
    retries: Retry | None = None
    timeout: float | None = None
    optional: bool = False
    run_if: str | None = None
    parallel: bool = True
    http: HttpCall | None = None

    @property
    def slug(self) -> str:
        """The slug under which the step is recorded."""
        if isinstance(self.target, Definition):
            return self.target.slug
        return HTTP if self.kind is StepKind.HTTP else INLINE

    @property
    def key(self) -> str:
        return ids.digest(self.slug, self.id)

    @property
    def definition(self) -> Definition | None:
        return self.target if isinstance(self.target, Definition) else None

    @property
    def is_async(self) -> bool:
        if isinstance(self.target, Definition):
            return self.target.is_async
        return inspect.iscoroutinefunction(self.target)

    @property
    def over_failures(self) -> bool:
        """Whether it runs as soon as all it waits for has ended, however that ended."""
        return self.run_if == "all_done"

    @property
    def can_be_undone(self) -> bool:
        return self.compensate is not None or (
            self.http is not None and self.http.compensation is not None
        )


class Graph:
    """The steps of one DAG in order of declaration, checked as a whole.

    Raises ConfigurationError, naming the DAG and the steps, for no step at all, an unknown
    dependency and a cycle.
    """

    def __init__(self, name: str, steps: Iterable[Step]) -> None:
        self.name = name
        self.steps = {step.id: step for step in steps}
        self._check()

    def _check(self) -> None:
        if not self.steps:
            raise ConfigurationError(f"{self.name} has no steps. Add one by .step(id, function).")
        for step in self.steps.values():
            unknown = [other for other in step.after if other not in self.steps]
            if unknown:
                raise ConfigurationError(
                    f"{self.name}: step {step.id!r} comes after {_listed(unknown)}, which it has no step of. "
                    f"Its steps are {_listed(self.steps)}."
                )
            head, colon, tail = step.id.rpartition(":")
            around = self.steps.get(head)
            if colon and tail.isdecimal() and around is not None and around.kind is StepKind.MAP:
                raise ConfigurationError(
                    f"{self.name}: step {step.id!r} is called like an item of the map {head!r}. Rename it."
                )
        sorter = graphlib.TopologicalSorter({one.id: one.after for one in self.steps.values()})
        try:
            sorter.prepare()
        except graphlib.CycleError as error:
            circle = " → ".join(repr(one) for one in reversed(error.args[1]))
            raise ConfigurationError(
                f"{self.name}: the steps {circle} wait for each other. Take one of them out of after=."
            ) from None

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step_id: str) -> Step:
        return self.steps[step_id]

    @cached_property
    def dependents(self) -> dict[str, list[Step]]:
        """The steps that wait for each step, in order of declaration."""
        found: dict[str, list[Step]] = {step_id: [] for step_id in self.steps}
        for step in self.steps.values():
            for other in step.after:
                found[other].append(step)
        return found

    @cached_property
    def order(self) -> dict[str, int]:
        """Position of each step in the declaration."""
        return {step_id: position for position, step_id in enumerate(self.steps)}

    @cached_property
    def topological(self) -> list[Step]:
        """Each step behind all that it waits for; otherwise in order of declaration."""
        sorter = graphlib.TopologicalSorter({one.id: one.after for one in self.steps.values()})
        return [self.steps[step_id] for step_id in sorter.static_order()]

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key under which each step is recorded."""
        return {step.id: step.key for step in self.steps.values()}

    @cached_property
    def by_key(self) -> dict[str, Step]:
        return {self.keys[step.id]: step for step in self.steps.values()}

    @property
    def has_http(self) -> bool:
        return any(step.http is not None for step in self.steps.values())

    def as_dict(self) -> dict[str, Any]:
        """The graph as JSON data: ``nodes`` in order of declaration and ``edges`` between them."""
        return {
            "nodes": [_node(step) for step in self.steps.values()],
            "edges": [
                {"from": other, "to": step.id}
                for step in self.steps.values()
                for other in step.after
            ],
        }


def _node(step: Step) -> dict[str, Any]:
    return {
        "id": step.id, "kind": str(step.kind), "slug": step.slug, "after": list(step.after),
        "conditional": step.when is not None, "optional": step.optional, "run_if": step.run_if,
        "parallel": step.parallel, "compensated": step.can_be_undone,
    }  # fmt: skip


def _listed(names: Iterable[str]) -> str:
    found = [repr(name) for name in names]
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return ", ".join(found[:12]) + more
