"""What a child is really running, kept in memory that its supervisor can read after its death."""

from __future__ import annotations

import mmap
import struct
import threading
from uuid import UUID

_SLOT = struct.Struct("=16sQ")
_COUNT = struct.Struct("=Q")
EMPTY = bytes(16)


class Charges:
    """A table of (job, fence) in shared memory; jobs in it are charged when the child dies."""

    def __init__(self, slots: int = 256) -> None:
        self._slots = slots
        self._memory = mmap.mmap(-1, _SLOT.size * slots + _COUNT.size)
        self._lock = threading.Lock()
        self._places: dict[UUID, int] = {}
        self._free = list(range(slots))

    def enter(self, job_id: UUID, fence: int) -> None:
        with self._lock:
            _COUNT.pack_into(self._memory, _SLOT.size * self._slots, self.entered + 1)
            if job_id in self._places or not self._free:
                return
            place = self._free.pop()
            self._places[job_id] = place
            _SLOT.pack_into(self._memory, place * _SLOT.size, job_id.bytes, fence)

    def leave(self, job_id: UUID) -> None:
        with self._lock:
            place = self._places.pop(job_id, None)
            if place is not None:
                _SLOT.pack_into(self._memory, place * _SLOT.size, EMPTY, 0)
                self._free.append(place)

    @property
    def entered(self) -> int:
        """How many executions have begun."""
        return int(_COUNT.unpack_from(self._memory, _SLOT.size * self._slots)[0])

    def running(self) -> set[UUID]:
        """The jobs that were being run, as the supervisor reads them."""
        found = set()
        for place in range(self._slots):
            raw, _ = _SLOT.unpack_from(self._memory, place * _SLOT.size)
            if raw != EMPTY:
                found.add(UUID(bytes=raw))
        return found
