"""Pictures of trace graphs: SVG drawn here, or text that Mermaid and Graphviz draw.

A companion of `minitrace.py`: copy both files into one folder. Once this one is imported,
notebooks show nodes and trace graphs as pictures.

>>> from minitrace import node
>>> x = node(3, name="x", trainable=True)
>>> (x + 1).backward("too small")
>>> picture = to_svg(x.feedback[0])
>>> [word in picture for word in ("x0", "parameter", "add0", "too small")]
[True, True, True, True]
"""

from __future__ import annotations

import functools
import html
import itertools
import math
import operator
import re
import textwrap
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

try:
    from minitrace import Node, TraceGraph, nearest_calls, to_text
except ImportError as error:
    raise ImportError(
        "minitrace_pictures.py needs minitrace.py: copy it beside this file"
    ) from error

__all__ = ["to_dot", "to_mermaid", "to_svg"]


# ---- Boxes: what a picture shows, whoever draws it.


class _Look(NamedTuple):
    """How the boxes of a kind look, and how many lines of text they hold."""

    fill: str
    line: str
    most: int
    left: str  # Mermaid's brackets
    right: str
    style: str  # in the words of Graphviz


_LOOKS = {
    "parameter": _Look("#fde68a", "#b45309", 4, "([", "])", "rounded,bold"),
    "input": _Look("#f1f5f9", "#94a3b8", 2, "(", ")", "rounded"),
    "operator": _Look("#dbeafe", "#3b82f6", 2, "[", "]", "solid"),
    "exception": _Look("#fecaca", "#dc2626", 4, "{{", "}}", "dashed"),
    "output": _Look("#bbf7d0", "#15803d", 4, "[[", "]]", "bold"),
    "feedback": _Look("#ffffff", "#7c3aed", 6, ">", "]", "rounded,dashed"),
    "omitted": _Look("#ffffff", "#94a3b8", 3, "[", "]", "dashed"),
}
_NOTED = "parameter", "input", "exception", "output"  # the kinds that a box names
_COLUMN, _LINE, _GAP = 7.3, 17, 26  # of a character, of a line of text, around boxes: pixels


@dataclass(eq=False)
class _Box:
    """What a picture shows of a node, of feedback, or of a run of calls that is left out.

    A point, where an edge passes a row of boxes, is a box of no size.
    """

    kind: str
    name: str = ""
    text: str = ""
    tip: str = ""
    parents: list[_Box] = field(default_factory=list)
    row: int = 0
    floor: int = 0
    x: float = 0  # of its middle
    wanted: float = 0  # where x would be if it were alone
    start: float = 0  # where x would be if all of the row stood side by side
    above: list[_Box] = field(default_factory=list)
    below: list[_Box] = field(default_factory=list)

    @property
    def look(self) -> _Look:
        return _LOOKS[self.kind]

    @functools.cached_property
    def lines(self) -> list[str]:
        """The first lines of the text, as wide as a box; dots say that there is more."""
        rows: list[str] = []
        for line in map(_clean, self.text[:4000].splitlines()):
            room = 34 * len(line) // max(_columns(line), 1)
            rows += textwrap.wrap(line, max(room, 17)) or [""]
        last = self.look.most - 1
        if len(rows) > last + 1:
            rows[last:] = ["  ".join(rows[last:])]
        return [_trimmed(row, 34) for row in rows]

    @property
    def label(self) -> str:
        return "\n".join([self.name, *self.lines])

    @functools.cached_property
    def width(self) -> float:
        if self.kind == "point":
            return 4
        note = len(self.kind) + 1 if self.kind in _NOTED else 0
        columns = map(_columns, self.lines)
        return _COLUMN * max(6, _columns(self.name) + note, *columns) + 20

    @property
    def height(self) -> int:
        return 0 if self.kind == "point" else 30 + _LINE * len(self.lines)

    @property
    def weight(self) -> int:
        """How much it counts for others: calls make straight lines, roots make way."""
        return 16 if self.above else 1


def _boxes(graph: TraceGraph, most: int) -> list[_Box]:
    """The boxes, parents first, and after them what was said of the outputs.

    The nearest calls have a box each; each run of others shares one.
    """
    said, boxes = _verdicts(graph), dict[Node[Any], _Box]()
    for group in _groups(graph, most):
        made = (boxes.get(parent) for node in group for parent in graph.parents(node))
        parents = [box for box in made if box]
        if len(group) > 1:
            box = _run_box(graph, group, [*dict.fromkeys(parents)])
        else:
            box = _node_box(graph, group[0], parents, group[0] in said)
        boxes.update(dict.fromkeys(group, box))
    judged = [
        _Box("feedback", "feedback", words, _cut(words, 2000), [boxes[node]])
        for node, words in said.items()
        if words and boxes[node].kind != "omitted"
    ]
    return [*dict.fromkeys(boxes.values()), *judged]


def _groups(graph: TraceGraph, most: int) -> list[list[Node[Any]]]:
    """The nodes that are drawn, each alone, and the runs of calls that are not."""
    near = set(itertools.islice(nearest_calls(graph), most))
    calls = [node for node in graph if graph.parents(node)]
    groups: list[list[Node[Any]]] = []
    for alone, run in itertools.groupby(calls, near.__contains__):
        row = [*run]
        groups += [[call] for call in row] if alone else [row]
    used = set(graph.parameters).union(output.node for output in graph.outputs)
    for group in groups:
        if len(group) == 1:
            used.update(graph.parents(group[0]))
    return [[node] for node in graph if node in used and not graph.parents(node)] + groups


def _verdicts(graph: TraceGraph) -> dict[Node[Any], str]:
    """What was said of each output: the words and the score."""
    said: dict[Node[Any], str] = {}
    for output in graph.outputs:
        words, score = output.feedback, output.score
        if not isinstance(words, str):
            words = "" if words is None else to_text(words)
        judged = "" if score is None else f"(score: {to_text(score, 24)})"
        parts = said.get(output.node, ""), words, judged
        said[output.node] = " ".join(filter(None, parts))
    return said


def _node_box(graph: TraceGraph, node: Node[Any], parents: list[_Box], output: bool) -> _Box:
    """The box of a node."""
    kind, text = graph.kind(node), graph.value(node)
    if not (isinstance(text, str) and ("\n" in text or kind == "exception")):
        text = to_text(text, 2000)
    if output and kind == "operator":
        kind = "output"
    name = _trimmed(graph.names[node], 24)
    tip = f"{name} = {_cut(text, 2000)}\n{_cut(node.description, 1000)}"
    return _Box(kind, name, text, tip, parents)


def _run_box(graph: TraceGraph, calls: list[Node[Any]], parents: list[_Box]) -> _Box:
    """The box of calls that are left out: how many, from where to where, and which."""
    counts = Counter(call.op_name for call in calls).most_common(5)
    kinds = ", ".join(f"{count} {name}" for name, count in counts)
    first, last = graph.names[calls[0]], graph.names[calls[-1]]
    words = _cut(f"{len(calls)} calls left out, {first} to {last}: {kinds}", 118)
    return _Box("omitted", "...", words, words, parents)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _clean(text: str) -> str:
    """The text with what nobody can see, such as control characters, as escapes."""
    return "".join(map(_visible, text.expandtabs(4)))


def _visible(character: str) -> str:
    if character.isprintable() or character == "\u200d":
        return character
    return repr(character)[1:-1]


def _columns(text: str) -> int:
    """The columns that a text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    """The columns of a character: an accent takes none, a wide character two."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _trimmed(text: str, room: int) -> str:
    """The text, its end cut off if it is wider than so many columns."""
    if _columns(text) <= room:
        return text
    ends = itertools.accumulate(map(_width, text))
    return text[: sum(end <= room - 3 for end in ends)] + "..."


# ---- Mermaid and Graphviz: text that others place.


def to_mermaid(graph: TraceGraph, calls: int = 100) -> str:
    """The graph as a Mermaid flowchart, which many pages draw from its text.

    Where there are more than about so many calls, those nearest to outputs, parameters and failures
    stay, as in a prompt.

    >>> from minitrace import GRAPH, node
    >>> GRAPH.clear()
    >>> x = node(3, name="x", trainable=True)
    >>> (x + 1).backward("too small")
    >>> print("\\n".join(to_mermaid(x.feedback[0]).splitlines()[:7]))
    flowchart TD
        n0(["x0\\n3"]):::parameter
        n1("int0\\n1"):::input
        n2[["add0\\n4"]]:::output
        n0 --> n2
        n1 --> n2
        n3>"feedback\\ntoo small"]:::feedback
    """
    rows = ["flowchart TD"]
    numbers = {box: n for n, box in enumerate(_boxes(graph, calls))}
    for box, n in numbers.items():
        # What Mermaid could read as anything but text stands there by its number.
        text = box.label.replace("  ", "\u00a0 ")
        text = re.sub(r"[^\w\n ,:=']", lambda found: f"#{ord(found[0])};", text)
        text = text.replace("\n", "\\n")
        rows.append(f'    n{n}{box.look.left}"{text}"{box.look.right}:::{box.kind}')
        arrow = "-.-" if box.kind == "feedback" else "-->"
        rows += [f"    n{numbers[parent]} {arrow} n{n}" for parent in box.parents]
    for kind, look in _LOOKS.items():
        rows.append(f"    classDef {kind} fill:{look.fill},stroke:{look.line},color:#111827")
    return "\n".join(rows)


def to_dot(graph: TraceGraph, calls: int = 100) -> str:
    """The graph in the language of Graphviz, with about so many calls: see `to_mermaid`.

    >>> from minitrace import node
    >>> x = node(3, name="x", trainable=True)
    >>> (x + 1).backward("too small")
    >>> [line.strip() for line in to_dot(x.feedback[0]).splitlines() if "->" in line]
    ['n0 -> n2', 'n1 -> n2', 'n2 -> n3 [style=dashed dir=none]']
    """
    rows = ["digraph {", '    node [shape=box fontname="monospace" fontsize=10]']
    numbers = {box: n for n, box in enumerate(_boxes(graph, calls))}
    for box, n in numbers.items():
        look, label, tip = box.look, _quoted(box.label), _quoted(box.tip)
        style = f'style="filled,{look.style}" fillcolor="{look.fill}" color="{look.line}"'
        rows.append(f"    n{n} [label={label} tooltip={tip} {style}]")
        style = " [style=dashed dir=none]" if box.kind == "feedback" else ""
        rows += [f"    n{numbers[parent]} -> n{n}{style}" for parent in box.parents]
    return "\n".join([*rows, "}"])


def _quoted(text: str) -> str:
    text = _escape(text).replace("\\", r"\\").replace("\n", r"\n")
    return f'"{text}"'


def _escape(text: str) -> str:
    """The text as XML and Graphviz read it."""
    text = "\n".join(map(_clean, text.splitlines()))
    return html.escape(text, quote=False).replace('"', "&quot;")


# ---- SVG: rows of boxes, each below all that it was made from.


def to_svg(graph: TraceGraph, calls: int = 100) -> str:
    """The graph as a picture, with about so many calls: see `to_mermaid`.

    It stands alone, has no script, and turns dark with the reader's system.

    >>> from minitrace import node
    >>> x = node("<b>", name="x", trainable=True)
    >>> (x + "!").backward("too loud")
    >>> picture = to_svg(x.feedback[0])
    >>> picture[:4], "too loud" in picture, "<b>" in picture
    ('<svg', True, False)
    """
    boxes = _boxes(graph, calls)
    _find_rows(boxes)
    paths = _paths(boxes)
    places = [*dict.fromkeys(itertools.chain(boxes, *paths))] or [_Box("point")]
    _arrange(places)
    names = ", ".join(graph.names[output.node] for output in graph.outputs[:9])
    label = _escape(f"Trace graph of {_trimmed(names, 60)}: {len(graph)} nodes")
    width = _GAP + round(max(box.x + box.width / 2 for box in places))
    height = _GAP + max(box.floor for box in places)
    rows = [
        '<svg xmlns="http://www.w3.org/2000/svg" class="minitrace" role="img" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'aria-label="{label}" xml:space="preserve">',
        f"<style>\n{_STYLE}\n</style>",
        '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>',
    ]
    rows += _svg_edges(paths)
    rows += [_svg_box(box) for box in places if box.kind != "point"]
    return "\n".join([*rows, "</svg>"])


_STYLE = """\
.minitrace text { font: 12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace }
.minitrace text { fill: #111827; white-space: pre }
.minitrace .name { font-weight: bold }
.minitrace .note { font-size: 10px; text-anchor: end }
.minitrace path { fill: none; stroke: #64748b; stroke-width: 1.5 }
.minitrace :is(.parameter, .output, .exception) rect { stroke-width: 2.5 }
.minitrace :is(.exception, .feedback, .omitted) rect, .minitrace .said { stroke-dasharray: 5 3 }
@media (prefers-color-scheme: dark) { .minitrace { filter: invert(0.92) hue-rotate(180deg) } }"""


def _find_rows(boxes: list[_Box]) -> None:
    """Put each box one row below its parents, and a root one above its first child."""
    for box in boxes:
        box.row = max((parent.row + 1 for parent in box.parents), default=0)
    for box in sorted(boxes, key=lambda box: -box.row):
        for parent in box.parents:
            if not parent.parents:
                parent.row = box.row - 1


def _paths(boxes: list[_Box]) -> list[list[_Box]]:
    """The way of each edge: its parent, a point in each row between, its child.

    So it runs beside the boxes of a row. An edge from far above starts at a copy of the name.
    """
    paths: list[list[_Box]] = []
    copies: dict[tuple[_Box, int], _Box] = {}
    for box in boxes:
        for parent in box.parents:
            start, row = parent, box.row - 1
            if row - parent.row >= 5:
                copy = _Box("omitted", f"{parent.name} (see above)", tip=parent.tip, row=row)
                start = copies.setdefault((parent, row), copy)
            points = [_Box("point", row=row) for row in range(start.row + 1, box.row)]
            paths.append([start, *points, box])
    for path in paths:
        for upper, lower in itertools.pairwise(path):
            upper.below.append(lower)
            lower.above.append(upper)
    return paths


def _arrange(places: list[_Box]) -> None:
    """Sort each row, and move its boxes to where they are wanted.

    That is near the row before, then near the row after, which leaves few crossings; at last near
    both, which makes edges straight.
    """
    in_row = operator.attrgetter("row")
    rows = [[*row] for _, row in itertools.groupby(sorted(places, key=in_row), in_row)]
    for sweep in range(25):
        for row in rows[::-1] if sweep % 2 else rows:
            for box in row:
                near = box.below if sweep % 2 else box.above
                if sweep > 11:  # an edge goes straight down as long as it can
                    near = box.above if box.kind == "point" else box.above + box.below
                box.wanted = _middle(near or [box])
            row.sort(key=lambda box: box.wanted)
            _spread(row)
    left = min(box.x - box.width / 2 for box in places)
    floor = 0
    for row in rows:
        floor += max(box.height for box in row)
        for box in row:
            box.x += _GAP - left
            box.floor = floor + _GAP
        floor += 44


def _middle(boxes: list[_Box]) -> float:
    """Their mean; `sum` would differ in the last digit from one version of Python to the next."""
    total = sum(box.weight for box in boxes)
    return math.fsum(box.weight * box.x for box in boxes) / total


def _spread(row: list[_Box]) -> None:
    """Put boxes in order where they do not overlap, nearest to where they are wanted.

    Source: isotonic regression by pooling adjacent violators, Ayer et al., 1955.
    """
    pools: list[tuple[float, int, int]] = []  # of boxes that touch: moves, weights, how many
    left = 0.0
    for box in row:
        box.start = left + box.width / 2
        left += box.width + _GAP
        moves, weight, count = (box.wanted - box.start) * box.weight, box.weight, 1
        while pools and pools[-1][0] / pools[-1][1] > moves / weight:
            pool = pools.pop()
            moves += pool[0]
            weight += pool[1]
            count += pool[2]
        pools.append((moves, weight, count))
    boxes = iter(row)
    for moves, weight, count in pools:
        for box in itertools.islice(boxes, count):
            box.x = box.start + moves / weight


def _svg_edges(paths: list[list[_Box]]) -> Iterator[str]:
    """The edges, each to a place of its own on top of a box."""
    arriving: dict[_Box, list[list[_Box]]] = defaultdict(list)
    for path in sorted(paths, key=lambda path: path[-2].x):
        arriving[path[-1]].append(path)
    for box, group in arriving.items():
        step = min(16, (box.width - 24) / len(group))
        x = box.x - step * (len(group) - 1) / 2
        for path in group:
            yield _svg_edge(path, x)
            x += step


def _svg_edge(path: list[_Box], end: float) -> str:
    """An edge: in a curve from row to row, and straight past the boxes of a row."""
    last = path[-1]
    way = f"M{path[0].x:.0f} {path[0].floor}"
    for upper, lower in itertools.pairwise(path):
        y, x = upper.floor, end if lower is last else lower.x
        way += f"V{y}C{upper.x:.0f} {y + 25} {x:.0f} {y + 19} {x:.0f} {y + 44}"
    way += f"V{last.floor - last.height}"
    if last.kind == "feedback":
        return f'<path class="said" d="{way}"/>'
    return f'<path class="edge" d="{way}m-4 -7l4 7l4 -7"/>'


def _svg_box(box: _Box) -> str:
    """A box, with a tooltip and its lines of text."""
    left, top = box.x - box.width / 2, box.floor - box.height
    corner = 12 if "rounded" in box.look.style else 3
    rect = f'<rect x="{left:.0f}" y="{top}" width="{box.width:.0f}" height="{box.height}"'
    rect += f' rx="{corner}" fill="{box.look.fill}" stroke="{box.look.line}"/>'
    y = top + 20
    texts = _svg_text("name", box.name, left + 10, y)
    for n, line in enumerate(box.lines, 1):
        texts += _svg_text("", line, left + 10, y + _LINE * n)
    if box.kind in _NOTED:
        texts += _svg_text("note", box.kind, left + box.width - 10, y)
    return f'<g class="{box.kind}"><title>{_escape(box.tip)}</title>{rect}{texts}</g>'


def _svg_text(kind: str, text: str, x: float, y: int) -> str:
    """A line of text; what is not ASCII is told how wide it has to be, whatever the font."""
    width = ""
    if not text.isascii():
        width = f' textLength="{_columns(text) * _COLUMN:.0f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text class="{kind}" x="{x:.0f}" y="{y}"{width}>{_escape(text)}</text>'


# ---- Notebooks look for a method of this name.


def _draw(node: Node[Any]) -> str:
    return to_svg(TraceGraph.of(node))


setattr(Node, "_repr_svg_", _draw)
setattr(TraceGraph, "_repr_svg_", to_svg)
