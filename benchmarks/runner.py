"""Runs the contenders of a measure alternately, each in a process group with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import OURS, PEERS, System
from benchmarks.measures import Contender, Measure
from benchmarks.server import Server

SIDES = Path(__file__).parent / "sides"


@dataclass
class Result:
    """The values of one contender over all rounds, or why there are none."""

    contender: Contender
    values: list[float] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    def extra(self, name: str) -> float | None:
        """The median of a further number that the side reports."""
        found = [answer[name] for answer in self.answers if name in answer]
        return statistics.median(found) if found else None


class Failed(Exception):
    """A side did not answer; the text is the end of what it printed."""


def run(
    measure: Measure,
    server: Server | None,
    *,
    rounds: int,
    broken: dict[str, str],
    tell: Callable[[str], None],
) -> list[Result]:
    """All contenders one after the other, ``rounds`` times: ours, peer A, peer B, ours, …

    A contender that has failed is not run again. ``broken`` holds the systems that could not be
    installed, with the reason.
    """
    results = [Result(contender) for contender in measure.contenders]
    for result in results:
        result.error = broken.get(result.contender.system)
    for number in range(rounds):
        for result in results:
            if result.error is not None:
                continue
            label = f"{measure.name} {number + 1}/{rounds} {result.contender.label}"
            try:
                answer = once(measure, result.contender, server)
            except Failed as error:
                result.error = str(error)
                tell(f"{label}: {error}")
                continue
            if "missing" in answer:
                result.error = answer["missing"]
                tell(f"{label}: {result.error}")
                continue
            result.answers.append(answer)
            result.values.append(float(answer["value"]))
            tell(f"{label}: {answer['value']:,.4g} {measure.unit}")
    return results


def once(measure: Measure, contender: Contender, server: Server | None) -> dict[str, Any]:
    """One side, one time, in a new database."""
    system = OURS if contender.system == OURS.name else PEERS[contender.system]
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    if measure.sqlite:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3")}
    else:
        assert server is not None
        database = server.create()
    request = {**contender.request, "database": database, "calls": str(folder / "calls")}
    (folder / "calls").touch()
    try:
        return answer_of(system, request, measure.limit, folder)
    finally:
        if server is not None and not measure.sqlite:
            server.drop(database)
        shutil.rmtree(folder, ignore_errors=True)


def answer_of(
    system: System, request: dict[str, Any], limit: float, folder: Path
) -> dict[str, Any]:
    """Run the side's script in a process group of its own and read its last line.

    Raises Failed when it ends without an answer or takes longer than ``limit`` seconds.
    """
    command = [str(system.python), str(SIDES / system.script), json.dumps(request)]
    errors = folder / "errors"
    with errors.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            cwd=folder,
            start_new_session=True,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {limit:g} s; {_end(errors)}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = output.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise Failed(_end(errors) or f"ended with {process.returncode}") from None
    if not isinstance(answer, dict):
        raise Failed(f"answered {lines[-1][:100]!r}")
    return answer


def _end(errors: Path) -> str:
    lines = errors.read_text(errors="replace").strip().splitlines()
    return " ".join(lines[-1:])[:300]


def tell(text: str) -> None:
    """A line for the person who waits."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
