"""Three workers and two beats on the same schedules; ``python -m tests.long schedules_fleet`` is the long form."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.celery.brokers import Valkey
from tests.schedules.fleet import Fleet, live_through, simulated_time
from tests.support import vendor

pytestmark = pytest.mark.django_db(transaction=True)
#: How long the weeks are that are lived through, and how many of their steps meet with a fault.
WEEKS = float(os.environ.get("TEST_FLEET_WEEKS") or 0.15)
CHANCE = float(os.environ.get("TEST_FLEET_CHANCE") or 0.6)


@pytest.fixture(autouse=True)
def frozen() -> None:
    """Real time in this process; the processes of the fleet have a simulated one."""


@pytest.fixture
def broker() -> Iterator[Valkey]:
    server = Valkey()
    server.start()
    yield server
    server.kill()


def test_p7_three_workers_and_two_beats_fire_every_slot_once(
    broker: Valkey, tmp_path: Path
) -> None:
    if vendor() == "mysql":
        pytest.skip("the server's clock cannot be moved")
    dice = random.Random(int(os.environ.get("TEST_FLEET_SEED") or 6))
    with simulated_time(tmp_path) as clock:
        fleet = Fleet(clock, tmp_path, broker.url, dice)
        try:
            live_through(fleet, WEEKS, chance=CHANCE)
        finally:
            fleet.thaw()
            fleet.kill_all()
    assert sum(fleet.faults.values()) > 1, "something befell them"
    print(fleet.report(WEEKS))
