"""Weeks of schedules with kills and clock jumps; ``python -m tests.long schedules_soak`` has real processes."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError, connection

from django_jobs import failpoints, handle_schedules
from django_jobs.models import Job, Schedule
from django_jobs.scheduling import ticking
from django_jobs.store import schedules
from django_jobs.store.session import Session
from django_jobs.testing import clock
from tests.schedules import soak
from tests.schedules.test_ticking import at
from tests.support import vendor

pytestmark = pytest.mark.django_db(transaction=True)


def test_p7_three_schedulers_with_kills_and_clock_jumps_fire_every_slot_once() -> None:
    faults, kills = soak.run_in_threads(1.5, schedulers=3, seed=11)
    assert faults == []
    assert kills > 10, "the schedulers were killed"


@pytest.mark.parametrize("point", soak.POINTS)
def test_t2_a_scheduler_that_dies_at_an_edge_loses_and_doubles_nothing(point: str) -> None:
    Schedule.objects.create(name="own", slug="echo", expression="@hourly")
    clock.freeze(at(9))

    def die() -> None:
        raise soak.Killed

    with failpoints.at(point, die), pytest.raises(soak.Killed):
        handle_schedules()
    made = Job.objects.count()
    assert made == (point == "schedule.after_commit")
    assert handle_schedules().fired == 1 - made
    assert [job.slot for job in Job.objects.all()] == [at(9)]


def test_w2_a_commit_whose_answer_was_lost_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    Schedule.objects.create(name="own", slug="echo", expression="@hourly")
    clock.freeze(at(9))
    session = Session(through_django=True)
    lost = []

    class Unanswered(OperationalError):
        """As a driver reports a link that broke while COMMIT was under way."""

    limited = Session.limited_transaction

    def unanswered(self: Session, seconds: float) -> Any:
        transaction = limited(self, seconds)

        class Once:
            def __enter__(self) -> None:
                transaction.__enter__()

            def __exit__(self, *error: Any) -> bool | None:
                transaction.__exit__(*error)
                if not lost:
                    lost.append(1)
                    raise Unanswered("server closed the connection unexpectedly")
                return None

        return Once()

    monkeypatch.setattr(Session, "limited_transaction", unanswered)
    monkeypatch.setattr(type(session.dialect), "is_lost", lambda self, e: isinstance(e, Unanswered))
    _, [row] = schedules.due(session, None)
    report = ticking._fire(session, row, at(9))
    assert (report.fired, lost) == (1, [1])
    assert Job.objects.count() == 1


def test_two_schedulers_that_saw_the_same_slot_make_one_job() -> None:
    Schedule.objects.create(name="own", slug="echo", expression="@hourly")
    clock.freeze(at(9))
    session = Session(through_django=True)
    _, [first] = schedules.due(session, None)
    _, [second] = schedules.due(session, None)
    reports = [ticking._fire(session, row, at(9)) for row in (first, second)]
    assert [report.fired for report in reports] == [1, 0]
    assert Job.objects.count() == 1


@pytest.mark.skipif(
    vendor() != "postgresql", reason="only PostgreSQL ends a transaction that idles"
)
def test_l9_a_scheduler_that_freezes_within_its_transaction_does_not_keep_the_slot() -> None:
    Schedule.objects.create(name="own", slug="echo", expression="@hourly")
    clock.freeze(at(9))
    limits: list[str] = []

    def look() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SHOW idle_in_transaction_session_timeout")
            limits.extend(cursor.fetchone())

    with failpoints.at("schedule.before_commit", look):
        assert handle_schedules().fired == 1
    look()
    assert limits == ["15s", "0"]
