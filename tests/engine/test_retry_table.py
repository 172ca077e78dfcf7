"""Every combination of retry settings ends as the committed table says."""

from __future__ import annotations

import itertools
import json
import os
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_jobs import Retry, TaskContext, WorkflowContext, task, workflow
from django_jobs.definitions.task import Definition
from django_jobs.models import Job
from django_jobs.testing import clock, drain
from tests.engine import retry_table

pytestmark = pytest.mark.django_db
EXPECTED: dict[str, dict[str, Any]] = json.loads(retry_table.FILE.read_text())
SPELLINGS: dict[str, Any] = {
    "unset": None,
    "Retry(delay=1)": Retry(delay=1, jitter=0),
    **{str(extra): extra for extra in (0, 1, 2, 3)},
    **{f"Retry(max_attempts={n})": Retry(max_attempts=n, delay=1, jitter=0) for n in (2, 3)},
}


class Broken(Exception):
    """What the functions raise."""


class Bench:
    """A task for each setting of a task, a workflow for each of a workflow, and what they did."""

    def __init__(self) -> None:
        self.executions: dict[str, int] = defaultdict(int)
        self.final: dict[str, list[bool]] = defaultdict(list)
        self.tasks = {name: self._task(name) for name in retry_table.TASK}
        self.workflows = {name: self._workflow(name) for name in retry_table.WORKFLOW}

    def run(self, key: str, failures: int) -> None:
        self.executions[key] += 1
        if self.executions[key] <= failures:
            raise Broken(key)

    def _task(self, spelling: str) -> Definition:
        def failed(context: TaskContext, error: Exception, final: bool) -> None:
            assert isinstance(error, Broken)
            key = context.job.input["key"]
            assert context.attempt == len(self.final[key]) + 1
            self.final[key].append(final)

        @task(f"table.task {spelling}", retries=SPELLINGS[spelling], on_failure=failed)
        def function(key: str, failures: int) -> None:
            self.run(key, failures)

        return function

    def _workflow(self, spelling: str) -> Definition:
        @workflow(f"table.flow {spelling}", retries=SPELLINGS[spelling])
        def flow(
            run: WorkflowContext, key: str, kind: str, of: str, call: str, failures: int
        ) -> None:
            retries = SPELLINGS[call]
            if kind == "inline":
                run.inline("step", lambda: self.run(key, failures), retries=retries)
            else:
                run.task("step", self.tasks[of], key=key, failures=failures, retries=retries)

        return flow

    def enqueue(self, key: str) -> Job:
        _, kind, of, flow, call, number = key.split(" | ")
        failures = int(number)
        if kind == "plain":
            chosen = self.tasks[of].using(retries=SPELLINGS[call])
            return chosen.enqueue(key=key, failures=failures)
        return self.workflows[flow].enqueue(key=key, kind=kind, of=of, call=call, failures=failures)

    def found(self, key: str, job: Job) -> dict[str, Any]:
        job.refresh_from_db()
        records = [record for ids in job.task_status.values() for record in ids.values()]
        step = None
        if records:
            [record] = records
            step = {name: record[name] for name in ("status", "total_tried")}
        return {
            "executions": self.executions[key],
            "status": job.status,
            "attempts": job.attempts,
            "step": step,
            "final": self.final[key],
        }


#: Every fourth meets each pair of settings; ``python -m tests.long properties`` takes all.
STRIDE = int(os.environ.get("TEST_RETRY_STRIDE") or 4)
KEYS = list(EXPECTED)[::STRIDE]
#: Combinations run together; more would leave a database many dead rows of one transaction.
TOGETHER = 60


# The rules are the same code on every database.
@pytest.mark.once
@pytest.mark.parametrize("first", range(0, len(KEYS), TOGETHER))
def test_every_combination_of_retries_ends_as_the_rules_say(first: int, settings: Any) -> None:
    """T and W: tries, statuses, counts and the `final` of on_failure, 960 combinations in all."""
    clock.freeze(datetime(2030, 1, 1, tzinfo=UTC))
    bench = Bench()
    for setting in retry_table.SETTING:
        keys = [key for key in KEYS[first : first + TOGETHER] if key.startswith(f"{setting} | ")]
        settings.DJANGO_JOBS = {} if setting == "unset" else {"RETRIES": SPELLINGS[setting]}
        jobs = {key: bench.enqueue(key) for key in keys}
        drain(until=timedelta(minutes=10))
        found = {key: bench.found(key, job) for key, job in jobs.items()}
        wrong = {key: (row, EXPECTED[key]) for key, row in found.items() if row != EXPECTED[key]}
        assert not wrong


@pytest.mark.once
def test_the_chosen_combinations_hold_each_pair_of_settings() -> None:
    def pairs(keys: list[str]) -> set[tuple[tuple[int, str], ...]]:
        rows = (list(enumerate(key.split(" | "))) for key in keys)
        return {pair for row in rows for pair in itertools.combinations(row, 2)}

    assert pairs(KEYS) == pairs(list(EXPECTED))


@pytest.mark.once
def test_the_committed_table_is_what_the_rules_give() -> None:
    assert retry_table.FILE.read_text() == retry_table.as_text(), (
        "python -m tests.engine.retry_table"
    )
