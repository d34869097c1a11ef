"""Section 2, Forward: bundles in all their forms, exceptions as nodes, modules, isolation."""

import array
import asyncio
import builtins
import contextlib
import contextvars
import copy
import functools
import inspect
import json
import os
import pickle
import random
import rlcompleter
import signal
import threading
import types
import warnings
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from conftest import reaches

from minitrace import (
    ExceptionNode,
    ExecutionError,
    MessageNode,
    MinitraceError,
    Module,
    Node,
    TraceMissingInputsError,
    bundle,
    model,
    node,
    operators,
    stop_tracing,
    to_data,
    to_text,
)


def parents(output):
    return {parent.name for parent in output.parents}


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
    lambda p: operators.add(p, 1),
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
    assert type(error.__cause__) is ValueError and isinstance(error, MinitraceError)
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


def test_an_error_that_cannot_say_what_it_is_becomes_a_node_too():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    @bundle()
    def f(x):
        raise Mute

    x = node(1, "x", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        f(x)
    assert caught.value.exception_node.data.startswith("(Mute)")
    assert reaches(caught.value.exception_node, x)


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


def test_full_feedback_shows_the_source_and_the_way_on_in():
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


class Told(MinitraceError):
    """An error of ours that says it is the program's, and how it failed."""

    failure = ("(Overflow) too much", "\nline 2: pour(x)   <-- Overflow")


def test_an_error_may_bring_its_own_words_and_source():
    class Spilled(Exception):
        failure = ("(Spill) all over", "\nline 7: tip()   <-- Spill")

    x = node(1, "x", trainable=True)
    for error in Told("seen by nobody"), Spilled("seen by nobody"):

        @bundle()
        def pour(x, error=error):
            raise error

        with pytest.raises(ExecutionError) as caught:
            pour(x)
        failure = caught.value.exception_node
        assert failure.data == failure.create_feedback() == error.failure[0]
        assert failure.create_feedback("full") == error.failure[0] + error.failure[1]
        assert caught.value.__cause__ is error and reaches(failure, x)


def test_only_with_such_words_is_an_error_of_the_library_a_failure_of_the_program():
    @bundle()
    def fail(error):
        raise error

    with pytest.raises(ExecutionError):
        fail(Told())
    plain = MinitraceError("ours")
    with pytest.raises(MinitraceError) as caught:
        fail(plain)
    assert caught.value is plain


def test_the_innermost_failure_keeps_its_own_words_through_other_bundles():
    @bundle()
    def pour(x):
        raise Told

    @bundle()
    def serve(x):
        return pour(x)

    with pytest.raises(ExecutionError) as caught:
        serve(1)
    assert caught.value.exception_node.create_feedback("full") == "".join(Told.failure)


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

    @bundle()
    def fixed(self, x):
        return x


PATHS = {"small.w", "many.0.w", "many.1.0", "table.a", "table.b.c.w", "prompt"}


def test_parameters_are_found_everywhere_each_once():
    big = Big()
    found = big.parameters_dict()
    assert set(found) == PATHS
    assert {*map(id, big.parameters())} == {*map(id, found.values())}
    assert found["small.w"] is big.small.w and found["prompt"] is Big.prompt


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


def test_the_order_of_parameters_is_the_same_every_time():
    big = Big()
    assert [*big.parameters_dict()] == [*big.parameters_dict()] == [*Big().parameters_dict()]


def test_save_and_load(tmp_path):
    a, b, path = Big(), Big(), tmp_path / "module.json"
    a.small.w.set(9)
    a.save(path)
    b.load(str(path))
    assert b.small(1).data == 9
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
    large = '{"parameters": {"a": {"$float": "0x1p99999"}}}'
    for text in ("", "[]", "{}", '{"parameters": []}', "not json", "[" * 100_000, large):
        path.write_text(text)
        with pytest.raises(ValueError, match="m: it is not a saved module: "):
            other.load(path)


def test_a_value_that_json_cannot_hold_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "m"
    path.write_text("old")
    box = Two("a")
    box.thing = node(object(), "thing", trainable=True)
    with pytest.raises(TypeError, match=r"thing.*object"):
        box.save(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["m"]


def test_copy_shares_parameters():
    small = Small()
    shared = small.copy()
    assert shared is not small and shared.w is small.w


def test_modules_pickle_and_keep_their_sharing():
    big = pickle.loads(pickle.dumps(Big()))
    assert big.again is big.small.w and big.me is big and set(big.parameters_dict()) == PATHS
    assert big.small(4).data == 8


def test_deepcopy_shares_no_parameters_and_keeps_what_is_one_thing_one():
    big = Big()
    own = copy.deepcopy(big)
    assert not {*map(id, own.small.parameters())} & {*map(id, big.parameters())}
    assert own.again is own.small.w and own.me is own
    own.small.w.set(100)
    assert big.small.w.data == 2


# ---- model


@model
class Greeter:
    "It greets."

    kind = "polite"

    def __init__(self, word="Hello"):
        self.word = node(word, "word", trainable=True)

    @bundle()
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
    assert set(g.parameters_dict()) == {"word"}
    z = g("Ada")
    assert z.data == "Hi, Ada" and reaches(z, g.word)
    again = pickle.loads(pickle.dumps(g))
    assert again("Bob").data == "Hi, Bob"


def test_model_works_with_super_and_subclasses():
    @model
    class Loud(Greeter):
        def __init__(self):
            super().__init__("HEY")

    assert Loud()("Ada").data == "HEY, Ada" and len(Loud().parameters()) == 1


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
    p, seen = node(1), []
    with stop_tracing():
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(lambda: seen.append(p + 1),))
        thread.start()
        thread.join()
    assert seen[0].parents == ()


# ---- Defaults, wrappers, generators, and every way of reading a node from outside


def test_a_default_is_no_node_from_outside():
    @bundle()
    def inner(x, scale=2):
        return x * scale

    @bundle()
    def outer(x):
        return inner(x) + 1

    class Shop:
        @bundle()
        def price(self, x, fee=3):
            return x + fee

        @bundle()
        def total(self, x):
            return self.price(x) * 2

    assert outer(1).data == 3 and Shop().total(1).data == 8


def test_a_generator_says_what_to_do_instead():
    def numbers(x):
        yield x

    async def later(x):
        yield x

    for function in numbers, later:
        with pytest.raises(TypeError, match=r"\(\) is a generator, .*: return a list"):
            bundle()(function)


def test_a_wrapper_may_pass_arguments_of_its_own():
    def with_one(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(1, *args, **kwargs)

        return wrapper

    @bundle()
    @with_one
    def add(one, x):
        return one + x

    assert add(2).data == 3
    with pytest.raises(ExecutionError, match="missing 1 required positional argument: 'x'"):
        add()


class Holder(Module):
    def __init__(self, p):
        self.p = p


@pytest.mark.parametrize(
    "read",
    [
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        repr,
        list,
        lambda p: p.detach(),
        lambda p: [*p],
        lambda p: Holder(p).state_dict(),
    ],
)
def test_every_way_of_reading_a_node_from_outside_is_noticed(read):
    p = node([], "p", trainable=True)

    @bundle()
    def f(x):
        read(p)
        return x

    with pytest.raises(TraceMissingInputsError, match=r"f\(\) used p:0"):
        f(1)


def test_what_an_outer_body_makes_may_be_read_by_an_inner_one():
    @bundle()
    def outer(x):
        made = node(x)

        @bundle(allow_external_dependencies=True)
        def inner(y):
            return made.data + y

        return inner(1)

    assert outer(2).data == 3


def test_a_model_has_its_methods_where_tools_look_for_them():
    @model
    class Greeter:
        def greet(self):
            return "Hello"

        @property
        def name(self):
            return "Ada"

    assert {"greet", "name"} <= vars(Greeter).keys() and Greeter().greet() == "Hello"
    assert Greeter.__name__ == "Greeter" and isinstance(Greeter(), Module)


def test_a_folder_is_made_for_what_is_saved(tmp_path):
    class Small(Module):
        def __init__(self):
            self.p = node(1, trainable=True)

    small = Small()
    small.save(tmp_path / "new" / "folder" / "small.json")
    small.p.set(5)
    assert small.state_dict() == {"p": 5}
    small.load(tmp_path / "new" / "folder" / "small.json")
    assert small.p.data == 1
    with pytest.raises(ValueError, match=r"missing \['p'\], extra \['q'\]"):
        small.load_state_dict({"q": 1})


def test_a_change_in_place_is_noticed_though_the_old_item_is_gone():
    @bundle()
    def swap(xs):
        xs.pop()
        xs.append([2])

    with pytest.warns(UserWarning, match=r"swap\(\) changed its argument xs, a list, in place"):
        swap(node([[1]]))


def test_an_async_bundle_reads_its_arguments_when_it_is_awaited():
    x = node(1, "x", trainable=True)

    @bundle()
    async def later(x):
        return x

    async def story():
        waiting = later(x)
        x.set(5)
        return await waiting

    assert asyncio.run(story()).data == 5


def test_a_file_of_another_module_is_named(tmp_path):
    class Small(Module):
        def __init__(self, name):
            setattr(self, name, node(1, trainable=True))

    Small("a").save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"m: values of another module: missing \['b'\]"):
        Small("b").load(tmp_path / "m")


# ---- Ctrl-C


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that interrupt here")
@pytest.mark.parametrize(
    "kind", ["bundle", "nested", "trainable", "failing", "stop_tracing", "rerun"]
)
def test_ctrl_c_never_leaves_a_scope_behind(kind):
    inner = bundle()(lambda x: x + 1)
    outer = bundle()(lambda x: inner(x) + inner(x))
    failing = bundle()(lambda x: 1 / (x - x))
    made = outer(node(1))

    def quiet():
        with stop_tracing():
            inner(1)

    def fails():
        with contextlib.suppress(ExecutionError):
            failing(1)

    act = {
        "bundle": lambda: inner(1),
        "nested": lambda: outer(1),
        "trainable": lambda: shifted(1),
        "failing": fails,
        "stop_tracing": quiet,
        "rerun": lambda: made.rerun({made.parents[0]: 5}),
    }[kind]
    dice, interrupts = random.Random(1), 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        while interrupts < 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-5, 3e-4))
                while True:
                    act()
            except KeyboardInterrupt:
                interrupts += 1
            assert len(inner(node(1)).parents) == 1 and len(shifted(1).parents) == 2
            with pytest.warns(UserWarning, match="ends at this f-string"):  # as outside of scopes
                assert f"{node(1, trainable=True)}" == "1"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@bundle(trainable=True)
def shifted(x):
    return x + 1


# ---- Arguments changed in place, at any depth


IN_PLACE = {
    "list in dict": ({"temps": [1]}, lambda v: v["temps"].append(99)),
    "dict in list": ([{"a": 1}], lambda v: v[0].update(a=2)),
    "list in tuple": (([1], 2), lambda v: v[0].append(2)),
    "deque": (deque([1]), lambda v: v.append(2)),
    "Counter": (Counter("ab"), lambda v: v.update("a")),
    "defaultdict": (defaultdict(list, a=[1]), lambda v: v["a"].append(1)),
    "bytearray": (bytearray(b"ab"), lambda v: v.extend(b"c")),
    "array": (array.array("d", [1, 2]), lambda v: v.append(3)),
    "set": ({1}, lambda v: v.add(2)),
    "deep": ([[[[{"a": ({1},)}]]]], lambda v: v[0][0][0][0]["a"][0].add(2)),
}


@pytest.mark.parametrize("value, change", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("form", ["argument", "inside a list"])
def test_a_change_in_place_is_noticed_at_any_depth(value, change, form):
    value = copy.deepcopy(value)

    @bundle()
    def touch(xs):
        change(xs[0] if form == "inside a list" else xs)

    given = [node(value)] if form == "inside a list" else node(value)
    with pytest.warns(UserWarning, match=r"touch\(\) changed its argument xs.* in place"):
        touch(given)


@pytest.mark.parametrize("value, change", IN_PLACE.values(), ids=IN_PLACE)
def test_nothing_is_said_where_nothing_changed(value, change):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle()(lambda xs: change(copy.deepcopy(xs)))(copy.deepcopy(value))


def test_watching_for_changes_is_bounded():
    deep = []
    deep.append(deep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle()(lambda xs: len(xs))(node(deep))
        bundle()(lambda xs: len(xs))(node([[n] for n in range(100_000)]))


# ---- Modules: where parameters are found


def test_parameters_in_slots_sets_and_deques():
    @model
    @dataclass(slots=True)
    class Slotted:
        rate: object
        __private: object = None

    class Other(Module):
        __slots__ = ("__hidden", "shown")

        def __init__(self):
            self.shown = deque([node(1, "a", trainable=True)])
            self.__hidden = {node(2, "b", trainable=True), node(3, "c", trainable=True)}

    assert list(Slotted(node(1, trainable=True)).parameters_dict()) == ["rate"]
    assert sorted(each.data for each in Other().parameters()) == [1, 2, 3]


def test_the_repr_of_a_module_lists_its_parameters_and_prompts_its_class():
    class Greeter(Module):
        def __init__(self):
            self.words = [node("Hello", trainable=True)]
            self.rate = node(1, trainable=True)

    assert repr(Greeter()) == "<Greeter with parameters words.0, rate>"
    assert to_text([Greeter()]) == "[<Greeter>]"


@pytest.mark.skipif(not hasattr(builtins, "frozendict"), reason="Python 3.15 has frozendict")
def test_a_frozendict_is_a_container():
    made = builtins.frozendict(a=node(1), b=[node(2)])
    got = bundle()(lambda x: x)(made)
    assert type(got.data) is builtins.frozendict and got.data["b"] == [2] and len(got.parents) == 2
    part = Module()
    part.rates = builtins.frozendict(a=node(1, trainable=True))
    assert list(part.parameters_dict()) == ["rates.a"]


def test_what_runs_for_a_subclass_runs_once_for_a_model():
    made = []

    class Base:
        def __init_subclass__(cls, key, **rest):
            made.append((cls.__name__, key))
            super().__init_subclass__(**rest)

    @model
    class Child(Base, key=1):
        def __init_subclass__(cls, **rest):
            made.append("hook")
            super().__init_subclass__(**rest)

    assert made == [("Child", 1)] and issubclass(Child, Module)

    class Grandchild(Child, key=2):
        pass

    assert made == [("Child", 1), "hook", ("Grandchild", 2)] and issubclass(Grandchild, Module)


def test_the_operators_complete():
    completer = rlcompleter.Completer({"operators": operators})
    for name in "add", "concat", "make_list", "call_llm", "to_dict", "identity":
        assert completer.complete(f"operators.{name[:-1]}", 0).startswith(f"operators.{name}")


# ---- Seen in trials


def test_a_thread_of_somebody_else_is_nobodys_read():
    x = node(1, "x", trainable=True)

    async def client(q):
        await asyncio.sleep(0.001)
        return q

    @bundle()
    def answer(q):
        return asyncio.run(client(q))

    with ThreadPoolExecutor(4) as pool:  # siblings
        made = [*pool.map(lambda q: answer(q) + x, [1] * 40)]
    assert {each.data for each in made} == {2}
    stop = threading.Event()

    def monitor():
        while not stop.wait(0.001):
            x.data

    thread = threading.Thread(target=monitor)
    thread.start()
    try:
        assert bundle()(lambda q: threading.Event().wait(0.05) or q)(3).data == 3
    finally:
        stop.set()
        thread.join()


def test_an_abandoned_coroutine_changes_no_scope():
    @types.coroutine
    def pause():
        yield

    @bundle()
    async def wait(x):
        await pause()

    coroutine, around = wait(node(1)), stop_tracing()

    def begin():
        around.__enter__()
        coroutine.send(None)

    contextvars.copy_context().run(begin)
    coroutine.close()  # in another context than its own
    assert len((node(1) + 1).parents) == 2


class Odd:
    """An object that answers to any name."""

    def __getattr__(self, name):
        if name == "raises":
            raise KeyError(name)
        return lambda *args: self


def test_odd_objects_as_arguments():
    assert isinstance(bundle()(lambda x: x)(Odd()).data, Odd)


@pytest.mark.parametrize("empty", [list, dict, set, deque, bytearray, lambda: defaultdict(list)])
def test_what_is_put_into_an_empty_container_is_noticed(empty):
    def put(into):
        (into.update if isinstance(into, (dict, set)) else into.extend)(
            [(1, 2)] if isinstance(into, dict) else [1]
        )

    with pytest.warns(UserWarning, match="changed its argument into"):
        bundle()(put)(empty())


def test_foreign_errors_with_odd_attributes_are_reported():
    class Odder(Exception):
        failure = "disk"

    class Worse(Exception):
        @property
        def failure(self):
            raise OSError

    class Untraced(Exception):
        @property
        def __traceback__(self):
            raise OSError

    class Nameless(type):
        @property
        def __name__(cls):
            raise OSError

    class Unnamed(Exception, metaclass=Nameless):
        pass

    class Sly(Exception):
        def __getattribute__(self, name):
            raise OSError

    class Text(str):
        def __format__(self, spec):
            raise ValueError

    class Said(Exception):
        def __str__(self):
            return Text("said")

    for error, words in [
        (Odder("a"), "(Odder) a"),
        (Worse("b"), "(Worse)"),
        (Said(), "(Said) said"),
        (Untraced(), "(Untraced) its message cannot be read"),
        (Unnamed(), "(Exception) its message cannot be read"),
        (Sly(), "(Sly) its message cannot be read"),
    ]:

        def fails(error=error):
            raise error

        with pytest.raises(ExecutionError) as caught:
            bundle()(lambda f: f())(fails)
        assert caught.value.exception_node.data.startswith(words)
    with pytest.raises(ExecutionError) as caught:
        bundle()(
            lambda n: [][int("9" * n)] if n < 10 else (_ for _ in ()).throw(ValueError("x" * 10**6))
        )(99)
    assert len(caught.value.exception_node.data) < 25_000


def test_a_function_of_numpy_gets_the_arguments_that_are_given():
    np = pytest.importorskip("numpy")
    assert bundle()(np.add)(node(4.0), 1).data == 5.0


def test_arguments_of_a_decorator_that_passes_its_own():
    def inject(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function("connection", *args, **kwargs)

        return wrapper

    @bundle()
    @inject
    def find(connection, query, limit=10):
        return connection, query, limit

    assert find(query="a").data == find("a").data == ("connection", "a", 10)
    assert find("a", limit=5).data == ("connection", "a", 5)


def with_session(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **{"session": "new", **kwargs})

    return wrapper


def test_a_decorator_gets_what_the_caller_gives_and_no_default():
    w = node(3, "w", trainable=True)

    class Query:
        @bundle()
        @with_session
        def plain(self, x, session=None, w=w):
            return x, session, w

        @bundle(trainable=True)
        @with_session
        def code(self, x, session=None, w=w):
            return x, session, w

    query = Query()
    query.code.parameter.set(query.code.parameter.data + "  # new")
    for call in query.plain, query.code:
        assert call(1).data == call(x=1).data == (1, "new", 3) and w in call(1).parents
        assert call(1, session="old").data == (1, "old", 3) and call(1, w=2).data == (1, "new", 2)


def test_a_decorator_may_make_another_kind_of_function():
    def as_list(function):
        return functools.wraps(function)(lambda *args: [*function(*args)])

    def wait_for(function):
        return functools.wraps(function)(lambda *args: asyncio.run(function(*args)))

    def passing_on(function):
        return functools.wraps(function)(lambda *args: function(*args))

    def made_async(function):
        @functools.wraps(function)
        async def wrapper(*args):
            return function(*args)

        return wrapper

    @bundle()
    @as_list
    def numbers(x):
        yield from range(x)

    async def double(x):
        await asyncio.sleep(0)
        return 2 * x + p.data

    p = node(0, "p", trainable=True)
    allowed = bundle(allow_external_dependencies=True)
    assert numbers(3).data == [0, 1, 2]
    assert allowed(wait_for(double))(3).data == 6
    later = allowed(passing_on(double))(3)
    made = asyncio.run(later)
    assert made.data == 6 and p in made.parents
    add = bundle(made_async(lambda x: x + 1))
    assert inspect.iscoroutinefunction(add) and asyncio.run(add(1)).data == 2


def test_code_of_a_property_is_among_the_parameters():
    @model
    class Named:
        @property
        @bundle(trainable=True)
        def first(self):
            return 1

        @bundle(trainable=True)
        @property
        def second(self):
            return 2

    named = Named()
    assert (named.first.data, named.second.data) == (1, 2)
    assert sorted(named.parameters_dict()) == ["first", "second"]


def test_a_module_in_a_class_keeps_its_parameters_whatever_it_calls_its_attributes():
    class Part(Module):
        def __init__(self):
            self.rate, self.func, self.fget = node(1, trainable=True), len, max

    class Whole(Module):
        part = Part()

    assert list(Whole().parameters_dict()) == ["part.rate"]
