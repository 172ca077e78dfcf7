from __future__ import annotations

from tests.engine.conftest import as_before, marks, release, runjobs

__all__ = ["as_before", "marks", "release", "runjobs"]
