"""A wrong clock: Python imports this at its start where the folder is on PYTHONPATH.

``CLOCK_SHIFT`` is how many seconds the clock of the process is ahead. The monotonic clock is right.
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

SHIFT = float(os.environ["CLOCK_SHIFT"])
_real, _time, _time_ns = datetime.datetime, time.time, time.time_ns


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _real)


class _Wrong(_real, metaclass=_Kind):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _real.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return _real.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


time.time = lambda: _time() + SHIFT
time.time_ns = lambda: _time_ns() + int(SHIFT * 1e9)
datetime.datetime = _Wrong  # type: ignore[misc]
