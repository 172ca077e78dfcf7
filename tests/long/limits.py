"""Keys and limits at length: ``python -m tests.long limits [--seconds 60] [--seed 7]``.

Four real processes, killed with -9 and frozen at random; who is inside is measured by a file outside.
``TEST_DATABASE`` names the database.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.support import ROOT


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long limits")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    command = [
        sys.executable, "-m", "pytest", "-q", "-s", "-n0", "--timeout=0",
        "tests/engine/test_limit_storm.py",
    ]  # fmt: skip
    env = {
        **os.environ,
        "TEST_LIMIT_STORM_SECONDS": str(options.seconds),
        "TEST_LIMIT_STORM_SEED": str(options.seed),
    }
    return subprocess.run(command, cwd=ROOT, env=env).returncode
