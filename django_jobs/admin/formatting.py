"""Values as people read them. Nothing here marks data as safe: HTML is made by ``format_html``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils import formats, timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy, ngettext

from django_jobs import clock, conf, jsonvalues
from django_jobs.definitions import registry
from django_jobs.lifecycle import Kind, Status, StepKind, StepStatus

EMPTY = "–"

#: What the admin calls each status.
STATUS_LABELS: dict[str, Any] = {
    Status.PENDING: gettext_lazy("pending"),
    Status.RUNNING: gettext_lazy("running"),
    Status.SLEEPING: gettext_lazy("sleeping"),
    Status.PAUSED: gettext_lazy("paused"),
    Status.COMPLETED: gettext_lazy("completed"),
    Status.FAILED: gettext_lazy("failed"),
    Status.CANCELED: gettext_lazy("canceled"),
    Status.COMPENSATING: gettext_lazy("compensating"),
    Status.COMPENSATED: gettext_lazy("compensated"),
    Status.COMPENSATION_FAILED: gettext_lazy("compensation failed"),
    StepStatus.SKIPPED: gettext_lazy("skipped"),
    "undone": gettext_lazy("undone"),
    "lost": gettext_lazy("lost"),
    "stopped": gettext_lazy("stopped"),
    "silent": gettext_lazy("silent"),
    "draining": gettext_lazy("draining"),
}


#: What the admin calls each kind of job and of step.
KIND_LABELS: dict[str, Any] = {
    Kind.TASK: gettext_lazy("task"),
    Kind.WORKFLOW: gettext_lazy("workflow"),
    Kind.DAG: gettext_lazy("graph"),
    StepKind.INLINE: gettext_lazy("inline"),
    StepKind.HTTP: gettext_lazy("HTTP"),
    StepKind.SLEEP: gettext_lazy("sleep"),
    StepKind.EVENT: gettext_lazy("event"),
    StepKind.CHILD: gettext_lazy("child run"),
    StepKind.MAP: gettext_lazy("map"),
    StepKind.COMPENSATION: gettext_lazy("compensation"),
}


def kind(value: str) -> str:
    return str(KIND_LABELS.get(value, value))


def badge(status: str | None) -> SafeString | str:
    """A status as coloured text; what is no known status shows as it is."""
    if not status:
        return EMPTY
    if status in STATUS_LABELS:
        name = str(status).replace("_", "-")
        return format_html('<span class="dj-badge dj-{}">{}</span>', name, STATUS_LABELS[status])
    return format_html('<span class="dj-badge">{}</span>', status)


def short_id(value: UUID | str | None) -> str:
    """Both ends of an id: the beginning tells the time, the end tells ids of one minute apart."""
    text = str(value or "")
    return f"{text[:8]}…{text[-6:]}" if len(text) > 16 else text


def moment(value: datetime | None) -> SafeString | str:
    """A moment in the current time zone: the time alone when it is today's."""
    if value is None:
        return EMPTY
    local = timezone.localtime(value) if timezone.is_aware(value) else value
    today = timezone.localtime(clock.now()).date() if timezone.is_aware(value) else None
    text = f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', local.isoformat(), full_moment(value), text
    )


def full_moment(value: datetime | None) -> str:
    """A moment to the millisecond, with its zone."""
    if value is None:
        return EMPTY
    local = timezone.localtime(value) if timezone.is_aware(value) else value
    return (
        f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03d} {local.tzname() or ''}".strip()
    )


def in_zone(value: datetime) -> str:
    """A moment in the zone that it is given in, to the minute, or to the second where it has some."""
    form = "%a %Y-%m-%d %H:%M:%S" if value.second else "%a %Y-%m-%d %H:%M"
    return f"{value.strftime(form)} {value.tzname() or ''}".strip()


def number(value: int) -> str:
    """A count with its thousands apart, as the reader's language has it."""
    return formats.number_format(value, use_l10n=True, force_grouping=True)


def duration(seconds: float | timedelta | None) -> str:
    """A length of time in the two units that matter."""
    if seconds is None:
        return EMPTY
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds < 0:
        return EMPTY
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{formats.number_format(round(seconds, 1), 1, use_l10n=True)} s"
    whole = int(seconds)
    for unit, size, smaller, part in (
        ("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1),
    ):  # fmt: skip
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def span(started: datetime | None, finished: datetime | None, *, running: bool = False) -> str:
    """From start to end; up to now for what still runs."""
    if started is None or (finished is None and not running):
        return EMPTY
    end = finished or clock.now()
    if timezone.is_naive(started) and timezone.is_aware(end):
        end = end.astimezone(UTC).replace(tzinfo=None)
    return duration(end - started)


def worker_name(worker: UUID | None, known: Mapping[UUID, object]) -> str:
    """Host and pid; the id's ends for a worker whose row is gone."""
    if worker is None:
        return ""
    return str(known[worker]) if worker in known else short_id(worker)


def size(characters: int) -> str:
    if characters < 1024:
        return ngettext("%(n)d character", "%(n)d characters", characters) % {"n": characters}
    return f"{number(round(characters / 1024))} KiB"


def pretty(value: Any, names: Collection[str] = ()) -> str:
    """JSON for reading, with secrets hidden."""
    hidden = jsonvalues.redact(value, names)
    return jsonvalues.clean_text(
        json.dumps(hidden, indent=2, ensure_ascii=False, default=str), limit=8 * 1024 * 1024
    )


def one_line(error: Any, limit: int = 160) -> str:
    """An error dict in one line: type without its module, and message."""
    if not isinstance(error, dict):
        return "" if error is None else str(error)[:limit]
    kind = str(error.get("type") or error.get("code") or "").rpartition(".")[2]
    message = " ".join(str(error.get("message") or "").split())
    line = f"{kind}: {message}" if kind and message else kind or message
    return line if len(line) <= limit else line[: limit - 1] + "…"


def secret_names(slug: str) -> tuple[str, ...]:
    """Names of fields that are hidden for this task, besides the usual ones."""
    definition = registry.snapshot().get(slug)
    declared = [name for version in (definition or {}).values() for name in version.redact]
    return (*conf.get().redact, *declared)
