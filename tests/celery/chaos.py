"""Celery under faults: workers killed, the broker restarted and emptied, messages doubled."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from django.core.management import call_command

from django_jobs.celery import publishing
from django_jobs.models import Job
from django_jobs.store.outbox import Call
from tests.app import jobs
from tests.celery.brokers import Server
from tests.celery.processes import CeleryWorker
from tests.engine.processes import eventually, lines

#: Lost messages are sent again soon, and no job is failed for the kills that hit it.
SETTINGS = {"CELERY_REPUBLISH": 1.5, "CRASH_LIMIT": 100}


@dataclass
class Storm:
    """A fleet, what befalls it, and what must be true of its jobs all the same."""

    app: Any
    broker: Server
    marks: Path
    start_worker: Callable[[], CeleryWorker]
    workers: list[CeleryWorker] = field(default_factory=list)
    enqueued: list[Job] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    dice: random.Random = field(default_factory=random.Random)

    def enqueue(self, count: int) -> None:
        """Runs of three steps, tasks that fail once, and plain tasks, in turn."""
        for _ in range(count):
            word = f"{len(self.enqueued)}"
            kind = len(self.enqueued) % 4
            if kind == 3:
                task: Any = jobs.dawdle.using(runner="celery")
            else:
                task = jobs.watched_steps.using(runner="celery", delay=0.2 if kind == 2 else None)
            self.enqueued.append(task.enqueue(marks=str(self.marks), word=word))

    # --- faults -------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        """kill -9 of a worker with all its processes; another one takes its place."""
        self.faults["worker killed"] += 1
        victim = self.workers.pop(self.dice.randrange(len(self.workers)))
        victim.kill_all()
        self.workers.append(self.start_worker())

    def kill_process(self) -> None:
        """kill -9 of one process of a pool, in the middle of whatever it does."""
        children = [pid for worker in self.workers for pid in children_of(worker.pid)]
        if children:
            self.faults["process killed"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.dice.choice(children), signal.SIGKILL)

    def flush(self) -> None:
        """FLUSHALL: every message is gone, unacknowledged ones too."""
        self.faults["FLUSHALL"] += 1
        with contextlib.suppress(ConnectionError):
            self.broker.client().flushall()  # type: ignore[attr-defined]

    def restart_broker(self) -> None:
        """kill -9 of the broker; what was enqueued meanwhile is published later."""
        self.faults["broker restarted"] += 1
        self.broker.kill()
        self.enqueue(2)
        self.broker.start()

    def double(self) -> None:
        """Messages for jobs of every status, several times each."""
        self.faults["messages doubled"] += 1
        chosen = self.dice.sample(self.enqueued, min(len(self.enqueued), 10))
        calls = [Call(job.pk, job.slug, job.version, job.queue_name, None) for job in chosen]
        publishing.publish(self.app, calls * 3)

    def supervise(self) -> bool:
        """Replace workers that ended by themselves, as systemd or Docker do.

        Celery's own worker ends when its Redis is killed while it acknowledges a message.
        """
        for place, worker in enumerate(self.workers):
            if worker.process.poll() is not None:
                self.faults["worker gave up"] += 1
                self.workers[place] = self.start_worker()
        return True

    # --- the end ------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Until every job has ended."""
        live = Job.objects.filter(finished_at__isnull=True)
        eventually(lambda: self.supervise() and not live.exists(), "every job has ended", seconds)

    def check(self) -> None:
        """One outcome for every job, no step run again after its record, and a sound database."""
        ended = Counter(Job.objects.values_list("status", flat=True))
        assert ended == {"completed": len(self.enqueued)}, ended
        assert set(Job.objects.values_list("attempts", flat=True)) == {1}
        seen = lines(self.marks)
        assert [line for line in seen if line.startswith("again")] == []
        ran = {tuple(line.split()[1:]) for line in seen if line.startswith("ran")}
        for number, job in enumerate(self.enqueued):
            if job.kind == "workflow":
                assert {(str(number), step) for step in ("a", "b", "c")} <= ran, number
                job.refresh_from_db()
                assert job.output == ["a", "b", "c"]
            else:
                assert str(number) in seen
        said = StringIO()
        call_command("jobs_check", stdout=said)

    def report(self) -> str:
        crashes = sum(Job.objects.values_list("crashes", flat=True))
        runs = sum(line.startswith("ran") for line in lines(self.marks))
        needed = 3 * sum(job.kind == "workflow" for job in self.enqueued)
        said = ", ".join(f"{count} × {name}" for name, count in sorted(self.faults.items()))
        return (
            f"{len(self.enqueued)} jobs, each with one outcome; {said}; {crashes} crashes counted; "
            f"{runs} executions of {needed} steps, none after its record"
        )


def children_of(pid: int) -> list[int]:
    """The processes of a worker's pool."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def rage(storm: Storm, seconds: float, pause: float = 1.0) -> None:
    """Faults in random order for so many seconds, with new jobs between them."""
    kinds = [storm.kill_worker, storm.kill_process, storm.kill_process, storm.flush, storm.double]
    if hasattr(storm.broker, "client"):
        kinds.append(storm.restart_broker)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        storm.enqueue(10)
        time.sleep(storm.dice.uniform(0, pause))
        storm.supervise()
        storm.dice.choice(kinds)()
