"""Turns results into the table on the screen, the published page and its pictures."""

from __future__ import annotations

import html
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.environments import CACHE, ROOT
from benchmarks.measures import MEASURES, Measure
from benchmarks.runner import Result
from benchmarks.targets import LIMITS, TARGETS, Target

PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
RESULTS = "results.json"


#: Further numbers that a side may report, and what heads their column.
EXTRAS = {
    "p99": "p99, ms", "statements": "statements/s",
    "worker_us": "worker CPU, µs each", "database_us": "database CPU, µs each",
}  # fmt: skip


@dataclass
class Row:
    """One contender of one measure, as it is printed."""

    label: str
    system: str
    values: list[float]
    median: float | None
    extras: dict[str, float]
    settings: str
    kill: str
    commits_more: bool
    error: str | None = None


@dataclass
class Section:
    """One measure with all that must be named beside its figures."""

    measure: str
    rows: list[Row]
    commit: str
    date: str
    command: str
    rounds: int
    machine: str
    database: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """How one target or limit stands."""

    measure: str
    text: str
    met: bool
    #: Whether what is missed may not be missed by any excuse.
    is_floor: bool = False


def row(result: Result) -> Row:
    """What one contender's results come to."""
    contender = result.contender
    names = {name for answer in result.answers for name in answer} & EXTRAS.keys()
    extras = {name: result.extra(name) or 0.0 for name in sorted(names)}
    settings = str(result.answers[0].get("settings", "")) if result.answers else ""
    return Row(
        contender.label, contender.system, result.values, result.median, extras, settings,
        contender.kill, contender.commits_more, result.error,
    )  # fmt: skip


def quotient(measure: Measure, ours: float, peer: float) -> float:
    """How many times better ours is; turned over where smaller values are better."""
    if measure.smaller:
        ours, peer = peer, ours
    return ours / peer if peer else float("inf")


def verdicts(
    measure: Measure, rows: Iterable[Row], targets: Sequence[Target] = TARGETS
) -> list[Verdict]:
    """Every target and limit of this measure that the rows can answer."""
    medians = {row.label: row.median for row in rows if row.median is not None}
    by_label = {row.label: row for row in rows}
    found = []
    for target in targets:
        ours, peer = medians.get(target.ours), medians.get(target.peer)
        if target.measure != measure.name or ours is None or peer is None:
            continue
        ratio = quotient(measure, ours, peer)
        of = f"{target.ours} ÷ {target.peer}"
        found.append(
            Verdict(
                measure.name, f"{of} = {ratio:.2f}, target {target.ratio:g}", ratio >= target.ratio
            )
        )
        if target.floor is not None:
            text = f"{of} = {ratio:.2f}, floor {target.floor:g}"
            found.append(Verdict(measure.name, text, ratio >= target.floor, is_floor=True))
    for limit in LIMITS if targets is TARGETS else ():
        if limit.measure != measure.name or limit.label not in medians:
            continue
        value = by_label[limit.label].extras.get(limit.extra or "", medians[limit.label] or 0.0)
        name = limit.extra or measure.unit
        if limit.beyond is not None:
            if limit.beyond not in medians:
                continue
            value -= medians[limit.beyond] or 0.0
            name += f" beyond {limit.beyond}"
        text = f"{limit.label}: {value:.3g} {name}, limit {limit.most:g}"
        found.append(Verdict(measure.name, text, value <= limit.most))
    return found


def table(measure: Measure, rows: Sequence[Row]) -> list[list[str]]:
    """Header and lines: median, range and how ours compares; errors in place of figures."""
    extras = sorted({name for row in rows for name in row.extras})
    heads = [EXTRAS.get(name, name) for name in extras]
    lines = [["", f"median, {measure.unit}", "min–max", *heads, f"{rows[0].label} ÷ this"]]
    ours = rows[0].median
    for one in rows:
        if one.median is None:
            lines.append([one.label, "–", "–", *("–" for _ in extras), one.error or "not run"])
            continue
        ratio = "" if ours is None else f"{quotient(measure, ours, one.median):.2f}"
        spread = f"{_number(min(one.values))}–{_number(max(one.values))}"
        further = [_number(one.extras[name]) if name in one.extras else "–" for name in extras]
        lines.append([one.label, _number(one.median), spread, *further, ratio])
    return lines


def plain(lines: Sequence[Sequence[str]]) -> str:
    """A table for the terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same table for the page."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head, *body = escaped
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


# --- the published page ---------------------------------------------------------------------------


def forget() -> None:
    """Drop the results of earlier runs."""
    (CACHE / RESULTS).unlink(missing_ok=True)


def remember(section: Section) -> None:
    """Keep the section beside those of earlier runs."""
    path = CACHE / RESULTS
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    stored[section.measure] = asdict(section)
    path.write_text(json.dumps(stored, indent=1))


def remembered() -> dict[str, Section]:
    """All results that are kept, by measure."""
    path = CACHE / RESULTS
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {
        name: Section(**{**found, "rows": [Row(**row) for row in found["rows"]]})
        for name, found in stored.items()
        if name in MEASURES
    }


def publish(sections: dict[str, Section]) -> None:
    """Write the page and one picture for each measure."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, section in sections.items():
        picture = svg(MEASURES[name], section.rows)
        (IMAGES / f"benchmark-{name}.svg").write_text(picture)
    PAGE.write_text(page([sections[name] for name in MEASURES if name in sections]))


def page(sections: Sequence[Section]) -> str:
    """The text of the page."""
    parts = [_INTRODUCTION]
    for section in sections:
        parts.append(_section(section))
    parts.append(_targets(sections))
    return "\n\n".join(parts).rstrip() + "\n"


_INTRODUCTION = """# Benchmarks

This page is made by `python -m benchmarks`. Each run starts its own PostgreSQL with `fsync`,
`synchronous_commit` and `full_page_writes` on, installs each peer by name into an environment of its
own, and runs all sides of a measure alternately: ours, peer A, peer B, ours, … Each side gets a
new, empty database. Medians, smallest and largest of the rounds are printed.

Only ratios taken in one run mean something: the machine, its disk and what else runs on it decide
the absolute figures. What every peer does for a job differs as well. So each table says what was
set, and what a `kill -9` of the worker repeats or loses at that setting. Peers that commit more
often than we do in the same measure are marked with ¹: part of our lead over them is that their
outcomes are on the disk one by one. `acknowledge="each"` buys the same from us at the price that
its own measure shows."""


def _section(section: Section) -> str:
    measure = MEASURES[section.measure]
    lines = table(measure, section.rows)
    for one, line in zip(section.rows, lines[1:], strict=True):
        line[0] += "¹" if one.commits_more else ""
    notes = [
        f"- {one.label}{' ' + section.versions[one.system] if one.system in section.versions else ''}"
        f": {one.settings or 'no settings'}" + (f"; killed: {one.kill}" if one.kill else "")
        for one in section.rows
        if one.median is not None
    ]
    about = (
        f"Commit {section.commit}, {section.date}, {section.rounds} rounds, {section.machine}, "
        f"{section.database}."
    )
    return "\n\n".join(
        [
            f"## {measure.title}",
            measure.definition,
            markdown(lines),
            f"![{measure.title}](images/benchmark-{measure.name}.svg)",
            "\n".join(notes),
            about,
            f"```text\n{section.command}\n```",
        ]
    )


def _targets(sections: Sequence[Section]) -> str:
    lines = [["Measure", "Ratio or number", "Met"]]
    for section in sections:
        for verdict in verdicts(MEASURES[section.measure], section.rows):
            lines.append([verdict.measure, verdict.text, "yes" if verdict.met else "**no**"])
    return "## Targets\n\n" + markdown(lines).replace("---:", "---")


def svg(measure: Measure, rows: Sequence[Row]) -> str:
    """Horizontal bars with whiskers from smallest to largest; readable on light and dark."""
    shown = [row for row in rows if row.median is not None]
    top = max([max(row.values) for row in shown], default=1.0) or 1.0
    left, width, step = 250, 420, 30
    height = 44 + step * len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 110} {height}" '
        'font-family="sans-serif" font-size="13" role="img">',
        f"<title>{html.escape(measure.title)}</title>",
        f'<text x="8" y="20" font-weight="bold" fill="#808080">{html.escape(measure.title)}, '
        f"{measure.unit}</text>",
    ]
    for number, one in enumerate(shown):
        y = 36 + step * number
        median = one.median or 0.0
        bar, low, high = (
            width * value / top for value in (median, min(one.values), max(one.values))
        )
        colour = "#2a7f62" if one.system == "django_jobs" else "#8896ab"
        parts += [
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end" fill="#808080">'
            f"{html.escape(one.label)}</text>",
            f'<rect x="{left}" y="{y}" width="{bar:.1f}" height="20" fill="{colour}"/>',
            f'<path d="M{left + low:.1f} {y + 10}H{left + high:.1f}" stroke="#404040"/>',
            f'<text x="{left + max(bar, high) + 6:.1f}" y="{y + 15}" fill="#808080">'
            f"{_number(median)}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


# --- what stands beside the figures ---------------------------------------------------------------


def commit() -> str:
    """The commit that is measured, and whether the work tree differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "django_jobs")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def machine() -> str:
    """Processors and Python; no names of machines."""
    return (
        f"{os.cpu_count()} cores {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def today() -> str:
    return datetime.now(UTC).date().isoformat()
