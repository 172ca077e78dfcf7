"""Doing a step of a run that another worker drives, or nobody at the moment.

A unit writes into the records of its run under its own fence. Where the step that it has ended is
all that another one waits for, it goes on with that one in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from django_jobs.definitions.dag import DAG
from django_jobs.definitions.graph import Graph, Step
from django_jobs.lifecycle import StepKind, StepStatus
from django_jobs.outcomes import Canceled, Completed, HandedBack, Lost, Outcome
from django_jobs.store import units
from django_jobs.store.claims import Claim
from django_jobs.store.record import Item, LogWrite, NoteWrite
from django_jobs.store.recorded import StepRecord
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer, StepWrite
from django_jobs.store.units import CancelRun, Errand, UnitWrite
from django_jobs.workflows.advance import Work
from django_jobs.workflows.asking import blocking
from django_jobs.workflows.attempt import Recorder
from django_jobs.workflows.declared import Ended, GraphSteps
from django_jobs.workflows.driver import work_of
from django_jobs.workflows.plan import Planned


class UnitRecorder:
    """The recorder of a unit: what belongs to its run goes there."""

    def __init__(self, recorder: Recorder, claim: Claim, graph: Graph) -> None:
        assert claim.parent is not None
        self.alias = recorder.alias
        self.always_look = recorder.always_look
        self.run_id = claim.parent
        self._recorder = recorder
        self._claim = claim
        self._graph = graph
        #: The latest record of a step of the graph, and whether the unit goes on with the next.
        self.latest: UnitWrite | None = None

    def post(self, item: Item) -> None:
        self._recorder.post(self.of_run(item))

    def write(self, item: Item) -> Answer:
        return self._recorder.write(self.of_run(item))

    async def awrite(self, item: Item) -> Answer:
        return await self._recorder.awrite(self.of_run(item))

    def renew(self, claim: Claim) -> bool:
        return self._recorder.renew(claim)

    def status_of(self, claim: Claim) -> str | None:
        return self._recorder.status_of(claim)

    def of_run(self, item: Item) -> Item:
        if isinstance(item, StepWrite):
            return self._unit_write(item)
        if isinstance(item, LogWrite | NoteWrite):
            item.job = self.run_id
        return item

    def _unit_write(self, write: StepWrite) -> UnitWrite:
        item = UnitWrite(self._claim, write)
        work = None if write.parent_key else work_of_id(self._graph, write.step_id)
        if work is None or write.starts:
            return item
        self.latest = item
        step = work.step
        if write.status is StepStatus.FAILED and not step.optional:
            item.stops = True
            item.over_failures = self._over_failures
        item.joins = self._joins(work)
        item.items_of = f"{step.id}:" if work.index is not None else ""
        after = self._graph.dependents[step.id] if work.index is None else []
        if write.status is StepStatus.COMPLETED and len(after) == 1 and can_follow(after[0]):
            item.then = self._start_of(after[0])
        return item

    @property
    def _over_failures(self) -> frozenset[str]:
        steps = self._graph.steps.values()
        return frozenset(self._graph.keys[step.id] for step in steps if step.over_failures)

    def _joins(self, work: Work) -> tuple[tuple[str, ...], ...]:
        """The keys that each step waits for which may be ready after this one."""
        if work.index is not None:
            return ()
        keys = self._graph.keys
        return tuple(
            tuple(keys[one] for one in below.after)
            for below in self._graph.dependents[work.step.id]
        )

    def _start_of(self, step: Step) -> StepWrite:
        return StepWrite(
            claim=self._claim, step_key=self._graph.keys[step.id], step_id=step.id, slug=step.slug,
            kind=step.kind, status=StepStatus.RUNNING, input="{}",
        )  # fmt: skip


class UnitDriver(GraphSteps):
    """The driver of one claim of a unit."""

    recorder: UnitRecorder

    def begin(self, dag: DAG, context: dict[str, Any], errand: Errand) -> None:
        self.graph = dag.check()
        self.is_saga = dag.is_saga
        self.context = context
        self._errand = errand
        record = errand.record
        self._records = {record.step_key: record}
        self._marked = True

    @property
    def run_id(self) -> UUID:
        return self.recorder.run_id

    def look(self, step_ids: Iterable[str] | None) -> Mapping[str, StepRecord]:
        session = Session(self.recorder.alias)
        keys = None if step_ids is None else [self.graph.keys[one] for one in step_ids]
        found = blocking(lambda: units.records(session, self.run_id, keys))
        return {
            record.step_id: record
            for record in found
            if self.graph.keys.get(record.step_id) == record.step_key
        }

    def _item_of(self, write: StepWrite) -> Item:
        return self.recorder.of_run(write)

    async def drive(self) -> Outcome:
        """Do the step, and those that follow it as long as they are this unit's to do."""
        work = work_of(self.graph, self._errand.record)
        if work is None:
            return HandedBack("this worker's graph has no such step")
        ended = await self.perform(work)
        while ended.outcome is None and self._goes_on and ended.status is StepStatus.COMPLETED:
            [below] = self.graph.dependents[ended.work.step.id]
            ended = await self._continue(Work(below))
        if isinstance(ended.outcome, Canceled):
            # CancelJob cancels the run, and this unit with it.
            await self._io.write(CancelRun(self.claim, ended.outcome.error))
            return Lost({"reason": "its run is canceled"})
        if isinstance(ended.outcome, HandedBack) and ended.outcome.reason == "paused":
            return Completed()  # its run has the step back
        return ended.outcome or Completed()

    @property
    def _goes_on(self) -> bool:
        latest = self.recorder.latest
        return latest is not None and latest.goes_on

    async def _continue(self, work: Work) -> Ended:
        """The next step, whose start was recorded with the end of the one before."""
        planned = self._planned(work)
        return await self._go(work, planned, None)

    def _must_know(self, step: Planned) -> bool:
        """Whether this unit goes on is decided by the write that ends its step."""
        work = self._works.get(step.key)
        if work is None or work.index is not None:
            return False
        below = self.graph.dependents[work.step.id]
        return len(below) == 1 and can_follow(below[0])


def can_follow(step: Step) -> bool:
    """Whether a unit may go on with this step: nothing but the one before it has a say in it."""
    return len(step.after) == 1 and step.parallel and step.kind in (StepKind.INLINE, StepKind.TASK)


def work_of_id(graph: Graph, step_id: str) -> Work | None:
    step = graph.steps.get(step_id)
    if step is not None:
        return Work(step)
    head, _, tail = step_id.rpartition(":")
    around = graph.steps.get(head)
    return Work(around, int(tail)) if around is not None and tail.isdecimal() else None
