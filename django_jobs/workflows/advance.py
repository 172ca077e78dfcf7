"""What a graph's run may do next. Pure decisions over the graph and what is recorded of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from django_jobs.definitions.graph import Graph, Step
from django_jobs.lifecycle import FINAL_STEPS, StepStatus

S = StepStatus


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of a step, or of one item of a map.

    ``taken`` says that somebody is at it: a unit, a child run, or the driver itself. ``waits`` says
    that its next try has a time that has not come. ``size`` is the number of items of a map that
    has begun.
    """

    status: StepStatus = S.PENDING
    taken: bool = False
    waits: bool = False
    size: int | None = None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STEPS


OPEN = Mark()


@dataclass(frozen=True, slots=True)
class Work:
    """A step that may start now; ``index`` is the place of an item in its map."""

    step: Step
    index: int | None = None

    @property
    def id(self) -> str:
        return self.step.id if self.index is None else f"{self.step.id}:{self.index}"


@dataclass(slots=True)
class Decision:
    """What may and must happen next.

    ``ready`` may start, in order of declaration. ``skipped`` and ``canceled`` will never run, and
    ``ended`` are maps whose items have ended: these are to be recorded, and then decided anew.
    ``verdict`` is there once nothing is left to do.
    """

    ready: list[Work] = field(default_factory=list)
    skipped: list[Step] = field(default_factory=list)
    canceled: list[Step] = field(default_factory=list)
    ended: list[tuple[Step, StepStatus]] = field(default_factory=list)
    #: Somebody is at a step, or a next try waits for its time.
    outstanding: bool = False
    verdict: Literal["completed", "failed"] | None = None

    @property
    def settles(self) -> bool:
        """Whether something is to be recorded before anything else is decided."""
        return bool(self.skipped or self.canceled or self.ended)


def advance(graph: Graph, marks: Mapping[str, Mark]) -> Decision:
    """The decision for these marks, by step id and by ``map id:index``; a step without one has not begun."""
    return Frontier(graph, marks).decide()


class Frontier:
    """The same, kept up to date mark by mark: what has ended long ago is not looked at again."""

    def __init__(self, graph: Graph, marks: Mapping[str, Mark]) -> None:
        self.graph = graph
        self.marks: dict[str, Mark] = dict(marks)
        #: How many of its dependencies have not ended, for each step.
        self._missing = {
            step.id: sum(not self.mark(one).is_final for one in step.after)
            for step in graph.steps.values()
        }
        #: Steps that have not ended and wait for nothing, by their place in the declaration.
        self._open = {
            step.id
            for step in graph.steps.values()
            if not self._missing[step.id] and not self.mark(step.id).is_final
        }
        self._left = {step.id for step in graph.steps.values() if not self.mark(step.id).is_final}
        self._failed = {step.id for step in graph.steps.values() if self._stops(step)}

    def mark(self, step_id: str) -> Mark:
        return self.marks.get(step_id, OPEN)

    def note(self, step_id: str, mark: Mark) -> None:
        """Something is known anew of a step, or of an item of a map."""
        before = self.mark(step_id)
        self.marks[step_id] = mark
        step = self.graph.steps.get(step_id)
        if step is None:
            around = self.graph.steps[step_id.rpartition(":")[0]]
            if mark.status is S.FAILED and not around.optional:
                self._failed.add(around.id)
            return
        if not mark.is_final or before.is_final:
            return
        self._left.discard(step_id)
        self._open.discard(step_id)
        if self._stops(step):
            self._failed.add(step_id)
        for below in self.graph.dependents[step_id]:
            self._missing[below.id] -= 1
            if not self._missing[below.id] and below.id in self._left:
                self._open.add(below.id)

    @property
    def is_stopped(self) -> bool:
        """Whether a step has failed for good that is not optional: nothing new starts."""
        return bool(self._failed)

    def _stops(self, step: Step) -> bool:
        if step.optional:
            return False
        mark = self.mark(step.id)
        if mark.status is S.FAILED:
            return True
        items = range(mark.size or 0) if not mark.is_final else ()
        return any(self.mark(f"{step.id}:{number}").status is S.FAILED for number in items)

    # --- deciding -----------------------------------------------------------------------------

    def decide(self) -> Decision:
        decision = Decision()
        if self.is_stopped:
            self._cancel_the_rest(decision)
        serial_in_hand = any(
            not step.parallel and self._is_begun(step)
            for step in (self.graph[one] for one in self._open)
        )
        canceled = {step.id for step in decision.canceled}
        for step_id in sorted(self._open - canceled, key=self.graph.order.__getitem__):
            step = self.graph[step_id]
            mark = self.mark(step_id)
            if mark.taken or mark.waits:
                decision.outstanding = True
            elif mark.size is not None:
                self._decide_map(step, mark.size, decision)
            elif self._lacks_input(step):
                decision.skipped.append(step)
            elif step.parallel or self._is_begun(step):
                decision.ready.append(Work(step))
            elif not serial_in_hand:
                serial_in_hand = True
                decision.ready.append(Work(step))
        if not (decision.ready or decision.settles or decision.outstanding):
            decision.verdict = "failed" if self.is_stopped else "completed"
        return decision

    def _is_begun(self, step: Step) -> bool:
        mark = self.mark(step.id)
        return mark.taken or mark.waits or mark.size is not None

    def _lacks_input(self, step: Step) -> bool:
        """Whether it comes after an optional step that failed, and does not run over failures."""
        return not step.over_failures and any(
            self.mark(one).status is S.FAILED for one in step.after
        )

    def _cancel_the_rest(self, decision: Decision) -> None:
        """What has not begun never will, but for steps that run over failures."""
        for step_id in sorted(self._left, key=self.graph.order.__getitem__):
            step, mark = self.graph[step_id], self.mark(step_id)
            if not (step.over_failures or mark.taken or mark.size is not None):
                decision.canceled.append(step)

    def _decide_map(self, step: Step, size: int, decision: Decision) -> None:
        marks = [self.mark(f"{step.id}:{number}") for number in range(size)]
        fails = any(mark.status is S.FAILED for mark in marks)
        # One failed item ends its map, and a stopped run starts no more of them.
        halts = fails or (self.is_stopped and not step.over_failures)
        busy = False
        for number, mark in enumerate(marks):
            if mark.is_final:
                continue
            if mark.taken or (mark.waits and not halts):
                busy = True
            elif not halts:
                decision.ready.append(Work(step, number))
                busy = True
        if busy:
            decision.outstanding = True
        elif fails:
            decision.ended.append((step, S.FAILED))
        elif all(mark.status is S.COMPLETED for mark in marks):
            decision.ended.append((step, S.COMPLETED))
        else:
            decision.ended.append((step, S.CANCELED))
