"""Section 3, Backward: feedback on its way back, and the trace graph."""

import copy
import decimal
import fractions
import gc
import math
import pickle
import random
import threading
import time
import warnings
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import minitrace
from minitrace import (
    GRAPH,
    ExecutionError,
    GraphPropagator,
    OptoPrime,
    Propagator,
    Script,
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
    """Random nodes, parents first: roots of both kinds, diamonds, shared parents, dead ends."""
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
    """What reaches each node that depends on a parameter: the sum over paths, and what was said."""
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


def reached_first(outputs):
    """The place of the first output that each node had a part in, if it depends on a parameter."""
    first = {}
    for place, output in enumerate(outputs):
        stack = [output]
        while stack:
            each = stack.pop()
            if each not in first and depends(each):
                first[each] = place
                stack.extend(each.parents)
    return first


def check_graph(graph, outputs, reached):
    """In order, and exactly the nodes reached with the fixed inputs that feed them."""
    beside = {p for each in reached for p in each.parents if p not in reached}
    kinds = {each: "parameter" if each.trainable else "operator" for each in reached}
    kinds |= dict.fromkeys(beside, "input")
    assert {each: graph.kind(each) for each in graph if each in kinds} == kinds
    assert {*graph} - kinds.keys() <= {*outputs}  # outputs without a parameter may stay
    assert len(graph) == len([*graph]) == len({*graph}) == len({*graph.names.values()})
    seen = set()
    for each in graph:
        assert seen.issuperset(graph.parents(each))
        seen.add(each)
    first = reached_first(outputs)
    places = [first[each] for each in graph if each in reached]
    assert places == sorted(places)  # all of the first output, then what else the second needs ...
    for each in reached:
        assert graph.parents(each) == each.parents and graph.value(each) == each.data
    for each in beside:
        assert graph.parents(each) == ()
    assert {*graph.parameters} == {*graph.values} == {each for each in reached if each.trainable}


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
        born = {each: number for number, each in enumerate(nodes)}
        first = reached_first(outputs)
        for place in range(len(outputs)):  # and of one output in the order in which they were made
            made = [born[e] for e in graph if e in sums and e in born and first[e] == place]
            assert made == sorted(made), seed
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
    assert [each for each in graph if graph.parents(each)] == [shared, a, b]
    assert [(o.node, o.feedback, o.score) for o in graph.outputs] == [
        (a, "too low", 1),
        (b, "too high", 0),
    ]


def test_the_same_output_twice():
    x = node(1, "x", trainable=True)
    y = x + 1
    assert backward([y, y], [1, 2], SumPropagator())[x] == 3
    assert backward([y, y], ["low", "low"], SumPropagator())[x] == "low"
    graph = backward([y, y], ["low", "high"])[x]
    assert graph.feedback == ["low", "high"] and len(graph) == 3


def test_feedback_on_a_parameter_itself():
    x = node(1, "x", trainable=True)
    x.backward("change it")
    (graph,) = x.feedback
    assert [(graph.kind(each), graph.value(each)) for each in graph] == [("parameter", 1)]
    assert graph.parameters[0] is x and graph.feedback == ["change it"]
    assert backward([x, x + 1], [1, 2], SumPropagator())[x] == 3


def test_an_output_without_a_parameter_beside_one_with():
    x, fixed = node(1, "x", trainable=True), node(2) + 3
    graph = backward([fixed, x + 1], ["why?", "too low"])[x]
    assert graph.feedback == ["why?", "too low"] and graph.names.keys() >= {fixed, x}
    tree = graph.tree(ascii=True)
    assert "add0 = 5  <- why?" in tree and "`- int" in tree and "x0 = 1  [parameter]" in tree


def test_two_backwards_add_up_on_the_parameter_and_leave_the_graph_alone():
    x = node(1, "x", trainable=True)
    shared = x + 1
    a, b = shared * 2, shared * 3
    for output, words in [(a, "low"), (b, "high"), (a, "low")]:
        assert output.backward(words) is None
    assert [graph.feedback for graph in x.feedback] == [["low"], ["high"], ["low"]]
    assert [len(graph) for graph in x.feedback] == [5, 5, 5]
    assert shared.feedback == a.feedback == []
    shared.feedback.append("a note of one's own")
    assert a.feedback == []
    x.zero_feedback()
    assert x.feedback == []


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


def test_no_parameter_is_reached():
    with pytest.warns(UserWarning) as caught:
        assert backward(node(1) + 2, "too low") == {}
    assert "backward from add:0 reaches no parameter" in str(caught[0].message)
    assert all(word in str(caught[0].message) for word in ["==", "bool", "int()", "f-string"])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="reaches no parameter") as caught:
        (node(1) + 2).backward("too low")
    assert caught[0].filename == __file__


def test_words_and_numbers_do_not_add_up():
    x = node(1, "x", trainable=True)
    with pytest.raises(TypeError, match=r"words and in numbers does not add up: \['low', 1\]"):
        backward([x + 1, x + 2], ["low", 1], SumPropagator())


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


# ---- what goes in


def test_several_feedbacks_may_come_as_a_tuple():
    x = node(1, "x", trainable=True)
    outputs = x + 1, x + 2
    found = backward(outputs, ("low", "high"), SumPropagator())
    assert [found[each] for each in outputs] == ["low", "high"]


def test_scores_may_come_as_a_tuple():
    x = node(1, "x", trainable=True)
    assert backward([x + 1, x + 2], "low", score=(1, 0))[x].score == 0.5


def test_feedback_left_out_is_an_empty_text():
    x = node(1, "x", trainable=True)
    assert backward(x + 1)[x].feedback == [""]


def test_one_feedback_arrives_as_it_was_said():
    class Words(str):
        """A text with something to it."""

    x, words = node(1, "x", trainable=True), Words("low")
    assert backward(x + 1, words, SumPropagator())[x] is words
    assert backward([x + 1, x + 2], [None, words], SumPropagator())[x] is words


def test_a_rule_may_give_a_tuple():
    rules = SumPropagator()
    rules.register("add", lambda node, feedback: (feedback, 0))
    x = node(1, "x", trainable=True)
    assert backward(x + 1, 5, rules)[x] == 5


def test_what_a_wrong_rule_gave_is_shown_up_to_eighty_characters():
    x = node(1, "x", trainable=True)
    for size, shown in (78, repr("a" * 78)), (79, "(81 characters)"):
        rules = SumPropagator()
        rules.register("add", lambda node, feedback, size=size: "a" * size)
        with pytest.raises(ValueError) as caught:
            backward(x + 1, "low", rules)
        assert shown in str(caught.value)


def test_a_score_that_is_no_number_is_refused():
    x = node(1, "x", trainable=True)
    with pytest.raises(TypeError, match="a score is a number, not 'high'"):
        backward(x + 1, "low", score="high")
    with pytest.raises(TypeError, match="a score is a number, not 'high'"):
        backward([x + 1, x + 2], "low", score=[0.5, "high"])


def test_a_value_is_no_output():
    with pytest.raises(TypeError, match=r"starts from a node, not 3: was it read with \.data"):
        backward(3, "low")


def test_a_start_that_forgets_an_output_is_an_error():
    class Forgetful(SumPropagator):
        def start(self, outputs):
            return ["for the first alone"]

    x = node(1, "x", trainable=True)
    with pytest.raises(ValueError, match="shorter"):
        backward([x + 1, x + 2], "low", Forgetful())


def test_a_propagator_with_a_call_of_its_own_still_owes_every_parent_something():
    class Careless(SumPropagator):
        def __call__(self, node, feedback):
            return [feedback]  # and nothing for the other

    x = node(1, "x", trainable=True)
    with pytest.raises(ValueError, match="shorter"):
        backward(x + 1, "low", Careless())


def test_the_warning_names_every_output():
    with pytest.warns(UserWarning, match="backward from add:0, add:1 reaches no parameter"):
        backward([node(1) + 2, node(1) + 3], "low")


def test_without_a_score_there_is_none():
    x = node(1, "x", trainable=True)
    graph = backward(x + 1, "low")[x]
    assert graph.score is None and graph.outputs[0].score is None


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
    assert output.level == 100_000
    gone = weakref.ref(output)
    gc.disable()
    try:
        x.zero_feedback()
        del output
        assert gone() is None
    finally:
        gc.enable()


def test_nothing_is_left_behind():
    """Neither the graph nor what backward made of it waits for the garbage collector."""
    x = node(1, "x", trainable=True)
    gc.disable()
    try:
        output = x + 1
        gone = weakref.ref(output)
        output.backward("too low")
        del output
        assert gone() is not None  # the feedback is the nodes themselves ...
        x.zero_feedback()
        assert gone() is None  # ... and goes with them
        before = len(gc.get_objects())
        for _ in range(100):
            (x * 2 + 1).backward("too low")
            graph = x.feedback[0]
            graph.children(x), graph.tree(), [*graph]
            del graph
            x.zero_feedback()
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


# ---- the trace graph


def test_a_graph_is_the_nodes_themselves():
    x, two = node(3, "x", trainable=True), node(2, "two")
    y = x * two
    graph = backward(y, "too small")[x]
    assert [each is known for each, known in zip(graph, (x, two, y), strict=True)] == [True] * 3
    assert [graph.kind(each) for each in graph] == ["parameter", "input", "operator"]
    assert graph.parents(y) == (x, two) and graph.children(x) == graph.children(two) == [y]
    assert graph.parents(two) == graph.parents(x) == () and graph.children(y) == []
    assert graph.names == {x: "x0", two: "two0", y: "multiply0"}
    assert repr(graph) == "<TraceGraph of 3 nodes, 1 outputs: 'too small'>"


def test_what_only_feeds_the_graph_from_the_side_has_no_parents_in_it():
    x, fixed = node(1, "x", trainable=True), node(2) * 3
    graph = backward(x + fixed, "low")[x]
    assert len(graph) == 3 and graph.kind(fixed) == "input"
    assert graph.parents(fixed) == () and len(fixed.parents) == 2


def test_a_node_from_elsewhere_has_no_part_in_a_graph():
    x, stranger = node(1, "x", trainable=True), node(2) + 3
    graph = backward(x + 1, "low")[x]
    assert graph.parents(stranger) == () and graph.children(stranger) == []
    assert stranger not in graph.names


def test_values_stay_as_they_were_at_backward():
    x = node(1, "x", trainable=True)
    y = x + 1
    y.backward("too low")
    x.set(5)
    (graph,) = x.feedback
    assert [graph.value(each) for each in graph] == [1, 1, 2]
    assert graph.values == {x: 1} and graph.value(y) == y.data == 2


@pytest.mark.parametrize("seed", range(40))
def test_children_equal_brute_force(seed):
    nodes, outputs, said = some_graph(seed)
    found = backward(outputs, said)
    graph = next(iter(found.values()))
    order = [*graph]
    for each in nodes:
        wanted = [c for c in order if c in found and any(p is each for p in c.parents)]
        assert graph.children(each) == wanted


def test_merged_graphs():
    x = node(1, "x", trainable=True)
    shared = x + 1
    low, high = shared * 2, shared * 3
    a, b = backward(low, "low")[x], backward(high, "high")[x]
    whole = TraceGraph.merged([a, b])
    assert whole.feedback == ["low", "high"] and (len(a), len(b), len(whole)) == (5, 5, 7)
    assert [each for each in whole if whole.parents(each)] == [shared, low, high]
    assert (len(a), a.feedback) == (5, ["low"])  # what was merged is as it was
    assert len(TraceGraph.merged([])) == 0


def test_merging_a_graph_with_itself_repeats_nothing():
    x = node(1, "x", trainable=True)
    graph = backward(x + 1, "low", score=1.0)[x]
    whole = TraceGraph.merged([graph, graph])
    assert whole.feedback == ["low"] and [*whole] == [*graph] and len(whole.outputs) == 1


def test_graphs_made_one_by_one_merge_to_the_graph_made_at_once():
    x, y = node(1, "x", trainable=True), node(2, "y", trainable=True)
    shared = x * y
    outputs = [shared + 1, y - shared, x + y]
    whole = backward(outputs, "hm")[x]
    parts = [next(iter(backward(output, "hm").values())) for output in outputs]
    assert [*TraceGraph.merged(parts)] == [*whole]


def test_names_are_distinct():
    graphs = []
    for base in "x1", "x":  # x1:0 and x:10 are both written x10
        ps = [node(n, base, trainable=True) for n in range(11)]
        graphs.append(backward(operators.make_list(*ps), "")[ps[0]])
    minitrace.GRAPH.clear()
    x = node(0, "x", trainable=True)
    graphs.append(backward(x + 1, "")[x])
    whole = TraceGraph.merged(graphs)
    assert len(set(whole.names.values())) == len(whole.names) == len(whole)


def test_names_do_not_depend_on_what_ran_before():
    def build():
        x = node(1, "x", trainable=True)
        graph = backward(total([x, 2], node(3) * x), "")[x]
        return " ".join(graph.names[each] for each in graph)

    first = build()
    for _ in range(3):
        node(0) + total([1]) * 2
    assert build() == first.replace("x0", "x1")


def test_the_order_is_the_same_however_the_outputs_were_made_side_by_side():
    """Examples in threads that take turns, or in reverse: the graph is that of one by one."""

    def forward(n, x, y, turn):
        first = x * n
        turn(n)
        second = total([first, y], more=n)
        turn(n)
        return second - first

    def shown(outputs, x):
        graph = backward(outputs, [f"said of {n}" for n in range(len(outputs))])[x]
        return [(graph.names[e], graph.kind(e), graph.value(e), [graph.names[p] for p in
                graph.parents(e)]) for e in graph], graph.feedback  # fmt: skip

    def start():
        minitrace.GRAPH.clear()
        return node(2, "x", trainable=True), node(3, "y", trainable=True)

    def in_turn(n):
        pass

    x, y = start()
    wanted = shown([forward(n, x, y, in_turn) for n in range(8)], x)
    x, y = start()
    made = [forward(n, x, y, in_turn) for n in reversed(range(8))]
    assert shown(made[::-1], x) == wanted
    for seed in range(5):
        x, y = start()
        together, dice = threading.Barrier(8, timeout=10), random.Random(seed)
        pauses = [dice.random() / 100 for _ in range(8)]

        def turn(n, together=together, pauses=pauses):
            together.wait()
            time.sleep(pauses[n])

        with ThreadPoolExecutor(8) as pool:
            made = [*pool.map(lambda n: forward(n, x, y, turn), range(8))]  # noqa: B023
        assert shown(made, x) == wanted


def kinds(graph):
    return {graph.names[each]: graph.kind(each) for each in graph}


def test_the_whole_graph_above_a_node_says_what_each_node_is():
    x = node(2, "x", trainable=True)
    fixed = node(3, "c") * 4
    assert kinds(TraceGraph.of(fixed + x)) == {
        "x0": "parameter",
        "c0": "input",
        "int0": "input",
        "multiply0": "operator",
        "add0": "operator",
    }
    assert TraceGraph.of(x).feedback == [None]


def test_what_was_computed_from_nothing_is_an_input():
    @bundle("[dice] Four.")
    def dice():
        return 4

    assert kinds(TraceGraph.of(dice())) == {"dice0": "input"}


def test_a_failure_is_an_exception_in_the_graph():
    x = node(0, "x", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        1 / x
    graph = backward(caught.value.exception_node, "mend it")[x]
    assert [graph.kind(each) for each in graph] == ["parameter", "input", "exception"]


def test_a_node_brings_its_parents_as_inputs_until_they_are_added_too():
    x = node(1, "x", trainable=True)
    graph = TraceGraph()
    graph.add((x + 1) * 2)
    assert kinds(graph) == {"add0": "input", "int0": "input", "multiply0": "operator"}


@pytest.mark.parametrize("read", [["names"], ["children"], ["names", "children"]])
def test_a_graph_that_grows_derives_its_names_and_children_anew(read):
    x = node(1, "x", trainable=True)
    graph = TraceGraph.of(x)
    if "names" in read:
        assert [*graph.names.values()] == ["x0"]
    if "children" in read:
        assert graph.children(x) == []
    graph.add(x + 1)
    assert [graph.names[each] for each in graph] == ["x0", "int0", "add0"]
    assert [each.op_name for each in graph.children(x)] == ["add"]


def test_a_parameter_keeps_its_own_name_in_a_graph_without_its_namesakes():
    node(1, "x", trainable=True), node(2, "x", trainable=True)
    third = node(3, "x", trainable=True)
    graph = backward(third + 1, "low")[third]
    assert graph.names[third] == third.py_name == "x2"


def test_a_parameter_keeps_its_name_though_an_older_input_has_it():
    older = node(1, "x")
    minitrace.GRAPH.clear()
    x = node(2, "x", trainable=True)
    graph = backward(older + x, "low")[x]
    assert (graph.names[x], graph.names[older], x.py_name) == ("x0", "x1", "x0")


def test_a_name_given_to_a_node_is_made_an_identifier():
    x = node(1, "x", trainable=True)
    graph = backward(node("a", "my words!") * x, "low")[x]
    assert [*graph.names.values()] == ["x0", "my_words_0", "multiply0"]


# ---- Scores, and graphs merged from elsewhere


def test_a_score_is_whatever_float_takes_and_nan_is_none():
    x = node(1, "x", trainable=True)
    for score in decimal.Decimal("0.5"), fractions.Fraction(1, 2), "0.5", True:
        assert backward(x + 1, "", score=score)[x].score == float(score)
    with pytest.warns(UserWarning, match="a score of nan is ignored"):
        graph = backward(x + 1, "", score=math.nan)[x]
    assert graph.score is None and TraceGraph.from_json(graph.to_json()).score is None


def test_a_whole_graph_and_one_of_feedback_merge_with_parents_first():
    x, a, b = node(2, "x", trainable=True), node(1, "a"), node(2, "b")
    z = x * (a + b)
    whole = TraceGraph.merged([backward(z, "low")[x], TraceGraph.of(z)])
    assert [*whole.names.values()] == ["x0", "a0", "b0", "add0", "multiply0"]
    assert len(TraceGraph.from_json(whole.to_json())) == 5


# ---- Feedback belongs to the values that ran


def stale(x, act):
    """What warns when an output that `act` made of x meets feedback after x changed."""
    with pytest.warns(UserWarning, match="used an older value of x:0; run the") as caught:
        act()
    assert caught[0].filename == __file__


def test_an_output_of_an_older_value_is_noticed():
    GRAPH.clear()
    x = node(1, name="x", trainable=True)
    out = x * 10
    x.set(7)
    stale(x, lambda: out.backward("just right"))
    stale(x, lambda: backward(out, "just right", score=1.0))
    stale(x, lambda: (out + 1).backward("made later, of what was made before"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (x * 10).backward("just right")
        x.backward("the value itself")


def test_an_output_from_before_an_undo_or_a_restored_value_is_noticed():
    GRAPH.clear()
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=Script(['{"suggestion": {"x0": 5}}']))
    optimizer.backward(x + 1, "too low")
    optimizer.step()
    out = x + 1
    optimizer.undo()
    stale(x, lambda: optimizer.backward(out, "fine"))


def test_setting_the_same_value_changes_nothing():
    x = node("same", name="x", trainable=True)
    out = x + "!"
    x.set(x.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out.backward("fine")


def test_rules_that_read_a_changed_value_are_warned_of():
    GRAPH.clear()
    gradients = SumPropagator()
    gradients.register("multiply", lambda n, g: [g * p.data for p in reversed(n.parents)])
    x = node(3.0, name="x", trainable=True)
    out = x * node(4.0)
    x.set(5.0)
    stale(x, lambda: out.backward(1.0, gradients))


def test_copies_pickles_and_json_are_no_older_values():
    x = node(3, name="x", trainable=True)
    x.set(4)
    out = x + 1
    graph = TraceGraph.from_json(TraceGraph.of(out).to_json())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(out)).backward("fine")
        (copy.deepcopy(x) + 1).backward("fine")
        [each for each in graph][-1].backward("fine")
        out.rerun({x: 9}).backward("fine")


def test_a_value_that_came_back_before_backward_is_not_older():
    x = node([1], name="x", trainable=True)
    out = operators.identity(x)
    x.set([7])
    x.set([1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out.backward("fine")


def test_infinite_scores_can_be_written_and_have_no_mean():
    x = node(1, name="x", trainable=True)
    x.backward("worst", score=float("-inf"))
    assert "score" not in TraceGraph.from_json(x.feedback[0].to_json()).outputs[0].extra
    x.zero_feedback()
    optimizer = OptoPrime([x], llm=Script([]))
    optimizer.backward([x + 1, x + 2], "hm", score=[float("inf"), float("-inf")])
    assert optimizer.graph().score is None
