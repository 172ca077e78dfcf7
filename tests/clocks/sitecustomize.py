"""A wrong clock: Python imports this at its start where the folder is on PYTHONPATH.

``CLOCK_SHIFT`` is how many seconds the clock of the process is ahead. ``CLOCK_FILE`` names a file of
eight bytes, a C double of native order, whose seconds are added: whoever writes it moves the clocks of
all processes that share it, while they run. The monotonic clock is right.
"""

from __future__ import annotations

import datetime
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

SHIFT = float(os.environ.get("CLOCK_SHIFT") or 0)
_shared: mmap.mmap | None = None
if os.environ.get("CLOCK_FILE"):
    with Path(os.environ["CLOCK_FILE"]).open("rb") as _file:
        _shared = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
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


def _shift() -> float:
    moved = 0.0 if _shared is None else struct.unpack("d", _shared[:8])[0]
    return float(SHIFT + moved)


time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
datetime.datetime = _Wrong  # type: ignore[misc]
