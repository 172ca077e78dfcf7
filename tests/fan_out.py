"""``pytest`` runs the suite once per database: this process starts one pytest for each.

``TEST_DATABASE`` names the database of one such run; set by hand it runs that one alone.
``TEST_REQUIRE=postgresql`` makes it a failure that PostgreSQL cannot be had. MariaDB takes part where
``MARIADB_URL`` names one: ``python -m tests.embedded_mariadb -- python -m pytest``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import pytest

from tests import embedded_pg

#: Processes for each database.
WORKERS = 2
COUNTS_FILE = "TEST_COUNTS_FILE"
LATER = "TEST_LATER_DATABASE"
# pytest's categories, as the closing line counts them
MEANING = {
    "passed": "passed",
    "failed": "failed",
    "error": "failed",
    "xpassed": "failed",
    "skipped": "skipped",
    "xfailed": "skipped",
}
ONLY_INFORM = (
    "help",
    "version",
    "collectonly",
    "showfixtures",
    "show_fixtures_per_test",
    "markers",
    "setupplan",
    "cacheshow",
)


def is_wanted(config: pytest.Config) -> bool:
    """Whether this is the run that a person started, and one that runs tests."""
    if os.environ.get("TEST_DATABASE") or hasattr(config, "workerinput"):
        return False
    return not any(getattr(config.option, name, None) for name in ONLY_INFORM)


def is_later_database() -> bool:
    """Whether another run of the same call does the tests that need no database."""
    return LATER in os.environ


def write_counts(stats: Mapping[str, Sized]) -> None:
    """Leave this run's counts for the process that started it."""
    if COUNTS_FILE not in os.environ:
        return
    counts: Counter[str] = Counter()
    for category, reports in stats.items():
        if category in MEANING:
            counts[MEANING[category]] += len(reports)
    Path(os.environ[COUNTS_FILE]).write_text(json.dumps(counts))


def run(config: pytest.Config) -> int:
    """Run pytest once per database, print one summary, return the exit code for all."""
    required = set(filter(None, os.environ.get("TEST_REQUIRE", "").split(",")))
    missing = []
    databases = ["sqlite"]
    for name, available in (
        ("postgresql", embedded_pg.find_bindir() is not None),
        ("mariadb", bool(os.environ.get("MARIADB_URL"))),
    ):
        if available:
            databases.append(name)
        elif name in required or name == "postgresql":
            missing.append(name)
    with tempfile.TemporaryDirectory(prefix="django-jobs-pytest-") as folder:
        runs = [_Run(name, index, config, Path(folder)) for index, name in enumerate(databases)]
        _wait_for_all(runs)
        for later in runs[1:]:
            print(f"\n===== {later.database} =====", flush=True)
            sys.stdout.write(later.output())
        return _summary(runs, missing, required)


def _wait_for_all(runs: list[_Run]) -> None:
    def pass_on(number: int, _frame: Any) -> None:
        for each in runs:
            if each.process is not None:
                each.process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        if not runs[0].is_interactive:
            for each in runs[1:]:
                each.start()
        for each in runs:
            each.start()
            each.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _summary(runs: list[_Run], missing: list[str], required: set[str]) -> int:
    total: Counter[str] = Counter()
    print("\n===== all databases =====")
    for each in runs:
        counts = each.counts()
        total += counts
        print(f"{each.database}: {_line(counts)} (exit code {each.code})")
    for name in missing:
        if name in required:
            total["failed"] += 1
            print(f"{name}: REQUIRED, BUT NOT TO BE HAD HERE")
        else:
            total["skipped"] += 1
            print(f"{name}: SKIPPED ALTOGETHER, as it is not to be had here")
    print(_line(total), flush=True)
    # "Nothing collected" on one database is no failure: its tests may all be of the other kind.
    codes = {each.code for each in runs} - {int(pytest.ExitCode.NO_TESTS_COLLECTED)}
    if total["failed"]:
        codes.add(int(pytest.ExitCode.TESTS_FAILED))
    return max(codes, default=int(pytest.ExitCode.NO_TESTS_COLLECTED))


def _line(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped"))


def _is_whole_suite(config: pytest.Config) -> bool:
    """Whether nothing is selected, and nobody said in how many processes it is to run."""
    chosen = ("numprocesses", "keyword", "markexpr", "usepdb", "lf", "failedfirst", "stepwise")
    return (
        config.pluginmanager.has_plugin("xdist")
        and config.args_source != pytest.Config.ArgsSource.ARGS
        and not any(getattr(config.option, name, None) for name in chosen)
    )


class _Run:
    """One pytest process on one database; the first one writes to the terminal itself."""

    def __init__(self, database: str, index: int, config: pytest.Config, folder: Path) -> None:
        self.database = database
        self.process: subprocess.Popen[bytes] | None = None
        self.is_interactive = bool(getattr(config.option, "usepdb", False))
        self._is_live = index == 0 or self.is_interactive
        self._folder = config.invocation_params.dir
        self._log = folder / f"{database}.log"
        self._counts = folder / f"{database}.json"
        own = []
        if config.pluginmanager.has_plugin("cacheprovider"):
            own += ["-o", f"cache_dir={config.rootpath / '.pytest_cache' / database}"]
        if xml := getattr(config.option, "xmlpath", None):
            own.append(f"--junitxml={Path(xml).with_suffix('')}-{database}.xml")
        if basetemp := getattr(config.option, "basetemp", None):
            own.append(f"--basetemp={Path(basetemp) / database}")
        if _is_whole_suite(config):
            # Tests wait for processes half of their time.
            own += ["-n", str(WORKERS), "--dist", "worksteal"]
        arguments = [str(argument) for argument in config.invocation_params.args]
        self._command = [sys.executable, "-m", "pytest", *arguments, *own]
        self._environment = {
            **os.environ,
            "TEST_DATABASE": database,
            COUNTS_FILE: str(self._counts),
            # xdist's processes must collect the same tests in the same order.
            "PYTHONHASHSEED": "0",
            **({LATER: "1"} if index else {}),
        }
        self._environment.pop("TEST_DB", None)  # of this process, which runs no test

    def start(self) -> None:
        if self.process is not None:
            return
        if self._is_live:
            self.process = self._popen()
        else:
            with self._log.open("wb") as log:
                self.process = self._popen(
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )

    def _popen(self, **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, env=self._environment, cwd=self._folder, **streams)

    def wait(self) -> None:
        assert self.process is not None
        while self.process.returncode is None:
            try:
                self.process.wait()
            except KeyboardInterrupt:
                continue  # the children got it as well and end with their own summary

    @property
    def code(self) -> int:
        assert self.process is not None and self.process.returncode is not None
        code = self.process.returncode
        return 128 - code if code < 0 else code

    def counts(self) -> Counter[str]:
        """What the run counted; a run that ended without counting is one failure."""
        counts: Counter[str] = Counter()
        if self._counts.exists():
            counts.update(json.loads(self._counts.read_text()))
        elif self.code != pytest.ExitCode.NO_TESTS_COLLECTED:
            counts["failed"] = 1
        return counts

    def output(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""
