"""RabbitMQ and Amazon SQS, each with a real worker and a real beat.

They take long to start, so they are for ``.ci/run``: ``TEST_REQUIRE=rabbitmq,sqs`` runs these tests,
and makes it a failure that one of them cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from django_jobs.celery import publishing
from django_jobs.models import Job
from tests.app import jobs
from tests.celery.brokers import SQS, RabbitMQ, is_required
from tests.celery.chaos import SETTINGS, Storm
from tests.celery.processes import Beat, CeleryProcess, CeleryWorker
from tests.engine.processes import eventually, lines

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once, pytest.mark.timeout(600)]
KINDS: dict[str, Any] = {"rabbitmq": RabbitMQ, "sqs": SQS}


@pytest.fixture(params=sorted(KINDS))
def other(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A broker that is not Valkey, started."""
    name, kind = request.param, KINDS[request.param]
    if not is_required(name):
        pytest.skip(f"{name} is left to .ci/run; TEST_REQUIRE={name} runs it here")
    assert kind.is_there(), f"{name} is required, and not installed here"
    for key, value in SQS.CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    server = kind()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def other_app(other: Any) -> Iterator[Any]:
    """This process's Celery app on that broker."""
    from celery import Celery, _state

    from django_jobs.celery import connect, disconnect

    before = _state._tls.current_app, _state.default_app
    app = Celery("elsewhere", broker=other.url)
    for name, value in getattr(other, "settings", {}).items():
        app.conf[name.lower()] = value
    app.set_current()
    app.set_default()
    connect()
    publishing._gone_until = 0.0
    yield app
    disconnect()
    app.close()
    _state._tls.current_app = before[0]
    _state.set_default_app(before[1])


@pytest.fixture
def start(
    other: Any, processes: list[CeleryProcess], tmp_path: Path
) -> Callable[[type[CeleryProcess]], CeleryProcess]:
    def begin(kind: type[CeleryProcess]) -> CeleryProcess:
        log = tmp_path / f"{kind.__name__}{len(processes)}.log"
        settings = getattr(other, "settings", None)
        started = kind(log, other.url, celery=settings, **SETTINGS)  # type: ignore[arg-type]
        processes.append(started)
        return started

    return begin


def test_jobs_on_another_broker(
    other: Any, other_app: Any, start: Any, marks: Path, settings: Any
) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, **SETTINGS}
    start(Beat)
    worker = start(CeleryWorker)
    assert jobs.add.using(runner="celery").enqueue(a=1, b=2).result(timeout=120) == 3
    flaky = jobs.flaky.using(runner="celery").enqueue(marks=str(marks), failures=2)
    assert flaky.result(timeout=60) == "done"
    later = jobs.add.using(runner="celery", delay=0.5).enqueue(a=2, b=2)
    assert later.result(timeout=60) == 4
    marks.unlink()
    storm = Storm(other_app, other, marks, lambda: start(CeleryWorker), workers=[worker])
    Job.objects.all().delete()
    storm.enqueue(12)
    storm.double()
    eventually(lambda: len(lines(marks)) > 4, "the jobs run", 120)
    storm.kill_worker()
    storm.kill_process()
    if isinstance(other, RabbitMQ):
        storm.restart_broker()
    storm.double()
    storm.wait(180)
    storm.check()
    print(storm.report())
