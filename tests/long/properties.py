"""Properties at length, and every row of the table of retries: ``python -m tests.long properties [--times 20]``.

Random values, lives of jobs and graphs, so many times as many examples as the suite tries.
``TEST_DATABASE`` names the database.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.support import ROOT

MODULES = [
    "tests/unit", "tests/dag/test_properties.py", "tests/observe/test_health.py", "tests/observe/test_history.py",
    "tests/engine/test_rates.py", "tests/engine/test_retry_table.py", "tests/engine/test_round_trip.py",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long properties")
    parser.add_argument("--times", type=float, default=20.0)
    parser.add_argument("--retries", action="store_true", help="the table of retries alone")
    options = parser.parse_args(arguments)
    modules = ["tests/engine/test_retry_table.py"] if options.retries else MODULES
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "--timeout=0", *modules]
    env = {**os.environ, "TEST_EXAMPLES": str(options.times), "TEST_RETRY_STRIDE": "1"}
    return subprocess.run(command, cwd=ROOT, env=env).returncode
