"""Rows for the admin to show: a few jobs of every kind, with all that can be recorded of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django_jobs import clock, ids
from django_jobs.lifecycle import FINAL, Kind, Status, StepKind
from django_jobs.models import (
    Attempt,
    Event,
    HistoryEntry,
    Job,
    LogLine,
    Queue,
    Schedule,
    Task,
    TaskStatus,
    Worker,
)

TRACEBACK = """Traceback (most recent call last):
  File "shop/jobs.py", line 41, in charge_card
    return provider.charge(order, amount)
  File "shop/payments.py", line 88, in charge
    raise CardDeclined("insufficient funds")
shop.payments.CardDeclined: insufficient funds
"""
ERROR = {
    "type": "shop.payments.CardDeclined",
    "message": "insufficient funds for order 4711; the bank asks to try another card",
    "traceback": TRACEBACK,
    "code": None,
}


def make_job(slug: str = "charge_card", status: str = Status.PENDING, **values: Any) -> Job:
    """One stored job in this status, with times that fit to it."""
    now = clock.now()
    given: dict[str, Any] = {
        "slug": slug, "status": status, "lane": 1, "created_at": now - timedelta(minutes=5),
        "due_at": now - timedelta(minutes=5), "input": {"order_id": 4711, "amount": "9.90"},
    }  # fmt: skip
    if status not in (Status.PENDING, Status.PAUSED):
        given["started_at"] = now - timedelta(seconds=90)
    if status == Status.RUNNING:
        given["lease_expires_at"] = now + timedelta(seconds=15)
    if status in FINAL:
        given["finished_at"] = now - timedelta(seconds=12)
    return Job.units.create(**{**given, **values})


def make_worker(**values: Any) -> Worker:
    now = clock.now()
    return Worker.objects.create(
        **{
            "id": ids.worker_id(), "hostname": "web-1", "pid": 4242, "queues": [], "threads": 4,
            "codes": [["charge_card", None], ["order", "2"]], "jobs_in_hand": 1, "memory": 96_000_000,
            "started_at": now - timedelta(hours=3), "heartbeat_at": now, **values,
        }
    )  # fmt: skip


def make_schedule(name: str = "hourly", **values: Any) -> Schedule:
    """A schedule of the operator's for a task of the tests' app."""
    given: dict[str, Any] = {
        "name": name, "slug": "add", "expression": "0 * * * *", "input": {"a": 1, "b": 2},
        "timezone": "Europe/Zurich",
    }  # fmt: skip
    return Schedule.objects.create(**{**given, **values})


@dataclass
class Run:
    """A failed workflow run with steps, tries, log lines and history."""

    job: Job
    steps: list[TaskStatus]
    worker: Worker


def make_run(slug: str = "order.process", text: str = "", error: Any = ERROR, **values: Any) -> Run:
    """A failed run; ``text`` is put into every field that takes one."""
    now = clock.now()
    worker = make_worker(**({"hostname": text[:200]} if text else {}))
    job = make_job(
        slug, Status.FAILED, kind=Kind.WORKFLOW, error=error, worker=worker.pk, attempts=3, crashes=1,
        meta={"note": text or "first order", "password": "hunter2"}, progress=0.66,
        context={"customer": text or "Ada"}, history_length=3, **values,
    )  # fmt: skip
    steps = []
    for number, (name, kind, status) in enumerate(
        [
            ("reserve", StepKind.TASK, "completed"),
            ("sum-up", StepKind.INLINE, "completed"),
            ("charge", StepKind.TASK, "failed"),
        ]
    ):
        steps.append(
            TaskStatus.objects.create(
                job=job, step_key=ids.digest(slug, name), step_id=f"{name}{text}", kind=kind,
                slug="inline" if kind == StepKind.INLINE else f"{name}_task{text}"[:200],
                status=status, input={"order_id": 4711, "api_key": "k-123", "text": text},
                output={"ok": True, "text": text} if status == "completed" else None,
                error=error if status == "failed" else None, total_tried=number + 1, worker=worker.pk,
                started_at=now - timedelta(seconds=80 - number), finished_at=now - timedelta(seconds=79 - number),
            )
        )  # fmt: skip
    TaskStatus.objects.create(
        job=job, step_key=ids.digest(slug, "nested"), step_id=f"charge/nested{text}", kind=StepKind.INLINE,
        slug="inline", status="running", parent_key=steps[2].step_key, started_at=now, total_tried=1,
        event_name=text or "card.answer", wake_at=now + timedelta(hours=1),
    )  # fmt: skip
    for number in (1, 2, 3):
        Attempt.objects.create(
            job=job, step=steps[2] if number < 3 else None, number=number, status="failed", error=error,
            worker=worker.pk, started_at=now - timedelta(seconds=60 - number), finished_at=now - timedelta(seconds=50),
        )  # fmt: skip
    LogLine.objects.create(job=job, at=now, level="INFO", message=text or "reserved 3 items")
    LogLine.objects.create(job=job, at=now, level="ERROR", message=text or "the bank said no")
    for number, (event, frm, to) in enumerate(
        [("retrying", "running", "sleeping"), ("woken", "sleeping", "pending"), ("failed", "running", "failed")],
        1,
    ):  # fmt: skip
        HistoryEntry.objects.create(
            job=job, n=number, at=now - timedelta(seconds=60 - 10 * number), event=event, from_status=frm,
            to_status=to, worker=worker.pk, step="reserve_task/reserve", attempt=number,
            actor=text[:200] or None, detail={"error": error, "delay": 5.5, "reason": text},
        )  # fmt: skip
    Event.objects.create(
        job=job, name=(text or "card.answer")[:200], payload={"text": text}, sent_at=now
    )
    return Run(job, steps, worker)


def make_graph(slug: str = "order.ship") -> Job:
    """A run of a graph that came as data, half done."""
    names = [
        ("validate", []),
        ("charge", ["validate"]),
        ("reserve", ["validate"]),
        ("ship", ["charge", "reserve"]),
    ]
    steps = [
        {
            "id": name,
            "url": f"https://shop.example.org/{name}",
            "dependsOn": after,
            "parallel": True,
        }
        for name, after in names
    ]
    job = make_job(
        slug, Status.RUNNING, kind=Kind.DAG, spec={"id": slug, "steps": steps}, progress=0.5
    )
    now = clock.now()
    for number, (name, status) in enumerate(
        (("validate", "completed"), ("charge", "completed"), ("reserve", "running"))
    ):
        begun = now - timedelta(seconds=60 - 20 * number)
        TaskStatus.objects.create(
            job=job, step_key=ids.digest(slug, name), step_id=name, slug="http", kind=StepKind.HTTP, status=status,
            input={"order_id": 4711}, output={"ok": True} if status == "completed" else None, total_tried=1,
            started_at=begun, finished_at=begun + timedelta(seconds=15) if status == "completed" else None,
        )  # fmt: skip
    return job


def make_catalogue(text: str = "") -> None:
    now = clock.now()
    for slug, kind in (
        ("charge_card", "task"),
        ("order.process", "workflow"),
        ("mail.welcome", "task"),
    ):
        Task.objects.create(
            slug=f"{slug}{text}", kind=kind, label=text or slug.title(), description=text or "Does what it says.",
            versions=[text or "1"], last_seen=now,
            input_schema={"type": "object", "properties": {"order_id": {"type": "integer", "title": text}}},
        )  # fmt: skip
    for name in ("default", "mail", "slow"):
        Queue.objects.create(
            name=f"{name}{text}", limit=4, fair_by=text or None, paused=name == "slow"
        )


def make_everything() -> Run:
    """A list with something in every status."""
    make_catalogue()
    for status in Status:
        make_job(
            "mail.welcome" if status == Status.PENDING else "charge_card", status,
            error=ERROR if "failed" in status else None, queue_name="mail", attempts=2,
            progress=0.4 if status == Status.RUNNING else None, output={"charge_id": "ch_1"},
        )  # fmt: skip
    run = make_run()
    child = make_job("invoice", Status.COMPLETED, kind=Kind.WORKFLOW, parent=run.job, attempts=1)
    make_job("order.process", Status.COMPLETED, kind=Kind.WORKFLOW, rerun_of=run.job, attempts=1)
    Job.units.filter(pk=child.pk).update(worker=run.worker.pk)
    return run


def make_busy_hour(seed: int = 7) -> Run:
    """A shop at work: an hour of jobs with a bad quarter of one, some that wait, and a run to look at."""
    from random import Random

    chance = Random(seed)
    make_catalogue()
    now = clock.now()
    for queue in ("default", "mail"):
        Queue.objects.filter(name=queue).update(limit=None)
    make_worker(hostname="web-2", pid=4711, jobs_in_hand=2)
    for number in range(420):
        ended = now - timedelta(seconds=60 * 60 * (1 - number / 420) + 1)
        took = timedelta(seconds=chance.lognormvariate(0.2, 0.7))
        waited = timedelta(seconds=chance.lognormvariate(-1.5, 0.8))
        slug, queue = chance.choice(
            [("charge_card", "default"), ("mail.welcome", "mail"), ("report.build", "default")]
        )
        bad = 180 < number < 240 and slug == "charge_card"
        make_job(
            slug, Status.FAILED if bad else Status.COMPLETED, queue_name=queue, attempts=3 if bad else 1,
            error=ERROR if bad else None, created_at=ended - took - waited, due_at=ended - took - waited,
            started_at=ended - took, finished_at=ended,
        )  # fmt: skip
    for number in range(9):
        make_job("report.build", queue_name="slow", created_at=now - timedelta(minutes=number))
    make_job("charge_card", Status.RUNNING, progress=0.4, started_at=now - timedelta(seconds=8))
    make_job(
        "mail.welcome",
        Status.SLEEPING,
        queue_name="mail",
        run_after=now + timedelta(minutes=5),
        attempts=1,
    )
    make_schedule("nightly", expression="0 3 * * *")
    return make_run()
