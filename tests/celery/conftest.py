from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.celery.brokers import Valkey
from tests.celery.processes import Beat, CeleryProcess, CeleryWorker
from tests.engine.conftest import as_before, marks, release  # noqa: F401


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A broker for all tests of this process."""
    server = Valkey()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def broker(valkey: Valkey) -> Valkey:
    """The same, emptied."""
    valkey.client().flushall()
    return valkey


@pytest.fixture
def celery_app(broker: Valkey) -> Iterator[Any]:
    """This process's Celery app, connected to the broker: what a web process has."""
    from celery import _state

    from django_jobs.celery import connect, disconnect
    from tests.celery.app import app

    before = _state._tls.current_app, _state.default_app
    app.conf.broker_url = broker.url
    app.set_current()
    app.set_default()
    connect()
    yield app
    disconnect()
    app.close()
    _state._tls.current_app = before[0]
    _state.set_default_app(before[1])


@pytest.fixture
def processes(transactional_db: None, tmp_path: Path) -> Iterator[list[CeleryProcess]]:
    """What a test starts; nothing of it outlives the test."""
    started: list[CeleryProcess] = []
    yield started
    for process in started:
        process.kill_all()
        print(f"--- {process.log.stem}", process.output()[-4000:], sep="\n")  # shown on failure


@pytest.fixture
def worker(
    processes: list[CeleryProcess], broker: Valkey, tmp_path: Path
) -> Callable[..., CeleryWorker]:
    """Start a ``celery worker`` of two processes, or as told."""

    def start(**settings: Any) -> CeleryWorker:
        log = tmp_path / f"worker{len(processes)}.log"
        started = CeleryWorker(log, settings.pop("broker", broker.url), **settings)
        processes.append(started)
        return started

    return start


@pytest.fixture
def beat(processes: list[CeleryProcess], broker: Valkey, tmp_path: Path) -> Callable[..., Beat]:
    """Start a ``celery beat``."""

    def start(**settings: Any) -> Beat:
        started = Beat(tmp_path / f"beat{len(processes)}.log", broker.url, **settings)
        processes.append(started)
        return started

    return start
