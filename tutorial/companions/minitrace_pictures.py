"""Pictures. RAW: cut out of the old file, to be rewritten."""
# ---- Pictures: boxes that Mermaid and Graphviz place themselves, and that the SVG below places.

# fmt: off
_LOOKS = {  # of each kind: fill, line, most lines of text, Mermaid's brackets, Graphviz's style
    "parameter": ("#fde68a", "#b45309", 4, "([", "])", "rounded,bold"),
    "input":     ("#f1f5f9", "#94a3b8", 2, "(", ")", "rounded"),
    "operator":  ("#dbeafe", "#3b82f6", 2, "[", "]", "solid"),
    "exception": ("#fecaca", "#dc2626", 4, "{{", "}}", "dashed"),
    "output":    ("#bbf7d0", "#15803d", 4, "[[", "]]", "bold"),
    "feedback":  ("#ffffff", "#7c3aed", 6, ">", "]", "rounded,dashed"),
    "omitted":   ("#ffffff", "#94a3b8", 3, "[", "]", "dashed"),
}
# fmt: on
_NOTED = "parameter", "input", "exception", "output"  # the kinds that a box names


class _Box(NamedTuple):
    """What a picture shows of a node, of feedback, or of a run of calls that is left out."""

    kind: str
    name: str
    lines: list[str]
    tip: str
    parents: list[int]  # their places in the list of boxes


def _boxes(graph: TraceGraph, calls: int) -> list[_Box]:
    """The boxes, parents first, and after them what was said of the outputs.

    The calls nearest to outputs, parameters and failures, which are those that a prompt shows
    first, have a box each; each run of others shares one.
    """
    view = _View(graph, 0)
    near = {record.number for record in itertools.islice(view._by_nearness(), calls)}
    groups: list[list[int]] = []
    for omitted, run in itertools.groupby(view.calls, lambda call: call.number not in near):
        numbers = [record.number for record in run]
        groups += [numbers] if omitted else [[number] for number in numbers]
    shown = {number for group in groups if len(group) == 1 for number in graph[group[0]].parents}
    shown.update(view.outputs, (r.number for r in graph if r.kind == "parameter"))
    groups[:0] = [[r.number] for r in graph if r.number in shown and not r.parents]
    place = {number: n for n, group in enumerate(groups) for number in group}
    boxes: list[_Box] = []
    for group in groups:
        parents = [place[p] for number in group for p in graph[number].parents if p in place]
        boxes.append(_box(view, group, [parent for parent in parents if parent < len(boxes)]))
    for number, words in _verdicts(graph).items():
        if words and len(groups[place[number]]) == 1:
            tip, lines = _cut(words, 2000), _box_lines(words, 6)
            boxes.append(_Box("feedback", "feedback", lines, tip, [place[number]]))
    return boxes


def _box(view: _View, numbers: list[int], parents: list[int]) -> _Box:
    """The box of a node, or of a run of calls."""
    record = view.graph[numbers[0]]
    if len(numbers) > 1:
        words = view._gap(numbers)[2:]
        return _Box("omitted", "...", _box_lines(words, 3), words, [*dict.fromkeys(parents)])
    kind, data = record.kind if record.kind in _NOTED else "operator", record.data
    name = _trimmed(view.names[record.number], 24)
    if record.number in view.outputs and kind == "operator":
        kind = "output"
    whole = isinstance(data, str) and ("\n" in data or kind == "exception")
    text = data if whole else _text(data, 2000)
    tip = f"{name} = {_cut(text, 2000)}\n{_cut(record.description, 1000)}"
    return _Box(kind, name, _box_lines(text, _LOOKS[kind][2]), tip, parents)


def _box_lines(text: str, most: int) -> list[str]:
    """The first lines of a text, as wide as a box; dots say that there is more."""
    import textwrap

    rows: list[str] = []
    for line in map(_clean, text[:4000].splitlines()):
        room = 34 * len(line) // max(_columns(line), 1)
        rows += textwrap.wrap(line, max(room, 17)) or [""]
    if len(rows) > most:
        rows[most - 1 :] = ["  ".join(rows[most - 1 :])]
    return [_trimmed(row, 34) for row in rows]


def _mermaid(graph: TraceGraph, calls: int) -> str:
    """A flowchart; what Mermaid could read as anything but text stands there by its number."""
    rows = ["flowchart TD"]
    for n, box in enumerate(_boxes(graph, calls)):
        *_, left, right, _ = _LOOKS[box.kind]
        text = "\n".join([box.name, *box.lines]).replace("  ", "\u00a0 ")
        text = re.sub(r"[^\w\n ,:=']", lambda c: f"#{ord(c[0])};", text).replace("\n", "\\n")
        rows.append(f'    n{n}{left}"{text}"{right}:::{box.kind}')
        arrow = "-.-" if box.kind == "feedback" else "-->"
        rows += [f"    n{parent} {arrow} n{n}" for parent in box.parents]
    for kind, (fill, line, *_) in _LOOKS.items():
        rows.append(f"    classDef {kind} fill:{fill},stroke:{line},color:#111827")
    return "\n".join(rows)


def _dot(graph: TraceGraph, calls: int) -> str:
    """A directed graph in the language of Graphviz."""

    def quoted(*lines: str) -> str:
        text = _escape("\n".join(lines)).replace("\\", r"\\").replace("\n", r"\n")
        return f'"{text}"'

    rows = ["digraph {", '    node [shape=box fontname="monospace" fontsize=10]']
    for n, box in enumerate(_boxes(graph, calls)):
        fill, line, *_, style = _LOOKS[box.kind]
        label, tip = quoted(box.name, *box.lines), quoted(*box.tip.splitlines())
        look = f'style="filled,{style}" fillcolor="{fill}" color="{line}"'
        rows.append(f"    n{n} [label={label} tooltip={tip} {look}]")
        look = " [style=dashed dir=none]" if box.kind == "feedback" else ""
        rows += [f"    n{parent} -> n{n}{look}" for parent in box.parents]
    return "\n".join([*rows, "}"])


# ---- SVG: rows of boxes, each below all that it was made from, drawn with nothing but this file.

_COLUMN, _LINE, _GAP = 7.3, 17, 26  # of a character, of a line of text, between boxes: pixels


class _Layout:
    """Where the boxes stand: in which row, in which order, at which place.

    An edge over several rows passes a point in each, so that it runs beside the boxes; one from far
    above starts at a copy of the name. All of these are vertices, and have a row, a width and an x:
    boxes are counted first, then the copies, then the points.
    """

    def __init__(self, boxes: list[_Box]) -> None:
        self.boxes, self.row = [*boxes], _rows(boxes)
        edges = [(parent, n) for n, box in enumerate(boxes) for parent in box.parents]
        self.copies: dict[tuple[int, int], int] = {}
        edges = [(self._start(*edge), edge[1]) for edge in edges]
        self.width = [_box_width(box) for box in self.boxes]
        self.beside: tuple[Any, Any] = defaultdict(list), defaultdict(list)  # above, and below
        self.paths = [self._path(*edge) for edge in edges]
        self.layers: list[list[int]] = [[] for _ in range(max(self.row, default=-1) + 1)]
        for vertex, row in enumerate(self.row):
            self.layers[row].append(vertex)
        self.x = self._places()
        heights = (max(map(self.height, layer)) + 44 for layer in self.layers)
        self.floor = [height - 44 + _GAP for height in itertools.accumulate(heights)]

    def _start(self, parent: int, child: int) -> int:
        """Where an edge starts: its parent, or if that stands far above, a copy, one for a row."""
        row = self.row[child] - 1
        if row - self.row[parent] < 5:
            return parent
        if (parent, row) not in self.copies:
            self.copies[parent, row] = len(self.boxes)
            box = self.boxes[parent]
            self.boxes.append(_Box("omitted", f"{box.name} (see above)", [], box.tip, []))
            self.row.append(row)
        return self.copies[parent, row]

    def _path(self, parent: int, child: int) -> list[int]:
        """The way of an edge: its parent, a new point in each row between, its child."""
        between = [*range(self.row[parent] + 1, self.row[child])]
        points = [*range(len(self.row), len(self.row) + len(between))]
        self.row += between
        self.width += [4] * len(between)
        path = [parent, *points, child]
        for high, low in itertools.pairwise(path):
            self.beside[0][low] += [high] * self._weight(high)
            self.beside[1][high] += [low] * self._weight(high)
        return path

    def _places(self) -> list[float]:
        """The middle of each vertex.

        Rows are sorted and moved to be near the one before, then near the one after, which leaves
        few crossings; at last near both, which makes edges straight.
        """
        x, last = [0.0] * len(self.row), len(self.boxes)
        for sweep in range(25):
            sides = self.beside if sweep > 11 else self.beside[sweep % 2 : sweep % 2 + 1]
            for layer in self.layers[:: -1 if sweep % 2 else 1]:
                wanted: dict[int, float] = {}
                for v in layer:
                    near = [x[u] for side in sides[: 1 + (v < last)] for u in side[v]] or [x[v]]
                    wanted[v] = sum(near) / len(near)
                layer.sort(key=wanted.__getitem__)
                sizes = [(wanted[v], self.width[v], self._weight(v)) for v in layer]
                for v, middle in zip(layer, _apart(sizes), strict=True):
                    x[v] = middle
        left = min((x[v] - self.width[v] / 2 for v in range(len(x))), default=0.0)
        return [middle - left + _GAP for middle in x]

    def _weight(self, v: int) -> int:
        """How much a vertex counts for others: calls make straight lines, roots make way."""
        return 16 if self.beside[0][v] else 1

    def height(self, v: int) -> int:
        return 30 + _LINE * len(self.boxes[v].lines) if v < len(self.boxes) else 0


def _rows(boxes: list[_Box]) -> list[int]:
    """The row of each box: one below its parents; of a root, one above its first child."""
    rows: list[int] = []
    first: dict[int, int] = {}
    for n, box in enumerate(boxes):
        rows.append(max((rows[parent] + 1 for parent in box.parents), default=0))
        for parent in box.parents:
            first[parent] = min(first.get(parent, rows[n]), rows[n])
    return [rows[n] if box.parents else first.get(n, 1) - 1 for n, box in enumerate(boxes)]


def _apart(sizes: list[tuple[float, float, int]]) -> list[float]:
    """The middles nearest to those wanted, in least squares, at which boxes do not overlap.

    Each box is given as the middle that is wanted, its width and its weight.

    Source: isotonic regression by pooling adjacent violators, Ayer et al., 1955.
    """
    steps = (a[1] / 2 + b[1] / 2 + _GAP for a, b in itertools.pairwise(sizes))
    starts = [*itertools.accumulate(steps, initial=0.0)]
    pools: list[tuple[float, int, int]] = []  # of boxes that touch: moves, weights, how many
    for (middle, _, weight), start in zip(sizes, starts, strict=True):
        pool = (middle - start) * weight, weight, 1
        while pools and pools[-1][0] * pool[1] > pool[0] * pools[-1][1]:
            last = pools.pop()
            pool = pool[0] + last[0], pool[1] + last[1], pool[2] + last[2]
        pools.append(pool)
    moves = [moved / weight for moved, weight, count in pools for _ in range(count)]
    return [*map(operator.add, starts, moves)]


def _box_width(box: _Box) -> float:
    head = len(box.name) and _columns(box.name) + (len(box.kind) + 1) * (box.kind in _NOTED)
    return _COLUMN * max(6, head, *map(_columns, box.lines)) + 20


def _svg(graph: TraceGraph, calls: int) -> str:
    """The picture as SVG: a style sheet, the edges, then the boxes."""
    layout = _Layout(_boxes(graph, calls))
    names = ", ".join(graph.names[output.node] for output in graph.outputs[:9])
    label = _escape(f"Trace graph of {_trimmed(names, 60)}: {len(graph)} nodes")
    ends = (x + width / 2 for x, width in zip(layout.x, layout.width, strict=True))
    size = [round(max(ends, default=0)) + _GAP, max(layout.floor, default=0) + _GAP]
    head = '<svg xmlns="http://www.w3.org/2000/svg" class="minitrace" role="img" '
    head += 'width="{0}" height="{1}" viewBox="0 0 {0} {1}" '.format(*size)
    head += f'aria-label="{label}" xml:space="preserve">\n<style>\n{_STYLE}\n</style>'
    paper = '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>'
    boxes = [_svg_box(layout, n) for n in range(len(layout.boxes))]
    return "\n".join([head, paper, *_svg_edges(layout), *boxes, "</svg>"])


def _escape(text: str) -> str:
    import html

    return html.escape("\n".join(map(_clean, text.splitlines())), False).replace('"', "&quot;")


_STYLE = """\
.minitrace text { font: 12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace }
.minitrace text { fill: #111827; white-space: pre }
.minitrace .name { font-weight: bold }
.minitrace .note { font-size: 10px; text-anchor: end }
.minitrace path { fill: none; stroke: #64748b; stroke-width: 1.5 }
.minitrace :is(.parameter, .output, .exception) rect { stroke-width: 2.5 }
.minitrace :is(.exception, .feedback, .omitted) rect, .minitrace .said { stroke-dasharray: 5 3 }
@media (prefers-color-scheme: dark) { .minitrace { filter: invert(0.92) hue-rotate(180deg) } }"""


def _svg_edges(layout: _Layout) -> Iterator[str]:
    """The edges, each to a place of its own on top of a box."""
    arriving: dict[int, list[list[int]]] = defaultdict(list)
    for path in sorted(layout.paths, key=lambda path: layout.x[path[-2]]):
        arriving[path[-1]].append(path)
    for child, paths in arriving.items():
        step = min(16, (layout.width[child] - 24) / len(paths))
        left = layout.x[child] - step * (len(paths) - 1) / 2
        for n, path in enumerate(paths):
            yield _svg_edge(layout, path, left + step * n)


def _svg_edge(layout: _Layout, path: list[int], end: float) -> str:
    """An edge: in a curve from row to row, and straight past the boxes of a row."""
    said = layout.boxes[path[-1]].kind == "feedback"
    turns = [*map(layout.x.__getitem__, path[:-1]), end]
    way = f"M{turns[0]:.0f} {layout.floor[layout.row[path[0]]]}"
    for row, (high, low) in enumerate(itertools.pairwise(turns), layout.row[path[0]]):
        floor = layout.floor[row]
        way += f"V{floor}C{high:.0f} {floor + 25} {low:.0f} {floor + 19} {low:.0f} {floor + 44}"
    way += f"V{layout.floor[layout.row[path[-1]]] - layout.height(path[-1])}"
    head = "" if said else "m-4 -7l4 7l4 -7"
    return f'<path class="{"said" if said else "edge"}" d="{way}{head}"/>'


def _svg_box(layout: _Layout, n: int) -> str:
    """A box, with a tooltip and its lines of text."""
    box, width, height = layout.boxes[n], layout.width[n], layout.height(n)
    fill, line, *_, style = _LOOKS[box.kind]
    left, top = layout.x[n] - width / 2, layout.floor[layout.row[n]] - height
    place = f'x="{left:.0f}" y="{top}" width="{width:.0f}" height="{height}"'
    look = f'rx="{12 if "rounded" in style else 3}" fill="{fill}" stroke="{line}"'
    y = top + 20
    texts = [_svg_text("name", box.name, left + 10, y)]
    texts += [_svg_text("", each, left + 10, y + _LINE * k) for k, each in enumerate(box.lines, 1)]
    if box.kind in _NOTED:
        texts.append(_svg_text("note", box.kind, left + width - 10, y))
    tip = f"<title>{_escape(box.tip)}</title>"
    return f'<g class="{box.kind}">{tip}<rect {place} {look}/>{"".join(texts)}</g>'


def _svg_text(kind: str, text: str, x: float, y: float) -> str:
    """A line of text; what is not ASCII is told how wide it has to be, whatever the font."""
    width = f' textLength="{_columns(text) * _COLUMN:.0f}" lengthAdjust="spacingAndGlyphs"'
    width = "" if text.isascii() else width
    return f'<text class="{kind}" x="{x:.0f}" y="{y}"{width}>{_escape(text)}</text>'


# ---- 7. Demo and command line --------------------------------------------------------------------
