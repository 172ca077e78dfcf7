"""A run that is alone writes its records itself, and leaves to the database thread what it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import connection

from django_jobs import ids
from django_jobs.lifecycle import StepStatus
from django_jobs.outcomes import Completed
from django_jobs.store import claims
from django_jobs.store.record import Finish, ProgressWrite
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer, StepWrite
from django_jobs.worker.desk import Desk
from django_jobs.worker.pen import Pen
from tests.app import jobs
from tests.engine.processes import in_thread

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        connection.vendor != "postgresql", reason="one round trip is PostgreSQL's way"
    ),
]


class Writer:
    """A desk whose pen is lent by the test's own thread, and a run that is claimed."""

    def __init__(self, is_free: Callable[[], bool] = lambda: True) -> None:
        self.session = Session()
        self.job = jobs.three_steps.enqueue(marks="/dev/null")
        [self.claim] = self.session.committed(
            lambda s: claims.claim(s, claims.lanes(s), worker=ids.worker_id(), limit=1, lease=15)
        )
        self.desk = Desk(self.session.alias, 15)
        self.pen = Pen(self.desk, is_free)
        self.pen.lend(self.session)

    def mark(self, number: int, status: StepStatus = StepStatus.RUNNING) -> StepWrite:
        done = status == StepStatus.COMPLETED
        return StepWrite(
            claim=self.claim, step_key=ids.digest("mark", str(number)), step_id=f"s{number}",
            slug="mark", kind="task", status=status, input="{}", output="1" if done else None,
        )  # fmt: skip

    def write_in_thread(self, item: StepWrite) -> list[Answer | None]:
        """What the pen answers to another thread."""
        answers: list[Answer | None] = []
        in_thread(lambda: answers.append(self.pen.write(item))).join()
        return answers

    def stored(self) -> list[tuple[str, str]]:
        return list(self.job.steps.order_by("id").values_list("step_id", "status"))


def test_w1_another_thread_writes_what_lies_on_the_desk_and_its_own_item_together() -> None:
    """W1: the end of a step and the next start, in the order of first start."""
    writer = Writer()
    assert writer.write_in_thread(writer.mark(1)) == ["written"]
    writer.desk.post(writer.mark(1, StepStatus.COMPLETED))
    assert writer.write_in_thread(writer.mark(2)) == ["written"]
    assert writer.desk.is_empty
    assert writer.stored() == [("s1", "completed"), ("s2", "running")]
    # Once recorded, an end is not undone by a start that comes late.
    assert writer.write_in_thread(writer.mark(1)) == ["written"]
    assert writer.stored() == [("s1", "completed"), ("s2", "running")]


def test_w1_while_the_pen_is_held_or_others_run_the_item_is_left_to_the_database_thread() -> None:
    busy = False
    writer = Writer(lambda: not busy)
    with writer.pen:
        assert writer.write_in_thread(writer.mark(1)) == [None]
    busy = True
    assert writer.write_in_thread(writer.mark(1)) == [None]
    assert writer.stored() == []


def test_w1_what_takes_more_than_one_statement_stays_on_the_desk_in_its_place() -> None:
    writer = Writer()
    progress = ProgressWrite(writer.claim, 0.5)
    writer.desk.post(progress)
    assert writer.write_in_thread(writer.mark(1)) == [None]
    assert [entry.item for entry in writer.desk.take()] == [progress]


def test_p3_a_lost_connection_leaves_all_of_it_to_the_database_thread() -> None:
    """P3: nothing that was posted goes with the connection, and the thread is told of a new one."""
    writer = Writer()
    writer.desk.post(writer.mark(1, StepStatus.COMPLETED))
    killed = writer.session.one("SELECT pg_backend_pid()")
    assert killed is not None
    in_thread(lambda: Session().one("SELECT pg_terminate_backend(%(pid)s)", pid=killed[0])).join()
    assert writer.write_in_thread(writer.mark(2)) == [None]
    assert writer.session.reconnects == 1
    answers: list[Answer] = []
    last = Finish(writer.claim, Completed("1"))
    writer.desk.finish(last, answers.append)
    writer.desk.flush(writer.session)
    assert answers == ["written"]
    assert writer.stored() == [("s1", "completed")]


def test_w1_records_of_a_paused_run_are_answered_as_such() -> None:
    """C1: the end of a step is kept, and nothing new starts."""
    writer = Writer()
    assert writer.write_in_thread(writer.mark(1)) == ["written"]
    writer.job.refresh_from_db()
    writer.job.pause()
    writer.desk.post(writer.mark(1, StepStatus.COMPLETED))
    assert writer.write_in_thread(writer.mark(2)) == ["paused"]
    assert writer.stored() == [("s1", "completed")]


def test_w1_a_run_alone_in_its_worker_writes_by_its_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shortcut is taken: else nobody would notice that it is not."""
    from django_jobs.worker import pen as module
    from django_jobs.worker.child import Child
    from django_jobs.worker.intake import Plan

    threads: set[str] = set()
    at_once = module.at_once

    def noted(session: Session, items: list[StepWrite]) -> list[Answer] | None:
        threads.add(threading.current_thread().name)
        return at_once(session, items)

    monkeypatch.setattr(module, "at_once", noted)
    job = jobs.three_steps.enqueue(marks="/dev/null")
    Child(Plan("default", threads=2, once=True, schedules=False)).serve()
    job.refresh_from_db()
    assert job.status == "completed"
    assert threads and all(name.startswith("jobs-") for name in threads)
