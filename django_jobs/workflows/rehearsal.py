"""Replaying a live run against the present code without running any step of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.db import transaction

from django_jobs import jsonvalues
from django_jobs.definitions import registry
from django_jobs.definitions.context import WorkflowContext
from django_jobs.definitions.task import Definition
from django_jobs.lifecycle import StepStatus
from django_jobs.outcomes import Parked
from django_jobs.store import claims as claiming
from django_jobs.store.claims import Claim, Peek
from django_jobs.store.record import Item
from django_jobs.store.session import Session
from django_jobs.store.steps import Answer
from django_jobs.workflows import retrying
from django_jobs.workflows.coded import CodeRun
from django_jobs.workflows.io import LoopIO, ThreadIO
from django_jobs.workflows.passes import PassEnds


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a replay of one run came to. ``fault`` is empty where the present code fits."""

    job: UUID
    slug: str
    version: str | None
    #: "non_deterministic", "error", "missing", or empty.
    fault: str = ""
    message: str = ""
    #: Recorded steps that the present code did not ask for, as far as it went.
    unasked: tuple[str, ...] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        return {
            "job": str(self.job), "slug": self.slug, "version": self.version, "fault": self.fault,
            "message": self.message, "unasked": list(self.unasked),
        }  # fmt: skip


def rehearse(job_id: UUID, alias: str) -> Rehearsed | None:
    """Run the handler of a live run up to where its next step would begin; None if it is no live run.

    Recorded steps answer from their records, and nothing is written: no step, log line or progress,
    and what the handler itself writes through the ORM is rolled back.
    """
    seen = claiming.peek(Session(alias), job_id)
    if seen is None:
        return None
    claim = seen.claim
    definition = registry.find(claim.slug, claim.version)
    if definition is None:
        return Rehearsed(
            job_id, claim.slug, claim.version, "missing", "There is no code of it here."
        )
    with transaction.atomic(using=alias):
        try:
            return _rehearse(seen, definition, alias)
        finally:
            transaction.set_rollback(True, using=alias)


def _rehearse(seen: Peek, definition: Definition, alias: str) -> Rehearsed:
    claim = seen.claim
    fault, message = "", ""
    run: Rehearsal | None = None
    try:
        stored = jsonvalues.loads(claim.input)
        args, kwargs = definition.schema.load_input(stored)
        run = Rehearsal(claim, stored, definition, alias)
        context = WorkflowContext(
            run, attempt=claim.attempts + 1, idempotency_key=str(claim.job_id)
        )
        function = async_to_sync(definition.func) if definition.is_async else definition.func
        function(context, *args, **kwargs)
    except PassEnds:
        pass
    except Exception as error:
        if not _is_known(seen, error):
            fault, message = "error", f"{type(error).__name__}: {error}"
    if run is not None and run.mistake is not None:
        fault, message = "error", f"{type(run.mistake).__name__}: {run.mistake}"
    end = None if run is None else run.end
    if isinstance(end, Parked):
        fault, message = "non_deterministic", str(end.error.get("message"))
    unasked = () if run is None else tuple(run.unasked())
    return Rehearsed(claim.job_id, claim.slug, claim.version, fault, message, unasked)


def _is_known(seen: Peek, error: Exception) -> bool:
    """Whether the run fails so already: a recorded failure of a step, or one whose next try it waits for."""
    if retrying.is_step_failure(error):
        return True
    known = seen.error or {}
    return known.get("type") == jsonvalues.describe_error(error)["type"]


class Rehearsal(CodeRun):
    """A pass that looks back only, and ends wherever something would be done."""

    def __init__(
        self, claim: Claim, input: dict[str, Any], definition: Definition, alias: str
    ) -> None:
        silence = Silence(alias)
        super().__init__(
            claim, silence, input, definition, thread_io=ThreadIO(silence, NoLoop(), None),
            loop_io=LoopIO(silence), retry=definition.retries, run_extra=None,
        )  # fmt: skip
        self.look_back()

    def unasked(self) -> list[str]:
        """Completed steps of the run itself that this pass did not ask for."""
        return [
            f"{step.slug}/{step.step_id}"
            for step in self._records.values()
            if step.status == StepStatus.COMPLETED
            and "/" not in step.step_id
            and step.step_key not in self._seen
        ]


class Silence:
    """A recorder that writes nothing."""

    always_look = False

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def post(self, item: Item) -> None:
        pass

    def write(self, item: Item) -> Answer:
        raise AssertionError("A rehearsal has nothing to write.")

    async def awrite(self, item: Item) -> Answer:
        return self.write(item)

    def renew(self, claim: Claim) -> bool:
        return True

    def status_of(self, claim: Claim) -> str | None:
        return "running"


class NoLoop:
    """In place of the loop that runs async steps: none is run."""

    def run(self, coroutine: Any) -> Any:
        coroutine.close()
        raise AssertionError("A rehearsal runs no step.")
