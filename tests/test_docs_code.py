"""Every code block of the README and the docs does what its page says, on every database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests import docs_code, docs_tables, fan_out
from tests.celery.brokers import Valkey
from tests.docs_code import Block, DocsError, Project
from tests.support import ROOT

# These start in an empty folder and make their project themselves.
FROM_NOTHING = {"README.md", "docs/tutorial.md"}
CELERY = "docs/how-to/celery.md"
PAGES = {page.relative_to(ROOT).as_posix(): page for page in docs_code.pages()}
WITH_CODE = [
    name
    for name, page in PAGES.items()
    if any(
        block.language not in docs_code.NOT_RUN and not block.is_run_by_ci
        for block in docs_code.blocks(page)
    )
]


def _on_postgresql() -> bool:
    return bool(settings.DATABASES["default"]["ENGINE"].endswith("postgresql"))


def _skip_elsewhere() -> None:
    if not settings.DATABASES["default"]["ENGINE"].endswith(("sqlite3", "postgresql")):
        pytest.skip("the pages are run on SQLite and PostgreSQL")


def _create(name: str, template: str = "template1") -> str:
    """Make a PostgreSQL database; the ``DATABASES`` of a project that uses it."""
    own = settings.DATABASES["default"]
    with _postgres() as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    entry = {key: own[key] for key in ("ENGINE", "USER", "HOST", "PORT")}
    return repr({"default": {**entry, "NAME": name}})


def _drop(name: str) -> None:
    with _postgres() as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _postgres() -> Any:
    import psycopg

    own = settings.DATABASES["default"]
    return psycopg.connect(host=own["HOST"], user=own["USER"], dbname="postgres", autocommit=True)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """The ``DATABASES`` of a project on this run's database, empty; empty text for SQLite."""
    _skip_elsewhere()
    if not _on_postgresql():
        yield ""
        return
    name = f"docs_{os.getpid()}_{abs(hash(tmp_path))}"
    yield _create(name)
    _drop(name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project that most pages take for granted, made once."""
    _skip_elsewhere()
    folder = tmp_path_factory.mktemp("prepared")
    name = f"docs_{os.getpid()}_prepared"
    project = Project(folder, database=_create(name) if _on_postgresql() else "")
    project.prepare()
    yield project
    if _on_postgresql():
        _drop(name)


@pytest.fixture
def page_project(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A project for one page: an empty folder, or a copy of the prepared project and its database."""
    if name in FROM_NOTHING:
        yield Project(tmp_path, database=request.getfixturevalue("database"))
        return
    original: Project = request.getfixturevalue("prepared")
    own = f"docs_{os.getpid()}_{abs(hash(tmp_path))}"
    template = f"docs_{os.getpid()}_prepared"
    project = Project(tmp_path, database=_create(own, template) if _on_postgresql() else "")
    project.copy_of(original)
    yield project
    if _on_postgresql():
        _drop(own)


def _is_left_to_the_other_database(name: str) -> bool:
    """Where several databases are tested in one call, each takes its share of the pages.

    Where a page is for users of both, what it shows is tested on both by the tests of its subject.
    """
    if name in FROM_NOTHING or fan_out.COUNTS_FILE not in os.environ:
        return False
    return (WITH_CODE.index(name) % 2 == 0) == fan_out.is_later_database()


@pytest.fixture(autouse=True)
def broker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the page about Celery takes for granted: a Redis, at the address that the environment names."""
    named = getattr(request.node, "callspec", None)
    if (
        named is None
        or named.params.get("name") != CELERY
        or "page_project" not in request.fixturenames
    ):
        yield
        return
    server = Valkey()
    server.start()
    monkeypatch.setenv("CELERY_BROKER_URL", server.url)
    yield
    server.kill()


@pytest.mark.every_database
@pytest.mark.parametrize(
    "name", [name for name in WITH_CODE if not _is_left_to_the_other_database(name)]
)
def test_the_code_of_the_page_runs_to_its_end(name: str, page_project: Project) -> None:
    assert docs_code.run_page(PAGES[name], page_project)


@pytest.mark.every_database
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not os.environ.get("TEST_STRANGER"), reason="TEST_STRANGER=1 installs into fresh environments"
)
@pytest.mark.parametrize("name", sorted(FROM_NOTHING))
def test_a_stranger_installs_the_package_and_follows_the_page(
    name: str, tmp_path: Path, database: str
) -> None:
    venv, folder = tmp_path / "venv", tmp_path / "project"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    wanted = [f"{ROOT}[postgres]" if database else str(ROOT)]
    pip = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)
    project = Project(folder, python=venv / "bin" / "python", installs=True, database=database)
    assert docs_code.run_page(PAGES[name], project)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_block_names_a_language_that_says_how_it_is_run(name: str) -> None:
    unknown = {
        block.place: block.language
        for block in docs_code.blocks(PAGES[name])
        if block.language not in docs_code.LANGUAGES
    }
    assert not unknown


def test_ci_runs_the_commands_that_the_pages_leave_to_it() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    left = [
        block for page in PAGES.values() for block in docs_code.blocks(page) if block.is_run_by_ci
    ]
    assert left
    assert [block.place for block in left if block.text.strip() not in script] == []


def make_block(language: str, text: str) -> Block:
    return Block("a page", 1, language, text)


def test_a_block_whose_command_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocsError, match="exit code 3"):
        Project(tmp_path).run(make_block("console", "$ exit 3\n"))


def test_a_block_whose_output_differs_is_an_error(tmp_path: Path) -> None:
    Project(tmp_path).run(make_block("console", "$ echo 12 jobs in 3 s\n12 jobs in … s\n"))
    with pytest.raises(DocsError, match="expected"):
        Project(tmp_path).run(make_block("console", "$ echo 11 jobs in 3 s\n12 jobs in … s\n"))


def test_a_snippet_that_raises_is_an_error(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.shell("django-admin startproject mysite .", "here")
    project.run(
        make_block("python", "def double(x):\n    return 2 * x\n\n\nassert double(2) == 4\n")
    )
    with pytest.raises(DocsError, match="AssertionError"):
        project.run(make_block("python", "assert 1 == 2\n"))


def test_a_block_is_written_to_the_file_that_it_names(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.run(make_block("python", "# shop/jobs.py\nA = 1\n"))
    project.run(make_block("python", "# shop/jobs.py, at the end\nB = 2\n"))
    assert "A = 1\n" in (tmp_path / "shop" / "jobs.py").read_text()
    assert "B = 2\n" in (tmp_path / "shop" / "jobs.py").read_text()


@pytest.mark.parametrize("name", sorted(docs_tables.TABLES))
def test_the_tables_of_the_reference_are_those_of_the_code(name: str) -> None:
    page = docs_tables.REFERENCE / name
    assert page.read_text() == docs_tables.renewed(name), "run: python -m tests.docs_tables"


def test_the_readme_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert "docs/tutorial.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
