"""Handlers that raise or leave behind what they should not: RELIABILITY C6."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import Group
from django.db import connection

from django_jobs import run_jobs
from django_jobs.lifecycle import Status
from django_jobs.models import Job, Worker
from tests.app import jobs
from tests.engine.processes import RunJobs, lines

pytestmark = pytest.mark.django_db(transaction=True)
RAISED = {
    "SystemExit": "builtins.SystemExit",
    "KeyboardInterrupt": "builtins.KeyboardInterrupt",
    "GeneratorExit": "builtins.GeneratorExit",
    "CancelledError": "asyncio.exceptions.CancelledError",
    "StopIteration": "builtins.StopIteration",
    "MemoryError": "builtins.MemoryError",
    "RecursionError": "builtins.RecursionError",
    "Unprintable": "tests.app.jobs.Unprintable",
    "Interrupting": "tests.app.jobs.Interrupting",
    "Textless": "tests.app.jobs.Textless",
    "Unpicklable": "tests.app.jobs.Unpicklable",
    "BaseException": "builtins.BaseException",
    "group": "builtins.BaseExceptionGroup",
    "long chain": "builtins.ValueError",
    "surrogate": "builtins.ValueError",
    "huge": "builtins.ValueError",
}
LEFT = [
    "open atomic",
    "open atomic after an error",
    "raw begin",
    "autocommit off",
    "closed connection",
    "broken statement",
]


def check_failures(kinds: dict[str, Job]) -> None:
    for what, job in kinds.items():
        job.refresh_from_db()
        assert (job.status, job.attempts, job.crashes) == (Status.FAILED, 1, 0), what
        # A coroutine may not raise StopIteration; Python makes it a RuntimeError.
        allowed = {RAISED[what]} | ({"builtins.RuntimeError"} if what == "StopIteration" else set())
        assert job.error["type"] in allowed, what


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("kind", [jobs.raises, jobs.araises], ids=["sync", "async"])
def test_c6_whatever_a_handler_raises_is_a_failure_of_its_job(
    kind: object, sequential: bool
) -> None:
    """C6: in process; the caller of run_jobs() gets a report, not the exception."""
    made = {what: kind.enqueue(what=what) for what in RAISED}  # type: ignore[attr-defined]
    good = jobs.add.using(priority=-1).enqueue(a=1, b=1)
    report = run_jobs(limit=40, sequential=sequential)
    assert (report.completed, report.failed) == (1, len(RAISED))
    check_failures(made)
    good.refresh_from_db()
    assert good.status == Status.COMPLETED


def test_c6_a_worker_survives_whatever_handlers_raise(runjobs: Callable[..., RunJobs]) -> None:
    """C6: one process executes them all, and the job after them."""
    made = {what: jobs.raises.enqueue(what=what) for what in RAISED}
    amade = {what: jobs.araises.enqueue(what=what) for what in RAISED}
    good = jobs.add.using(priority=-1).enqueue(a=1, b=1)
    worker = runjobs("--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    check_failures(made)
    check_failures(amade)
    good.refresh_from_db()
    assert (good.status, good.output) == (Status.COMPLETED, 2)
    assert Worker.objects.count() == 1


def test_c6_a_worker_survives_what_handlers_leave_behind(
    runjobs: Callable[..., RunJobs],
) -> None:
    """C6: open transactions end with their handler; the next job in the thread writes for good."""
    for n, what in enumerate(LEFT):
        jobs.leaves_behind.using(priority=100 - 2 * n).enqueue(what=what)
        jobs.makes_group.using(priority=99 - 2 * n).enqueue(name=f"after {what}")
    worker = runjobs("--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    unwell = Job.objects.exclude(status=Status.COMPLETED)
    assert list(unwell.values_list("input", "status", "error__message")) == []
    groups = set(Group.objects.values_list("name", flat=True))
    assert groups == {f"after {what}" for what in LEFT}
    assert Worker.objects.count() == 1


@pytest.mark.parametrize("sequential", [True, False])
def test_c6_a_run_that_swallows_everything_still_ends_as_the_engine_wants(
    marks: Path, sequential: bool
) -> None:
    """C6: ``except BaseException`` around a step that waits for its retry is no completion."""
    job = jobs.swallows.enqueue(marks=str(marks))
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert job.status == Status.SLEEPING
    assert lines(marks) == ["tried", "swallowed"]
    Job.objects.filter(pk=job.pk).update(run_after=job.created_at)
    run_jobs(sequential=sequential)
    job.refresh_from_db()
    assert (job.status, job.output) == (Status.COMPLETED, "done")
    assert lines(marks) == ["tried", "swallowed", "tried"]


def test_c6_a_task_that_swallows_its_own_exception_is_completed() -> None:
    job = jobs.swallows_its_own.enqueue()
    run_jobs()
    job.refresh_from_db()
    assert (job.status, job.output) == (Status.COMPLETED, "swallowed SystemExit")


# --- what is left in the session, and in the process ------------------------------------------


def kept_connections(runjobs: Callable[..., RunJobs], *arguments: object) -> RunJobs:
    """A worker whose handlers keep their connections from one job to the next."""
    keys = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    database = {key: connection.settings_dict[key] for key in keys}
    return runjobs(
        *arguments, database={**database, "NAME": str(database["NAME"]), "CONN_MAX_AGE": None}
    )


def test_c6_what_a_handler_changes_of_its_session_ends_with_it(
    runjobs: Callable[..., RunJobs],
) -> None:
    """C6: time zone, search path and whatever else; of Python's context as well."""
    changes = [*jobs.PYTHON_CHANGES, *jobs.SESSION_CHANGES[connection.vendor]]
    first = jobs.shows_session.using(priority=100).enqueue()
    shown = []
    for n, what in enumerate(changes):
        jobs.changes_session.using(priority=99 - 2 * n).enqueue(what=what)
        shown.append(jobs.shows_session.using(priority=98 - 2 * n).enqueue())
    worker = kept_connections(runjobs, "--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    before = first.result()
    assert {what: job.result() for what, job in zip(changes, shown, strict=True)} == dict.fromkeys(
        changes, before
    )
    assert not Job.objects.exclude(status=Status.COMPLETED).exists()


def test_c6_what_async_handlers_change_of_a_session_ends_with_them(
    runjobs: Callable[..., RunJobs],
) -> None:
    """C6: each has its own thread for ORM calls; threads of asyncio.to_thread keep nothing."""
    changes = list(jobs.SESSION_CHANGES[connection.vendor])
    wheres = ["to_thread", "sync_to_async"]
    key = {"concurrency_key": "one after the other"}
    first = jobs.ashows_session.using(priority=100, **key).enqueue(where="to_thread")
    shown = []
    for n, (what, where) in enumerate((what, where) for what in changes for where in wheres):
        jobs.achanges_session.using(priority=99 - 2 * n, **key).enqueue(what=what, where=where)
        shown.append(jobs.ashows_session.using(priority=98 - 2 * n, **key).enqueue(where=where))
    worker = kept_connections(runjobs, "--once")
    assert worker.wait() == 0, worker.output()
    assert [job.result() for job in shown] == [first.result()] * len(shown)


def test_c6_ordinary_use_does_not_cost_the_connection(runjobs: Callable[..., RunJobs]) -> None:
    """C6: only what changes a session is paid for with a new one."""
    made = jobs.which_connection.enqueue_many([{} for _ in range(5)])
    worker = kept_connections(runjobs, "--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    unwell = Job.objects.exclude(status=Status.COMPLETED)
    assert list(unwell.values_list("status", "error__message")) == []
    assert len({Job.objects.get(pk=job.pk).output for job in made}) == 1


def test_c6_an_isolated_handler_that_leaves_a_transaction_open_is_recorded(
    runjobs: Callable[..., RunJobs],
) -> None:
    """C6: what it wrote is rolled back, its outcome is not."""
    job = jobs.isolated_leaves_open.enqueue()
    worker = runjobs("--once")
    assert worker.wait() == 0, worker.output()
    job.refresh_from_db()
    assert (job.status, job.output, job.crashes) == (Status.COMPLETED, "done", 0)
    assert not Group.objects.exists()


def test_c6_run_jobs_ends_the_transaction_that_a_handler_has_left_open() -> None:
    """C6: in the calling thread, so that the outcome is not rolled back with it."""
    job = jobs.leaves_behind.enqueue(what="open atomic")
    assert run_jobs(sequential=True).completed == 1
    assert not connection.in_atomic_block
    job.refresh_from_db()
    assert job.status == Status.COMPLETED
    assert not Group.objects.exists()


FORKED = {"returns": 0, "raises": 1, "exits": 7}


def test_c6_a_process_that_a_handler_forks_does_not_go_on_as_a_worker(
    runjobs: Callable[..., RunJobs], marks: Path
) -> None:
    """C6: it ends where the handler does, and nothing is run twice or recorded by it."""
    made = {}
    for how in FORKED:
        made[how] = [jobs.forks.enqueue(how=how, marks=str(marks))]
        made[how].append(jobs.isolated_forks.enqueue(how=how, marks=str(marks)))
    runs = {how: jobs.forks_in_steps.enqueue(how=how, marks=str(marks)) for how in FORKED}
    jobs.mark.using(priority=-1).enqueue_many(
        [{"marks": str(marks), "word": f"neighbour {n}"} for n in range(30)]
    )
    worker = runjobs("--once", "--threads", 2)
    assert worker.wait() == 0, worker.output()
    for how, code in FORKED.items():
        assert [job.result() for job in made[how]] == [code, code], how
        assert runs[how].result() == [code] * 5, how
    noted = Counter(lines(marks))
    assert noted == {"ran": 15, **{f"neighbour {n}": 1 for n in range(30)}}
    assert set(Job.objects.values_list("status", "crashes")) == {(Status.COMPLETED, 0)}


def test_c6_a_forked_process_does_not_go_on_as_the_caller_of_run_jobs(marks: Path) -> None:
    """C6: in process, where it would share the caller's connection."""
    for sequential in (True, False):
        job = jobs.forks.enqueue(how="returns", marks=str(marks))
        assert run_jobs(sequential=sequential).completed == 1
        assert job.result() == 0
    assert lines(marks) == ["ran", "ran"]


def test_c6_a_handler_ends_its_own_process_and_not_the_worker(
    runjobs: Callable[..., RunJobs],
) -> None:
    """C6: SIGTERM to a process that a handler has forked is for that process."""
    made = [jobs.terminates_its_own.enqueue() for _ in range(3)]
    worker = runjobs("--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    assert [job.result() for job in made] == [-signal.SIGTERM] * 3
    assert Worker.objects.count() == 1


def test_c6_odd_ends_of_handlers_are_ordinary_outcomes(runjobs: Callable[..., RunJobs]) -> None:
    """C6: sys.exit in a thread, generators and coroutines given back, a swallowed cancel."""
    good = [jobs.exits_in_a_thread.enqueue(), jobs.swallows_cancellation.enqueue()]
    bad = [jobs.yields.enqueue(), jobs.ayields.enqueue(), jobs.returns_a_coroutine.enqueue()]
    worker = runjobs("--once", "--threads", 1)
    assert worker.wait() == 0, worker.output()
    assert [job.result() for job in good] == ["went on", "swallowed"]
    for job in bad:
        job.refresh_from_db()
        assert (job.status, job.attempts, job.crashes) == (Status.FAILED, 1, 0), job.slug
    assert Worker.objects.count() == 1
