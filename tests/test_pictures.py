"""The companion minitrace_pictures: a graph as Mermaid, Graphviz and SVG, whatever is in its values.

Chromium, Graphviz and Mermaid take part where they are: `chromium` and `dot` on the path, Mermaid in the
folder `node_modules` that the environment variable MINITRACE_NODE_MODULES names.
"""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import minitrace_pictures
import pytest
from browser import CHROMIUM, Browser
from conftest import COMPANIONS, ROOT
from graphs import (
    GRAPHS,
    NAMES,
    agent,
    batch,
    chain,
    columns,
    diamond,
    each_graph,
    first_example,
    hostile,
    random_graph,
)
from minitrace_pictures import to_dot, to_mermaid, to_svg

import minitrace
from minitrace import TraceGraph, node

sys.path.append(str(ROOT / "tutorial"))
import pictures

SVG = "{http://www.w3.org/2000/svg}"
MERMAID = Path(os.environ.get("MINITRACE_NODE_MODULES", "/nowhere"), "mermaid/dist/mermaid.min.js")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
needs_dot = pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
needs_mermaid = pytest.mark.skipif(
    not (CHROMIUM and MERMAID.exists()), reason="Mermaid, or a Chromium to run it in, is not here"
)


# ---- Mermaid and Graphviz, read by a little reader of our own, then by the real ones


def boxes_of(graph):
    return [[box.name, *box.lines] for box in minitrace_pictures._boxes(graph, 100)]


@each_graph
def test_mermaid_says_what_the_boxes_say(graph):
    graph = graph()
    lines = to_mermaid(graph).splitlines()
    label = re.compile(
        r'    n(\d+)(?:\(\[|\(|\[\[|\[|\{\{|>)"([^"]*)"(?:\]\)|\)|\]\]|\]|\}\}):::(\w+)'
    )
    edge = re.compile(r"    n\d+ (-->|-\.-) n\d+")
    style = re.compile(r"    classDef \w+ fill:#\w+,stroke:#\w+,color:#111827")
    assert lines.pop(0) == "flowchart TD"
    assert all(
        label.fullmatch(each) or edge.fullmatch(each) or style.fullmatch(each) for each in lines
    )
    said = [found[2] for each in lines if (found := label.fullmatch(each))]
    read = [[plain(row) for row in words.split("\\n")] for words in said]
    assert read == boxes_of(graph)


def plain(words):
    return html.unescape(re.sub(r"#(\d+);", r"&#\1;", words)).replace("\xa0", " ")


def graphviz(graph):
    """The lines of text in each box that the real Graphviz draws."""
    command, text = ["dot", "-Tsvg"], to_dot(graph).encode()
    done = subprocess.run(command, input=text, capture_output=True, check=True, timeout=60)
    assert not done.stderr
    nodes = ET.fromstring(done.stdout).findall(f".//{SVG}g[@class='node']")
    nodes.sort(key=lambda each: int(each.find(f"{SVG}title").text[1:]))
    return [
        [(each.text or "").replace("\xa0", " ") for each in n.iter(f"{SVG}text")] for n in nodes
    ]


@needs_dot
@each_graph
def test_real_graphviz_draws_every_label(graph):
    graph = graph()
    assert graphviz(graph) == [[*filter(None, lines)] for lines in boxes_of(graph)]


@needs_dot
@pytest.mark.parametrize("name", NAMES)
def test_real_graphviz_draws_any_name(name):
    graph = hostile(name)
    assert graphviz(graph) == [[*filter(None, lines)] for lines in boxes_of(graph)]


@needs_mermaid
@pytest.mark.slow
def test_real_mermaid_draws_every_label(tmp_path):
    page_file = tmp_path / "page.html"
    script = f'<meta charset="utf-8"><body><script src="{MERMAID.resolve().as_uri()}"></script>'
    page_file.write_text(script, encoding="utf-8")
    graphs = [make() for name, make in GRAPHS.items() if name != "no node"]
    with Browser() as browser:
        page = browser.open(page_file)
        page.run("mermaid.initialize({startOnLoad: false}); 0")
        for graph in graphs + [hostile(name) for name in NAMES]:
            text = json.dumps(to_mermaid(graph))
            assert (
                page.run(f"mermaid.parse({text}).then(found => found.diagramType)")
                == "flowchart-v2"
            )
            page.run(
                f"mermaid.render('d', {text}).then(made => {{ document.body.innerHTML = made.svg }})"
            )
            shown = page.run(
                "[...document.querySelectorAll('.nodeLabel')].map(each => each.innerText)"
            )
            squeezed = sorted("".join(words.split()) for words in shown if words)
            assert squeezed == sorted("".join("".join(each).split()) for each in boxes_of(graph))
        assert not page.complaints


# ---- SVG


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@each_graph
def test_a_picture_is_xml_that_stands_alone(graph):
    text = to_svg(graph())
    root = ET.fromstring(text)
    text.encode("utf-8")
    tags = {each.tag.removeprefix(SVG) for each in root.iter()}
    assert tags <= {"svg", "style", "rect", "path", "g", "title", "text"}
    names = {name for each in root.iter() for name in each.attrib}
    assert not any(
        name.startswith("on") or "href" in name or name in ("id", "style") for name in names
    )
    assert "url(" not in text and "@import" not in text
    assert root.get("role") == "img" and root.get("aria-label")


@each_graph
def test_text_fits_its_box_and_boxes_do_not_overlap(graph):
    root = ET.fromstring(to_svg(graph()))
    wide, high = float(root.get("width")), float(root.get("height"))
    assert root.get("viewBox") == f"0 0 {wide:g} {high:g}"
    boxes = []
    for group in root.iter(f"{SVG}g"):
        x, y, width, height = (
            float(group.find(f"{SVG}rect").get(a)) for a in ("x", "y", "width", "height")
        )
        assert x >= 0 and y >= 0 and x + width <= wide and y + height <= high
        boxes.append((x, y, x + width, y + height))
        for line in group.iter(f"{SVG}text"):
            size = 6.1 if line.get("class") == "note" else 7.3
            long = float(line.get("textLength", columns(line.text or "") * size))
            start = float(line.get("x")) - (long if line.get("class") == "note" else 0)
            assert start >= x + 4 and start + long <= x + width - 4
            assert y + 9 < float(line.get("y")) < y + height - 4
            assert (line.text or "").isascii() or line.get("textLength")
    for n, (a, b, c, d) in enumerate(boxes):
        assert not any(a < g and e < c and b < h and f < d for e, f, g, h in boxes[:n])


@pytest.mark.parametrize("seed", range(30))
def test_every_arrow_points_down_from_a_box_to_a_box_and_past_all_others(seed):
    root = ET.fromstring(to_svg(random_graph(seed, 60)))
    boxes = [
        tuple(float(rect.get(a)) for a in ("x", "y", "width", "height"))
        for rect in root.iterfind(f"{SVG}g/{SVG}rect")
    ]
    for path in root.iter(f"{SVG}path"):
        way = re.sub(r"m-4 .*", "", path.get("d"))
        rows = re.findall(r"V(-?\d+)C(-?\d+) -?\d+ (-?\d+) -?\d+ -?\d+ (-?\d+)", way)
        x, y = map(int, re.match(r"M(-?\d+) (\d+)", way).groups())
        assert any(abs(a + w / 2 - x) <= 1 and b + h == y for a, b, w, h in boxes)
        for floor, start, turn, ceiling in rows:
            assert int(floor) >= y and int(start) == x  # straight down beside the boxes of a row
            if int(floor) > y:
                assert not any(
                    a < x < a + w and y < b + h and b < int(floor) for a, b, w, h in boxes
                )
            x, y = int(turn), int(ceiling)
        end = int(way.rpartition("V")[2])
        assert any(a < x < a + w and b == end for a, b, w, h in boxes)


def test_a_picture_reads_from_parameters_down_to_the_output_and_its_feedback():
    root = ET.fromstring(to_svg(agent()))
    tops = {}
    for group in root.iter(f"{SVG}g"):
        text = group.findall(f"{SVG}text")[1].text
        tops[text] = int(group.find(f"{SVG}rect").get("y")), group.get("class")
    order = ["'Extract the name.'", "'The name is Juan.'", "'en'", "'Hello, The name is Juan.!'"]
    order.append("It should be 'Hola, Juan!'.")
    assert sorted(order, key=lambda text: tops[text][0]) == order
    kinds = [tops[text][1] for text in order]
    assert kinds == ["parameter", "operator", "operator", "output", "feedback"]


def crossings(graph):
    """How many pairs of edges cross between two rows."""
    ways = re.findall(r'<path class="\w+" d="([^"]*)"', to_svg(graph, calls=1000))
    steps = [
        tuple(map(int, step))
        for way in ways
        for step in re.findall(r"V(\d+)C(\d+) \d+ \d+ \d+ (\d+) ", way)
    ]
    return sum(r == s and (a - c) * (b - d) < 0 for r, a, b in steps for s, c, d in steps) // 2


def unsorted(places):
    """The boxes of each row side by side in the order in which they came."""
    counts = Counter()
    for box in places:
        box.x, box.floor = 300 * (1 + counts[box.row]), 300 * (1 + box.row)
        counts[box.row] += 1


def test_few_crossings(monkeypatch):
    """A tree needs none; a random graph has a fraction of what an unsorted drawing has."""
    small = first_example, diamond, agent, lambda: chain(9)
    assert [crossings(make()) for make in small] == [0] * 4
    graphs = [random_graph(seed, 40) for seed in range(12)]
    drawn = sum(map(crossings, graphs))
    monkeypatch.setattr(minitrace_pictures, "_arrange", unsorted)
    assert 0 < drawn < 0.5 * sum(map(crossings, graphs))


def test_the_same_graph_gives_the_same_picture_whatever_ran_before():
    drawn = {to_svg(random_graph(5, 50)) for _ in range(3)}
    minitrace.GRAPH.clear()
    program = "import sys; sys.path[:0] = {!r}\nfrom graphs import random_graph\n"
    program += "from minitrace_pictures import to_svg\nprint(to_svg(random_graph(5, 50)))"
    for seed in "1", "2":
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                program.format([str(ROOT), str(ROOT / "tests"), str(COMPANIONS)]),
            ],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        drawn.add(done.stdout.rstrip("\n"))
    names = {re.sub(r"\bp\d+\b", "p", picture) for picture in drawn}
    assert len(names) == 1


def test_a_graph_read_from_json_gives_the_same_picture():
    for make in first_example, diamond, agent, lambda: batch(4):
        graph = make()
        assert to_svg(TraceGraph.from_json(graph.to_json())) == to_svg(graph)


def test_a_kind_that_is_not_known_is_drawn_as_a_call():
    form = {
        "nodes": [
            {"id": "x", "kind": "dream"},
            {"id": "y", "kind": "feedback", "inputs": {"x": "x"}},
        ]
    }
    for draw in to_svg, to_dot, to_mermaid:
        text = draw(TraceGraph.from_json(json.dumps(form)))
        assert "x" in text and "y" in text


def test_what_nobody_can_see_is_shown_as_an_escape():
    x = node("one\ntwo \x00\x1b[31m \u202e \ud800 \ufffe", name="x", trainable=True)
    (x + "!").backward("a bell: \x07\x85")
    for draw in to_svg, to_dot, to_mermaid:
        text = draw(x.feedback[0])
        assert all(c.isprintable() or c in "\n\xa0" for c in text)
    lines = [each.text for each in ET.fromstring(to_svg(x.feedback[0])).iter(f"{SVG}text")]
    assert {r"two \x00\x1b[31m \u202e \ud800", r"\ufffe", r"a bell: \x07"} <= {*lines}


def test_tooltips_hold_the_whole_value_within_bounds():
    root = ET.fromstring(to_svg(hostile()))
    tips = [each.text for each in root.iter(f"{SVG}title")]
    assert "x0 = '<script>alert(1)</script>'" in tips[0]
    assert "(100,002 characters)" in tips[2] and max(map(len, tips)) < 5_000


def test_a_large_graph_is_folded_as_the_prompt_folds_it():
    graph = chain(500)
    text = to_svg(graph)
    assert "492 calls left out, add4 to" in text and "add495: 492 add" in text
    assert {"add0", "add3", "add496", "add499"} <= {
        each.text for each in ET.fromstring(text).iter(f"{SVG}text")
    }
    root = ET.fromstring(to_svg(batch(64), calls=10))
    kinds = [each.get("class") for each in root.iter(f"{SVG}g")]
    assert {kind: kinds.count(kind) for kind in ("output", "operator", "omitted")} == {
        "output": 10,
        "operator": 10,
        "omitted": 1,
    }


@pytest.mark.slow
def test_a_hundred_thousand_calls_without_recursion():
    graph = chain(100_000)
    assert sum(len(draw(graph)) for draw in (to_svg, to_dot, to_mermaid)) < 50_000


def test_a_name_from_far_above_is_repeated_near_its_use():
    x = node(1, name="x", trainable=True)
    end = x
    for turn in range(9):
        end = (end + 2) * (x if turn == 8 else 3)
    end.backward("too high")
    text = to_svg(x.feedback[0])
    assert text.count("x0 (see above)") == 1


def test_graphs_of_thousands_of_nodes_are_drawn_whole():
    for graph in random_graph(3, 3_000), batch(700):
        assert to_svg(graph, calls=10_000).count("<rect") > 1_000
    assert to_svg(chain(2_000), calls=10_000).count("<rect") < 50  # a run of the same is folded


def test_a_parameter_shows_the_value_it_had_at_backward():
    x = node("before", name="x", trainable=True)
    (x + "!").backward("too loud")
    x.set("after")
    for draw in to_svg, to_dot, to_mermaid:
        text = draw(x.feedback[0])
        assert "before" in text and "after" not in text


# ---- Notebooks


def test_notebooks_show_pictures():
    x = node(3, name="x", trainable=True)
    end = x + 1
    end.backward("too small")
    graph = x.feedback[0]
    assert graph._repr_svg_() == to_svg(graph) and "too small" in graph._repr_svg_()
    for each in end, x, node("an input"):
        assert each._repr_svg_() == to_svg(TraceGraph.of(each))
    assert ET.fromstring(end._repr_svg_()).get("aria-label").endswith("add0: 3 nodes")


def test_only_who_imports_it_gets_pictures():
    program = (
        "import minitrace as m; told = [hasattr(c, '_repr_svg_') for c in (m.Node, m.TraceGraph)]\n"
        "import minitrace_pictures; told += [m.node(1)._repr_svg_()[:4]]\n"
        "print(told)"
    )
    path = os.pathsep.join([str(ROOT), str(COMPANIONS)])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.stdout == "[False, False, '<svg']\n", done.stderr


def test_ipython_takes_the_picture():
    formatters = pytest.importorskip("IPython.core.formatters")
    end = node(3, name="x", trainable=True) + 1
    shown, _ = formatters.DisplayFormatter().format(end)
    assert shown["image/svg+xml"] == to_svg(TraceGraph.of(end))


def test_alone_it_says_which_file_to_copy(tmp_path):
    shutil.copy(COMPANIONS / "minitrace_pictures.py", tmp_path)
    command = [sys.executable, "-c", "import minitrace_pictures"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    words = "ImportError: minitrace_pictures.py needs minitrace.py: copy it beside this file"
    assert done.stderr.splitlines()[-1] == words


# ---- In a real browser


OVERFLOW = """[...document.querySelectorAll('g')].flatMap(group => {
    const box = group.querySelector('rect').getBBox();
    return [...group.querySelectorAll('text')].map(text => [text, text.getBBox()]).filter(
        ([text, it]) => it.width && (it.x < box.x || it.x + it.width > box.x + box.width + 0.5
            || it.y < box.y || it.y + it.height > box.y + box.height)
    ).map(([text, it]) => [text.textContent, it.width, box.width]) })"""


@needs_chromium
@each_graph
def test_in_a_real_browser_no_text_leaves_its_box(graph, browser, tmp_path):
    path = tmp_path / "graph.svg"
    path.write_text(to_svg(graph()), encoding="utf-8")
    page = browser.open(path)
    assert page.run(OVERFLOW) == []
    assert page.run("document.querySelectorAll('parsererror').length") == 0
    assert not page.complaints


@needs_chromium
def test_in_a_real_browser_kinds_differ_and_text_can_be_read_by_day_and_by_night(browser, tmp_path):
    path = tmp_path / "graph.svg"
    path.write_text(to_svg(agent()), encoding="utf-8")
    page = browser.open(path)
    look = """['parameter', 'input', 'operator', 'output'].map(kind => {
        const style = getComputedStyle(document.querySelector(`.${kind} rect`));
        return [style.fill, style.stroke, style.strokeWidth, style.rx] })"""
    looks = page.run(look)
    assert len({fill for fill, *_ in looks}) == len({stroke for _, stroke, *_ in looks}) == 4
    assert len({tuple(shape) for _, _, *shape in looks}) == 4  # where there is no colour
    filtered = "getComputedStyle(document.documentElement).filter"
    assert page.run(filtered) == "none"
    page.prefer(prefers_color_scheme="dark")
    assert page.run(filtered) == "invert(0.92) hue-rotate(180deg)"
    fills = {fill for fill, *_ in minitrace_pictures._LOOKS.values()}
    for fill in fills:
        day, ink = rgb(fill), rgb("#111827")
        assert contrast(day, ink) >= 7 and contrast(by_night(day), by_night(ink)) >= 4.5


def rgb(color):
    return [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]


def by_night(color):
    """What the two filters make of a colour, as the specification of filter effects has it."""
    r, g, b = (0.92 + part * (1 - 2 * 0.92) for part in color)
    turned = (
        -0.574 * r + 1.430 * g + 0.144 * b,
        0.426 * r + 0.430 * g + 0.144 * b,
        0.426 * r + 1.430 * g - 0.856 * b,
    )
    return [min(max(part, 0), 1) for part in turned]


def contrast(one, other):
    """The contrast of two colours as WCAG 2 counts it."""

    def light(color):
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


# ---- The pictures of the tutorial


@pytest.mark.parametrize("name", pictures.GRAPHS)
def test_a_picture_is_what_is_drawn_now(name):
    stored = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert pictures.draw(name) == stored, f"python3 tutorial/pictures.py draws {name}.svg anew"


def test_one_picture_can_be_printed():
    command = [sys.executable, str(ROOT / "tutorial" / "pictures.py"), "diamond"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == pictures.draw("diamond") and done.stderr == ""


def test_what_the_pictures_show():
    """The README's number, the chapter's diamond, the published value of the expression."""
    assert ">24<" in pictures.draw("comfort") and "too warm" in pictures.draw("comfort")
    assert pictures.draw("diamond").count('class="edge"') == 2
    assert ">24.70408163265306<" in pictures.draw("expression")
    assert "(ZeroDivisionError) division by" in pictures.draw("failure")
    assert pictures.draw("agent").count(">parameter</text>") == 4
