"""What the tests of each module cost in CPU, their ended processes included.

Wall time says little where several runs share few cores: CPU seconds are what a slower machine pays.
The database's server is not among them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

PROPERTY = "cpu"
SHOWN = 12
_STARTED = pytest.StashKey[float]()
_elsewhere = 0.0


def add(seconds: float) -> None:
    """CPU of a process that is a child of another one than this."""
    global _elsewhere
    _elsewhere += seconds


def _used() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _elsewhere


def begin(item: pytest.Item) -> None:
    item.stash[_STARTED] = _used()


def end(item: pytest.Item) -> None:
    """To be called after a test's teardown, before its last report is made."""
    if _STARTED in item.stash:
        item.user_properties.append((PROPERTY, _used() - item.stash[_STARTED]))


def lines(reports: Iterable[Any]) -> list[str]:
    """The dearest modules and the sum, for the end of a run."""
    modules: Counter[str] = Counter()
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == PROPERTY:
                modules[report.nodeid.partition("::")[0]] += value
    if not modules:
        return []
    shown = [f"{seconds:7.1f}  {module}" for module, seconds in modules.most_common(SHOWN)]
    return [*shown, f"{sum(modules.values()):7.1f}  all {len(modules)} modules"]
