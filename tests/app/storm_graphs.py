"""Random graphs that worker processes run: the same in each process, by their seeds.

Made only where ``TEST_GRAPH_STORM`` says how many. What their functions do they note in files below
``TEST_GRAPH_MARKS``, one for each graph.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

from django_jobs import DAG
from tests.app.jobs import note
from tests.dag.graphs import DEEDS, Log, Wish, build

COUNT = int(os.environ.get("TEST_GRAPH_STORM") or 0)
SEED = int(os.environ.get("TEST_GRAPH_SEED") or 7)


class Marks(list[str]):
    """A list that writes what is appended to a file; :meth:`read` is what all processes wrote."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__()
        self.path, self.what = path, what

    def append(self, word: str) -> None:
        note(str(self.path), self.what, word, os.getpid())

    def read(self) -> list[str]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == self.what]


def slug(number: int) -> str:
    return f"storm-{SEED}-{number}"


def wanted(number: int) -> list[Wish]:
    """The wishes of graph ``number``: up to nine steps, some of which fail, time out or are skipped."""
    source = random.Random(f"{SEED}-{number}")
    found = []
    for place in range(source.randint(2, 9)):
        before = source.sample(range(place), min(place, source.randint(0, 3)))
        found.append(
            Wish(
                deed=source.choice(("returns",) * 7 + (*DEEDS, "times out")),
                after=tuple(sorted(before)),
                optional=source.random() < 0.17,
                over_failures=source.random() < 0.17,
                parallel=source.random() < 0.8,
                undo=source.choice(("", "works", "flaky")),
            )
        )
    return found


def log(number: int) -> Log:
    path = Path(os.environ["TEST_GRAPH_MARKS"]) / slug(number)
    return Log(Marks(path, "start"), Marks(path, "end"), Marks(path, "undo"))


async def too_long(ctx: Any) -> None:
    await asyncio.sleep(30)


def define(number: int) -> DAG:
    return build(slug(number), wanted(number), log(number), delay=0.05, too_long=too_long)


GRAPHS = [define(number) for number in range(COUNT)] if "TEST_GRAPH_MARKS" in os.environ else []
