"""What happened to a job, in order: its history, and what its own columns tell."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs import jsonvalues
from django_jobs.admin import formatting
from django_jobs.models import HistoryEntry, Job, Worker

EVENTS: dict[str, Any] = {
    "enqueued": gettext_lazy("enqueued"),
    "claimed": gettext_lazy("claimed by a worker"),
    "retrying": gettext_lazy("failed, will be tried again"),
    "later": gettext_lazy("asked to be run later"),
    "sleeping": gettext_lazy("went to sleep"),
    "woken": gettext_lazy("woke up"),
    "parked": gettext_lazy("parked"),
    "handed_back": gettext_lazy("handed back"),
    "crashed": gettext_lazy("its worker was lost"),
    "callback_failed": gettext_lazy("a callback failed"),
    "completed": gettext_lazy("completed"),
    "failed": gettext_lazy("failed"),
    "canceled": gettext_lazy("canceled"),
    "paused": gettext_lazy("paused"),
    "resumed": gettext_lazy("resumed"),
    "retried": gettext_lazy("retried"),
    "rerun": gettext_lazy("run again"),
    "run_now": gettext_lazy("made due now"),
    "rescheduled": gettext_lazy("rescheduled"),
    "event_sent": gettext_lazy("an event was sent to it"),
}


#: What a reschedule changes, as the admin calls it.
CHANGED: dict[str, Any] = {
    "queue_name": gettext_lazy("queue"),
    "priority": gettext_lazy("priority"),
    "run_after": gettext_lazy("not before"),
}


@dataclass(frozen=True)
class Moment:
    """One line of the timeline."""

    at: datetime
    shown_at: SafeString | str
    since: str
    event: str
    status: SafeString | str
    worker: str = ""
    step: str = ""
    attempt: int | None = None
    actor: str = ""
    detail: str = ""


def moments(
    job: Job,
    entries: Iterable[HistoryEntry],
    workers: dict[UUID, Worker],
    *,
    complete: bool = True,
    names: Collection[str] = (),
) -> list[Moment]:
    """The lines in order of time; ``complete`` says that ``entries`` begin with the first one."""
    rows = list(entries)
    raw: list[tuple[datetime, int, HistoryEntry | str]] = [
        (entry.at, entry.n, entry) for entry in rows
    ]
    if complete:
        raw.append((job.created_at, -1, "enqueued"))
        if job.started_at is not None and not any(
            entry.event == "claimed" and entry.at <= job.started_at for entry in rows
        ):
            raw.append((job.started_at, 0, "claimed"))
    # An outcome that went straight through has no row of its own.
    if job.finished_at is not None and (not rows or rows[-1].to_status != job.status):
        raw.append((job.finished_at, 1 << 40, str(job.status)))
    raw.sort(key=lambda item: (item[0], item[1]))
    lines: list[Moment] = []
    for at, _number, what in raw:
        since = formatting.duration(at - lines[-1].at) if lines else ""
        lines.append(_moment(job, at, since, what, workers, names))
    return lines


def _moment(
    job: Job,
    at: datetime,
    since: str,
    what: HistoryEntry | str,
    workers: dict[UUID, Worker],
    names: Collection[str],
) -> Moment:
    shown_at = formatting.moment(at)
    if isinstance(what, str):
        status = {"enqueued": "pending", "claimed": "running"}.get(what, what)
        # With no claim in the history there was one worker only: that of the job's own row.
        worker = formatting.worker_name(job.worker, workers) if what == "claimed" else ""
        return Moment(at, shown_at, since, _label(what, status), formatting.badge(status), worker)
    return Moment(
        at=at,
        shown_at=shown_at,
        since=since,
        event=_label(what.event, what.to_status),
        status=formatting.badge(what.to_status) if what.to_status else "",
        worker=formatting.worker_name(what.worker, workers),
        step=what.step or "",
        attempt=what.attempt,
        actor=what.actor or "",
        detail=_detail(what.detail, names),
    )


def _label(event: str, status: str | None) -> str:
    """What happened; empty where the badge of the new status says it already."""
    return "" if event == status else str(EVENTS.get(event) or event.replace("_", " "))


def _detail(value: Any, names: Collection[str]) -> str:
    """What an entry adds, in one line."""
    if not isinstance(value, dict):
        return "" if value is None else str(jsonvalues.redact(value, names))
    hidden = jsonvalues.redact(value, names)
    parts = []
    for key, member in hidden.items():
        if member in (None, "", 0):
            continue
        if key == "error":
            parts.append(formatting.one_line(member, 300))
        elif key in ("delay", "seconds") and isinstance(member, int | float):
            parts.append(_("waits %(time)s") % {"time": formatting.duration(member)})
        elif isinstance(member, dict) and member.keys() == {"from", "to"}:
            label = CHANGED.get(key, key)
            parts.append(f"{label}: {_moment_or(member['from'])} → {_moment_or(member['to'])}")
        elif isinstance(member, dict | list):
            parts.append(f"{key}: {json.dumps(member, ensure_ascii=False)[:300]}")
        else:
            parts.append(f"{key}: {member}" if key != "reason" else str(member))
    return " · ".join(parts)


def _moment_or(value: Any) -> Any:
    """A moment in the current time zone; any other value as it is."""
    if value is None:
        return formatting.EMPTY
    try:
        return formatting.full_moment(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return value
