"""Claim and record: every statement that changes state."""

from __future__ import annotations


def notify_all(alias: str | None) -> None:
    """Wake every sleeping worker of this database: something else may be due now."""
    from django_jobs.store.jobs import wake
    from django_jobs.store.session import Session

    wake(Session(alias, through_django=True), "")
