from __future__ import annotations

from tests.control.conftest import as_before, marks, release, runjobs

__all__ = ["as_before", "marks", "release", "runjobs"]
