"""pgqueuer on asyncpg and uvloop, as its own command line runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import asyncpg
import common
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries


class Side(common.Side):
    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        self.batch = int(request.get("batch", 10))
        self.settings = f"batch_size={self.batch}, asyncpg, uvloop"
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def driver(self) -> AsyncpgDriver:
        base = self.dsn()
        link = await asyncpg.connect(host=base["host"], user=base["user"], database=base["dbname"])
        return AsyncpgDriver(link)

    def prepare(self) -> None:
        self.queries = Queries(self.wait(self.driver()))
        self.wait(self.queries.install())

    def run_worker(self) -> None:
        async def serve() -> None:
            queue = PgQueuer(await self.driver())

            @queue.entrypoint("noop")
            async def noop(job: Job) -> None:
                pass

            @queue.entrypoint("stamp")
            async def stamp(job: Job) -> None:
                common.note_call(self.calls)

            common.ready()
            await queue.run(batch_size=self.batch, dequeue_timeout=timedelta(seconds=30))

        self.wait(serve())

    def add(self, count: int, kind: str = "noop") -> None:
        self.wait(self.queries.enqueue([kind] * count, [None] * count, [0] * count))

    def add_one(self, kind: str = "noop") -> None:
        self.wait(self.queries.enqueue(kind, None, 0))

    def left(self) -> int:
        return int(self.value("SELECT count(*) FROM (SELECT 1 FROM pgqueuer LIMIT 1) q"))

    def span(self, mark: Any) -> tuple[int, float]:
        done, seconds = self.row(
            """
            SELECT count(*) FILTER (WHERE status = 'successful'),
                   EXTRACT(epoch FROM max(created) FILTER (WHERE status = 'successful')
                                    - min(created) FILTER (WHERE status = 'picked'))::float8
              FROM pgqueuer_log WHERE created >= %s AND status IN ('picked', 'successful')
            """,
            [mark],
        )
        return done, seconds


if __name__ == "__main__":
    common.main(Side)
