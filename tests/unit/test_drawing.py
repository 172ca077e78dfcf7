"""Drawings of graphs: layers, escaping, classes only."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from django_jobs.definitions.drawing import HEIGHT, WIDTH, Node, layout, mermaid, svg

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert(1)</script>\"'&\x00 onload=x \ud800"


def test_each_node_lies_below_all_it_waits_for():
    nodes = [
        Node("d", after=("b", "c")),
        Node("a"),
        Node("b", after=("a",)),
        Node("c", after=("a",)),
    ]
    layers = {box.node.id: box.layer for box in layout(nodes)}
    assert layers == {"a": 0, "b": 1, "c": 1, "d": 2}


@given(
    st.lists(st.sets(st.integers(0, 30), max_size=4), min_size=1, max_size=30),
    st.text(max_size=30),
)
def test_any_graph_is_drawn_whole_without_overlap(edges, label):
    nodes = [
        Node(str(number), label, after=tuple(str(one) for one in sorted(after)))
        for number, after in enumerate(edges)
    ]
    boxes = layout(nodes)
    assert {box.node.id for box in boxes} == {node.id for node in nodes}
    corners = {(box.x, box.y) for box in boxes}
    assert len(corners) == len(nodes)
    for one in boxes:
        for other in boxes:
            if one is not other and one.y == other.y:
                assert abs(one.x - other.x) >= WIDTH
            elif one.y != other.y:
                assert abs(one.y - other.y) >= HEIGHT
    ElementTree.fromstring(svg(nodes, title=label))


def test_text_is_escaped_and_nothing_runs_or_styles():
    drawn = svg([Node(EVIL, EVIL, EVIL, kind=EVIL, href=f"/x?{EVIL}")], title=EVIL)
    tree = ElementTree.fromstring(drawn)
    assert not [one for one in tree.iter() if one.tag in (f"{SVG}script", f"{SVG}style")]
    for one in tree.iter():
        assert "style" not in one.attrib
        assert not [name for name in one.attrib if name.startswith("on")]
        assert re.fullmatch(r"[a-z0-9 -]*", one.get("class", ""))


def test_a_status_is_a_class_and_a_word():
    drawn = svg([Node("a", "Charge", "completed", kind="task"), Node("b", after=("a",))])
    assert 'class="jobs-node status-completed kind-task"' in drawn
    assert 'class="jobs-node status-none"' in drawn
    assert "<title>Charge: completed</title>" in drawn
    assert drawn.count('class="jobs-edge"') == 1


def test_mermaid_text():
    text = mermaid([Node("a", 'say "hi"', "failed"), Node("b", after=("a", "gone"))])
    assert text.splitlines() == [
        "flowchart TD",
        '    n0["say #34;hi#34;"]:::failed',
        '    n1["b"]',
        "    n0 --> n1",
    ]
