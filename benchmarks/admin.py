"""How long the admin's pages take over millions of rows: ``python -m benchmarks.admin``.

Makes a PostgreSQL of its own, fills it by SQL and removes it at the end. Each page is asked for
once to warm up, then five times. Told are the median of the server's time, which is processor time
of the page plus the time of its statements, and the number of statements. ``--minutes`` is the time
for filling: with less time fewer rows are made, and said.
"""

from __future__ import annotations

# ruff: noqa: T201
import argparse
import os
import statistics
import time
from typing import Any

CHUNK = 250_000
STEPS_PER_RUN = 20
FILL_JOBS = """
INSERT INTO django_jobs_job (id, slug, kind, status, queue_name, lane, input, output, error, worker, created_at,
                             due_at, started_at, finished_at, lease_expires_at, attempts, run_after, gate)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(n %% 4096), 3, '0')
        || '8' || lpad(to_hex(n), 15, '0'))::uuid,
       CASE WHEN kind = 'workflow' THEN 'order.process' ELSE 'task_' || n %% 40 END, kind, status,
       'queue_' || n %% 8, n %% 320, '{"order_id": 4711}', CASE WHEN status = 'completed' THEN '{"ok": true}'::jsonb END,
       CASE WHEN status = 'failed' THEN jsonb_build_object('type', 'shop.Declined' || n %% 7, 'message', 'no funds',
                                                           'traceback', repeat('x', 400), 'code', null) END,
       CASE WHEN status <> 'pending' THEN gen_random_uuid() END, at, at,
       CASE WHEN status <> 'pending' THEN at + interval '2 s' END,
       CASE WHEN status IN ('completed', 'failed', 'canceled') THEN at + interval '2 s' + random() * interval '9 s' END,
       CASE WHEN status = 'running' THEN now() + interval '15 s' END, 1,
       CASE WHEN status = 'sleeping' THEN now() + interval '1 h' END,
       CASE WHEN status = 'sleeping' THEN 'wait' ELSE 'open' END
  FROM (SELECT n, now() - interval '30 days' + n * (interval '30 days' / %(jobs)s) AS at,
               CASE WHEN n %% 5 = 0 THEN 'workflow' ELSE 'task' END AS kind,
               CASE WHEN n > %(jobs)s - 200 THEN 'running' WHEN n %% 10 = 9 THEN 'pending'
                    WHEN n %% 100 = 1 THEN 'failed' WHEN n %% 100 = 2 THEN 'canceled'
                    WHEN n %% 100 = 3 THEN 'sleeping' ELSE 'completed' END AS status
          FROM generate_series(%(first)s, %(last)s) n) made
"""
FILL_STEPS = """
INSERT INTO django_jobs_taskstatus (job_id, step_key, step_id, slug, kind, status, input, output, started_at, finished_at)
SELECT j.id, md5(j.id::text || s), 'step-' || s, 'task_' || s, 'task', 'completed', '{}', '{}', j.started_at, j.finished_at
  FROM (SELECT id, started_at, finished_at FROM django_jobs_job WHERE kind = 'workflow' AND id > %(after)s) j,
       generate_series(1, %(steps)s) s
"""


FIND_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
 WHERE tablename IN ('django_jobs_job', 'django_jobs_taskstatus')
   AND indexname NOT IN (SELECT conname FROM pg_constraint)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.admin", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5_000_000)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--only", default="", help="measure pages whose name holds this")
    options = parser.parse_args()
    os.environ.update(TEST_DATABASE="postgresql", DJANGO_SETTINGS_MODULE="tests.settings")
    import django

    django.setup()
    from django.core.management import call_command

    from django_jobs.models import Job

    call_command("migrate", verbosity=0)
    if not Job.units.exists():
        print(fill(options.jobs, options.minutes * 60), flush=True)
    for line in measure(options.only):
        print(line, flush=True)


def fill(jobs: int, seconds: float) -> str:
    from django.db import connection

    begun = time.monotonic()
    made = 0
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("SET maintenance_work_mem = '512MB'")
        cursor.execute(FIND_INDEXES)
        indexes = cursor.fetchall()
        for name, _definition in indexes:
            cursor.execute(f"DROP INDEX {name}")
        for first in range(1, jobs + 1, CHUNK):
            last = min(first + CHUNK - 1, jobs)
            cursor.execute(
                "SELECT COALESCE(max(id::text), '00000000-0000-0000-0000-000000000000') FROM django_jobs_job"
            )
            after = cursor.fetchone()[0]
            cursor.execute(FILL_JOBS, {"first": first, "last": last, "jobs": jobs})
            cursor.execute(FILL_STEPS, {"after": after, "steps": STEPS_PER_RUN})
            made = last
            if time.monotonic() - begun > seconds:
                break
        for _name, definition in indexes:
            cursor.execute(definition)
        cursor.execute("VACUUM ANALYZE django_jobs_job")
        cursor.execute("VACUUM ANALYZE django_jobs_taskstatus")
        cursor.execute("SELECT count(*) FROM django_jobs_taskstatus")
        steps = cursor.fetchone()[0]
    return f"{made:,} jobs and {steps:,} steps in {time.monotonic() - begun:.0f} s"


def _fill_small_tables() -> None:
    """The catalogue of that size of a project: tasks, queues, workers, schedules."""
    from django.utils import timezone

    from django_jobs import ids
    from django_jobs.models import Queue, Schedule, Task, Worker

    now = timezone.now()
    for number in range(40):
        Task.objects.get_or_create(slug=f"task_{number}", kind="task")
    Task.objects.get_or_create(slug="order.process", kind="workflow")
    for number in range(8):
        Queue.objects.get_or_create(name=f"queue_{number}")
    codes = [[f"task_{number}", None] for number in range(40)]
    for number in range(Worker.objects.count(), 60):
        Worker.objects.create(
            id=ids.worker_id(), hostname=f"host-{number}", pid=number, codes=codes, started_at=now, heartbeat_at=now
        )  # fmt: skip
    for number in range(Schedule.objects.count(), 120):
        Schedule.objects.create(name=f"nightly-{number}", slug="task_1", expression="0 3 * * *")
    Worker.objects.update(heartbeat_at=now)


def measure(only: str = "") -> Any:
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext, setup_test_environment
    from django.urls import reverse

    from django_jobs.models import Job

    setup_test_environment()
    _fill_small_tables()
    client = Client()
    operator, _ = User.objects.get_or_create(username="operator", is_staff=True, is_superuser=True)
    client.force_login(operator)
    ids = list(Job.objects.order_by("pk").values_list("pk", flat=True)[1000:1001])
    run = Job.objects.filter(kind="workflow", status="completed").order_by("-pk").first()
    jobs, runs = (reverse(f"admin:django_jobs_{one}_changelist") for one in ("job", "workflowrun"))
    pages = {
        "dashboard, last hour": reverse("admin:django_jobs_overview_changelist"),
        "dashboard, 7 days": reverse("admin:django_jobs_overview_changelist") + "?period=7d",
        "jobs": jobs,
        "jobs, the deepest page": f"{jobs}?before={ids[0]}",
        "jobs, completed": f"{jobs}?status=completed",
        "jobs, failed": f"{jobs}?status=failed",
        "jobs, failed, deep": f"{jobs}?status=failed&before={ids[0]}",
        "jobs, pending": f"{jobs}?status=pending",
        "jobs, running": f"{jobs}?status=running",
        "jobs, sleeping": f"{jobs}?status=sleeping",
        "jobs of a task": f"{jobs}?slug=task_3",
        "jobs of a queue": f"{jobs}?queue=queue_5",
        "failed jobs of a task": f"{jobs}?status=failed&slug=task_1",
        "jobs of a task and a queue that never meet": f"{jobs}?slug=task_3&queue=queue_5",
        "jobs of the last day": f"{jobs}?since=1d",
        "jobs by a failure code that nobody has": f"{jobs}?code=none",
        "search by slug": f"{jobs}?q=task_1",
        "search by id": f"{jobs}?q={str(ids[0])[:13]}",
        "search for nothing": f"{jobs}?q=nonsense",
        "runs": runs,
        "runs, failed, of which there are none": f"{runs}?status=failed",
        "runs, completed": f"{runs}?status=completed",
        "runs, sleeping": f"{runs}?status=sleeping",
        "runs of a workflow": f"{runs}?slug=order.process",
        "runs, search by slug": f"{runs}?q=order",
        "runs, the deepest page": f"{runs}?before={ids[0]}",
        "a run": reverse("admin:django_jobs_workflowrun_change", args=[run.pk]) if run else jobs,
        "tasks": reverse("admin:django_jobs_task_changelist"),
        "queues": reverse("admin:django_jobs_queue_changelist"),
        "workers": reverse("admin:django_jobs_worker_changelist"),
        "schedules": reverse("admin:django_jobs_schedule_changelist"),
    }  # fmt: skip
    yield f"{'page':<46} {'ms':>8} {'of it SQL':>10} {'statements':>11}"
    for name, url in pages.items():
        if only not in name:
            continue
        client.get(url)
        took: list[tuple[float, float, int]] = []
        for _ in range(5):
            # Processor time of this process and the database's own: others may share the machine.
            begun = time.process_time()
            with CaptureQueriesContext(connection) as done:
                answer = client.get(url)
            sql = sum(float(one["time"]) for one in done.captured_queries)
            took.append((time.process_time() - begun + sql, sql, len(done)))
            assert answer.status_code == 200, name
            if sql > 3:
                break
        whole, sql, statements = (statistics.median(one) for one in zip(*took, strict=True))
        yield f"{name:<46} {whole * 1000:>8.0f} {sql * 1000:>10.0f} {statements:>11.0f}"
        slow = max(done.captured_queries, key=lambda one: float(one["time"]))
        if sql > 0.1 and os.environ.get("BENCHMARK_SQL"):
            yield f"    {slow['time']} s: {slow['sql'][:700]}"


if __name__ == "__main__":
    main()
