"""Bad luck by rule: the same seed fails the same requests, however fast or slow they come."""

from __future__ import annotations

import hashlib


def chance(*parts: object) -> float:
    """A number from 0 up to 1 that stands for ``parts`` and nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
