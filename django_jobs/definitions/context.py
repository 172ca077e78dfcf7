"""What handlers get as their first argument. Every method hands over to the driver of the attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from django_jobs.definitions.retry import Retry
from django_jobs.lifecycle import StepKind

if TYPE_CHECKING:
    from django_jobs.models import Job


@dataclass(frozen=True, slots=True)
class WaitFor:
    """What a step waits for, with no worker meanwhile.

    ``seconds`` or ``until`` is the end of a sleep; ``seconds`` of another wait is its time limit.
    """

    kind: StepKind
    seconds: float | timedelta | None = None
    until: datetime | None = None
    event: str | None = None
    default: Any = None


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step that is described but not started: what ``run.call()`` returns for ``run.gather()``."""

    step_id: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    inline: bool = False
    retries: int | Retry | None = None
    timeout: float | timedelta | None = None
    transactional: bool | None = None
    compensate: Any = None
    wait: WaitFor | None = None


class Log(Protocol):
    """The log of an attempt: lines are stored with the job and shown in the admin."""

    def debug(self, message: object, *args: object) -> None: ...
    def info(self, message: object, *args: object) -> None: ...
    def warning(self, message: object, *args: object) -> None: ...
    def error(self, message: object, *args: object) -> None: ...
    def exception(self, message: object, *args: object) -> None: ...


class Driver(Protocol):
    """What an attempt offers to its contexts."""

    version: str | None

    @property
    def log(self) -> Log: ...
    @property
    def job(self) -> Job: ...
    @property
    def input(self) -> dict[str, Any]: ...
    @property
    def task_status(self) -> dict[str, dict[str, dict[str, Any]]]: ...
    @property
    def cancel_requested(self) -> bool: ...
    def progress(self, fraction: float, note: str) -> None: ...
    def heartbeat(self) -> None: ...
    def step(self, call: StepCall) -> Any: ...
    def gather(self, calls: list[StepCall]) -> Any: ...


class Context:
    """What all contexts have."""

    def __init__(self, driver: Driver, *, attempt: int, idempotency_key: str) -> None:
        self._driver = driver
        #: Number of this try, from 1: of the job, or of the step where the task is called as one.
        self.attempt = attempt
        #: The same on every try: the job's id, or the job's id and the step's.
        self.idempotency_key = idempotency_key

    @property
    def job(self) -> Job:
        """The job's row, to be read only. Inside a step it is the run's job."""
        return self._driver.job

    @property
    def input(self) -> dict[str, Any]:
        """The stored input."""
        return self._driver.input

    @property
    def version(self) -> str | None:
        """The version of the code that the job started with."""
        return self._driver.version

    @property
    def task_status(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The steps recorded so far, by slug and id."""
        return self._driver.task_status

    @property
    def log(self) -> Log:
        return self._driver.log

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody canceled the job; the row is asked at most once a second."""
        return self._driver.cancel_requested

    def progress(self, fraction: float, note: str = "") -> None:
        """Show how far the job is: ``fraction`` from 0 to 1."""
        self._driver.progress(fraction, note)

    def heartbeat(self) -> None:
        """Renew the lease now; raises LeaseLost if it is gone. Workers do this by themselves."""
        self._driver.heartbeat()


class StepMethods(Context):
    """The step methods. In an ``async def`` handler each returns an awaitable."""

    def task(
        self,
        id: str,
        target: Any,
        /,
        *args: Any,
        retries: int | Retry | None = None,
        timeout: float | timedelta | None = None,
        transactional: bool | None = None,
        compensate: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run a registered task as the step ``id`` and return its typed output.

        A completed step is not run again: its stored output is returned. Raises JobFailed once the
        step's retries are used up, on every later pass too; DuplicateStepId; UnknownTask.

        ``compensate`` is a function of a :class:`StepContext`, or a task, that undoes the completed
        step when the run fails: the last completed step first, each by a step ``undo:<id>``.
        """
        return self._driver.step(
            StepCall(id, target, args, kwargs, False, retries, timeout, transactional, compensate)
        )

    def inline(
        self,
        id: str,
        function: Callable[[], Any],
        /,
        *,
        retries: int | Retry | None = None,
        timeout: float | timedelta | None = None,
        transactional: bool | None = None,
        compensate: Any = None,
    ) -> Any:
        """Run a function without a registered task as the step ``id``; its output is stored as JSON."""
        return self._driver.step(
            StepCall(id, function, (), {}, True, retries, timeout, transactional, compensate)
        )

    def call(self, id: str, target: Any, /, *args: Any, **kwargs: Any) -> StepCall:
        """Describe a step for :meth:`gather`; options and input as of :meth:`task`."""
        options = {
            name: kwargs.pop(name)
            for name in ("retries", "timeout", "transactional", "compensate")
            if name in kwargs
        }
        return StepCall(id, target, args, kwargs, False, **options)

    def gather(self, *calls: StepCall) -> Any:
        """Run the described steps at the same time; their outputs in order.

        All run to their end and are recorded, also when one fails; then the first failure is raised.
        """
        return self._driver.gather(list(calls))

    def map(self, id: str, target: Any, items: Iterable[Any], /, **options: Any) -> Any:
        """One step of ``target`` for each of ``items``, at the same time; outputs in input order.

        A dict is the keyword input of its call, any other item the first argument. The steps are
        called ``id:0``, ``id:1``, …
        """
        calls = [
            self.call(f"{id}:{index}", target, **options, input=item)
            if isinstance(item, dict)
            else self.call(f"{id}:{index}", target, item, **options)
            for index, item in enumerate(items)
        ]
        return self._driver.gather(calls)


class TaskContext(StepMethods):
    """The first argument of a task that ``takes_context``."""


class WorkflowContext(StepMethods):
    """The first argument of a code workflow.

    A run that waits in one of the methods here holds no worker: the pass ends, and the handler
    starts from the top when the wait may be over.
    """

    def sleep(self, id: str, duration: float | timedelta, /) -> Any:
        """Wait for a ``duration``: seconds, or a timedelta.

        The wake-up is an absolute moment, fixed when the sleep is first reached: later passes, a
        pause and a crash do not move it.
        """
        return self._driver.step(self._sleep(id, duration))

    def sleep_until(self, id: str, moment: datetime, /) -> Any:
        """Wait until an aware ``moment``; one that has passed is now."""
        return self._driver.step(self._sleep_until(id, moment))

    def wait_for_event(
        self,
        id: str,
        name: str,
        /,
        *,
        timeout: float | timedelta | None = None,
        default: Any = None,
    ) -> Any:
        """Wait for an event ``name`` sent by ``send_event(name, payload, to=job)``; return its payload.

        The oldest one that no other wait has taken counts, also when it was sent before the wait.
        After ``timeout`` without one, ``default`` is returned; the limit is an absolute moment,
        fixed when the wait is first reached.
        """
        return self._driver.step(self._event(id, name, timeout=timeout, default=default))

    def child(
        self,
        id: str,
        target: Any,
        /,
        *args: Any,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start ``target``, a workflow or a task, as a child run once, wait for its end, and return its output.

        Raises JobFailed when the child failed, JobCanceled when it was canceled. After ``timeout`` the
        step fails with code "timeout", and the child goes on.
        """
        return self._driver.step(self._child(id, target, *args, timeout=timeout, **kwargs))

    def call(self, id: str, target: Any, /, *args: Any, **kwargs: Any) -> StepCall:
        """Describe a step for :meth:`gather`; options and input as of :meth:`task`.

        A workflow as ``target`` is a child run. A wait is described by its method:
        ``run.call("approval", run.wait_for_event, "order.approved")``.
        """
        described = getattr(target, "__func__", None)
        if getattr(target, "__self__", None) is self and described in _DESCRIBE:
            return _DESCRIBE[described](self, id, *args, **kwargs)
        return super().call(id, target, *args, **kwargs)

    def _sleep(self, id: str, duration: float | timedelta, /) -> StepCall:
        return StepCall(id, None, wait=WaitFor(StepKind.SLEEP, seconds=duration))

    def _sleep_until(self, id: str, moment: datetime, /) -> StepCall:
        return StepCall(id, None, wait=WaitFor(StepKind.SLEEP, until=moment))

    def _event(
        self,
        id: str,
        name: str,
        /,
        *,
        timeout: float | timedelta | None = None,
        default: Any = None,
    ) -> StepCall:
        wait = WaitFor(StepKind.EVENT, seconds=timeout, event=name, default=default)
        return StepCall(id, None, wait=wait)

    def _child(
        self,
        id: str,
        target: Any,
        /,
        *args: Any,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> StepCall:
        return StepCall(id, target, args, kwargs, wait=WaitFor(StepKind.CHILD, seconds=timeout))


#: How each method that waits describes its step, for :meth:`WorkflowContext.call`.
_DESCRIBE: dict[Any, Callable[..., StepCall]] = {
    WorkflowContext.sleep: WorkflowContext._sleep,
    WorkflowContext.sleep_until: WorkflowContext._sleep_until,
    WorkflowContext.wait_for_event: WorkflowContext._event,
    WorkflowContext.child: WorkflowContext._child,
}


class StepView(Protocol):
    """What the engine offers to the context of one step of a graph."""

    @property
    def log(self) -> Log: ...
    @property
    def job(self) -> Job: ...
    @property
    def input(self) -> dict[str, Any]: ...
    @property
    def context(self) -> dict[str, Any]: ...
    @property
    def results(self) -> dict[str, Any]: ...
    @property
    def previous_steps(self) -> dict[str, Any]: ...
    @property
    def errors(self) -> dict[str, dict[str, Any]]: ...
    @property
    def error(self) -> dict[str, Any] | None: ...
    @property
    def cancel_requested(self) -> bool: ...
    def was_skipped(self, step_id: str) -> bool: ...
    def progress(self, fraction: float, note: str) -> None: ...
    def heartbeat(self) -> None: ...


class StepContext:
    """The only argument of a function that is a step of a DAG, a condition, or a compensation.

    Nothing is read from the database before it is asked for.
    """

    def __init__(
        self,
        view: StepView,
        *,
        step_id: str,
        attempt: int,
        idempotency_key: str,
        item: Any = None,
        index: int | None = None,
    ) -> None:
        self._view = view
        #: The step's id; in a compensation that of the step being undone.
        self.step_id = step_id
        #: Number of this try of the step, from 1.
        self.attempt = attempt
        #: The same on every try: the run's id and the step's.
        self.idempotency_key = idempotency_key
        #: In a map: the item in hand, and its place from 0.
        self.item = item
        self.index = index

    @property
    def input(self) -> dict[str, Any]:
        """The run's stored input."""
        return self._view.input

    @property
    def context(self) -> dict[str, Any]:
        """What was enqueued as ``context=``."""
        return self._view.context

    @property
    def results(self) -> dict[str, Any]:
        """``{step id: output}`` of every step completed so far, in order of declaration."""
        return self._view.results

    @property
    def previous_steps(self) -> dict[str, Any]:
        """``{step id: output}`` of the completed ones among those this step comes after, in their order."""
        return self._view.previous_steps

    @property
    def errors(self) -> dict[str, dict[str, Any]]:
        """``{step id: error}`` of the failed ones among those this step comes after."""
        return self._view.errors

    @property
    def error(self) -> dict[str, Any] | None:
        """In a compensation: why the run is undone, with type, message, code and step_id."""
        return self._view.error

    def was_skipped(self, step_id: str) -> bool:
        """Whether the step's condition kept it from running; InvalidInput for an unknown id."""
        return self._view.was_skipped(step_id)

    @property
    def run(self) -> Job:
        """The run's row, to be read only."""
        return self._view.job

    @property
    def log(self) -> Log:
        return self._view.log

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody canceled the run."""
        return self._view.cancel_requested

    def progress(self, fraction: float, note: str = "") -> None:
        """Show how far the step's own job is: ``fraction`` from 0 to 1."""
        self._view.progress(fraction, note)

    def heartbeat(self) -> None:
        """Renew the lease now; raises LeaseLost if it is gone. Workers do this by themselves."""
        self._view.heartbeat()
