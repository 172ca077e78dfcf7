"""Runs the code of a documentation page in a project of its own, from top to bottom.

What a fenced block means:

``python`` whose first line is ``# shop/jobs.py``
    the file is written; ``# mysite/settings.py, at the end`` is added to the file instead.
``python`` without such a line
    is run by ``manage.py shell``.
``console``
    lines that start with ``$`` are run with bash in the project's folder; the lines below a command
    are its output, in which ``…`` stands for anything. Without such lines any output will do.
``bash``
    is run as one script.
``text``, ``json``
    is not run.

A block below the comment ``<!-- run by .ci/run -->`` is a command of its own that CI runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import bytecode
from tests.support import ROOT

LANGUAGES = {"python", "console", "bash", "text", "json"}
NOT_RUN = {"text", "json"}
BY_CI = "<!-- run by .ci/run -->"
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^\s`]*)\s*$")
TARGET = re.compile(r"^# (?P<path>[\w./-]+\.(?:py|ini|toml))(?P<add>, at the end)?$")
TAIL = "\n# --- the database of this run ---\n"
LIMIT = 180  # seconds for one command
# With job control, as in a terminal, a background job is a process group of its own; what is left
# of them when the script ends, however it does, is ended as well.
PREAMBLE = """set -emo pipefail
trap 'for group in $(jobs -p); do kill -9 -- "-$group" 2>/dev/null || true; done' EXIT
"""


class DocsError(AssertionError):
    """A block did not do what its page says."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its text and where it stands."""

    page: str
    line: int
    language: str
    text: str
    is_run_by_ci: bool = False

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The README and every page below docs/."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if "_build" not in page.parts]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order. MyST directives (``{toctree}``) are no code."""
    name = page.relative_to(ROOT).as_posix()
    opened: re.Match[str] | None = None
    body: list[str] = []
    before = ""
    start = 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is None:
            if match := FENCE.match(line):
                opened, start, body = match, number, []
            elif line.strip():
                before = line.strip()
        elif line.strip() == opened["ticks"]:
            if not opened["language"].startswith("{"):
                text = textwrap.dedent("\n".join(body)) + "\n"
                yield Block(name, start, opened["language"], text, before == BY_CI)
            opened, before = None, ""
        else:
            body.append(line)
    if opened is not None:
        raise DocsError(f"{name}:{start}: the block does not end.")


@dataclass(frozen=True)
class Project:
    """A folder in which the blocks of one page are run."""

    folder: Path
    python: Path = Path(sys.executable)
    installs: bool = False  # whether `pip install` commands are really run
    database: str = ""  # Python text of a DATABASES entry; empty = the page's own (SQLite)

    def prepare(self) -> None:
        """What a page takes for granted: a project ``mysite`` with an app ``shop``, migrated."""
        self.shell("django-admin startproject mysite .; python manage.py startapp shop", "prepare")
        settings = self.folder / "mysite" / "settings.py"
        settings.write_text(
            settings.read_text()
            + '\nINSTALLED_APPS += ["django_jobs", "shop"]\n'
            + 'if "sqlite" in DATABASES["default"]["ENGINE"]:\n'
            + '    DATABASES["default"]["OPTIONS"] = {\n'
            + '        "transaction_mode": "IMMEDIATE", "timeout": 20,\n'
            + '        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"}\n'
        )
        self.shell("python manage.py migrate -v 0", "prepare")

    def copy_of(self, prepared: Project) -> None:
        """:meth:`prepare` by copying a project that is prepared; its database is copied elsewhere."""
        shutil.copytree(prepared.folder, self.folder, dirs_exist_ok=True)

    def run(self, block: Block) -> None:
        """Do what the block says; :class:`DocsError` when it does not come out as written."""
        if block.language == "python":
            first = block.text.split("\n", 1)[0]
            if target := TARGET.match(first):
                self._write(target["path"], block.text, adds=bool(target["add"]))
            else:
                self._snippet(block)
        elif block.language == "bash":
            self.shell(block.text, block.place)
        elif block.language == "console":
            for command, expected in commands(block):
                self._command(command, expected, block.place)

    def shell(self, script: str, place: str) -> str:
        """Run ``script`` with bash and return what it printed, both streams together."""
        self._set_database()
        done = subprocess.run(
            ["bash", "-c", PREAMBLE + script],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        if done.returncode:
            raise DocsError(f"{place}: exit code {done.returncode}\n{script}\n{done.stdout}")
        return done.stdout

    def _command(self, command: str, expected: str, place: str) -> None:
        if "pip install" in command and not self.installs:
            return
        output = self.shell(command, place)
        if expected and not fits(expected, output):
            raise DocsError(f"{place}: {command}\nexpected:\n{expected}\ngot:\n{output}")

    def _snippet(self, block: Block) -> None:
        snippet = self.folder / ".snippet.py"
        snippet.write_text(block.text)
        # Django's shell runs what it reads from its standard input in one namespace.
        self.shell("python manage.py shell < .snippet.py", block.place)

    def _write(self, path: str, text: str, *, adds: bool) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if adds:
            text = target.read_text() + "\n\n" + text
        target.write_text(text)

    def _set_database(self) -> None:
        settings = self.folder / "mysite" / "settings.py"
        if self.database and settings.exists():
            own = settings.read_text().partition(TAIL)
            # Behind everything the page itself has added meanwhile.
            settings.write_text(
                own[0] + own[2].partition("\n")[2] + TAIL + f"DATABASES = {self.database}\n"
            )

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TEST_", "PYTEST_", "DJANGO_SETTINGS", "PYTHONPATH"))
            # What pip has compiled in an environment of its own lies beside the sources.
            and not (self.installs and name == bytecode.FOLDER)
        }
        return {
            **kept,
            "PATH": os.pathsep.join([str(self.python.parent), kept.get("PATH", os.defpath)]),
            "CHECKOUT": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            **({} if self.installs else {"PYTHONPATH": str(ROOT)}),
        }


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output written below it."""
    command, expected = "", []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, "\n".join(expected)
            command, expected = line[2:], []
        elif command.endswith("\\"):
            command = f"{command[:-1]}{line.strip()}"
        elif not command:
            raise DocsError(f"{block.place}: output without a command: {line!r}")
        else:
            expected.append(line)
    if command:
        yield command, "\n".join(expected)


def fits(expected: str, output: str) -> bool:
    """Whether ``output`` is ``expected``, in which ``…`` stands for anything."""
    parts = [re.escape(part) for part in expected.strip().split("…")]
    return re.fullmatch("(?s:.*)".join(parts), output.strip(), re.DOTALL) is not None


def run_page(page: Path, project: Project) -> int:
    """Run a page in ``project`` and return how many blocks were run."""
    run = 0
    for block in blocks(page):
        if block.language not in NOT_RUN and not block.is_run_by_ci:
            project.run(block)
            run += 1
    return run
