"""Executing claims of graphs: of a run that is to be driven, and of a unit that does one step of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django_jobs import jsonvalues
from django_jobs.definitions.dag import DAG
from django_jobs.definitions.graph import Graph
from django_jobs.lifecycle import Kind
from django_jobs.outcomes import Completed, HandedBack, Outcome
from django_jobs.store import units
from django_jobs.store.claims import Claim
from django_jobs.store.session import Session
from django_jobs.workflows.driver import RunDriver
from django_jobs.workflows.io import LoopIO, ThreadIO, drive
from django_jobs.workflows.team import Line, Loop, Team, Threads
from django_jobs.workflows.unit import UnitDriver, UnitRecorder, work_of_id

if TYPE_CHECKING:
    from django_jobs.worker.execution import Environment

#: Steps of one run that are under way at the same time in a process that does not spread them.
STEPS_IN_THREADS, STEPS_ON_LOOP = 4, 100


@dataclass(frozen=True, slots=True)
class Plan:
    """How a claim of a graph is executed."""

    driver: RunDriver | UnitDriver
    is_async: bool
    team: Team | None = None
    #: What the unit's step itself asks of its worker.
    isolation: str = "thread"

    def run(self) -> Outcome:
        return drive(self._drive())

    async def arun(self) -> Outcome:
        return await self._drive()

    async def _drive(self) -> Outcome:
        if isinstance(self.driver, UnitDriver):
            return await self.driver.drive()
        assert self.team is not None
        return await self.driver.drive(self.team)


def plan(claim: Claim, dag: DAG, environment: Environment) -> Plan | Outcome:
    """How to execute ``claim``; an outcome at once where there is nothing to do."""
    graph = dag.check()
    if claim.kind == Kind.STEP:
        return _plan_unit(claim, dag, graph, environment)
    driver = _driver(RunDriver, claim, dag, environment)
    context = jsonvalues.loads(claim.context) if claim.context else {}
    driver.begin(dag, context, spreads=environment.spreads, runner=environment.runner)
    return Plan(driver, dag.is_async, _team(dag, environment))


def _team(dag: DAG, environment: Environment) -> Team:
    if environment.spreads or environment.pool is None:
        return Line()
    if dag.is_async:
        return Loop(STEPS_ON_LOOP)
    return Threads(environment.pool, STEPS_IN_THREADS)


def _plan_unit(claim: Claim, dag: DAG, graph: Graph, environment: Environment) -> Plan | Outcome:
    session = Session(environment.recorder.alias)
    errand = units.errand(session, claim)
    if errand is None:
        return Completed()
    work = work_of_id(graph, errand.record.step_id)
    if work is None:
        return HandedBack(f"this worker's {dag!r} has no step {errand.record.step_id!r}")
    # Who asks for the tenant, or hides secrets, means the input of the run.
    claim.input = errand.input
    driver = _driver(
        UnitDriver, claim, dag, environment, UnitRecorder(environment.recorder, claim, graph)
    )
    driver.begin(dag, jsonvalues.loads(errand.context) if errand.context else {}, errand)
    target = work.step.definition
    return Plan(
        driver, work.step.is_async, isolation="thread" if target is None else target.isolation
    )


def _driver(
    cls: type[Any], claim: Claim, dag: DAG, environment: Environment, recorder: Any = None
) -> Any:
    recorder = recorder or environment.recorder
    own = not environment.same_thread
    return cls(
        claim, recorder, jsonvalues.loads(claim.input), dag,
        thread_io=ThreadIO(recorder, environment.loop, environment.pool, own_context=own),
        loop_io=LoopIO(recorder), retry=None, run_extra=None,
    )  # fmt: skip
