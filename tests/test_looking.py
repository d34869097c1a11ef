"""Section 6: a graph as text tree, as Mermaid, as Graphviz and as SVG, whatever is in its values.

Chromium, Graphviz and Mermaid take part where they are: `chromium` and `dot` on the path, Mermaid in the
folder `node_modules` that the environment variable MINITRACE_NODE_MODULES names.
"""

import html
import io
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from conftest import ROOT

import minitrace
from minitrace import ExecutionError, Script, TraceGraph, backward, bundle, node

SVG = "{http://www.w3.org/2000/svg}"
MERMAID = Path(os.environ.get("MINITRACE_NODE_MODULES", "/nowhere"), "mermaid/dist/mermaid.min.js")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
needs_dot = pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
needs_mermaid = pytest.mark.skipif(
    not (CHROMIUM and MERMAID.exists()), reason="Mermaid, or a Chromium to run it in, is not here"
)

HOSTILE = {
    "a script": "<script>alert(1)</script>",
    "the end of CDATA": "x ]]> & \"quoted\" 'text' </svg></title><b>",
    "100,000 characters": "x" * 100_000,
    "100,000 words": "word " * 100_000,
    "right to left": "مرحبا بالعالم هذا نص طويل جدا في صندوق صغير",
    "right to left override": "abc \u202e fed \u2066 x",
    "control characters": "\x00\x01\x07\x1b[31mred\x1b[0m\x7f\x85\u2028\r\x0b",
    "half a character": "\ud800 and \udfff \ufffe \uffff",
    "wide characters": "漢字かな交じりの長い文章、" * 9,
    "emoji": "👍🏽 👨\u200d👩\u200d👧 🇪🇺 ❤️ " * 9,
    "accents": "e\u0301a\u0308" * 40,
    "very wide": "﷽𒐫꧅⸻" * 9,
    "lines": "def f(x):\n\treturn [\n        x\n    ]\n\n\n\n" * 3,
    "marks of Mermaid": '1. one\n- two\n# three; `four` **five** __six__ A-->B %% [["x"]] #quot; end',
    "marks of Graphviz": 'a\\nb \\N \\" } -> { [label="x"]; &amp; &lt;b&gt; <b>',
    "nothing": "",
    "spaces": "   \t  ",
}
NAMES = ["end", "graph", "subgraph", "class", "node", "default", "名前", "اسم", "x" * 300, "click"]


def first_example():
    degrees = node(20, name="degrees", trainable=True)
    feeling = bundle("[comfort] Say how a room feels.")(lambda degrees: "too cold")(degrees)
    feeling.backward("too cold")
    return degrees.feedback[0]


def diamond():
    x = node(3, name="x", trainable=True)
    (x * x + x).backward("too small", score=0.25)
    return x.feedback[0]


def agent():
    made = minitrace._sales_agent(Script(minitrace._AGENT_SCRIPT))
    made("Hola, soy Juan.").backward("It should be 'Hola, Juan!'.")
    return made.ask_name.feedback[0]


def hostile(name="x"):
    """Every hostile value as a parameter, in the message of a failure, and as the feedback."""
    words = "\n".join(HOSTILE.values())
    parameters = [node(value, name=name, trainable=True) for value in HOSTILE.values()]

    @bundle(f"[{name[:9]}] {words}")
    def fail(*parts):
        raise ValueError(words)

    with pytest.raises(ExecutionError) as failure:
        fail(*parameters)
    failure.value.exception_node.backward(words)
    return parameters[0].feedback[0]


def chain(length):
    x = node(1, name="x", trainable=True)
    end = x
    for _ in range(length):
        end = end + 1
    end.backward("too high")
    return x.feedback[0]


def random_graph(seed, size):
    """Sums, products and failures, of what came just before or long ago."""
    dice = random.Random(seed)
    nodes = [node(dice.random(), name="p", trainable=True) for _ in range(dice.randint(1, 5))]
    for _ in range(size):
        p, q = dice.choice(nodes[-9:]), dice.choice(nodes)
        nodes.append(
            dice.choice([lambda p, q: p + q, lambda p, q: p * 2, lambda p, q: p.eq(q)])(p, q)
        )
    outputs = dice.sample(nodes, min(3, len(nodes)))
    graph = TraceGraph.of(*outputs)
    graph.outputs = [each._replace(feedback="words", score=0.5) for each in graph.outputs]
    return graph


def batch(size):
    """A minibatch: two parameters, and two calls for each example."""
    prompt, style = (
        node("Answer:", name="prompt", trainable=True),
        node(1, name="style", trainable=True),
    )
    ask, grade = bundle("[ask]")(lambda p, q: q), bundle("[grade]")(lambda a, s: a)
    outputs = [grade(ask(prompt, f"question {n}"), style) for n in range(size)]
    return backward(outputs, [f"wrong {n}" for n in range(size)])[prompt]


GRAPHS = {
    "first example": first_example,
    "diamond": diamond,
    "agent": agent,
    "hostile": hostile,
    "chain": lambda: chain(100),
    "batch": lambda: batch(9),
    "random": lambda: random_graph(1, 40),
    "one node": lambda: TraceGraph.of(node(5, name="x")),
    "no node": TraceGraph,
}
each_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())


# ---- The tree


def test_the_tree_draws_a_shared_node_once_and_refers_to_it():
    x = node(3, name="x", trainable=True)
    square = x * x
    (square + square).backward("line one\nline two", score=0.5)
    assert (
        x.feedback[0].tree(ascii=True)
        == """\
add0 = 18  <- line one line two (score: 0.5)
|- multiply0 = 9
|  |- x0 = 3  [parameter]
|  `- x0 = 3  [parameter]
`- multiply0 (see above)"""
    )


def test_feedback_stands_where_its_output_is_also_inside_another():
    x = node(3, name="x", trainable=True)
    low = x + 1
    high = low + 1
    graph = backward([low, high], ["first", "second"])[x]
    assert graph.tree(ascii=True).splitlines()[0] == "add0 = 4  <- first"
    graph = backward([high, low], ["second", "first"])[x]
    assert (
        graph.tree(ascii=True)
        == """\
add1 = 5  <- second
|- add0 = 4  <- first
|  |- x0 = 3  [parameter]
|  `- int0 = 1
`- int1 = 1"""
    )


@each_graph
@pytest.mark.parametrize("ascii", [True, False])
def test_a_tree_fits_a_terminal(graph, ascii):
    tree = graph().tree(ascii=ascii)
    assert max(map(columns, tree.split("\n"))) <= 90
    assert all(c.isprintable() or c in "\n\u200d" for c in tree)
    assert tree.isascii() or not ascii


def columns(text):
    """The columns of a text on a terminal, counted here once more."""
    wide = [unicodedata.east_asian_width(c) in ("W", "F") for c in text]
    thin = [unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text]
    return len(text) + sum(wide) - sum(thin)


def test_a_deep_tree_goes_on_at_the_left_and_leaves_out_nothing():
    tree = chain(1_000).tree(ascii=True, lines=10_000)
    starts = [line.split(" ")[0] for line in tree.splitlines() if line[0] not in "|` "]
    assert starts[0] == "add999" and len(starts) > 20
    assert all(f"{name} (see below)" in tree for name in starts[1:])
    assert len(re.findall(r"^[|` -]*add\d+ = ", tree, re.M)) == 1_000 and "more nodes" not in tree


def test_a_tree_of_100_000_without_recursion():
    graph = chain(100_000)
    assert graph.tree(lines=10**9).count("\n") > 200_000
    assert len(graph.to_svg()) + len(graph.to_dot()) + len(graph.to_mermaid()) < 50_000


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("out", "variables", "colored"),
    [
        (Terminal, {}, True),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"NO_COLOR": ""}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colour_only_when_printed_on_a_terminal(out, variables, colored, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tree = diamond().tree(ascii=True)
    plain = tree + ""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out())
        print(tree)
        printed = sys.stdout.getvalue()
    assert ("x0 = 3\x1b[36m  [parameter]\x1b[0m" in printed) is colored
    assert ("\x1b[33m  <- too small (score: 0.25)\x1b[0m" in printed) is colored
    assert tree == plain and f"{tree}" == plain and json.loads(json.dumps(tree)) == plain
    assert "\x1b" not in plain and re.sub(r"\x1b\[\d+m", "", printed) == plain + "\n"


# ---- Mermaid and Graphviz, read by a little reader of our own, then by the real ones


def boxes_of(graph):
    return [[box.name, *box.lines] for box in minitrace._boxes(graph, 100)]


@each_graph
def test_mermaid_says_what_the_boxes_say(graph):
    graph = graph()
    lines = graph.to_mermaid().splitlines()
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
    command, text = ["dot", "-Tsvg"], graph.to_dot().encode()
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
def test_real_mermaid_draws_every_label(tmp_path):
    page_file = tmp_path / "page.html"
    script = f'<meta charset="utf-8"><body><script src="{MERMAID.resolve().as_uri()}"></script>'
    page_file.write_text(script, encoding="utf-8")
    graphs = [make() for name, make in GRAPHS.items() if name != "no node"]
    with Browser() as browser:
        page = browser.open(page_file)
        page.run("mermaid.initialize({startOnLoad: false}); 0")
        for graph in graphs + [hostile(name) for name in NAMES]:
            text = json.dumps(graph.to_mermaid())
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
    text = graph().to_svg()
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
    root = ET.fromstring(graph().to_svg())
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
    root = ET.fromstring(random_graph(seed, 60).to_svg())
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
    root = ET.fromstring(agent().to_svg())
    tops = {}
    for group in root.iter(f"{SVG}g"):
        name = group.find(f"{SVG}text").text
        tops[name] = group.get("class"), int(group.find(f"{SVG}rect").get("y"))
    assert tops["ask_name0"][0] == "parameter" and tops["eval1"][0] == "output"
    order = ["ask_name0", "call_llm1", "eval0", "eval1", "feedback"]
    assert sorted(order, key=lambda name: tops[name][1]) == order


def crossings(graph):
    """How many pairs of edges cross between two rows."""
    layout = minitrace._Layout(minitrace._boxes(graph, 1000))
    steps = [
        (layout.row[a], layout.x[a], layout.x[b])
        for p in layout.paths
        for a, b in itertools.pairwise(p)
    ]
    return sum(r == s and (a - c) * (b - d) < 0 for r, a, b in steps for s, c, d in steps) // 2


def test_few_crossings():
    """A tree needs none; a random graph has a fraction of what an unsorted drawing has."""
    assert [crossings(make()) for make in (first_example, diamond, agent, lambda: chain(9))] == [
        0
    ] * 4
    graphs = [random_graph(seed, 40) for seed in range(12)]
    sorted_ones = sum(map(crossings, graphs))
    plain = minitrace._Layout._places

    def unsorted(self):
        for layer in self.layers:
            for place, vertex in enumerate(layer):
                self.x_of[vertex] = place
        return [self.x_of[vertex] for vertex in range(len(self.row))]

    minitrace._Layout.x_of = {}
    minitrace._Layout._places = unsorted
    try:
        assert sorted_ones < 0.5 * sum(map(crossings, graphs))
    finally:
        minitrace._Layout._places = plain
        del minitrace._Layout.x_of


def test_the_same_graph_gives_the_same_picture_whatever_ran_before():
    pictures = {make().to_svg() for make in [lambda: random_graph(5, 50)] * 3}
    minitrace.GRAPH.clear()
    program = "import sys; sys.path[:0] = {!r}\nfrom test_looking import *\nprint(random_graph(5, 50).to_svg())"
    for seed in "1", "2":
        done = subprocess.run(
            [sys.executable, "-c", program.format([str(ROOT), str(ROOT / "tests")])],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        pictures.add(done.stdout.rstrip("\n"))
    names = {re.sub(r"\bp\d+\b", "p", picture) for picture in pictures}
    assert len(names) == 1


def test_a_graph_read_from_json_gives_the_same_picture():
    for make in first_example, diamond, agent, lambda: batch(4):
        graph = make()
        assert TraceGraph.from_json(graph.to_json()).to_svg() == graph.to_svg()


def test_a_kind_that_is_not_known_is_drawn_as_a_call():
    form = {
        "nodes": [
            {"id": "x", "kind": "dream"},
            {"id": "y", "kind": "feedback", "inputs": {"x": "x"}},
        ]
    }
    for name in "to_svg", "to_dot", "to_mermaid", "tree":
        assert isinstance(getattr(TraceGraph.from_json(json.dumps(form)), name)(), str)


def test_tooltips_hold_the_whole_value_within_bounds():
    root = ET.fromstring(hostile().to_svg())
    tips = [each.text for each in root.iter(f"{SVG}title")]
    assert "x0 = '<script>alert(1)</script>'" in tips[0]
    assert "(100,002 characters)" in tips[2] and max(map(len, tips)) < 5_000


def test_a_large_graph_is_folded_as_the_prompt_folds_it():
    graph = chain(500)
    text = graph.to_svg()
    assert "492 calls left out, add4 to" in text and "add495: 492 add" in text
    assert {"add0", "add3", "add496", "add499"} <= {
        each.text for each in ET.fromstring(text).iter(f"{SVG}text")
    }
    root = ET.fromstring(batch(64).to_svg(calls=10))
    kinds = [each.get("class") for each in root.iter(f"{SVG}g")]
    assert {kind: kinds.count(kind) for kind in ("output", "operator", "omitted")} == {
        "output": 10,
        "operator": 10,
        "omitted": 1,
    }


def test_a_name_from_far_above_is_repeated_near_its_use():
    x = node(1, name="x", trainable=True)
    end = x
    for turn in range(9):
        end = (end + 2) * (x if turn == 8 else 3)
    end.backward("too high")
    text = x.feedback[0].to_svg()
    assert text.count("x0 (see above)") == 1


def test_graphs_of_thousands_of_nodes_are_drawn_whole():
    for graph in random_graph(3, 3_000), batch(700):
        assert graph.to_svg(calls=10_000).count("<rect") > 1_000
    assert chain(2_000).to_svg(calls=10_000).count("<rect") < 50  # a run of the same is folded


def test_notebooks_show_pictures():
    x = node(3, name="x", trainable=True)
    end = x + 1
    shown = end.backward("too small", visualize=True)
    assert isinstance(shown, TraceGraph) and shown.feedback == ["too small"]
    assert shown._repr_svg_() == shown.to_svg() and "too small" in shown.to_svg()
    assert end._repr_svg_() == TraceGraph.of(end).to_svg() and x.backward("low") is None
    assert end.backward("again", score=0.5, visualize=True).score == 0.5


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
    path.write_text(graph().to_svg(), encoding="utf-8")
    page = browser.open(path)
    assert page.run(OVERFLOW) == []
    assert page.run("document.querySelectorAll('parsererror').length") == 0
    assert not page.complaints


@needs_chromium
def test_in_a_real_browser_kinds_differ_and_text_can_be_read_by_day_and_by_night(browser, tmp_path):
    path = tmp_path / "graph.svg"
    path.write_text(agent().to_svg(), encoding="utf-8")
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
    fills = {fill for fill, *_ in minitrace._LOOKS.values()}
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
