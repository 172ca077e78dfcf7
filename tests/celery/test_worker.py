"""A real Celery worker of two processes and a real beat, on a real Valkey."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Exchange
from kombu import Queue as BrokerQueue

from django_jobs import JobCanceled, JobFailed, ids
from django_jobs.celery import publishing
from django_jobs.models import Attempt, Job, OutboxMessage, Queue
from django_jobs.store.outbox import Call
from tests.app import jobs
from tests.app.graphs import celery_graph, wide
from tests.celery.brokers import Valkey
from tests.celery.processes import Beat, CeleryWorker
from tests.engine.processes import eventually, lines

pytestmark = pytest.mark.django_db(transaction=True)
#: Seconds within which what is not about recovery must happen, on a busy machine.
SOON = 40


@pytest.fixture(scope="module")
def fleet(
    valkey: Valkey, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CeleryWorker]:
    """A worker and a beat that live as long as these tests."""
    folder = tmp_path_factory.mktemp("celery")
    valkey.client().flushall()
    beat = Beat(folder / "beat.log", valkey.url)
    worker = CeleryWorker(folder / "worker.log", valkey.url)
    yield worker
    worker.kill_all()
    beat.kill_all()


@pytest.fixture(autouse=True)
def connected(fleet: CeleryWorker, celery_app: Any) -> Iterator[None]:
    publishing._gone_until = 0.0
    yield
    print(fleet.output()[-6000:])  # shown where a test fails


@pytest.fixture
def broker(valkey: Valkey) -> Valkey:
    """Not emptied: its worker would wait for messages that are gone."""
    return valkey


def on_celery(task: Any, **options: Any) -> Any:
    return task.using(runner="celery", **options)


def send_again(app: Any, job: Job, times: int = 1) -> None:
    """Duplicates, as a broker makes them."""
    call = Call(job.pk, job.slug, job.version, job.queue_name, None)
    assert publishing.publish(app, [call] * times) == {}


def test_a_job_runs_and_its_result_comes_back(fleet: CeleryWorker) -> None:
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3
    assert on_celery(jobs.slow_add).enqueue(a=1, b=2).result(timeout=SOON) == 3
    price = on_celery(jobs.price).enqueue(amount="1.50")
    assert str(price.result(timeout=SOON)) == "3.00"
    assert not OutboxMessage.objects.exists()


def test_a_failure_is_stored_and_retried_by_the_database(fleet: CeleryWorker, marks: Path) -> None:
    flaky = on_celery(jobs.flaky).enqueue(marks=str(marks), failures=2)
    failing = on_celery(jobs.fail).enqueue(text="no luck")
    with pytest.raises(JobFailed, match="no luck"):
        failing.result(timeout=SOON)
    assert flaky.result(timeout=SOON) == "done"
    flaky.refresh_from_db()
    assert (flaky.attempts, flaky.crashes) == (3, 0)


def test_a_workflow_keeps_its_steps(fleet: CeleryWorker, marks: Path) -> None:
    run = on_celery(jobs.three_steps).enqueue(marks=str(marks))
    assert run.result(timeout=SOON) == {"steps": ["first", "second", "third"]}
    assert lines(marks) == ["first", "second", "third"]
    gathered = on_celery(jobs.gathered).enqueue(marks=str(marks))
    assert gathered.result(timeout=SOON)[1] == [1, 2, 3]
    asynchronous = on_celery(jobs.async_steps).enqueue(n=2)
    assert asynchronous.result(timeout=SOON) == 6


def test_a_graph_and_a_child_run_come_to_their_ends(fleet: CeleryWorker) -> None:
    run = on_celery(celery_graph).enqueue(n=3)
    assert run.result(timeout=SOON) == {"one": 4, "two": 5, "both": 9}


def test_steps_of_a_graph_are_shared_by_the_processes(fleet: CeleryWorker, marks: Path) -> None:
    run = on_celery(wide).enqueue(marks=str(marks))
    assert run.result(timeout=SOON)["sum"] == 200
    done = [line.split() for line in lines(marks)]
    assert len(done) == 202
    assert len({pid for _, pid in done}) == 2
    units = Job.units.filter(parent=run, kind="step")
    assert set(units.values_list("runner", flat=True)) == {"celery"}


def test_delays_are_kept_by_the_database(fleet: CeleryWorker) -> None:
    job = on_celery(jobs.add, delay=0.5).enqueue(a=1, b=2)
    assert job.result(timeout=SOON) == 3
    assert job.started_at >= job.run_after


def test_duplicates_and_unknown_ids_change_nothing(
    fleet: CeleryWorker, celery_app: Any, marks: Path
) -> None:
    job = on_celery(jobs.mark).enqueue(marks=str(marks), word="once")
    send_again(celery_app, job, 5)
    job.result(timeout=SOON)
    send_again(celery_app, job, 2)
    unknown = Job(id=ids.job_id(), slug="add", queue_name="default")
    send_again(celery_app, unknown)
    celery_app.send_task("django_jobs.execute", args=["no id"])
    of_others = jobs.mark.enqueue(marks=str(marks), word="of another runner")
    send_again(celery_app, of_others)
    # All of these are behind us once a later one has run.
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3
    eventually(lambda: "no id" in fleet.output(), "the bad id is logged")
    assert lines(marks) == ["once"]
    of_others.refresh_from_db()
    assert (of_others.status, of_others.fence) == ("pending", 0)


def test_a_message_that_is_not_json_is_refused_unread(
    fleet: CeleryWorker, celery_app: Any, marks: Path
) -> None:
    with celery_app.connection_for_write() as link:
        queue = BrokerQueue("celery", Exchange("celery"), "celery")
        job_id = str(ids.job_id())
        with link.Producer() as producer:
            producer.publish(
                b"cbuiltins\nprint\n(Vunpickled\ntR.",
                exchange=queue.exchange, routing_key="celery", declare=[queue],
                content_type="application/x-python-serialize", content_encoding="binary",
                headers={"task": "django_jobs.execute", "id": job_id, "lang": "py", "root_id": job_id,
                         "argsrepr": "", "kwargsrepr": "", "eta": None, "expires": None},
            )  # fmt: skip
    eventually(lambda: "was refused unread" in fleet.output(), "the message is refused")
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3


def test_a_key_lets_one_run_at_a_time_and_the_next_is_told(
    fleet: CeleryWorker, marks: Path, release: Path
) -> None:
    keyed = on_celery(jobs.hold, concurrency_key="one")
    first = keyed.enqueue(marks=str(marks), release=str(release))
    eventually(lambda: lines(marks), "the first runs", SOON)
    second = keyed.enqueue(marks=str(marks), release=str(release))
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3
    assert len(lines(marks)) == 1
    release.touch()
    assert first.result(timeout=SOON) == second.result(timeout=SOON) == "released"


def test_a_paused_queue_holds_and_goes_on(fleet: CeleryWorker) -> None:
    queue = Queue.objects.get_or_create(name="held")[0]
    queue.pause()
    job = on_celery(jobs.add, queue_name="held").enqueue(a=1, b=2)
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3
    job.refresh_from_db()
    assert job.status == "pending"
    queue.resume()
    assert job.result(timeout=SOON) == 3


def test_a_cancel_interrupts_and_a_late_result_is_dropped(
    fleet: CeleryWorker, marks: Path, release: Path
) -> None:
    job = on_celery(jobs.hold).enqueue(marks=str(marks), release=str(release))
    waiting = on_celery(jobs.wait_async).enqueue(marks=str(marks))
    eventually(lambda: len(lines(marks)) == 2, "both run", SOON)
    job.cancel()
    waiting.cancel()
    eventually(lambda: "interrupted" in lines(marks), "the async one is interrupted", SOON)
    release.touch()
    for one in (job, waiting):
        with pytest.raises(JobCanceled):
            one.result(timeout=SOON)
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3
    job.refresh_from_db()
    assert (job.status, job.output) == ("canceled", None)


def test_a_canceled_job_is_revoked_at_the_workers(fleet: CeleryWorker) -> None:
    # A worker that has not come up yet would miss the word.
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3
    Queue.objects.get_or_create(name="held")[0].pause()
    job = on_celery(jobs.add, queue_name="held").enqueue(a=1, b=2)
    job.cancel()
    said = f"Tasks flagged as revoked: {job.pk}"
    eventually(lambda: said in fleet.output(), "the worker is told", SOON)
    job.refresh_from_db()
    assert (job.status, job.attempts) == ("canceled", 0)


def test_a_time_limit_ends_the_job_and_then_the_process(
    fleet: CeleryWorker, marks: Path, release: Path
) -> None:
    job = on_celery(jobs.isolated_forever).enqueue(marks=str(marks))
    with pytest.raises(JobFailed, match=r"timed out after 0\.5 s"):
        job.result(timeout=SOON)
    pid = int(lines(marks)[0].split()[1])
    eventually(lambda: not _runs(pid), "the process is gone", SOON)
    job.refresh_from_db()
    assert (job.error["code"], job.crashes) == ("timeout", 0)
    # One that comes to its end within the grace costs no process.
    late = on_celery(jobs.runaway).enqueue(marks=str(marks), release=str(release))
    with pytest.raises(JobFailed, match=r"timed out after 0\.3 s"):
        late.result(timeout=SOON)
    release.touch()
    eventually(lambda: any(line.startswith("ended") for line in lines(marks)), "it ends", SOON)
    assert on_celery(jobs.add).enqueue(a=1, b=2).result(timeout=SOON) == 3


def test_a_job_whose_process_is_killed_runs_again_and_is_charged(
    fleet: CeleryWorker, marks: Path
) -> None:
    run = on_celery(jobs.deadly).enqueue(marks=str(marks), times=1)
    assert run.result(timeout=60) == "survived"
    run.refresh_from_db()
    assert (run.crashes, run.attempts) == (1, 1)
    assert lines(marks) == ["before", "dying"]
    [lost] = Attempt.objects.filter(job=run, status="lost")
    assert "stopped renewing its lease in step die" in lost.error["message"]


def test_a_job_that_kills_every_worker_is_failed(fleet: CeleryWorker) -> None:
    poison = on_celery(jobs.poison).enqueue()
    with pytest.raises(JobFailed):
        poison.result(timeout=120)
    poison.refresh_from_db()
    assert (poison.error["code"], poison.crashes) == ("crashed", 3)


def _runs(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]
    return False
