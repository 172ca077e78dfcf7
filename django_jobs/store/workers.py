"""Rows of worker processes: for people to see; recovery never depends on them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django_jobs import jsonvalues
from django_jobs.store.session import Session


def register(
    session: Session,
    worker: UUID,
    *,
    supervisor: UUID | None,
    hostname: str,
    pid: int,
    queues: list[str],
    threads: int,
    codes: list[Any],
) -> None:
    session.run(
        "INSERT INTO {worker} (id, supervisor, hostname, pid, queues, threads, status, codes, started_at, "
        "heartbeat_at) VALUES (%(id)s, %(supervisor)s, %(hostname)s, %(pid)s, {json(queues)}, %(threads)s, "
        "'running', {json(codes)}, {now}, {now})",
        id=worker, supervisor=supervisor, hostname=hostname[:200], pid=pid, threads=threads,
        queues=jsonvalues.dumps(queues, what="queues"), codes=jsonvalues.dumps(codes, what="codes"),
    )  # fmt: skip


def beat(session: Session, worker: UUID, *, jobs_in_hand: int, memory: int | None) -> None:
    session.run(
        "UPDATE {worker} SET heartbeat_at = {now}, jobs_in_hand = %(jobs)s, memory = %(memory)s WHERE id = %(id)s",
        id=worker, jobs=jobs_in_hand, memory=memory,
    )  # fmt: skip


def sign_off(session: Session, worker: UUID, status: str = "stopped") -> None:
    session.run(
        "UPDATE {worker} SET status = %(status)s, stopped_at = {now}, jobs_in_hand = 0 WHERE id = %(id)s",
        id=worker, status=status,
    )  # fmt: skip
