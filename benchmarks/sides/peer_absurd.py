"""absurd's Python SDK; its SQL comes from the package django-absurd, which carries it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
from absurd_sdk import Absurd, TaskContext


class Side(common.Side):
    settings = "concurrency=4, poll_interval=0.25 (its default)"

    def client(self) -> Absurd:
        client = Absurd(self.url(), queue_name="default")

        @client.register_task("noop")
        def noop(params: Any, context: TaskContext) -> None:
            pass

        @client.register_task("steps")
        def steps(params: Any, context: TaskContext) -> None:
            for index in range(params["number"]):
                context.step(f"step-{index}", lambda: 1)

        return client

    def prepare(self) -> None:
        spec = find_spec("django_absurd")
        assert spec is not None and spec.origin is not None
        [schema] = (Path(spec.origin).parent / "migrations").glob("0001_*.sql")
        self.link().execute(schema.read_text())
        self.absurd = self.client()
        self.absurd.create_queue("default")

    def run_worker(self) -> None:
        client = self.client()
        common.ready()
        client.start_worker(concurrency=4)

    def add(self, count: int, kind: str = "noop") -> None:
        """It has no call for many: one by one in one transaction."""
        with self.absurd._conn.transaction():
            for _ in range(count):
                self.add_one(kind)

    def add_one(self, kind: str = "noop") -> None:
        if kind == "noop":
            self.absurd.spawn("noop", {})
        else:
            self.absurd.spawn("steps", {"number": int(kind.removeprefix("run"))})

    def left(self) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM (SELECT 1 FROM absurd.t_default "
                "WHERE state IN ('pending', 'running', 'sleeping') LIMIT 1) q"
            )
        )

    def span(self, mark: Any) -> tuple[int, float]:
        done, seconds = self.row(
            "SELECT count(*), EXTRACT(epoch FROM max(completed_at) - min(started_at))::float8 "
            "FROM absurd.r_default WHERE started_at >= %s AND state = 'completed'",
            [mark],
        )
        return done, seconds


if __name__ == "__main__":
    common.main(Side)
