"""The table of what a child really runs, as its supervisor reads it."""

from __future__ import annotations

import threading

from django_jobs import ids
from django_jobs.worker.charge import Charges


def test_what_runs_is_charged_until_it_ends() -> None:
    charges = Charges()
    one, two = ids.job_ids(2)
    places = charges.enter(one, 1), charges.enter(two, 3)
    assert charges.running() == {(one, 1), (two, 3)}
    charges.leave(places[0])
    assert charges.running() == {(two, 3)}
    charges.leave(places[1])
    assert charges.running() == set()
    assert charges.entered == 2


def test_executions_beyond_the_table_are_counted_and_not_charged() -> None:
    charges = Charges(slots=2)
    known = ids.job_ids(4)
    places = [charges.enter(job_id, 1) for job_id in known]
    assert charges.running() == {(job_id, 1) for job_id in known[:2]}
    assert charges.entered == 4
    for place in places:
        charges.leave(place)
    assert charges.running() == set()
    charges.enter(known[3], 1)
    assert charges.running() == {(known[3], 1)}


def test_no_execution_is_lost_between_threads() -> None:
    charges = Charges(slots=3)

    def work() -> None:
        for job_id in ids.job_ids(500):
            charges.leave(charges.enter(job_id, 1))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert charges.running() == set()
    assert charges.entered == 3000
