"""What blocked jobs and big tenants cost: ``python -m benchmarks.limits [--database sqlite] [--jobs N]``.

blocked
    1,000 free jobs are claimed and finished by one worker, alone, and behind N jobs (100,000) that wait
    for a concurrency key, for a rate, or in a full queue. The figure is the ratio of the two times; it
    must stay below 2.
fair
    One tenant has N jobs waiting in a queue with ``fair_by="tenant"``; when a worker is busy with them,
    another tenant enqueues ten. The figure is the work of the first that is done between that moment
    and the end of the ten, beside their own; it must stay below 1 s.

Both run against a throw-away PostgreSQL with fsync on, or an SQLite file. Exit code 1 when a bound is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.runner import tell

FREE, TEN, ROUNDS = 1_000, 10, 3
#: Seconds that a job of the fairness measure takes.
WORK = 0.002


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits")
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--jobs", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCHMARKS_DATABASE"] = json.dumps(_database(options.database, Path(folder)))
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.project.settings"
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        worst = max(_blocked(kind, options.jobs) for kind in ("key", "rate", "queue"))
        delay = _fair(options.jobs)
    return int(worst > 2 or delay > 1)


def _database(vendor: str, folder: Path) -> dict[str, Any]:
    if vendor == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "jobs.sqlite3")}
    from benchmarks.server import Server

    return Server().create()


# --- blocked ----------------------------------------------------------------------------------


def _blocked(kind: str, jobs: int) -> float:
    """The time of the free ones behind ``jobs`` blocked ones, as a multiple of the time without."""
    _clear()
    alone = statistics.median(_take_free() for _ in range(ROUNDS))
    begun = time.perf_counter()
    _block(kind, jobs)
    enqueued = time.perf_counter() - begun
    behind = [_take_free() for _ in range(ROUNDS)]
    ratio = statistics.median(behind) / alone
    tell(
        f"blocked by {kind}: {FREE} free jobs alone {alone:.3f} s, behind {jobs} {statistics.median(behind):.3f} s "
        f"(first {behind[0]:.3f} s), ratio {ratio:.2f}; enqueued in {enqueued:.1f} s",
    )
    return ratio


def _block(kind: str, jobs: int) -> None:
    from benchmarks.project import jobs as tasks
    from django_jobs import RateLimit
    from django_jobs.models import Queue

    if kind == "key":
        task = tasks.noop.using(concurrency_key="the-only-one", queue_name="behind")
    elif kind == "rate":
        object.__setattr__(tasks.noop_each, "rate_limit", RateLimit("1/d"))
        task = tasks.noop_each.using(queue_name="behind")
    else:
        Queue.objects.update_or_create(name="behind", defaults={"limit": 1})
        task = tasks.noop.using(queue_name="behind")
    task.enqueue()
    # One holds what the others wait for: claimed, and never finished.
    assert len(_claim(10)) == 1
    for start in range(0, jobs, 10_000):
        task.enqueue_many([{} for _ in range(min(10_000, jobs - start))])


def _take_free() -> float:
    """Seconds in which one worker claims and finishes the free jobs, put behind the others."""
    from benchmarks.project import jobs as tasks
    from django_jobs.outcomes import Completed
    from django_jobs.store.record import Finish

    tasks.noop.using(priority=-1).enqueue_many([{} for _ in range(FREE)])
    done, items, begun = 0, [], time.perf_counter()
    while done < FREE:
        taken = _claim(100, items)
        items = [Finish(one, Completed("null")) for one in taken]
        done += len(taken)
    _claim(0, items)
    return time.perf_counter() - begun


def _claim(limit: int, items: Any = ()) -> list[Any]:
    """One round of a worker: record, look which lanes hold work, take."""
    from django_jobs import ids
    from django_jobs.store import claims
    from django_jobs.store.exchange import exchange
    from django_jobs.store.session import Session

    session = Session()
    session.committed(claims.open_gates)
    lanes = session.committed(claims.lanes)
    return exchange(session, items, lanes, worker=ids.worker_id(), limit=limit, lease=3600.0)[1]


# --- fair -------------------------------------------------------------------------------------


def _fair(jobs: int) -> float:
    """Seconds of the big tenant's work that stand between the small one's ten and their end."""
    from django.conf import settings

    from django_jobs import conf, task
    from django_jobs.models import Job
    from django_jobs.store import fairness
    from django_jobs.worker.child import Child
    from django_jobs.worker.intake import Plan

    _clear()
    settings.DJANGO_JOBS = {"QUEUES": {"mail": {"fair_by": "tenant"}}, "TENANT_FIELDS": ["org"]}
    conf.forget()
    fairness.forget()
    ended: list[tuple[str, float]] = []

    @task("benchmarks.letter", queue_name="mail")
    def letter(org: str) -> None:
        time.sleep(WORK)
        ended.append((org, time.perf_counter()))

    begun = time.perf_counter()
    for start in range(0, jobs, 10_000):
        letter.enqueue_many([{"org": "big"} for _ in range(min(10_000, jobs - start))])
    per_job = (time.perf_counter() - begun) / jobs
    child = Child(Plan("default", queues=["mail"], threads=4, schedules=False))
    worker = threading.Thread(target=child.serve)
    worker.start()
    _wait(lambda: len(ended) > 500)
    asked = time.perf_counter()
    letter.enqueue_many([{"org": "small"} for _ in range(TEN)])
    _wait(lambda: Job.objects.filter(tenant_1="small", status="completed").count() == TEN)
    child.stop()
    worker.join()
    last = max(moment for org, moment in ended if org == "small")
    between = sum(org == "big" and asked < moment < last for org, moment in list(ended))
    tell(
        f"fair share: ten jobs of one tenant behind {jobs} of another took {last - asked:.3f} s, with "
        f"{between} jobs ({between * WORK:.3f} s of work) of the other meanwhile; "
        f"enqueue {per_job * 1e6:.0f} µs a job in bulk",
    )
    return between * WORK


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def _clear() -> None:
    from django_jobs.models import Job, Permit, Queue
    from django_jobs.models.limits import RateStart, RateWait

    for model in (Job, Permit, Queue, RateStart, RateWait):
        model._base_manager.all()._raw_delete("default")  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
