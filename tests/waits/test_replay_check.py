"""``manage.py jobs_replay_check``: live runs against the code as it is now, with nothing run or written."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command

from django_jobs import JobFailed, Retry, WorkflowContext, task, workflow
from django_jobs.definitions import registry
from django_jobs.models import Job
from django_jobs.testing import drain
from tests.control.rows import stored

pytestmark = pytest.mark.django_db
Handler = Callable[[WorkflowContext], Any]


def check(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines of the command."""
    out = io.StringIO()
    code = 0
    try:
        call_command("jobs_replay_check", *arguments, stdout=out)
    except SystemExit as end:
        code = int(str(end.code))
    return code, out.getvalue().splitlines()


def changed(old: Handler, new: Handler, **options: Any) -> Job:
    """A run of the ``old`` code as far as it goes, with the ``new`` code registered now."""
    known = registry.snapshot()
    job = workflow("test.changed", **options)(old).enqueue()
    drain()
    registry.restore(known)
    workflow("test.changed", **options)(new)
    job.refresh_from_db()
    return job


@task("test.counted")
def counted() -> int:
    ran.append("ran")
    return len(ran)


ran: list[str] = []


@pytest.fixture(autouse=True)
def anew() -> None:
    ran.clear()


def two_steps(run: WorkflowContext) -> None:
    run.task("first", counted)
    run.inline("second", lambda: 1)
    run.sleep("third", 3600)
    run.task("never", counted)


def test_code_that_fits_is_no_fault_and_nothing_is_run_or_written() -> None:
    @workflow("test.fits")
    def fits(run: WorkflowContext) -> None:
        two_steps(run)

    @workflow("test.fits_async")
    async def fits_async(run: WorkflowContext) -> None:
        await asyncio.gather(run.task("first", counted), run.task("other", counted))
        run.log.info("not written again")
        run.progress(0.5)
        await run.sleep("nap", 3600)

    found = [fits.enqueue(), fits_async.enqueue()]
    drain()
    before, times = [stored(job) for job in found], len(ran)
    assert check() == (0, ["2 live runs replayed, 0 at fault."])
    assert ([stored(job) for job in found], len(ran)) == (before, times)


def test_another_kind_under_a_stored_id_is_a_fault() -> None:
    def new(run: WorkflowContext) -> None:
        run.sleep("first", 1)

    job = changed(two_steps, new)
    code, lines = check()
    assert code == 1
    assert lines[0].startswith(
        f"test.changed - {job.pk} non_deterministic: The step id 'first' is stored as task"
    )
    assert lines[1] == "1 live run replayed, 1 at fault."
    assert job.status == "sleeping"


def test_a_sleeping_wait_is_held_against_the_code_as_well() -> None:
    def new(run: WorkflowContext) -> None:
        run.task("first", counted)
        run.inline("second", lambda: 1)
        run.wait_for_event("third", "go")

    changed(two_steps, new)
    assert check()[0] == 1


@pytest.mark.parametrize("strict", [False, True])
def test_steps_that_are_asked_for_no_longer_are_told_and_a_fault_if_wanted(strict: bool) -> None:
    def new(run: WorkflowContext) -> None:
        run.task("renamed", counted)

    changed(two_steps, new)
    code, lines = check(*["--strict"] * strict)
    assert code == int(strict)
    assert lines[0].endswith("fits (not asked for: test.counted/first, inline/second)")


def test_a_handler_that_raises_or_repeats_an_id_is_a_fault() -> None:
    def raises(run: WorkflowContext) -> None:
        run.task("first", counted)
        raise KeyError("removed")

    def repeats(run: WorkflowContext) -> None:
        run.task("first", counted)
        run.task("first", counted)

    for new, word in ((raises, "KeyError"), (repeats, "DuplicateStepId")):
        job = changed(two_steps, new)
        code, lines = check("--json")
        told = json.loads(lines[0])
        assert (code, told["fault"], told["job"]) == (1, "error", str(job.pk))
        assert word in told["message"]
        job.cancel()
        registry._known.pop("test.changed")


def test_an_input_that_the_code_takes_no_longer_is_a_fault() -> None:
    known = registry.snapshot()

    @workflow("test.input")
    def old(run: WorkflowContext, n: int) -> None:
        run.sleep("nap", 60)

    old.enqueue(n=1)
    drain()
    registry.restore(known)

    @workflow("test.input")
    def new(run: WorkflowContext, name: str) -> None:
        run.sleep("nap", 60)

    code, lines = check()
    assert code == 1
    assert "error: InvalidInput" in lines[0]


def test_code_that_is_gone_is_a_fault_and_versions_are_held_to_their_own() -> None:
    known = registry.snapshot()
    for version in ("1", "2"):
        workflow("test.versions", version=version)(two_steps).enqueue()
    drain()
    assert check()[0] == 0
    registry.restore(known)
    workflow("test.versions", version="2")(two_steps)
    code, lines = check("--slug", "test.versions")
    assert (code, len(lines)) == (1, 2)
    assert lines[0].startswith("test.versions 1 ")
    assert "missing" in lines[0]


def test_failures_that_the_run_has_already_are_no_fault() -> None:
    @task("test.failing")
    def failing() -> None:
        raise OSError("no")

    @workflow("test.own_error", retries=Retry(max_attempts=3, delay=3600))
    def own_error(run: WorkflowContext) -> None:
        try:
            run.task("failing", failing)
        except JobFailed:
            run.inline("clean-up", lambda: 1)
        raise KeyError("until tomorrow")

    job = own_error.enqueue()
    drain()
    job.refresh_from_db()
    assert job.status == "sleeping"
    assert check() == (0, ["1 live run replayed, 0 at fault."])


def test_what_the_handler_itself_writes_is_rolled_back() -> None:
    def writes(run: WorkflowContext) -> None:
        run.task("first", counted)
        Job.objects.update(progress_note="written by the handler")
        run.sleep("nap", 3600)

    changed(two_steps, writes)
    check()
    assert not Job.objects.filter(progress_note="written by the handler").exists()
