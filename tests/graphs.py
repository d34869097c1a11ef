"""Trace graphs that are drawn, as trees and as pictures, and values that nobody would want to draw."""

import random
import sys
import unicodedata

import pytest
from conftest import ROOT

from minitrace import ExecutionError, TraceGraph, backward, bundle, node

sys.path.append(str(ROOT / "tutorial"))
from pictures import agent

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
    prompt = node("Answer:", name="prompt", trainable=True)
    style = node(1, name="style", trainable=True)
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


def columns(text):
    """The columns of a text on a terminal, counted here once more."""
    wide = [unicodedata.east_asian_width(c) in ("W", "F") for c in text]
    thin = [unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text]
    return len(text) + sum(wide) - sum(thin)
