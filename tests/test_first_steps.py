"""What people meet who do something for the first time: empty databases, wrong names, nothing to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings

from django_jobs import InvalidInput, run_jobs
from django_jobs.management.commands import jobs_import_beat
from tests.app import jobs
from tests.engine.conftest import runjobs  # noqa: F401
from tests.engine.processes import RunJobs, eventually
from tests.support import ROOT, vendor

COMMANDS = (
    "jobs_cancel", "jobs_check", "jobs_history", "jobs_import_beat", "jobs_pause", "jobs_replay_check", "jobs_resume",
    "jobs_retry", "jobs_schedules", "jobs_versions", "prunejobs", "runjobs",
)  # fmt: skip
ON_AN_EMPTY_DATABASE = """
import json, sys
import django
django.setup()
from django.core.management import CommandError, call_command

said = {}
for name in sys.argv[1:]:
    try:
        call_command(name)
    except CommandError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_every_command_says_that_the_tables_are_missing_and_how_to_make_them(
    tmp_path: Path,
) -> None:
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "empty.sqlite3")}
    done = subprocess.run(
        [sys.executable, "-c", ON_AN_EMPTY_DATABASE, *COMMANDS],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "TEST_DB": json.dumps(database)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() == set(COMMANDS)
    for text in said.values():
        assert "not in the database 'default'" in text
        assert "manage.py migrate" in text


@pytest.mark.parametrize("name", [one for one in COMMANDS if one != "jobs_import_beat"])
def test_every_command_names_an_alias_that_is_none(name: str) -> None:
    with pytest.raises(CommandError, match=r"no database 'elsewhere'\. DATABASES has: default"):
        call_command(name, database="elsewhere")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("idle_timeout", -1.0),
        ("idle_timeout", 0.0),
        ("max_memory", 0),
        ("max_jobs", 0),
        ("limit", 0),
    ],
)
@pytest.mark.django_db
@pytest.mark.once
def test_runjobs_refuses_numbers_that_make_no_sense(option: str, value: float) -> None:
    with pytest.raises(CommandError, match=f"--{option.replace('_', '-')} must be"):
        call_command("runjobs", once=True, **{option: value})


@pytest.mark.django_db(transaction=True)
def test_runjobs_says_what_it_does_and_which_jobs_failed(
    runjobs: Callable[..., RunJobs],  # noqa: F811
) -> None:
    failing = jobs.fail.enqueue(text="no paper")
    jobs.add.enqueue(a=1, b=2)
    worker = runjobs("--once")
    assert worker.wait() == 0
    lines = sorted(worker.output().splitlines())
    assert lines == [
        "2 jobs were run; at least one ended failed.",
        f"Job {failing.pk} of fail failed: ValueError: no paper",
    ]
    served = runjobs("--queue", "mail", "bulk", "--processes", 2)
    eventually(served.output, "it says what it serves")
    served.terminate()
    assert served.wait() == 0
    assert served.output() == (
        "Serving the queues mail, bulk of the database 'default': 2 processes, each 4 threads. "
        "Ctrl-C or SIGTERM ends it.\nNothing was run.\n"
    )


@pytest.mark.django_db
@pytest.mark.once
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["jobs_schedules"], "There are no schedules"),
        (["jobs_schedules", "--slug", "nobody"], "No schedule fits --slug nobody."),
        (["jobs_check"], "Nothing is wrong."),
        (["jobs_history"], "There are no jobs."),
        (["jobs_versions"], "No live runs."),
        (["jobs_versions", "--missing", "--tasks"], "No live jobs without code here."),
    ],
)
def test_commands_with_nothing_to_print_say_so_beside_their_output(
    command: list[str], said: str
) -> None:
    output, beside = StringIO(), StringIO()
    call_command(*command, stdout=output, stderr=beside)
    assert output.getvalue() == ""
    assert said in beside.getvalue()


@pytest.mark.django_db
@pytest.mark.once
def test_importing_from_beat_without_celery_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs_import_beat, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=r"pip install 'django-jobs-workflows\[celery\]'"):
        call_command("jobs_import_beat")


@pytest.mark.parametrize("limit", ["10", -1, 2.5, True, None])
def test_run_jobs_names_a_limit_that_is_no_number(limit: Any) -> None:
    with pytest.raises(InvalidInput, match="limit is a whole number"):
        run_jobs(limit=limit)


# --- manage.py check ------------------------------------------------------------------------------


def found() -> dict[str, Any]:
    """Our messages of a plain ``manage.py check``, by their id."""
    return {str(one.id): one for one in run_checks() if str(one.id).startswith("django_jobs")}


def test_a_plain_check_warns_of_deferred_transactions_on_sqlite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if vendor() != "sqlite":
        pytest.skip("only SQLite has them")
    assert found() == {}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {})
    assert 'OPTIONS["transaction_mode"]' in str(found()["django_jobs.W001"].hint)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"DATABASE": "elsewhere"}, "'elsewhere', which is not in DATABASES"),
        ({"TENANT_CONTEXT": "tests.app.tenancy.nowhere"}, "'tests.app.tenancy.nowhere'"),
        ({"TENANT_CONTEXT": "nowhere.at_all"}, "cannot be imported"),
    ],
)
def test_a_check_names_a_setting_that_names_nothing(settings: dict[str, Any], named: str) -> None:
    with override_settings(DJANGO_JOBS=settings):
        message = found()["django_jobs.E013"]
    assert named in message.msg
    assert message.hint


def test_naming_a_celery_app_without_celery_is_a_check_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from django_jobs import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with override_settings(DJANGO_JOBS={"CELERY_APP": "mysite.celery:app"}):
        message = found()["django_jobs.E007"]
    assert 'DJANGO_JOBS["CELERY_APP"]' in message.msg
