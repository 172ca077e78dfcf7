"""django_jobs, with its own worker command and default settings."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
from common import LOOK, per_job

ROOT = str(Path(__file__).resolve().parents[2])
SETTINGS = "benchmarks.project.settings"
#: How often 1,000 jobs are timed beside a backlog; the median counts.
BURSTS = 9


class Side(common.Side):
    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        # The package may be that of another commit; the measured project is always this one.
        self.roots = [*filter(None, [request.get("package")]), ROOT]
        self.environment = {
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "PYTHONPATH": os.pathsep.join(self.roots),
            "BENCHMARKS_DATABASE": json.dumps(self.database),
            "BENCHMARKS_CALLS": str(self.calls),
        }
        os.environ.update(self.environment)
        sys.path[:0] = self.roots
        #: The id of the first job of the last call for many: all later ones are larger.
        self.first: Any = None
        self.arguments: list[str] = request.get("arguments", [])
        self.noop = request.get("task", "noop")
        self.settings = " ".join(self.arguments) or "defaults"

    def prepare(self) -> None:
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)

    def start_workers(self) -> list[common.Worker]:
        from django_jobs.models import Worker

        command = [sys.executable, "-m", "django", "runjobs", "--processes", str(self.processes)]
        worker = common.Worker([*command, *self.arguments], **self.environment)
        while Worker.objects.count() < self.processes:
            if worker.process.poll() is not None:
                raise RuntimeError(f"runjobs ended with {worker.process.returncode}")
            time.sleep(0.05)
        return [worker]

    def definition(self, kind: str) -> tuple[Any, dict[str, Any]]:
        from benchmarks.project import jobs

        if kind.startswith("run"):
            handler = jobs.asteps if self.request.get("asynchronous") else jobs.steps
            return handler, {"number": int(kind[3:])}
        return getattr(jobs, self.noop if kind == "noop" else kind), {}

    def add(self, count: int, kind: str = "noop") -> None:
        definition, given = self.definition(kind)
        jobs = definition.enqueue_many([given] * count)
        self.first, self.last = jobs[0].pk, jobs[-1].pk

    def add_one(self, kind: str = "noop") -> None:
        definition, given = self.definition(kind)
        definition.enqueue(**given)

    def left(self) -> int:
        from django_jobs.models import Job

        # By key: what else the table holds must not be read again and again meanwhile.
        unfinished = Job.objects.filter(finished_at=None)
        return int(
            unfinished.filter(pk=self.last).exists()
            or unfinished.filter(pk__gte=self.first).exists()
        )

    def mark(self) -> Any:
        from django.utils import timezone

        return timezone.now()

    def span(self, mark: Any) -> tuple[int, float]:
        from django.db.models import Count, Max, Min

        from django_jobs.models import Job

        # By the index of the moments of the ends, however many rows there are.
        done = Job.objects.filter(finished_at__gte=mark)
        for failed in done.filter(status="failed")[:1]:
            raise RuntimeError(f"a job failed: {failed.error}")
        found = done.aggregate(n=Count("pk"), first=Min("started_at"), last=Max("finished_at"))
        return found["n"], common.between(found["first"], found["last"])

    def measure_pending(self) -> dict[str, Any]:
        """``size`` jobs of the kind ``backlog`` are there; then so many times 1,000 due ones."""
        self.backlog(self.request["backlog"], int(self.request["size"]))
        with self.working() as workers:
            before = self.spent(workers)
            rates = [self.rate(1_000) for _ in range(BURSTS)]
            used = per_job(before, self.spent(workers), 1_000 * BURSTS)
            return {"value": statistics.median(rates), **used}

    def measure_due(self) -> dict[str, Any]:
        """Jobs per second for the first ``count`` outcomes of ``size`` jobs that are due."""
        self.add(1)
        self.copy(str(self.first), int(self.request["size"]) - 1)
        mark = self.mark()
        workers = self.start_workers()
        try:
            while True:
                time.sleep(LOOK)
                done, seconds = self.span(mark)
                if done >= self.count:
                    return {"value": done / seconds}
        finally:
            for worker in workers:
                worker.stop()

    def backlog(self, kind: str, size: int) -> None:
        """One row as the engine itself makes it, then as many copies as are asked for."""
        from benchmarks.project import jobs
        from django_jobs import task
        from django_jobs.models import Job, Queue, Task

        if kind == "none":
            return
        if kind == "future":
            job = jobs.noop_each.using(delay=86_400).enqueue()
        elif kind == "paused queue":
            Queue.objects.get_or_create(name="stopped")[0].pause()
            job = jobs.noop.using(queue_name="stopped").enqueue()
        elif kind == "paused task":
            Task.objects.get_or_create(slug="paused", kind="task")[0].pause()
            job = jobs.paused.enqueue()
        elif kind == "blocked key":
            jobs.holder.enqueue()
            with self.running():
                while (run := Job.objects.get(slug="holder")).status != "sleeping":
                    if run.finished_at is not None:
                        raise common.Missing(f"the key's holder does not sleep: {run.error}")
                    time.sleep(LOOK)
            job = jobs.keyed.enqueue()
        elif kind == "no code":
            # Known to this process only, so no worker has it.
            job = task("gone")(lambda: None).enqueue()
        else:
            self.add(1)
            job = Job.objects.get(pk=self.first)
            with self.running():
                self.wait_until_done()
        self.copy(str(job.pk), size)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        workers = self.start_workers()
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()

    def copy(self, job_id: str, size: int) -> None:
        """Multiply a row under time-ordered ids, as version 7 UUIDs are."""
        from django.db import connection

        from django_jobs.models import Job

        names = [field.column for field in Job._meta.concrete_fields if field.column != "id"]
        # 48 bits of milliseconds, a version, a variant, and noise: older than all real ids.
        new_id = (
            "(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 10000000 + n), 12, '0')"
            " || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid"
        )
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO django_jobs_job (id, {', '.join(names)}) "
                f"SELECT {new_id}, {', '.join('job.' + name for name in names)} "
                "FROM django_jobs_job job, generate_series(1, %s) n WHERE job.id = %s",
                [size, job_id],
            )
            # As autovacuum does after such a load.
            cursor.execute("VACUUM ANALYZE django_jobs_job")

    def measure_memory(self) -> dict[str, Any]:
        """The idle worker's memory, after ``count`` more jobs where that is asked for."""
        with self.working() as workers:
            for _ in range(self.request.get("more", 0) // 20_000):
                self.add(20_000)
                self.wait_until_done()
            time.sleep(2)
            return {"value": common.memory(workers), "processes": len(common.family(workers))}

    def measure_bare(self) -> dict[str, Any]:
        """Plain Django with an open connection, without django_jobs."""
        command = [
            sys.executable, "-c",
            "import django; django.setup(); from django.db import connection as c;"
            "from django.core.management import ManagementUtility; c.ensure_connection();"
            "print('ready', flush=True); import time; time.sleep(600)",
        ]  # fmt: skip
        worker = common.Worker(command, **self.environment, BENCHMARKS_BARE="1")
        worker.wait_for_line()
        time.sleep(2)
        value = common.memory([worker])
        worker.stop()
        return {"value": value, "processes": 1}

    def measure_each(self) -> dict[str, Any]:
        """As :meth:`measure_jobs`; a commit for each outcome is counted, not believed."""
        with self.working():
            before = self.commits()
            rate = self.rate(self.count)
            commits = self.commits() - before
        if commits < self.count:
            raise common.Missing(f'acknowledge="each" made {commits} commits for {self.count} jobs')
        return {"value": rate}


if __name__ == "__main__":
    common.main(Side)
