from __future__ import annotations

import importlib
import pkgutil
import sys

from tests import long

NAMES = sorted(one.name for one in pkgutil.iter_modules(long.__path__) if one.name != "__main__")


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: python -m tests.long {{{','.join(NAMES)}}} […]", file=sys.stderr)
        return 2
    subject = importlib.import_module(f"tests.long.{sys.argv[1]}")
    return int(subject.main(sys.argv[2:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
