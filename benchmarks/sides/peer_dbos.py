"""dbos on PostgreSQL, workflows on one of its queues."""

from __future__ import annotations

import threading
from typing import Any

import common
from dbos import DBOS

QUEUE = "measured"


@DBOS.workflow(name="noop")
def noop() -> None:
    pass


@DBOS.step(name="one")
def one() -> int:
    return 1


@DBOS.workflow(name="steps")
def steps(number: int) -> None:
    for _ in range(number):
        one()


class Side(common.Side):
    settings = "queue polled every 0.1 s (default 1)"

    def launch(self) -> None:
        DBOS(
            config={
                "name": "measured",
                "system_database_url": self.url(),
                "log_level": "ERROR",
                "application_version": "1",
                "executor_id": "client" if self.request["measure"] != "worker" else "worker",
                "run_admin_server": False,
            }
        )
        if self.request["measure"] != "worker":
            # This process only enqueues.
            DBOS.listen_queues([])
        DBOS.launch()
        DBOS.register_queue(QUEUE, polling_interval_sec=0.1)

    def prepare(self) -> None:
        self.launch()

    def run_worker(self) -> None:
        self.launch()
        common.ready()
        threading.Event().wait()

    def add(self, count: int, kind: str = "noop") -> None:
        """It has no call for many: one by one."""
        for _ in range(count):
            self.add_one(kind)

    def add_one(self, kind: str = "noop") -> None:
        if kind == "noop":
            DBOS.enqueue_workflow(QUEUE, noop)
        else:
            DBOS.enqueue_workflow(QUEUE, steps, int(kind.removeprefix("run")))

    def mark(self) -> Any:
        return int(self.value("SELECT (EXTRACT(epoch FROM now()) * 1000)::bigint"))

    def left(self) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM (SELECT 1 FROM dbos.workflow_status "
                "WHERE status IN ('ENQUEUED', 'PENDING') LIMIT 1) q"
            )
        )

    def span(self, mark: Any) -> tuple[int, float]:
        done, milliseconds = self.row(
            "SELECT count(*), max(completed_at) - min(started_at_epoch_ms) "
            "FROM dbos.workflow_status WHERE created_at >= %s AND status = 'SUCCESS'",
            [mark],
        )
        return done, float(milliseconds or 0) / 1000


if __name__ == "__main__":
    common.main(Side)
