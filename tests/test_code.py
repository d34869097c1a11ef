"""Section 4, Code: a bundle whose source is a parameter is found, checked, compiled and run."""

import __future__
import ast
import asyncio
import copy
import doctest
import functools
import gc
import importlib
import inspect
import json
import linecache
import os
import pickle
import pydoc
import runpy
import subprocess
import sys
import threading
import traceback
import types
import typing

import pytest
from conftest import ROOT, reaches

import minitrace
import minitrace as mt
from minitrace import (
    ExecutionError,
    MinitraceError,
    Module,
    ParameterNode,
    TraceMissingInputsError,
    bundle,
    check_code,
    model,
    node,
)
from minitrace import bundle as recorded

LIVE = 10


def shout(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) + "!"

    return wrapper


# ---- the source


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
    assert commented.parameter.name == "commented_code"


def test_the_output_is_an_eval_with_the_code_as_an_input():
    z = commented(node(1, "x"))
    assert (z.data, z.op_name, list(z.inputs)) == (2, "commented", ["commented_code", "x"])
    assert z.inputs["commented_code"] is commented.parameter and z.parents[0] is commented.parameter


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


def test_what_is_around_a_function_and_not_in_its_source_is_refused():
    def f(x):
        return x

    class Shop:
        def f(self):
            return ""

    for given in shout(f), functools.partial(f, 1), functools.lru_cache(f), Shop().f:
        with pytest.raises(TypeError, match=r"would lose what is around f\(\), .* at the def"):
            bundle(trainable=True)(given)


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


def test_a_lambda_cannot_be_trainable():
    with pytest.raises(TypeError, match=r"lambda cannot be trainable.*use def"):
        bundle(trainable=True)(lambda x: x)


# ---- what it sees


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


def test_new_code_may_import_from_the_future():
    @bundle(trainable=True)
    def f(x):
        return x

    f.parameter.set("from __future__ import annotations\ndef f(x: NotThere): return x + 1")
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
        with pytest.raises(ValueError, match="parameter f_code"):
            f.parameter.set(code)
        assert f.parameter.data == before and f(1).data == 1


def test_a_trainable_async_function_and_method():
    @bundle(trainable=True)
    async def f(x):
        return x + 1

    assert asyncio.run(f(1)).data == 2
    f.parameter.set("async def f(x):\n    return x + 100")
    z = asyncio.run(f(1))
    assert z.data == 101 and reaches(z, f.parameter)


def test_the_code_of_a_trainable_bundle_called_inside_gets_feedback():
    @bundle(trainable=True)
    def inner(x):
        return x + 1

    @bundle()
    def outer(x):
        return inner(x) * 2

    z = outer(1)
    assert z.data == 4 and reaches(z, inner.parameter)


def test_the_output_of_a_trainable_method_pickles():
    class_level = commented(node(1, "x"))
    z = pickle.loads(pickle.dumps(class_level))
    assert (
        z.data == 2
        and z.op_name == "commented"
        and z.inputs["commented_code"].data == commented.parameter.data
    )


def test_a_parameter_node_of_a_bundle_is_a_parameter_node():
    assert isinstance(commented.parameter, ParameterNode) and commented.parameters()[0].trainable


@pytest.mark.parametrize("end", ["SystemExit", "GeneratorExit", "SystemExit(1)"])
def test_new_code_does_not_end_the_program(end):
    @bundle(trainable=True)
    def f(x):
        return x

    f.parameter.set(f"def f(x):\n    raise {end}")
    with pytest.raises(ExecutionError, match=f"the code raised {end[:9]}") as caught:
        f(1)
    assert reaches(caught.value.exception_node, f.parameter)


def test_new_code_that_reads_a_node_from_outside_is_a_failure_like_any_other():
    """The user's own code is told at once that an argument is missing; a proposal gets feedback."""
    outside = node(5, "outside", trainable=True)

    @bundle(trainable=True)
    def f(x):
        return x if x else outside.data

    with pytest.raises(TraceMissingInputsError, match="outside:0"):
        f(0)
    f.parameter.set("def f(x):\n    return outside.data")
    with pytest.raises(ExecutionError, match=r"TraceMissingInputsError.* used outside:0") as caught:
        f(1)
    assert reaches(caught.value.exception_node, f.parameter)


def test_a_decorator_below_may_make_something_else_of_the_function():
    def first(function):
        return functools.partial(function, 1)

    @bundle(trainable=True)
    @first
    def f(x, y):
        return x + y

    assert f(2).data == 3
    f.parameter.set("@first\ndef f(x, y):\n    return 10 * x + y")
    assert f(2).data == 12


# ---- tracebacks and sources


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


def test_the_lines_kept_for_tracebacks_are_bounded_and_never_taken_away():
    @bundle(trainable=True)
    def f(x):
        return x

    def kept():
        """The names of files whose lines are those of the code below."""
        files = ((name, entry[2]) for name, entry in linecache.cache.items() if len(entry) > 2)
        return {name for name, lines in files if lines and lines[0] == "# below\n"}

    for number in range(1_100):
        f.parameter.set(f"# below\ndef f(x):\n    return {number}")
        assert f(1).data == number
    before = kept()
    assert 1 <= len(before) <= 1_024
    del f
    gc.collect()
    assert before == kept()


# ---- where the source is found


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


# ---- methods


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
    assert list(a.act(1).inputs) == ["act_code", "self", "x"]
    assert a.act(1).inputs["act_code"] is a.act.parameter


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


# ---- modules


class Big(Module):
    def __init__(self):
        self.w = node(2, "w", trainable=True)

    @bundle(trainable=True)
    def act(self, x):
        return x

    @bundle()
    def fixed(self, x):
        return x


def test_trainable_methods_are_parameters_of_a_module_by_their_names():
    big = Big()
    found = big.parameters_dict()
    assert set(found) == {"w", "act"} and found["act"] is big.act.parameter
    assert {*map(id, big.parameters())} == {*map(id, found.values())}


def test_code_is_saved_and_loaded_with_the_rest(tmp_path):
    a, b = Big(), Big()
    a.act.parameter.set("def act(self, x):\n    return 100")
    a.save(tmp_path / "module.json")
    b.load(tmp_path / "module.json")
    assert b.act(1).data == 100 and b.act.parameter.data == a.act.parameter.data


def test_code_in_a_file_is_checked_before_anything_is_set(tmp_path):
    path, big = tmp_path / "module.json", Big()
    big.save(path)
    saved = json.loads(path.read_text())
    saved["parameters"] |= {"w": 9, "act": "def act(self, y):\n    return 100"}
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"the signature must stay `def act\(self, x\)`"):
        big.load(path)
    assert big.w.data == 2 and big.act(1).data == 1


@model
class Greeter:
    "It greets."

    def __init__(self, word="Hello"):
        self.word = node(word, "word", trainable=True)

    @bundle(trainable=True)
    def greet(self, word, name):
        return word + ", " + name

    def forward(self, name):
        return self.greet(self.word, name)


def test_a_plain_class_made_a_module_trains_its_methods():
    g = Greeter("Hi")
    assert set(g.parameters_dict()) == {"word", "greet"}
    z = g("Ada")
    assert z.data == "Hi, Ada" and reaches(z, g.word) and reaches(z, g.greet.parameter)
    again = pickle.loads(pickle.dumps(g))
    assert again("Bob").data == "Hi, Bob"


def test_a_decorated_trainable_method_is_found():
    class Loud(Module):
        @shout
        @shout
        @bundle(trainable=True)
        def act(self, x):
            return x

    assert len(Loud().parameters()) == 1


class Pickled(Module):
    def __init__(self):
        self.w = node(2, "w", trainable=True)

    @bundle(trainable=True)
    def act(self, x):
        return self.w.data + x


def test_copy_shares_parameters_also_code():
    m = Pickled()
    shared = m.copy()
    assert shared is not m and shared.w is m.w
    assert {*map(id, shared.parameters())} == {*map(id, m.parameters())}


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


def test_modules_pickle_with_their_code():
    m = Pickled()
    m.w.set(5)
    m.act.parameter.set("def act(self, x):\n    return 'new'")
    again = pickle.loads(pickle.dumps(m))
    assert again.w.data == 5 and again.act(1).data == "new"
    assert again.act.parameter is not m.act.parameter
    assert Pickled().act.parameter.data != m.act.parameter.data


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


# ---- may it be accepted?


DEEP = {
    "too long": "def f():\n " + "x = 1\n " * 3_000,
    "minus": "def f(): return " + "-" * 6_000 + "1",
    "not": "def f(): return " + "not " * 4_000 + "1",
    "plus": "def f(): return 1" + "+1" * 6_000,
    "plus over lines": "def f(): return (1" + "\n+1" * 5_000 + ")",
    "attributes": "def f(a): return a" + ".b" * 6_000,
    "calls": "def f(a): return a" + "()" * 6_000,
    "items": "def f(a): return a" + "[0]" * 5_000,
    "lambdas": "def f(): return " + "lambda:" * 2_500 + "1",
    "conditions": "def f(): return 1" + " if 1 else 1" * 1_500,
    "brackets": "def f(): return " + "(" * 9_000 + ")" * 9_000,
    "lists": "def f(): return " + "[" * 1_000 + "]" * 1_000,
    "powers": "def f(): return 1" + "**1" * 5_000,
    "f-strings": "def f(): return " + "f'{" * 500 + "1" + "}'" * 500,
    "indentation": "def f():\n"
    + "".join(" " * i + "if 1:\n" for i in range(1, 180))
    + " " * 180
    + "x",
    "annotations": "def f(a: " + "-" * 6_000 + "1): pass",
}


CHECKER = """
import json, sys, threading
from minitrace import check_code
def work():
    try: check_code(text, "f")
    except ValueError as error: print(str(error)[:80])
for text in json.load(sys.stdin).values():
    for stack in 0, 1 << 20:
        threading.stack_size(stack)
        thread = threading.Thread(target=work); thread.start(); thread.join()
"""


def test_deep_code_is_refused_and_crashes_nothing():
    """In a process of its own, on a large and on a small stack: a crash is the failure looked for."""
    done = run("-c", CHECKER, stdin=json.dumps(DEEP))
    assert done.returncode == 0 and done.stderr == "", done
    told = done.stdout.splitlines()
    assert len(told) == 2 * len(DEEP) and all(each.startswith("the code") for each in told), told


GOOD = [
    "def f(x): return x",
    "import os\nfrom a import b as c\nA, B = 1, (2, [3, {4: -5}])\ndef g(): pass\ndef f(x): return os",
    "def f(x, y=(1, 2), *z, k=None, **w):\n 'text'\n class A: pass\n return print(x)",
    "import re\nWORD = re.compile(r'a+')\nNONE = frozenset({1})\nasync def f(): await g()",
    "T = {" + ", ".join(f"{n}: -{n}" for n in range(1_000)) + "}\ndef f(x): return T[x]",
    "def f(x):\n return '" + "-" * 5_000 + "'",
    "def f(x):\n return f'" + "Is it not so, or is it? {x} " * 300 + "'",
]


BAD = [
    ("", "must define one function `f`"),
    ("def g(): pass", "must define one function `f`"),
    ("def f(): pass\ndef f(): pass", "must define one function `f`"),
    ("def f(:", "does not parse: .*line 1"),
    ("def f(): pass\n\0", "null bytes"),
    ("def f(): return", None),
    ("x = '\ud800'\ndef f(): pass", "surrogates not allowed|does not parse"),
    ("return 1", "does not parse"),
    ("def f():\n break", "does not parse"),
    ("def f(): pass\nprint(1)", r"`print\(1\)` at top level"),
    ("def f(): pass\nif True:\n  x = 1", "`if True:` at top level"),
    ("class A: pass\ndef f(): pass", "`class A:` at top level"),
    ("for x in []: pass\ndef f(): pass", "at top level: only imports, functions and constants"),
    ("def f(x=print(1)): pass", "at top level: only imports, functions and constants"),
    ("@decorate(1)\ndef f(): pass", "at top level: only imports, functions and constants"),
    ("def f(x: print(1)): pass", "at top level: only imports, functions and constants"),
    ("x = [print(1)]\ndef f(): pass", "at top level: only imports, functions and constants"),
    (
        "import math\nmath.pi = 3\ndef f(): pass",
        "at top level: only imports, functions and constants",
    ),
    ("del f\ndef f(): pass", "at top level: only imports, functions and constants"),
    ("assert 1\ndef f(): pass", "at top level: only imports, functions and constants"),
    ("f = lambda: 1", "must define one function"),
    ("from math import *\ndef f(x): return floor(x)", r"`\*` at top level: only imports"),
    ("def f(): pass\n" + "#" * 20_000, "over 20,000 characters"),
]


@pytest.mark.parametrize("source", GOOD)
def test_good_code_is_accepted(source):
    check_code(source, "f")


@pytest.mark.parametrize("source, words", [row for row in BAD if row[1]])
def test_bad_code_is_refused_with_a_reason(source, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_code(source, "f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("(x, k=2)", "(x: int, k: float=2) -> str", True),
        ("def f(x='a'):", '(x="a")', True),
        ("(*, a, **b)", "(*, a, **b)", True),
        ("(x, /)", "(x)", False),
        ("(x)", "(y)", False),
        ("(x)", "(x=1)", False),
        ("(x, k=2)", "(x, k=3)", False),
        ("(*a)", "(a)", False),
        ("async def f(x)", "(x)", False),
    ],
)
def test_the_signature_must_stay(old, new, same):
    source = f"def f{new}: return 1"
    if same:
        check_code(source, "f", old)
    else:
        with pytest.raises(ValueError, match=r"the signature must stay `.*`, not `def f"):
            check_code(source, "f", old)


@pytest.mark.parametrize(
    "source",
    [
        "@decorate(1)\ndef f(x=list(count())): return x",
        "@kept(1)\n@decorate(1)\ndef f(x=list(count())): return x",
        "@kept(1)\ndef f(x=list(count())) -> decorate(1): return x",
        "decorate(1)\n@kept(1)\ndef f(x=list(count())): return x",
        "@kept(1)\ndef f(x=list(count())): return x\ny = decorate(1)",
    ],
)
def test_what_stands_around_a_kept_signature_does_not_run(source):
    header = "@kept(1)\ndef f(x=list(count())):"
    check_code(f"{header} return 2 * x", "f", header)  # which the author wrote
    with pytest.raises(ValueError, match=r"`.*decorate\(1\)` at top level"):
        check_code(source, "f", header)


# ---- limits: any object that can check code and run it


class Fence:
    """The least that `limits=` takes: it refuses imports, and keeps what it ran."""

    def __init__(self):
        self.ran = []

    def check(self, source):
        if "import" in source:
            raise ValueError("nothing may be imported here")

    def run(self, source, name, args, kwargs):
        self.ran.append((source, name, list(args), dict(kwargs)))
        space = {}
        exec(source, space)
        return space[name](*args, **kwargs)

    def __repr__(self):
        return "Fence()"


def test_limits_refuse_code_with_their_own_reason():
    @bundle(trainable=True, limits=Fence())
    def f(x):
        return x

    before = f.parameter.data
    with pytest.raises(ValueError, match=r"f_code cannot take .*: nothing may be imported here"):
        f.parameter.set("def f(x):\n    import os\n    return x")
    assert f.parameter.data == before


def test_the_first_source_is_checked_too():
    def f(x):
        import os

        return os

    with pytest.raises(ValueError, match="nothing may be imported here"):
        bundle(trainable=True, limits=Fence())(f)


def test_limits_run_the_code_with_plain_values():
    fence = Fence()

    @bundle(trainable=True, limits=fence)
    def f(x, *more, k=2):
        return [x, *more, k]

    z = f(node(1, "x"), [node(5)], k=node(3))
    assert z.data == [1, [5], 3] and reaches(z, f.parameter)
    new = "def f(x, *more, k=2):\n    return k * x"
    f.parameter.set(new)
    assert f(4).data == 8
    assert [name for _, name, _, _ in fence.ran] == ["f", "f"] and fence.ran[1][0] == new
    assert fence.ran[0][2:] == ([1, [5]], {"k": 3})


def test_a_failure_under_limits_is_a_node_like_any_other():
    class Late(MinitraceError):
        failure = ("(Late) no result in time", "\nline 2: pass   <-- Late")

    class Slow(Fence):
        def run(self, source, name, args, kwargs):
            raise Late("no result in time")

    @bundle(trainable=True, limits=Slow())
    def f(x):
        return x

    x = node(1, "x", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        f(x)
    failure = caught.value.exception_node
    assert failure.data == "(Late) no result in time" and type(caught.value.__cause__) is Late
    assert failure.create_feedback("full") == "".join(Late.failure)
    assert reaches(failure, x) and reaches(failure, f.parameter)


def test_code_is_checked_under_limits_when_they_are_given():
    source = "def f(x):\n    import os\n    return os"
    check_code(source, "f", "(x)")
    with pytest.raises(ValueError, match="nothing may be imported here"):
        check_code(source, "f", "(x)", Fence())
    with pytest.raises(ValueError, match="does not parse"):  # before anything else is asked
        check_code("def f(x) import", "f", "(x)", Fence())


# ---- Names, defaults and decorators of code that changes


def test_no_name_of_an_argument_is_taken():
    @bundle(trainable=True)
    def review(*, code, self=1):
        return code

    assert review(code=4).data == 4
    review.parameter.set("def review(*, code, self=1):\n    return code + self")
    assert review(code=4).data == 5


def test_new_code_keeps_the_defaults_and_does_not_evaluate_them_again():
    def make(k):
        @bundle(trainable=True)
        def scaled(x, k=k, *, more=k):
            return x + k

        return scaled

    scaled = make(3)
    scaled.parameter.set("def scaled(x, k=k, *, more=k):\n    return x * k + more")
    assert scaled(5).data == 18

    class Shop:
        FEE = 2

        @bundle(trainable=True)
        def price(self, x, fee=FEE):
            return x

    shop = Shop()
    shop.price.parameter.set("def price(self, x, fee=FEE):\n    return x + fee")
    assert shop.price(1).data == 3


def test_code_below_a_class_method_a_static_method_or_a_property_may_change():
    class Shop:
        @bundle(trainable=True)
        @classmethod
        def kind(cls, x):
            return x

        @bundle(trainable=True)
        @staticmethod
        def twice(x):
            return x

        @bundle(trainable=True)
        @property
        def size(self):
            return 1

    assert (Shop.kind(1).data, Shop.twice(1).data, Shop().size.data) == (1, 1, 1)
    for name, call in ("kind", "cls, x"), ("twice", "x"):
        inner = vars(Shop)[name].__func__
        assert inner.parameter.data.startswith("def ")
        inner.parameter.set(f"def {name}({call}):\n    return x * 10")
    getter = vars(Shop)["size"].fget
    getter.parameter.set("def size(self):\n    return 10")
    assert (Shop.kind(2).data, Shop.twice(2).data, getter(Shop()).data) == (20, 20, 10)


def test_code_that_an_inner_bundle_meets_first_is_an_input_of_the_outer_one():
    class Agent:
        @bundle(trainable=True)
        def act(self):
            return 1

    agent = Agent()

    @bundle()
    def middle(x):
        return agent.act()

    @bundle()
    def outer(x):
        return middle(x)

    assert reaches(outer(1), agent.act.parameter)  # at the very first call


# ---- The source is the one that runs, whatever the decorator is called


@functools.cache
def kinds_of_marks():
    """Methods and a function whose bundle is reached in many ways, all of them local."""
    tools = types.SimpleNamespace(bundle=bundle, table={"b": bundle})

    def mine(function):
        return tools.bundle(trainable=True)(function)

    def more(function):
        return functools.wraps(function)(lambda *args: function(*args) + 1)

    class Agent:
        own = tools.bundle

        @tools.bundle(trainable=True)
        def namespace(self, x):
            return x

        @tools.table["b"]("Over some lines.", trainable=True)
        def item(self, x):
            return x

        @mine
        def helper(self, x):
            return x

        @(lambda function: mine(function))
        def expression(self, x):
            return x

        @own(trainable=True)
        def attribute(self, x):
            return x

        @more
        @tools.bundle(trainable=True)
        @more
        def between(self, x):
            return x

        class Inner:
            @tools.bundle(trainable=True)
            def nested(self, x):
                return x

    @mine
    @more
    @more
    def alone(self, x):
        return x

    methods = {**vars(Agent), **vars(Agent.Inner), "alone": alone}
    methods["between"] = methods["between"].__wrapped__
    return methods


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("namespace", ""),
        ("item", ""),
        ("helper", ""),
        ("expression", ""),
        ("attribute", ""),
        ("between", "@more\n"),
        ("nested", ""),
        ("alone", "@more\n@more\n"),
    ],
)
def test_a_decorator_by_any_name_goes_and_those_below_stay(name, marks):
    made = kinds_of_marks()[name]
    assert made.parameter.data == f"{marks}def {name}(self, x):\n    return x"
    made.parameter.set(f"{marks}def {name}(self, x):\n    return x * 10")
    assert made(None, 2).data == 20 + marks.count("@")


MODULE = """
from minitrace import bundle

@bundle(trainable=True)
def f(x):
    return x + 1

def make():
    @bundle(trainable=True)
    def g(x):
        # {}
        return [x + {} for _ in range(1)][0]
    return g
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that was just imported, and its file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "changing.py").write_text(MODULE.format("one", 1))
    import changing

    yield changing, tmp_path / "changing.py"
    del sys.modules["changing"]


def test_a_module_that_is_loaded_again_holds_the_new_source(module):
    changing, path = module
    path.write_text("# a line\n" + MODULE.format("two", 2).replace("x + 1", "x + 3"))
    importlib.invalidate_caches()
    importlib.reload(changing)
    assert changing.f.parameter.data.endswith("return x + 3") and changing.f(1).data == 4
    assert "# two" in changing.make().parameter.data and changing.make()(1).data == 3


def test_a_script_that_runs_again_holds_the_new_source(tmp_path):
    for number in range(3):
        (tmp_path / "again.py").write_text(MODULE.format(number, number) + "# " * number)
        g = runpy.run_path(str(tmp_path / "again.py"))["make"]()
        assert f"# {number}\n" in g.parameter.data and g(1).data == 1 + number


CHANGES = {
    "another value": (("x + 1", "x + 2"), None),
    "another operator": (("x + 1", "x - 1"), None),
    "another name": (("range(1)", "xs(1)"), None),
    "a comment": (("# one", "# 1"), "# 1"),
    "lines above": (("\nfrom", "\n\n\nfrom"), None),
    "it is gone": (("g(x)", "h(x)"), None),
    "no Python": (("def make", "def def"), None),
}


@pytest.mark.parametrize("known", [True, False], ids=["read before", "not read before"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_shown_is_what_runs_though_the_file_changed(change, known, module):
    """The lines that were read before the change, if any, are those of the code that runs."""
    changing, path = module
    (old, new), shown = CHANGES[change]
    if not known:
        linecache.clearcache()
    path.write_text(MODULE.format("one", 1).replace(old, new) + "# longer")
    if known or shown:
        g = changing.make()
        assert (shown or "x + 1 for _ in range(1)") in g.parameter.data and g(1).data == 2
    else:
        words = r"source of .*g cannot be read .*has changed since it was loaded: load it again, or"
        with pytest.raises(ValueError, match=words):
            changing.make()


def test_a_source_whose_file_is_gone_is_found_if_it_was_read_before(module):
    changing, path = module
    path.unlink()
    assert "x + 1" in changing.make().parameter.data


def test_no_warning_of_the_compiler_comes_twice(tmp_path):
    odd = '# \n    y = "\\d" if x is 5 else x\n'
    (tmp_path / "script.py").write_text(SCRIPT.replace("# why\n", odd))
    done = run("-W", "always", "script.py", cwd=tmp_path)
    assert "101" in done.stdout and done.stderr.count("Warning: ") == 2, done.stderr


def test_code_that_a_tool_put_more_into_is_found():
    def checked(x):
        assert x in [1, 2] and x != {3}, "a test rewrites this line"
        return x

    learned = bundle(trainable=True)(checked)
    assert learned.parameter.data.endswith("    return x") and learned(1).data == 1


def test_a_cell_of_a_notebook_is_found_with_what_came_before_it():
    """Cells share what `from __future__` said in one, and may await at top level."""
    cell = (
        "import asyncio\nawait asyncio.sleep(0)\n"
        "@bundle(trainable=True)\ndef f(x):\n"
        "    def half(y: int) -> int:\n        return y // 2\n"
        "    return half(x)\n"
    )
    name = "<ipython-input-2-abcdef>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | __future__.annotations.compiler_flag
    space = {"bundle": bundle, "__name__": "__main__"}
    asyncio.run(eval(compile(cell, name, "exec", flags), space))
    assert space["f"].parameter.data == cell[cell.index("def f") :].rstrip()
    assert space["f"](4).data == 2


# ---- Annotations need not mean anything when a function is marked


LATER = """
from minitrace import Module, bundle, model, node
import asyncio

@model
class A:
    x: Missing.thing

    @bundle()
    def plain(self, other: A, *rest: Gone[int], k: "A" | None = 2) -> A:
        return k

    @bundle(trainable=True)
    def code(self, other: A | Never, k: Missing.some = 3) -> A:
        return k

    @bundle(trainable=True)
    async def later(self, other: A) -> A:
        return 4

    @bundle(trainable=True)
    @staticmethod
    def static(x: A) -> A:
        return x

    @classmethod
    @bundle()
    def kind(cls, x: A) -> A:
        return x

    @bundle()
    @property
    def size(self) -> A:
        return 6

a = A()
print(a.plain(1).data, a.code(1).data, asyncio.run(a.later(1)).data, A.static(5).data, a.kind(1).data)
print(a.size.data, len(a.parameters()))
a.code.parameter.set("def code(self, other: What, k: Missing.some = 3) -> Ever:\\n    return k * 10")
print(a.code(1).data, [*a.code(1).inputs])
for wrong in a.code, a.later:
    try:
        wrong()
    except TypeError as error:
        print(error)
print(A.code, a.code, a.plain.__func__)
"""


def test_annotations_may_name_what_is_not_there_yet(tmp_path):
    future = "" if sys.version_info >= (3, 14) else "from __future__ import annotations\n"
    (tmp_path / "script.py").write_text(future + LATER)
    done = run("script.py", cwd=tmp_path)
    assert done.stdout.splitlines()[:5] == [
        "2 3 4 5 1",
        "6 3",
        "30 ['code_code', 'self', 'other', 'k']",
        "code() missing a required argument: 'other'",
        "later() missing a required argument: 'other'",
    ], done.stderr


# ---- A bundle that is bound to an instance


class Bound:
    def __len__(self):  # an instance that is false and equal to others
        return 0

    def __eq__(self, other):
        return True

    __hash__ = None

    @bundle()
    def plain(self, x):
        "Say it."
        return x

    @bundle(trainable=True)
    def code(self, x):
        "Say it."
        return x

    @bundle()
    async def plain_later(self, x):
        "Say it."
        return x

    @bundle(trainable=True)
    async def code_later(self, x):
        "Say it."
        return x

    @bundle(trainable=True)
    def bare(self, x):
        return x


BOUND = "plain", "code", "plain_later", "code_later"


@pytest.mark.parametrize("name", BOUND)
def test_a_bound_bundle_is_like_a_bound_method(name):
    first, second = Bound(), Bound()
    bound = getattr(first, name)
    assert bound == getattr(first, name) and hash(bound) == hash(getattr(first, name))
    others = [getattr(second, name), getattr(Bound, name), *(getattr(first, n) for n in BOUND)]
    assert [other == bound for other in others].count(True) == 1  # itself
    assert str(inspect.signature(bound)) == "(x)"
    assert str(inspect.signature(getattr(Bound, name))) == "(self, x)"
    assert bound.__doc__ == getattr(Bound, name).__doc__ == "Say it."
    assert (bound.__name__, bound.__module__) == (name, __name__)
    assert bound.__qualname__ == f"Bound.{name}" and bound.__self__ is first
    assert bound.__func__ is getattr(Bound, name) and inspect.isroutine(bound)
    assert typing.get_type_hints(bound) == typing.get_type_hints(getattr(Bound, name))
    # From Python 3.14 on, annotations of its class would pass for those of the function.
    assert not any(vars(kind).get("__annotations__") for kind in type(getattr(Bound, name)).__mro__)


@pytest.mark.parametrize("name", BOUND)
def test_an_async_bundle_says_so(name):
    later = name.endswith("later")
    for each in (
        getattr(Bound(), name),
        getattr(Bound, name),
        functools.partial(getattr(Bound(), name), 1),
    ):
        assert inspect.iscoroutinefunction(each) == later
        if sys.version_info < (3, 14):  # deprecated since
            assert asyncio.iscoroutinefunction(each) == later


@pytest.mark.parametrize("name", [*BOUND, "bare"])
def test_help_shows_the_signature_and_the_docstring(name):
    for each, arguments in (getattr(Bound(), name), "(x)"), (getattr(Bound, name), "(self, x)"):
        shown = pydoc.plain(pydoc.render_doc(each))
        assert f"{name}{arguments}" in shown
        assert ("Say it." in shown) == (name != "bare")
        assert "Methods defined here" not in shown


def test_a_bound_bundle_is_the_same_when_it_is_looked_up_again():
    b = Bound()
    kept = {b.code: 1}
    assert kept[b.code] == 1 and b.code in [b.code] and b.code.__get__(None, Bound) == b.code
    again = copy.copy(b.code)
    assert again == b.code and again(2).data == 2


# ---- What a subclass redefines


class Top(Module):
    @bundle(trainable=True)
    def m(self, x):
        return x

    @bundle(trainable=True)
    def n(self):
        return 1


class Redefined(Top):
    @bundle(trainable=True)
    def m(self, x):
        return 2 * x


class RedefinedTwice(Redefined):
    @bundle(trainable=True)
    def m(self, x):
        return 3 * x


class Plain(Redefined):
    def m(self, x):
        return x


class Super(Top):
    @bundle(trainable=True)
    def m(self, x):
        return [super(Super, self).m(x), *(Top.m(self, y) for y in [x])]


class Through(Redefined):
    @bundle(trainable=True)
    def m(self, x):
        return super().m(x)


class Named(Top):
    def m(self, x):
        return Top.m(self, x)


class ByHelper(Redefined):
    @bundle(trainable=True)
    def m(self, x):
        return self.helper(x)

    def helper(self, x):
        return [super(ByHelper, self).m(y).data for y in [x]]


class ByOther(Redefined):
    m = None

    def other(self):
        return Top.m(self, 1)


class NotByOther(Redefined):
    @bundle(trainable=True)
    def m(self, x):
        return super().n()

    def other(self):
        return super().other(self.m(1))


class Covered(Super):
    m = None


class AsProperty(Top):
    @property
    def m(self):
        return 1


class Wrapped(Top):
    m = shout(Top.m)


class Same(Top):
    m = Top.m


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        (Top, "m n"),
        (Redefined, "m n"),
        (RedefinedTwice, "m n"),
        (Plain, "n"),
        (Super, "m Top.m n"),
        (Through, "m Redefined.m n"),
        (Named, "Top.m n"),
        (ByHelper, "m Redefined.m n"),
        (model(ByHelper), "m Redefined.m n"),
        (ByOther, "Top.m n"),
        (NotByOther, "m n"),
        (Covered, "n"),
        (AsProperty, "n"),
        (Wrapped, "m n"),
        (Same, "m n"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_method_that_is_redefined_is_no_parameter_unless_the_new_one_calls_it(kind, paths):
    assert [*kind().parameters_dict()] == paths.split()


def test_code_below_a_cached_property_is_a_parameter_of_the_same_name_once_it_ran():
    class Cached(Module):
        @functools.cached_property
        @bundle(trainable=True)
        def much(self):
            return 1

    cached = Cached()
    assert cached.much.data == 1 and [*cached.parameters_dict()] == ["much"]


# ---- A bundle saves its code


def test_a_bundle_saves_and_loads_its_own_code(tmp_path):
    def make():
        @bundle(trainable=True)
        def greet(name):
            return "Hello, " + name

        return greet

    greet, path = make(), tmp_path / "new" / "folder" / "greet.json"
    greet.parameter.set("def greet(name):\n    return 'Hi, ' + name")
    greet.save(path)
    assert greet.state_dict() == {"greet": greet.parameter.data}
    again = make()
    again.load(path)
    assert again("Ada").data == "Hi, Ada" and [*again.parameters_dict()] == ["greet"]


def test_a_bound_bundle_saves_the_code_of_its_instance(tmp_path):
    first, second, path = Agent(), Agent(), tmp_path / "act.json"
    first.act.parameter.set("def act(self, x):\n    return 100")
    first.act.save(path)
    second.act.load(path)
    assert second.act(1).data == 100 and Agent().act(1).data == 1
    Agent.act.save(path)
    second.act.load(path)
    assert second.act(1).data == 1


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"act": "def act(self, y):\n    return 1"}, r"must stay `def act\(self, x\)`"),
        ({"act": "def act("}, "does not parse"),
        ({"act": 1}, "must be a str"),
        ({"plan": "def plan(): 1"}, r"missing \['act'\], extra \['plan'\]"),
    ],
)
def test_code_that_does_not_fit_is_not_loaded(saved, words, tmp_path):
    agent, path = Agent(), tmp_path / "act.json"
    path.write_text(json.dumps({"minitrace": 1, "parameters": saved}))
    with pytest.raises(ValueError, match=rf"act\.json: .*{words}"):
        agent.act.load(path)
    assert agent.act(1).data == 1


def test_a_bundle_without_code_has_nothing_to_save():
    assert Big.fixed.parameters() == [] and Big.fixed.state_dict() == {}


def test_the_defaults_of_decorated_code_are_those_of_the_original():
    made, z = [], 4

    def counted():
        made.append(1)
        return 3

    @bundle(trainable=True)
    @kept
    def f(x, k=z, *, m=counted()):
        return x + k + m

    f.parameter.set(f.parameter.data + "  # once more")
    assert f(1).data == 8 and made == [1]


def kept(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_new_code_is_no_generator():
    for text in "def f(x):\n    yield x", "async def f(x):\n    yield x":
        with pytest.raises(ValueError, match="must return a list: a generator runs after its call"):
            check_code(text, "f")
    check_code("def f(x):\n    def g():\n        yield x\n    return [*g()]", "f")


@bundle(trainable=True)
def doubled(n):
    return 2 * n


@pytest.mark.parametrize("text", ["def helper(n):\n    return n", ""])
def test_code_that_was_put_there_unchecked_and_defines_another_name_says_so(text):
    code = doubled.parameter.data
    doubled.parameter.restore(text)
    with pytest.raises(ExecutionError, match="the code defines no function `doubled`"):
        doubled(3)
    doubled.parameter.restore(code)
    assert doubled(3).data == 6
