"""What differs by database, and nothing else."""

from __future__ import annotations

from django_jobs.errors import ConfigurationError
from django_jobs.store.dialects.base import Dialect
from django_jobs.store.dialects.mysql import MySQL
from django_jobs.store.dialects.postgresql import PostgreSQL
from django_jobs.store.dialects.sqlite import SQLite

DIALECTS: dict[str, Dialect] = {
    "postgresql": PostgreSQL(),
    "sqlite": SQLite(),
    "mysql": MySQL(),
}


def dialect_of(vendor: str) -> Dialect:
    """The dialect of a Django database vendor; ConfigurationError for one not served."""
    try:
        return DIALECTS[vendor]
    except KeyError:
        raise ConfigurationError(
            f"django_jobs does not run on {vendor!r}. Keep its tables on PostgreSQL, MariaDB, "
            'MySQL or SQLite and name that database in DJANGO_JOBS["DATABASE"].'
        ) from None
