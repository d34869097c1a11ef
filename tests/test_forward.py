"""Section 2: bundles in all their forms, trainable code, exceptions as nodes, modules, isolation."""

import gc
import asyncio
import copy
import doctest
import functools
import inspect
import json
import linecache
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

import minitrace
import minitrace as mt
from minitrace import (
    ExceptionNode,
    ExecutionError,
    MessageNode,
    Module,
    Node,
    ParameterNode,
    TraceMissingInputsError,
    bundle,
    model,
    node,
    stop_tracing,
    to_data,
)
from minitrace import bundle as recorded

LIVE = 10


def parents(output):
    return {parent.name for parent in output.parents}


def reaches(output, parameter):
    """Does feedback on the output reach the parameter?"""
    parameter.zero_feedback()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output.backward("feedback")
    return len(parameter.feedback) == 1


# ---- description


def test_with_and_without_parentheses():
    @bundle
    def f(x):
        return x + 1

    @bundle()
    def g(x):
        return x + 1

    for z in (f(1), g(1)):
        assert isinstance(z, MessageNode) and z.data == 2 and list(z.inputs) == ["x"]


def test_the_description_gives_the_operators_name():
    @bundle("[shout] Say it loudly.")
    def f(text):
        return text.upper()

    z = f("a")
    assert (z.data, z.name, z.op_name, z.description) == ("A", "shout:0", "shout", "Say it loudly.")


def test_the_default_description_is_the_qualified_name_and_the_docstring():
    @bundle()
    def f(text):
        """Say it."""
        return text

    z = f("a")
    assert z.op_name == "test_the_default_description_is_the_qualified_name_and_the_docstring.f"
    assert z.description == "Say it."


def test_a_bundle_looks_like_its_function():
    @bundle()
    def f(a: int, b: str = "x") -> str:
        """Words."""

    assert (f.__name__, f.__doc__, f.__module__) == ("f", "Words.", __name__)
    assert str(inspect.signature(f)) == "(a: int, b: str = 'x') -> str"
    assert "0x" not in repr(f)


def test_only_callables_can_be_bundled():
    with pytest.raises(TypeError, match="@bundle marks a function, not 5"):
        bundle()(5)


# ---- arguments


@bundle()
def everything(a, /, b, c=3, *args, d, e=5, **kwargs):
    return [a, b, c, *args, d, e, *kwargs.values()]


@pytest.mark.parametrize(
    "args, kwargs, names",
    [
        ((1, 2), {"d": 4}, ["a", "b", "c", "d", "e"]),
        ((1,), {"b": 2, "d": 4, "c": 0}, ["a", "b", "c", "d", "e"]),
        ((1, 2, 3, 8, 9), {"d": 4}, ["a", "b", "c", "args_0", "args_1", "d", "e"]),
        ((1, 2), {"d": 4, "e": 6, "f": 7}, ["a", "b", "c", "d", "e", "f"]),
        ((1, 2), {"d": 4, "a": 7}, None),
        ((1, 2, 3, 4), {"d": 4, "args_0": 5}, None),
    ],
)
def test_each_argument_is_an_input_named_after_the_parameter(args, kwargs, names):
    z = everything(*args, **kwargs)
    result = everything.fun(*args, **kwargs)
    assert z.data == result and len(z.parents) == len(z.inputs) == len(result)
    if names:
        assert sorted(z.inputs) == sorted(names)
    wrapped = everything(*map(node, args), **{key: node(value) for key, value in kwargs.items()})
    assert wrapped.data == result


MISTAKES = [((), {}), ((1,), {"d": 4}), ((1, 2), {}), ((1, 2, 3), {"b": 2, "d": 4})]


@pytest.mark.parametrize("args, kwargs", MISTAKES)
def test_wrong_arguments_are_a_type_error_as_for_a_plain_function(args, kwargs):
    with pytest.raises(TypeError, match="everything"):
        everything(*args, **kwargs)


def test_unknown_and_too_many_arguments():
    @bundle()
    def f(x, /, y=1):
        return x

    for args, kwargs in (((), {"x": 1}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1, 2), {"y": 3})):
        with pytest.raises(TypeError, match=r"f\(\) "):
            f(*args, **kwargs)


def test_a_keyword_may_be_called_self():
    @bundle()
    def f(x, /, **kwargs):
        return kwargs

    assert f(1, self=2, args=3, name=4).data == {"self": 2, "args": 3, "name": 4}
    assert Methods.method(self=Methods(5), x=1).data == 6


def test_inputs_are_named_nodes_and_given_nodes_stay_themselves():
    @bundle()
    def f(x, y=5):
        return x + y

    x = node(1, "mine")
    z = f(x)
    assert z.inputs["x"] is x and z.inputs["y"].name.startswith("y:") and z.inputs["y"].data == 5
    assert f(3).inputs["x"].name == "x:0"


def test_a_default_may_be_a_parameter():
    p = node(5, "p", trainable=True)

    @bundle()
    def f(x, y=p):
        return x + y

    assert f(1).data == 6 and f(1).inputs["y"] is p and reaches(f(1), p)


def test_the_body_sees_plain_values():
    seen = []

    @bundle()
    def f(a, *b, **c):
        seen.extend([type(a), type(b[0]), type(c["k"])])

    f(node(1), node("x"), k=node([1]))
    assert seen == [int, str, list]


# ---- containers


CONTAINERS = [
    ("list", lambda p: [0, p]),
    ("tuple", lambda p: (0, p)),
    ("dict", lambda p: {"k": p}),
    ("deep", lambda p: {"k": [(0, {"l": [p]})]}),
    ("set", lambda p: {p}),
    ("key", lambda p: {p: 1}),
]


@pytest.mark.parametrize("make", [make for _, make in CONTAINERS], ids=[n for n, _ in CONTAINERS])
def test_a_node_inside_a_container_is_unwrapped_and_a_parent(make):
    @bundle()
    def f(x, *args, **kwargs):
        return repr([x, args, kwargs])

    p = node(7, "p", trainable=True)
    for args, kwargs in (((make(p),), {}), ((0, make(p)), {}), ((0,), {"k": make(p)})):
        z = f(*args, **kwargs)
        plain = repr([to_data(args[0]), tuple(map(to_data, args[1:])), to_data(kwargs)])
        assert z.data == plain and "Node" not in z.data
        assert any(parent is p for parent in z.parents) and reaches(z, p)


def test_each_node_in_a_container_is_an_input_with_its_place():
    @bundle()
    def f(xs):
        return sum(xs)

    a, b = node(1), node(2)
    z = f([a, b, a])
    inputs = z.inputs
    assert z.data == 4 and inputs["xs[0]"] is a and inputs["xs[1]"] is b


def test_the_container_given_is_not_changed():
    @bundle()
    def f(xs):
        return xs

    xs = [node(1), {"a": node(2)}]
    assert f(xs).data == [1, {"a": 2}]
    assert isinstance(xs[0], Node) and isinstance(xs[1]["a"], Node)


# ---- what is bundled


def test_a_lambda():
    f = bundle("[double] Twice.")(lambda x: 2 * x)
    assert f(node(2)).data == 4 and f(2).op_name == "double"
    assert bundle()(lambda x: 2 * x)(3).data == 6


def test_a_lambda_cannot_be_trainable():
    with pytest.raises(TypeError, match=r"lambda cannot be trainable.*use def"):
        bundle(trainable=True)(lambda x: x)


@pytest.mark.parametrize(
    "function, args, result",
    [(len, ([1, 2],), 2), (max, (1, 2), 2), (str.upper, ("a",), "A"), (int, ("7",), 7)],
)
def test_built_in_functions_and_classes(function, args, result):
    assert bundle()(function)(*map(node, args)).data == result


def test_a_callable_object_and_a_partial():
    class Adder:
        def __call__(self, x, y=2):
            return x + y

    z = bundle()(Adder())(node(1))
    assert z.data == 3 and list(z.inputs) == ["x", "y"]

    def f(a, b, c=3):
        "Add."
        return a + b + c

    z = bundle()(functools.partial(f, 1, c=10))(node(2))
    assert z.data == 13 and z.description == "Add." and "b" in z.inputs


class Methods:
    def __init__(self, base=1):
        self.base = base

    @bundle()
    def method(self, x):
        "A method."
        return self.base + x

    @staticmethod
    @bundle()
    def static_outside(x):
        return x + 1

    @bundle()
    @staticmethod
    def static_inside(x):
        return x + 1

    @classmethod
    @bundle()
    def class_outside(cls, x):
        return cls.__name__ + x

    @bundle()
    @classmethod
    def class_inside(cls, x):
        return cls.__name__ + x

    @property
    @bundle()
    def property_outside(self):
        return self.base * 2

    @bundle()
    @property
    def property_inside(self):
        return self.base * 3

    @bundle()
    def __call__(self, x):
        return self.base - x


def test_methods_and_self_is_an_input():
    thing = Methods(5)
    z = thing.method(node(2, "x"))
    assert (z.data, list(z.inputs), z.op_name) == (7, ["self", "x"], "Methods.method")
    assert Methods.method(thing, 2).data == 7 and thing(1).data == 4
    assert "0x" not in repr(z.inputs["self"])


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_static_and_class_methods_and_properties_in_either_order(where):
    thing = Methods(5)
    for owner in (thing, Methods):
        assert getattr(owner, f"static_{where}")(node(1)).data == 2
        assert getattr(owner, f"class_{where}")(node("x")).data == "Methodsx"
    z = getattr(thing, f"property_{where}")
    assert isinstance(z, MessageNode) and z.data in (10, 15)


def shout(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) + "!"

    return wrapper


@shout
@shout
@bundle()
@shout
@shout
def decorated(x):
    "Decorated."
    return "hi " + x


def test_several_decorators_above_and_below():
    z = decorated(node("you", "x"))
    assert z.data == "hi you!!!!" and z.op_name == "add"
    inner = z.parents[0].parents[0]
    assert inner.data == "hi you!!" and inner.description == "Decorated." and "x" in inner.inputs


def test_a_closure():
    def make(k):
        @bundle()
        def f(x):
            return k * x

        return f

    assert make(3)(node(2)).data == 6 and make(4)(2).data == 8


def test_a_returned_node_is_unwrapped():
    @bundle()
    def f(x):
        return node(x + 1)

    @bundle()
    def g(x):
        return [node(x), {"a": (node(x + 1),)}]

    assert f(1).data == 2 and g(1).data == [1, {"a": (2,)}]


def test_async_def_gives_a_coroutine_of_a_node():
    @bundle()
    async def f(x, fail=False):
        await asyncio.sleep(0)
        if fail:
            raise ValueError("no")
        return x + 1

    x = node(1, "x", trainable=True)
    coroutine = f(x)
    assert inspect.iscoroutine(coroutine)
    z = asyncio.run(coroutine)
    assert isinstance(z, MessageNode) and z.data == 2 and reaches(z, x)
    with pytest.raises(ExecutionError) as caught:
        asyncio.run(f(x, fail=True))
    assert caught.value.exception_node.data == "(ValueError) no"
    assert reaches(caught.value.exception_node, x)


def test_async_bundles_run_side_by_side():
    outside = node(5, "outside", trainable=True)

    @bundle()
    async def good(x):
        await asyncio.sleep(0.001 * (x % 3))
        return x

    @bundle()
    async def bad(x):
        await asyncio.sleep(0.001)
        return outside.data + x

    async def run():
        return await asyncio.gather(
            *(good(i) for i in range(5)), bad(1), good(9), return_exceptions=True
        )

    *first, wrong, last = asyncio.run(run())
    assert [z.data for z in first] == list(range(5)) and last.data == 9
    assert isinstance(wrong, TraceMissingInputsError)
    assert all(len(z.parents) == 1 for z in first)


def test_a_trainable_async_function_and_method():
    @bundle(trainable=True)
    async def f(x):
        return x + 1

    assert asyncio.run(f(1)).data == 2
    f.parameter.set("async def f(x):\n    return x + 100")
    z = asyncio.run(f(1))
    assert z.data == 101 and reaches(z, f.parameter)


# ---- recursion and nesting


def test_recursion_is_one_node():
    calls = []

    @bundle()
    def fib(n):
        calls.append(n)
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    n = node(8, "n", trainable=True)
    z = fib(n)
    assert z.data == 21 and type(z.data) is int and len(calls) > 50
    assert [p.name for p in z.parents] == ["n:0"] and z.name.endswith("fib:0")


def test_recursion_of_methods_and_of_trainable_code():
    class Tree:
        @bundle(trainable=True)
        def depth(self, t):
            return 1 + max(map(self.depth, t), default=0)

    t = Tree()
    z = t.depth([[], [[]]])
    assert z.data == 3 and type(z.data) is int
    t.depth.parameter.set("def depth(self, t):\n    return 10 + max(map(self.depth, t), default=0)")
    assert t.depth([[], [[]]]).data == 30


def test_mutual_recursion():
    @bundle()
    def even(n):
        return True if n == 0 else odd(n - 1)

    @bundle()
    def odd(n):
        return False if n == 0 else even(n - 1)

    z = even(node(7, "n"))
    assert z.data is False and len(z.parents) == 1 and odd(3).data is True


def test_a_bundle_inside_a_bundle_is_one_node_outside():
    @bundle()
    def inner(x):
        return x + 1

    @bundle()
    def outer(x):
        return inner(x) * 2

    z = outer(node(1, "x"))
    assert z.data == 4 and parents(z) == {"x:0"} and z.level == 1


def test_the_code_of_a_trainable_bundle_called_inside_gets_feedback():
    @bundle(trainable=True)
    def inner(x):
        return x + 1

    @bundle()
    def outer(x):
        return inner(x) * 2

    z = outer(1)
    assert z.data == 4 and reaches(z, inner.parameter)


# ---- nodes from outside


def test_reading_a_node_from_outside_is_an_error_that_names_it_and_the_fix():
    p = node(5, "p", trainable=True)

    @bundle()
    def f(x):
        return x + p.data

    words = (
        r"f\(\) used p:0, which is not among its arguments: pass it .*allow_external_dependencies"
    )
    with pytest.raises(TraceMissingInputsError, match=words):
        f(1)


USES = [
    lambda p: p.data + 1,
    lambda p: p + 1,
    lambda p: 1 + p,
    lambda p: -p,
    lambda p: p > 1,
    lambda p: p == 5,
    lambda p: 1 if p else 2,
    lambda p: int(p),
    lambda p: float(p),
    lambda p: f"{p}",
    lambda p: str(p),
    lambda p: p.getattr("real"),
    lambda p: mt.operators.add(p, 1),
    lambda p: [10, 20, 30, 40, 50, 60][p],
    lambda p: list(range(p)),
    lambda p: p,
    lambda p: [p],
    lambda p: bundle()(lambda x: x)(p),
    lambda p: node(p).data,
]


@pytest.mark.filterwarnings("ignore:the trace ends at this f-string")
@pytest.mark.parametrize("use", USES)
def test_every_way_to_use_a_node_from_outside_is_noticed(use):
    p = node(5, "p", trainable=True)
    with pytest.raises(TraceMissingInputsError, match="p:0"):
        bundle()(lambda x: use(p))(1)
    z = bundle(allow_external_dependencies=True)(lambda x: use(p))(1)
    assert z.data == to_data(use(p)) and reaches(z, p)


LISTS = [
    lambda p: len(p),
    lambda p: 1 in p,
    lambda p: [n.data for n in p],
    lambda p: p[0],
    lambda p: p.append(1),
    lambda p: p.len(),
]


@pytest.mark.parametrize("use", LISTS)
def test_every_way_to_use_a_list_from_outside_is_noticed(use):
    p = node([1, 2], "p", trainable=True)
    with pytest.raises(TraceMissingInputsError, match="p:0"):
        bundle()(lambda x: use(p))(1)
    assert reaches(bundle(allow_external_dependencies=True)(lambda x: use(p))(1), p)


def test_a_node_that_is_an_argument_too_may_be_read_from_outside():
    p = node(5, "p", trainable=True)

    @bundle()
    def f(x):
        return x + p.data

    assert f(p).data == 10 and len(f(p).parents) == 1


def test_a_node_made_inside_is_not_from_outside():
    @bundle()
    def f(x):
        return node(x) + node(1)

    assert f(1).data == 2


def test_what_an_inner_bundle_was_allowed_to_read_is_noticed_by_the_outer_one():
    p = node(5, "p", trainable=True)

    @bundle(allow_external_dependencies=True)
    def inner(x):
        return x + p.data

    @bundle()
    def outer(x):
        return inner(x) * 2

    with pytest.raises(TraceMissingInputsError, match="p:0"):
        outer(1)
    allowed = bundle(allow_external_dependencies=True)(lambda x: inner(x) * 2)
    assert allowed(1).data == 12 and reaches(allowed(1), p)


def test_a_failure_that_read_a_node_from_outside_reaches_it():
    p = node(0, "p", trainable=True)

    @bundle(allow_external_dependencies=True)
    def f(x):
        return x / p.data

    with pytest.raises(ExecutionError) as caught:
        f(1)
    assert reaches(caught.value.exception_node, p)


def test_external_names_never_take_the_place_of_an_argument():
    p = node(5, "p", trainable=True)

    @bundle(allow_external_dependencies=True)
    def f(p0):
        return p0 + p.data

    z = f(1)
    assert z.data == 6 and len(z.inputs) == 2 and z.inputs["p0"].data == 1


# ---- stop_tracing


def test_nothing_is_recorded_while_tracing_is_stopped():
    p = node(5, "p", trainable=True)

    @bundle()
    def f(x):
        return x + p.data  # not an error either

    with stop_tracing():
        y, z = p + 1, f(p)
    assert (y.data, z.data) == (6, 10) and y.parents == z.parents == ()
    assert (p + 1).parents


def test_stop_tracing_nests_and_an_exception_ends_it():
    p = node(1)
    with stop_tracing():
        with stop_tracing():
            pass
        assert (p + 1).parents == ()
    with pytest.raises(KeyError), stop_tracing():
        raise KeyError
    assert (p + 1).parents


def test_stop_tracing_is_a_decorator_too_and_holds_for_this_thread_only():
    p, seen = node(1), []
    with stop_tracing():
        thread = threading.Thread(target=lambda: seen.append((p + 1).parents))
        thread.start()
        thread.join()
    assert len(seen[0]) == 2


def test_failures_while_tracing_is_stopped():
    with stop_tracing(), pytest.raises(ExecutionError) as caught:
        bundle()(lambda x: 1 / x)(node(0))
    assert caught.value.exception_node.parents == ()


# ---- traceable_code


def test_traceable_code_runs_the_body_on_nodes():
    p = node(5, "p", trainable=True)

    @bundle(traceable_code=True)
    def f(x):
        return x * 2 + p

    z = f(node(1, "x"))
    assert (z.data, z.op_name, z.parents[0].op_name) == (7, "add", "multiply") and reaches(z, p)


# ---- trainable code: the source


@bundle(trainable=True)
def commented(x):  # a comment on the line of def
    """Words."""
    # a comment of its own
    y = x  + 1  # fmt: skip

    return y  # noqa: RET504


def test_the_source_is_exact_with_comments_and_without_the_decorator():
    assert commented.parameter.data == (
        "def commented(x):  # a comment on the line of def\n"
        '    """Words."""\n'
        "    # a comment of its own\n"
        "    y = x  + 1  # fmt: skip\n"
        "\n"
        "    return y  # noqa: RET504"
    )
    assert commented.parameter.name.startswith("__code:")


def test_the_output_is_an_eval_with_the_code_as_an_input():
    z = commented(node(1, "x"))
    assert (z.data, z.op_name, list(z.inputs)) == (2, "eval", ["__code", "x"])
    assert z.inputs["__code"] is commented.parameter and z.parents[0] is commented.parameter


def test_the_signature_is_the_constraint():
    @bundle(trainable=True)
    def f(a: int, *, b: str = "x") -> str:
        return b * a

    assert "def f(a: int, *, b: str='x') -> str:" in f.parameter.constraint


def test_an_inner_function_is_dedented_but_not_its_texts():
    @bundle(trainable=True)
    def f(x):
        return f"""{x}
        indented
      less"""

    assert f.parameter.data.splitlines() == [
        "def f(x):",
        '    return f"""{x}',
        "        indented",
        '      less"""',
    ]
    assert f(1).data == "1\n        indented\n      less"
    f.parameter.set(f.parameter.data.replace("return", "return 'new ' +"))
    assert f(1).data == "new 1\n        indented\n      less"


def test_a_multi_line_signature_and_no_docstring():
    @bundle(trainable=True)
    def f(
        a,
        b=(1, 2),  # a pair
        *,
        c: "dict[str, int] | None" = None,
    ):
        return a

    lines = f.parameter.data.splitlines()
    assert lines[0] == "def f(" and lines[2] == "    b=(1, 2),  # a pair"
    assert f(5).data == 5


learn = bundle(trainable=True)
train = functools.partial(bundle, trainable=True)


def test_aliases_of_bundle():
    @learn
    def a(x):
        return x

    @train()
    def b(x):
        return x

    @recorded(trainable=True)
    def c(x):
        return x

    @mt.bundle("[named] Words.", trainable=True)
    def d(x):
        return x

    @minitrace.bundle(trainable=True)
    def e(x):
        return x

    for f in (a, b, c, d, e):
        assert f.parameter.data == f"def {f.__name__}(x):\n    return x" and f(1).data == 1


def test_bundle_called_as_a_function():
    def f(x):
        return x + 1

    g = bundle(trainable=True)(f)
    assert g.parameter.data == "def f(x):\n    return x + 1" and g(1).data == 2


@shout
@bundle(trainable=True)
@shout
def between(x):
    return "a" + x


def test_decorators_above_go_and_those_below_stay_and_work():
    inner = between.__wrapped__
    assert inner.parameter.data == '@shout\ndef between(x):\n    return "a" + x'
    assert between("b").data == "ab!!"
    inner.parameter.set('@shout\ndef between(x):\n    return "z" + x')
    assert between("b").data == "zb!!"


def test_a_decorator_below_may_be_local():
    def wraps(function):
        return functools.wraps(function)(lambda x: function(x) + 1)

    @bundle(trainable=True)
    @wraps
    def g(x):
        return x

    assert g.parameter.data == "@wraps\ndef g(x):\n    return x"
    g.parameter.set("@wraps\ndef g(x):\n    return x + 10")
    assert g(1).data == 12


def test_two_functions_of_one_name():
    def make(first):
        if first:

            @bundle(trainable=True)
            def f(x):
                return x + 1

        else:

            @bundle(trainable=True)
            def f(x):
                return x + 2

        return f

    assert "x + 1" in make(True).parameter.data and "x + 2" in make(False).parameter.data


# ---- trainable code: what it sees


def test_the_code_of_the_parameter_runs():
    @bundle(trainable=True)
    def f(x):
        return x + 1

    assert f(1).data == 2
    f.parameter.set("def f(x):\n    return x + 100")
    assert f(1).data == 101


def test_globals_are_live(monkeypatch):
    @bundle(trainable=True)
    def f(x):
        return x + LIVE

    f.parameter.set("def f(x):\n    return x + LIVE + 100")
    assert f(1).data == 111
    monkeypatch.setitem(globals(), "LIVE", 20)
    assert f(1).data == 121


def test_closures_are_live_and_can_be_written():
    k, calls = 3, 0

    @bundle(trainable=True)
    def f(x):
        nonlocal calls
        calls += 1
        return k * x

    f.parameter.set("def f(x):\n    nonlocal calls\n    calls += 10\n    return k * x + 100")
    assert (f(1).data, calls) == (103, 10)
    k = 4
    assert f(1).data == 104


def test_a_global_statement_writes_the_users_global(monkeypatch):
    monkeypatch.setitem(globals(), "COUNT", 0)

    @bundle(trainable=True)
    def f(x):
        global COUNT
        COUNT += 1
        return COUNT

    f.parameter.set("def f(x):\n    global COUNT\n    COUNT += 5\n    return COUNT")
    assert f(1).data == 5 and COUNT == 5


def test_helpers_and_imports_around_the_function_and_nothing_leaks():
    @bundle(trainable=True)
    def f(x):
        return x

    before = set(globals())
    f.parameter.set(
        "import math as my_math\nfrom json import dumps\n\nSCALE = 10\n\n"
        "def my_helper(x):\n    return my_math.floor(x) * SCALE\n\n"
        "def f(x):\n    return dumps([my_helper(x), my_recursion(3)])\n\n"
        "def my_recursion(n):\n    return n and n + my_recursion(n - 1)\n"
    )
    assert f(1.5).data == "[10, 6]"
    assert set(globals()) == before


def test_defaults_are_those_of_the_function():
    default = [1]

    @bundle(trainable=True)
    def f(x, y=default, *, z=default):
        return [x, y is default, z is default]

    f.parameter.set(
        "def f(x, y=default, *, z=default):\n    return ['new', y is default, z is default]"
    )
    assert f(1).data == ["new", True, True]


def test_annotations_of_new_code_need_not_be_known():
    @bundle(trainable=True)
    def f(x):
        return x

    f.parameter.set("def f(x):\n    y: Unknown = x + 1\n    return y")
    assert f(1).data == 2


def test_a_recursive_closure():
    @bundle(trainable=True)
    def fact(n):
        return 1 if n < 2 else n * fact(n - 1)

    assert fact(5).data == 120
    fact.parameter.set("def fact(n):\n    return 2 if n < 2 else n * fact(n - 1)")
    z = fact(node(5, "n"))
    assert z.data == 240 and len(z.parents) == 2


def test_new_code_is_compiled_once():
    @bundle(trainable=True)
    def f(x):
        return x

    f.parameter.set("BORN = list()\ndef f(x):\n    return BORN")  # made when the definition runs
    assert f(1).data is f(1).data


def test_wrong_code_is_refused_with_a_reason_and_never_stored():
    @bundle(trainable=True)
    def f(x):
        return x

    before = f.parameter.data
    for code in (
        "def f(x:\n  return x",
        "def g(x):\n    return x",
        "def f(x, y):\n    return x",
        "",
    ):
        with pytest.raises(ValueError, match="__code"):
            f.parameter.set(code)
        assert f.parameter.data == before and f(1).data == 1


# ---- trainable code: tracebacks and sources


def test_getsource_of_the_running_function_shows_the_current_text():
    @bundle(trainable=True)
    def f(x):
        return inspect.getsource(sys._getframe().f_code)

    assert "first" not in f(1).data
    new = "# first\ndef f(x):\n    # new\n    return inspect.getsource(sys._getframe().f_code)"
    f.parameter.set(new)
    assert "# new" in f(1).data


def test_a_traceback_shows_the_line_of_the_current_text():
    @bundle(trainable=True, catch_execution_error=False)
    def f(x):
        return x

    f.parameter.set("def f(x):\n    y = x\n    return y / 0  # here it fails")
    with pytest.raises(ZeroDivisionError) as caught:
        f(1)
    linecache.checkcache()
    assert "return y / 0  # here it fails" in "".join(traceback.format_exception(caught.value))


def test_full_feedback_shows_the_source_with_the_failing_line_marked():
    @bundle(trainable=True)
    def f(x):
        y = x
        return y / 0

    for text in (None, "def f(x):\n    z = 1\n    return x / 0"):
        if text:
            f.parameter.set(text)
        with pytest.raises(ExecutionError) as caught:
            f(1)
        failure = caught.value.exception_node
        assert failure.create_feedback() == failure.data == "(ZeroDivisionError) division by zero"
        full = failure.create_feedback("full").splitlines()
        marked = [line for line in full if "<--" in line]
        assert full[0] == failure.data and len(marked) == 1 and "/ 0" in marked[0]
        assert "def f(x):" in full and "minitrace" not in "".join(full)
    assert "    z = 1" in full
    with pytest.raises(ValueError, match="'simple' and 'full', not 'long'"):
        failure.create_feedback("long")


def test_full_feedback_of_a_function_that_is_not_trainable():
    @bundle()
    def f(x):
        y = helper(x)
        return y  # noqa: RET504

    def helper(x):
        return x["missing"]

    with pytest.raises(ExecutionError) as caught:
        f({})
    full = caught.value.exception_node.create_feedback("full")
    assert "y = helper(x)   <-- KeyError" in full and 'return x["missing"]' in full
    assert "@bundle" not in full


def test_full_feedback_where_no_source_can_be_had():
    space = {}
    exec("def f(x):\n    return 1 / x", space)
    with pytest.raises(ExecutionError) as caught:
        bundle()(space["f"])(0)
    assert caught.value.exception_node.create_feedback("full").startswith("(ZeroDivisionError)")


# ---- trainable code: where the source is found


def run(*arguments, cwd=None, stdin=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
    )


SCRIPT = """
from minitrace import bundle, node

@bundle(trainable=True)
def f(x):
    # why
    return x + 1

print(f.parameter.data)
print(f(node(1)).data)
f.parameter.set("def f(x):\\n    return x + 100")
print(f(1).data)
"""
PRINTED = "def f(x):\n    # why\n    return x + 1\n2\n101\n"


def test_in_a_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run("script.py", cwd=tmp_path)
    assert done.stdout == PRINTED, done.stderr


def test_with_c_there_is_a_clear_error_or_the_source():
    done = run("-c", SCRIPT)
    assert done.stdout == PRINTED or (
        "source of f cannot be read" in done.stderr and "source=" in done.stderr
    )


def test_with_c_a_source_can_be_given():
    done = run(
        "-c",
        "from minitrace import bundle\n"
        "def f(x): return x\n"
        "f = bundle(trainable=True, source='def f(x): return x')(f)\n"
        "print(f.parameter.data, f(1).data)",
    )
    assert done.stdout == "def f(x): return x 1\n", done.stderr


def test_in_exec_there_is_a_clear_error_and_source_works():
    space = {"bundle": bundle}
    code = "@bundle(trainable=True{})\ndef f(x):\n    return x + 1\n"
    with pytest.raises(ValueError, match=r"source of f cannot be read .*source=text"):
        exec(code.format(""), space)
    exec(code.format(r", source='def f(x):\n    return x + 1'"), space)
    f = space["f"]
    assert f.parameter.data == "def f(x):\n    return x + 1" and f(1).data == 2
    f.parameter.set("def f(x):\n    return x + 100")
    assert f(1).data == 101


def test_a_source_must_define_the_function():
    def f(x):
        return x

    with pytest.raises(ValueError, match=r"does not define f\(\)"):
        bundle(trainable=True, source="def g(x): return x")(f)


@pytest.mark.parametrize("thing", [len, functools.partial(print), print])
def test_what_has_no_source_gives_a_clear_error(thing):
    with pytest.raises(ValueError, match="source"):
        bundle(trainable=True)(thing)


def test_a_trainable_callable_object_is_a_clear_error_or_works():
    class Adder:
        def __call__(self, x):
            return x + 1

    try:
        assert bundle(trainable=True)(Adder())(1).data == 2
    except (TypeError, ValueError) as error:
        assert "source" in str(error)


def test_in_a_doctest():
    text = """
    >>> from minitrace import bundle
    >>> @bundle(trainable=True)
    ... def f(x):
    ...     # why
    ...     return x + 1
    >>> print(f.parameter.data)
    def f(x):
        # why
        return x + 1
    >>> f(1).data
    2
    """
    test = doctest.DocTestParser().get_doctest(text, {}, "t", None, None)
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(test, out=lambda text: None).failed == 0


def test_in_a_notebook():
    cell = "@bundle(trainable=True)\ndef f(x):\n    # why\n    return x + 1\n"
    name = "<ipython-input-1-abcdef>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
    space = {"bundle": bundle, "__name__": "__main__"}
    exec(compile(cell, name, "exec"), space)
    assert space["f"].parameter.data == "def f(x):\n    # why\n    return x + 1"
    assert space["f"](1).data == 2


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the prompt keeps its source from 3.13")
def test_on_the_plain_prompt():
    pty = pytest.importorskip("pty")
    del pty
    done = run("-i", "-q", stdin=SCRIPT.replace("\n    return x + 1\n", "\n    return x + 1\n\n"))
    assert "101" in done.stdout or "cannot be read" in done.stderr


# ---- trainable methods


class Agent:
    def __init__(self, base=0):
        self.base = base
        self.lock = threading.Lock()  # cannot be copied

    @bundle(trainable=True)
    def act(self, x):
        "Act."
        return self.base + x

    @bundle(trainable=True)
    def plan(self, x):
        return self.act(x) * 2


def test_each_instance_owns_its_code():
    a, b = Agent(1), Agent(2)
    a.act.parameter.set("def act(self, x):\n    return self.base * 100")
    assert (a.act(1).data, b.act(1).data) == (100, 3)
    assert a.act.parameter is a.act.parameter and a.act.parameter is not b.act.parameter
    assert list(a.act(1).inputs) == ["__code", "self", "x"]
    assert a.act(1).inputs["__code"] is a.act.parameter


def test_a_method_can_be_replaced_on_an_instance_and_put_back(monkeypatch):
    a = Agent(1)
    with monkeypatch.context() as patch:
        patch.setattr(a, "act", lambda x: 100 * x)
        assert a.act(2) == 100 * 2 and a.plan(2).data == 400
    a.act = lambda x: 5
    del a.act
    assert a.act(2).data == 3


def test_no_address_shows():
    z = Agent().act(1)
    assert "0x" not in repr(z.inputs["self"]) and "0x" not in repr(Agent().act)


def test_a_method_that_calls_another_passes_feedback_to_both():
    a = Agent()
    for _ in range(2):  # the first call is like the second
        z = a.plan(3)
        assert z.data == 6 and reaches(z, a.plan.parameter) and reaches(z, a.act.parameter)


def test_slots():
    class Slim:
        __slots__ = ("base",)

        def __init__(self, base):
            self.base = base

        @bundle(trainable=True)
        def act(self, x):
            return self.base + x

    a = Slim(1)
    assert a.act(2).data == 3 and reaches(a.act(2), a.act.parameter)
    a.act.parameter.set("def act(self, x):\n    return self.base * 100")
    assert a.act(2).data == 100


def test_a_subclass_may_call_the_method_it_replaces():
    class Base(Module):
        @bundle(trainable=True)
        def act(self, x):
            return x + 1

    class Sub(Base):
        @bundle(trainable=True)
        def act(self, x):
            return super().act(x) * 10

    s = Sub()
    z = s.act(node(1, "x"))
    assert z.data == 20
    s.act.parameter.set("def act(self, x):\n    return super().act(x) * 100")
    assert s.act(1).data == 200


def test_super_and_private_names_work_in_new_code():
    class Base:
        def hello(self):
            return "hello"

    class Sub(Base):
        def __init__(self):
            self.__secret = 5

        @bundle(trainable=True)
        def act(self):
            return super().hello() + str(self.__secret)

    s = Sub()
    assert s.act().data == "hello5"
    s.act.parameter.set(s.act.parameter.data.replace("return", "return 'new ' +"))
    assert s.act().data == "new hello5"


def test_trainable_static_and_class_methods():
    class Tools(Module):
        @bundle(trainable=True)
        @staticmethod
        def static(x):
            return x + 1

        @classmethod
        @bundle(trainable=True)
        def make(cls, x):
            return cls.__name__ + x

    assert Tools.static(1).data == 2 and Tools.make("!").data == "Tools!"
    assert Tools.static.parameter.data.endswith("def static(x):\n    return x + 1")
    Tools.static.parameter.set("def static(x):\n    return x + 100")
    Tools.make.parameter.set("def make(cls, x):\n    return cls.__name__ + 2 * x")
    assert Tools().static(1).data == 101 and Tools().make("!").data == "Tools!!"
    assert len(Tools().parameters()) == 2


# ---- exceptions as nodes


def test_an_exception_is_a_node_whose_parents_are_the_inputs():
    @bundle()
    def f(x, y):
        raise ValueError("too bad")

    x = node(1, "x", trainable=True)
    with pytest.raises(ExecutionError, match=r"\(ValueError\) too bad") as caught:
        f(x, 2)
    error, failure = caught.value, caught.value.exception_node
    assert isinstance(failure, ExceptionNode) and failure.data == "(ValueError) too bad"
    assert list(failure.inputs) == ["x", "y"] and failure.parents[0] is x
    assert type(error.__cause__) is ValueError and isinstance(error, minitrace.MinitraceError)
    assert reaches(failure, x)


class Quiet(Exception):
    pass


class Wordy(Exception):
    def __init__(self, a, b):
        self.a, self.b = a, b

    def __str__(self):
        return f"{self.a} and {self.b}"


@pytest.mark.parametrize(
    "error, words",
    [
        (Quiet, "(Quiet)"),
        (Quiet(), "(Quiet)"),
        (Wordy(1, 2), "(Wordy) 1 and 2"),
        (KeyError("k"), "(KeyError) 'k'"),
        (StopIteration(3), "(StopIteration) 3"),
        (AssertionError(), "(AssertionError)"),
    ],
)
def test_exceptions_without_arguments_and_others(error, words):
    @bundle()
    def f():
        raise error

    with pytest.raises(ExecutionError) as caught:
        f()
    assert caught.value.exception_node.data == words


def test_a_bundle_inside_a_bundle_reports_the_innermost_failure():
    @bundle()
    def inner(x):
        return {}[x]

    @bundle()
    def middle(x):
        return inner(x)

    @bundle()
    def outer(x):
        return middle(x)

    x = node("k", "x", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        outer(x)
    failure = caught.value.exception_node
    assert failure.data == "(KeyError) 'k'" and type(caught.value.__cause__) is KeyError
    assert failure.op_name.endswith("outer") and failure.parents[0] is x
    full = failure.create_feedback("full")
    assert "return {}[x]   <-- KeyError" in full


def test_an_inner_failure_that_is_caught_is_none():
    @bundle()
    def inner(x):
        return 1 / x

    @bundle()
    def outer(x):
        try:
            return inner(x)
        except ExecutionError as error:
            return error.exception_node.data

    assert outer(0).data == "(ZeroDivisionError) division by zero"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("reads", [False, True])
def test_what_ends_a_program_is_not_swallowed(kind, reads):
    outside = node(1, "outside")

    @bundle()
    def f(x):
        if reads:
            outside.data  # noqa: B018
        raise kind

    with pytest.raises(kind):
        f(1)
    assert (node(1) + 1).parents  # and nothing is left open


def test_catch_execution_error_false_lets_the_original_through():
    @bundle(catch_execution_error=False)
    def f(x):
        raise Quiet

    with pytest.raises(Quiet):
        f(1)


def test_the_librarys_own_errors_are_not_the_programs():
    p = node(1, "p")

    @bundle()
    def inner(x):
        return p.data

    with pytest.raises(TraceMissingInputsError):
        bundle()(lambda x: inner(x))(1)


# ---- a bundle that changes its argument


@pytest.mark.parametrize(
    "value, change",
    [
        ([2, 1], lambda x: x.append(3)),
        ([2, 1], lambda x: x.sort()),
        ([2, 1], lambda x: x.__setitem__(0, 9)),
        ({"a": 1}, lambda x: x.update(b=2)),
        ({"a": 1}, lambda x: x.__setitem__("a", 2)),
        ({"a": 1}, lambda x: x.clear()),
        ({1}, lambda x: x.add(2)),
    ],
)
def test_a_bundle_that_changes_its_argument_gets_a_warning_that_names_it(value, change):
    @bundle()
    def careless(things):
        change(things)

    for given in (copy.copy(value), node(copy.copy(value))):
        with pytest.warns(UserWarning, match=r"careless\(\) changed .*things") as caught:
            careless(given)
        assert caught[0].filename == __file__


def test_an_argument_that_is_only_read_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle()(lambda x, *a, **k: sorted(x))([2, 1], [3], k={1: 2})


# ---- Module


class Small(Module):
    def __init__(self):
        self.w = node(2, "w", trainable=True)
        self.plain = node(7)

    def forward(self, x):
        return self.w * x


class Big(Module):
    prompt = node("words", "prompt", trainable=True)

    def __init__(self):
        self.small = Small()
        self.many = [Small(), (node(1, "one", trainable=True), 5)]
        self.table = {"a": node(3, "a", trainable=True), "b": {"c": Small()}}
        self.again = self.small.w
        self.me = self

    @property
    def danger(self):
        raise RuntimeError("a property was run")

    @bundle(trainable=True)
    def act(self, x):
        return x

    @bundle()
    def fixed(self, x):
        return x


PATHS = {"small.w", "many.0.w", "many.1.0", "table.a", "table.b.c.w", "act", "prompt"}


def test_parameters_are_found_everywhere_each_once():
    big = Big()
    found = big.parameters_dict()
    assert set(found) == PATHS
    assert {*map(id, big.parameters())} == {*map(id, found.values())}
    assert found["act"] is big.act.parameter and found["small.w"] is big.small.w


def test_a_call_runs_forward():
    assert Small()(node(3)).data == 6
    with pytest.raises(NotImplementedError, match=r"Module has no forward\(\)"):
        Module()()


def test_no_parameter_is_lost_when_paths_are_alike():
    class Twins(Module):
        def __init__(self):
            self.d = {1: node(1, trainable=True), "1": node(2, trainable=True)}
            setattr(self, "d.1", node(3, trainable=True))

    assert len(Twins().parameters()) == 3 == len(Twins().parameters_dict())


def test_a_decorated_trainable_method_is_found():
    class Loud(Module):
        @shout
        @shout
        @bundle(trainable=True)
        def act(self, x):
            return x

    assert len(Loud().parameters()) == 1


def test_the_order_of_parameters_is_the_same_every_time():
    big = Big()
    assert [*big.parameters_dict()] == [*big.parameters_dict()] == [*Big().parameters_dict()]


def test_save_and_load(tmp_path):
    a, b, path = Big(), Big(), tmp_path / "module.json"
    a.small.w.set(9)
    a.act.parameter.set("def act(self, x):\n    return 100")
    a.save(path)
    b.load(str(path))
    assert b.small(1).data == 9 and b.act(1).data == 100
    assert json.loads(path.read_text()) and os.listdir(tmp_path) == ["module.json"]


@pytest.mark.parametrize(
    "value",
    [1, 1.5, "ü\n", True, None, [1, (2, "x")], {"a": {1: 2}}, (1, 2), {1, 2}, b"\x00", 10**30],
)
def test_values_survive_saving(value, tmp_path):
    class Box(Module):
        def __init__(self, value):
            self.p = node(value, trainable=True)

    Box(value).save(tmp_path / "b")
    box = Box(type(value)() if value is not None else None)
    box.load(tmp_path / "b")
    assert box.p.data == value and type(box.p.data) is type(value)


class Two(Module):
    def __init__(self, *names):
        for name in names:
            setattr(self, name, node(1, name, trainable=True, bounds=(0, 9)))


def test_load_lists_what_is_missing_and_what_is_extra(tmp_path):
    Two("a", "b").save(tmp_path / "m")
    other = Two("b", "c")
    with pytest.raises(ValueError, match=r"missing \['c'\], extra \['a'\]"):
        other.load(tmp_path / "m")


def test_nothing_is_half_loaded(tmp_path):
    path = tmp_path / "m"
    saved = Two("a", "b")
    saved.a.set(5)
    saved.save(path)
    path.write_text(path.read_text().replace('"b": 1', '"b": 99'))
    other = Two("a", "b")
    with pytest.raises(ValueError, match=r"b:.* cannot take 99.*between 0 and 9"):
        other.load(path)
    assert other.a.data == 1
    for text in ("", "[]", "{}", '{"parameters": []}', "not json"):
        path.write_text(text)
        with pytest.raises(ValueError):
            other.load(path)


def test_a_value_that_json_cannot_hold_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "m"
    path.write_text("old")
    box = Two("a")
    box.thing = node(object(), "thing", trainable=True)
    with pytest.raises(TypeError, match=r"thing.*object"):
        box.save(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["m"]


def test_copy_shares_parameters_also_code():
    m = Pickled()
    shared = m.copy()
    assert shared is not m and shared.w is m.w
    assert {*map(id, shared.parameters())} == {*map(id, m.parameters())}


def test_deepcopy_shares_no_parameters_and_keeps_what_is_one_thing_one():
    big = Big()
    own = copy.deepcopy(big)
    assert not {*map(id, own.small.parameters())} & {*map(id, big.parameters())}
    assert own.again is own.small.w and own.me is own
    own.small.w.set(100)
    assert big.small.w.data == 2


def test_a_deep_copy_of_an_agent_with_trainable_methods_works_alone():
    class Team(Module):
        @bundle(trainable=True)
        def act(self, x):
            return x + 1

        @bundle(trainable=True)
        def plan(self, x):
            return self.act(x) * 2

    team = Team()
    team.act.parameter.set("def act(self, x):\n    return x + 10")
    assert team.plan(1).data == 22 and len(team.parameters()) == 2
    own = copy.deepcopy(team)
    own.act.parameter.set("def act(self, x):\n    return x + 100")
    assert own.plan(1).data == 202 and team.plan(1).data == 22
    assert reaches(own.plan(1), own.act.parameter) and len(own.parameters()) == 2


class Pickled(Module):
    def __init__(self):
        self.w = node(2, "w", trainable=True)

    @bundle(trainable=True)
    def act(self, x):
        return self.w.data + x


def test_modules_pickle_with_their_code():
    m = Pickled()
    m.w.set(5)
    m.act.parameter.set("def act(self, x):\n    return 'new'")
    again = pickle.loads(pickle.dumps(m))
    assert again.w.data == 5 and again.act(1).data == "new"
    assert again.act.parameter is not m.act.parameter
    assert Pickled().act.parameter.data != m.act.parameter.data


def test_the_output_of_a_trainable_method_pickles():
    class_level = commented(node(1, "x"))
    z = pickle.loads(pickle.dumps(class_level))
    assert (
        z.data == 2 and z.op_name == "eval" and z.inputs["__code"].data == commented.parameter.data
    )


def test_a_bound_method_kept_in_an_attribute_is_copied_with_its_object():
    class Holder(Module):
        def __init__(self):
            self.tool = self.act

        @bundle(trainable=True)
        def act(self, x):
            return x + 1

    own = copy.deepcopy(Holder())
    assert own.tool(1).data == 2 and len(own.parameters()) == 1
    assert own.tool.parameter is own.act.parameter


# ---- model


@model
class Greeter:
    "It greets."

    kind = "polite"

    def __init__(self, word="Hello"):
        self.word = node(word, "word", trainable=True)

    @bundle(trainable=True)
    def greet(self, word, name):
        return word + ", " + name

    def forward(self, name):
        return self.greet(self.word, name)


def test_model_makes_a_class_a_module_and_keeps_what_it_is():
    g = Greeter("Hi")
    assert isinstance(g, Greeter) and isinstance(g, Module)
    assert (Greeter.__name__, Greeter.__doc__, Greeter.__module__) == (
        "Greeter",
        "It greets.",
        __name__,
    )
    assert Greeter.__qualname__ == "Greeter" and Greeter.kind == "polite"
    assert set(g.parameters_dict()) == {"word", "greet"}
    z = g("Ada")
    assert z.data == "Hi, Ada" and reaches(z, g.word) and reaches(z, g.greet.parameter)
    again = pickle.loads(pickle.dumps(g))
    assert again("Bob").data == "Hi, Bob"


def test_model_works_with_super_and_subclasses():
    @model
    class Loud(Greeter):
        def __init__(self):
            super().__init__("HEY")

    assert Loud()("Ada").data == "HEY, Ada" and len(Loud().parameters()) == 2


# ---- plain containers of nodes


def test_plain_containers_of_nodes_work_everywhere():
    words = [node("a", "w", trainable=True), {"k": node("b", "v", trainable=True)}]

    @bundle()
    def f(words):
        return words[0] + words[1]["k"]

    z = f(words)
    assert z.data == "ab" and reaches(z, words[0]) and reaches(z, words[1]["k"])
    assert to_data(words) == ["a", {"k": "b"}]


# ---- isolation


@bundle()
def step(x, fail):
    if fail:
        raise ValueError(f"{x}")
    return x + 1


def work(n):
    """Trace, stop tracing and fail; what came of it."""
    p = node(n, f"p{n}", trainable=True)
    seen = []
    for i in range(20):
        with stop_tracing():
            seen.append(step(p, False).parents == ())
        try:
            step(p, i % 2)
        except ExecutionError as error:
            seen.append(error.exception_node.data == f"(ValueError) {n}")
        z = step(p, False)
        seen.append(z.data == n + 1 and z.parents[0] is p)
        seen.append((p + i).parents[0] is p)
    z.backward("x")
    seen.append(len(p.feedback) == 1)
    return all(seen), p.name


def test_eight_threads_never_see_each_other():
    with ThreadPoolExecutor(8) as pool:
        results = [*pool.map(work, range(64))]
    assert all(good for good, _ in results)
    assert [name for _, name in results] == [f"p{n}:0" for n in range(64)]


def test_names_are_unique_across_threads():
    with ThreadPoolExecutor(8) as pool:
        names = [*pool.map(lambda _: [node(1, "x").name for _ in range(500)], range(8))]
    assert len({name for some in names for name in some}) == 4_000


def test_a_hundred_tasks_never_see_each_other():
    @bundle()
    async def later(x, fail):
        await asyncio.sleep(0)
        if fail:
            raise ValueError(f"{x}")
        return x + 1

    async def task(n):
        p = node(n, f"p{n}", trainable=True)
        with stop_tracing():
            await asyncio.sleep(0)
            stopped = await later(p, False)
            await asyncio.sleep(0)
        try:
            await later(p, n % 2)
            failed = False
        except ExecutionError as error:
            failed = error.exception_node.data == f"(ValueError) {n}"
        z = await later(p, False)
        z.backward("x")
        return stopped.parents == () and failed == bool(n % 2) and len(p.feedback) == 1

    async def main():
        return await asyncio.gather(*map(task, range(100)))

    assert all(asyncio.run(main()))


def test_copying_a_context_carries_the_state_to_a_thread_of_ones_own():
    import contextvars

    p, seen = node(1), []
    with stop_tracing():
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(lambda: seen.append(p + 1),))
        thread.start()
        thread.join()
    assert seen[0].parents == ()


def test_importing_is_quiet_and_light():
    code = """
    import sys, minitrace
    heavy = {"urllib.request", "ast", "inspect", "dataclasses", "logging", "asyncio",
             "concurrent.futures"} & set(sys.modules)
    print(sorted(heavy))
    """
    assert run("-S", "-c", textwrap.dedent(code)).stdout == "[]\n"


def test_a_parameter_node_of_a_bundle_is_a_parameter_node():
    assert isinstance(commented.parameter, ParameterNode) and commented.parameters()[0].trainable


def test_the_lines_kept_for_tracebacks_are_bounded_and_never_taken_away():
    @bundle(trainable=True)
    def f(x):
        return x

    for number in range(1_100):
        f.parameter.set(f"def f(x):\n    return {number}")
        assert f(1).data == number
    kept = [name for name in linecache.cache if name.startswith("<code ")]
    assert 1 <= len(kept) <= 1_024
    before = set(kept)
    del f
    gc.collect()
    assert before <= linecache.cache.keys()
