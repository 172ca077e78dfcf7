"""A long storm over Celery: ``python -m tests.long celery --seconds 120 --seed 7``.

Workers and their processes are killed, the broker is killed, restarted and emptied, and messages are
doubled, in random order, while jobs are enqueued. ``TEST_DATABASE`` names the database.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.support import ROOT


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long celery", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    env = {
        **os.environ,
        "TEST_CHAOS_SECONDS": str(options.seconds),
        "TEST_CHAOS_SEED": str(options.seed),
    }
    path = "tests/celery/test_chaos.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-s", "-o", "timeout=0", path]
    return subprocess.run(command, cwd=ROOT, env=env).returncode
