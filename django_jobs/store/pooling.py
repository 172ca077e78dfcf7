"""Whether a pooler stands between a connection and PostgreSQL, and what can be heard through it.

In transaction mode a pooler (PgBouncer, Odyssey, Pgpool and their like) gives each transaction any
of its server connections: what is prepared on one is unknown on the next, and ``LISTEN`` is
accepted, and nothing delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django_jobs import ids

if TYPE_CHECKING:
    import psycopg

#: Seconds in which a notification that is sent by one connection has reached the other.
PROBE = 2.0


def is_pooled(raw: psycopg.Connection[Any]) -> bool:
    """Whether the server that answers is not the one that greeted: poolers make up a key of their own.

    Asks by one statement; not within a transaction that has failed.
    """
    answer = raw.execute("SELECT pg_backend_pid()").fetchone()
    return answer is None or answer[0] != raw.info.backend_pid


def hears(
    listener: psycopg.Connection[Any], another: Callable[[], psycopg.Connection[Any]]
) -> bool:
    """Whether ``listener`` is told what ``another`` connection announces.

    The channel is used for nothing else: a pooler that delivers nothing keeps it on one of its servers.
    """
    channel = f"django_jobs_{ids.worker_id().hex}"
    listener.execute(f"LISTEN {channel}")
    with another() as announcer:
        announcer.execute(f"NOTIFY {channel}")
    heard = any(True for _ in listener.notifies(timeout=PROBE, stop_after=1))
    if heard:
        listener.execute(f"UNLISTEN {channel}")
    return heard
