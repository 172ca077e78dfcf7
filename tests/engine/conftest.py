from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from django_jobs import clock
from django_jobs.definitions import registry
from tests.engine.processes import RunJobs

#: Tests of what only one database can get wrong.
ONLY_ON = {"mariadb": "test_mysql.py", "sqlite": "test_sqlite.py"}
collect_ignore = [
    name
    for database, name in ONLY_ON.items()
    if database != (os.environ.get("TEST_DATABASE") or "sqlite")
]


@pytest.fixture
def runjobs(transactional_db: None, tmp_path: Path) -> Iterator[Callable[..., RunJobs]]:
    """Start ``manage.py runjobs`` with arguments and settings; nothing of it outlives the test."""
    started: list[RunJobs] = []

    def start(*arguments: object, **settings: Any) -> RunJobs:
        worker = RunJobs(tmp_path / f"runjobs-{len(started)}.log", *arguments, **settings)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill_all()


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A file outside of the database in which handlers note what they do."""
    return tmp_path / "marks"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A file for which handlers wait; a test touches it to let them go on."""
    return tmp_path / "release"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Real time and the registered tasks of before, whatever a test did."""
    known = registry.snapshot()
    yield
    clock.reset()
    registry.restore(known)
