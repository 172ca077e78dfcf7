"""procrastinate on its psycopg connectors."""

from __future__ import annotations

import asyncio
from typing import Any

import common
import procrastinate


class Side(common.Side):
    settings = "concurrency=1"

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        base = self.dsn()
        at = {"host": base["host"], "user": base["user"], "dbname": base["dbname"]}
        is_worker = request["measure"] == "worker"
        kind = procrastinate.PsycopgConnector if is_worker else procrastinate.SyncPsycopgConnector
        self.app = procrastinate.App(connector=kind(kwargs=at))

        @self.app.task(name="noop")
        async def noop() -> None:
            pass

        @self.app.task(name="stamp")
        async def stamp() -> None:
            common.note_call(self.calls)

        self.tasks = {"noop": noop, "stamp": stamp}

    def prepare(self) -> None:
        self.app.open()
        self.app.schema_manager.apply_schema()

    def run_worker(self) -> None:
        async def serve() -> None:
            async with self.app.open_async():
                common.ready()
                await self.app.run_worker_async()

        asyncio.run(serve())

    def add(self, count: int, kind: str = "noop") -> None:
        self.tasks[kind].batch_defer(*[{} for _ in range(count)])

    def add_one(self, kind: str = "noop") -> None:
        self.tasks[kind].defer()

    def left(self) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM (SELECT 1 FROM procrastinate_jobs "
                "WHERE status IN ('todo', 'doing') LIMIT 1) q"
            )
        )

    def span(self, mark: Any) -> tuple[int, float]:
        done, seconds = self.row(
            """
            SELECT count(*) FILTER (WHERE type = 'succeeded'),
                   EXTRACT(epoch FROM max(at) FILTER (WHERE type = 'succeeded')
                                    - min(at) FILTER (WHERE type = 'started'))::float8
              FROM procrastinate_events WHERE at >= %s
            """,
            [mark],
        )
        return done, seconds


if __name__ == "__main__":
    common.main(Side)
