"""Drawing a graph of steps: one layered layout, as SVG and as Mermaid text.

For whoever shows a graph, such as the admin::

    nodes = dag.drawn({"charge": "completed", "ship": "running"})      # of a registered DAG
    nodes = [Node("charge", "Charge", "completed", (), href="#step-1"), Node("ship", after=("charge",))]
    html = mark_safe(svg(nodes, title="order.process"))

The SVG holds classes only, no style attribute and no script, so that it is shown under a strict
Content-Security-Policy, in dark mode too; all text is escaped. The page's style sheet colours it:
``.jobs-graph`` is the drawing, ``.jobs-node`` a step with ``.status-<status>`` and ``.kind-<kind>``
beside it (``.status-none`` before its start), ``.jobs-edge`` and ``.jobs-arrow`` the lines. Give
``.jobs-node rect`` a fill, ``.jobs-edge`` ``fill: none`` and a stroke, and ``.jobs-arrow`` a fill.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

#: Sizes in pixels of the SVG.
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 180, 40, 28, 44, 12
#: Characters of a label that fit into a node; the whole one is its title.
LABEL = 22
#: Passes that sort each layer by the middle of its neighbours, to cross fewer lines.
SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Node:
    """One step to be drawn; ``after`` names the nodes it waits for, and unknown ones are left out."""

    id: str
    label: str = ""
    status: str = ""
    after: tuple[str, ...] = ()
    kind: str = ""
    href: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A placed node: its layer from the top, and its corner in pixels."""

    node: Node
    layer: int
    x: float
    y: float


def layout(nodes: Sequence[Node]) -> list[Box]:
    """Each node in the layer below all it waits for; within a layer near its neighbours.

    Nodes that wait for each other, which no valid graph has, are placed as if they did not.
    """
    layers = _layers(nodes)
    _untangle(layers, nodes)
    widest = max((len(layer) for layer in layers), default=0) * (WIDTH + GAP_X) - GAP_X
    boxes = []
    for number, layer in enumerate(layers):
        left = MARGIN + (widest - (len(layer) * (WIDTH + GAP_X) - GAP_X)) / 2
        for place, node in enumerate(layer):
            y = MARGIN + number * (HEIGHT + GAP_Y)
            boxes.append(Box(node, number, left + place * (WIDTH + GAP_X), y))
    return boxes


def _layers(nodes: Sequence[Node]) -> list[list[Node]]:
    known = {node.id: node for node in nodes}
    depth: dict[str, int] = {}
    left = list(nodes)
    while left:
        ready = [
            node for node in left if all(one in depth for one in node.after if one in known)
        ] or left
        for node in ready:
            below = [depth[one] for one in node.after if one in depth and one != node.id]
            depth[node.id] = max(below, default=-1) + 1
        left = [node for node in left if node.id not in depth]
    layers: list[list[Node]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in nodes:
        layers[depth[node.id]].append(node)
    return layers


def _untangle(layers: list[list[Node]], nodes: Sequence[Node]) -> None:
    """Sort each layer by the mean place of its neighbours, down and up in turn."""
    below: dict[str, list[str]] = {node.id: [] for node in nodes}
    for node in nodes:
        for other in node.after:
            if other in below:
                below[other].append(node.id)
    above = {node.id: list(node.after) for node in nodes}
    for sweep in range(SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            places = _places(layers)
            layer.sort(key=lambda node: _middle(node, neighbours[node.id], places))


def _places(layers: list[list[Node]]) -> dict[str, float]:
    """The place of each node in its layer, from the middle of it."""
    return {
        node.id: place - (len(layer) - 1) / 2
        for layer in layers
        for place, node in enumerate(layer)
    }


def _middle(node: Node, neighbours: Iterable[str], places: dict[str, float]) -> float:
    found = [places[one] for one in neighbours if one in places]
    return sum(found) / len(found) if found else places[node.id]


# --- SVG --------------------------------------------------------------------------------------


def svg(nodes: Sequence[Node], *, title: str = "") -> str:
    """The graph as one ``<svg>`` element; see the module on its classes."""
    boxes = layout(nodes)
    by_id = {box.node.id: box for box in boxes}
    width = max((box.x for box in boxes), default=0) + WIDTH + MARGIN
    height = max((box.y for box in boxes), default=0) + HEIGHT + MARGIN
    lines = [
        _edge(by_id[other], box)
        for box in boxes
        for other in dict.fromkeys(box.node.after)
        if other in by_id
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="jobs-graph" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">',
        f"<title>{_text(title)}</title>" if title else "",
        *lines,
        *(_node(box) for box in boxes),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def _node(box: Box) -> str:
    node = box.node
    label = node.label or node.id
    shown = label if len(label) <= LABEL else label[: LABEL - 1] + "…"
    classes = ["jobs-node", f"status-{_word(node.status) or 'none'}"]
    if node.kind:
        classes.append(f"kind-{_word(node.kind)}")
    told = f"{label}: {node.status}" if node.status else label
    drawn = (
        f'<g class="{" ".join(classes)}"><title>{_text(told)}</title>'
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{box.x + WIDTH / 2:g}" y="{box.y + HEIGHT / 2:g}" text-anchor="middle" '
        f'dominant-baseline="central">{_text(shown)}</text></g>'
    )
    return f'<a href="{_text(node.href)}">{drawn}</a>' if node.href else drawn


def _edge(upper: Box, lower: Box) -> str:
    x1, y1 = upper.x + WIDTH / 2, upper.y + HEIGHT
    x2, y2 = lower.x + WIDTH / 2, lower.y
    bend = max((y2 - y1) / 2, 8)
    return (
        f'<path class="jobs-edge" d="M {x1:g} {y1:g} C {x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2 - 6:g}"/>'
        f'<path class="jobs-arrow" d="M {x2 - 4:g} {y2 - 7:g} L {x2 + 4:g} {y2 - 7:g} L {x2:g} {y2:g} Z"/>'
    )


def _text(value: str) -> str:
    """Escaped, without the characters that XML cannot hold."""
    return escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", value))


def _word(value: str) -> str:
    return re.sub(r"[^a-z0-9-]", "-", value.lower())


# --- Mermaid ----------------------------------------------------------------------------------


def mermaid(nodes: Sequence[Node]) -> str:
    """The graph as the text of a Mermaid flowchart."""
    names = {node.id: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        status = f":::{_word(node.status)}" if node.status else ""
        lines.append(f'    {names[node.id]}["{_quoted(node.label or node.id)}"]{status}')
    for node in nodes:
        lines += [f"    {names[one]} --> {names[node.id]}" for one in node.after if one in names]
    return "\n".join(lines) + "\n"


def _quoted(label: str) -> str:
    """A label within double quotes: entities for what Mermaid would read as its own."""
    return re.sub(r"[^\w .,:/()+=-]", lambda match: f"#{ord(match[0])};", label)
