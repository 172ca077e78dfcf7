"""The PostgreSQL that is measured on: its own, with every commit on the disk."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg

from tests import embedded_pg

SETTINGS: dict[str, str | int] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
}


class Server:
    """A throw-away server; each side gets a new, empty database in it."""

    def __init__(self) -> None:
        self.entry: dict[str, Any] = embedded_pg.start(**SETTINGS)
        self._numbers = itertools.count(1)

    def version(self) -> str:
        with self._link() as link:
            [version] = link.execute("SHOW server_version").fetchone() or ("?",)
        return str(version)

    def create(self) -> dict[str, str]:
        """A new database; the checkpoint leaves nothing of the last side's work to this one."""
        name = f"side_{next(self._numbers)}"
        with self._link() as link:
            link.execute(f"CREATE DATABASE {name}")
            link.execute("CHECKPOINT")
        return {**self.entry, "NAME": name}

    def drop(self, database: dict[str, str]) -> None:
        with self._link() as link:
            link.execute("ALTER SYSTEM RESET ALL")
            link.execute("SELECT pg_reload_conf()")
            link.execute(f"DROP DATABASE IF EXISTS {database['NAME']} WITH (FORCE)")

    def _link(self) -> psycopg.Connection[Any]:
        entry = self.entry
        return psycopg.connect(
            host=entry["HOST"], user=entry["USER"], dbname=entry["NAME"], autocommit=True
        )
