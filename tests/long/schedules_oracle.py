"""Ten years in twelve zones against cronsim: ``python -m tests.long schedules_oracle [--write]``.

No difference but those of ``tests/schedules/differences.json``, by number. ``--write`` makes that list
anew, for a new version of the time zones; what nothing explains is never written.
"""

from __future__ import annotations

from collections import Counter

from tests.schedules import oracle


def main(arguments: list[str]) -> int:
    found, unexplained, compared = Counter[oracle.Difference](), list[str](), 0
    for zone in oracle.ZONES:
        explained, strange, number = oracle.differences([zone])
        print(
            f"{zone}: {number:,} moments, {sum(explained.values()):,} explained, {len(strange)} not",
            flush=True,
        )
        found, unexplained, compared = found + explained, unexplained + strange, compared + number
    for line in unexplained[:50]:
        print(f"unexplained: {line}")
    if arguments == ["--write"] and not unexplained:
        oracle.commit(found)
    known = oracle.committed() if oracle.COMMITTED.exists() else {}
    for difference in sorted(found.keys() | known.keys()):
        seen, wanted = found[difference], known.get(difference, 0)
        if seen != wanted:
            print(f"{' '.join(difference)}: {seen} moments differ, the list says {wanted}")
    print(
        f"{len(oracle.ZONES)} zones, ten years, {compared:,} moments: {sum(found.values()):,} differ by a rule "
        f"of the list, {len(unexplained)} without one"
    )
    return int(bool(unexplained) or dict(found) != known)
