"""Named points at the edges of transactions, where a test can break in.

A point does nothing unless code sets an action for it; there is no switch from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_actions: dict[str, Callable[[], None]] = {}


def reach(name: str) -> None:
    """Run the action set for ``name``, if any."""
    if _actions:
        action = _actions.get(name)
        if action is not None:
            action()


@contextmanager
def at(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Run ``action`` whenever the point ``name`` is reached within the block."""
    _actions[name] = action
    try:
        yield
    finally:
        _actions.pop(name, None)
