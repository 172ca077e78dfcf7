"""How the demo breaks itself on purpose, to show that its account would notice.

``skip-replay`` takes away what makes the workflow durable: completed steps are forgotten and run
again on every pass, and as nothing is remembered, each run of the charge has a key of its own.
It uses the public ``Retry(restore=False)``; the engine has no switch for it.
"""

from __future__ import annotations

import uuid
from typing import Any

from django_jobs import Retry
from testproject.shop import environment

SKIP_REPLAY = "skip-replay"
MODES = {
    SKIP_REPLAY: "completed steps run again on every pass, and each charge has a key of its own"
}


def step_options() -> dict[str, Any]:
    """What every ``run.task`` of the shop is given besides its input."""
    return {"retries": Retry(restore=False)} if environment.sabotage() == SKIP_REPLAY else {}


def provider_key(idempotency_key: str) -> str:
    """The key shown to the provider: the engine's, or under sabotage a new one each time."""
    return uuid.uuid4().hex if environment.sabotage() == SKIP_REPLAY else idempotency_key
