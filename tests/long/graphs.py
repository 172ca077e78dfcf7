"""Random graphs at length: ``python -m tests.long graphs process | workers | kills | spread [--graphs N] [--seed S]``.

``process`` runs thousands of them in this process with a clock that is moved, by workers that die; ``workers``
runs them on four ``runjobs`` processes that are killed with -9 on the way. ``kills`` dies at every single edge of
undoing. ``spread`` runs a thousand steps beside each other on four processes, each of which must do 15 % of
them: alone on its machine. ``TEST_DATABASE`` names the database.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests import examples
from tests.support import ROOT


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long graphs")
    parser.add_argument("what", choices=["process", "workers", "kills", "spread"])
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    environment: dict[str, object]
    match options.what:
        case "process":
            # Of its kinds of graphs each test runs so many: see tests.examples.
            paths = ["tests/dag/test_properties.py"]
            environment = {"TEST_EXAMPLES": options.graphs / (30 if examples.IS_SQLITE else 6)}
        case "workers":
            paths = ["tests/dag/test_graph_storm.py"]
            environment = {"TEST_GRAPH_STORM": options.graphs}
        case "spread":
            paths = ["tests/dag/test_workers.py::test_a_fan_out_spreads_over_four_processes"]
            environment = {"TEST_WIDE_GRAPH": 1}
        case _:
            paths, environment = ["tests/dag/test_undoing.py"], {"TEST_KILL_STRIDE": 1}
    env = {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n0", "--timeout=0", *paths]
    if options.what == "kills":
        command += ["-k", "whatever_edge"]
    env = {**os.environ, **env, "TEST_GRAPH_SEED": str(options.seed)}
    return subprocess.run(command, cwd=ROOT, env=env).returncode
