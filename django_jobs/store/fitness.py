"""What of a database's version and settings does not suit the engine. Asked by the system checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from django_jobs import conf
from django_jobs.store.pooling import is_pooled

#: Below this many bytes a batch of large outcomes may be refused by MariaDB or MySQL.
PACKET = 16 << 20


@dataclass(frozen=True, slots=True)
class Fault:
    """One unfit thing: what is wrong, and the remedy. ``refused`` says that jobs would not run rightly."""

    code: str
    message: str
    hint: str
    refused: bool = True


def settings_faults(connection: Any, alias: str) -> Iterator[Fault]:
    """What is wrong already with the settings of a database, without a look at it."""
    if not connection.settings_dict.get("AUTOCOMMIT", True):
        yield Fault(
            "E009",
            f"AUTOCOMMIT is False for the database {alias!r}: nothing that a worker writes would be committed.",
            f"Take AUTOCOMMIT out of DATABASES[{alias!r}]; ATOMIC_REQUESTS and transaction.atomic() are fine.",
        )
    if connection.vendor == "postgresql" and find_spec("psycopg") is None:
        yield Fault(
            "E010",
            "The engine speaks to PostgreSQL through psycopg 3, and only psycopg2 is installed.",
            "pip install 'psycopg[binary]'; Django then uses it as well.",
        )
    options = connection.settings_dict.get("OPTIONS", {})
    if connection.vendor == "mysql":
        yield from _isolation(str(options.get("isolation_level") or "read committed"), alias)
    if (
        connection.vendor == "sqlite"
        and str(options.get("transaction_mode")).upper() != "IMMEDIATE"
    ):
        yield Fault(
            "W001",
            "SQLite transactions are deferred, so your own transactions can fail with 'database is locked' "
            "while workers write.",
            f'Set OPTIONS["transaction_mode"] = "IMMEDIATE" for the database {alias!r}.',
            refused=False,
        )


def _isolation(level: str, alias: str) -> Iterator[Fault]:
    if level.lower().replace("-", " ") != "read committed":
        yield Fault(
            "E006",
            f"The transactions of database {alias!r} are {level}: workers would lock each other out and read "
            "old rows.",
            f'Leave OPTIONS["isolation_level"] of the database {alias!r} at "read committed", Django\'s default.',
        )


def faults(connection: Any, alias: str) -> Iterator[Fault]:
    """What is wrong with the database behind this connection of Django's, one of a served vendor."""
    if any(fault.refused for fault in settings_faults(connection, alias)):
        return
    look = {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}[connection.vendor]
    yield from look(connection, alias)


def _one(connection: Any, sql: str) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return tuple(cursor.fetchone())


# --- PostgreSQL -------------------------------------------------------------------------------


def _postgresql(connection: Any, alias: str) -> Iterator[Fault]:
    [standby, only_reads, level] = _one(
        connection,
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on', "
        "current_setting('default_transaction_isolation')",
    )
    if standby or only_reads:
        yield Fault(
            "E011",
            f"The database {alias!r} only reads ({'a standby' if standby else 'default_transaction_read_only is on'}).",
            'Name an alias that leads to the primary in DJANGO_JOBS["DATABASE"].',
        )
    if level != "read committed":
        yield Fault(
            "W003",
            f"The server's default isolation is {level!r} for the database {alias!r}: workers that meet at the same "
            "rows must repeat their transactions.",
            "Leave default_transaction_isolation at 'read committed', and ask for more in transactions of your own.",
            refused=False,
        )
    if is_pooled(connection.connection):
        yield from _pooled(connection, alias)


def _pooled(connection: Any, alias: str) -> Iterator[Fault]:
    if not connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield Fault(
            "W004",
            f"A pooler stands before the database {alias!r}, and Django may read through cursors of the server's "
            "session: pooling by transaction loses them.",
            f'Set DATABASES[{alias!r}]["DISABLE_SERVER_SIDE_CURSORS"] = True.',
            refused=False,
        )
    settings = conf.get()
    if settings.notify and settings.listen_dsn is None:
        yield Fault(
            "W005",
            f"A pooler stands before the database {alias!r}: where it pools by transaction, LISTEN is told nothing and "
            "workers find new jobs by polling.",
            'Set DJANGO_JOBS["LISTEN_DSN"] to an address that leads to the server itself.',
            refused=False,
        )


# --- MariaDB and MySQL ------------------------------------------------------------------------


def server_fault(is_mariadb: bool, version: tuple[int, ...]) -> tuple[str, str] | None:
    """What is wrong with a server of this version, and the remedy; None where it serves."""
    shown = ".".join(map(str, version))
    if not is_mariadb:
        if version >= (8, 0, 11):
            return None
        return f"MySQL {shown} is too old", "Use MySQL 8.0.11 or newer."
    if version < (10, 6):
        return f"MariaDB {shown} is too old", "Use MariaDB 10.6 or newer; it can skip locked rows."
    if (10, 7) <= version < (10, 10, 6) or (10, 11) <= version < (10, 11, 5):
        return (
            f"MariaDB {shown} sorts version 7 UUIDs wrongly, so that jobs would run out of order",
            "Use MariaDB 10.6, 10.10.6, 10.11.5 or newer.",
        )
    return None


def _mysql(connection: Any, alias: str) -> Iterator[Fault]:
    fault = server_fault(connection.mysql_is_mariadb, connection.mysql_version)
    if fault is not None:
        message, hint = fault
        yield Fault("E005", f"{message} (database {alias!r}).", hint)
    name = "tx_isolation" if connection.mysql_is_mariadb else "transaction_isolation"
    level, engine, packet, charset = _one(
        connection,
        f"SELECT @@{name}, @@default_storage_engine, @@max_allowed_packet, @@character_set_connection",
    )
    yield from _isolation(level, alias)
    yield from _engine(connection, alias, engine)
    if packet < PACKET:
        yield Fault(
            "W006",
            f"max_allowed_packet is {packet} bytes for the database {alias!r}: a batch of large outcomes may be refused.",
            f"Set it to at least {PACKET} in the server's configuration.",
            refused=False,
        )
    if charset != "utf8mb4":
        yield Fault(
            "W007",
            f"The connection to the database {alias!r} speaks {charset}: an emoji in an input, a result or an error "
            "would be refused.",
            'Set OPTIONS["charset"] = "utf8mb4", and keep the tables in utf8mb4.',
            refused=False,
        )


def _engine(connection: Any, alias: str, default: str) -> Iterator[Fault]:
    """Tables without transactions: a half-written outcome would stay."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE() "
            "AND table_name LIKE 'django\\_jobs\\_%' AND engine <> 'InnoDB' ORDER BY table_name"
        )
        wrong = cursor.fetchall()
        cursor.execute("SHOW TABLES LIKE 'django\\_jobs\\_job'")
        is_migrated = bool(cursor.fetchall())
    if wrong:
        tables = ", ".join(f"{table} ({engine})" for table, engine in wrong)
        yield Fault(
            "E012",
            f"Tables of the database {alias!r} have no transactions: {tables}.",
            f"ALTER TABLE {wrong[0][0]} ENGINE = InnoDB, and so for each.",
        )
    elif not is_migrated and default != "InnoDB":
        yield Fault(
            "E012",
            f"New tables of the database {alias!r} are made by {default}, which has no transactions.",
            "Set default_storage_engine = InnoDB before you migrate.",
        )


# --- SQLite -----------------------------------------------------------------------------------


def _sqlite(connection: Any, alias: str) -> Iterator[Fault]:
    if connection.is_in_memory_db():
        yield Fault(
            "W008",
            f"The database {alias!r} lives in the memory of one process: no worker sees its jobs.",
            "Keep it in a file, or run jobs by run_jobs() in that process.",
            refused=False,
        )
        return
    [journal] = _one(connection, "PRAGMA journal_mode")
    if journal != "wal":
        yield Fault(
            "W002",
            f"SQLite's journal mode is {journal!r} for the database {alias!r}: whoever reads keeps writers waiting, and "
            "a commit costs several times as much.",
            'Set OPTIONS["init_command"] = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" on a local disk.',
            refused=False,
        )
