"""Every damage still fits the code; ``python -m tests.sabotage`` does the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sabotage.damages import DAMAGES, Damage, DoesNotApply, Edit
from tests.support import ROOT


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damage_applies_and_leaves_python(damage: Damage, tmp_path: Path) -> None:
    for edit in damage.edits:
        target = tmp_path / edit.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / edit.path).read_text())
    damage.apply(tmp_path)
    for edit in damage.edits:
        damaged = (tmp_path / edit.path).read_text()
        assert damaged != (ROOT / edit.path).read_text()
        if edit.path.endswith(".py"):
            compile(damaged, edit.path, "exec")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_the_tests_that_must_catch_a_damage_exist(damage: Damage) -> None:
    assert damage.tests
    for test in damage.tests:
        path, _, name = test.partition("::")
        assert re.search(rf"^def {name.partition('[')[0]}\(", (ROOT / path).read_text(), re.M)


def test_a_damage_that_no_longer_applies_says_so(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("fence = 1\n")
    damage = Damage("gone", "L3", [Edit("engine.py", "fence = 2", "")], ["tests/x.py::test_x"])
    with pytest.raises(DoesNotApply, match=r"gone: engine\.py no longer contains 'fence = 2'"):
        damage.apply(tmp_path)
    assert (tmp_path / "engine.py").read_text() == "fence = 1\n"


def test_names_are_unique() -> None:
    assert len({damage.name for damage in DAMAGES}) == len(DAMAGES)
