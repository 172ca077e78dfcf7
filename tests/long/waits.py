"""Waits at length: ``python -m tests.long waits storm | kills | sleepers``.

``TEST_DATABASE`` names the database. ``storm`` fires commands and events at random at running threads
and processes, ``kills`` dies at every single edge, and ``sleepers`` measures how late runs wake while
ten thousand others sleep, with one idle worker of default settings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tests.support import ROOT, subprocess_env

SLEEPERS, WAKING, SECONDS = 10_000, 200, 20.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long waits")
    parser.add_argument("what", choices=["storm", "kills", "sleepers"])
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    match options.what:
        case "storm":
            return _pytest(
                "tests/waits/test_storm.py", TEST_WAIT_SEQUENCES=options.sequences,
                TEST_WAIT_SECONDS=options.seconds, TEST_WAIT_SEED=options.seed,
            )  # fmt: skip
        case "kills":
            return _pytest("tests/waits/test_kills.py", TEST_KILL_STRIDE=1)
    return _sleepers()


def _pytest(path: str, **environment: object) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "--timeout=0", path]
    env = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(command, cwd=ROOT, env=env).returncode


def _sleepers() -> int:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.test.utils import setup_databases, teardown_databases

    django.setup()
    databases = setup_databases(0, interactive=False)
    try:
        return _measure()
    finally:
        teardown_databases(databases, 0)


def _measure() -> int:
    from django_jobs import clock
    from django_jobs.models import Job
    from tests.app.workflows import sleeper, sleeper_until

    sleeper.enqueue_many([{"days": 30} for _ in range(SLEEPERS)])
    worker = subprocess.Popen(
        [sys.executable, str(ROOT / "manage.py"), "runjobs"],
        cwd=ROOT, env=subprocess_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        begun = time.monotonic()
        _until(lambda: Job.objects.filter(status="sleeping").count() == SLEEPERS, 300)
        print(f"{SLEEPERS} runs asleep after {time.monotonic() - begun:.1f} s")
        start = clock.now() + timedelta(seconds=5)
        moments = [start + timedelta(seconds=SECONDS * n / WAKING) for n in range(WAKING)]
        sleeper_until.enqueue_many([{"moment": moment} for moment in moments])
        _until(
            lambda: Job.objects.filter(slug="sleeper_until", status="completed").count() == WAKING,
            SECONDS + 60,
        )
    finally:
        worker.terminate()
        worker.wait()
    late = sorted(_lateness())
    at = {name: late[min(int(len(late) * share), len(late) - 1)] for name, share in SHARES.items()}
    print(
        f"{WAKING} wake-ups among {SLEEPERS} sleepers, seconds late: "
        + ", ".join(f"{name} {value:.3f}" for name, value in at.items())
    )
    return int(at["p99"] > 1.0)


SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def _lateness() -> list[float]:
    """From the moment of the wake-up to the claim that goes on."""
    from django_jobs.models import HistoryEntry, TaskStatus

    wakes: dict[Any, Any] = dict(
        TaskStatus.objects.filter(job__slug="sleeper_until", kind="sleep").values_list(
            "job_id", "wake_at"
        )
    )
    claims = HistoryEntry.objects.filter(job_id__in=list(wakes), event="claimed")
    return [(entry.at - wakes[entry.job_id]).total_seconds() for entry in claims]


def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.25)
