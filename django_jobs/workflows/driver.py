"""Driving a run of a graph: whoever claims the run decides what its steps do next.

A worker that spreads its runs does a step itself only while nothing else of the run is under way,
so that a chain costs no queue hop; otherwise it offers what is ready as units and lets go of the
run. Then nobody drives it: the end of a unit goes on with the next step or wakes the run. So while
a run is held, nothing of it ends elsewhere unseen. In-process runs do everything themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from django_jobs import clock, conf, ids, jsonvalues
from django_jobs.definitions.context import StepCall
from django_jobs.definitions.dag import DAG
from django_jobs.definitions.graph import Graph, Step
from django_jobs.errors import ErrorDict, JobFailed
from django_jobs.lifecycle import FINAL_STEPS, Kind, StepKind, StepStatus
from django_jobs.outcomes import (
    Completed,
    Failed,
    HandedBack,
    Lost,
    Outcome,
    Sleeping,
    TryAgain,
)
from django_jobs.store import units
from django_jobs.store.jobs import NewJob
from django_jobs.store.recorded import StepRecord
from django_jobs.store.session import Session
from django_jobs.store.steps import StepWrite
from django_jobs.store.units import Offer, Withdraw
from django_jobs.workflows import waiting
from django_jobs.workflows.advance import Decision, Frontier, Mark, Work
from django_jobs.workflows.asking import blocking
from django_jobs.workflows.declared import (
    ITEM,
    Ended,
    GraphSteps,
    StepSkipped,
    View,
    key_of,
    kind_of,
    outputs,
)
from django_jobs.workflows.passes import PassEnds
from django_jobs.workflows.plan import Planned, own_retry
from django_jobs.workflows.replay import StepLimit
from django_jobs.workflows.retrying import Budget
from django_jobs.workflows.team import Team
from django_jobs.workflows.undo import Compensating, Undo

ITEMS = "items"
#: Steps that one offer gives away at most.
OFFER = 500
#: Each output was checked by itself; the whole of a run has no limit of its own.
RESULTS = 1 << 30


class RunDriver(Compensating, GraphSteps):
    """The driver of one claim of a run. ``spreads`` says that other workers may do steps of it."""

    # A map or a child run ends while units end too, each with the next place that the records have:
    # what the driver has not read yet stays before it, and none takes its place.
    apart = 10_000

    def begin(self, dag: DAG, context: dict[str, Any], *, spreads: bool, runner: str) -> None:
        """What the driver of a graph needs besides an attempt's own."""
        #: Whose workers the steps that are given away are for.
        self.runner = runner
        self.dag = dag
        self.graph = dag.check()
        self.is_saga = dag.is_saga
        self.context = context
        self.spreads = spreads
        #: The moment at which each waiting step is tried again, on this process's monotonic clock.
        self._due: dict[str, float] = {}
        #: The latest failure of this pass that is tried again.
        self._retrying: TryAgain | None = None
        #: Steps that were given away have been taken back: what is recorded has to be read anew.
        self._has_withdrawn = False
        #: Monotonic end of the run's time, and the outcome then.
        self.over_at: float | None = None
        self.out_of_time: Callable[[], Failed] | None = None
        self.frontier = Frontier(self.graph, self._marks())

    # --- what is recorded ---------------------------------------------------------------------

    def _marks(self) -> dict[str, Mark]:
        waiting: dict[str, float] = {}
        if any(record.wake_at is not None for record in self._records.values()):
            session = Session(self.recorder.alias)
            waiting = blocking(lambda: units.waits(session, self.run_id))
        marks = {}
        for record in self._records.values():
            work = work_of(self.graph, record)
            if work is None:
                continue
            if record.step_key in waiting:
                self._due[work.id] = clock.monotonic() + waiting[record.step_key]
            marks[work.id] = self._mark_of(record, record.step_key in waiting)
        return marks

    def _mark_of(self, record: StepRecord, waits: bool) -> Mark:
        status = StepStatus(record.status)
        if record.kind == StepKind.MAP and status is StepStatus.RUNNING:
            items = self._items(record)
            return Mark() if items is None else Mark(status, size=len(items))
        return Mark(status, taken=record.child is not None, waits=waits)

    def _items(self, record: StepRecord) -> Any:
        """The items of a map, None before it was asked for them."""
        stored = jsonvalues.loads(record.input) if record.input else None
        return stored.get(ITEMS) if isinstance(stored, dict) else None

    def look(self, step_ids: Iterable[str] | None) -> Mapping[str, StepRecord]:
        keys = self.graph.keys
        wanted = keys if step_ids is None else step_ids
        return {one: self._records[keys[one]] for one in wanted if keys[one] in self._records}

    # --- the loop -----------------------------------------------------------------------------

    async def drive(self, team: Team) -> Outcome:
        """Take the run as far as this claim can."""
        stopped: Outcome | None = None
        if self.claim.is_undoing:
            return await self.undo_stored()
        try:
            await self._see_children()
        except PassEnds as end:
            return end.outcome
        while True:
            if stopped is None:
                try:
                    stopped = self._late() or await self._decide(team)
                except PassEnds as end:
                    stopped = end.outcome
            if not team.is_busy:
                assert stopped is not None
                return stopped
            ended: Ended = await team.next()
            stopped = stopped or ended.outcome
            if ended.outcome is None:
                self._note(ended)

    def _late(self) -> Failed | None:
        """Past the limit of the run no step starts, and what is undone is undone by another claim."""
        if self.over_at is None or clock.monotonic() <= self.over_at or self.out_of_time is None:
            return None
        return self.out_of_time()

    async def _decide(self, team: Team) -> Outcome | None:
        """Begin what may begin; the outcome of the pass where nothing is left to do in it."""
        while True:
            decision = self.frontier.decide()
            if decision.settles:
                await self._settle(decision)
                continue
            if decision.verdict is not None:
                return await self._conclude(decision.verdict)
            quick = [
                work for work in decision.ready if kind_of(work) in (StepKind.MAP, StepKind.CHILD)
            ]
            for work in quick:
                begin = self._expand if work.step.over else self._begin_child
                outcome = await begin(work)
                if outcome is not None:
                    return outcome
            if quick:
                continue
            if self.spreads and not team.is_busy and not self._is_alone(decision):
                if decision.ready:
                    await self._offer(decision.ready)
                    continue
                return self._wait(decision)
            for work in decision.ready[: max(team.room, 0)]:
                self.frontier.note(work.id, Mark(StepStatus.RUNNING, taken=True))
                team.begin(functools.partial(self.perform, work))
            return None if team.is_busy else self._wait(decision)

    @staticmethod
    def _is_alone(decision: Decision) -> bool:
        """Whether the one step that is ready is all that may happen in the run now."""
        return len(decision.ready) == 1 and not decision.outstanding

    def _note(self, ended: Ended) -> None:
        self.frontier.note(ended.work.id, ended.mark)
        if ended.status is StepStatus.FAILED and not ended.work.step.optional:
            self._stop()
        if ended.delay is not None:
            self._due[ended.work.id] = clock.monotonic() + ended.delay
            if ended.error is not None:
                self._retrying = TryAgain({**ended.error, "step_id": ended.work.id}, ended.delay)

    def _stop(self) -> None:
        """Nothing new starts: take back what is offered and that nobody has begun."""
        if any(mark.taken and not mark.is_final for mark in self.frontier.marks.values()):
            steps = self.graph.steps.values()
            over = frozenset(self.graph.keys[step.id] for step in steps if step.over_failures)
            self.recorder.post(Withdraw(self.claim, over))
            self._has_withdrawn = True

    # --- what needs no work -------------------------------------------------------------------

    async def _settle(self, decision: Decision) -> None:
        """Record what is skipped, what never runs, and maps whose items have ended."""
        for step in decision.skipped:
            planned = self._planned(Work(step))
            await self._skip(planned)
            self.frontier.note(step.id, Mark(StepStatus.SKIPPED))
        for step in decision.canceled:
            self._record(Work(step), StepStatus.CANCELED)
            self.frontier.note(step.id, Mark(StepStatus.CANCELED))
        for step, status in decision.ended:
            await self._end_map(step, status)
            self.frontier.note(step.id, Mark(status))

    def _record(self, work: Work, status: StepStatus, **values: Any) -> StepWrite:
        """Post a record of the engine's own making."""
        write = self._own_write(work, status, **values)
        self.recorder.post(write)
        self._remember(write)
        return write

    def _own_write(self, work: Work, status: StepStatus, **values: Any) -> StepWrite:
        known = self._records.get(key_of(self.graph, work))
        fixed: dict[str, Any] = {
            "input": known.input if known else "{}", "total_tried": known.total_tried if known else 0,
            "failures": known.failures if known else 0,
        }  # fmt: skip
        return StepWrite(
            claim=self.claim, step_key=key_of(self.graph, work), step_id=work.id, slug=work.step.slug,
            kind=kind_of(work), status=status, **{**fixed, **values},
        )  # fmt: skip

    # --- maps ---------------------------------------------------------------------------------

    async def _expand(self, work: Work) -> Outcome | None:
        """Ask a map for its items and store them; an error in that fails the step."""
        step = work.step
        assert step.over is not None
        self.frontier.note(work.id, Mark(StepStatus.RUNNING, taken=True))
        ended = await self.perform(work)
        if ended.outcome is not None:
            return ended.outcome
        if ended.status is StepStatus.COMPLETED:  # in asking
            record = self._records[self.graph.keys[step.id]]
            self.frontier.note(step.id, Mark(StepStatus.RUNNING, size=len(self._items(record))))
        else:
            self._note(ended)
        return None

    async def _execute(self, step: Planned, record: StepRecord | None) -> Any:
        if step.kind is not StepKind.MAP:
            return await super()._execute(step, record)
        # A map itself has nothing to run: its items are stored, and each is a step of its own.
        await self._write(
            self._own_write(self._works[step.key], StepStatus.RUNNING, input=step.input_text)
        )
        return None

    async def _with_input(self, work: Work, planned: Planned, record: StepRecord | None) -> Planned:
        if planned.kind is not StepKind.MAP:
            return await super()._with_input(work, planned, record)
        assert work.step.over is not None
        number = (record.total_tried if record else 0) + 1
        ask = functools.partial(work.step.over, self._context_for(work, number))
        items = list(await self._io.call(ask, None))
        self._check_limit(len(items))
        text = jsonvalues.dumps({ITEMS: items}, what="items", limit=conf.get().max_input)
        return replace(planned, input=jsonvalues.loads(text), input_text=text)

    def _check_limit(self, more: int) -> None:
        """Declared steps are finite; what maps add to them is limited."""
        known = sum(mark.size or 0 for mark in self.frontier.marks.values())
        limit = conf.get().step_limit
        if known + more > limit:
            raise StepLimit(
                f"The maps of this run have {known} items and ask for {more} more; STEP_LIMIT is {limit}."
            )

    async def _end_map(self, step: Step, status: StepStatus) -> None:
        record = self._records[self.graph.keys[step.id]]
        items = [
            self._records.get(key_of(self.graph, Work(step, number)))
            for number in range(len(self._items(record)))
        ]
        values: dict[str, Any] = {"total_tried": record.total_tried + 1}
        if status is StepStatus.COMPLETED:
            with self._lock:
                self._done_no += self.apart
                values["done_no"] = self._done_no
            values["output"] = "[" + ",".join((one and one.output) or "null" for one in items) + "]"
        elif status is StepStatus.FAILED:
            failed = [one for one in items if one is not None and one.status == StepStatus.FAILED]
            values["error"] = jsonvalues.loads(failed[0].error)
        self._record(Work(step), status, **values)

    # --- child runs ---------------------------------------------------------------------------

    async def _begin_child(self, work: Work) -> Outcome | None:
        """Ask a step that is a run of its own for its input, and insert that run; or see what became of it."""
        record = self._records.get(self.graph.keys[work.step.id])
        try:
            self._check_alive()
            planned = self._planned(work)
            if record is None or record.status != StepStatus.SLEEPING:
                planned = await self._asked(work, planned, record)
                kwargs = planned.input
            else:
                kwargs = jsonvalues.loads(record.input) or {}
            call = StepCall(work.id, work.step.target, kwargs=kwargs, timeout=work.step.timeout)
            await self._wait_for(waiting.plan_wait(call, self.claim))
        except StepSkipped:
            self._note(Ended(work, StepStatus.SKIPPED))
        except JobFailed as error:
            self._note(Ended(work, StepStatus.FAILED, error.error))
        except PassEnds as end:
            match end.outcome:
                case Sleeping():
                    self.frontier.note(work.id, Mark(StepStatus.SLEEPING, taken=True))
                case TryAgain(error=told, delay=delay):
                    self._note(Ended(work, StepStatus.PENDING, told, delay))
                case _:
                    return end.outcome
        else:
            self._note(Ended(work, StepStatus.COMPLETED))
        return None

    async def _see_children(self) -> None:
        """Look at the child runs for which the run waits."""
        for step in self.graph.steps.values():
            if self.frontier.mark(step.id).status is StepStatus.SLEEPING:
                outcome = await self._begin_child(Work(step))
                if outcome is not None:
                    raise PassEnds(outcome)

    # --- others' work -------------------------------------------------------------------------

    async def _offer(self, ready: list[Work]) -> None:
        """Give steps to whoever is free: their records and their units in one transaction."""
        for start in range(0, len(ready), OFFER):
            part = ready[start : start + OFFER]
            rows = [
                self._unit(work, unit)
                for work, unit in zip(part, ids.job_ids(len(part)), strict=True)
            ]
            writes = [self._offered(work, row) for work, row in zip(part, rows, strict=True)]
            match await self._io.write(Offer(self.claim, writes, rows)):
                case "paused":
                    raise PassEnds(HandedBack("paused"))
                case "lost":
                    raise PassEnds(Lost({"reason": "while offering steps"}))
            self._marked = True
            for work, write in zip(part, writes, strict=True):
                self._remember(write)
                self.frontier.note(work.id, Mark(StepStatus.PENDING, taken=True))

    def _offered(self, work: Work, unit: NewJob) -> StepWrite:
        values: dict[str, Any] = {"child": unit.id}
        if work.index is not None and key_of(self.graph, work) not in self._records:
            values["input"] = self._item_text(work)
        return self._own_write(work, StepStatus.PENDING, **values)

    def _unit(self, work: Work, unit_id: Any) -> NewJob:
        claim = self.claim
        precedence = claim.order[0]
        lane = ids.lane(
            self.runner, claim.queue_name, claim.slug,
            "-" if claim.version is None else f"v{claim.version}", "free",
        )  # fmt: skip
        return NewJob(
            id=unit_id, slug=claim.slug, kind=str(Kind.STEP), version=claim.version, queue_name=claim.queue_name,
            priority=-precedence, precedence=precedence, lane=lane, input="{}", parent=claim.job_id,
            step_key=key_of(self.graph, work), turn=claim.order[1], runner=self.runner,
        )  # fmt: skip

    def _item_text(self, work: Work) -> str:
        record = self._records[self.graph.keys[work.step.id]]
        assert work.index is not None
        item = self._items(record)[work.index]
        return jsonvalues.dumps({ITEM: item}, what="item", limit=conf.get().max_input)

    def _item(self, work: Work, record: StepRecord | None) -> Any:
        around = self._records[self.graph.keys[work.step.id]]
        assert work.index is not None
        return self._items(around)[work.index]

    def _wait(self, decision: Decision) -> Outcome:
        """Let go of the run: it waits for units, or for the time of a next try."""
        taken = [mark for mark in self.frontier.marks.values() if mark.taken and not mark.is_final]
        if not taken and self._retrying is not None:
            present = clock.monotonic()
            waiting = [
                max(self._due[one] - present, 0.0)
                for one, mark in self.frontier.marks.items()
                if mark.waits and not mark.is_final
            ]
            return TryAgain(self._retrying.error, min(waiting, default=0.0), of_steps=True)
        if self._has_withdrawn:
            return Sleeping(seen=(-1, -1), busy=bool(taken))
        known = [one for one in self._records.values() if one.step_id and not one.parent_key]
        ended = sum(one.status in FINAL_STEPS for one in known)
        idle = sum(one.status == StepStatus.PENDING and one.child is None for one in known)
        children = frozenset(one.step_key for one in known if one.status == StepStatus.SLEEPING)
        return Sleeping(keys=children, seen=(ended, idle), busy=len(taken) > len(children))

    # --- the end ------------------------------------------------------------------------------

    async def _conclude(self, verdict: str) -> Outcome:
        if verdict == "completed":
            known = outputs(self.graph, self.look(None))
            text = jsonvalues.dumps(known, what="output", limit=RESULTS)
            return Completed(text)
        failed = Failed(self.failure())
        return await self.end_failed(failed) if self.is_saga else failed

    # --- undoing ------------------------------------------------------------------------------

    @property
    def stops_at_failure(self) -> bool:
        return self.dag.on_compensation_error == "stop"

    def completed(self) -> Iterable[Undo]:
        for record in self._records.values():
            if record.status != StepStatus.COMPLETED or record.kind == StepKind.COMPENSATION:
                continue
            work = work_of(self.graph, record)
            step = None if work is None or work.index is not None else work.step
            if step is not None and step.compensate is not None:
                budget = Budget(
                    own_retry(StepCall(step.id, None, retries=step.retries), step.definition)
                )
                yield Undo(record, step.compensate, budget, step.timeout)
            elif record.compensation is not None:
                by = (jsonvalues.loads(record.compensation) or {}).get("by", "a function")
                yield Undo(record, missing=(
                    f"The step {record.step_id!r} was to be undone by {by}, but the present {self.dag!r} has no "
                    "compensate= for it. Put the code right, then retry() the run."
                ))  # fmt: skip

    def undo_view(self, undo: Undo, error: ErrorDict) -> View:
        return View(self, self.graph.steps[undo.step_id], error)

    def failure(self) -> ErrorDict:
        """The error of the run: that of the step that failed first, and which it is."""
        failed = [
            record
            for record in self._records.values()
            if record.status == StepStatus.FAILED
            and not record.parent_key
            and (step := self.graph.steps.get(record.step_id)) is not None
            and not step.optional
        ]
        first = min(failed, key=lambda record: record.id or 1 << 62)
        return {**(jsonvalues.loads(first.error) or {}), "step_id": first.step_id}


def work_of(graph: Graph, record: StepRecord) -> Work | None:
    """The step, or the item of a map, that a record is about; None for records of another sort."""
    step = graph.steps.get(record.step_id)
    if step is not None and graph.keys[step.id] == record.step_key:
        return Work(step)
    head, colon, tail = record.step_id.rpartition(":")
    around = graph.steps.get(head)
    if colon and tail.isdecimal() and around is not None and around.kind is StepKind.MAP:
        return Work(around, int(tail))
    return None
