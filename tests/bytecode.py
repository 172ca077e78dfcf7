"""Lets the processes of a test run keep what they have compiled.

Where ``PYTHONDONTWRITEBYTECODE`` is set, as in many images, each of the some hundred processes that a
run starts would compile all it imports: three times the CPU of the start itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FORBIDDEN = "PYTHONDONTWRITEBYTECODE"
FOLDER = "PYTHONPYCACHEPREFIX"


def keep(folder: Path) -> None:
    """Have this process and those it starts compile into ``folder``, and nothing beside the sources."""
    if not sys.dont_write_bytecode:
        return
    os.environ.pop(FORBIDDEN, None)
    os.environ[FOLDER] = str(folder)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(folder)
