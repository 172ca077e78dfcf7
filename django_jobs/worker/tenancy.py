"""The context manager that the setting TENANT_CONTEXT names, entered around everything a project runs.

It is called with the job. A handler, each step of it that runs in a thread of its own, and a callback
are entered one by one; whatever was entered is left before the next job begins, also after an error.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.utils.module_loading import import_string

from django_jobs import conf, jsonvalues
from django_jobs.enqueueing import tenants_of
from django_jobs.errors import ConfigurationError
from django_jobs.lifecycle import Kind
from django_jobs.models import Job
from django_jobs.store.claims import Claim

NAME = 'DJANGO_JOBS["TENANT_CONTEXT"]'


def entered(claim: Claim, alias: str) -> contextlib.AbstractContextManager[Any]:
    """Around code that runs in the calling thread."""
    path = conf.get().tenant_context
    return contextlib.nullcontext() if path is None else _entered(path, claim, alias)


def aentered(claim: Claim, alias: str) -> contextlib.AbstractAsyncContextManager[Any]:
    """Around code that runs on the event loop; what has no ``__aenter__`` is entered as it is."""
    path = conf.get().tenant_context
    return contextlib.nullcontext() if path is None else _aentered(path, claim, alias)


@contextlib.contextmanager
def _entered(path: str, claim: Claim, alias: str) -> Iterator[None]:
    made = _function(path)(job_of(claim, alias))
    if not hasattr(made, "__enter__"):
        raise ConfigurationError(
            f"{NAME} ({path}) gave {type(made).__name__}, which a handler in a thread cannot enter. "
            "Give it __enter__ and __exit__, beside __aenter__ and __aexit__ for async handlers."
        )
    with made:
        yield


@contextlib.asynccontextmanager
async def _aentered(path: str, claim: Claim, alias: str) -> AsyncIterator[None]:
    known = claim.kind != Kind.STEP
    job = job_of(claim, alias) if known else await sync_to_async(job_of)(claim, alias)
    made = _function(path)(job)
    if hasattr(made, "__aenter__"):
        async with made:
            yield
    elif hasattr(made, "__enter__"):
        with made:
            yield
    else:
        raise ConfigurationError(
            f"{NAME} ({path}) gave {type(made).__name__}, which is no context manager. "
            "Decorate the function with contextlib.contextmanager."
        )


@functools.lru_cache(maxsize=8)
def _function(path: str) -> Callable[[Job], Any]:
    try:
        found: Callable[[Job], Any] = import_string(path)
    except ImportError as error:
        raise ConfigurationError(
            f"{NAME} names {path!r}, which cannot be imported: {error}"
        ) from error
    return found


def job_of(claim: Claim, alias: str) -> Job:
    """The job of a claim, without a query; what the claim does not know is read when it is asked for.

    A unit of a run has the run's job.
    """
    if claim.kind == Kind.STEP and claim.parent is not None:
        run: Job = Job.objects.using(alias).get(pk=claim.parent)
        return run
    stored = jsonvalues.loads(claim.input)
    values: dict[str, Any] = {
        "id": claim.job_id, "slug": claim.slug, "kind": claim.kind, "version": claim.version, "status": "running",
        "queue_name": claim.queue_name, "input": stored, "attempts": claim.attempts, "crashes": claim.crashes,
        "parent_id": claim.parent, "worker": claim.worker, "fence": claim.fence, "started_at": claim.started_at,
        "meta": jsonvalues.loads(claim.meta) if claim.meta else {},
    }  # fmt: skip
    tenants = tenants_of(stored, conf.get().tenant_fields)
    values |= {f"tenant_{number}": tenant for number, tenant in enumerate(tenants, 1)}
    names = [one.attname for one in Job._meta.concrete_fields if one.attname in values]
    job: Job = Job.from_db(alias, names, [values[name] for name in names])
    return job
