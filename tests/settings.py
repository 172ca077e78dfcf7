"""Django settings of the test suite.

``TEST_DATABASE`` (sqlite, postgresql or mariadb; sqlite when unset) picks the database of this
process. The first process that loads these settings makes the database and leaves its address in
``TEST_DB``, so that xdist's workers and worker subprocesses find the same one. ``TEST_JOBS`` holds
``DJANGO_JOBS`` as JSON, for worker subprocesses with short leases, and ``TEST_CELERY`` those of Celery.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests import embedded_mariadb, embedded_pg, network_guard

network_guard.install()

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = "only-for-tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DJANGO_JOBS: dict[str, Any] = json.loads(os.environ.get("TEST_JOBS") or "{}")
#: Celery's settings for worker subprocesses, as JSON.
for _name, _value in json.loads(os.environ.get("TEST_CELERY") or "{}").items():
    globals()[f"CELERY_{_name}"] = _value

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_jobs",
    "tests.app",
    # Further apps of worker subprocesses, separated by commas.
    *filter(None, os.environ.get("TEST_APPS", "").split(",")),
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "tests.admin.policy.StrictPolicy",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


def _sqlite() -> dict[str, Any]:
    # A real file: the tests use threads and worker processes.
    folder = Path(tempfile.mkdtemp(prefix="django-jobs-"))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(folder / "db.sqlite3"),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
        "TEST": {"NAME": str(folder / "test.sqlite3")},
    }


def _postgresql() -> dict[str, Any]:
    return {**embedded_pg.start(), "TEST": {"NAME": "test_jobs"}}


def _mariadb() -> dict[str, Any]:
    url = os.environ.get("MARIADB_URL")
    return embedded_mariadb.from_url(url) if url else embedded_mariadb.start()


if "TEST_DB" not in os.environ:
    _make = {"sqlite": _sqlite, "postgresql": _postgresql, "mariadb": _mariadb}
    os.environ["TEST_DB"] = json.dumps(_make[os.environ.get("TEST_DATABASE") or "sqlite"]())

DATABASES: dict[str, dict[str, Any]] = {"default": json.loads(os.environ["TEST_DB"])}

if DATABASES["default"]["ENGINE"].endswith("mysql"):
    import pymysql

    # Django asks mysqlclient for its version and takes PyMySQL's for it.
    pymysql.version_info = (2, 2, 1, "final", 0)
    pymysql.install_as_MySQLdb()
