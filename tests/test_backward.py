"""Section 3: feedback on its way back, the trace graph, its JSON form, and what if."""

import asyncio
import copy
import gc
import itertools
import json
import math
import pickle
import random
import subprocess
import sys
import warnings
import weakref
from collections import Counter

import pytest
from conftest import ROOT

import minitrace
from minitrace import (
    ExecutionError,
    GraphError,
    GraphPropagator,
    MessageNode,
    OptoPrime,
    Propagator,
    StubLLM,
    SumPropagator,
    TraceGraph,
    backward,
    bundle,
    node,
    operators,
)

# ---- random graphs, and what the brute force says of them


@bundle()
def total(numbers, more=0, *rest, **named):
    """The sum of all that it gets."""
    return sum(numbers) + more + sum(rest) + sum(named.values())


def grow(dice, count):
    """Random nodes, parents first: roots of both kinds, diamonds, shared parents, unused branches."""
    nodes = [node(dice.randint(-9, 9), "p", trainable=True), node(dice.randint(-9, 9), "c")]
    makers = [
        lambda a, b, c: node(dice.randint(-9, 9), "p", trainable=True),
        lambda a, b, c: node(dice.randint(-9, 9), "c"),
        lambda a, b, c: a + b,
        lambda a, b, c: a + b,
        lambda a, b, c: a - 1,
        lambda a, b, c: 2 * a,
        lambda a, b, c: a + a,
        lambda a, b, c: operators.cond(b > 0, a, c),
        lambda a, b, c: total([a, c], named=b),
    ]
    while len(nodes) < count:
        maker = dice.choice(makers[dice.choice([0, 2, 2]) :])
        nodes.append(maker(*(dice.choice(nodes[-4:]) for _ in "abc")))
    return nodes


def walk(each, feedback, sums, texts):
    """Along every path to the roots, one at a time."""
    sums[each] += feedback
    texts.setdefault(each, set()).add(feedback)
    for parent in each.parents:
        walk(parent, feedback, sums, texts)


def depends(each):
    return each.trainable or any(map(depends, each.parents))


def by_brute_force(outputs, said):
    """What reaches each node that depends on a parameter: the sum over paths, the set of what was said."""
    sums, texts = Counter(), {}
    for output, feedback in zip(outputs, said, strict=True):
        walk(output, feedback, sums, texts)
    known = {each: depends(each) for each in sums}
    return {e: sums[e] for e in sums if known[e]}, {e: texts[e] for e in sums if known[e]}


def some_graph(seed):
    dice = random.Random(seed)
    nodes = grow(dice, dice.randint(3, 16))
    outputs = [dice.choice(nodes[-4:]) for _ in range(dice.choice([1, 1, 2, 3]))]
    if not any(map(depends, outputs)):
        outputs.append(nodes[0])
    return nodes, outputs, [10**n for n in range(len(outputs))]


def check_graph(graph, outputs, reached):
    """Sorted, and exactly the nodes reached with the fixed inputs that feed them."""
    beside = {p for each in reached for p in each.parents if p not in reached}
    kinds = {e._number: "parameter" if e.trainable else "operator" for e in reached}
    kinds |= {each._number: "input" for each in beside}
    assert {record.number: record.kind for record in graph if record.number in kinds} == kinds
    strays = {record.number for record in graph} - kinds.keys()
    assert strays <= {output._number for output in outputs}  # outputs without a parameter may stay
    seen = set()
    for record in graph:
        assert seen.issuperset(record.parents)
        seen.add(record.number)
    for each in reached:
        record = graph[each._number]
        assert (record.data, record.type) == (each.data, each.type.__name__)
        assert record.parents == tuple(parent._number for parent in each.parents)
        assert record.arguments == tuple(each.inputs)


@pytest.mark.parametrize("start", range(0, 2000, 500))
def test_2000_random_graphs(start):
    for seed in range(start, start + 500):
        nodes, outputs, said = some_graph(seed)
        before = [(each.data, each.parents) for each in nodes]
        sums, texts = by_brute_force(outputs, said)
        assert backward(outputs, said, SumPropagator()) == sums, seed
        for each, words in backward(outputs, [*map(str, said)], SumPropagator()).items():
            lines = words.split("\n")
            assert len(lines) == len(set(lines)) and {*map(int, lines)} == texts[each], seed
        found = backward(outputs, said)
        assert found.keys() == sums.keys()
        (graph,) = {id(graph): graph for graph in found.values()}.values()
        check_graph(graph, outputs, sums)
        assert [(each.data, each.parents) for each in nodes] == before


# ---- the three duties


def test_two_outputs_with_different_feedback():
    x = node(1, "x", trainable=True)
    shared = x + 1
    a, b = shared * 2, shared * 3
    found = backward([a, b], ["too low", "too high"], SumPropagator())
    assert (found[a], found[b]) == ("too low", "too high")
    assert found[x] == found[shared] == "too low\ntoo high"
    graph = backward([a, b], ["too low", "too high"], score=[1, 0])[x]
    assert graph.feedback == ["too low", "too high"] and graph.score == 0.5
    assert [record.operator for record in graph if record.operator] == [
        "add",
        "multiply",
        "multiply",
    ]


def test_two_backwards_add_up_on_the_parameter_and_leave_the_graph_alone():
    x = node(1, "x", trainable=True)
    shared = x + 1
    a, b = shared * 2, shared * 3
    for output, words in [(a, "low"), (b, "high"), (a, "low")]:
        assert output.backward(words) is None
    assert [graph.feedback for graph in x.feedback] == [["low"], ["high"], ["low"]]
    assert [len(graph) for graph in x.feedback] == [5, 5, 5]
    assert shared.feedback == a.feedback == []
    x.zero_feedback()
    assert x.feedback == []


def test_the_same_output_twice():
    x = node(1, "x", trainable=True)
    y = x + 1
    assert backward([y, y], [1, 2], SumPropagator())[x] == 3
    assert backward([y, y], ["low", "low"], SumPropagator())[x] == "low"
    graph = backward([y, y], ["low", "high"])[x]
    assert graph.feedback == ["low", "high"] and len(graph) == 3
    assert TraceGraph.from_json(graph.to_json()).feedback == ["low", "high"]


def test_texts_come_in_the_order_in_which_they_were_said():
    x = node(1, "x", trainable=True)
    y = x + 1
    assert backward([y, y], ["first", "second"], SumPropagator())[x] == "first\nsecond"
    rules = SumPropagator()
    rules.register("add", lambda node, feedback: ["as x", "as y"])
    assert backward(x + x, "", rules)[x] == "as x\nas y"
    assert backward([x + 1, x + 2], ["first", "second"], SumPropagator())[x] == "first\nsecond"


@pytest.mark.parametrize("words", [["a", "b"], ["a\nb", "b"], ["b", "a\nb"], ["", "a"], ["a", "a"]])
def test_a_text_is_never_repeated_however_the_graph_branches(words):
    x = node(1, "x", trainable=True)
    a, b = x + x, x * x
    middle = a + b
    found = backward([middle + a, middle + b, middle], [*words, words[0]], SumPropagator())[x]
    assert found == "\n".join(dict.fromkeys(words))


def test_none_is_a_feedback():
    x = node(1, "x", trainable=True)
    y = x + x
    assert backward(y, None, SumPropagator()) == {y: None, x: None}
    assert backward([y, x + 1], [None, 3], SumPropagator())[x] == 3
    y.backward(None)
    assert x.feedback[0].feedback == [None]


@pytest.mark.parametrize("words", [["a", "list"], {"a": 1}, 7, b"bytes", ValueError("of a kind")])
def test_feedback_is_any_object(words):
    x = node(1, "x", trainable=True)
    assert backward(x + 1, words, SumPropagator())[x] is words
    assert backward(x + 1, words)[x].feedback == [words]


def test_feedback_on_a_parameter_itself():
    x = node(1, "x", trainable=True)
    x.backward("change it")
    (graph,) = x.feedback
    assert [(record.kind, record.data) for record in graph] == [("parameter", 1)]
    assert graph.parameters[0] is x and graph.feedback == ["change it"]
    assert backward([x, x + 1], [1, 2], SumPropagator())[x] == 3


def test_no_parameter_is_reached():
    with pytest.warns(UserWarning) as caught:
        assert backward(node(1) + 2, "too low") == {}
    assert "backward from add:0 reaches no parameter" in str(caught[0].message)
    assert all(word in str(caught[0].message) for word in ["==", "bool", "int()", "f-string"])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="reaches no parameter") as caught:
        (node(1) + 2).backward("too low")
    assert caught[0].filename == __file__


def test_an_output_without_a_parameter_beside_one_with():
    x, fixed = node(1, "x", trainable=True), node(2) + 3
    graph = backward([fixed, x + 1], ["why?", "too low"])[x]
    again = TraceGraph.from_json(graph.to_json())
    assert "too low" in again.feedback and "x0" in again.tree()


def test_as_many_feedbacks_as_outputs():
    x = node(1, "x", trainable=True)
    with pytest.raises(ValueError, match="2 outputs, 1 feedbacks"):
        backward([x + 1, x + 2], ["one"])
    found = backward([x + 1, x + 2], "for both", SumPropagator())
    assert set(found.values()) == {"for both"}


class Letters(Propagator):
    """Feedback as a set of letters, to see each duty at work."""

    def init_feedback(self, node, feedback):
        return {f"{node.py_name}:{feedback}"}

    def aggregate(self, feedbacks):
        return set().union(*feedbacks)

    def propagate(self, node, feedback):
        return [{f"{word}>{n}" for word in feedback} for n, _ in enumerate(node.parents)]


def test_a_propagator_of_ones_own():
    x = node(1, "x", trainable=True)
    found = backward([x + x, x - 1], ["a", "b"], Letters())
    assert found[x] == {"add0:a>0", "add0:a>1", "subtract0:b>0"}


def test_a_propagator_without_aggregate_says_so():
    with pytest.raises(NotImplementedError, match="Propagator has no aggregate"):
        backward(node(1, trainable=True) + 1, "", Propagator())


def test_registered_rules():
    rules = SumPropagator()
    rules.register("multiply", lambda node, g: [g * node.parents[1].data, g * node.parents[0].data])
    rules.register("total", lambda node, g: [g * 100] * len(node.parents))
    x, y = node(3, "x", trainable=True), node(4, "y", trainable=True)
    found = backward(total([x * y, x], 1), 1, rules)
    assert (found[x], found[y]) == (500, 300)
    assert backward(x * y, 1, SumPropagator())[x] == 1  # the rule is that propagator's alone


@pytest.mark.parametrize("kind", [SumPropagator, GraphPropagator])
@pytest.mark.parametrize(
    "sent, words", [([], "0 feedbacks"), ([1], "1 feedbacks"), ([1] * 3, "3 ")]
)
def test_a_rule_with_the_wrong_number_of_feedbacks(kind, sent, words):
    rules = kind()
    rules.register("add", lambda node, feedback: sent)
    with pytest.raises(ValueError, match=rf"add at add:0: {words}.*for 2 parents"):
        backward(node(1, trainable=True) + 1, 1, rules)


def test_a_rule_that_returns_nothing_is_named():
    rules = SumPropagator()
    rules.register("add", lambda node, feedback: None)
    with pytest.raises((TypeError, ValueError), match="add at add:0"):
        backward(node(1, trainable=True) + 1, 1, rules)


# ---- growth


class Counting(SumPropagator):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def aggregate(self, feedbacks):
        self.calls["aggregate"] += 1
        self.calls["merged"] += len(feedbacks)
        return 1

    def propagate(self, node, feedback):
        self.calls["propagate"] += 1
        return super().propagate(node, feedback)


def chain(size, parameters=1):
    ps = [node(1, "p", trainable=True) for _ in range(parameters)]
    each = ps[0]
    for n in range(size):
        each = each + ps[n % parameters]
    return ps, each


def fan(size):
    x = node(1, "x", trainable=True)
    return [x], operators.make_list(*[x + 1 for _ in range(size)])


def grid(size):
    """Rows in which each node has two parents above it: the number of paths is exponential."""
    x = node(1, "x", trainable=True)
    row = [x] * 10
    for _ in range(size // 10):
        row = [row[n - 1] > row[n] for n in range(10)]
    return [x], operators.make_list(*row)


@pytest.mark.parametrize("shape", [chain, fan, grid])
@pytest.mark.parametrize("size", [1_000, 10_000])
def test_calls_are_linear(shape, size):
    _, output = shape(size)
    counting = Counting()
    reached = backward(output, 1, counting)
    assert counting.calls["aggregate"] == counting.calls["propagate"] == len(reached)
    assert len(reached) in (size + 1, size + 2)
    edges = sum(1 for each in reached for parent in each.parents if parent in reached)
    assert counting.calls["merged"] == edges + 1


def test_one_graph_for_800_parameters():
    parameters, output = chain(4_000, 800)
    output.backward("too low")
    graphs = [graph for parameter in parameters for graph in parameter.feedback]
    assert len(graphs) == 800 and len({*map(id, graphs)}) == 1
    assert len(graphs[0]) == 4_800 and len(graphs[0].parameters) == 800


def test_no_recursion_at_100_000():
    (x,), output = chain(100_000)
    assert backward(output, 0, SumPropagator())[x] == 0
    output.backward("too low")
    assert len(x.feedback[0]) == 100_001
    assert output.tree(ascii=True).startswith("add99999 = 100001")
    assert output.level == 100_000
    gc.disable()
    try:
        gone = weakref.ref(output)
        del output
        assert gone() is None
    finally:
        gc.enable()


def test_no_recursion_in_the_json_form_of_a_chain():
    (x,), output = chain(20_000)
    output.backward("too low")
    again = TraceGraph.from_json(x.feedback[0].to_json())
    assert len(again) == 20_001 and again.tree(lines=3).count("\n") == 3


def test_nothing_is_left_behind():
    """Neither the graph nor what backward made of it waits for the garbage collector."""
    x = node(1, "x", trainable=True)
    gc.disable()
    try:
        output = x + 1
        output.backward("too low")
        gone = weakref.ref(output)
        del output
        assert gone() is None  # the trace graph keeps values, and no node but the parameters
        x.zero_feedback()
        before = len(gc.get_objects())
        for _ in range(100):
            (x * 2 + 1).backward("too low")
            x.feedback[0].to_json(), x.feedback[0].children(x), x.feedback[0].tree()
            x.zero_feedback()
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


@pytest.mark.parametrize("changed", [1, 1_000])
def test_rerun_is_linear(changed):
    """10 times the nodes take 10 times as many calls of functions, not 100 times."""

    def calls(size):
        parameters, output = chain(size, max(1, changed * size // 5_000))
        changes, count = dict.fromkeys(parameters, 2), itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            again = output.rerun(changes)
        finally:
            sys.setprofile(None)
        assert again.data == 2 * size + 2
        return next(count)

    assert calls(5_000) < 12 * calls(500)


# ---- the trace graph


def test_values_stay_as_they_were_at_backward():
    x = node(1, "x", trainable=True)
    (x + 1).backward("too low")
    x.set(5)
    (graph,) = x.feedback
    assert [record.data for record in graph] == [1, 1, 2]
    assert json.loads(graph.to_json())["nodes"][0]["value"] == 1


@pytest.mark.parametrize("seed", range(40))
def test_children_equal_brute_force(seed):
    nodes, outputs, said = some_graph(seed)
    found = backward(outputs, said)
    graph = next(iter(found.values()))
    for each in nodes:
        wanted = [c._number for c in found if any(p is each for p in c.parents)]
        assert [record.number for record in graph.children(each)] == sorted(wanted)
        if any(record.number == each._number for record in graph):
            assert graph.children(graph[each._number]) == graph.children(each)


def test_merged_graphs():
    x = node(1, "x", trainable=True)
    shared = x + 1
    a, b = backward(shared * 2, "low")[x], backward(shared * 3, "high")[x]
    whole = TraceGraph.merged([a, b])
    assert whole.feedback == ["low", "high"] and (len(a), len(b), len(whole)) == (5, 5, 7)
    numbers = [record.number for record in whole]
    assert numbers == sorted({record.number for graph in (a, b) for record in graph})
    assert (len(a), a.feedback) == (5, ["low"])  # what was merged is as it was
    assert len(TraceGraph.merged([])) == 0
    again = TraceGraph.from_json(whole.to_json())
    assert again.to_json() == whole.to_json()


def test_merging_a_graph_with_itself_repeats_nothing():
    x = node(1, "x", trainable=True)
    graph = backward(x + 1, "low", score=1.0)[x]
    whole = TraceGraph.merged([graph, graph])
    assert whole.feedback == ["low"] and whole.to_json() == graph.to_json()


def test_names_are_distinct():
    graphs = []
    for base in "x1", "x":  # x1:0 and x:10 are both written x10
        ps = [node(n, base, trainable=True) for n in range(11)]
        graphs.append(backward(operators.make_list(*ps), "")[ps[0]])
    minitrace.GRAPH.clear()
    x = node(0, "x", trainable=True)
    graphs.append(backward(x + 1, "")[x])
    whole = TraceGraph.merged(graphs)
    assert len(set(whole.names.values())) == len(whole)
    assert len(TraceGraph.from_json(whole.to_json())) == len(whole)


def test_names_do_not_depend_on_what_ran_before():
    def build():
        x = node(1, "x", trainable=True)
        return backward(total([x, 2], node(3) * x), "")[x].to_json()

    first = build()
    for _ in range(3):
        node(0) + total([1]) * 2
    assert build().replace("x1", "x0") == first


# ---- the JSON form


class Thing:
    pass


VALUES = [
    None,
    True,
    0,
    -7,
    2**70,
    0.5,
    -0.0,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "two\nlines",
    "é ∑ \U0001f600 \ud800",
    b"",
    b"\x00\xff",
    [],
    (),
    {},
    set(),
    frozenset({1}),
    [1, [2, (3, [4])]],
    (1,),
    {3, 1, 2},
    {(1, 2), (3,)},
    {"a": 1, "b": {"c": (1, 2)}},
    {1: "a", "1": "b", None: "c", (2, 3): "d", False: "e"},
    {"$tuple": [1, 2]},
    {"$text": "no tag"},
    {"$dict": 1, "x": 2},
    [{"$float": "inf"}, math.inf],
]
OBJECTS = [Thing(), object(), 3 + 4j, range(3), len, Thing, {"a": [Thing()]}, {Thing(): 1}]


def one(value, **checks):
    """A graph with this value on an input, an operator and the feedback."""
    x = node(1, "x", trainable=True, **checks)
    return backward(operators.cond(x > 0, node(value, "v"), 0), value)[x]


def same(a, b):
    return type(a) is type(b) and repr(a) == repr(b)


@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v).encode("ascii", "replace").decode())
def test_a_value_round_trips(value):
    graph = one(value)
    text = graph.to_json()
    json.loads(text, parse_constant=pytest.fail)  # strict: no NaN, no Infinity
    again = TraceGraph.from_json(text)
    assert again.to_json() == text
    assert same([*again][-1].data, value) and same(again.feedback[0], value)
    assert [*again][-1].type == type(value).__name__


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_an_object_is_its_text_and_marked_as_such(value):
    text = one(value).to_json()
    assert '{"$text": ' in text and "0x" not in text
    again = TraceGraph.from_json(text)
    assert again.to_json() == text  # the mark stays, however often it is read and written


def test_a_value_that_python_cannot_print_does_not_break_the_graph():
    class Silent:
        def __repr__(self):
            raise RuntimeError("no words")

    own = []
    own.append(own)
    for value in Silent(), 10**5000, own:
        assert TraceGraph.from_json(one(value).to_json()).feedback


def random_value(dice, depth=3):
    makers = [lambda: dice.choice(VALUES + OBJECTS)]
    if depth:
        more = lambda: [random_value(dice, depth - 1) for _ in range(dice.randint(0, 3))]  # noqa: E731
        makers += [more, lambda: tuple(more()), lambda: dict(enumerate(more()))]
        makers += [lambda: {f"${n}" * n: item for n, item in enumerate(more())}]
    return dice.choice(makers)()


@bundle("[pick] One of several.")
def pick(*values, **named):
    return [*values, *named.values()][0]


def dressed_graph(seed):
    """A random graph with every kind of value, check, name and node."""
    dice = random.Random(seed)
    nodes = [
        node(
            3,
            dice.choice(["x", "x y", "é", "1"]),
            True,
            dice.choice([None, "how\nmuch"]),
            bounds=(0, None),
        ),
        node("a", "y", True, choices=["a", "b"], constraint="a letter"),
        node(0.5, "z", True, bounds=(-math.inf, 1)),
    ]
    makers = [
        lambda a, b, side: pick(a, b),
        lambda a, b, side: pick(side, a=a, b=[b, {"k": a}]),
        lambda a, b, side: operators.make_list(a, b, side),
        lambda a, b, side: operators.cond(a, b, side),
        lambda a, b, side: failed(a),
    ]
    for _ in range(dice.randint(1, 8)):
        a, b = dice.choice(nodes), dice.choice(nodes)
        nodes.append(dice.choice(makers)(a, b, random_value(dice)))
    outputs = [nodes[-1], *dice.sample(nodes, 2)]
    scores = [dice.choice([None, 0.5, 1]) for _ in outputs]
    return backward(outputs, [random_value(dice) for _ in outputs], score=scores)[nodes[-1]]


def failed(x):
    with pytest.raises(ExecutionError) as error:
        operators.getitem(x, Thing())
    return error.value.exception_node


def facts(each, names):
    return [getattr(each, name) for name in names.split()]


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_random_graphs_round_trip(start):
    for seed in range(start, start + 50):
        graph = dressed_graph(seed)
        text = graph.to_json()
        again = TraceGraph.from_json(text)
        assert again.to_json() == text, seed
        assert again.tree() == graph.tree(), seed
        for a, b in zip(graph, again, strict=True):
            words = "kind type operator arguments description"
            assert facts(a, words) == facts(b, words), seed
        for a, b in zip(graph.parameters, again.parameters, strict=True):
            checks = "data choices bounds constraint description"
            assert facts(a, checks) == facts(b, checks), seed
        assert again.score == graph.score


def test_a_graph_read_from_json_keeps_the_order_of_the_program():
    x = node(1, "x", trainable=True)
    graph = backward((x + 1) * 2 - x * 3, "too low")[x]
    again = TraceGraph.from_json(graph.to_json())
    assert [again.names[r.number] for r in again] == [graph.names[r.number] for r in graph]


def test_two_operators_of_one_name_keep_their_own_words():
    f = bundle("[f] Add one.")(lambda x: x + 1)
    g = bundle("[f]")(lambda x: x + 2)
    h = bundle("[f] Add three.")(lambda x: x + 3)
    x = node(1, "x", trainable=True)
    again = TraceGraph.from_json(backward(h(g(f(x))), "")[x].to_json())
    assert [r.description for r in again if r.operator] == ["Add one.", "", "Add three."]


def spec(**changes):
    """A graph as another language would write it."""
    form = {
        "format": "minitrace-graph",
        "version": "1.0",
        "nodes": [
            {"id": "speed", "value": 10, "trainable": True, "bounds": [0, 50]},
            {"id": "way", "operator": "drive", "inputs": {"v": "speed"}, "value": 100},
        ],
        "operators": {"drive": "how far it gets"},
        "outputs": [{"id": "way", "feedback": "too high"}],
    }
    return {**form, **changes}


def read(form):
    return TraceGraph.from_json(form if isinstance(form, str) else json.dumps(form))


def test_a_graph_read_from_json_can_be_drawn_shown_and_answered():
    graph = read(spec())
    assert "way = 100" in graph.tree() and "too high" in graph.tree()
    (speed,) = graph.parameters
    speed.feedback.append(graph)
    optimizer = OptoPrime([speed], llm=StubLLM())
    prompt = optimizer.prompt()[1]["content"]
    assert "way = drive(v=speed)" in prompt and "drive: how far it gets" in prompt
    assert optimizer.step()[speed] < 10 and speed.data < 10


def test_a_node_with_inputs_and_no_operator_is_shown_by_its_name():
    form = spec()
    del form["nodes"][1]["operator"]
    graph = read(form)
    graph.parameters[0].feedback.append(graph)
    prompt = OptoPrime(graph.parameters, llm=StubLLM()).prompt()[1]["content"]
    assert "way = way(v=speed)" in prompt and "None(" not in prompt


def test_a_graph_that_was_read_and_one_that_grew_here_merge():
    x = node(1, "x", trainable=True)
    whole = TraceGraph.merged([backward(x + 1, "low")[x], read(spec())])
    assert whole.feedback == ["low", "too high"] and len(read(whole.to_json())) == 5


def test_nodes_may_come_in_any_order():
    form = spec()
    form["nodes"].reverse()
    assert [record.id for record in read(form)] == ["speed", "way"]


def test_unknown_fields_are_kept_everywhere():
    form = spec(author="a robot", tags=[1, {"$x": None}])
    form["nodes"][0]["colour"] = "red"
    form["nodes"][1]["ms"] = 12.5
    form["outputs"][0]["rater"] = {"name": "Ada"}
    again = json.loads(read(form).to_json())
    assert (again["author"], again["tags"]) == ("a robot", [1, {"$x": None}])
    assert (again["nodes"][0]["colour"], again["nodes"][1]["ms"]) == ("red", 12.5)
    assert again["outputs"][0]["rater"] == {"name": "Ada"}


def test_a_newer_minor_version_is_read_and_kept_whole():
    again = json.loads(read(spec(version="1.9", news={"a": 1})).to_json())
    assert again["news"] == {"a": 1}


@pytest.mark.parametrize(
    "ids", [("my-prompt", "out 1"), (0, 1), ("0", "1"), ("a-b", "a_b"), ("é", "class")]
)
def test_ids_are_the_writers_own(ids):
    """Whatever an id is, the form that is written, and the answer, use it."""
    form = spec(outputs=[{"id": ids[1], "feedback": "too high"}])
    form["nodes"][0]["id"], form["nodes"][1]["id"] = ids
    form["nodes"][1]["inputs"] = {"v": ids[0]}
    again = json.loads(read(form).to_json())
    assert [str(each["id"]) for each in again["nodes"]] == [*map(str, ids)]
    assert str(again["outputs"][0]["id"]) == str(ids[1])
    assert [*map(str, again["nodes"][1]["inputs"].values())] == [str(ids[0])]
    assert read(again).to_json() == read(form).to_json()


def nodes(*specs, **changes):
    return spec(nodes=[*specs], outputs=[{"id": "a"}], **changes)


A = {"id": "a", "value": 1}


@pytest.mark.parametrize(
    "form, place",
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("null", "not a trace graph"),
        ([], "not a trace graph"),
        (spec(nodes=None), "not a trace graph"),
        (spec(nodes={}), "not a trace graph"),
        (spec(format="pickle"), "not a trace graph: format 'pickle'"),
        (spec(version="banana"), "'banana'"),
        (spec(version="2.0"), "version 2.0 is newer than 1.0"),
        (spec(version=2), "version 2 is newer"),
        (nodes(7), r"nodes\[0\]"),
        (nodes({"value": 1}), r"nodes\[0\]: it must be an object with an id"),
        (nodes({"id": None}), r"nodes\[0\]"),
        (nodes(A, A), r"nodes\[1\]: the id 'a' is used twice"),
        (nodes({"id": 1}, {"id": "1"}), r"nodes\[1\]: the id '1' is used twice"),
        (nodes({**A, "inputs": {"x": "b"}}), r"nodes\[0\] \(a\): its input 'b' is no node"),
        (nodes({**A, "inputs": {"x": None}}), r"nodes\[0\] \(a\): its input"),
        (nodes({**A, "inputs": ["b"]}), r"nodes\[0\] \(a\): its inputs cannot be"),
        (nodes({**A, "inputs": {"x": "a"}}), "a cycle: a -> a"),
        (nodes({**A, "inputs": {"x": "b"}}, {"id": "b", "inputs": {"x": "a"}}), "a cycle: .* -> "),
        (
            nodes(A, {"id": "b", "trainable": True, "inputs": {"x": "a"}}),
            r"nodes\[1\] \(b\): a trainable",
        ),
        (nodes({**A, "trainable": True, "bounds": [5, 9]}), r"nodes\[0\] \(a\): .*between 5 and 9"),
        (nodes({**A, "trainable": True, "bounds": [5]}), r"nodes\[0\] \(a\): "),
        (nodes({**A, "trainable": True, "bounds": 5}), r"nodes\[0\] \(a\): "),
        (nodes({**A, "trainable": True, "choices": 5}), r"nodes\[0\] \(a\): "),
        (nodes({**A, "trainable": True, "choices": [2]}), r"nodes\[0\] \(a\): .*one of \[2\]"),
        (nodes({**A, "trainable": "maybe"}), r"nodes\[0\] \(a\): "),
        (nodes({**A, "description": 5}), r"nodes\[0\] \(a\): .*description"),
        (nodes({**A, "operator": 5}), r"nodes\[0\] \(a\): .*operator"),
        (nodes({"id": "a", "value": {"$bytes": "zz"}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$set": [[1]]}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$dict": [1]}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$float": "one"}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$float": {}}}), r"nodes\[0\] \(a\): "),
        (nodes(A, operators=[1]), "operators"),
        (nodes(A, operators={"f": 5}), "operators"),
        (spec(outputs=[{"id": "nobody"}]), r"outputs\[0\]"),
        (spec(outputs=["way"]), r"outputs\[0\]"),
        (spec(outputs={"id": "way"}), "outputs"),
        (spec(outputs=3), "outputs"),
        (spec(outputs=[{"id": "way", "feedback": {"$bytes": "zz"}}]), r"outputs\[0\]"),
        (spec(outputs=[{"id": "way", "score": "high"}]), r"outputs\[0\].*score"),
    ],
)
def test_what_is_refused_and_where(form, place):
    with pytest.raises(GraphError, match=place):
        read(form)


@pytest.mark.parametrize("depth", [500, 3_000, 100_000])
def test_deep_values_are_read_or_refused(depth):
    text = json.dumps(spec()).replace("100", "[" * depth + "]" * depth)
    try:
        read(text).to_json()
    except GraphError as error:
        assert "deep" in str(error) or "recursion" in str(error)


def test_the_words_about_a_long_cycle_are_short():
    size = 10_000
    cycle = [{"id": n, "inputs": {"x": (n + 1) % size}} for n in range(size)]
    with pytest.raises(GraphError, match="a cycle") as error:
        read(spec(nodes=cycle, outputs=[]))
    assert len(str(error.value)) < 1_000


# ---- what if


def test_rerun_recomputes_only_what_depends():
    ran = []

    @bundle()
    def double(x):
        ran.append(x)
        return 2 * x

    x, y = node(3, "x", trainable=True), node(4, "y", trainable=True)
    left, right = double(x), double(y)
    output = left + right
    ran.clear()
    assert output.rerun({x: 5}).data == 18 and ran == [5]
    assert output.rerun({left: 1}).data == 9 and ran == [5]
    assert output.rerun({x: 0, y: 1}).data == 2 and ran == [5, 0, 1]
    assert output.rerun({x: 1, left: 100}).data == 108  # the later one decides
    assert output.rerun({output: 7}).data == 7
    assert output.rerun({}).data == 14


def test_rerun_leaves_the_original_alone_and_makes_a_whole_graph():
    x, y = node(3, "x", trainable=True), node([1, 2], "y")
    middle = operators.list_extend(y, [x])
    output = middle[2] * x
    output.backward("once")
    before = [(each.data, each.parents) for each in (x, y, middle, output)]
    new = output.rerun({x: 5})
    assert [(each.data, each.parents) for each in (x, y, middle, output)] == before
    assert len(x.feedback) == 1 and new is not output and new.data == 25
    again = new.rerun({new.parents[1]: 6})
    assert again.data == 36
    backward_ = backward(new, "now")
    assert [e.data for e in backward_ if e.trainable] == [5] and x not in backward_


@pytest.mark.parametrize(
    "build, wanted",
    [
        (lambda x: x + 1, 11),
        (lambda x: 1 - x, -9),
        (lambda x: -x, -10),
        (lambda x: operators.make_list(1, x, x)[1:], [10, 10]),
        (lambda x: node([5, 6, 7])[x % 3], 6),
        (lambda x: node("{} {n}").format(1, n=x), "1 10"),
        (lambda x: operators.make_dict(a=x, b=2), {"a": 10, "b": 2}),
        (lambda x: operators.cond(x > 5, "big", "small"), "big"),
        (lambda x: operators.concat("a", x.call("bit_length").call("__str__")), "a4"),
        (lambda x: total([x, 1], more=x, extra=x), 31),
        (lambda x: total([[x][0], 1], 0, x, 2), 23),
        (lambda x: operators.make_tuple(*operators.make_list(x, 3)), (10, 3)),
        (lambda x: pick({"deep": [x, (x, {"er": x})]}), {"deep": [10, (10, {"er": 10})]}),
        (lambda x: round(x / 3, 2), 3.33),
    ],
)
def test_rerun_of_every_kind_of_call(build, wanted):
    x = node(3, "x", trainable=True)
    output = build(x)
    assert output.rerun({x: 10}).data == wanted
    assert output.rerun({x: 3}).data == output.data
    assert output.rerun({x: 10}).rerun({}).data == wanted


def test_effects_are_kept_unless_asked():
    ran = []

    @bundle(effects=True)
    def ask(question):
        ran.append(question)
        return question.upper()

    x = node("a", "x", trainable=True)
    output = ask(x + "!") + x
    ran.clear()
    assert output.rerun({x: "b"}).data == "A!b" and ran == []
    assert output.rerun({x: "b"}, effects=True).data == "B!b" and ran == ["b!"]
    assert ask(x).rerun({x: "b"}).data == "A"


def test_a_language_model_is_not_asked_again():
    asked = []

    def llm(messages, **options):
        asked.append(messages)
        return f"reply {len(asked)}"

    x = node("hello", "x", trainable=True)
    output = operators.call_llm(llm, x, "?") + "!"
    assert output.rerun({x: "bye"}).data == "reply 1!" and len(asked) == 1
    assert output.rerun({x: "bye"}, effects=True).data == "reply 2!" and len(asked) == 2


def test_rerun_of_trainable_code():
    @bundle(trainable=True)
    def step(x):
        return x + 1

    x = node(1, "x", trainable=True)
    output = step(step(x)) * 10
    code = "def step(x):\n    return x * 5"
    assert output.rerun({step.parameter: code}).data == 250
    assert output.rerun({step.parameter: code, x: 2}).data == 500
    assert "x + 1" in step.parameter.data and output.data == 30
    with pytest.raises(ValueError, match="__code"):
        output.rerun({step.parameter: "def step(x) return"})


def test_rerun_of_methods():
    @minitrace.model
    class Agent:
        def __init__(self, factor):
            self.factor = node(factor, "factor", trainable=True)

        @bundle(trainable=True)
        def scale(self, x, factor):
            return x * factor

        def forward(self, x):
            return self.scale(x, self.factor)

    agent, other = Agent(2), Agent(3)
    output = agent(10) + other(10)
    assert output.rerun({agent.factor: 7}).data == 100
    code = "def scale(self, x, factor):\n    return -x"
    assert output.rerun({agent.scale.parameter: code}).data == 20


def test_a_proposal_can_be_looked_at_first():
    x = node(3, "x", trainable=True, bounds=(0, 10))
    output = x * 2
    assert output.rerun({x: 10}).data == 20
    with pytest.raises(ValueError, match="between 0 and 10"):
        output.rerun({x: 11})


@bundle()
async def later(x):
    await asyncio.sleep(0)
    return x * 2


def test_rerun_of_an_async_bundle():
    x = node(3, "x", trainable=True)

    async def main(inside):
        output = await later(x) + 1
        return (output, output.rerun({x: 5})) if inside else (output, None)

    output, _ = asyncio.run(main(False))
    assert output.data == 7 and output.rerun({x: 5}).data == 11
    output, new = asyncio.run(main(True))  # also where a loop is running
    assert output.data == 7 and new.data == 11


def test_rerun_from_and_into_an_exception():
    @bundle()
    def half(x):
        return 1 / x

    x = node(0, "x", trainable=True)
    with pytest.raises(ExecutionError) as error:
        half(x)
    healed = error.value.exception_node.rerun({x: 2})
    assert type(healed) is MessageNode and healed.data == 0.5
    with pytest.raises(ExecutionError, match="ZeroDivisionError") as error:
        healed.rerun({healed.parents[0]: 0})
    assert error.value.exception_node.parents[0].data == 0


def test_rerun_with_errors_that_are_not_caught():
    half = bundle(catch_execution_error=False)(lambda x: 1 / x)
    x = node(1, "x", trainable=True)
    with pytest.raises(ZeroDivisionError):
        half(x).rerun({x: 0})


def test_rerun_of_nodes_from_outside():
    rate, x = node(2, "rate", trainable=True), node(10, "x", trainable=True)

    @bundle(allow_external_dependencies=True)
    def cost(x):
        return x * rate.data + (rate + 1).data

    output = cost(x)
    new = output.rerun({rate: 5})
    assert (output.data, new.data, rate.data) == (23, 56, 2)
    assert sorted(parent.data for parent in new.parents) == [5, 10]
    assert new.rerun({each: 1 for each in new.parents if each.data == 10}).data == 11
    assert output.rerun({x: 1}).data == 5


def test_rerun_takes_the_value_of_a_node():
    x, y = node(1, "x", trainable=True), node(5, "y")
    assert (x + 1).rerun({x: y}).data == 6


def test_rerun_names_what_has_no_part():
    x, stranger = node(1, "x", trainable=True), node(1, "stranger")
    with pytest.raises(GraphError, match=r"stranger:0.*has no part in add:0"):
        (x + 1).rerun({stranger: 2})
    with pytest.raises(GraphError, match="has no part"):
        (x + 1).rerun({"x": 2})


def test_rerun_needs_the_function():
    @bundle()
    def local(x):
        return x + 1

    x = node(1, "x", trainable=True)
    output = pickle.loads(pickle.dumps(local(x)))
    with pytest.raises(
        GraphError, match=r"function of .*local:\d+ .* is not known in this process"
    ):
        output.rerun({output.parents[0]: 2})


def test_rerun_of_a_copied_and_detached_graph():
    x = node(1, "x", trainable=True)
    output = x + 1
    assert copy.deepcopy(output).parents == ()
    with pytest.raises(GraphError):
        output.detach().rerun({x: 2})


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = node(1, "x", trainable=True)
        output = total([x, 2], x)
        output.backward("too low")
        output.rerun({x: 2})
        TraceGraph.from_json(x.feedback[0].to_json()).tree()


# ---- the bench


def test_the_bench_prints_a_table():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bench.py"), "operator", "--quick"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| x + y " in done.stdout and "<= 3 |" in done.stdout


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN"])
def test_numbers_that_json_does_not_have_are_refused_in_a_graph(value):
    with pytest.raises(
        GraphError, match=f"not JSON: {value} is no JSON: write it as a tagged float"
    ):
        TraceGraph.from_json('{"nodes": [{"id": "a", "value": %s}]}' % value)  # noqa: UP031


def test_a_score_too_large_for_a_float_is_refused_in_a_graph():
    form = {"nodes": [{"id": "a", "value": 1}], "outputs": [{"id": "a", "score": 10**400}]}
    with pytest.raises(GraphError, match=r"outputs\[0\] \(a\): int too large"):
        TraceGraph.from_json(json.dumps(form))
