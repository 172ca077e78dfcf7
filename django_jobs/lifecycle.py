"""Statuses and their legal successors, written once.

The guards of the store, the database's constraints, the admin's buttons, the table in the
docs and the test of every pair derive from this module.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    SLEEPING = "sleeping"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"
    COMPENSATION_FAILED = "compensation_failed"

    @property
    def is_final(self) -> bool:
        return self in FINAL


class StepStatus(StrEnum):
    """Where a step record stands."""

    PENDING = "pending"
    RUNNING = "running"
    SLEEPING = "sleeping"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELED = "canceled"


class AttemptStatus(StrEnum):
    """How one try stands or ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    LOST = "lost"
    CANCELED = "canceled"


class Kind(StrEnum):
    """What a job's target is. ``STEP`` is a unit of a run that other workers may claim."""

    TASK = "task"
    WORKFLOW = "workflow"
    DAG = "dag"
    STEP = "step"


class StepKind(StrEnum):
    """What a step record stands for."""

    TASK = "task"
    INLINE = "inline"
    HTTP = "http"
    SLEEP = "sleep"
    EVENT = "event"
    CHILD = "child"
    MAP = "map"
    COMPENSATION = "compensation"


class Gate(StrEnum):
    """What keeps a job out of the claim's index.

    A run that sleeps has ``TIMER`` while it waits for its next try, which only time brings, and
    ``WAIT`` while it waits in steps of its own, which an event or the end of a child may end.
    """

    OPEN = "open"
    TIMER = "timer"
    PERMIT = "permit"
    WAIT = "wait"
    RATE = "rate"


class Command(StrEnum):
    """What an operator can ask of a job."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"
    RERUN = "rerun"
    RUN_NOW = "run_now"
    RESCHEDULE = "reschedule"
    COMPENSATE = "compensate"


S = Status

#: Every status a job may have next.
NEXT: dict[Status, frozenset[Status]] = {
    S.PENDING: frozenset({S.RUNNING, S.PAUSED, S.CANCELED, S.FAILED, S.COMPENSATING}),
    S.RUNNING: frozenset(
        {S.COMPLETED, S.SLEEPING, S.PENDING, S.PAUSED, S.CANCELED, S.FAILED, S.COMPENSATING}
    ),
    S.SLEEPING: frozenset({S.PENDING, S.PAUSED, S.CANCELED, S.FAILED, S.COMPENSATING}),
    S.PAUSED: frozenset({S.PENDING, S.CANCELED, S.COMPENSATING}),
    S.FAILED: frozenset({S.PENDING, S.COMPENSATING}),
    S.COMPENSATING: frozenset({S.COMPENSATING, S.COMPENSATED, S.COMPENSATION_FAILED}),
    S.COMPENSATION_FAILED: frozenset({S.COMPENSATING}),
    S.COMPLETED: frozenset(),
    S.CANCELED: frozenset(),
    S.COMPENSATED: frozenset(),
}

FINAL = frozenset({S.COMPLETED, S.FAILED, S.CANCELED, S.COMPENSATED, S.COMPENSATION_FAILED})
LIVE = frozenset(Status) - FINAL
#: Someone drives the job and holds a lease on it.
DRIVEN = frozenset({S.RUNNING, S.COMPENSATING})
FINAL_STEPS = frozenset(
    {StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELED}
)
#: Steps that hold no worker while they last.
WAITS = frozenset({StepKind.SLEEP, StepKind.EVENT, StepKind.CHILD})

CHANGE, KEEP, REFUSE = "change", "no change", "refused"

_C = Command
#: What a command does to a job of each status: the new status, ``KEEP`` or ``REFUSE``.
#: ``rerun``, ``run_now`` and ``reschedule`` leave the status alone; ``CHANGE`` says that they act.
COMMANDS: dict[Command, dict[Status, str]] = {
    _C.PAUSE: {
        S.PENDING: S.PAUSED, S.SLEEPING: S.PAUSED, S.RUNNING: S.PAUSED, S.PAUSED: KEEP,
        S.FAILED: REFUSE, S.COMPENSATION_FAILED: REFUSE, S.COMPLETED: REFUSE,
        S.COMPENSATED: REFUSE, S.CANCELED: REFUSE, S.COMPENSATING: REFUSE,
    },
    _C.RESUME: {
        S.PENDING: KEEP, S.SLEEPING: KEEP, S.RUNNING: KEEP, S.PAUSED: S.PENDING,
        S.FAILED: REFUSE, S.COMPENSATION_FAILED: REFUSE, S.COMPLETED: REFUSE,
        S.COMPENSATED: REFUSE, S.CANCELED: REFUSE, S.COMPENSATING: KEEP,
    },
    _C.CANCEL: {
        S.PENDING: S.CANCELED, S.SLEEPING: S.CANCELED, S.RUNNING: S.CANCELED,
        S.PAUSED: S.CANCELED, S.FAILED: REFUSE, S.COMPENSATION_FAILED: REFUSE,
        S.COMPLETED: REFUSE, S.COMPENSATED: REFUSE, S.CANCELED: KEEP, S.COMPENSATING: REFUSE,
    },
    _C.RETRY: {
        S.PENDING: KEEP, S.SLEEPING: KEEP, S.RUNNING: KEEP, S.PAUSED: KEEP,
        S.FAILED: S.PENDING, S.COMPENSATION_FAILED: S.COMPENSATING, S.COMPLETED: REFUSE,
        S.COMPENSATED: REFUSE, S.CANCELED: REFUSE, S.COMPENSATING: KEEP,
    },
    _C.RERUN: {
        S.PENDING: REFUSE, S.SLEEPING: REFUSE, S.RUNNING: REFUSE, S.PAUSED: REFUSE,
        S.COMPENSATING: REFUSE, S.FAILED: CHANGE, S.COMPENSATION_FAILED: CHANGE,
        S.COMPLETED: CHANGE, S.COMPENSATED: CHANGE, S.CANCELED: CHANGE,
    },
    _C.RUN_NOW: {
        S.PENDING: CHANGE, S.SLEEPING: CHANGE, S.RUNNING: KEEP, S.PAUSED: KEEP,
        S.COMPENSATING: KEEP, S.FAILED: REFUSE, S.COMPENSATION_FAILED: REFUSE,
        S.COMPLETED: REFUSE, S.COMPENSATED: REFUSE, S.CANCELED: REFUSE,
    },
    # Of those that wait, only jobs that were never started; a paused one has no time of its own.
    _C.RESCHEDULE: {
        S.PENDING: CHANGE, S.SLEEPING: REFUSE, S.RUNNING: REFUSE, S.PAUSED: CHANGE,
        S.COMPENSATING: REFUSE, S.FAILED: REFUSE, S.COMPENSATION_FAILED: REFUSE,
        S.COMPLETED: REFUSE, S.COMPENSATED: REFUSE, S.CANCELED: REFUSE,
    },
    _C.COMPENSATE: {
        S.PENDING: REFUSE, S.SLEEPING: REFUSE, S.RUNNING: REFUSE, S.PAUSED: REFUSE,
        S.COMPENSATING: KEEP, S.FAILED: S.COMPENSATING, S.COMPENSATION_FAILED: REFUSE,
        S.COMPLETED: REFUSE, S.COMPENSATED: KEEP, S.CANCELED: REFUSE,
    },
}  # fmt: skip


def sources(target: Status) -> frozenset[Status]:
    """The statuses from which ``target`` may be reached."""
    return frozenset(status for status, following in NEXT.items() if target in following)


def offered(status: Status) -> list[Command]:
    """The commands that would change a job of this status."""
    return [command for command, row in COMMANDS.items() if row[status] not in (KEEP, REFUSE)]
