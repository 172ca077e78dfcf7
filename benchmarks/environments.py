"""Each peer in an environment of its own, installed by name with pip."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parent.parent
#: Outside of the repository, so that every work tree uses the same environments.
CACHE = Path(
    os.environ.get("BENCHMARKS_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "django_jobs-benchmarks"
)
#: Seconds for one installation.
LIMIT = 300
_DJANGO = f"django=={django.__version__}"
_TASKS = ["django-tasks"] if django.VERSION < (6, 0) else []


@dataclass(frozen=True)
class System:
    """One system that is measured: its script in ``sides/`` and what pip installs for it."""

    name: str
    script: str
    requirements: tuple[str, ...] = ()
    #: What is installed without what it needs itself, whatever Python it asks for.
    bare: str | None = None

    @property
    def python(self) -> Path:
        """The interpreter that runs its script."""
        if not self.requirements:
            return Path(sys.executable)
        return CACHE / self.name / "bin" / "python"


def _peer(name: str, *requirements: str, bare: str | None = None) -> System:
    return System(name, f"peer_{name.replace('-', '_')}.py", requirements, bare)


OURS = System("django_jobs", "ours.py")
PEERS = {
    peer.name: peer
    for peer in (
        _peer("pgqueuer", "pgqueuer[asyncpg]", "uvloop", "psycopg[binary]"),
        _peer("procrastinate", "procrastinate", "psycopg[binary]"),
        _peer("django-tasks-db", "django-tasks-db", *_TASKS, _DJANGO, "psycopg[binary]"),
        _peer("huey", "huey"),
        _peer("django-q2", "django-q2", _DJANGO, "psycopg[binary]"),
        _peer("dbos", "dbos", "psycopg[binary]"),
        # django-absurd carries absurd's SQL; nothing else of it is used.
        _peer("absurd", "absurd-sdk", "psycopg[binary]", bare="django-absurd"),
    )
}


class NotInstalled(Exception):
    """A peer could not be installed; the text holds the end of pip's output."""


def install(system: System) -> None:
    """Make the system's environment unless it is there."""
    if not system.requirements or (system.python.parent / "complete").exists():
        return
    folder = system.python.parent.parent
    commands: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", "--clear", folder],
        [system.python, "-m", "pip", "install", "--quiet", *system.requirements],
    ]
    if system.bare is not None:
        alone = ["--no-deps", "--ignore-requires-python", system.bare]
        commands.append([system.python, "-m", "pip", "install", "--quiet", *alone])
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    for command in commands:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT, env=environment
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotInstalled(str(error)) from error
        if done.returncode:
            raise NotInstalled((done.stdout + done.stderr).strip()[-300:])
    (system.python.parent / "complete").touch()


def version(system: System) -> str:
    """The installed version of the package that bears the system's name."""
    package = "absurd-sdk" if system.name == "absurd" else system.name
    asking = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([system.python, "-c", asking], capture_output=True, text=True)
    return done.stdout.strip() or "?"
