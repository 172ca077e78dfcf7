"""Break the engine on purpose, and see that the tests notice.

    python -m tests.sabotage              every damage
    python -m tests.sabotage NAME …       these
    python -m tests.sabotage --list       their names, rules and tests

Each damage is done to a copy of the tree, never to the checkout. The tests named with it run there:
first on an undamaged copy, where they must pass, then on the damaged one, where each of them must
fail while an ordinary job still runs. Two copies are at work side by side, each mended after every
damage. Exit code 1 when one is not caught.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import bytecode, embedded_pg, embedded_pgbouncer
from tests.sabotage.damages import DAMAGES, Damage, DoesNotApply

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("django_jobs", "tests", "testproject", "manage.py", "pyproject.toml")
#: An ordinary job, which no damage may keep from running.
ORDINARY = "tests/test_first_run.py::test_a_job_runs_and_keeps_its_output[True]"
#: Seconds for the tests of one damage.
LIMIT = 300
#: Seconds for the tests of all damages together, on an undamaged copy.
LIMIT_SOUND = 1200
#: Copies of the tree at work at the same time: tests wait for processes half of their time.
COPIES = 2
#: Seconds since the epoch, from which on changed files are numbered.
EARLY = 1_000_000_000


class Refused(Exception):
    """The proof could not be made; the text says why."""


@dataclass
class Copy:
    """A copy of what the tests need, and the PostgreSQL that its tests share."""

    tree: Path
    server: dict[str, Any] | None = None
    _numbers: Any = field(default_factory=itertools.count)

    @classmethod
    def make(cls, folder: Path, *, with_server: bool) -> Copy:
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "node_modules")
                shutil.copytree(source, folder / part, ignore=ignored)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / part)
        return cls(folder, embedded_pg.start() if with_server else None)

    def environment(self, database: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("TEST_")}
        own |= {"TEST_DATABASE": database, "PYTHONPATH": str(self.tree)}
        if database == "postgresql" and self.server is not None:
            # A database for each run: processes of the last one may still be about to die.
            name = {"NAME": f"test_{next(self._numbers)}"}
            own["TEST_DB"] = json.dumps({**self.server, "TEST": name})
        return own

    def damage(self, damage: Damage) -> dict[Path, str]:
        """Do the damage; the texts of before."""
        files = [self.tree / edit.path for edit in damage.edits]
        before = {file: file.read_text() for file in files}
        try:
            damage.apply(self.tree)
        except DoesNotApply:
            self.mend(before)
            raise
        self._are_new(files)
        return before

    def mend(self, before: dict[Path, str]) -> None:
        for file, text in before.items():
            file.write_text(text)
        self._are_new(before)

    def _are_new(self, files: Iterable[Path]) -> None:
        """Have each text's bytecode taken for old: it is known by size and whole seconds alone."""
        for file in files:
            moment = EARLY + next(self._numbers)
            os.utime(file, (moment, moment))


def check_import(copy: Copy) -> None:
    """The copy is what runs, and not the installed package."""
    asked = [sys.executable, "-c", "import django_jobs; print(django_jobs.__file__)"]
    found = subprocess.run(
        asked, cwd=copy.tree, env=copy.environment("sqlite"), capture_output=True, text=True
    )
    if not found.stdout.startswith(str(copy.tree)):
        raise Refused(f"The copy is not what would be tested: {found.stdout}{found.stderr}")


def run_tests(
    copy: Copy, database: str, tests: Sequence[str], limit: int = LIMIT
) -> dict[str, bool]:
    """Whether each test case passed, by node id; Refused when pytest could not run them."""
    report = copy.tree / "report.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    try:
        run = subprocess.run(
            [*command, *tests], cwd=copy.tree, env=copy.environment(database),
            capture_output=True, text=True, timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Refused(f"The tests did not end within {limit} s.") from None
    if run.returncode not in (0, 1) or not report.exists():
        raise Refused(
            f"pytest ended with {run.returncode}:\n{run.stdout[-3000:]}{run.stderr[-1000:]}"
        )
    passed: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        node = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        good = case.find("failure") is None and case.find("error") is None
        if case.find("skipped") is not None:
            raise Refused(f"{node} was skipped.")
        passed[node] = passed.get(node, True) and good
    return passed


def cases_of(test: str, passed: dict[str, bool]) -> list[bool]:
    """The results of a test, all its parameters where it is named without."""
    return [good for node, good in passed.items() if node == test or node.startswith(f"{test}[")]


def prove_sound(copy: Copy, database: str, damages: Sequence[Damage]) -> None:
    """On an undamaged copy every test passes, so that a failure later means something."""
    tests = sorted(
        {test for damage in damages if damage.database == database for test in damage.tests}
    )
    if not tests:
        return
    check_import(copy)
    passed = run_tests(copy, database, [ORDINARY, *tests], LIMIT_SOUND)
    bad = [node for node, good in passed.items() if not good]
    bad += [test for test in [ORDINARY, *tests] if not cases_of(test, passed)]
    if bad:
        raise Refused(f"Without any damage these do not pass on {database}: {', '.join(bad)}")


def verdict(copy: Copy, damage: Damage) -> str:
    """Empty when the damage is caught, else why not; the copy is sound again afterwards."""
    try:
        before = copy.damage(damage)
    except DoesNotApply as error:
        return str(error)
    try:
        passed = run_tests(copy, damage.database, [ORDINARY, *damage.tests])
    except Refused as error:
        return str(error)
    finally:
        copy.mend(before)
    if not all(cases_of(ORDINARY, passed)):
        return "not even an ordinary job runs: the damage breaks more than its rule"
    unmoved = [test for test in damage.tests if all(cases_of(test, passed))]
    return f"passes all the same: {', '.join(unmoved)}" if unmoved else ""


def try_all(copies: Sequence[Copy], damages: Sequence[Damage]) -> int:
    """How many are not caught; a line for each as it is known."""
    free: queue.Queue[Copy] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def attempt(damage: Damage) -> bool:
        copy = free.get()
        begun = time.monotonic()
        try:
            reason = verdict(copy, damage)
        finally:
            free.put(copy)
        word = "NOT CAUGHT" if reason else "caught"
        print(f"{word:<10}  {damage.rule:<3}  {damage.name}  ({time.monotonic() - begun:.0f} s)  {reason}",
              flush=True)  # fmt: skip
        return bool(reason)

    with ThreadPoolExecutor(len(copies)) as pool:
        return sum(pool.map(attempt, damages))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    known = {damage.name: damage for damage in DAMAGES}
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; --list shows all")
    chosen = [known[name] for name in options.names] or DAMAGES
    if options.list:
        for damage in chosen:
            print(f"{damage.name} ({damage.rule}, {damage.database})", *damage.tests, sep="\n    ")
        return 0
    absent = set()
    if embedded_pg.find_bindir() is None:
        absent.add("postgresql")
    if absent or embedded_pgbouncer.find_pooler() is None:
        absent.add("pgbouncer")
    left = [damage for damage in chosen if absent.isdisjoint((damage.database, damage.needs))]
    missing = len(chosen) - len(left)
    chosen = left
    if missing:
        print(f"Not here: {', '.join(sorted(absent))}. {missing} damages NOT TRIED.")
    bytecode.keep(ROOT / ".pytest_cache" / "bytecode")
    with_server = any(damage.database == "postgresql" for damage in chosen)
    with tempfile.TemporaryDirectory(prefix="sabotage-") as folder:
        copies = [
            Copy.make(Path(folder) / str(number), with_server=with_server)
            for number in range(COPIES)
        ]
        try:
            with ThreadPoolExecutor(2) as pool:
                # Each database on a copy of its own.
                list(pool.map(prove_sound, copies, ("sqlite", "postgresql"), (chosen, chosen)))
        except Refused as error:
            print(error)
            return 1
        uncaught = try_all(copies, chosen)
    print(f"{len(chosen) - uncaught} caught, {uncaught} not caught, {missing} not tried")
    return 1 if uncaught or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
