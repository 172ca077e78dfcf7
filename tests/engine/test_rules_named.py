"""Each rule of reliability that the engine implements is named by a test that proves it.

A test names rules by the first words of its docstring: ``P6, L8: …``. Section 9, a table, is R9.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.support import ROOT

NAMES = re.compile(r"^((?:[A-Z]\d+)(?:, (?:[A-Z]\d+))*):")
#: Implemented so far, by section: status changes; lease and fence; write ordering and
#: transactions; idempotency, time and code change; bad input.
IMPLEMENTED = {
    4: "S1 S2 S3 S4",
    5: "L1 L2 L3 L4 L5 L6 L7 L8 L9",
    6: "W1 W2 W3 W5 W6 W7 W8 W9",
    7: "I1 I7 I8 I9",
    9: "R9",
}


def naming(path: Path) -> dict[str, list[str]]:
    """The tests of a module by the rules that they name."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test"
        ):
            match = NAMES.match(ast.get_docstring(node) or "")
            for rule in match[1].split(", ") if match else ():
                found[rule].append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def test_every_implemented_rule_is_named_by_a_test() -> None:
    named: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for rule, tests in naming(path).items():
            named[rule] += tests
    missing = {
        section: left
        for section, rules in IMPLEMENTED.items()
        if (left := [rule for rule in rules.split() if not named[rule]])
    }
    assert not missing
