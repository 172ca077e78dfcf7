"""The commands as the admin offers them: their words, and the permission that each needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from django_jobs.lifecycle import Command


@dataclass(frozen=True)
class Verb:
    """One command: a button on a job's page and an action of the list."""

    command: Command
    #: The permission is ``<right>_job``; the admin's method for it ``has_<right>_permission``.
    right: str
    label: Any
    #: The action of the list.
    selected: Any
    #: What the page that asks says above the jobs, and the message afterwards.
    question: Any
    done: Any
    #: What it means, for the page that asks.
    meaning: Any
    #: Whether the button asks as well: what is canceled or made anew cannot be taken back.
    asks: bool = False

    @property
    def name(self) -> str:
        return str(self.command)


#: In the order in which they are offered.
VERBS: dict[Command, Verb] = {
    verb.command: verb
    for verb in (
        Verb(
            Command.PAUSE, "pause", _("Pause"), _("Pause selected jobs"),
            ngettext_lazy("Pause this job?", "Pause these %(shown)s jobs?", "count"), _("Paused"),
            _("Nothing more of them is started. What is under way finishes, and its result is kept."),
        ),
        Verb(
            Command.RESUME, "pause", _("Resume"), _("Resume selected jobs"),
            ngettext_lazy("Resume this job?", "Resume these %(shown)s jobs?", "count"), _("Resumed"),
            _("Paused jobs go on where they stopped, due now."),
        ),
        Verb(
            Command.RUN_NOW, "run", _("Run now"), _("Run now the selected jobs"),
            ngettext_lazy("Run this job now?", "Run these %(shown)s jobs now?", "count"), _("Made due now"),
            _("Jobs that wait for their time, or for their next try, become due now."),
        ),
        Verb(
            Command.RESCHEDULE, "reschedule", _("Reschedule"), _("Reschedule selected jobs"),
            ngettext_lazy("Reschedule this job?", "Reschedule these %(shown)s jobs?", "count"), _("Rescheduled"),
            _("Jobs that wait, and were never started, get another time, queue or priority."), asks=True,
        ),
        Verb(
            Command.RETRY, "retry", _("Retry"), _("Retry selected jobs"),
            ngettext_lazy("Retry this job?", "Retry these %(shown)s jobs?", "count"), _("Retried"),
            _("Failed jobs are opened again: completed steps stay, the failed step has all its tries again."),
        ),
        Verb(
            Command.RERUN, "retry", _("Re-run"), _("Re-run selected jobs"),
            ngettext_lazy("Re-run this job?", "Re-run these %(shown)s jobs?", "count"), _("Run again"),
            _("Each finished job is enqueued anew, from its start, as a job of its own."), asks=True,
        ),
        Verb(
            Command.CANCEL, "cancel", _("Cancel"), _("Cancel selected jobs"),
            ngettext_lazy("Cancel this job?", "Cancel these %(shown)s jobs?", "count"), _("Canceled"),
            _("They end now. A late result of what is under way is dropped. This cannot be taken back."),
            asks=True,
        ),
    )
}  # fmt: skip
#: What is offered on the page of one job only.
SINGLE: dict[Command, Verb] = {
    Command.COMPENSATE: Verb(
        Command.COMPENSATE, "cancel", _("Compensate"), "",
        ngettext_lazy("Undo this run?", "Undo these %(shown)s runs?", "count"), _("Compensating"),
        _("Its completed steps are undone by their compensations, the last completed first. The error stays."),
        asks=True,
    )
}  # fmt: skip
EVERY = {**VERBS, **SINGLE}
