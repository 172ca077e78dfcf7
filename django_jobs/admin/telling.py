"""What came of a command: told to who gave it, and written to the admin's log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.http import HttpRequest
from django.utils.translation import gettext as _

from django_jobs.admin.formatting import STATUS_LABELS, number
from django_jobs.store.commands import Done

#: The reason of a refusal that is none of a status.
NOT_PERMITTED = "not permitted"


@dataclass
class Tally:
    """How many rows a command changed and left as they are, and how many refused, by reason."""

    changed: int = 0
    unchanged: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, done: Done) -> None:
        self.changed += len(done.changed)
        self.unchanged += len(done.unchanged)
        for status in done.refused.values():
            self.refuse(str(status))

    def refuse(self, reason: str, count: int = 1) -> None:
        if count:
            self.refused[reason] = self.refused.get(reason, 0) + count

    def merge(self, values: dict[str, Any]) -> None:
        """Add what :meth:`as_dict` gave."""
        self.changed += values["changed"]
        self.unchanged += values["unchanged"]
        for reason, count in values["refused"].items():
            self.refuse(reason, count)

    def as_dict(self) -> dict[str, Any]:
        return {"changed": self.changed, "unchanged": self.unchanged, "refused": self.refused}

    @property
    def total(self) -> int:
        return self.changed + self.unchanged + sum(self.refused.values())

    def said(self, done: Any) -> str:
        """What came of it, in words; ``done`` is what the command calls it."""
        counts = _(
            "%(done)s: %(changed)s changed, %(unchanged)s unchanged, %(refused)s refused."
        ) % {
            "done": done,
            "changed": number(self.changed),
            "unchanged": number(self.unchanged),
            "refused": number(sum(self.refused.values())),
        }
        if not self.refused:
            return counts
        reasons = ", ".join(
            f"{_reason(name)} {number(count)}" for name, count in sorted(self.refused.items())
        )
        return counts + " " + _("Refused: %(reasons)s.") % {"reasons": reasons}


def _reason(name: str) -> str:
    return _("not permitted") if name == NOT_PERMITTED else str(STATUS_LABELS.get(name, name))


def tell(request: HttpRequest, done: Any, tally: Tally) -> None:
    """The message after a command."""
    level = messages.SUCCESS if tally.changed else messages.WARNING
    messages.add_message(request, level, tally.said(done))


def log(user: Any, rows: Iterable[Any], said: str, flag: int = CHANGE) -> None:
    """One line in the admin's log for each row."""
    listed = list(rows)
    if listed:
        LogEntry.objects.log_actions(user.pk, listed, flag, said)


def list_action(
    name: str, right: str, description: Any, act: Callable[[Any, HttpRequest, Any], Any]
) -> Callable[..., Any]:
    """An action of a list, offered to those who have ``right``."""

    @admin.action(permissions=[right], description=description)
    def run(model_admin: Any, request: HttpRequest, queryset: Any) -> Any:
        return act(model_admin, request, queryset)

    run.__name__ = name
    return run
