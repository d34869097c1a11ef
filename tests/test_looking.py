"""Section 7, Looking: a graph as a text tree, what would be if, and graphs and values as JSON."""

import asyncio
import builtins
import copy
import datetime
import io
import itertools
import json
import math
import pickle
import random
import re
import sys
import warnings
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

import pytest
from graphs import chain, diamond, each_graph

import minitrace
from minitrace import (
    ExecutionError,
    GraphError,
    MessageNode,
    OptoPrime,
    StubLLM,
    TraceGraph,
    TraceMissingInputsError,
    backward,
    bundle,
    decode,
    encode,
    node,
    operators,
    to_text,
)


@bundle()
def total(numbers, more=0, *rest, **named):
    """The sum of all that it gets."""
    return sum(numbers) + more + sum(rest) + sum(named.values())


def sums(size, parameters):
    """A chain of additions that uses so many parameters by turns, and its end."""
    ps = [node(1, "p", trainable=True) for _ in range(parameters)]
    each = ps[0]
    for n in range(size):
        each = each + ps[n % parameters]
    return ps, each


# ---- the tree


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
    assert max(map(len, tree.split("\n"))) <= 90
    assert all(c.isprintable() or c in "\n\u200d" for c in tree)
    assert tree.isascii() or not ascii


def test_a_deep_tree_goes_on_at_the_left_and_leaves_out_nothing():
    tree = chain(1_000).tree(ascii=True, lines=10_000)
    starts = [line.split(" ")[0] for line in tree.splitlines() if line[0] not in "|` "]
    assert starts[0] == "add999" and len(starts) > 20
    assert all(f"{name} (see below)" in tree for name in starts[1:])
    assert len(re.findall(r"^[|` -]*add\d+ = ", tree, re.M)) == 1_000 and "more nodes" not in tree


@pytest.mark.parametrize("size", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_tree_of_a_long_chain_without_recursion(size):
    graph = chain(size)
    assert graph.tree(lines=10**9).count("\n") > 2 * size


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_tree_is_plain_text_on_a_terminal_too(monkeypatch):
    tree = diamond().tree(ascii=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal())
        print(tree)
        printed = sys.stdout.getvalue()
    assert printed == tree + "\n" and "\x1b" not in tree and json.loads(json.dumps(tree)) == tree
    assert "x0 = 3  [parameter]\n" in tree and "  <- too small (score: 0.25)\n" in tree


@pytest.mark.parametrize("encoding, ascii", [("utf-8", False), ("ascii", True), ("latin-1", True)])
def test_a_tree_is_in_ascii_where_the_output_is_not_unicode(encoding, ascii, monkeypatch):
    graph = diamond()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        tree = graph.tree()
    assert tree == graph.tree(ascii=ascii)


def test_a_node_draws_the_graph_above_it():
    x = node(3, "x")
    assert (x + 1).tree(ascii=True) == "add0 = 4\n|- x0 = 3\n`- int0 = 1"


def test_a_graph_without_outputs_is_drawn_from_what_nothing_was_made_of():
    form = {"nodes": [{"id": "a", "value": 1}, {"id": "b", "value": 2, "inputs": {"x": "a"}}]}
    graph = TraceGraph.from_json(json.dumps(form))
    assert graph.tree(ascii=True) == "b = 2\n`- a = 1"


# ---- values as text


@dataclass(frozen=True)
class Tagged:
    tags: frozenset
    hidden: object = field(default=None, repr=False, compare=False)


@dataclass(eq=False)
class Friend:
    known: set


class Tags(set):
    pass


LETTERS = "abcdefghij"
SHOWN = "{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j'}"


@pytest.mark.parametrize(
    "value, shown",
    [
        (Tagged(frozenset(LETTERS)), f"Tagged(tags=frozenset({SHOWN}))"),
        ([{"k": Tagged({frozenset(LETTERS)})}], f"[{{'k': Tagged(tags={{frozenset({SHOWN})}})}}]"),
        (Tags(LETTERS), f"Tags({SHOWN})"),
        (deque([set(LETTERS)]), f"deque([{SHOWN}])"),
        (defaultdict(list, k=set(LETTERS)), f"defaultdict(<class 'list'>, {{'k': {SHOWN}}})"),
        (Counter([frozenset(LETTERS)]), f"Counter({{frozenset({SHOWN}): 1}})"),
    ],
    ids=lambda each: "" if isinstance(each, str) else type(each).__name__,
)
def test_sets_are_in_order_in_data_classes_and_in_any_container(value, shown):
    assert to_text(value) == shown


def test_a_value_that_holds_itself_through_a_set_is_shown():
    friend = Friend(set())
    friend.known.add(friend)
    assert to_text(friend) == "Friend(known={...})"


def test_what_a_failure_says_holds_no_address():
    with pytest.raises(ExecutionError) as error:
        node({})[Thing()]
    assert re.fullmatch(r"\(KeyError\) <.*Thing object>", error.value.exception_node.data)


# ---- what if


@bundle("[pick] One of several.")
def pick(*values, **named):
    return [*values, *named.values()][0]


@pytest.mark.parametrize("changed", [1, 1_000])
def test_rerun_is_linear(changed):
    """10 times the nodes take 10 times as many calls of functions, not 100 times."""

    def calls(size):
        parameters, output = sums(size, max(1, changed * size // 5_000))
        changes, count = dict.fromkeys(parameters, 2), itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            again = output.rerun(changes)
        finally:
            sys.setprofile(None)
        assert again.data == 2 * size + 2
        return next(count)

    assert calls(5_000) < 12 * calls(500)


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
    with pytest.raises(ValueError, match="parameter step_code"):
        output.rerun({step.parameter: "def step(x) return"})


def test_rerun_of_code_that_calls_itself():
    @bundle(trainable=True)
    def kinds(n):
        return [type(n).__name__] + ([] if n < 2 else [type(kinds(n - 1)).__name__])

    class Agent(minitrace.Module):
        @bundle(trainable=True)
        def kinds(self, n):
            return [type(n).__name__] + ([] if n < 2 else [type(self.kinds(n - 1)).__name__])

    @bundle(trainable=True)
    def alone():
        return "alone" if 1 else alone()

    n = node(1, "n", trainable=True)
    for call in kinds, Agent().kinds:
        again = call(n).rerun({n: 3})
        assert again.data == ["int", "list"] and again.rerun({again.inputs["n"]: 1}).data == ["int"]
        assert len(again.inputs) == len(call(n).inputs)
    code = alone.parameter
    assert alone().rerun({code: code.data.replace("1", "2")}).data == "alone"


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


def test_a_body_that_reruns_what_was_made_outside_uses_it():
    x = node(2, "x", trainable=True)
    doubled = x * 2

    def tries(many):
        return [doubled.rerun({x: n}).data for n in range(many)]

    with pytest.raises(TraceMissingInputsError, match="used multiply:"):
        bundle()(tries)(3)
    tried = bundle(allow_external_dependencies=True)(tries)(3)
    assert tried.data == [0, 2, 4] and tried.parents[1:] == (doubled,)
    assert tried.rerun({x: 5}).data == [0, 2, 4]

    @bundle()
    def own(y):
        inner = node(y)
        return (inner + 1).rerun({inner: 5}).data

    assert own(x).data == 6


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


# ---- values as JSON


def anything(random, depth=0):
    """Some value that can be encoded."""
    scalars = [
        lambda: random.choice([None, True, False, math.inf, -math.inf, 0.1, -0.0, 1e300]),
        lambda: random.randint(-(2**70), 2**70),
        lambda: "".join(
            chr(random.choice([10, 34, 36, 92, 97, 233, 0xD800, 0x1F600])) for _ in range(4)
        ),
        lambda: random.randbytes(3),
        lambda: 7 ** random.randint(1, 9_000),
    ]

    def hashable():
        return random.choice(scalars)()

    size = random.randint(0, 3)
    kinds = [
        lambda: [anything(random, depth + 1) for _ in range(size)],
        lambda: tuple(anything(random, depth + 1) for _ in range(size)),
        lambda: {hashable() for _ in range(size)},
        lambda: frozenset((hashable(), hashable()) for _ in range(size)),
        lambda: {hashable(): anything(random, depth + 1) for _ in range(size)},
        lambda: {random.choice("ab$"): anything(random, depth + 1) for _ in range(size)},
        lambda: {"$" + random.choice(["tuple", "x", "dict"]): anything(random, depth + 1)},
    ]
    return random.choice(kinds if depth < 4 and random.random() < 0.7 else scalars)()


def same(a, b):
    if type(a) is not type(b):
        return False
    if type(a) is dict:
        return same(list(a.items()), list(b.items()))
    return (
        len(a) == len(b) and all(map(same, a, b))
        if type(a) in (list, tuple)
        else a == b and (type(a) is not float or math.copysign(1, a) == math.copysign(1, b))
    )


@pytest.mark.parametrize("seed", range(20))
def test_encoding_gives_back_what_it_was_given(seed):
    generator = random.Random(seed)
    for _ in range(100):
        value = anything(generator)
        text = json.dumps(encode(value), allow_nan=False)
        assert same(decode(json.loads(text)), value)
        assert json.dumps(encode(decode(json.loads(text))), allow_nan=False) == text


def test_encoding_is_plain_where_json_is():
    value = {"a": [1, 2.5, None, True, "x"], "b": {}}
    assert encode(value) == value
    assert math.isnan(decode(encode(math.nan)))
    assert encode({"$x": 1}) == {"$dict": [["$x", 1]]}


def test_a_frozendict_is_written_as_one_and_read_by_older_pythons_as_a_dict():
    kind = getattr(builtins, "frozendict", dict)
    tree = {"$frozendict": [["a", {"$tuple": [1, 2]}]]}
    again = decode(tree)
    assert type(again) is kind and again == {"a": (1, 2)}
    assert kind is dict or encode(again) == tree


def test_values_that_hold_each_other_are_texts_or_refused_at_once():
    ring = [{} for _ in range(40)]
    for number, each in enumerate(ring):
        each["before"], each["next"] = ring[number - 1], ring[(number + 1) % 40]
    assert "$text" in json.dumps(encode(ring[0], as_text=True))
    assert "$text" in TraceGraph.of(node(ring[0])).to_json()
    with pytest.raises(TypeError, match="inside itself, or nested more than 100 levels deep"):
        encode(ring[0])


def test_encoding_names_what_it_refuses():
    nested = []
    for _ in range(200):
        nested = [nested]
    for value, words in [
        (
            {"x": [1, print]},
            r"value\['x'\]\[1\]: a builtin_function_or_method cannot be written as JSON",
        ),
        ({(1, object()): 1}, r"a object cannot be written as JSON"),
        (type("Text", (str,), {})("x"), "value: a Text cannot"),
        (nested, "nested more than 100 levels deep"),
    ]:
        with pytest.raises(TypeError, match=words):
            encode(value)


@pytest.mark.parametrize(
    "tree",
    [
        {"$what": 1},
        {"$tuple": 1},
        {"$dict": [[1]]},
        {"$dict": 3},
        {"$set": [[]]},
        {"$bytes": "x"},
        {"$float": []},
    ],
)
def test_decoding_refuses_what_encoding_never_writes(tree):
    with pytest.raises((ValueError, TypeError)):
        decode(tree)


# ---- graphs as JSON


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


def alike(a, b):
    return type(a) is type(b) and repr(a) == repr(b)


@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v).encode("ascii", "replace").decode())
def test_a_value_round_trips(value):
    graph = one(value)
    text = graph.to_json()
    json.loads(text, parse_constant=pytest.fail)  # strict: no NaN, no Infinity
    again = TraceGraph.from_json(text)
    assert again.to_json() == text
    assert alike([*again][-1].data, value) and alike(again.feedback[0], value)
    assert json.loads(text)["nodes"][-1]["type"] == type(value).__name__


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


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_random_graphs_round_trip(start):
    for seed in range(start, start + 50):
        graph = dressed_graph(seed)
        text = graph.to_json()
        again = TraceGraph.from_json(text)
        assert again.to_json() == text, seed
        assert again.tree() == graph.tree(), seed
        for a, b in zip(graph, again, strict=True):
            assert (graph.kind(a), graph.names[a]) == (again.kind(b), again.names[b]), seed
            assert a.description == b.description, seed
            if graph.parents(a):
                assert (a.op_name, [*a.inputs]) == (b.op_name, [*b.inputs]), seed
                below = [graph.names[parent] for parent in a.parents]
                assert below == [again.names[parent] for parent in b.parents], seed
        for a, b in zip(graph.parameters, again.parameters, strict=True):
            for check in "data", "choices", "bounds", "constraint", "description":
                assert getattr(a, check) == getattr(b, check), seed
        assert again.score == graph.score


def test_a_graph_read_from_json_keeps_the_order_of_the_program():
    x = node(1, "x", trainable=True)
    graph = backward((x + 1) * 2 - x * 3, "too low")[x]
    again = TraceGraph.from_json(graph.to_json())
    assert [again.names[each] for each in again] == [graph.names[each] for each in graph]


def test_two_operators_of_one_name_keep_their_own_words():
    f = bundle("[f] Add one.")(lambda x: x + 1)
    g = bundle("[f]")(lambda x: x + 2)
    h = bundle("[f] Add three.")(lambda x: x + 3)
    x = node(1, "x", trainable=True)
    again = TraceGraph.from_json(backward(h(g(f(x))), "")[x].to_json())
    assert [each.description for each in again if again.parents(each)] == [
        "Add one.",
        "",
        "Add three.",
    ]


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


def test_parents_come_before_their_children():
    form = spec()
    form["nodes"].reverse()
    with pytest.raises(
        GraphError, match=r"nodes\[0\] \(way\): its input 'speed' is no node before it"
    ):
        read(form)


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
        (spec(format="pickle"), "not a trace graph: pickle, version 1.0 is not read here"),
        (spec(version="banana"), "version banana is not read here"),
        (spec(version="2.0"), "version 2.0 is not read here; a newer minitrace.py may read it"),
        (spec(version=2), "version 2 is not read here"),
        (spec(version="10"), "version 10 is not read here"),
        (nodes(7), r"nodes\[0\]"),
        (nodes({"value": 1}), r"nodes\[0\]: it must be an object with"),
        (nodes({"id": None}), r"nodes\[0\]"),
        (nodes(A, A), r"nodes\[1\].*the id.* is used twice"),
        (nodes({"id": 1}, {"id": "1"}), r"nodes\[1\].*the id.* is used twice"),
        (nodes({**A, "inputs": {"x": "b"}}), r"nodes\[0\] \(a\): its input 'b' is no node"),
        (nodes({**A, "inputs": {"x": None}}), r"nodes\[0\] \(a\): its input"),
        (nodes({**A, "inputs": ["b"]}), r"nodes\[0\].*: its inputs cannot be"),
        (
            nodes({**A, "inputs": {"x": "a"}}),
            r"nodes\[0\] \(a\): its input 'a' is no node before it",
        ),
        (
            nodes({**A, "inputs": {"x": "b"}}, {"id": "b", "inputs": {"x": "a"}}),
            r"nodes\[0\] \(a\): its input 'b' is no node before it",
        ),
        (
            nodes(A, {"id": "b", "trainable": True, "inputs": {"x": "a"}}),
            r"nodes\[1\] \(b\): a trainable",
        ),
        (nodes({**A, "trainable": True, "bounds": [5, 9]}), r"nodes\[0\] \(a\): .*between 5 and 9"),
        (nodes({**A, "trainable": True, "bounds": [5]}), r"nodes\[0\] \(a\): "),
        (nodes({**A, "trainable": True, "bounds": 5}), r"nodes\[0\].*bounds"),
        (nodes({**A, "trainable": True, "choices": 5}), r"nodes\[0\].*choices"),
        (nodes({**A, "trainable": True, "choices": [2]}), r"nodes\[0\] \(a\): .*one of \[2\]"),
        (nodes({**A, "trainable": "maybe"}), r"nodes\[0\].*trainable"),
        (nodes({**A, "description": 5}), r"nodes\[0\].*description"),
        (nodes({**A, "operator": 5}), r"nodes\[0\].*operator"),
        (nodes({"id": "a", "value": {"$bytes": "zz"}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$set": [[1]]}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$dict": [1]}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$float": "one"}}), r"nodes\[0\] \(a\): "),
        (nodes({"id": "a", "value": {"$float": {}}}), r"nodes\[0\] \(a\): "),
        (nodes(A, operators=[1]), "operators"),
        (nodes(A, operators={"f": 5}), "operators"),
        (spec(outputs=[{"id": "nobody"}]), r"outputs\[0\] .*: its id 'nobody' is no node"),
        (spec(outputs=[{"id": "way", "feedback": {"$tuple": [], "x": 1}}]), "is no tag"),
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


def test_null_is_as_good_as_left_out_everywhere():
    empty = dict.fromkeys(["name", "kind", "operator", "inputs", "type", "value", "trainable"])
    form = {**dict.fromkeys(["format", "version", "operators"]), "nodes": [{"id": "a", **empty}]}
    form["outputs"] = [{"id": "a", "feedback": None, "score": None}]
    graph = read({**form, "nodes": [*form["nodes"], {"id": "p", "kind": "parameter", **empty}]})
    assert graph.parameters == [] and graph.feedback == [None]
    assert json.loads(read(form).to_json())["operators"] == {} and read({**form, "outputs": None})


def test_bounds_of_values_that_json_has_only_the_text_of_are_left_out():
    day = datetime.date(2024, 2, 1)
    x = node(day, "x", True, bounds=(datetime.date(2024, 1, 1), datetime.date(2024, 12, 31)))
    (again,) = read(backward(x.call("isoformat"), "late")[x].to_json()).parameters
    assert again.bounds is None and "2024, 2, 1" in again.data


def test_two_readings_of_one_file_are_one_graph_with_ids_of_their_own():
    whole = TraceGraph.merged([read(spec()), read(spec())])
    again = read(whole.to_json())
    assert len(again) == 4 and again.feedback == ["too high", "too high"]
    assert again.tree() == whole.tree() and len(again.parameters) == 2


def test_graphs_that_give_one_operator_other_words_or_names_nearly_alike_are_merged():
    x = node(1, "x", trainable=True)
    ids = [{"id": each, "value": 1} for each in ("x0", "x0_", "int0", "int0_")]
    other = spec(operators={"drive": "in other words"})
    whole = TraceGraph.merged(
        [read(spec()), read(other), backward(x + 1, "")[x], read(nodes(*ids, A))]
    )
    again = read(whole.to_json())
    assert again.to_json() == whole.to_json() and len(again) == 12
    assert [each.description for each in again] == [each.description for each in whole]


@pytest.mark.parametrize("field", ["choices", "bounds", "constraint", "code", "description"])
def test_a_rule_that_is_null_is_none(field):
    (x,) = read(nodes({**A, "trainable": True, field: None})).parameters
    x.set(2)
    assert x.data == 2


def test_a_header_that_names_no_function_is_refused():
    with pytest.raises(GraphError, match=r"nodes\[0\] \(a\): no header of a function: 'f\(x\)'"):
        read(nodes({**A, "trainable": True, "code": "f(x)"}))


@pytest.mark.parametrize("depth", [500, 3_000, 100_000])
def test_deep_values_are_read_or_refused(depth):
    text = json.dumps(spec()).replace("100", "[" * depth + "]" * depth)
    try:
        read(text).to_json()
    except GraphError as error:
        # "Stack overflow" is how a RecursionError begins from Python 3.14 on.
        assert any(word in str(error) for word in ("deep", "recursion", "Stack overflow"))


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "-1e999"])
def test_numbers_that_json_does_not_have_are_refused_in_a_graph(value):
    with pytest.raises(
        GraphError, match=f"not JSON: {value} is not finite: write it as a tagged float"
    ):
        TraceGraph.from_json('{"nodes": [{"id": "a", "value": %s}]}' % value)  # noqa: UP031


def test_a_score_too_large_for_a_float_is_refused_in_a_graph():
    form = {"nodes": [{"id": "a", "value": 1}], "outputs": [{"id": "a", "score": 10**400}]}
    with pytest.raises(GraphError, match=r"outputs\[0\].*: int too large"):
        TraceGraph.from_json(json.dumps(form))


def test_what_a_graph_says_beyond_is_kept_when_graphs_are_merged():
    read = [TraceGraph.from_json(json.dumps({"nodes": [], key: 1})) for key in ("by", "at")]
    assert TraceGraph.merged(read).extra == {"by": 1, "at": 1}


def test_an_id_from_elsewhere_is_a_name_only_as_an_identifier():
    form = {"nodes": [{"id": "a b", "value": 1}, {"id": 7, "value": 2}]}
    graph = TraceGraph.from_json(json.dumps(form))
    assert [*graph.names.values()] == ["a_b", "_7"] and [*graph.ids.values()] == ["a b", 7]


def test_a_graph_from_elsewhere_and_one_from_here_have_distinct_ids_together():
    read = TraceGraph.from_json('{"nodes": [{"id": "x0", "value": 1}]}')
    x = node(2, "x", trainable=True)
    whole = TraceGraph.merged([read, backward(x + 1, "low")[x]])
    assert (
        len({*map(str, whole.ids.values())}) == 4
        and whole.ids[x] != whole.ids[next(iter(read))] == "x0"
    )
    assert len(TraceGraph.from_json(whole.to_json())) == 4


def test_no_recursion_in_the_json_form_of_a_chain():
    again = TraceGraph.from_json(chain(20_000).to_json())
    assert len(again) == 40_001 and again.tree(lines=3).count("\n") == 3


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = node(1, "x", trainable=True)
        output = total([x, 2], x)
        output.backward("too low")
        output.rerun({x: 2})
        TraceGraph.from_json(x.feedback[0].to_json()).tree()


def test_the_json_form_holds_values_as_they_were_at_backward():
    x = node(1, "x", trainable=True)
    (x + 1).backward("too low")
    x.set(5)
    form = json.loads(x.feedback[0].to_json())
    assert form["nodes"][0]["value"] == 1 and "score" not in form["outputs"][0]


def test_merged_graphs_come_back_from_json():
    x = node(1, "x", trainable=True)
    shared = x + 1
    whole = TraceGraph.merged([backward(shared * 2, "low")[x], backward(shared * 3, "high")[x]])
    again = TraceGraph.from_json(whole.to_json())
    assert again.to_json() == whole.to_json() and again.feedback == ["low", "high"]
    twice = backward([shared, shared], ["low", "high"])[x]
    assert TraceGraph.from_json(twice.to_json()).feedback == ["low", "high"]


def test_an_output_that_no_parameter_had_a_part_in_is_kept():
    x, fixed = node(1, "x", trainable=True), node(2) + 3
    graph = backward([fixed, x + 1], ["why?", "too low"])[x]
    again = TraceGraph.from_json(graph.to_json())
    assert again.feedback == ["why?", "too low"] and again.tree() == graph.tree()


def test_what_python_wrote_is_a_graph_as_documented():
    x = node(3, "x", trainable=True, description="how much", bounds=(0, None))
    (x * 2).backward("too small", score=0.5)
    assert json.loads(x.feedback[0].to_json()) == {
        "format": "minitrace-graph",
        "version": "1.0",
        "nodes": [
            {
                "id": "x0",
                "name": "x",
                "kind": "parameter",
                "type": "int",
                "description": "how much",
                "trainable": True,
                "bounds": [0, None],
                "value": 3,
            },
            {"id": "int0", "name": "int", "kind": "input", "type": "int", "value": 2},
            {
                "id": "multiply0",
                "name": "multiply",
                "kind": "operator",
                "operator": "multiply",
                "inputs": {"x": "x0", "y": "int0"},
                "type": "int",
                "value": 6,
            },
        ],
        "operators": {"multiply": "x * y"},
        "outputs": [{"id": "multiply0", "feedback": "too small", "score": 0.5}],
    }


def test_a_kind_that_is_not_known_is_a_call_or_an_input():
    form = {
        "nodes": [
            {"id": "x", "kind": "dream"},
            {"id": "y", "kind": "feedback", "inputs": {"x": "x"}},
        ]
    }
    graph = read(form)
    assert [graph.kind(each) for each in graph] == ["input", "operator"]
    assert "y" in TraceGraph.of([*graph][-1]).tree() and isinstance(graph.tree(), str)


def test_a_parameter_may_be_asked_about_in_another_type_but_not_outside_its_rules():
    x = node(3, "x", trainable=True, bounds=(0, 9))
    assert (x * 2).rerun({x: 2.5}).data == 5.0
    with pytest.raises(ValueError, match="between 0 and 9"):
        (x * 2).rerun({x: 10})


def test_versions_may_be_numbers_and_ids_may_have_colons():
    form = {"version": 1, "nodes": [{"id": "x:0", "trainable": True}, {"id": "x0", "value": 2}]}
    graph = TraceGraph.from_json(json.dumps(form))
    assert [*graph.names.values()] == ["x_0", "x0"] and [*graph.ids.values()] == ["x:0", "x0"]
    with pytest.raises(GraphError, match=r"nodes\[0\] \(a\): its description cannot be 5"):
        TraceGraph.from_json('{"nodes": [{"id": "a", "description": 5}]}')
    with pytest.raises(GraphError, match="version 2 is not read here"):
        TraceGraph.from_json('{"version": 2, "nodes": []}')


def test_a_copied_graph_is_the_graph():
    x = node(1, "x", trainable=True)
    graph = backward(x + 1, "low")[x]
    assert copy.deepcopy([graph])[0] is graph


def test_a_call_without_arguments_keeps_its_operator():
    three = bundle("[three] Always 3.")(lambda: 3)
    graph = TraceGraph.of(three() + node(1, name="x", trainable=True))
    again = TraceGraph.from_json(graph.to_json())
    assert ("three", "Always 3.") in [(each.op_name, each.description) for each in again]
    assert [again.kind(each) for each in again] == [graph.kind(each) for each in graph]
    assert TraceGraph.from_json(again.to_json()).to_json() == again.to_json()
