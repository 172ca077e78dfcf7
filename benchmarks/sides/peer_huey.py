"""huey on SQLite, its consumer with one worker process."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import common
from huey import SqliteHuey


class Side(common.Side):
    settings = "SqliteHuey defaults, 1 worker thread; results stored"

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        self.huey = SqliteHuey(filename=self.database["NAME"])

        @self.huey.task(name="noop")
        def noop() -> int:
            # A result that is None would not be stored.
            return 1

        @self.huey.task(name="stamp")
        def stamp() -> int:
            common.note_call(self.calls)
            return 1

        self.tasks = {"noop": noop, "stamp": stamp}

    def prepare(self) -> None:
        self.reader = sqlite3.connect(self.database["NAME"], timeout=20)

    def run_worker(self) -> None:
        consumer = self.huey.create_consumer(workers=1, periodic=False)
        common.ready()
        consumer.run()

    def add_one(self, kind: str = "noop") -> None:
        self.tasks[kind]()

    def results(self) -> int:
        return int(self.reader.execute("SELECT count(*) FROM kv").fetchone()[0])

    def measure_jobs(self) -> dict[str, Any]:
        """It stores no times: all jobs are enqueued, the consumer starts, its results are counted.

        Timed from the first result that is seen to the last one.
        """
        for _ in range(self.count):
            self.add_one()
        workers = self.start_workers()
        try:
            while not (first := self.results()):
                time.sleep(0.001)
            began = time.perf_counter()
            while self.results() < self.count:
                time.sleep(0.02)
            return {"value": (self.count - first) / (time.perf_counter() - began)}
        finally:
            for worker in workers:
                worker.stop()


if __name__ == "__main__":
    common.main(Side)
