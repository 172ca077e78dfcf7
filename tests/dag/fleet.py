"""Many workers in one process, one claim at a time in any order, so that a test decides who is next."""

from __future__ import annotations

import random
from datetime import timedelta

from django_jobs import clock
from django_jobs.lifecycle import FINAL
from django_jobs.models import Job
from django_jobs.store import claims as claiming
from django_jobs.store.session import Session, engine_alias
from django_jobs.worker.local import Batch

#: Claims after which a run is taken for endless.
MOST = 5_000


class Fleet:
    """Runs everything to its end; the order of claims is drawn from ``source``.

    ``dies`` is the chance that a worker dies with its claim, before it has begun it.
    """

    def __init__(self, source: random.Random, *, dies: float = 0.0) -> None:
        self.source = source
        self.dies = dies
        self.session = Session(engine_alias())
        self.claims: list[claiming.Claim] = []
        self.killed = 0

    def run(self, job: Job) -> Job:
        """Until ``job`` has ended, moving the clock where nothing is due."""
        clock.freeze(clock.now())
        for _ in range(MOST):
            if not self.step():
                job.refresh_from_db()
                if job.status in FINAL:
                    return job
                self.wait()
        raise AssertionError(f"the run did not end: {job.status}")

    def step(self) -> bool:
        """One claim by a worker of its own; False where nothing is due."""
        batch = Batch(self.session.alias, None, None)
        batch.spreads = True
        batch.prepare()
        due = [
            row.pk
            for row in Job.units.filter(status="pending", gate="open", due_at__lte=clock.now())
            if row.lease_expires_at is None
        ]
        claims = batch.claim_ids([self.source.choice(due)]) if due else batch.undoing(1)
        if not claims:
            return False
        self.claims += claims
        if self.source.random() < self.dies:
            self.killed += 1
            return True  # its lease ends, and somebody takes it back
        batch.execute(claims, sequential=True)
        return True

    def wait(self) -> None:
        """Move the clock to the next moment at which something is due."""
        row = self.session.one(
            "SELECT MIN(CASE WHEN run_after > {now} THEN run_after END), MIN(lease_expires_at) "
            "FROM {job} WHERE finished_at IS NULL"
        )
        assert row is not None
        moments = [self.session.dialect.time(value) for value in row]
        found = [moment for moment in moments if moment is not None]
        assert found, "nothing is due and nothing ever will be"
        clock.freeze(max(min(found), clock.now()) + timedelta(microseconds=1))
