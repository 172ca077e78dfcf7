"""How a pass ends before its handler does."""

from __future__ import annotations

from django_jobs.outcomes import Outcome


class PassEnds(BaseException):
    """Raised through the handler to end this pass with ``outcome``.

    A BaseException, so that ``except Exception`` in a handler does not see it.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome
