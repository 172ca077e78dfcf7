"""Real ``celery worker`` and ``celery beat`` processes on this process's test database."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.engine.processes import QUICK, Tree
from tests.support import subprocess_env


class CeleryProcess(Tree):
    """One ``celery -A tests.celery.app …`` and its children."""

    def __init__(
        self,
        log: Path,
        broker: str,
        *arguments: str,
        celery: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **jobs: Any,
    ) -> None:
        environment = subprocess_env(
            TEST_JOBS=json.dumps({**QUICK, **jobs}),
            TEST_CELERY=json.dumps({"BROKER_URL": broker, **(celery or {})}),
            CELERY_SKIP_CHECKS="1",
            **(env or {}),
        )
        command = [sys.executable, "-m", "celery", "-A", "tests.celery.app", *arguments]
        super().__init__(log, self.started(log, command, environment))


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
