"""Running the worker as a real process, and killing it on the way."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from django.conf import settings
from django.db.models import Count

from django_jobs.lifecycle import FINAL, Status
from django_jobs.models import Job
from testproject.shop import processes
from testproject.shop.ledger import Kill
from testproject.shop.processes import ProcessFailed, Service
from testproject.shop.progress import Progress
from testproject.shop.workflows import SLUG

CHILD_KILL_AT = 0.20
TREE_KILL_AT = 0.45
#: The second kill does not wait for the end of the first recovery beyond this share.
PATIENCE_AT = 0.75
SECONDS_WITHOUT_PROGRESS = 120.0
#: A worker that has lost its demo ends by itself after so many idle seconds.
IDLE_TIMEOUT = 90


def worker_service(
    log: Path, env: dict[str, str], threads: int, processes: int, *, once: bool = False
) -> Service:
    """``manage.py runjobs`` as a subprocess."""
    command = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "runjobs"]
    command += ["--processes", str(processes), "--threads", str(threads)]
    command += ["--once"] if once else ["--idle-timeout", str(IDLE_TIMEOUT)]
    return Service("worker", command, log, env)


def count_jobs() -> Counter[str]:
    """The shop's jobs by status."""
    jobs = Job.objects.filter(slug=SLUG).order_by()
    return Counter(dict(jobs.values_list("status").annotate(Count("pk"))))


def finished(counts: Counter[str]) -> int:
    return sum(counts[status] for status in FINAL)


def in_flight() -> dict[UUID, int]:
    """The fence of every running job."""
    jobs = Job.objects.filter(slug=SLUG, status=Status.RUNNING)
    return dict(jobs.values_list("pk", "fence"))


def not_resumed(jobs: dict[UUID, int]) -> dict[UUID, int]:
    """Those of ``jobs`` that still wait for somebody to go on where the dead left off.

    Either nobody has noticed (running under the old fence), or they were handed back and wait to
    be claimed. One that its living owner put off to a later retry is not among them.
    """
    rows = Job.objects.filter(pk__in=jobs).values_list("pk", "fence", "status")
    return {
        pk: jobs[pk]
        for pk, fence, status in rows
        if (status == Status.RUNNING and fence == jobs[pk])
        or (status == Status.PENDING and fence > jobs[pk])
    }


@dataclass
class Watched:
    """A kill whose recovery is still being watched; ``moment`` is a monotonic second."""

    kill: Kill
    moment: float
    finished: int
    jobs: dict[UUID, int]

    @property
    def recovered(self) -> bool:
        return self.kill.progress is not None and self.kill.resumed is not None

    def look(self, finished_now: int) -> None:
        """Note what has come back since."""
        passed = round(time.monotonic() - self.moment, 2)
        if self.kill.progress is None and finished_now > self.finished:
            self.kill = dataclasses.replace(self.kill, progress=passed)
        if self.kill.resumed is None:
            self.jobs = not_resumed(self.jobs)
            if not self.jobs:
                self.kill = dataclasses.replace(self.kill, resumed=passed)


@dataclass
class Run:
    """From the start of the worker until every job is finished, two kills on the way."""

    worker: Service
    hands: int
    progress: Progress
    on_kill: Callable[[list[Kill]], None]
    watched: list[Watched] = field(default_factory=list)
    seconds: float = 0.0
    done: int = 0

    @property
    def kills(self) -> list[Kill]:
        return [watched.kill for watched in self.watched]

    def until_finished(self) -> None:
        """Drive it; :class:`ProcessFailed` if the worker gives up or nothing moves any more."""
        counts = count_jobs()
        total, before = counts.total(), finished(counts)
        started = moved = time.monotonic()
        done = before
        while done < total:
            asked = time.monotonic()
            counts = count_jobs()
            self.progress.show(finished(counts), self._note(counts))
            if finished(counts) > done:
                done, moved = finished(counts), time.monotonic()
            if time.monotonic() - moved > SECONDS_WITHOUT_PROGRESS:
                raise ProcessFailed(f"Nothing moves any more. {self.worker.last_lines()}")
            self._watch(done)
            if done < total:
                self.worker.check()
                self._kill_in_time((done - before) / (total - before), counts)
            # Watching must not cost the shop its processor.
            time.sleep(min(max(0.02, 4 * (time.monotonic() - asked)), 0.25))
        self.seconds = time.monotonic() - started
        self.done = done - before
        self.progress.finish(done, self._note(counts))

    def _note(self, counts: Counter[str]) -> str:
        waiting = counts[Status.PENDING] + counts[Status.SLEEPING]
        return f"{counts[Status.RUNNING]} running, {waiting} waiting"

    def _watch(self, done: int) -> None:
        for watched in self.watched:
            if not watched.recovered:
                watched.look(done)
                if watched.recovered:
                    self.on_kill(self.kills)

    def _kill_in_time(self, share: float, counts: Counter[str]) -> None:
        if not counts[Status.RUNNING]:
            return
        if not self.watched:
            if share >= CHILD_KILL_AT:
                self._kill_child()
            return
        calm = self.watched[0].recovered or share >= PATIENCE_AT
        if len(self.watched) == 1 and share >= TREE_KILL_AT and calm:
            self._kill_tree()

    def _kill_child(self) -> None:
        children = processes.worker_children(self.worker.pid)
        if not children:
            return
        jobs = in_flight()
        at, moment = time.time(), time.monotonic()
        processes.kill(children[-1])
        self._note_kill("one worker child", children[-1:], at, moment, jobs)

    def _kill_tree(self) -> None:
        at, moment = time.time(), time.monotonic()
        pids = self.worker.kill_tree()
        processes.wait_until_gone(pids)
        jobs = in_flight()
        self._note_kill("the whole worker", pids, at, moment, jobs)
        self.worker.start()

    def _note_kill(
        self, what: str, pids: list[int], at: float, moment: float, jobs: dict[UUID, int]
    ) -> None:
        kill = Kill(what, pids, at, self.hands, len(jobs))
        self.watched.append(Watched(kill, moment, finished(count_jobs()), jobs))
        self.on_kill(self.kills)
        named = ", ".join(str(pid) for pid in pids)
        self.progress.say(f"  kill -9 of {what} (pid {named}), {len(jobs)} orders in flight")
