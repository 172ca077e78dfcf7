"""Leads one job through whatever can happen to it, by the engine's own statements."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from django_jobs import clock, ids
from django_jobs.lifecycle import FINAL, AttemptStatus, Status, StepKind, StepStatus
from django_jobs.models import Job
from django_jobs.outcomes import (
    Canceled,
    Completed,
    Failed,
    HandedBack,
    Later,
    Outcome,
    Parked,
    Sleeping,
    TryAgain,
)
from django_jobs.store import claims, history, leases
from django_jobs.store.claims import Claim
from django_jobs.store.record import Finish, NoteWrite, close_attempt, record
from django_jobs.store.session import Session
from django_jobs.store.steps import StepWrite

ERROR = {"type": "builtins.ValueError", "message": "broken", "traceback": "", "code": None}
LEASE = 10.0
CRASH_LIMIT = 3


class Life:
    """A job and the worker that holds it, if any. What does not fit its state does nothing."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.session = Session()
        self.held: Claim | None = None
        self.steps: dict[str, StepWrite] = {}
        self.done = 0
        self.events: dict[str, Callable[[], None]] = {
            "claim": self.claim,
            "complete": lambda: self.finish(Completed("3")),
            "try again": lambda: self.finish(TryAgain(ERROR, 0.0)),
            "later": lambda: self.finish(Later(0.0)),
            "fail": lambda: self.finish(Failed(ERROR)),
            "corrupt": lambda: self.finish(Failed({**ERROR, "code": "corrupt"}, counted=False)),
            "cancel itself": lambda: self.finish(Canceled({**ERROR, "code": "canceled"})),
            "sleep": lambda: self.finish(Sleeping(clock.now())),
            "park": lambda: self.finish(Parked(ERROR)),
            "hand back": lambda: self.finish(HandedBack()),
            "callback fails": lambda: self.note(None),
            "callback of step fails": lambda: self.note("add/a"),
            "crash": self.crash,
            "pause": lambda: self.command(
                "paused", [Status.PENDING, Status.SLEEPING, Status.RUNNING], Status.PAUSED
            ),
            "resume": lambda: self.command(
                "resumed", [Status.PAUSED], Status.PENDING, "gate = 'open', due_at = {now}"
            ),
            "cancel": lambda: self.command(
                "canceled", [Status.PENDING, Status.SLEEPING, Status.RUNNING, Status.PAUSED], Status.CANCELED,
                "fence = fence + 1, finished_at = {now}, lease_expires_at = NULL",
            ),
            "retry": lambda: self.command(
                "retried", [Status.FAILED], Status.PENDING,
                "fence = fence + 1, finished_at = NULL, crashes = 0, gate = 'open', due_at = {now}",
            ),
            "start a": lambda: self.start("a"),
            "complete a": lambda: self.end("a", StepStatus.COMPLETED),
            "step a fails": lambda: self.end("a", StepStatus.PENDING),
            "step a fails for good": lambda: self.end("a", StepStatus.FAILED),
            "start b": lambda: self.start("b"),
            "complete b": lambda: self.end("b", StepStatus.COMPLETED),
            "a moment passes": lambda: clock.travel(timedelta(seconds=1)) and None,
        }  # fmt: skip

    def happen(self, event: str) -> None:
        self.job.refresh_from_db()
        self.events[event]()
        self.job.refresh_from_db()

    def claim(self) -> None:
        self.session.committed(claims.open_gates)
        taken = self.session.committed(
            lambda s: claims.take(s, [self.job.pk], worker=ids.worker_id(), lease=LEASE)
        )
        if taken:
            self.held = taken[0]

    def write(self, item: StepWrite | NoteWrite | Finish) -> None:
        self.session.committed(lambda s: record(s, [item]))

    def finish(self, outcome: Outcome) -> None:
        if self.held is not None:
            self.write(Finish(self.held, outcome))
            self.held = None

    def note(self, step: str | None) -> None:
        if step is not None and self.held is not None:
            self.write(NoteWrite(self.held, "callback_failed", step, {"error": ERROR}))
        elif step is None and self.job.started_at is not None and self.held is None:
            # As the engine does it: once the outcome is stored, without the claim.
            self.session.committed(
                lambda s: history.note(s, self.job.pk, event="callback_failed", detail={})
            )

    def crash(self) -> None:
        """The holder dies, and its job is taken back."""
        for job in self._held_rows():
            self.session.committed(
                lambda s, job=job: leases.take_back(  # type: ignore[misc]
                    s, job, message="gone", crash_limit=CRASH_LIMIT, dead=True
                )
            )
        self.held = None

    def _held_rows(self) -> list[leases.Expired]:
        return leases.held_by(self.session, self.held.worker) if self.held is not None else []

    def command(self, event: str, frm: list[Status], to: Status, sets: str = "") -> None:
        if Status(self.job.status) in FINAL and to == Status.CANCELED:
            return

        def work(session: Session) -> None:
            moved = history.move(
                session, self.job.pk, event=event, frm=frm, to=to, sets=sets, actor="operator"
            )
            if moved and to == Status.CANCELED:
                close_attempt(session, self.job.pk, self.job.fence, AttemptStatus.CANCELED, None)

        self.session.committed(work)

    def start(self, name: str) -> None:
        if self.held is None:
            return
        known = self.steps.get(name)
        if known is not None and known.status in (StepStatus.COMPLETED, StepStatus.FAILED):
            return
        self.steps[name] = self._step(name, StepStatus.RUNNING, known.total_tried if known else 0)
        self.write(self.steps[name])

    def end(self, name: str, status: StepStatus) -> None:
        known = self.steps.get(name)
        if self.held is None or known is None or known.status != StepStatus.RUNNING:
            return
        step = self._step(name, status, known.total_tried + 1)
        if status == StepStatus.COMPLETED:
            self.done += 1
            step.output, step.done_no = "1", self.done
        else:
            step.error = ERROR
        self.steps[name] = step
        self.write(step)

    def _step(self, name: str, status: StepStatus, tried: int) -> StepWrite:
        assert self.held is not None
        return StepWrite(
            claim=self.held, step_key=ids.digest("add", name), step_id=name, slug="add", kind=StepKind.TASK,
            status=status, input="{}", total_tried=tried,
        )  # fmt: skip
