"""What several test modules need."""

from __future__ import annotations

import json
import os
from pathlib import Path

from django.db import connection

ROOT = Path(__file__).resolve().parent.parent


def vendor() -> str:
    """The database of this process: sqlite, postgresql or mysql."""
    return connection.vendor


def subprocess_env(**extra: str) -> dict[str, str]:
    """The environment of a process that shall work on this process's *test* database."""
    keys = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    database = {key: connection.settings_dict[key] for key in keys}
    database["NAME"] = str(database["NAME"])
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "TEST_DB": json.dumps(database),
        **extra,
    }
