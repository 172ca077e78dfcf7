"""What a child is really running, kept in memory that its supervisor can read after its death."""

from __future__ import annotations

import mmap
import struct
import threading
from uuid import UUID

#: The job's id, its fence, and how many executions have begun in this place.
_SLOT = struct.Struct("=16sQQ")
_SIZE = _SLOT.size
EMPTY = bytes(16)


class Charges:
    """A table of (job, fence) in shared memory; jobs in it are charged when the child dies.

    A place belongs to one execution at a time, so that writing to it needs no lock.
    """

    def __init__(self, slots: int = 256) -> None:
        # One more for the executions that found no place: they are counted, and not charged.
        self._memory = mmap.mmap(-1, _SIZE * (slots + 1))
        self._entered = [0] * (slots + 1)
        self._free = list(range(slots))
        self._crowd = slots
        self._lock = threading.Lock()

    def enter(self, job_id: UUID, fence: int) -> int:
        """An execution begins; the place that :meth:`leave` is told."""
        try:
            place = self._free.pop()
        except IndexError:
            with self._lock:
                self._write(self._crowd, EMPTY, 0)
            return self._crowd
        self._write(place, job_id.bytes, fence)
        return place

    def leave(self, place: int) -> None:
        if place != self._crowd:
            offset = place * _SIZE
            self._memory[offset : offset + 16] = EMPTY
            self._free.append(place)

    def _write(self, place: int, job: bytes, fence: int) -> None:
        self._entered[place] = count = self._entered[place] + 1
        _SLOT.pack_into(self._memory, place * _SIZE, job, fence, count)

    @property
    def entered(self) -> int:
        """How many executions have begun."""
        return sum(entered for _, _, entered in self._places())

    def running(self) -> set[UUID]:
        """The jobs that were being run, as the supervisor reads them."""
        return {UUID(bytes=raw) for raw, _, _ in self._places() if raw != EMPTY}

    def _places(self) -> list[tuple[bytes, int, int]]:
        return list(_SLOT.iter_unpack(self._memory[:]))
