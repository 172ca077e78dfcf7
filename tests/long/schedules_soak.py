"""Three schedulers as real processes, killed by kill -9 at any instruction, each with a clock of its own.

    python -m tests.long schedules_soak [WEEKS]        on the database of TEST_DATABASE

The clocks run ahead of one another and are set back. In the end every slot has exactly one job.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from datetime import datetime, timedelta


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--scheduler"]:
        return walk(int(arguments[1]), datetime.fromisoformat(arguments[2]), float(arguments[3]))
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from django.core.management import call_command

    from django_jobs import scheduling
    from django_jobs.testing import clock
    from tests.schedules import soak

    weeks = float(arguments[0]) if arguments else 4.0
    call_command("migrate", verbosity=0)
    soak.make_schedules()
    kills = _supervise(weeks, soak.START)
    end = soak.START + timedelta(weeks=weeks)
    clock.freeze(end)
    scheduling.handle_schedules()
    faults = soak.faults(end)
    for fault in faults[:20]:
        print(fault)
    print(
        f"{weeks:g} weeks, 3 processes, {kills} times kill -9: {soak.jobs():,} jobs, {len(faults)} faults"
    )
    return int(bool(faults))


def _supervise(weeks: float, start: datetime) -> int:
    """Run the processes, kill one of them ever so often, and start it anew where its clock stood."""
    dice, kills = random.Random(7), 0
    progress = dict.fromkeys(range(3), start)

    def begin(number: int) -> subprocess.Popen[str]:
        left = weeks - (progress[number] - start) / timedelta(weeks=1)
        command = [sys.executable, "-m", "tests.long", "schedules_soak", "--scheduler", str(number)]
        return subprocess.Popen(
            [*command, progress[number].isoformat(), str(left)], stdout=subprocess.PIPE, text=True
        )

    running = {number: begin(number) for number in progress}
    # So many ticks lives each of them.
    left = {number: dice.randint(10, 60) for number in progress}
    while running:
        for number, process in list(running.items()):
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                progress[number] = datetime.fromisoformat(line.strip())
                left[number] -= 1
                if not left[number]:
                    time.sleep(dice.uniform(0, 0.05))
                    process.kill()
            elif process.wait() == -9:
                kills += 1
                running[number], left[number] = begin(number), dice.randint(10, 60)
            elif process.returncode:
                raise SystemExit(f"a scheduler ended with {process.returncode}")
            else:
                del running[number]
    return kills


def walk(seed: int, start: datetime, weeks: float) -> int:
    """One scheduler: tick, say how far the clock has come, go on."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from django_jobs import scheduling

    dice = random.Random(f"{seed} {start}")
    moment, end = start, start + timedelta(weeks=weeks)
    while moment < end:
        skew = timedelta(minutes=dice.choice((-180, -20, 0, 0, 0, 45)))
        scheduling.handle_schedules(min(moment + skew, end))
        print(moment.isoformat(), flush=True)
        moment += timedelta(minutes=dice.choice((5, 20, 61, 240)))
    scheduling.handle_schedules(end)
    return 0
