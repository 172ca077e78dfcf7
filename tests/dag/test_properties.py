"""Random graphs, run by many workers in any order, with workers that die: the rules hold every time."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from django_jobs.definitions.graph import Graph
from django_jobs.lifecycle import StepStatus
from django_jobs.models import Job
from django_jobs.observe import health
from django_jobs.testing import clock, drain, registry
from django_jobs.workflows.advance import Frontier, Mark, advance
from tests.dag.fleet import Fleet
from tests.dag.graphs import Log, build, check, wishes
from tests.examples import examples

numbers = itertools.count()
EXAMPLES = examples(30, 6)
#: A failing graph is not made smaller: each run of one costs many statements.
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)


def graph_of(wanted) -> Graph:
    with registry():
        return build(f"g{next(numbers)}", wanted, Log()).check()


@given(wishes(most=14), st.randoms(use_true_random=False))
@settings(max_examples=examples(150), phases=QUICK)
def test_advance_keeps_the_rules_whatever_ends_when(wanted, source):
    """The pure function alone: steps end in any order with any outcome; it always comes to its verdict."""
    graph = graph_of(wanted)
    marks: dict[str, Mark] = {}
    frontier = Frontier(graph, marks)
    taken: list[str] = []
    begun: list[str] = []
    for _ in range(400):
        decision = frontier.decide()
        again = advance(graph, frontier.marks)
        assert again == decision, "decided anew from the marks alone it is the same"
        if decision.verdict is not None:
            break
        for step in decision.skipped:
            frontier.note(step.id, Mark(StepStatus.SKIPPED))
        for step in decision.canceled:
            assert frontier.is_stopped
            frontier.note(step.id, Mark(StepStatus.CANCELED))
        for step, status in decision.ended:
            frontier.note(step.id, Mark(status))
        if decision.settles:
            continue
        serial = [work for work in decision.ready if not work.step.parallel and work.index is None]
        assert len(serial) <= 1
        if decision.ready and (source.random() < 0.6 or not taken):
            work = source.choice(decision.ready)
            before = [frontier.mark(one) for one in work.step.after]
            assert all(mark.is_final for mark in before)
            if not work.step.over_failures:
                assert all(mark.status in ("completed", "skipped") for mark in before)
            if frontier.is_stopped:
                assert work.step.over_failures
            if work.step.over is not None and work.index is None:
                size = source.choice((0, 1, 3))
                frontier.note(work.id, Mark(StepStatus.RUNNING, size=size))
                continue
            assert work.id not in begun
            begun.append(work.id)
            taken.append(work.id)
            frontier.note(work.id, Mark(StepStatus.RUNNING, taken=True))
        elif taken:
            one = taken.pop(source.randrange(len(taken)))
            end = source.choice(
                ("completed", "completed", "completed", "failed", "skipped", "again")
            )
            if end == "again":
                begun.remove(one)
                frontier.note(one, Mark(StepStatus.PENDING))
            else:
                items = ":" in one
                frontier.note(
                    one, Mark(StepStatus("completed" if items and end == "skipped" else end))
                )
    else:
        raise AssertionError("no verdict")
    assert not taken
    assert all(frontier.mark(one).is_final for one in graph.steps)
    failed = [one for one in graph.steps.values() if frontier.mark(one.id).status == "failed"]
    assert (decision.verdict == "failed") == any(not step.optional for step in failed)


def run_many(wanted, source, dies):
    log = Log()
    with registry():
        try:
            dag = build(f"p{next(numbers)}", wanted, log)
            job = dag.enqueue(n=1)
            fleet = Fleet(source, dies=dies)
            fleet.run(job)
            check(job, wanted, log)
            found = list(health.findings(fleet.session))
            assert not found, found
        finally:
            clock.reset()
            Job.units.all().delete()


@pytest.mark.django_db
@given(wishes(undo=True), st.integers(0, 2**32))
@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=QUICK
)
def test_any_graph_spread_over_workers(wanted, seed):
    run_many(wanted, random.Random(seed), 0.0)


@pytest.mark.django_db
@given(wishes(undo=True), st.integers(0, 2**32))
@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=QUICK
)
def test_any_graph_while_workers_die(settings, wanted, seed):
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "CRASH_LIMIT": 50}
    run_many(wanted, random.Random(seed), 0.2)


@pytest.mark.django_db
@given(wishes())
@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=QUICK
)
def test_any_graph_drained_in_one_thread(wanted):
    log = Log()
    with registry():
        try:
            job = build(f"d{next(numbers)}", wanted, log).enqueue()
            clock.freeze(clock.now())
            from datetime import timedelta

            drain(until=timedelta(hours=1))
            job.refresh_from_db()
            check(job, wanted, log)
        finally:
            clock.reset()
            Job.units.all().delete()
