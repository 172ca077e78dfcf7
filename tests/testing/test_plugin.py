"""The fixtures of the pytest plugin, in a pytest run of their own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT, subprocess_env

SUITE = """
from datetime import UTC, datetime, timedelta

import pytest
from django_jobs import task
from tests.app import jobs

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.django_db
def test_clock_drain_and_assert(jobs_clock, jobs_drain, jobs_assert_enqueued, jobs_assert_not_enqueued):
    jobs_clock.freeze(NOON)
    jobs_assert_not_enqueued(jobs.add)
    jobs.add.using(delay=60).enqueue(a=1, b=2)
    job = jobs_assert_enqueued(jobs.add, a=1)
    assert jobs_drain(until=timedelta(minutes=1)).completed == 1
    assert job.result() == 3


def test_time_runs_again():
    from django_jobs import clock
    assert not clock.is_frozen()


@pytest.mark.django_db
def test_inline(jobs_inline):
    assert jobs.add.enqueue(a=1, b=2).output == 3


@pytest.mark.django_db
def test_no_longer_inline():
    assert jobs.add.enqueue(a=1, b=2).status == "pending"


def test_registry(jobs_registry):
    @task
    def only_here(): ...
    assert jobs_registry.find("only_here")


def test_registry_is_as_before():
    from django_jobs.definitions import registry
    assert not registry.find("only_here")
"""


def run_pytest(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=env or None, capture_output=True, text=True)


@pytest.mark.once
def test_the_fixtures_do_what_the_functions_do(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    loaded = [] if _is_installed() else ["-p", "django_jobs.testing.plugin"]
    env = subprocess_env()
    env.pop("TEST_DB")
    env["TEST_DATABASE"] = "sqlite"
    done = run_pytest(tmp_path, *loaded, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_pytest_runs_without_django_settings_beside_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n\ndef test_it():\n"
        "    assert 'django_jobs.testing.plugin' in sys.modules\n"
        "    assert 'django_jobs.models' not in sys.modules\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    env = {**subprocess_env(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    del env["DJANGO_SETTINGS_MODULE"]
    done = run_pytest(tmp_path, "-p", "django_jobs.testing.plugin", **env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_names_the_plugin_to_pytest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"django_jobs": "django_jobs.testing.plugin"}


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(one.value == "django_jobs.testing.plugin" for one in entry_points(group="pytest11"))
