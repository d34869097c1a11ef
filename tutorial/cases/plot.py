"""Draw lines over steps, or a plane with points, in panels, three in a row: as one SVG text that
needs nothing beside it.

The same numbers give the same text, character by character, so that a test can compare a stored
picture with what the program makes now. Light and dark follow the reader's own setting.
"""

import math
from functools import partial
from html import escape

WIDTH, HEIGHT, LEFT, TOP = 200, 170, 64, 124  # a panel, and where the first one begins
COLUMNS, GAP, BETWEEN = 3, 28, 60
MARKS = {  # drawn around (0, 0)
    "circle": '<circle r="4"/>',
    "square": '<rect x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
    "triangle": '<path d="M0-4.8 4.6 3.6H-4.6z"/>',
    "diamond": '<path d="M0-5 5 0 0 5-5 0z"/>',
    "ring": '<circle r="3.4" class="ring"/>',
}
COLORS = ["#0067a5", "#008856", "#c8500a", "#8a6d00", "#875692"]  # on white
LIGHTER = ["#5cb8ff", "#3ddc97", "#ff9d5c", "#e3c34a", "#cf9bdb"]  # on black
STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 } .small { font-size: 12px }
.back { fill: #fff } .grid { stroke: #d0d7de } .axis { stroke: #6e7781 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .ring { fill: #fff; stroke-width: 2 }
"""
DARK = "text { fill: #e6edf3 } .back, .ring { fill: #0d1117 } .grid { stroke: #30363d }"


def chart(panels, title, x_label, y_label, ticks, every=1):
    """An SVG picture of lines on a logarithmic scale.

    Args:
        panels: {title of a panel: {name of a line: its values, one for each step}}; at most five
            names, and a line may end before the others.
        ticks: {value: its label}, the lowest and the highest being the ends of the scale; what lies
            beyond is drawn there.
        every: how many steps there are between two values.

    >>> svg = chart({"A": {"one": [1, 0.1]}}, "Title", "step", "error", {0.01: "1 %", 1: "all"})
    >>> svg[:4], svg.count("<circle")    # two of them in the legend
    ('<svg', 4)
    """
    names = [*dict.fromkeys(name for lines in panels.values() for name in lines)]
    drawn = [
        panel(head, lines, names, ticks, number % COLUMNS == 0, every)
        for number, (head, lines) in enumerate(panels.items())
    ]
    return sheet(drawn, title, y_label, legend(names, LEFT - 44, 76), x_label)


def plane(scores, points, title, corners=((-1.6, -1.1), (2.6, 1.6))):
    """An SVG picture of a plane: the side where a score is above 0 is shaded, with points on it.

    Args:
        scores: {title of a panel: a function from (x, y) to a number}.
        points: pairs of a place (x, y) and a label, which is above or below 0.
        corners: the lower left corner of a panel and the upper right one.

    >>> svg = plane({"A": lambda place: place[0]}, [((1, 0), 1), ((-1, 0), -1)], "Title")
    >>> svg[:4], svg.count("<circle"), svg.count("<rect x")
    ('<svg', 1, 1)
    """
    return sheet([ground(head, score, points, corners) for head, score in scores.items()], title)


def ground(head, score, points, corners):
    """One panel of a plane, its upper left corner at (0, 0)."""
    (left, low), (right, high) = corners
    across, down = WIDTH / (right - left), HEIGHT / (high - low)

    def at(x, y):
        return score((left + x / across, high - y / down))

    side = "".join(strip(partial(at, y=y + 1), y) for y in range(0, HEIGHT, 2))
    parts = [
        words(WIDTH / 2, -12, head, "", "middle"),
        f'<g class="c0"><path stroke="none" fill-opacity="0.22" d="{side}"/></g>',
        f'<path class="axis" fill="none" d="M0 0H{WIDTH}V{HEIGHT}H0z"/>',
    ]
    for (x, y), label in points:
        kind, mark = (0, '<circle r="2.4"/>') if label > 0 else (2, SMALL_SQUARE)
        place = f"translate({across * (x - left):.1f} {down * (high - y):.1f})"
        parts.append(f'<g class="c{kind}" transform="{place}">{mark}</g>')
    return "\n".join(parts)


SMALL_SQUARE = '<rect x="-2.2" y="-2.2" width="4.4" height="4.4"/>'


def strip(score, y, step=2):
    """The parts of a row of pixels, two high, where a score is above 0, as a path."""
    before = score(0)
    ends = [0.0] if before > 0 else []
    for x in range(step, WIDTH + step, step):
        value = score(x)
        if (before > 0) != (value > 0):  # somewhere in between, as if the score were straight
            ends.append(x - step * value / (value - before))
        before = value
    ends += [WIDTH] if before > 0 else []
    return "".join(
        f"M{a:.1f} {y}H{b:.1f}v2H{a:.1f}z" for a, b in zip(ends[::2], ends[1::2], strict=True)
    )


def sheet(panels, title, y_label="", names="", x_label=""):
    """Panels in rows, under a title and what is told of all of them."""
    rows = -(-len(panels) // COLUMNS)
    width = LEFT + min(len(panels), COLUMNS) * (WIDTH + GAP)
    height = TOP + rows * (HEIGHT + BETWEEN)
    body = [
        f'<rect class="back" width="{width}" height="{height}"/>',
        words(LEFT - 48, 28, title, "title"),
        words(LEFT - 48, 48, y_label, "small"),
        names,
        words(LEFT + (width - LEFT - GAP) / 2, height - 14, x_label, "small", "middle"),
    ]
    for number, drawn in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        place = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + BETWEEN)
        body += [f'<g transform="translate({place[0]} {place[1]})">', drawn, "</g>"]
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", style(), *body, "</svg>"]) + "\n"


def panel(head, lines, names, ticks, is_first, every):
    """One panel, its upper left corner at (0, 0)."""
    low, high = math.log(min(ticks)), math.log(max(ticks))
    steps = max(map(len, lines.values())) - 1

    def y(value):
        logarithm = math.log(value) if value > 0 else low
        return HEIGHT * (high - min(max(logarithm, low), high)) / (high - low)

    parts = [words(WIDTH / 2, -12, head, "", "middle")] if head else []
    for value, label in ticks.items():
        parts.append(f'<path class="grid" d="M0 {y(value):.1f}H{WIDTH}"/>')
        parts += [words(-8, y(value) + 4, label, "small", "end")] if is_first else []
    parts.append(f'<path class="axis" d="M0 {HEIGHT}H{WIDTH}"/>')
    for step in range(steps + 1):
        parts.append(words(x_of(step, steps), HEIGHT + 18, str(step * every), "small", "middle"))
    for name, values in lines.items():
        number = names.index(name)
        aside = 3 * (number - (len(names) - 1) / 2)  # marks that meet lie side by side
        points = [(x_of(n, steps) + aside, y(v)) for n, v in enumerate(values)]
        parts.append(line(number, points))
    return "\n".join(parts)


def x_of(step, steps):
    return 14 + (WIDTH - 28) * step / max(steps, 1)


def line(number, points):
    """A line through points, with its own colour and mark."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    mark = [*MARKS.values()][number]
    marks = "".join(f'<g transform="translate({x:.1f} {y:.1f})">{mark}</g>' for x, y in points)
    return f'<g class="c{number}"><path class="line" d="M{path}"/>{marks}</g>'


def legend(names, x, y):
    """A sample of each line with its name, in one row."""
    parts = []
    for number, name in enumerate(names):
        parts += [line(number, [(x, y), (x + 24, y)]), words(x + 34, y + 4.5, name)]
        x += 62 + 7.6 * len(name)
    return "\n".join(parts)


def words(x, y, text, kind="", anchor="start"):
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def style():
    """The colours, light and dark."""
    light, dark = (
        " ".join(f".c{n} {{ fill: {c}; stroke: {c} }}" for n, c in enumerate(colors))
        for colors in (COLORS, LIGHTER)
    )
    dark = f"@media (prefers-color-scheme: dark) {{ {DARK} {dark} }}"
    return f"<style>\n{STYLE}{light}\n{dark}\n</style>"
