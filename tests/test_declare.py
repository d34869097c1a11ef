"""Section 1, Declare: nodes, names, operators, plain reads, parameters, copies and pickles."""

import contextlib
import copy
import datetime
import decimal
import fractions
import gc
import io
import math
import operator
import pathlib
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from conftest import ROOT, reaches

import minitrace
from minitrace import (
    GRAPH,
    ExecutionError,
    MessageNode,
    Node,
    ParameterNode,
    Script,
    SumPropagator,
    TraceMissingInputsError,
    backward,
    bundle,
    node,
    operators,
    to_data,
    to_text,
)


@dataclass
class Point:
    x: float
    y: float

    def scaled(self, by, *, shift=0):
        return Point(self.x * by + shift, self.y * by + shift)

    def __add__(self, other):
        return Point(self.x + other.x, self.y + other.y)


Pair = namedtuple("Pair", "left right")


# ---- node(data, name, trainable, description)


def test_a_plain_value_becomes_a_root():
    x = node(5, "x", description="five")
    assert type(x) is Node and (x.data, x.name, x.description) == (5, "x:0", "five")
    assert x.is_root and not x.trainable and x.parents == () and x.inputs == {} and x.level == 0


def test_a_trainable_value_becomes_a_parameter():
    p = node("hi", trainable=True)
    assert type(p) is ParameterNode and p.trainable and p.is_root and p.name == "str:0"


def test_a_node_of_a_node_is_that_node_and_a_new_name_is_ignored_with_a_warning():
    x = node(5, "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert node(x) is x
    with pytest.warns(UserWarning, match="x:0 keeps its name"):
        assert node(x, name="y") is x
    with pytest.warns(UserWarning, match="x:0 keeps its name and description"):
        assert node(x, description="a number") is x


@pytest.mark.parametrize("data", [[1], deque([1]), bytearray(b"1"), OrderedDict(a=1), {1}])
def test_a_method_changes_a_copy(data):
    x, before = node(data), copy.copy(data)
    name = "popitem" if isinstance(data, dict) else "pop"
    x.call(name)
    assert x.data == before


def test_a_trainable_node_of_a_node_is_a_new_parameter_with_its_data_and_base_name():
    x = node([5], "x")
    p = node(x, trainable=True)
    assert isinstance(p, ParameterNode) and p is not x
    assert (p.data, p.name, p.parents) == ([5], "x:1", ())
    q = node(p, trainable=True)
    assert q is not p and q.name == "x:2"


# ---- names


def test_an_index_counts_the_base_which_is_the_name_the_type_or_the_operator():
    names = [node(1).name, node(2).name, node("a").name, node(1, "x").name, node(1, "x").name]
    assert names == ["int:0", "int:1", "str:0", "x:0", "x:1"]
    assert (node(1) + 1).name == "add:0" and (node(1) + 1).name == "add:1"


def test_py_name_drops_the_colon_and_is_an_identifier():
    assert node(1, "x").py_name == "x0"
    assert node(1, "my name").py_name.isidentifier() and node(1, "2nd").py_name.isidentifier()


def test_clear_starts_the_names_again():
    assert node(1, "x").name == "x:0"
    GRAPH.clear()
    assert node(1, "x").name == "x:0"


# ---- parents, inputs, level, op_name, description, info, type


def test_an_operator_makes_a_message_node_that_names_its_parents():
    x, y = node(3, "x"), node(4, "y")
    z = x + y
    assert type(z) is MessageNode and not z.is_root and not z.trainable
    assert len(z.parents) == 2 and z.parents[0] is x and z.parents[1] is y
    assert list(z.inputs) == ["x", "y"] and z.inputs["y"] is y
    assert (z.op_name, z.level, (z + x).level, z.type) == ("add", 1, 2, int)


def test_a_description_has_no_operator_prefix():
    assert "[" not in (node(1) + 1).description and (node(1) + 1).description
    assert node(1, description="one").description == "one"


def test_nothing_points_forward():
    x = node(1, "x", trainable=True)
    before = len(gc.get_referrers(x))
    kept = [x + 1 for _ in range(3)]
    del kept
    assert len(gc.get_referrers(x)) == before
    assert not hasattr(x, "children")


def test_a_graph_nobody_holds_is_freed_at_once():
    x = node(1, "x", trainable=True)
    gc.collect()
    gc.disable()
    try:
        import weakref

        end = weakref.ref(x + 1 + 2)
        assert end() is None
    finally:
        gc.enable()


# ---- traced: one row for each operator: expression, plain arguments, the operator's name

ROWS = [
    (lambda x, y: x + y, (7, 2), "add"),
    (lambda x, y: x + y, ("a", "s"), "add"),
    (lambda x, y: x + y, ([1], [2]), "add"),
    (lambda x, y: x + y, ((1,), (2,)), "add"),
    (lambda x, y: x - y, (7, 2), "subtract"),
    (lambda x, y: x - y, ({1, 2}, {2}), "subtract"),
    (lambda x, y: x * y, (7, 2), "multiply"),
    (lambda x, y: x * y, ("ab", 3), "multiply"),
    (lambda x, y: x * y, ([1], 3), "multiply"),
    (lambda x, y: x / y, (7, 2), "divide"),
    (lambda x, y: x // y, (7, 2), "floor_divide"),
    (lambda x, y: x % y, (7, 2), "mod"),
    (lambda x, y: x**y, (7, 2), "power"),
    (lambda x, y: x << y, (7, 2), "lshift"),
    (lambda x, y: x >> y, (7, 2), "rshift"),
    (lambda x, y: x & y, (7, 2), "and_"),
    (lambda x, y: x | y, (7, 2), "or_"),
    (lambda x, y: x | y, ({1: 2}, {3: 4}), "or_"),
    (lambda x, y: x ^ y, (7, 2), "xor"),
    (lambda x, y: divmod(x, y), (7, 2), "divmod"),
    (lambda x, y: x < y, (7, 2), "lt"),
    (lambda x, y: x <= y, (7, 7), "le"),
    (lambda x, y: x > y, (7, 2), "gt"),
    (lambda x, y: x >= y, (7, 7), "ge"),
]
UNARY = [
    (lambda x: -x, (5,), "neg"),
    (lambda x: +x, (5,), "pos"),
    (lambda x: ~x, (5,), "invert"),
    (lambda x: abs(x), (-5,), "abs"),
    (lambda x: round(x), (2.6,), "round"),
    (lambda x: round(x, 2), (2.678,), "round"),
    (lambda x: math.floor(x), (2.6,), "floor"),
    (lambda x: math.ceil(x), (2.4,), "ceil"),
    (lambda x: math.trunc(x), (-2.6,), "trunc"),
]
ITEMS = [
    (lambda x: x[1], ([4, 5],), "getitem"),
    (lambda x: x[-1], ("abc",), "getitem"),
    (lambda x: x["k"], ({"k": 5},), "getitem"),
    (lambda x: x[1:], ([4, 5, 6],), "getitem"),
    (lambda x: x[::2], ("abcde",), "getitem"),
]


def ids(rows):
    return [f"{name}-{type(args[0]).__name__}" for _, args, name in rows]


@pytest.mark.parametrize("expression, args, name", ROWS, ids=ids(ROWS))
def test_infix(expression, args, name):
    z = expression(node(args[0]), node(args[1]))
    assert isinstance(z, MessageNode)
    assert (z.data, z.op_name, len(z.parents)) == (expression(*args), name, 2)


@pytest.mark.parametrize("expression, args, name", ROWS, ids=ids(ROWS))
def test_infix_with_a_plain_value_on_the_right(expression, args, name):
    z = expression(node(args[0]), args[1])
    assert (z.data, z.op_name) == (expression(*args), name)
    assert [p.data for p in z.parents] == [*args]


@pytest.mark.parametrize("expression, args, name", ROWS, ids=ids(ROWS))
def test_reflected(expression, args, name):
    z = expression(args[0], node(args[1]))
    assert isinstance(z, MessageNode) and z.data == expression(*args)
    mirrored = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}
    assert z.op_name == mirrored.get(name, name)  # Python mirrors comparisons by itself
    assert [p.data for p in z.parents] == [*args][:: -1 if name in mirrored else 1]


@pytest.mark.parametrize("expression, args, name", UNARY + ITEMS, ids=ids(UNARY + ITEMS))
def test_unary_and_items(expression, args, name):
    x = node(*args)
    z = expression(x)
    assert isinstance(z, MessageNode)
    assert (z.data, z.op_name) == (expression(*args), name) and z.parents[0] is x


class Matrix:
    def __init__(self, name):
        self.name = name

    def __matmul__(self, other):
        return self.name + "@" + other.name


def test_matmul():
    a, b = Matrix("a"), Matrix("b")
    for z in (node(a) @ node(b), node(a) @ b):
        assert (z.data, z.op_name) == ("a@b", "matmul")


def test_an_index_and_the_ends_of_a_slice_may_be_nodes():
    x, i, j = node([1, 2, 3, 4], "x"), node(1, "i"), node(3, "j")
    assert x[i].data == 2 and x[i].parents[1] is i
    z = x[i:j]
    assert z.data == [2, 3] and {p.name for p in z.parents} >= {"x:0", "i:0", "j:0"}


def test_augmented_assignment_makes_a_new_node():
    x = first = node([1])
    x += [2]
    assert x.data == [1, 2] and first.data == [1] and x is not first


METHODS = [
    ("append", [1], (2,), [1, 2]),
    ("pop", [1, 2, 3], (), 3),
    ("pop", [1, 2, 3], (0,), 1),
    ("pop", {"a": 1}, ("a",), 1),
    ("pop", {"a": 1}, ("b", 7), 7),
    ("get", {"a": 1}, ("a",), 1),
    ("get", {"a": 1}, ("b",), None),
    ("get", {"a": 1}, ("b", 9), 9),
    ("keys", {"a": 1}, (), ["a"]),
    ("values", {"a": 1}, (), [1]),
    ("items", {"a": 1}, (), [("a", 1)]),
    ("format", "{} and {}", (1, 2), "1 and 2"),
    ("split", "a b", (), ["a", "b"]),
    ("split", "a,b,c", (",", 1), ["a", "b,c"]),
    ("strip", " a ", (), "a"),
    ("strip", "xax", ("x",), "a"),
    ("replace", "aba", ("a", "c"), "cbc"),
    ("replace", "aba", ("a", "c", 1), "cba"),
    ("join", ", ", (["a", "b"],), "a, b"),
    ("lower", "aB", (), "ab"),
    ("upper", "aB", (), "AB"),
    ("title", "ab cd", (), "Ab Cd"),
    ("swapcase", "aB", (), "Ab"),
    ("capitalize", "ab", (), "Ab"),
    ("len", [1, 2], (), 2),
    ("eq", 1, (1,), True),
    ("neq", 1, (1,), False),
    ("clone", [1], (), [1]),
]


@pytest.mark.parametrize("name, data, args, result", METHODS)
def test_named_methods(name, data, args, result):
    x = node(data, "x")
    before = copy.deepcopy(data)
    z = getattr(x, name)(*args)
    assert isinstance(z, MessageNode) and z.parents[0] is x
    assert z.data == result and type(z.data) is type(result)
    assert x.data == before  # a node's data is never changed by an operator


@pytest.mark.parametrize("name, data, args, result", [row for row in METHODS if row[2]])
def test_named_methods_take_nodes(name, data, args, result):
    given = [node(arg) for arg in args]
    z = getattr(node(data), name)(*given)
    assert z.data == result and all(any(p is g for p in z.parents) for g in given)


def test_format_and_split_take_keywords():
    who = node("Ada", "who")
    z = node("Hello {name}").format(name=who)
    assert z.data == "Hello Ada" and z.inputs["name"] is who
    assert node("a b c").split(maxsplit=1).data == ["a", "b c"]


def test_join_takes_a_list_of_nodes_and_each_is_a_parent():
    a, b = node("a"), node("b")
    z = node("-").join([a, b])
    assert z.data == "a-b" and [p for p in z.parents if p is a] and [p for p in z.parents if p is b]


def test_getattr_is_traced():
    p = node(Point(1, 2), "p")
    z = p.getattr("x")
    assert z.data == 1 and z.parents[0] is p
    assert p.getattr("nothing", 5).data == 5


CALLS = [
    ("Hello", "replace", ("l", "L"), {}, "HeLLo"),
    ("Hello", "startswith", ("He",), {}, True),
    ([3, 1], "index", (1,), {}, 1),
    ({"a": 1}, "get", ("a",), {}, 1),
    (b"ab", "hex", (), {}, "6162"),
    (12, "bit_length", (), {}, 4),
    (Point(1, 2), "scaled", (3,), {"shift": 1}, Point(4, 7)),
]


@pytest.mark.parametrize("data, method, args, kwargs, result", CALLS)
def test_call_a_method_also_a_built_in_one_with_plain_values_or_nodes(
    data, method, args, kwargs, result
):
    assert node(data).call(method, *args, **kwargs).data == result
    nodes = {key: node(value) for key, value in kwargs.items()}
    z = node(data).call(method, *map(node, args), **nodes)
    assert z.data == result and isinstance(z, MessageNode)


@pytest.mark.parametrize(
    "data, method, args",
    [([3, 1], "sort", ()), ([1], "append", (2,)), ({}, "update", ({1: 2},)), ({1}, "add", (2,))],
)
def test_a_method_that_changes_its_object_leaves_the_nodes_data_alone(data, method, args):
    x = node(data)
    before = copy.copy(data)
    x.call(method, *args)
    assert x.data == before


def test_calling_a_node_that_holds_a_callable():
    f, x = node(max, "f"), node(3, "x")
    z = f(x, 5)
    assert z.data == 5 and z.parents[0] is f and z.parents[1] is x
    assert node(int)("ff", base=node(16)).data == 255


def test_every_argument_has_its_own_key():
    z = node("{x} {0} {x_}").format(1, x=2, x_=3)
    assert z.data == "2 1 3" and len(z.inputs) == len(z.parents) == 4


# ---- objects that are not numbers

DAY, WEEK = datetime.date(2024, 2, 29), datetime.timedelta(days=7)
OBJECTS = [
    (lambda x, y: x + y, DAY, WEEK),
    (lambda x, y: y + x, DAY, WEEK),
    (lambda x, y: x - y, DAY, datetime.date(2024, 1, 1)),
    (lambda x, y: x < y, DAY, datetime.date(2024, 1, 1)),
    (lambda x, y: x - y, datetime.datetime(2024, 1, 2), WEEK),
    (lambda x, y: x * y, WEEK, 2),
    (lambda x, y: x + y, fractions.Fraction(1, 3), fractions.Fraction(1, 6)),
    (lambda x, y: x - y, fractions.Fraction(1, 3), 2),
    (lambda x, y: x + y, 1, fractions.Fraction(1, 6)),
    (lambda x, y: x <= y, fractions.Fraction(1, 3), 1),
    (lambda x, y: x * y, decimal.Decimal("1.10"), 3),
    (lambda x, y: x % y, 7, decimal.Decimal("2.5")),
    (lambda x, y: x / y, pathlib.PurePosixPath("/a"), "b"),
    (lambda x, y: x / y, "a", pathlib.PurePosixPath("b")),
    (lambda x, y: x / y, pathlib.PurePosixPath("/a"), pathlib.PurePosixPath("b")),
    (lambda x, y: x + y, Point(1, 2), Point(3, 4)),
    (lambda x, y: x + y, 1j, 2),
    (lambda x, y: x | y, Counter(a=1), Counter(a=3)),
    (lambda x, y: x + y, b"a", b"b"),
]


@pytest.mark.parametrize("expression, x, y", OBJECTS)
def test_objects_that_are_not_numbers(expression, x, y):
    result = expression(x, y)
    for a, b in ((node(x), node(y)), (node(x), y)):
        z = expression(a, b)
        assert z.data == result and type(z.data) is type(result) and len(z.parents) == 2
    if type(x) is not Point:  # whose own `+` does not know of nodes and does not say so
        assert expression(x, node(y)).data == result


def test_dates_and_paths_have_methods():
    assert node(DAY).getattr("year").data == 2024
    assert node(DAY).call("replace", day=node(1)).data == datetime.date(2024, 2, 1)
    assert node(pathlib.PurePosixPath("a/b.txt")).getattr("suffix").data == ".txt"


class NoTruth:
    """An object that refuses to be true or false, and to be equal, as arrays and frames do."""

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")

    def __eq__(self, other):
        return self

    __hash__ = None

    def __add__(self, other):
        return self

    __radd__ = __mul__ = __lt__ = __getitem__ = __call__ = __add__

    def method(self, other):
        return self


def test_the_truth_of_the_data_is_never_asked():
    data = NoTruth()
    x = node(data, "x", trainable=True)
    results = [x + 1, 1 + x, x * x, x < 1, x.eq(x), x[0], x(1), x.call("method", data), -1 + x]
    assert all(z.data is data for z in results)
    assert bundle()(lambda a, b=data, *c, **d: a)(x, c=[x, data]).data is data
    x.set(data)
    assert repr(x) and copy.copy(x).data is data and to_data([x, data])[0] is data
    results[0].backward("good")
    assert len(x.feedback) == 1


# ---- numpy and pandas, where installed


def test_numpy_arrays():
    np = pytest.importorskip("numpy")
    a = np.array([1.0, 2.0])
    x = node(a, "x", trainable=True)
    for z, result in (
        (x + a, a + a),
        (a + x, a + a),
        (2 - x, 2 - a),
        (np.float64(2) * x, 2 * a),
        (x @ a, a @ a),
        (a @ x, a @ a),
        (abs(-x), a),
        (x[1:], a[1:]),
        (x[x > 1], a[a > 1]),
        (x.call("sum"), 3.0),
        (x.getattr("shape"), (2,)),
        (x < 2, a < 2),
        (x.eq(a), a == a),
    ):
        assert isinstance(z, MessageNode) and np.array_equal(z.data, result)
    assert not isinstance(x == a, Node) and (x == a).all() and not (x != a).any()
    assert [e.data for e in x] == [1.0, 2.0] and all(isinstance(e, MessageNode) for e in x)
    first, second = x
    assert second.data == 2.0 and first.parents[0] is x
    assert [row.data.tolist() for row in node(np.eye(2))] == [[1, 0], [0, 1]]
    assert "ndarray" in (x + a).parents[1].name and "array" in repr(x)


def test_numpy_parameters_check_themselves():
    np = pytest.importorskip("numpy")
    p = node(np.array([0.1, 0.2]), "p", trainable=True, bounds=(0, 1))
    p.set(np.array([0.3, 1.0]))
    assert p.data.tolist() == [0.3, 1.0]
    with pytest.raises(ValueError, match="between 0 and 1"):
        p.set(np.array([0.3, 7.0]))
    positive = node(np.ones(2), "q", trainable=True, check=lambda a: (a > 0).all())
    with pytest.raises(ValueError, match=r"q:0 cannot take .* check failed"):
        positive.set(-np.ones(2))


def test_pandas_frames():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    x = node(frame, "x", trainable=True)
    assert x["a"].call("sum").data == 3 and x.len().data == 2
    for z in (x + frame, frame + x, x["a"] + frame["b"], frame["b"] + x["a"], x * 2, 2 * x):
        assert isinstance(z, MessageNode) and type(z.data) in (pd.DataFrame, pd.Series)
    assert (frame["a"] + x["b"]).data.tolist() == [4, 6]
    assert x[x["a"] > 1].data.shape == (1, 2)
    assert x.getattr("loc")[0, "b"].data == 3
    assert repr(x)


def test_iterating_over_pandas_gives_what_pandas_gives():
    pd = pytest.importorskip("pandas")
    assert [n.data for n in node(pd.Series([7, 8], index=["a", "b"]))] == [7, 8]
    assert [n.data for n in node(pd.Series([7, 8], index=[1, 0]))] == [7, 8]
    assert [n.data for n in node(pd.DataFrame({"a": [1], "b": [2]}))] == ["a", "b"]


# ---- elements met while iterating


class Countdown:
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n, 0, -1))


class Sequence:
    def __getitem__(self, i):
        return [10, 20][i]

    def __len__(self):
        return 2


ITERABLES = [
    [1, 2],
    (1, 2),
    "ab",
    b"ab",
    {"a": 1, "b": 2},
    {1, 2},
    frozenset([1, 2]),
    range(2),
    deque([1, 2]),
    OrderedDict(a=1),
    Counter("aab"),
    defaultdict(list, a=1),
    {"a": 1}.keys(),
    {"a": 1}.items(),
    Pair(1, 2),
    Countdown(3),
    Sequence(),
    [],
    {},
    [[1, 2], [3]],
]


@pytest.mark.parametrize("data", ITERABLES, ids=lambda data: type(data).__name__)
def test_iteration_gives_nodes_that_depend_on_the_whole(data):
    p = node(data, "p", trainable=True)
    items = list(p)
    assert [item.data for item in items] == list(data)
    assert all(isinstance(item, MessageNode) for item in items)
    for item in items:
        item.backward("here")
    assert len(p.feedback) == len(items)


@pytest.mark.parametrize("data", [[1, 2], (1, 2), "ab", {"a": 1, "b": 2}, {1: 0, 2: 0}])
def test_unpacking(data):
    first, second = node(data)
    assert [first.data, second.data] == list(data)
    head, *rest = node(data)
    assert [head.data, *(n.data for n in rest)] == list(data)
    assert [n.data for n in [*node(data)]] == list(data)
    with pytest.raises(ValueError, match="too many values to unpack"):
        (_only,) = node(data)


def test_items_gives_pairs_of_nodes():
    d = node({"a": 1, "b": 2}, "d")
    pairs = [(k, v) for k, v in d.items()]
    assert [(k.data, v.data) for k, v in pairs] == [("a", 1), ("b", 2)]
    assert all(isinstance(n, MessageNode) for pair in pairs for n in pair)


def test_zip_enumerate_reversed_and_star():
    x = node([1, 2], "x")
    assert [(a.data, b.data) for a, b in zip(x, x, strict=True)] == [(1, 1), (2, 2)]
    assert [(i, n.data) for i, n in enumerate(x)] == [(0, 1), (1, 2)]
    assert [n.data for n in reversed(x)] == [2, 1]
    assert (lambda a, b: (a.data, b.data))(*x) == (1, 2)
    assert sum(x).data == 3 and isinstance(sum(x), MessageNode)


def test_iteration_keeps_the_trace_of_a_sum():
    x = node([1, 2, 3], "x", trainable=True)
    total = sum(n * 2 for n in x)
    assert total.data == 12
    total.backward("more")
    assert len(x.feedback) == 1


def test_what_cannot_be_iterated_says_so():
    with pytest.raises((TypeError, ExecutionError), match="not iterable"):
        iter(node(5))


# ---- plain reads


def test_equality_compares_data_and_gives_a_bool():
    x = node(5)
    assert (x == 5) is True and (x == node(5)) is True and (x != 5) is False and (x == 6) is False
    assert (5 == x) is True and (x == "5") is False and (x == None) is False  # noqa: E711, SIM300


def test_len_bool_in_and_hash_are_plain():
    x = node([1, 2])
    assert len(x) == 2 and bool(x) is True and bool(node([])) is False
    assert 1 in x and 7 not in x and node(1) in x
    assert hash(x) == object.__hash__(x) and len({node(1), node(1)}) == 2
    assert {x: "found"}[x] == "found"


PLAIN = [
    (int, 5.7),
    (float, 5),
    (complex, 5),
    (range, 3),
    (math.sqrt, 4),
    (str, 5),
    ("{:>4}".format, 5),
    (lambda i: [1, 2, 3][i], 1),
    (hex, 255),
    (lambda x: x or 3, 0),
    (lambda x: "yes" if x else "no", 0),
    (format, 5),
]


@pytest.mark.parametrize("read, data", PLAIN)
def test_plain_reads(read, data):
    result = read(node(data))
    assert result == read(data) and not isinstance(result, MessageNode)


def test_and_or_if_pick_operands():
    x, y = node(0), node(2)
    assert (x or y) is y and (x and y) is x and (y if x else x) is x


def test_repr_shows_kind_name_and_value_and_no_address():
    assert repr(node(5, "x")) == "<Node x:0 = 5>"
    assert "0x" not in repr(node(SimpleNamespace)) and "0x" not in repr(node(Matrix("a")))
    assert len(repr(node("long " * 1000))) < 200


# ---- f-strings


def test_an_fstring_reads_the_value_and_warns_when_it_ends_a_trace():
    x = node(2.5, "x", trainable=True)
    with pytest.warns(UserWarning, match=r"f-string.*operators.format") as caught:
        text = f"{x + 1:.2f}"
    assert text == "3.50" and caught[0].filename == __file__


def test_an_fstring_of_a_node_without_parameters_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert f"{node(1) + 1}" == "2" and str(node(1, trainable=True)) == "1"


def test_an_fstring_warns_once_in_each_place():
    x = node(1, trainable=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            f"{x}"
        for _ in range(3):
            f"{x}"
    assert len(caught) == 2


def test_format_keeps_the_trace():
    x = node(2, trainable=True)
    for z in (operators.format("{}!", x), node("{}!").format(x)):
        assert z.data == "2!" and any(p is x for p in z.parents)


# ---- template strings (the syntax is of Python 3.14, so they stand in texts here)

needs_templates = pytest.mark.skipif(sys.version_info < (3, 14), reason="no template strings")
TEMPLATES = [
    "",
    "no field",
    "{name}",
    "Hello {name}",
    "{name} pays {price}",
    "{name}{name}{price}",
    "{{}} {{name}} {name} {{{price}}}",
    '{{"name": "{name}", "price": {price}}}',
    "{price:.2f} {name:>8} {name:*^9}|",
    "{name!r} {name!s} {name!a} {price!r:>8}",
    "{when:%H:%M:} {when:%Y}",
    "{price=} {name=!s} {price=:.3f}",
    "{name.upper()} {price + 1} {xs[0]} {xs}",
    "{None} {'None'} {'!None'!r} {1 + 1}",
    "{name}\n  {price}\t.",
]


@needs_templates
@pytest.mark.parametrize("body", TEMPLATES)
def test_a_template_string_is_the_f_string_of_the_values_with_the_trace(body):
    plain = {"name": "Zoë", "price": 2.5, "when": datetime.datetime(2024, 5, 6)}
    values = {key: node(value, key, trainable=True) for key, value in plain.items()}
    plain["xs"], values["xs"] = ["Zoë", 3], [values["name"], 3]
    template = eval(f"t{body!r}", {}, values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = operators.format(template)
    assert text.data == eval(f"f{body!r}", {}, plain) and text.op_name == "format"
    for field in template.interpolations:
        for each in field.value if isinstance(field.value, list) else [field.value]:
            assert not isinstance(each, Node) or each in {*text.parents}
        for name in compile(field.expression, "", "eval").co_names:
            assert name not in plain or name == "xs" or reaches(text, values[name])


@needs_templates
def test_a_template_string_inside_another_keeps_the_trace():
    name = node("Ada", "name", trainable=True)
    inner = eval('t"<b>{name}</b>"', {}, {"name": name})
    text = operators.format(eval('t"{inner} {inner!s:>12}{{}}"', {}, {"inner": inner}))
    assert text.data == "<b>Ada</b>   <b>Ada</b>{}" and reaches(text, name)


@needs_templates
def test_a_template_string_may_be_a_prompt():
    name, llm = node("Ada", "name", trainable=True), Script(["Hi!"])
    said = operators.call_llm(llm, eval('t"Greet {name}."', {}, {"name": name}))
    assert llm.asked[0][0]["content"] == "Greet Ada." and reaches(said, name)


@needs_templates
def test_a_template_string_is_recorded_as_the_text_and_its_values():
    """So a prompt, a rerun and a pickle know no other form of it."""
    name, price = node("Ada", "name", trainable=True), node(2.5, "price")
    text = operators.format(eval("t'{name}: {price:.2f} {{}}'", {}, {"name": name, "price": price}))
    assert [each.data for each in text.parents] == ["{}: {:.2f} {{}}", "Ada", 2.5]
    assert text.parents[1:] == (name, price)
    again = pickle.loads(pickle.dumps(text))
    assert again.data == text.data and again.op_name == "format"
    assert text.rerun({name: "Bob"}).data == "Bob: 2.50 {}"


@needs_templates
def test_a_field_that_cannot_be_filled_in_is_a_failure_with_its_node():
    name = node("Ada", "name", trainable=True)
    with pytest.raises(ExecutionError, match="Unknown format code 'f'") as caught:
        operators.format(eval("t'{name:.2f}'", {}, {"name": name}))
    assert name in {*caught.value.exception_node.parents}


@needs_templates
def test_a_template_string_in_a_bundle_is_no_silent_end():
    @bundle()
    def shout(template):
        return "".join(str(getattr(part, "value", part)) for part in template)

    name = node("Ada", "name", trainable=True)
    with pytest.raises(TraceMissingInputsError, match="used name:0, which is not among"):
        shout(eval("t'{name}'", {}, {"name": name}))


def test_the_warning_of_an_f_string_tells_of_template_strings():
    with pytest.warns(UserWarning, match=r"takes a template string \(t-string\) from Python 3.14"):
        f"{node('Ada', trainable=True)}"


# ---- operators as functions

FUNCTIONS = [
    ("add", (1, 2), 3),
    ("subtract", (1, 2), -1),
    ("multiply", (3, 2), 6),
    ("divide", (3, 2), 1.5),
    ("floor_divide", (3, 2), 1),
    ("mod", (3, 2), 1),
    ("power", (3, 2), 9),
    ("pow", (3, 2, 5), 4),
    ("lshift", (3, 2), 12),
    ("rshift", (12, 2), 3),
    ("and_", (3, 2), 2),
    ("or_", (1, 2), 3),
    ("xor", (3, 2), 1),
    ("lt", (1, 2), True),
    ("le", (1, 2), True),
    ("gt", (1, 2), False),
    ("ge", (1, 2), False),
    ("eq", (1, 1), True),
    ("neq", (1, 1), False),
    ("neg", (1,), -1),
    ("pos", (1,), 1),
    ("invert", (1,), -2),
    ("abs", (-1,), 1),
    ("round", (1.26, 1), 1.3),
    ("floor", (1.5,), 1),
    ("ceil", (1.5,), 2),
    ("trunc", (1.5,), 1),
    ("getitem", ([1, 2], 1), 2),
    ("identity", ([1],), [1]),
    ("clone", ([1],), [1]),
    ("cond", (True, 1, 2), 1),
    ("cond", ([], 1, 2), 2),
    ("not_", ([],), True),
    ("is_", (None, None), True),
    ("is_not", (None, None), False),
    ("in_", (1, [1]), True),
    ("not_in", (1, [1]), False),
    ("concat", ("a", "b"), "ab"),
    ("concat", ("a", "b", "c"), "abc"),
    ("concat", ([1], [2]), [1, 2]),
    ("ord_", ("a",), 97),
    ("chr_", (97,), "a"),
    ("to_list", ((1, 2),), [1, 2]),
    ("to_tuple", ([1, 2],), (1, 2)),
    ("to_set", ([1, 1],), {1}),
    ("to_dict", ([("a", 1)],), {"a": 1}),
    ("make_list", (1, 2), [1, 2]),
    ("make_tuple", (1, 2), (1, 2)),
    ("make_set", (1, 2), {1, 2}),
    ("list_extend", ([1], [2]), [1, 2]),
    ("dict_update", ({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
    ("len", ([1],), 1),
    ("append", ([1], 2), [1, 2]),
    ("pop", ([1, 2],), 2),
    ("get", ({"a": 1}, "a"), 1),
    ("keys", ({"a": 1},), ["a"]),
    ("values", ({"a": 1},), [1]),
    ("items", ({"a": 1},), [("a", 1)]),
    ("format", ("{}", 1), "1"),
    ("split", ("a b",), ["a", "b"]),
    ("strip", (" a ",), "a"),
    ("replace", ("a", "a", "b"), "b"),
    ("join", (",", ["a", "b"]), "a,b"),
    ("lower", ("A",), "a"),
    ("upper", ("a",), "A"),
    ("title", ("a b",), "A B"),
    ("swapcase", ("aB",), "Ab"),
    ("capitalize", ("ab",), "Ab"),
    ("call", (max, 1, 2), 2),
    ("matmul", (Matrix("a"), Matrix("b")), "a@b"),
    ("contains", ([1], 1), True),
    ("truth", ([1],), True),
    ("getattr", (Point(1, 2), "y"), 2),
    ("divmod", (7, 2), (3, 1)),
    ("call_method", ([3, 1], "index", 1), 1),
]
TESTED_ELSEWHERE = {"make_dict", "call_llm", "len_", "node_getattr", "node_divmod"}


@pytest.mark.parametrize("name, args, result", FUNCTIONS)
def test_operators_as_functions(name, args, result):
    plain = getattr(operators, name)(*args)
    nodes = [node(arg) for arg in args]
    z = getattr(operators, name)(*nodes)
    assert plain.data == z.data == result and z.op_name == name and z.description
    assert len(z.parents) == len(args) and all(
        a is b for a, b in zip(z.parents, nodes, strict=True)
    )


def test_every_operator_that_dir_shows_is_in_the_table():
    names = {name for name in dir(operators) if not name.startswith("_")}
    assert len(names) > 60
    assert names - TESTED_ELSEWHERE <= {name for name, _, _ in FUNCTIONS}


def test_make_dict_takes_keywords():
    z = operators.make_dict(a=1, b=node(2))
    assert z.data == {"a": 1, "b": 2} and list(z.inputs) == ["a", "b"]


def test_nodes_inside_containers_are_parents_of_operators_too():
    a, b = node(1), node(2)
    z = node([0]) + [a, b]  # noqa: RUF005
    assert z.data == [0, 1, 2] and {id(a), id(b)} <= {id(p) for p in z.parents}


@pytest.mark.parametrize(
    "name, data, args",
    [
        ("setitem", [1], (0, 5)),
        ("delitem", [1], (0,)),
        ("iadd", [1], ([2],)),
        ("iconcat", [1], ([2],)),
        ("ior", {1: 1}, ({2: 2},)),
        ("list_extend", [1], ([2],)),
        ("dict_update", {"a": 1}, ({"b": 2},)),
    ],
)
def test_no_operator_changes_its_nodes_data(name, data, args):
    x, before = node(data), copy.copy(data)
    with contextlib.suppress(AttributeError, ExecutionError):
        getattr(operators, name)(x, *args)
    assert x.data == before


def test_an_unknown_operator_says_what_to_do():
    with pytest.raises(AttributeError, match=r"no operator 'nonsense'.*bundle"):
        operators.nonsense  # noqa: B018


# ---- operators that fail


@pytest.mark.parametrize(
    "expression, error",
    [
        (lambda x: x / 0, ZeroDivisionError),
        (lambda x: 1 / (x - x), ZeroDivisionError),
        (lambda x: x + "a", TypeError),
        (lambda x: x[0], TypeError),
        (lambda x: x.call("nothing"), AttributeError),
        (lambda x: x.upper(), AttributeError),
        (lambda x: x(), TypeError),
        (lambda x: operators.chr_(-x), ValueError),
    ],
)
def test_a_failing_operator_raises_an_execution_error(expression, error):
    x = node(1, "x", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        expression(x)
    failure = caught.value.exception_node
    assert type(caught.value.__cause__) is error
    assert failure.data.startswith(f"({error.__name__}) ")
    failure.backward("avoid this")
    assert len(x.feedback) == 1


# ---- parameters that check themselves

GOOD = [
    (5, {}, 6, 6),
    (5, {}, 6.0, 6),
    (0.5, {}, 1, 1.0),
    ("a", {}, "b", "b"),
    ([1], {}, (2, 3), [2, 3]),
    ((1,), {}, [2, 3], (2, 3)),
    ({"a": 1}, {}, {"b": 2}, {"b": 2}),
    (True, {}, False, False),
    (None, {}, "anything", "anything"),
    (5, {"bounds": (0, 10)}, 10, 10),
    (5, {"bounds": (None, 10)}, -100, -100),
    (5, {"bounds": (0, None)}, 100, 100),
    ("a", {"choices": ["a", "b"]}, "b", "b"),
    (5, {"choices": iter([5, 6])}, 6, 6),
    (5, {"projections": [lambda v: min(v, 10)]}, 50, 10),
    (5, {"projections": [abs, lambda v: v + 1]}, -7, 8),
    (5, {"check": lambda v: v % 2 == 1}, 7, 7),
    (5, {"check": lambda v: None}, 7, 7),
    (5, {"bounds": (0, 10), "projections": [lambda v: min(v, 10)]}, 50, 10),
]


@pytest.mark.parametrize("first, checks, value, kept", GOOD)
def test_a_good_value_is_kept_with_the_type_of_the_present_one(first, checks, value, kept):
    p = node(first, "p", trainable=True, **checks)
    p.set(value)
    assert p.data == kept and type(p.data) is type(kept)


BAD = [
    (5, {}, "banana", "it must be an int"),
    (5, {}, "6", "it must be an int"),
    (5, {}, 6.5, "it must be an int"),
    (5, {}, True, "it must be an int"),
    (5, {}, None, "it must be an int"),
    (0.5, {}, "0.5", "it must be a finite float"),
    (0.5, {}, float("nan"), "it must be a finite float"),
    (True, {}, "false", "it must be a bool"),
    (True, {}, 0, "it must be a bool"),
    ([1], {}, "abc", "it must be a list"),
    ("a", {}, 5, "it must be a str"),
    ({}, {}, [1], "it must be a dict"),
    (5, {"bounds": (0, 10)}, 11, "it must be between 0 and 10"),
    (5, {"bounds": (None, 10)}, 11, "it must be at most 10"),
    (5, {"bounds": (0, None)}, -1, "it must be at least 0"),
    ("a", {"choices": ["a", "b"]}, "c", r"it must be one of \['a', 'b'\]"),
    (5, {"check": lambda v: v % 2 == 1}, 6, "its check failed"),
    (5, {"check": lambda v: "" if v % 2 else "it must be odd"}, 6, "it must be odd"),
    (5, {"check": lambda v: 1 / (v - 6)}, 6, "division by zero"),
    (5, {"projections": [lambda v: [5][v - 5]]}, 6, "list index out of range"),
]


@pytest.mark.parametrize("first, checks, value, words", BAD)
def test_a_wrong_value_is_refused_with_a_reason_and_never_stored(first, checks, value, words):
    p = node(first, "p", trainable=True, **checks)
    with pytest.raises(ValueError, match=f"p:0 cannot take .*: {words}"):
        p.set(value)
    assert p.data == first


@pytest.mark.parametrize(
    "first, checks, words",
    [
        (11, {"bounds": (0, 10)}, "between 0 and 10"),
        ("c", {"choices": ["a"]}, "one of"),
        (6, {"check": lambda v: v % 2 == 1}, "check failed"),
    ],
)
def test_the_first_value_is_checked_too(first, checks, words):
    with pytest.raises(ValueError, match=words):
        node(first, trainable=True, **checks)


def test_the_first_value_is_projected_too():
    assert node(50, trainable=True, projections=[lambda v: min(v, 10)]).data == 10


def test_what_a_parameter_checks_can_be_read():
    p = node(5, trainable=True, bounds=(0, 9), choices=[5, 6], constraint="odd or even")
    assert (p.bounds, p.choices, p.constraint) == ((0, 9), [5, 6], "odd or even")


def test_a_parameter_of_a_parameter_keeps_nothing_of_its_checks_unless_told():
    p = node(5, "p", trainable=True, bounds=(0, 9))
    q = node(p, trainable=True, bounds=(0, 5))
    assert q.bounds == (0, 5) and q.data == 5


def test_data_cannot_be_assigned():
    with pytest.raises(AttributeError):
        node(1).data = 2


def test_a_refused_value_is_shown_as_python_writes_it_and_no_longer_than_a_line():
    p = node(1, "p", trainable=True)
    with pytest.raises(ValueError, match="p:0 cannot take 'banana': it must be an int"):
        p.set("banana")
    for size, shown in (78, f"cannot take {'x' * 78!r}: "), (79, "...(81 characters)..."):
        with pytest.raises(ValueError) as caught:
            p.set("x" * size)
        assert shown in str(caught.value)


class Row:
    """An array as far as checks look at one: compared item by item, and of no single truth."""

    def __init__(self, *items):
        self.items = items

    def __ge__(self, low):
        return Row(*(item >= low for item in self.items))

    def __le__(self, high):
        return Row(*(item <= high for item in self.items))

    def all(self):
        return all(self.items)

    def __bool__(self):
        raise ValueError("an array has no truth")


def test_bounds_and_checks_hold_for_every_item_of_an_array():
    p = node(Row(1, 2), "p", trainable=True, bounds=(0, 9), check=lambda row: row <= 5)
    p.set(Row(0, 5))
    assert p.data.items == (0, 5)
    for items, words in ((-1, 2), "between 0 and 9"), ((2, 10), "between 0"), ((0, 6), "its check"):
        with pytest.raises(ValueError, match=words):
            p.set(Row(*items))


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_a_collection_keeps_its_type(kind):
    p = node(kind([1]), "p", trainable=True)
    for value in ([2, 3], (2, 3), kind([2, 3])):
        p.set(value)
        assert p.data == kind([2, 3]) and type(p.data) is kind


def test_what_was_accepted_before_is_put_back_unchecked():
    p = node(5, "p", trainable=True, bounds=(0, 9), check=lambda v: v != 7)
    p.restore(7)
    assert p.data == 7
    with pytest.raises(ValueError, match="p:0 cannot take 7"):
        p.set(7)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: node(1, trainble=True), "node.. has no argument 'trainble'"),
        (lambda: node(1, bounds=(0, 2)), r"bounds is for a parameter.*trainable=True"),
        (lambda: node(1, trainable=True, bounds=5), r"bounds must be a pair \(low, high\)"),
    ],
)
def test_mistakes_are_named_at_once(wrong, words):
    with pytest.raises(TypeError, match=words):
        wrong()


# ---- feedback


def test_feedback_is_a_list_with_an_entry_for_each_backward():
    p = node(1, "p", trainable=True)
    assert p.feedback == []
    (p + 1).backward("a")
    (p + 1).backward("b")
    assert len(p.feedback) == 2
    p.zero_feedback()
    assert p.feedback == []
    assert node(1).feedback == []


# ---- copies


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda n: n.detach()])
def test_a_copy_is_a_new_root_without_feedback(how):
    p = node([1], "p", trainable=True, description="words", bounds=None, constraint="short")
    z = p + [2]  # noqa: RUF005
    z.backward("words")
    root = how(z)
    assert (
        type(root) is Node and root.is_root and root.data == [1, 2] and root.name == "add0_copy:0"
    )
    parameter = how(p)
    assert type(parameter) is ParameterNode and parameter is not p and parameter.feedback == []
    assert (parameter.name, parameter.description) == ("p0_copy:0", "words")
    assert parameter.constraint == "short"


def test_a_deep_copy_and_a_detached_node_share_no_data():
    p = node([1], trainable=True)
    assert copy.deepcopy(p).data is not p.data and p.detach().data is not p.data


def test_a_deep_copy_keeps_sharing():
    p = node([1], trainable=True)
    a, b = copy.deepcopy([p, p])
    assert a is b


def test_a_clone_is_traced():
    p = node([1], trainable=True)
    z = p.clone()
    assert isinstance(z, MessageNode) and z.parents[0] is p and z.data is not p.data


# ---- pickles


def pickled(value, protocol=pickle.HIGHEST_PROTOCOL):
    return pickle.loads(pickle.dumps(value, protocol))


@bundle()
def doubled(x):
    "Twice x."
    return 2 * x


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_operators_output_pickles(protocol):
    p = node(1, "p", trainable=True, description="a number", bounds=(0, 9), constraint="small")
    z = pickled((p + 1) * 3, protocol)
    assert isinstance(z, MessageNode) and (z.data, z.op_name) == (6, "multiply")
    parameter = z.parents[0].parents[0]
    assert type(parameter) is ParameterNode and parameter.bounds == (0, 9)
    assert (parameter.description, parameter.constraint) == ("a number", "small")
    z.backward("more")
    assert len(parameter.feedback) == 1
    assert list(z.inputs) == ["x", "y"]


def test_a_bundles_output_pickles_with_its_inputs():
    z = pickled(doubled(node(4, "n")))
    assert (z.data, z.op_name, z.description) == (8, "doubled", "Twice x.")
    assert z.inputs["x"].data == 4


def test_two_outputs_pickled_together_share_their_parameter():
    p = node(1, "p", trainable=True)
    a, b = pickled([p + 1, p + 2])
    assert a.parents[0] is b.parents[0]
    a, q = pickled([p + 1, p])
    assert a.parents[0] is q
    a, again = pickled((a, a))
    assert a is again


def test_a_node_inside_a_container_argument_pickles():
    a = node(1, "a", trainable=True)
    z = pickled(node([0]) + [a, 2])  # noqa: RUF005
    assert z.data == [0, 1, 2]
    z.backward("x")
    assert next(p for p in z.parents if isinstance(p, ParameterNode)).feedback


def test_unpickled_nodes_are_new_and_in_order():
    p = node(1, "p", trainable=True)
    late = pickled(p + 1)
    end = late + p  # younger than both its parents
    end.backward("x")
    assert len(late.parents[0].feedback) == len(p.feedback) == 1
    assert late.parents[0] is not p and late.parents[0].name != p.name


def test_an_exception_node_pickles():
    with pytest.raises(ExecutionError) as caught:
        node(1, "x", trainable=True) / 0
    failure = pickled(caught.value.exception_node)
    assert type(failure) is minitrace.ExceptionNode and "ZeroDivisionError" in failure.data
    assert failure.create_feedback("full") == caught.value.exception_node.create_feedback("full")
    again = pickled(caught.value)
    assert isinstance(again, ExecutionError) and again.exception_node.data == failure.data


def chain(length):
    end = start = node(0, "start", trainable=True)
    for _ in range(length):
        end = end + 1
    return start, end


@pytest.mark.parametrize("length", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_long_chain_pickles_copies_and_dies_without_recursion(length):
    start, end = chain(length)
    there = pickled((start, end))
    assert there[1].data == length and there[1].level == length
    there[1].backward("flat")
    assert len(there[0].feedback) == 1 and start.feedback == []
    root = copy.deepcopy(end)
    assert root.is_root and root.data == length and end.detach().data == length
    del start, end, there


def test_a_pickler_sees_each_parameter_and_may_put_its_own_in_its_place():
    """Roots pickle as themselves: so a copy sent elsewhere can come back to the parameters here."""
    p, q = node(1, "p", trainable=True), node(2, "q", trainable=True)
    file = io.BytesIO()

    class Sends(pickle.Pickler):
        def persistent_id(self, value):
            return value.name if isinstance(value, ParameterNode) else None

    class Receives(pickle.Unpickler):
        def persistent_load(self, name):
            return {"p:0": p, "q:0": q}[name]

    Sends(file).dump([(p + 1) * q, {"beside": q}])
    file.seek(0)
    z, beside = Receives(file).load()
    assert z.data == 4 and z.parents[0].parents[0] is p and z.parents[1] is q
    assert beside["beside"] is q


# ---- memory


def runs(p, times):
    for _ in range(times):
        z = doubled(p + 1) * [1][0] - p
        if z < 0:
            break
        with contextlib.suppress(ExecutionError):
            p / 0


def test_ten_thousand_forward_runs_leave_nothing():
    p = node(1, "p", trainable=True)
    runs(p, 10)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        runs(p, 10)
        before = tracemalloc.get_traced_memory()[0]
        runs(p, 10_000)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after - before < 20_000


def test_the_collector_finds_no_cycle_of_ours():
    def fail(x):
        raise ValueError("no")

    failing = bundle()(fail)
    p = node([1, 2], "p", trainable=True)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            a, b = p
            doubled(a + b)
            with contextlib.suppress(ExecutionError):
                failing(p)
            copy.deepcopy(pickled(a * b))
            p.zero_feedback()
        gc.collect()
        ours = [x for x in gc.garbage if type(x).__module__ == "minitrace"]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert ours == []


# ---- to_data


def test_to_data_unwraps_at_any_depth_and_keeps_the_kinds_of_containers():
    n = node(1)
    value = {"a": [n, (n, {n.data, 2})], "p": Pair(n, 2), n: deque([3]), "s": slice(n, None)}
    plain = to_data(value)
    assert plain["a"] == [1, (1, {1, 2})] and plain["p"] == Pair(1, 2) and plain[1] == deque([3])
    assert plain["s"] == slice(1, None) and type(plain["p"]) is Pair
    assert to_data(5) == 5 and to_data(n) == 1


@pytest.mark.parametrize(
    "value, plain",
    [
        (OrderedDict(a=node(1)), OrderedDict(a=1)),
        (defaultdict(list, a=node(1)), defaultdict(list, a=1)),
        (Counter(a=node(2)), Counter(a=2)),
        (frozenset([node(1)]), frozenset([1])),
        ({(node(1), 2): 3}, {(1, 2): 3}),
    ],
    ids=["OrderedDict", "defaultdict", "Counter", "frozenset", "key"],
)
def test_to_data_of_other_containers(value, plain):
    assert to_data(value) == plain and type(to_data(value)) is type(plain)


def test_to_data_leaves_a_container_without_nodes_as_it_is():
    value = [1, {"a": 2}]
    assert to_data(value) is value


def test_the_standard_operator_module_works_on_nodes():
    x = node([3, 1])
    assert operator.itemgetter(1)(x).data == 1 and operator.add(x, [2]).data == [3, 1, 2]
    assert operator.index(node(3)) == 3


# ---- to_text


class Silent:
    def __repr__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "value, shown",
    [
        (5, "5"),
        ("a\nb", r"'a\nb'"),
        ([1, (2.5, None)], "[1, (2.5, None)]"),
        (object(), "<object>"),
        ({"a": [Countdown(1)]}, "{'a': [<Countdown>]}"),
        (chain, "<function chain>"),
        ({"b", "a", "c"}, "{'a', 'b', 'c'}"),
        (frozenset({"b", "a"}), "frozenset({'a', 'b'})"),
        (Silent(), "<Silent>"),
        ("seen at 0x7f00", "'seen at 0x7f00'"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_a_value_as_text_is_its_repr_and_the_same_in_every_process(value, shown):
    assert to_text(value) == shown


def test_a_value_as_text_is_cut_in_the_middle_and_says_how_long_it_was():
    text = "start" + "x" * 1_000 + "end"
    assert to_text(text) == repr(text) == to_text(text, len(repr(text)))
    shown = to_text(text, 60)
    assert len(shown) <= 60 and shown.startswith("'start") and shown.endswith("end'")
    assert "(1,010 characters)" in shown


# ---- Containers of nodes, and what is shown of a value


def test_a_node_of_a_container_of_nodes_is_made_of_them():
    p = node(1, "p", trainable=True)
    both = node([p, {"k": (p, 2)}])
    assert both.data == [1, {"k": (1, 2)}] and [*both.inputs][:2] == ["x[0]", "x[1]['k'][0]"]
    assert backward(both, 1, SumPropagator())[p] == 2
    again = node([p, 2], "q", trainable=True)
    assert type(again).__name__ == "ParameterNode" and again.data == [1, 2] and again.is_root


def test_a_set_is_shown_in_order_wherever_it_stands():
    Point = namedtuple("Point", "x y")
    value = [Point({"b", "a"}, 1), {"k": (frozenset({3, "c"}), set())}]
    shown = "[Point(x={'a', 'b'}, y=1), {'k': (frozenset({'c', 3}), set())}]"
    assert to_text(value) == shown
    assert to_text((1,)) == "(1,)" and to_text({1: {2}}) == "{1: {2}}"


class Kinds(frozenset):
    pass


@dataclass(frozen=True)
class Tagged:
    tags: set
    note: str = "{}"


SEVERAL = {*"abcdefgh"}
SHOWN = "{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}"


@pytest.mark.parametrize(
    "value, shown",
    [
        (deque([SEVERAL]), f"deque([{SHOWN}])"),
        (defaultdict(set, k=SEVERAL), f"defaultdict(<class 'set'>, {{'k': {SHOWN}}})"),
        (Counter([frozenset(SEVERAL)]), f"Counter({{frozenset({SHOWN}): 1}})"),
        (Kinds(SEVERAL), f"Kinds({SHOWN})"),
        ([Tagged(SEVERAL)], f"[Tagged(tags={SHOWN}, note='{{}}')]"),
        (slice([SEVERAL]), f"slice(None, [{SHOWN}], None)"),
    ],
    ids=lambda each: "" if isinstance(each, str) else type(each).__name__,
)
def test_a_set_is_shown_in_order_in_every_container_and_dataclass(value, shown):
    before = copy.copy(value)
    assert to_text(value) == shown and value == before


def test_values_that_hold_each_other_are_shown_at_once():
    ring = [{"value": number} for number in range(5)]
    for number, each in enumerate(ring):
        each["next"], each["before"] = ring[(number + 1) % 5], ring[number - 1]
    assert to_text(ring[0]) == repr(ring[0])
    ring[0]["kinds"] = [set(), {"b", "a"}]
    assert "[set(), {'a', 'b'}]" in to_text(ring[0])
    ring[0]["self"] = ring
    assert len(repr(node(ring))) < 120


def test_identity_is_that_of_the_value_itself():
    x = [1]
    assert operators.is_(node(x), x).data is True and operators.is_not(node(x), x).data is False
    assert (operators.not_([]).data, operators.not_([]).description) == (True, "not x")


# ---- What a person types


ADVICE = [
    (lambda: setattr(node(1, "x"), "data", 2), AttributeError, "make a new node"),
    (lambda: setattr(node(1, "x", True), "data", 2), AttributeError, r"call its set\(value\)"),
    (
        lambda: node(5).set(3),
        AttributeError,
        r"'set'; a parameter has one: write node\(\.\.\., trainable=True\)",
    ),
    (lambda: node([5]).choices, AttributeError, r"'choices'; a parameter has one"),
    (
        lambda: node("a").find("a"),
        AttributeError,
        r"its value has one: write x\.call\('find', \.\.\.\)",
    ),
    (lambda: node("a").startswith("a"), AttributeError, r"x\.getattr\('startswith'\)"),
    (lambda: node("a").nonsense, AttributeError, "has no attribute 'nonsense'"),
    (lambda: node("a", True), TypeError, "a string, not True; write trainable=True"),
    (lambda: Node("a", 5), TypeError, "a node's name is a string, not 5"),
    (lambda: node("a", constraint="c"), TypeError, "add trainable=True"),
]


@pytest.mark.parametrize("act, kind, words", ADVICE)
def test_an_error_says_what_to_type(act, kind, words):
    with pytest.raises(kind, match=words):
        act()


def test_probes_for_attributes_find_none():
    x = node([1], trainable=True)
    assert not any(
        hasattr(x, name) for name in ["append_", "__array__", "parameters", "_x", "sort"]
    )
    assert not any(hasattr(y, name) for y in (node(5), Node) for name in ("sort", "find", "set"))
    assert getattr(x, "nothing", 5) == 5 and pickle.loads(pickle.dumps(x)).data == [1]


def test_a_power_with_a_modulus_is_recorded():
    x = node(3, "x")
    z = pow(x, 5, 7)
    assert z.data == pow(3, 5, 7) and x in [*z.parents] and pow(x, 5).data == 3**5
    assert z.rerun({x: 2}).data == pow(2, 5, 7)


def test_an_old_python_is_named(tmp_path):
    old = "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1 (old)'; import minitrace"
    ran = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, cwd=ROOT)
    assert "minitrace needs Python 3.10 or newer, and this is 3.9.1" in ran.stderr


# ---- Containers in an order that is the same on every run


def test_nodes_in_a_set_are_parents_in_their_order():
    names = [f"n{i}" for i in range(40)]
    nodes = [node(name) for name in names]
    made = bundle()(lambda xs: sorted(xs))({*nodes, *names[:5]})
    assert [each.data for each in made.parents][:40] == names


def test_deques_of_nodes_are_unwrapped_and_stay_deques():
    made = bundle()(lambda xs: xs)(deque([node(1), 2], 5))
    assert made.data == deque([1, 2]) and made.data.maxlen == 5 and len(made.parents) == 2


def test_a_container_of_nodes_keeps_its_name_and_words():
    x = node(1, "x", trainable=True)
    plan = node([x, 2], name="plan", description="What to do.")
    assert plan.name.startswith("plan:") and plan.description == "What to do."
    assert plan.data == [1, 2] and plan.parents[0] is x
