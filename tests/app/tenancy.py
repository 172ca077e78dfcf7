"""Tenant contexts for tests: what is entered is told by a context variable and a thread's own."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

from django.utils import translation

from django_jobs.models import Job

current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nobody")
local = threading.local()
#: What was entered and left, in order.
log: list[str] = []


def here() -> str:
    """The tenant, as handlers see it in this thread."""
    return f"{current.get()} {getattr(local, 'tenant', 'nobody')} {translation.get_language()}"


@contextlib.contextmanager
def tenant(job: Job) -> Iterator[None]:
    org = str(job.input["org"])
    token, before = current.set(org), getattr(local, "tenant", "nobody")
    local.tenant = org
    log.append(f"enter {org} {job.slug} {job.tenant_1}")
    try:
        with translation.override("de" if org == "a" else "fr"):
            yield
    finally:
        local.tenant = before
        current.reset(token)
        log.append(f"leave {org}")


class AsyncTenant:
    """For async handlers only."""

    def __init__(self, job: Job) -> None:
        self.job = job

    async def __aenter__(self) -> None:
        self.token = current.set(f"async {self.job.input['org']}")

    async def __aexit__(self, *_: Any) -> None:
        current.reset(self.token)
        log.append("left")
