"""Runs of code workflows: what undoes a step is known by the call that asks for it.

A handler is code, so its compensations are stored nowhere; the record of a step keeps only that it has
one. A run that fails in hand has asked for its steps in that very pass. One that is taken over asks its
handler again: it *looks back*, a pass in which recorded steps answer and nothing is started, up to where
the run had come. A step of which the record tells a compensation that this pass was not told of cannot be
undone: its compensation fails, visibly and in its place, until the code is put right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django_jobs import jsonvalues
from django_jobs.definitions.task import check_compensation
from django_jobs.errors import ConfigurationError, ErrorDict, InvalidInput
from django_jobs.lifecycle import StepKind, StepStatus
from django_jobs.outcomes import Failed, HandedBack, Outcome, Parked
from django_jobs.store.recorded import StepRecord
from django_jobs.workflows.attempt import Mute
from django_jobs.workflows.passes import PassEnds
from django_jobs.workflows.plan import Planned
from django_jobs.workflows.undo import Compensating, Undo, mark
from django_jobs.workflows.view import RunView

#: Kinds of records that are no results of a run.
NO_RESULTS = (StepKind.SLEEP, StepKind.COMPENSATION)


class CodeRun(Compensating):
    """The driver of one pass of a code workflow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The steps that this pass has asked for with ``compensate=``, by key.
        self._asked: dict[str, Planned] = {}
        #: Recorded steps answer, and the pass ends where something would be started.
        self.looks_back = False
        #: How such a pass ended, if not there.
        self._looked_back_to = ""

    # --- looking back -------------------------------------------------------------------------

    def look_back(self) -> None:
        """Begin a pass that starts nothing and says nothing."""
        self.looks_back = True
        self.log, self._loud = Mute(), self.log  # type: ignore[assignment]

    def looked_back(self, error: BaseException | None) -> None:
        """The handler has ended, by ``error`` or where it would have gone on."""
        end = self.end
        if self.mistake is not None:
            error = self.mistake
        if isinstance(end, Parked):
            self._looked_back_to = _said(end.error)
        elif isinstance(error, Exception):
            self._looked_back_to = _said(self.secrets.describe(error))
        self.looks_back, self.log, self.mistake = False, self._loud, None
        self._ends.clear()
        self._parked.clear()

    def _check_alive(self) -> None:
        if self.looks_back:
            # Asked before anything of a step is begun.
            raise PassEnds(HandedBack("the next step would begin here"))
        super()._check_alive()

    def _restores(self, step: Planned, record: StepRecord) -> bool:
        return self.looks_back or super()._restores(step, record)

    def progress(self, fraction: float, note: str) -> None:
        if not self.looks_back:
            super().progress(fraction, note)

    # --- compensations ------------------------------------------------------------------------

    def _note_compensation(self, step: Planned) -> None:
        if step.scope is not None or not self.claim.is_run:
            super()._note_compensation(step)
        try:
            check_compensation(step.call.compensate)
        except InvalidInput as error:
            raise ConfigurationError(f"Step {step.path!r}: {error}") from None
        with self._lock:
            for twin in self._asked.values():
                if twin.path == step.path and twin.key != step.key:
                    raise ConfigurationError(
                        f"{twin.name} and {step.name} both have compensate=, and a compensation is known by "
                        "the step's id alone. Give one of them another id."
                    )
            self._asked[step.key] = step

    def _compensation_of(self, step: Planned) -> str | None:
        known = self._asked.get(step.key)
        return None if known is None else mark(known.call.compensate)

    def completed(self) -> Iterable[Undo]:
        for record in list(self._records.values()):
            if record.status != StepStatus.COMPLETED or record.kind == StepKind.COMPENSATION:
                continue
            asked = self._asked.get(record.step_key)
            if asked is not None:
                yield Undo(record, asked.call.compensate, asked.budget, asked.timeout)
            elif record.compensation is not None:
                yield Undo(record, missing=self._why_missing(record))

    def _why_missing(self, record: StepRecord) -> str:
        by = (jsonvalues.loads(record.compensation) or {}).get("by", "a function")
        name = f"{record.slug}/{record.step_id}"
        if record.step_key in self._seen:
            why = "the present code asks for it without compensate="
        else:
            why = "the handler does not ask for it any more"
            if self._looked_back_to:
                why += f" (it ended with {self._looked_back_to})"
        return f"The step {name} was to be undone by {by}, but {why}. Put the code right, then retry() the run."

    async def end_failed(self, failed: Failed) -> Outcome:
        self._looked_back_to = _said(failed.error)
        return await super().end_failed(failed)

    def outputs(self) -> dict[str, Any]:
        """``{step id: output}`` of the completed steps of the run itself."""
        return {
            record.step_id: jsonvalues.loads(record.output)
            for record in self._records.values()
            if record.status == StepStatus.COMPLETED
            and record.step_id
            and not record.parent_key
            and record.kind not in NO_RESULTS
        }

    def undo_view(self, undo: Undo, error: ErrorDict) -> CodeView:
        return CodeView(self, undo, error)


def _said(error: ErrorDict) -> str:
    return f"{str(error.get('type', '')).rpartition('.')[2]}: {error.get('message')}"


class CodeView(RunView):
    """What a compensation of a code workflow sees of its run: no graph, so nothing before or skipped."""

    def __init__(self, driver: CodeRun, undo: Undo, error: ErrorDict) -> None:
        super().__init__(driver, error)
        self._outputs = driver.outputs()
        # Steps of two tasks may have one id: its own output is what the step being undone has there.
        self._outputs[undo.step_id] = jsonvalues.loads(undo.record.output)

    @property
    def context(self) -> dict[str, Any]:
        return {}

    @property
    def results(self) -> dict[str, Any]:
        return self._outputs

    @property
    def previous_steps(self) -> dict[str, Any]:
        return {}

    @property
    def errors(self) -> dict[str, dict[str, Any]]:
        return {}

    def was_skipped(self, step_id: str) -> bool:
        return False
