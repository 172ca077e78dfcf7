"""Three ``runjobs`` and two beats through simulated weeks: ``python -m tests.long schedules_fleet --weeks 4``.

All of them are real processes on the database of ``TEST_DATABASE``; its clock runs, jumps and is set back,
while they are killed and frozen. In the end every slot has exactly one job.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.support import ROOT


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.long schedules_fleet", description=__doc__
    )
    parser.add_argument("--weeks", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument(
        "--chance", type=float, default=0.5, help="How many of the steps meet with a fault."
    )
    options = parser.parse_args(arguments)
    env = {
        **os.environ,
        "TEST_FLEET_WEEKS": str(options.weeks),
        "TEST_FLEET_SEED": str(options.seed),
        "TEST_FLEET_CHANCE": str(options.chance),
    }
    path = "tests/schedules/test_fleet.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-s", "-o", "timeout=0", path]
    return subprocess.run(command, cwd=ROOT, env=env).returncode
