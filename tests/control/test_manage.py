"""The verbs of ``manage.py``: filters, --dry-run, what they say; and jobs_versions."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from django_jobs import WorkflowContext, workflow
from django_jobs.definitions import registry
from django_jobs.lifecycle import Status
from django_jobs.management.steering import actor
from django_jobs.models import HistoryEntry, Job
from tests.app import jobs
from tests.control.rows import make
from tests.support import vendor

pytestmark = pytest.mark.django_db


def say(*words: Any) -> str:
    out = StringIO()
    call_command(*map(str, words), stdout=out)
    return out.getvalue().strip()


def test_filters_are_laid_over_each_other() -> None:
    kept = jobs.echo.enqueue(value=1)
    jobs.add.using(queue_name="mail").enqueue(a=1, b=2)
    jobs.add.enqueue(a=1, b=2)
    jobs.add.enqueue(a=5, b=2)
    assert say("jobs_pause", "--slug", "add", "--queue", "mail") == (
        "Paused 1 job, 0 unchanged, 0 refused."
    )
    assert say("jobs_pause", "--slug", "add", "--where", "input__a=5", "input__b=2") == (
        "Paused 1 job, 0 unchanged, 0 refused."
    )
    assert say("jobs_pause", "--slug", "add", "echo", "--status", "pending") == (
        "Paused 2 jobs, 0 unchanged, 0 refused."
    )
    assert say("jobs_resume", "--id", kept.pk) == "Resumed 1 job, 0 unchanged, 0 refused."
    assert say("jobs_cancel", "--all") == "Canceled 4 jobs, 0 unchanged, 0 refused."
    assert say("jobs_retry", "--all") == "Retried 0 jobs, 0 unchanged, 4 refused."


@pytest.mark.parametrize(
    ("value", "where", "fits"),
    [
        ({"n": 5}, "input__value__n=5", True),
        ({"n": "5"}, "input__value__n=5", False),
        ({"n": "5"}, 'input__value__n="5"', True),
        ({"n": "a=b"}, "input__value__n=a=b", True),
        ({"n": None}, "created_at__lt=2001-01-31T00:00:00Z", False),
        ({"n": None}, "created_at__gt=2001-01-31T00:00:00Z", True),
        ({"n": None}, 'slug__in=["echo", "add"]', True),
        ({"n": None}, "slug=__import__('os')", False),
    ],
)
def test_values_of_where_are_read_as_data(value: Any, where: str, fits: bool) -> None:
    if vendor() == "mysql" and where == "input__value__n=5":
        fits = True  # in filters Django takes a number and its text for the same there
    jobs.echo.enqueue(value=value)
    assert say("jobs_pause", "--where", where).startswith(f"Paused {int(fits)} ")


def test_a_dry_run_says_the_same_and_changes_nothing() -> None:
    for status in (Status.PENDING, Status.PAUSED, Status.FAILED):
        make(status, "task")
    before = list(Job.objects.order_by("pk").values())
    told = say("jobs_pause", "--slug", "add", "--dry-run")
    assert told == "Would pause 1 job, 1 unchanged, 1 refused."
    assert list(Job.objects.order_by("pk").values()) == before
    assert say("jobs_pause", "--slug", "add") == told.replace("Would pause", "Paused")


def test_the_actor_is_the_user_of_the_system() -> None:
    job = jobs.echo.enqueue()
    say("jobs_pause", "--id", job.pk, "--reason", "outage")
    entry = HistoryEntry.objects.get(job=job)
    assert (entry.actor, entry.detail) == (actor(), {"reason": "outage"})
    assert actor().startswith("manage.py ")
    assert len(actor()) > len("manage.py ")


def test_cancel_cascades_when_told() -> None:
    parent, child = jobs.echo.enqueue(), jobs.echo.enqueue()
    Job.objects.filter(pk=child.pk).update(parent=parent)
    say("jobs_cancel", "--id", parent.pk, "--cascade")
    assert Job.objects.get(pk=child.pk).status == "canceled"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--all"),
        (["--id", "nonsense"], "no id"),
        (["--where", "nonsense"], "LOOKUP=VALUE"),
        (["--where", "nothing__like=5"], "nothing"),
        (["--where", "created_at__lt=yesterday"], "yesterday"),
        (["--where", "slug__nothing=5"], "nothing"),
        (["--status", "nonsense"], "nonsense"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(words: list[str], said: str) -> None:
    job = jobs.echo.enqueue()
    with pytest.raises(CommandError, match=said):
        say("jobs_pause", *words)
    assert Job.objects.get(pk=job.pk).status == "pending"


def versions() -> None:
    """Two live runs of old, one each of old version 2 and of an unversioned one, and a finished one."""

    @workflow("old", version="1")
    def old(run: WorkflowContext) -> None: ...

    @workflow("old", version="2")
    def new(run: WorkflowContext) -> None: ...

    @workflow("bare")
    def bare(run: WorkflowContext) -> None: ...

    for definition in (old, old, new, bare):
        definition.enqueue()
    new.enqueue().cancel()
    jobs.add.enqueue(a=1, b=2)


def test_jobs_versions_prints_a_line_for_each_pair_with_live_runs() -> None:
    versions()
    assert say("jobs_versions").splitlines() == ["bare - 1", "old 1 2", "old 2 1"]
    assert say("jobs_versions", "--tasks").splitlines()[0] == "add - 1"


def test_jobs_versions_fails_for_live_runs_whose_code_is_missing_here() -> None:
    known = registry.snapshot()
    versions()
    assert say("jobs_versions", "--missing") == ""
    registry.restore({**known, "bare": registry.snapshot()["bare"]})
    with pytest.raises(SystemExit) as left:
        say("jobs_versions", "--missing")
    assert left.value.code == 1
    Job.objects.filter(slug="old").cancel()
    assert say("jobs_versions", "--missing") == ""
