"""The one door through which randomness enters: ids, tokens and jitter."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from uuid import UUID

from django_jobs import clock

source = random.SystemRandom()
_lock = threading.Lock()
_last = 0


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def job_ids(count: int) -> list[UUID]:
    """``count`` version 7 UUIDs (RFC 9562) that rise within this process.

    48 bits of milliseconds, then 12 bits of the millisecond's fraction, raised by one where two
    ids would be equal, then 62 random bits.
    """
    global _last
    stamp = int(clock.real_milliseconds() * 4096)
    with _lock:
        first = max(stamp, _last + 1)
        _last = first + count - 1
    noise = os.urandom(8 * count)
    made = []
    for index in range(count):
        value = first + index
        tail = int.from_bytes(noise[8 * index : 8 * index + 8], "big") & 0x3FFFFFFFFFFFFFFF
        bits = (value >> 12) << 80 | 0x7 << 76 | (value & 0xFFF) << 64 | 0x2 << 62 | tail
        made.append(UUID(int=bits))
    return made


def job_id() -> UUID:
    """One id for a job."""
    return job_ids(1)[0]


def worker_id() -> UUID:
    """Random per process start: never derived from host, pod or pid."""
    return UUID(bytes=os.urandom(16), version=4)


def token() -> str:
    """256 random bits, URL-safe."""
    import secrets

    return secrets.token_urlsafe(32)


def jitter(span: float) -> float:
    """A random number from ``-span`` to ``span``."""
    return source.uniform(-span, span) if span else 0.0


def digest(*parts: str) -> str:
    """32 hex digits that stand for ``parts``; no two different tuples are joined alike."""
    text = "\x1f".join(parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def lane(*parts: str) -> int:
    """A signed 64-bit number that stands for ``parts``."""
    text = "\x1f".join(parts)
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big", signed=True)
