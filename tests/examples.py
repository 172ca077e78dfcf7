"""How many examples of a property a run tries; ``python -m tests.long properties`` tries many more."""

from __future__ import annotations

import os

TIMES = float(os.environ.get("TEST_EXAMPLES") or 1)
IS_SQLITE = os.environ.get("TEST_DATABASE", "sqlite") == "sqlite"


def examples(number: int, server: int | None = None) -> int:
    """So many in the suite, on a server ``server``: each statement is a round trip there."""
    chosen = number if IS_SQLITE or server is None else server
    return max(1, int(chosen * TIMES))
