"""Settings of the measured project: default settings but for the database.

``BENCHMARKS_DATABASE`` holds a ``DATABASES`` entry as JSON; ``BENCHMARKS_BARE`` leaves django_jobs
out, for the memory of plain Django.
"""

import json
import os
from typing import Any

DATABASE: dict[str, Any] = json.loads(
    os.environ.get("BENCHMARKS_DATABASE")
    or '{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}'
)
if DATABASE["ENGINE"] == "django.db.backends.sqlite3":
    # What django_jobs asks for on SQLite; a crash of the process loses nothing.
    DATABASE["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
DATABASES = {"default": DATABASE}
SECRET_KEY = "only-for-measurements"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
if not os.environ.get("BENCHMARKS_BARE"):
    INSTALLED_APPS += ["django_jobs", "benchmarks.project"]
