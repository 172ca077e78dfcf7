"""What a child is really running, kept in memory that its supervisor can read after its death."""

from __future__ import annotations

import mmap
import struct
import threading
from uuid import UUID

from django_jobs import clock

#: The job's id, its fence, and how many executions have begun in this place.
_SLOT = struct.Struct("=16sQQ")
_SIZE = _SLOT.size
#: When the child has reached its database the last time.
_PULSE = struct.Struct("=d")
EMPTY = bytes(16)


class Charges:
    """A table of (job, fence) in shared memory; jobs in it are charged when the child dies.

    A place belongs to one execution at a time, so that writing to it needs no lock. There must be one
    for each that can be under way at the same time: a poison job without a place would kill its
    workers for ever.
    """

    def __init__(self, slots: int = 256) -> None:
        # One more for the executions that found no place: they are counted, and not charged.
        self._memory = mmap.mmap(-1, _SIZE * (slots + 1) + _PULSE.size)
        self._end = _SIZE * (slots + 1)
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

    def running(self) -> set[tuple[UUID, int]]:
        """The jobs that were being run and under which fence, as the supervisor reads them."""
        return {(UUID(bytes=raw), fence) for raw, fence, _ in self._places() if raw != EMPTY}

    def pulse(self) -> None:
        """Note that the child has reached its database now."""
        _PULSE.pack_into(self._memory, self._end, clock.monotonic())

    @property
    def pulsed_at(self) -> float:
        """The last :meth:`pulse`, on the monotonic clock that all processes share; 0 before the first."""
        return float(_PULSE.unpack_from(self._memory, self._end)[0])

    def _places(self) -> list[tuple[bytes, int, int]]:
        return list(_SLOT.iter_unpack(self._memory[: self._end]))
