"""Real ``celery worker`` and ``celery beat`` processes on this process's test database."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import watchdog
from tests.celery.brokers import stop_process
from tests.engine.processes import PATIENCE, QUICK
from tests.support import ROOT, subprocess_env


class CeleryProcess:
    """One ``celery -A tests.celery.app …``; with its children it forms a process group."""

    def __init__(
        self,
        log: Path,
        broker: str,
        *arguments: str,
        celery: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **jobs: Any,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.celery.app", *arguments],
                cwd=ROOT,
                env=subprocess_env(
                    TEST_JOBS=json.dumps({**QUICK, **jobs}),
                    TEST_CELERY=json.dumps({"BROKER_URL": broker, **(celery or {})}),
                    CELERY_SKIP_CHECKS="1",
                    **(env or {}),
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        watchdog.guard(self.process.pid)

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill_all(self) -> None:
        """kill -9 of the whole tree at once."""
        stop_process(self.process)
        watchdog.release(self.process.pid)

    def wait(self, seconds: float = PATIENCE) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"celery did not end.\n{self.output()}") from None

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class CeleryWorker(CeleryProcess):
    """A worker; ``pool`` is prefork, threads or solo."""

    def __init__(
        self,
        log: Path,
        broker: str,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(
            log, broker, "worker", "-P", pool, "-c", str(concurrency), "-l", "INFO", "-n", f"{log.stem}@test",
            "--without-gossip", "--without-mingle", "--without-heartbeat", **settings,
        )  # fmt: skip


class Beat(CeleryProcess):
    """A beat that reads our schedules, unless another scheduler is named."""

    def __init__(
        self,
        log: Path,
        broker: str,
        *,
        scheduler: str = "django_jobs.celery:JobsScheduler",
        **settings: Any,
    ) -> None:
        super().__init__(
            log, broker, "beat", "-l", "INFO", "--pidfile=", "-s", str(log.with_suffix(".beat")),
            "-S", scheduler, **settings,
        )  # fmt: skip
