"""Ten years in twelve zones against cronsim: ``python -m tests.long schedules_oracle [--write] [ZONE …]``.

No difference but those of ``tests/schedules/differences.json``, by number. ``--write`` makes that list
anew, for a new version of the time zones; what nothing explains is never written.
"""

from __future__ import annotations

from collections import Counter

from tests.schedules import oracle


def main(arguments: list[str]) -> int:
    zones = [one for one in arguments if one != "--write"] or list(oracle.ZONES)
    known = oracle.committed() if oracle.COMMITTED.exists() else {}
    found, unexplained, compared = Counter[oracle.Difference](), list[str](), 0
    for zone in zones:
        explained, strange, number = oracle.differences([zone])
        print(
            f"{zone}: {number:,} moments, {sum(explained.values()):,} differ by a rule, {len(strange)} without",
            flush=True,
        )
        found, unexplained, compared = found + explained, unexplained + strange, compared + number
        if "--write" in arguments and not strange:
            others = {one: count for one, count in known.items() if one[0] != zone}
            known = {**others, **explained}
            oracle.commit(known)
    for line in unexplained[:50]:
        print(f"unexplained: {line}")
    known = {one: count for one, count in known.items() if one[0] in zones}
    for difference in sorted(found.keys() | known.keys()):
        seen, wanted = found[difference], known.get(difference, 0)
        if seen != wanted:
            print(f"{' '.join(difference)}: {seen} moments differ, the list says {wanted}")
    print(
        f"{len(zones)} zones, ten years, {compared:,} moments: {sum(found.values()):,} differ by a rule of the "
        f"list, {len(unexplained)} without one"
    )
    return int(bool(unexplained) or dict(found) != known)
