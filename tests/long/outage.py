"""An outage in full size: ``python -m tests.long outage [--runs 10000] [--seconds 10]``.

That many live runs are paused, resumed and canceled by filter; each command must keep to the limit,
which is meant for PostgreSQL. ``TEST_DATABASE`` names the database.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.support import ROOT


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long outage")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n0", "tests/control/test_outage.py"]
    env = {
        **os.environ,
        "TEST_OUTAGE_RUNS": str(options.runs),
        "TEST_OUTAGE_SECONDS": str(options.seconds),
    }
    return subprocess.run(command, cwd=ROOT, env=env).returncode
