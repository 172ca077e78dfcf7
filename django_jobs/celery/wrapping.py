"""Existing Celery tasks as tasks of ours: the job runs the function, and Celery's retry is the job's."""

from __future__ import annotations

import contextlib
import functools
import inspect
import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from celery._state import _task_stack  # as celery.app.trace uses it
from celery.app.task import Task as CeleryTask
from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as AskedRetry

from django_jobs import clock
from django_jobs.definitions.context import TaskContext
from django_jobs.definitions.registry import find
from django_jobs.definitions.retry import LONGEST_WAIT, Retry
from django_jobs.definitions.task import Task
from django_jobs.definitions.task import task as define
from django_jobs.errors import CancelJob, ConfigurationError, NonRetryable

#: Celery itself counts the retries of its tasks.
MANY = 1_000_000
#: What an error carries on which the task asked for another try: the seconds to wait.
WAIT = "_django_jobs_wait"
#: Slugs by the names of the Celery tasks they stand for.
_slugs: dict[str, str] = {}


def from_celery(task: Any, slug: str | None = None, /, **options: Any) -> Task:
    """A task of ours that runs an existing Celery ``task``; its slug is the Celery name unless given.

    ``options`` are those of ``@task``; ``runner`` is "celery" unless given, and ``timeout`` the
    task's own limit. ``self.retry()`` and ``autoretry_for`` work as before, on the job. Raises
    ConfigurationError for what is no Celery task.
    """
    if not isinstance(task, CeleryTask):
        raise ConfigurationError(
            f"from_celery() takes a Celery task, made by @shared_task or @app.task, not {task!r}."
        )
    limit = task.soft_time_limit or task.time_limit
    settings: dict[str, Any] = {"runner": "celery", "retries": AS_CELERY, "takes_context": True}
    if limit:
        settings["timeout"] = limit
    wrapped = define(slug or task.name, **{**settings, **options})(_adapted(task))
    _slugs[task.name] = wrapped.slug
    return wrapped


def slug_of(name: str) -> str | None:
    """The slug that stands for the Celery task ``name`` here: a wrapped one, or one of the same name."""
    if name in _slugs:
        return _slugs[name]
    return name if find(name) is not None else None


def _asked_again(error: BaseException) -> bool:
    return hasattr(error, WAIT)


def _asked_wait(attempt: int, error: BaseException | None) -> float | None:
    return getattr(error, WAIT, None)


#: Only what Celery would try again, after the wait that it asks for.
AS_CELERY = Retry(
    max_attempts=MANY, backoff=_asked_wait, jitter=0, max_delay=LONGEST_WAIT, retry_on=_asked_again
)


def _adapted(task: Any) -> Callable[..., Any]:
    """A function with the signature of the task, and a context before it."""
    signature = inspect.signature(task.run)
    plain = inspect.unwrap(getattr(task.run, "__func__", task.run))

    @functools.wraps(plain)
    def run(context: TaskContext, /, *args: Any, **kwargs: Any) -> Any:
        return _run(task, context, args, kwargs)

    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[context, *signature.parameters.values()]
    )
    return run


def _run(task: Any, context: TaskContext, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    identity = context.idempotency_key
    call = (identity, args, kwargs)
    with _as_request(task, context, args, kwargs):
        try:
            task.before_start(*call)
            value = task.run(*args, **kwargs)
        except AskedRetry as asked:
            _refuse_other_arguments(asked, args, kwargs)
            error = _failure_of(asked)
            task.on_retry(error, *call, None)
            task.after_return("RETRY", error, *call, None)
            raise error from asked.__cause__
        except (Ignore, Reject) as error:
            raise CancelJob(f"the Celery task raised {type(error).__name__}: {error}") from error
        except Exception as error:
            task.on_failure(error, *call, None)
            task.after_return("FAILURE", error, *call, None)
            raise
        task.on_success(value, *call)
        task.after_return("SUCCESS", value, *call, None)
        return value


@contextlib.contextmanager
def _as_request(
    task: Any, context: TaskContext, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[None]:
    """What the task sees as ``self.request``. "Eager" keeps Celery from sending the retry itself."""
    task.push_request(
        id=context.idempotency_key, task=task.name, args=args, kwargs=kwargs, retries=_retries(context),
        called_directly=False, is_eager=True, hostname=socket.gethostname(), delivery_info={},
        callbacks=None, errbacks=None, chain=None, chord=None, root_id=context.idempotency_key,
        parent_id=None, expires=None, eta=None, headers=None, correlation_id=context.idempotency_key,
    )  # fmt: skip
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


def _retries(context: TaskContext) -> int:
    """How often it was tried before; an operator's retry begins anew."""
    claim = context._driver.claim  # type: ignore[attr-defined]
    is_job = context.idempotency_key == str(claim.job_id)
    return int(claim.tries if is_job else context.attempt) - 1


def _failure_of(asked: AskedRetry) -> BaseException:
    """The error that made the task ask for another try, with the wait it asked for."""
    error = asked.exc if isinstance(asked.exc, Exception) else asked
    when = asked.when
    if isinstance(when, datetime):
        moment = when if when.tzinfo is not None else when.replace(tzinfo=clock.now().tzinfo)
        seconds = (moment - clock.now()).total_seconds()
    else:
        seconds = when.total_seconds() if isinstance(when, timedelta) else float(when or 0)
    setattr(error, WAIT, max(seconds, 0.0))
    return error


def _refuse_other_arguments(
    asked: AskedRetry, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if asked.sig is None:
        return
    same = tuple(asked.sig.args or ()) == args and dict(asked.sig.kwargs or {}) == kwargs
    if not same:
        raise NonRetryable(
            "self.retry() with other arguments: the input of a job never changes. "
            "Enqueue another job with them instead."
        )
