"""Pictures of numbers over time: shapes for the templates, which draw them as SVG without scripts.

All numbers in them are texts already: a template would write 0.5 as "0,5" in some languages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.utils import timezone

from django_jobs import clock
from django_jobs.admin import formatting
from django_jobs.observe.stats import Part

#: The drawing's own measures; the page stretches it.
WIDTH, HEIGHT = 600, 120
#: The highest value stays below the upper edge.
TALLEST = 114
#: The kinds of a series, by which the style sheet colours it.
PERCENTS = {50: "p50", 95: "p95", 99: "p99"}


@dataclass(frozen=True)
class Shape:
    """A rectangle, or a line through ``points``."""

    kind: str
    title: str = ""
    x: str = ""
    y: str = ""
    width: str = ""
    height: str = ""
    points: str = ""


@dataclass
class Chart:
    """A picture with the same numbers as a table."""

    title: str
    top: str
    start: str
    end: str
    legend: list[tuple[str, str]]
    columns: list[str]
    shapes: list[Shape] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    empty: bool = False


def bars(title: str, parts: Sequence[Part], good: str, bad: str, columns: list[str]) -> Chart:
    """Jobs that ended in each part of the time, the failed among them on top."""
    most = max((part.finished for part in parts), default=0)
    chart = _chart(title, parts, formatting.number(most), [("good", good), ("bad", bad)], columns)
    chart.empty = most == 0
    step = WIDTH / max(len(parts), 1)
    for number, part in enumerate(parts):
        label = _label(part)
        about = "~" if part.estimated else ""
        counts = [f"{about}{formatting.number(count)}" for count in (part.finished, part.failed)]
        chart.rows.append([label, *counts])
        done = part.finished - part.failed
        low = 0.0
        for kind, count in (("good", done), ("bad", part.failed)):
            high = TALLEST * count / most if most else 0.0
            if count:
                said = good if kind == "good" else bad
                chart.shapes.append(
                    Shape(
                        kind, f"{label}: {about}{formatting.number(count)} {said}", _number(number * step + 1),
                        _number(HEIGHT - low - max(high, 1)), _number(step - 2), _number(max(high, 1)),
                    )
                )  # fmt: skip
            low += high
    return chart


def lines(
    title: str,
    parts: Sequence[Part],
    value: Callable[[Part, int], float | None],
    shown: Callable[[float | None], str],
    columns: list[str],
) -> Chart:
    """The median and the slow ones of each part of the time."""
    found = {percent: [value(part, percent) for part in parts] for percent in PERCENTS}
    most = max((one for row in found.values() for one in row if one is not None), default=0.0)
    legend = [(kind, kind) for kind in PERCENTS.values()]
    chart = _chart(title, parts, shown(most) if most else "", legend, columns)
    chart.empty = not any(one is not None for row in found.values() for one in row)
    step = WIDTH / max(len(parts), 1)
    for percent, kind in reversed(PERCENTS.items()):
        for piece in _pieces(found[percent]):
            points = [
                f"{_number((i + 0.5) * step)},{_number(HEIGHT - TALLEST * one / (most or 1))}"
                for i, one in piece
            ]
            if len(points) == 1:
                # A lone value is a short dash: a line of one point is not drawn.
                i, one = piece[0]
                y = _number(HEIGHT - TALLEST * one / (most or 1))
                points = [f"{_number((i + 0.2) * step)},{y}", f"{_number((i + 0.8) * step)},{y}"]
            chart.shapes.append(Shape(kind, points=" ".join(points)))
    for number, part in enumerate(parts):
        chart.rows.append([_label(part), *(shown(found[percent][number]) for percent in PERCENTS)])
    return chart


def _pieces(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Runs of values without a gap."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for number, value in enumerate(values):
        if value is not None:
            pieces[-1].append((number, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _chart(
    title: str, parts: Sequence[Part], top: str, legend: list[tuple[str, str]], columns: list[str]
) -> Chart:
    ends = [_moment(parts[0].start), _moment(parts[-1].end)] if parts else ["", ""]
    return Chart(title, top, ends[0], ends[1], legend, columns)


def _label(part: Part) -> str:
    return f"{_moment(part.start)} – {_moment(part.end)}"


def _moment(value: Any) -> str:
    local = timezone.localtime(value) if timezone.is_aware(value) else value
    return f"{local:%m-%d %H:%M}" if (clock.now() - value).days else f"{local:%H:%M}"


def _number(value: float) -> str:
    return f"{value:.1f}"
