"""The benchmarks' command line, definitions and tables. Speed is never measured in tests."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import measures, report, revision, runner, targets
from benchmarks.environments import OURS, PEERS

MEASURES = list(measures.MEASURES.values())
SIDES = Path(runner.SIDES)


def made_row(label: str, *values: float, system: str = "pgqueuer") -> report.Row:
    median = sorted(values)[len(values) // 2] if values else None
    return report.Row(label, system, list(values), median, {}, "defaults", "", False, None)


def test_without_names_all_measures_are_chosen() -> None:
    assert command.chosen(command.parser().parse_args([])) == MEASURES


def test_named_measures_are_reduced_to_ours_and_the_peers_asked_for() -> None:
    arguments = command.parser().parse_args(["noop", "bulk", "--vs", "procrastinate"])
    chosen = command.chosen(arguments)
    assert [one.name for one in chosen] == ["noop", "bulk"]
    assert {c.system for one in chosen for c in one.contenders} == {"django_jobs", "procrastinate"}


def test_quick_is_the_no_op_against_pgqueuer_and_procrastinate_in_seconds() -> None:
    [one] = command.chosen(command.parser().parse_args(["--quick"]))
    assert one.name == "noop"
    assert {c.system for c in one.contenders} == {"django_jobs", "pgqueuer", "procrastinate"}


@pytest.mark.parametrize("words", [["nope"], ["--vs", "nope"]])
def test_an_unknown_name_is_refused_with_the_known_ones(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.chosen(command.parser().parse_args(words))
    error = capsys.readouterr().err
    assert "nope" in error
    assert "noop" in error or "pgqueuer" in error


def test_list_prints_each_measure_with_its_definition(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for one in MEASURES:
        assert f"{one.name}: {one.title}" in printed
        assert one.definition in printed


@pytest.mark.parametrize("one", MEASURES, ids=lambda one: one.name)
def test_every_measure_has_a_definition_and_begins_with_our_side(one: measures.Measure) -> None:
    assert len(one.definition) > 40
    assert one.unit
    assert one.contenders[0].system == OURS.name
    labels = [contender.label for contender in one.contenders]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("one", MEASURES, ids=lambda one: one.name)
def test_every_contender_has_a_script_that_knows_what_it_is_asked(one: measures.Measure) -> None:
    for contender in one.contenders:
        system = OURS if contender.system == OURS.name else PEERS[contender.system]
        methods = _methods(SIDES / system.script) | _methods(SIDES / "common.py")
        assert f"measure_{contender.request['measure']}" in methods
        assert contender.kill


def _methods(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_target_names_a_measure_and_contenders_that_exist() -> None:
    labels = {one.name: {c.label for c in one.contenders} for one in MEASURES}
    for target in targets.TARGETS:
        assert {target.ours, target.peer} <= labels[target.measure], target
        assert target.floor is None or target.floor <= target.ratio
    for limit in targets.LIMITS:
        assert {limit.label, limit.beyond or limit.label} <= labels[limit.measure], limit


def test_the_floors_of_the_no_op_are_those_that_were_agreed() -> None:
    floors = {t.peer: t.floor for t in targets.TARGETS if t.measure == "noop"}
    assert floors == {
        "pgqueuer, batch 500": 0.7,
        "pgqueuer, default batch 10": 1.0,
        "procrastinate": 8,
        "django-tasks-db": 20,
    }


def test_a_table_shows_median_range_and_how_many_times_better_ours_is() -> None:
    rows = [made_row("django_jobs", 900, 1000, 1200), made_row("pgqueuer", 400, 500, 600)]
    lines = report.table(measures.MEASURES["bulk"], rows)
    assert lines[1] == ["django_jobs", "1,000", "900–1,200", "1.00"]
    assert lines[2] == ["pgqueuer", "500", "400–600", "2.00"]


def test_where_less_is_better_the_ratio_is_turned_over() -> None:
    rows = [made_row("django_jobs", 2.0), made_row("pgqueuer", 6.0)]
    assert report.table(measures.MEASURES["latency"], rows)[2][-1] == "3.00"


def test_a_peer_that_failed_is_listed_with_its_error() -> None:
    failed = made_row("pgqueuer")
    failed.error = "not installed: no network"
    text = report.markdown(
        report.table(measures.MEASURES["bulk"], [made_row("django_jobs", 1.0), failed])
    )
    assert "not installed: no network" in text


def test_a_target_and_its_floor_are_judged_apart() -> None:
    rows = [made_row("django_jobs", 80.0), made_row("pgqueuer, batch 500", 100.0)]
    found = report.verdicts(measures.MEASURES["noop"], rows)
    assert [(v.met, v.is_floor) for v in found] == [(False, False), (True, True)]


def test_a_limit_may_be_counted_beyond_another_contender() -> None:
    rows = [
        made_row(targets.WORKER, 70.0, system="django_jobs"),
        made_row("plain Django, one process", 50.0, system="django_jobs"),
    ]
    [verdict] = report.verdicts(measures.MEASURES["memory"], rows)
    assert not verdict.met
    assert "20" in verdict.text


def test_a_picture_is_well_formed_and_shows_each_side_that_ran() -> None:
    rows = [made_row("a <b>", 1.0, 2.0, 3.0), made_row("c", 2.0), made_row("not run")]
    tree = ElementTree.fromstring(report.svg(measures.MEASURES["bulk"], rows))
    texts = [node.text for node in tree.iter() if node.text and node.text.strip()]
    assert "a <b>" in texts
    assert "c" in texts
    assert "not run" not in texts


def test_the_page_names_commit_date_machine_settings_and_command() -> None:
    rows = [made_row("django_jobs", 10.0, system="django_jobs"), made_row("pgqueuer", 5.0)]
    rows[1].commits_more = True
    section = report.Section(
        "bulk", rows, "abc1234", "2026-01-02", "python -m benchmarks bulk", 3, "2 cores", "SQLite",
        {"pgqueuer": "1.6.0"},
    )  # fmt: skip
    page = report.page([section])
    for part in ("abc1234", "2026-01-02", "2 cores", "python -m benchmarks bulk", "pgqueuer 1.6.0"):
        assert part in page
    assert "pgqueuer¹" in page
    assert "| bulk | django_jobs ÷ pgqueuer = 2.00, target 1 | yes |" in page


def test_our_sides_are_paired_with_themselves_at_an_earlier_commit() -> None:
    one = measures.MEASURES["pending"]
    pairs = revision.beside(one, "abc1234", Path("/there"))
    assert len(pairs.contenders) == 2 * sum(c.system == OURS.name for c in one.contenders)
    now, then = pairs.contenders[:2]
    assert then.label == f"{now.label} at abc1234"
    assert then.request == {**now.request, "package": "/there"}
    targets_ = revision.targets_against(pairs, "abc1234")
    assert (targets_[0].ours, targets_[0].peer, targets_[0].ratio) == (now.label, then.label, 0.95)


def test_what_is_over_a_twentieth_worse_than_it_was_is_missed() -> None:
    one = revision.beside(measures.MEASURES["sqlite"], "abc1234", Path("/there"))
    rows = [
        made_row("django_jobs", 90.0, system="django_jobs"),
        made_row("django_jobs at abc1234", 100.0, system="django_jobs"),
    ]
    [verdict] = report.verdicts(one, rows, revision.targets_against(one, "abc1234"))
    assert not verdict.met
    rows[0] = made_row("django_jobs", 96.0, system="django_jobs")
    [verdict] = report.verdicts(one, rows, revision.targets_against(one, "abc1234"))
    assert verdict.met


def test_results_are_kept_in_pieces_and_make_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "CACHE", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "IMAGES", tmp_path / "images")
    rows = [made_row("django_jobs", 10.0, system="django_jobs"), made_row("pgqueuer", 5.0)]
    for name in ("enqueue", "bulk"):
        report.remember(
            report.Section(name, rows, "abc1234", "2026-01-02", name, 3, "2 cores", "SQLite", {})
        )
    assert command.main(["--page"]) == 0
    page = (tmp_path / "page.md").read_text()
    assert page.index("## Enqueue one by one") < page.index("## Enqueue 10,000 in bulk")
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        "benchmark-enqueue.svg", "benchmark-bulk.svg",
    }  # fmt: skip
    report.forget()
    assert report.remembered() == {}
