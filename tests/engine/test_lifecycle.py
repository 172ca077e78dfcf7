"""Every pair of statuses against the one function that changes them: RELIABILITY S1, S2."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest

from django_jobs import clock
from django_jobs.lifecycle import (
    CHANGE,
    COMMANDS,
    DRIVEN,
    FINAL,
    KEEP,
    LIVE,
    NEXT,
    REFUSE,
    Command,
    Status,
    offered,
    sources,
)
from django_jobs.models import HistoryEntry, Job
from django_jobs.store import history
from django_jobs.store.session import Session
from tests.app import jobs

PAIRS = list(product(Status, Status))
FENCE = 4


def job_with(status: Status) -> Job:
    """A job as the engine leaves it in ``status``."""
    job = jobs.echo.enqueue(value=1)
    present = clock.now()
    Job.objects.filter(pk=job.pk).update(
        status=status,
        fence=FENCE,
        lease_expires_at=present + timedelta(minutes=1) if status in DRIVEN else None,
        finished_at=present if status in FINAL else None,
    )
    return Job.objects.get(pk=job.pk)


def needs(to: Status) -> str:
    """What the row's constraints ask of a job that becomes ``to``."""
    if to == Status.RUNNING:
        return "lease_expires_at = {now}"
    return "finished_at = {now}" if to in FINAL else ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("frm", "to"), PAIRS, ids=lambda status: status.value)
def test_s1_only_a_legal_move_changes_the_row(frm: Status, to: Status) -> None:
    """S1, S2: one compare-and-set and one history entry, or nothing at all."""
    job = job_with(frm)
    before = Job.objects.filter(pk=job.pk).values().get()
    session = Session()
    moved = session.committed(
        lambda s: history.move(s, job.pk, event="test", frm=list(Status), to=to, sets=needs(to))
    )
    after = Job.objects.filter(pk=job.pk).values().get()
    entries = list(
        HistoryEntry.objects.filter(job=job).values_list("n", "from_status", "to_status")
    )
    # A driven job may be taken over by another: the status stays, and the history tells it. One
    # that has ended does not end again.
    if to in NEXT[frm] or (to == frm and frm not in FINAL):
        assert moved == 1
        assert after["status"] == to
        assert after["history_length"] == before["history_length"] + 1
        assert entries == [(1, frm, to)]
    else:
        assert moved == 0
        assert after == before
        assert entries == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("frm", list(Status))
def test_s1_a_move_asks_for_the_status_its_caller_saw(frm: Status) -> None:
    """S1: somebody else was faster, so nothing is forced."""
    job = job_with(frm)
    session = Session()
    for seen, to in PAIRS:
        if seen == frm:
            continue
        moved = session.committed(
            lambda s, seen=seen, to=to: history.move(  # type: ignore[misc]
                s, job.pk, event="test", frm=[seen], to=to, sets=needs(to)
            )
        )
        assert moved == 0
    job.refresh_from_db()
    assert (job.status, job.history_length) == (frm, 0)
    assert not HistoryEntry.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("seen", [FENCE - 1, FENCE + 1])
@pytest.mark.parametrize(
    ("frm", "to"), [(frm, to) for frm in Status for to in NEXT[frm]], ids=lambda status: status.value
)  # fmt: skip
def test_s1_a_move_under_another_fence_changes_nothing(frm: Status, to: Status, seen: int) -> None:
    """S1, L3: every legal move, under an old fence and under one never given out."""
    job = job_with(frm)
    session = Session()
    moved = session.committed(
        lambda s: history.move(
            s, job.pk, event="test", frm=[frm], to=to, fence=seen, sets=needs(to)
        )
    )
    assert moved == 0
    job.refresh_from_db()
    assert (job.status, job.fence, job.history_length) == (frm, FENCE, 0)
    assert not HistoryEntry.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_s3_the_numbers_of_the_history_have_no_gaps() -> None:
    """S3: also where moves that failed lie between."""
    job = job_with(Status.PENDING)
    session = Session()
    way = [Status.PAUSED, Status.RUNNING, Status.PENDING, Status.FAILED, Status.PENDING]
    for to in way:
        session.committed(
            lambda s, to=to: history.move(  # type: ignore[misc]
                s, job.pk, event="test", frm=list(Status), to=to, sets=needs(to)
            )
        )
    entries = HistoryEntry.objects.filter(job=job).order_by("n")
    assert list(entries.values_list("n", "to_status")) == [
        (1, "paused"), (2, "pending"), (3, "failed"), (4, "pending"),
    ]  # fmt: skip
    job.refresh_from_db()
    assert job.history_length == 4


def test_final_statuses_are_left_by_command_only() -> None:
    """P2: an outcome is opened again only by retry and compensate."""
    opened = {status for status in FINAL if NEXT[status]}
    assert opened == {Status.FAILED, Status.COMPENSATION_FAILED}
    assert set(Status) == FINAL | LIVE
    assert not FINAL & LIVE


def test_every_status_but_the_first_can_be_reached() -> None:
    reached = {Status.PENDING}
    while more := {to for status in reached for to in NEXT[status]} - reached:
        reached |= more
    assert reached == set(Status)
    assert sources(Status.RUNNING) == {Status.PENDING}


def test_a_command_is_offered_only_where_its_result_is_a_legal_next_status() -> None:
    """The table of commands and the table of statuses cannot contradict each other."""
    assert set(COMMANDS) == set(Command)
    for command, row in COMMANDS.items():
        assert set(row) == set(Status), command
        for status, effect in row.items():
            changes = effect not in (KEEP, REFUSE)
            assert (command in offered(status)) is changes
            if changes and effect != CHANGE:
                assert Status(effect) in NEXT[status], (command, status)
