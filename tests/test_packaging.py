"""What is shipped, and what it needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from typing import Any

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "django_jobs"
SHIPPED = {".py", ".typed", ".html", ".txt", ".css", ".js", ".svg", ".po", ".mo", ".json"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the wheel."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = target.glob("django_jobs_workflows-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_package_and_nothing_else(shipped: set[str]) -> None:
    tops = {name.split("/", 1)[0] for name in shipped}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"django_jobs"}


def test_the_wheel_holds_every_file_of_the_package(shipped: set[str]) -> None:
    there = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix in SHIPPED and "__pycache__" not in path.parts
    }
    assert "django_jobs/py.typed" in there
    assert there - shipped == set()


def test_the_wheel_holds_its_licence(shipped: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in shipped)


def test_no_dependency_has_an_upper_limit(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    assert [line for line in wanted if "<" in line or "==" in line or "~=" in line] == []


def test_every_dependency_has_a_lower_limit(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    assert [line for line in wanted if ">=" not in line] == []


def test_the_package_is_imported_without_loading_models() -> None:
    script = "import sys, django_jobs; sys.exit('django.db.models' in sys.modules)"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
