"""Every command on a job of every status: the table of CONTRACT section 8, walked with real rows."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

import pytest
from django.core.management import call_command

from django_jobs import InvalidTransition
from django_jobs.lifecycle import CHANGE, COMMANDS, KEEP, REFUSE, Command, Status
from django_jobs.models import HistoryEntry, Job
from tests.control.rows import KINDS, assert_folds, assert_sound, make, stored

pytestmark = pytest.mark.django_db

#: Compensation is a later chapter; what a reschedule does, test_reschedule.py tells.
HERE = [command for command in Command if command not in (Command.COMPENSATE, Command.RESCHEDULE)]
VERBS = [Command.PAUSE, Command.RESUME, Command.CANCEL, Command.RETRY]
COUNTED = {KEEP: (0, 1, 0), REFUSE: (0, 0, 1)}


def by_object(job: Job, command: Command) -> tuple[int, int, int]:
    before = HistoryEntry.objects.filter(job_id=job.pk).count()
    try:
        answer = getattr(job, command)(actor="olga", reason="because")
    except InvalidTransition as error:
        assert str(command) in str(error)
        assert job.status in str(error)
        return 0, 0, 1
    if command == Command.RERUN:
        assert answer.rerun_of_id == job.pk
    else:
        assert answer is job
    changed = HistoryEntry.objects.filter(job_id=job.pk).count() > before
    return int(changed), int(not changed), 0


def by_queryset(job: Job, command: Command) -> tuple[int, int, int]:
    counts = getattr(Job.objects.filter(pk=job.pk), command)(actor="olga", reason="because")
    return counts.changed, counts.unchanged, counts.refused


def by_manage(job: Job, command: Command) -> tuple[int, int, int]:
    said = StringIO()
    call_command(f"jobs_{command}", "--id", str(job.pk), "--reason", "because", stdout=said)
    numbers = [int(word) for word in said.getvalue().replace(",", " ").split() if word.isdigit()]
    return numbers[0], numbers[1], numbers[2]


DOORS: dict[str, Callable[[Job, Command], tuple[int, int, int]]] = {
    "object": by_object,
    "queryset": by_queryset,
    "manage.py": by_manage,
}


def cells() -> list[tuple[str, Command, Status, str]]:
    return [
        (door, command, status, kind)
        for door in DOORS
        for command in (VERBS if door == "manage.py" else HERE)
        for status in Status
        for kind in KINDS
    ]


@pytest.mark.parametrize(("door", "command", "status", "kind"), cells())
def test_a_command_does_what_the_table_says(
    door: str, command: Command, status: Status, kind: str
) -> None:
    job = make(status, kind)
    before, reruns = stored(job), Job.objects.count()
    cell = COMMANDS[command][status]
    counted = DOORS[door](job, command)
    assert counted == COUNTED.get(cell, (1, 0, 0))
    if cell in (KEEP, REFUSE):
        assert stored(job) == before
        assert Job.objects.count() == reruns
        return
    job.refresh_from_db()
    assert job.status == (status if cell == CHANGE else cell)
    entry = HistoryEntry.objects.filter(job_id=job.pk).order_by("n")[len(before["HistoryEntry"])]
    assert entry.actor == "olga" or (entry.actor or "").startswith("manage.py ")
    assert entry.detail["reason"] == "because"
    assert (entry.from_status, entry.to_status) == (
        (None, None) if cell == CHANGE else (status, cell)
    )
    assert Job.objects.count() == reruns + (command == Command.RERUN)
    if cell != Status.COMPENSATING and status not in (
        Status.COMPENSATED, Status.COMPENSATION_FAILED,
    ):  # fmt: skip
        assert_sound()
    assert_folds(job)


@pytest.mark.parametrize("command", HERE)
def test_repeating_a_command_is_harmless(command: Command) -> None:
    """S4: the second one changes nothing."""
    for status in Status:
        if COMMANDS[command][status] == REFUSE or command == Command.RERUN:
            continue
        job = make(status, "workflow")
        getattr(job, command)()
        before = stored(job)
        getattr(job, command)()
        assert stored(job) == before


@pytest.mark.parametrize("command", HERE)
def test_the_commands_of_a_job_that_is_gone_say_so(command: Command) -> None:
    job = make(Status.PENDING, "task")
    Job.objects.filter(pk=job.pk).delete()
    with pytest.raises(Job.DoesNotExist):
        getattr(job, command)()


def test_a_damaged_status_refuses_every_command() -> None:
    job = make(Status.PENDING, "task")
    Job.objects.filter(pk=job.pk).update(status="nonsense")
    for command in HERE:
        with pytest.raises(InvalidTransition, match="nonsense"):
            getattr(job, command)()
