"""minitrace: autograd for AI systems, in one file.

You declare what may change, you run your program forward and a graph of it records itself, and
you optimize: feedback on the output, in words or numbers, travels back through the graph to
whatever had a part in it, and an optimizer, usually a language model, proposes better values.
What may change are numbers, texts such as prompts, and the source code of functions. The idea is
Trace's (Cheng, Nie and Swaminathan, NeurIPS 2024, arXiv:2406.16218); the code is new, and needs
only the standard library.

>>> from minitrace import OptoPrime, StubLLM, bundle, node
>>> degrees = node(20, name="degrees", trainable=True)    # declare: this may change
>>> @bundle()
... def comfort(degrees):
...     "Say how a room feels."
...     return "too cold" if degrees < 23 else "too warm" if degrees > 23 else "just right"
>>> optimizer = OptoPrime([degrees], llm=StubLLM())       # or LLM("openai/gpt-4o")
>>> for step in range(10):
...     feeling = comfort(degrees)                        # forward: one more node in a graph
...     print(degrees, "degrees:", feeling)
...     if feeling == "just right":
...         break
...     optimizer.zero_feedback()
...     optimizer.backward(feeling, feeling.data)         # feedback flows back to `degrees`
...     update = optimizer.step()                         # optimize: a better value
20 degrees: too cold
40 degrees: too warm
30 degrees: too warm
25 degrees: too warm
22 degrees: too cold
24 degrees: too warm
23 degrees: just right

Words, one meaning each:

    node          a value that remembers where it came from: its parents, which it was made of
    root          a node with no parents
    parameter     a root that an optimizer may change
    operator      a recorded function: an operator such as +, or a function marked with @bundle
    output        the node that backward starts from
    feedback      what is said of an output, and what flows back from it
    propagator    how feedback flows
    trace graph   the part of a graph between parameters and outputs, with the feedback
    optimizer     what turns feedback into new values
    language model  any callable from messages to text; a `model` is a class made a module

The file reads from top to bottom: 1 Declare, 2 Forward, 3 Backward, which are the whole idea; 4
Optimize, 5 Language models, 6 Looking, 7 Demo and command line. Copy it where you need it.

Changes: 0.1.0 is the first.

MIT License. Copyright (c) 2026 the minitrace authors. Permission is hereby granted, free of
charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software,
and to permit persons to whom the Software is furnished to do so, subject to the following
conditions: The above copyright notice and this permission notice shall be included in all copies
or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY
KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS
FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS
BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN
THE SOFTWARE.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import copy
import functools
import io
import itertools
import json
import math
import operator
import os
import re
import sys
import threading
import time
import warnings
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import CellType, CodeType, FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, cast, overload

if TYPE_CHECKING:
    import ast
    import random
    import subprocess
    from typing import NoReturn

__version__ = "0.1.0"
# fmt: off
__all__ = [
    "GRAPH", "LLM", "OPRO", "PROTOCOLS", "PROVIDERS",
    "Attempt",
    "ExceptionNode", "ExecutionError", "GraphError", "GraphPropagator", 
    "LLMError", "MessageNode", "MinitraceError", "Module", "Node",
    "Optimizer", "OptoPrime", "ParameterNode", "Propagator", "Proposal", "Reply",
    "ReplyError", "Script", "StubLLM", "SumPropagator", "TextGrad", "TraceGraph",
    "TraceMissingInputsError", "LanguageModel", "around_calls", "ask", "ask_until_usable", "backward", "bundle", "check_code", "coerce_value", "decode", "encode", "model",
    "node", "operators", "read_reply", "nearest_calls", "stop_tracing", "to_data", "to_text", 
]
# fmt: on


# ---- 1. Declare ----------------------------------------------------------------------------------
#
# What is a node?  A value that remembers where it came from.
#
#       x ──┐
#           ├── add ── z          z.parents == (x, y); nothing points from x to z
#       y ──┘
#
# `node(5)` makes a root, `node(5, trainable=True)` a parameter, and every operator on a node makes
# a new node that names its parents. Nodes are numbered as they are born, so parents always come
# first. Left out: functions (section 2), feedback (section 3).

T = TypeVar("T")
Method = Callable[..., "MessageNode[Any]"]
Nodes = tuple["Node[Any]", ...]
_EMPTY: Mapping[Any, Any] = MappingProxyType({})


class MinitraceError(Exception):
    """Every error of this library's own is one of these.

    Mistakes in arguments stay what Python calls them: `TypeError` and `ValueError`.

    >>> issubclass(ExecutionError, MinitraceError), issubclass(LLMError, MinitraceError)
    (True, True)
    """


_numbers = itertools.count()
_names: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


class GRAPH:
    """The names given so far. There is no registry of nodes: a graph nobody holds is freed.

    >>> GRAPH.clear()
    >>> node(1, name="x").name
    'x:0'
    """

    @staticmethod
    def clear() -> None:
        """Start every name from zero again: the next `x` is `x:0`."""
        _names.clear()


# What surrounds the code that runs: nothing, or a `_Scope` of section 2.
_scope: ContextVar[_Scope | None] = ContextVar("minitrace_scope", default=None)


class _Operator(NamedTuple):
    """A recorded function: its name, what it does in words, and the names of its arguments.

    The last `keywords` arguments go by name. One that has `effects` (it asks a language model,
    writes a file, draws at random) is not run again by `rerun` unless that is asked for.
    """

    name: str
    description: str
    names: tuple[str, ...]
    function: Any
    effects: bool = False
    keywords: int = 0
    bundle: Any = None

    def __reduce__(self) -> Any:
        place = (self.bundle.__module__, self.bundle.__qualname__) if self.bundle else ("", "")
        return _find_operator, (*place, self.name, self.description, self.names)


def _find_operator(module: str, qualname: str, name: str, words: str, names: Any) -> _Operator:
    """An operator as it comes out of a pickle: the living one, or a description that cannot run."""
    found = getattr(vars(operators).get(name), "op", None)
    with contextlib.suppress(AttributeError, KeyError):
        found = operator.attrgetter(f"{qualname}.op")(sys.modules[module])
    if isinstance(found, _Operator) and found.description == words:
        return found
    return _Operator(name, words, names, None)


class _Call(NamedTuple):
    """How an operator was called: a name and a value for each argument, with nodes at any depth."""

    names: tuple[str, ...]
    values: tuple[Any, ...]
    keywords: int = 0
    outside: Mapping[int, Any] = _EMPTY  # nodes read from outside, by their number

    def inputs(self) -> dict[str, Node[Any]]:
        """Each node by the argument it stands in: `x`, or `xs[0]` inside a container."""
        found: dict[str, Node[Any]] = {}
        outside = [(node.py_name, node) for node in self.outside.values()]
        for name, value in [*zip(self.names, self.values, strict=False), *outside]:
            for path, item in _paths(name, value):
                found[_free(path, found)] = item
        return found

    def map(self, leaf: Callable[[Any], Any]) -> _Call:
        """The same call with `leaf(item)` for each argument, and for each item of a container."""
        outside = {number: leaf(node) for number, node in self.outside.items()}
        values = tuple([_replace(value, leaf) for value in self.values])
        return self._replace(values=values, outside=outside)

    def plain(self) -> list[Any]:
        """The values without their nodes, read as by whoever calls."""
        if _scope.get() is not None:
            return [to_data(value) for value in self.values]
        return [v._data if isinstance(v, Node) else to_data(v) for v in self.values]

    def apply(self, function: Any, plain: Sequence[Any]) -> Any:
        """Call a function with these values as the arguments."""
        if not self.keywords:
            return function(*plain)
        n = len(plain) - self.keywords
        return function(*plain[:n], **dict(zip(self.names[n:], plain[n:], strict=True)))


def _free(name: str, taken: Container[str]) -> str:
    """The name, with underscores at its end for as long as something else has it."""
    while name in taken:
        name += "_"
    return name


class _Operators:
    """Every operator as a function of nodes and plain values; any function of the standard
    `operator` module too.

    >>> operators.concat("Hello, ", node("Ada"), "!").data, operators.truth(node([])).data
    ('Hello, Ada!', False)
    """

    def __getattr__(self, name: str) -> Method:
        function = getattr(operator, name, None)
        if function is None or name.startswith("__"):
            words = f"there is no operator {name!r}: see dir(operators), or bundle one"
            raise AttributeError(words)
        words = (function.__doc__ or name).splitlines()[0]
        return _operator(name, lambda x, *more: function(_own(x), *more), words, "x", "y", "z")


operators: Any = _Operators()


def _operator(name: str, function: Callable[..., Any], description: str, *names: str) -> Method:
    """Put a function among `operators`: it runs `function` on the data and records the call."""
    op = _Operator(name, description, names or ("x",), function)

    def method(*args: Any, **kwargs: Any) -> MessageNode[Any]:
        return _apply(op, args, kwargs)

    setattr(method, "op", op)
    setattr(operators, name, method)
    return method


def _plain(function: Callable[..., Any]) -> Any:
    """A method that reads the data and returns what `function` makes of it, unrecorded."""
    return lambda self, *others: function(self.data, *map(to_data, others))


def _method(name: str, words: str, *names: str) -> Method:
    """Make the operator that calls the method of this name."""

    def call(x: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    return _operator(name, call, words, "x", *names)


def _infix(name: str, function: Any, words: str, *names: str) -> tuple[Method, Method]:
    """The methods of an operator between two values, `x + y` and its reflection: the fast path."""
    op: _Operator = getattr(_operator(name, function, words, *(names or ("x", "y"))), "op")
    surrounding = _scope.get

    def method(x: Any, y: Any) -> MessageNode[Any]:
        if not isinstance(y, Node):
            y = _wrap(y)
        if surrounding() is not None or not isinstance(y, Node):
            return _apply(op, (x, y))
        try:
            data = function(x._data, y._data)
        except Exception as error:
            _fail(op, _Call(op.names, (x, y)), error)
        return MessageNode(data, op, (x, y), x._tracked or y._tracked)

    def reflected(y: Any, x: Any) -> MessageNode[Any]:
        return _apply(op, (x, y))

    return method, reflected


class Node(Generic[T]):
    """A value and where it came from.

    Made by `node`, by operators and by bundles. `data` is the value; `parents` the nodes that it
    was computed from, `()` for a root. Operators on a node make new nodes and never change its
    data. Python decides what stays plain: `==`, `bool`, `len`, `in`, `hash`, `str`, f-strings,
    `int` and `float` read the value, and the trace stops there; `x.eq(y)` and `x.len()` are the
    traced forms.

    Args:
        data: any Python value.
        name: the base of its name; the type's name by default. `name` is `base:index`.
        description: words for whoever improves the program, shown in prompts.

    >>> x, y = node(3, name="x"), node([4, 5], name="y")
    >>> z = x * y[0] + 1
    >>> z.data, z.op_name, [parent.data for parent in z.parents]
    (13, 'add', [12, 1])
    >>> z == 13, z > 10
    (True, <MessageNode gt:0 = True>)

    Source: Trace, arXiv:2406.16218.
    """

    __slots__ = ("__weakref__", "_base", "_data", "_description", "_index", "_number")
    __array_ufunc__ = None  # numpy and pandas leave `array + node` to the node
    __pandas_priority__ = 5000

    parents: Nodes = ()
    trainable = False
    _op: _Operator | None = None
    _call: _Call | None = None
    _tracked = False

    def __init__(self, data: T, name: str | None = None, description: str | None = None) -> None:
        self._data = data
        self._base = base = type(data).__name__ if name is None else name.partition(":")[0]
        self._description = description
        self._number, self._index = next(_numbers), next(_names[base])

    @property
    def data(self) -> T:
        """The value. Read inside a bundle's body, it is noted as an input from outside."""
        scope = _scope.get()
        return self._data if scope is None else cast(T, scope.read(self))

    @property
    def name(self) -> str:
        """`base:index`, such as `x:0`: unique in this process until `GRAPH.clear()`."""
        return self._base if self._index is None else f"{self._base}:{self._index}"  # from JSON

    @property
    def py_name(self) -> str:
        """The name as an identifier, such as `x0`: how prompts write it."""
        return _identifier(self.name.replace(":", ""))

    @property
    def inputs(self) -> dict[str, Node[Any]]:
        """The parents by argument name."""
        if self._op is None:
            return {}
        call = self._call or _Call(self._op.names, self.parents, self._op.keywords)
        return call.inputs()

    @property
    def is_root(self) -> bool:
        """Has it no parents?"""
        return not self.parents

    @property
    def level(self) -> int:
        """The length of the longest way up to a root, which is at level 0."""
        levels: dict[int, int] = {}
        for each in _ancestors([self]):
            levels[each._number] = 1 + max((levels[p._number] for p in each.parents), default=-1)
        return levels[self._number]

    @property
    def op_name(self) -> str:
        """The name of the operator that made it; of a root, its class."""
        return self._op.name if self._op else type(self).__name__

    @property
    def description(self) -> str:
        """What it is, or what its operator does, in words."""
        return self._description or (self._op.description if self._op else "")

    @property
    def info(self) -> dict[str, Any]:
        """What is known of the operator: its name, documentation, and the source of a bundle."""
        facts = {"name": self.op_name, "doc": self.description}
        return {**facts, **self._op.bundle.info} if self._op and self._op.bundle else facts

    @property
    def type(self) -> builtins.type[T]:
        """The type of the data."""
        return self._data.__class__

    @property
    def feedback(self) -> list[Any]:
        """What backward brought here, kept on parameters only: one entry for each backward."""
        return []

    def zero_feedback(self) -> None:
        """Forget the feedback."""
        self.feedback.clear()

    def detach(self) -> Node[T]:
        """A new root (of a parameter: a new parameter) with the same value and no past."""
        return copy.deepcopy(self)

    def backward(
        self, feedback: Any = "", propagator: Propagator | None = None, **options: Any
    ) -> Any:
        """Send feedback from here to every parameter that had a part in it: see `backward`."""
        return _send_back(self, feedback, propagator, **options)

    def rerun(self, changes: Mapping[Any, Any], *, effects: bool = False) -> Node[T]:
        """What would this be if those nodes had other values? See `_rerun`."""
        return _rerun(self, changes, effects)

    def tree(self, **options: Any) -> str:
        """The graph above this node as a text tree: see `TraceGraph.tree`."""
        return TraceGraph.of(self).tree(**options)

    def _root(self, data: T, name: str) -> Node[T]:
        """A new root like this one."""
        return Node(data, name, self._description)

    def _recipe(self) -> tuple[Any, ...]:
        """How a pickle makes this node again: a callable and its arguments."""
        return Node, (self._data, self._base, self._description)

    # Plain: these read the value, and the trace stops here.
    __bool__ = _plain(bool)
    __len__ = _plain(len)
    __contains__ = _plain(operator.contains)
    __eq__ = _plain(operator.eq)
    __ne__ = _plain(operator.ne)
    __int__ = _plain(int)
    __float__ = _plain(float)
    __complex__ = _plain(complex)
    __index__ = _plain(operator.index)
    __str__ = _plain(str)
    __hash__ = object.__hash__

    def __format__(self, spec: str) -> str:
        if self._tracked and _scope.get() is None:
            message = (
                "the trace ends at this f-string: it reads the value of a node that depends on a "
                "parameter; use operators.format or + to keep it in the graph"
            )
            warnings.warn(message, stacklevel=2)
        return format(self.data, spec)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} = {to_text(self._data, 60)}>"

    def __iter__(self) -> Iterator[MessageNode[Any]]:
        data: Any = self._data
        array = hasattr(data, "shape") and not hasattr(data, "iloc")
        items = self if array or isinstance(data, Sequence) else operators.to_list(self)
        return (items[i] for i in range(len(cast(Any, items._data))))

    def __copy__(self) -> Node[T]:
        return self._root(self._data, f"{self.py_name}_copy")

    def __deepcopy__(self, memo: dict[int, Any]) -> Node[T]:
        return self._root(copy.deepcopy(self._data, memo), f"{self.py_name}_copy")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self._recipe()

    # Traced: one line each. A reflected operator comes with its own.
    # fmt: off
    __add__, __radd__ = _infix("add", operator.add, "x + y")
    __sub__, __rsub__ = _infix("subtract", operator.sub, "x - y")
    __mul__, __rmul__ = _infix("multiply", operator.mul, "x * y")
    __truediv__, __rtruediv__ = _infix("divide", operator.truediv, "x / y")
    __floordiv__, __rfloordiv__ = _infix("floor_divide", operator.floordiv, "x // y")
    __mod__, __rmod__ = _infix("mod", operator.mod, "x % y")
    __pow__, __rpow__ = _infix("power", operator.pow, "x ** y")
    __matmul__, __rmatmul__ = _infix("matmul", operator.matmul, "x @ y")
    __lshift__, __rlshift__ = _infix("lshift", operator.lshift, "x << y")
    __rshift__, __rrshift__ = _infix("rshift", operator.rshift, "x >> y")
    __and__, __rand__ = _infix("and_", operator.and_, "x & y")
    __or__, __ror__ = _infix("or_", operator.or_, "x | y")
    __xor__, __rxor__ = _infix("xor", operator.xor, "x ^ y")
    __divmod__, __rdivmod__ = _infix("divmod", divmod, "divmod(x, y)")
    __lt__ = _infix("lt", operator.lt, "x < y")[0]
    __le__ = _infix("le", operator.le, "x <= y")[0]
    __gt__ = _infix("gt", operator.gt, "x > y")[0]
    __ge__ = _infix("ge", operator.ge, "x >= y")[0]
    eq = _infix("eq", operator.eq, "x == y")[0]
    neq = _infix("neq", operator.ne, "x != y")[0]
    __getitem__ = _infix("getitem", operator.getitem, "x[index]", "x", "index")[0]
    __neg__ = _operator("neg", operator.neg, "-x")
    __pos__ = _operator("pos", operator.pos, "+x")
    __invert__ = _operator("invert", operator.invert, "~x")
    __abs__ = _operator("abs", abs, "abs(x)")
    __round__ = _operator("round", round, "round(x, digits)", "x", "digits")
    __floor__ = _operator("floor", math.floor, "the largest integer that is not above x")
    __ceil__ = _operator("ceil", math.ceil, "the smallest integer that is not below x")
    __trunc__ = _operator("trunc", math.trunc, "x without its fraction")
    __call__ = _operator("call", lambda f, /, *args, **kwargs: f(*args, **kwargs),
                         "call f with the arguments", "f")
    len = _operator("len", len, "the length of x")
    getattr = _operator("getattr", getattr,
                        "the attribute of x that has this name", "x", "name", "default")
    call = _operator("call_method",
                     lambda x, name, /, *args, **kwargs: getattr(_own(x), name)(*args, **kwargs),
                     "call the method of x that has this name", "x", "name")
    clone = _operator("clone", copy.deepcopy, "a copy of x")
    append = _operator("append", lambda x, item: [*x, item],
                       "a new list: x with item at its end", "x", "item")
    pop = _operator("pop", lambda x, *where: _own(x).pop(*where),
                    "the item of x at index (the last by default)", "x", "index", "default")
    keys = _operator("keys", lambda x: list(x.keys()), "the keys of x as a list")
    values = _operator("values", lambda x: list(x.values()), "the values of x as a list")
    items = _operator("items", lambda x: list(x.items()), "the (key, value) pairs of x as a list")
    get = _method("get", "x[key], or default where there is none", "key", "default")
    format = _method("format", "x with its {} fields filled in")
    split = _method("split", "the list of the words in x, cut at sep", "sep", "maxsplit")
    strip = _method("strip", "x without chars (white space) at its ends", "chars")
    replace = _method("replace", "x with old replaced by new", "old", "new", "count")
    join = _method("join", "the parts as one text, x between them", "parts")
    lower = _method("lower", "x in lower case")
    upper = _method("upper", "x in upper case")
    title = _method("title", "x in title case")
    swapcase = _method("swapcase", "x with upper and lower case swapped")
    capitalize = _method("capitalize", "x with its first letter in upper case")
    # fmt: on


class MessageNode(Node[T]):
    """What an operator or a bundle made: a node with parents.

    >>> total = node(1) + 2
    >>> type(total).__name__, total.inputs["y"].data
    ('MessageNode', 2)
    """

    __slots__ = ("_call", "_op", "_tracked", "parents")

    def __init__(
        self, data: T, op: _Operator, parents: Nodes, tracked: bool, call: _Call | None = None
    ) -> None:
        self._data, self.parents, self._tracked = data, parents, tracked
        self._op, self._call, self._description = op, call, None
        self._base = base = op.name
        self._number, self._index = next(_numbers), next(_names[base])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return operator.itemgetter(-1), ([*map(_pickled, _ancestors([self]))],)

    def _recipe(self) -> tuple[Any, ...]:
        parents, call = tuple(map(_pickled, self.parents)), self._call and self._call.map(_pickled)
        return type(self), (self._data, self._op, parents, self._tracked, call)


_CHECKS = "choices", "bounds", "constraint", "projections", "check"


class ParameterNode(Node[T]):
    """A root that may change: what an optimizer works on.

    Whoever sets it, by `set` or through an optimizer, a value is kept only if it has the type of
    the present one and passes every check given here; the first value is checked as well.

    Args:
        choices: the values allowed.
        bounds: `(low, high)`, both inclusive; `None` leaves a side open.
        constraint: what a good value is, in words, for whoever proposes one.
        projections: functions that move a value to the nearest good one, applied first, in order.
        check: a function of the value that returns `False` or a reason (a text) to refuse it.

    >>> rate = node(0.5, name="rate", trainable=True, bounds=(0, 1))
    >>> rate.set(1)
    >>> rate.data
    1.0
    >>> rate.set(7)
    Traceback (most recent call last):
    ValueError: parameter rate:0 cannot take 7: it must be between 0 and 1
    """

    __slots__ = ("_feedback", "bounds", "check", "choices", "constraint", "projections")
    _tracked = True
    trainable = True

    def __init__(
        self,
        data: T,
        name: str | None = None,
        description: str | None = None,
        *,
        choices: Iterable[T] | None = None,
        bounds: tuple[Any, Any] | None = None,
        constraint: str | None = None,
        projections: Iterable[Callable[[Any], Any]] = (),
        check: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(data, name, description)
        self.choices = None if choices is None else list(choices)
        if bounds is not None and not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
            raise TypeError(f"bounds must be a pair (low, high), not {to_text(bounds, 60)}")
        self.bounds, self.constraint = bounds, constraint
        self.projections, self.check = tuple(projections), check
        self._feedback: list[Any] = []
        self.set(data)

    @property
    def feedback(self) -> list[Any]:
        """What backward brought here: one entry for each backward, until `zero_feedback`."""
        return self._feedback

    def checked(self, value: Any) -> T:
        """The value as this parameter would keep it; `ValueError` says why it would not."""
        shown = to_text(value, 80)
        try:
            for project in self.projections:
                value = project(value)
            value = _fit(value, self._data)
            self._check(value)
        except Exception as error:
            raise ValueError(f"parameter {self.name} cannot take {shown}: {error}") from error
        return cast(T, value)

    def set(self, value: Any) -> None:
        """Give it a new value, after the checks."""
        self._data = self.checked(value)

    def restore(self, value: T) -> None:
        """Put back a value that it had before: what was accepted once is not checked again."""
        self._data = value

    def _check(self, value: Any) -> None:
        """`ValueError` with the reason if it is outside choices or bounds, or fails the check."""
        low, high = self.bounds or (None, None)
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"it must be one of {to_text(self.choices, 400)}")
        if not ((low is None or _all(low <= value)) and (high is None or _all(value <= high))):
            words = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ValueError(f"it must be {words if low is not None else f'at most {high}'}")
        verdict = self.check(value) if self.check else None
        said = isinstance(verdict, str)  # a text refuses by its being there
        if verdict is not None and _all(verdict) is said:
            raise ValueError(verdict if said else "its check failed")

    def _checks(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _CHECKS}

    def _root(self, data: T, name: str) -> ParameterNode[T]:
        return ParameterNode(data, name, self._description, **self._checks())

    def _recipe(self) -> tuple[Any, ...]:
        return functools.partial(ParameterNode, **self._checks()), super()._recipe()[1]


def _all(verdict: Any) -> bool:
    """Is it true, of an array everywhere?"""
    return bool(verdict.all() if hasattr(verdict, "all") else verdict)


def _fit(value: Any, like: Any) -> Any:
    """The value as the type of `like`: 7.0 is the int 7, a list may be a tuple. Or `ValueError`."""
    kind = type(like)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    listed = type(value) in (list, tuple) and kind in (list, tuple, set, frozenset)
    whole = kind is int and number and value % 1 == 0
    if whole or listed or (kind is float and number and math.isfinite(value)):
        return cast(Any, kind)(value)
    if like is None or (isinstance(value, kind) and kind not in (int, float)):
        return value
    name = "finite float" if kind is float else kind.__name__
    article = "an" if name[0] in "aeiou" else "a"
    raise ValueError(f"it must be {article} {name}, as its present value is")


@overload
def node(data: Node[T], *args: Any, **options: Any) -> Any: ...


@overload
def node(
    data: T, name: str | None = ..., trainable: Literal[False] = ..., description: str | None = ...
) -> Node[T]: ...


@overload
def node(data: T, name: str | None = ..., *args: Any, **options: Any) -> ParameterNode[T]: ...


def node(
    data: Any, name: Any = None, trainable: bool = False, description: Any = None, **checks: Any
) -> Any:
    """Declare a value: a root of the graph, or with `trainable=True` a parameter.

    A node of a node is that node; a trainable node of a node is a new parameter with its value.

    Args:
        data: any Python value.
        name: the base of its name, the type's name by default.
        trainable: may an optimizer change it?
        description: words shown to whoever improves it.
        checks: `choices`, `bounds`, `constraint`, `projections`, `check`: see `ParameterNode`.

    Returns: a `Node`, or a `ParameterNode`.
    Raises: `ValueError` if the value fails its own checks; `TypeError` for checks on a plain node.

    >>> greeting = node("Hello", name="greeting", trainable=True, constraint="one polite word")
    >>> greeting
    <ParameterNode greeting:0 = 'Hello'>
    >>> (greeting + ", you").data
    'Hello, you'
    """
    for name_given in checks.keys() - set(_CHECKS):
        raise TypeError(f"node() has no argument {name_given!r}; it checks {', '.join(_CHECKS)}")
    if checks and not trainable:
        raise TypeError(f"node(): {', '.join(checks)} is for a parameter: add trainable=True")
    if isinstance(data, Node):
        if not trainable:
            if name is not None:
                words = f"node() of a node is that node: {data.name} keeps its name"
                warnings.warn(words, stacklevel=2)
            return data
        data, name = data.data, name or data._base
    kind: Any = ParameterNode if trainable else Node
    return kind(data, name, description, **checks)


_CONTAINERS = (list, tuple, dict, set, frozenset, slice)


def _nodes_in(value: Any) -> Iterator[Node[Any]]:
    """Every node in a value: itself, or inside containers at any depth."""
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if isinstance(item, Node):
            yield item
        elif isinstance(item, _CONTAINERS) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(_items(item))


def _items(container: Any) -> Iterable[Any]:
    """What a container holds; of a dict first its keys, then its values."""
    if isinstance(container, slice):
        return container.start, container.stop, container.step
    return [*container, *container.values()] if isinstance(container, dict) else container


def _holds(value: Any) -> bool:
    """Is it a container with a node in it at any depth?"""
    return isinstance(value, _CONTAINERS) and next(_nodes_in(value), None) is not None


def _replace(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A copy of a container, of its own type, with `leaf(item)` for whatever is no container."""
    if not isinstance(value, _CONTAINERS):
        return leaf(value)
    result: Any = copy.copy(value)  # it keeps what a subclass adds, such as a default factory
    if isinstance(value, dict):
        result.clear()
        for key, item in value.items():
            known = _replace(key, leaf) if isinstance(key, Node) or _holds(key) else key
            result[known] = _replace(item, leaf)
        return result
    items = [_replace(item, leaf) for item in _items(value)]
    if isinstance(value, list):
        result[:] = items
        return result
    make = getattr(type(value), "_make", type(value))
    return slice(*items) if isinstance(value, slice) else make(items)


def _paths(path: str, value: Any) -> Iterator[tuple[str, Node[Any]]]:
    """The nodes of an argument, each with the way to it: `xs[0]`, `options['key']`."""
    if isinstance(value, Node):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"{path}.key", found) for found in _nodes_in(key))
            yield from _paths(f"{path}[{to_text(key, 60)}]", item)
    else:
        for index, item in enumerate(_items(value)):
            yield from _paths(f"{path}[{index}]", item)


def _wrap(value: Any, name: str | None = None) -> Any:
    """The value as a node; a container that holds nodes as one with a node for every leaf."""
    if isinstance(value, Node):
        return value
    return _replace(value, _wrap) if _holds(value) else Node(value, name)


def to_data(value: Any) -> Any:
    """The plain value: nodes, also those inside containers at any depth, give way to their data.

    >>> to_data({"a": [node(1), (node("two"), 3)]})
    {'a': [1, ('two', 3)]}
    """
    if isinstance(value, Node):
        return value.data
    return _replace(value, to_data) if _holds(value) else value


def _apply(op: _Operator, args: Sequence[Any], kwargs: Any = _EMPTY) -> MessageNode[Any]:
    """Run an operator on nodes and plain values, and record it."""
    rest = (f"args_{i}" for i in range(len(args) - len(op.names)))
    names = (*op.names[: len(args)], *rest, *kwargs)
    return _run(op, _Call(names, tuple(map(_wrap, (*args, *kwargs.values()))), len(kwargs)))


def _run(op: _Operator, call: _Call) -> MessageNode[Any]:
    try:
        data = call.apply(op.function, call.plain())
    except Exception as error:
        _fail(op, call, error)
    return _record(op, call, data)


def _record(
    op: _Operator, call: _Call, data: Any, kind: type[MessageNode[Any]] = MessageNode
) -> MessageNode[Any]:
    """The node for a call that gave `data`; while tracing is off it has no parents."""
    scope, parents = _scope.get(), call.values
    if scope is not None and not scope.tracing:
        return kind(data, op, (), False)
    simple, tracked = call.names == op.names and not call.outside, False
    for value in parents:
        simple = simple and isinstance(value, Node)
        tracked = tracked or (simple and value._tracked)
    if not simple:
        parents = tuple(call.inputs().values())
        tracked = any(parent._tracked for parent in parents)
    return kind(data, op, parents, tracked, None if simple else call)


def _ancestors(nodes: Iterable[Node[Any]], tracked: bool = False) -> list[Node[Any]]:
    """The nodes and all they come from, parents first; if `tracked`, what depends on a parameter.

    A node is numbered after its parents, so sorting by number is a topological order. What comes
    from the first of the nodes stands first: so the order is the same if they were made at a time.
    """
    found: dict[int, Node[Any]] = {}
    order: list[int] = []
    for output in nodes:
        stack, new = [output], list[int]()
        while stack:
            each = stack.pop()
            if each._number not in found and (each._tracked or not tracked):
                found[each._number] = each
                new.append(each._number)
                stack.extend(each.parents)
        order += sorted(new)
    return [found[number] for number in order]


class _Pickled:
    """A node inside a pickle. It stands after its parents and names them, so that nothing recurses,
    and lives as long as the pickling: two outputs pickled together share what they share."""

    __slots__ = ("__weakref__", "node")

    def __init__(self, node: Node[Any]) -> None:
        self.node = node

    def __reduce__(self) -> tuple[Any, ...]:
        return self.node._recipe()


_pickling: weakref.WeakValueDictionary[int, _Pickled] = weakref.WeakValueDictionary()


def _pickled(value: Any) -> Any:
    """What stands for a node in a pickle; anything else is itself."""
    if not isinstance(value, MessageNode):
        return value
    return _pickling.setdefault(value._number, _Pickled(value))


def _own(value: Any) -> Any:
    """A copy of what a method could change in place: an operator never changes its node's data."""
    return copy.copy(value) if isinstance(value, (list, dict, set, bytearray)) else value


_OBJECT = r"<[\w.<>]{0,200}?(\w{1,99}) object at 0x[0-9a-fA-F]{1,16}>"


def to_text(value: Any, limit: int = 0) -> str:
    """`repr`, the same on every run (no address, sets sorted), cut in the middle to `limit`."""
    try:
        text = repr(value)
        if type(value) in (set, frozenset):
            items = [*map(repr, value)]
            text = text.replace(", ".join(items), ", ".join(sorted(items)))
    except Exception:
        text = f"<{type(value).__name__}>"
    if not isinstance(value, str) and " at 0x" in text:
        text = re.sub(" at 0x[0-9a-fA-F]{1,16}", "", re.sub(_OBJECT, r"<\1>", text))
    return _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    """The text, its middle left out and its full length said if it is longer than `limit`."""
    if not limit or len(text) <= limit:
        return text
    note = f" ...({len(text):,} characters)... "
    room = max(limit - len(note), 8)
    return text[: room - room // 3] + note + text[-(room // 3) :]


def _identifier(text: str) -> str:
    word = re.sub(r"\W", "_", text)
    return f"_{word}" if word[:1].isdigit() else word


for _name, _alias in ("len", "len_"), ("getattr", "node_getattr"), ("divmod", "node_divmod"):
    setattr(operators, _alias, getattr(operators, _name))
# fmt: off
_operator("identity", lambda x: x, "x itself")
_operator("cond", lambda test, a, b: a if test else b,
          "a if test is true, else b", "test", "a", "b")
_operator("not_", operator.not_, "not x")
_operator("is_", operator.is_, "x is y", "x", "y")
_operator("is_not", operator.is_not, "x is not y", "x", "y")
_operator("in_", lambda x, y: x in y, "x in y", "x", "y")
_operator("not_in", lambda x, y: x not in y, "x not in y", "x", "y")
_operator("concat", lambda *parts: functools.reduce(operator.add, parts),
          "the parts joined by +", "x", "y")
_operator("ord_", ord, "the code point of the character x")
_operator("chr_", chr, "the character with code point x")
_operator("make_list", lambda *items: [*items], "a list of the items", "x")
_operator("make_tuple", lambda *items: items, "a tuple of the items", "x")
_operator("make_set", lambda *items: {*items}, "a set of the items", "x")
_operator("make_dict", lambda **items: items, "a dict of the items")
_operator("list_extend", lambda x, y: [*x, *y],
          "a new list: x with the items of y at its end", "x", "y")
_operator("dict_update", lambda x, y: {**x, **y},
          "a new dict: x with the items of y put over it", "x", "y")
# fmt: on
for _kind in (list, tuple, set, dict):
    _operator(f"to_{_kind.__name__}", _kind, f"{_kind.__name__}(x)")


# ---- 2. Forward ----------------------------------------------------------------------------------
#
# What is recorded while a program runs?  Each call of a function marked `@bundle`, as one node.
#
#       question ─┐
#                 ├── answer ── answer:0          one node, whatever happens inside
#       __code ───┘                               (a parameter, when the function is trainable)
#
# The body sees plain values. If it fails, the node is an ExceptionNode and its message is feedback;
# if it looks at a node that was not an argument, that is noticed. Last come modules, which hold
# parameters, and the limits under which code written by a language model can be run.
# Left out: feedback (section 3), language models (section 5).


class ExecutionError(MinitraceError):
    """A recorded operator or bundle failed; `exception_node` stands where its output would.

    The node's parents are the inputs of the call, so feedback about the failure reaches the
    parameters that had a part in it. `__cause__` is the original exception.

    >>> @bundle()
    ... def half(x):
    ...     return 1 / x
    >>> try:
    ...     half(node(0, name="x"))
    ... except ExecutionError as error:
    ...     print(error.exception_node.data)
    (ZeroDivisionError) division by zero
    """

    def __init__(self, exception_node: ExceptionNode) -> None:
        super().__init__(exception_node)
        self.exception_node = exception_node

    def __str__(self) -> str:
        return f"{self.exception_node.data}, in {self.exception_node.op_name}"


class TraceMissingInputsError(MinitraceError):
    """A bundle's body used a node that is not among its arguments: the graph would miss an edge.

    >>> fee = node(2, name="fee", trainable=True)
    >>> @bundle()
    ... def price(amount):
    ...     return amount * fee.data
    >>> price(10)
    Traceback (most recent call last):
    minitrace.TraceMissingInputsError: price() used fee:0, which is not among its arguments: pass \
it as an argument, or use @bundle(allow_external_dependencies=True) to make it a parent
    """


class ExceptionNode(MessageNode[str]):
    """What a call that raised left behind: a node whose data is `(TypeName) message`.

    >>> try:
    ...     node("7") + 1
    ... except ExecutionError as error:
    ...     print(error.exception_node.create_feedback())
    (TypeError) can only concatenate str (not "int") to str
    """

    __slots__ = ("_full",)

    def create_feedback(self, style: str = "simple") -> str:
        """The failure as feedback: its message; in "full" also the source, with a marked line."""
        if style not in ("simple", "full"):
            raise ValueError(f"create_feedback() knows 'simple' and 'full', not {style!r}")
        return self.data if style == "simple" else getattr(self, "_full", self.data)


def _fail(op: _Operator, call: _Call, error: Exception) -> NoReturn:
    """Raise the `ExecutionError` of a failed call; it tells what the innermost bundle reported."""
    inner: Any = getattr(error, "exception_node", None)
    kind, words = type(error).__name__, str(error)
    told = getattr(error, "failure", None)  # an error may carry its own words and marked source
    message, source = told or (f"({kind}) {words}".rstrip(), "")
    message = inner.data if inner is not None else message
    exception_node: Any = _record(op, call, message, ExceptionNode)
    full = message + (source if told else _marked_source(error))
    exception_node._full = inner._full if inner is not None else full
    original = error.__cause__ or error if isinstance(error, ExecutionError) else error
    raise ExecutionError(exception_node) from original


def _marked_source(error: Exception) -> str:
    """The source of the user's function that failed, an arrow at the line, and the way on in."""
    import inspect
    import textwrap
    import traceback

    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    text = ""
    for code, line in (place for place in places if place[0].co_filename != __file__):
        with contextlib.suppress(OSError, TypeError):
            rows, first = inspect.getsourcelines(code)
            failed = line - max(first, 1)
            if text:
                text += f"\nin {code.co_name}: {rows[failed].strip()}"
            else:
                rows[failed] = f"{rows[failed].rstrip()}   <-- {type(error).__name__}\n"
                shown = itertools.dropwhile(lambda row: row.lstrip().startswith("@"), rows)
                text = "\n" + textwrap.dedent("".join(shown)).rstrip()
    return text


class _Scope:
    """What surrounds a line of code as it runs: a bundle's body, `stop_tracing` or `rerun`.

    `key` says whose body it is: a bundle, or its code where that is trainable. `reads` collects the
    nodes from outside that a bundle's body looks at. `stand_ins` holds what is read in the place of
    some of them, by their numbers, while `rerun` asks what would be.
    """

    tracing = True
    key: object = None
    stand_ins: Mapping[int, Node[Any]] = _EMPTY

    def __enter__(self) -> Any:
        self.outer = outer = _scope.get()
        self.first = next(_numbers)
        self.reads: dict[int, Node[Any]] = {}
        if outer is not None:
            self.tracing, self.stand_ins = self.tracing and outer.tracing, outer.stand_ins
        self.token = _scope.set(self)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        _scope.reset(self.token)

    def read(self, node: Node[Any]) -> Any:
        """The node's data, noted as read when the node was made before this scope began."""
        if self.tracing and node._number < self.first:
            self.reads[node._number] = node
        return self.stand_ins.get(node._number, node)._data

    def runs(self, key: object) -> bool:
        """Does the bundle or code that `key` stands for run here, directly or further out?"""
        return self.key is key or (self.outer is not None and self.outer.runs(key))


@contextlib.contextmanager
def stop_tracing() -> Iterator[None]:
    """A block in which nothing is recorded: results are nodes without parents.

    It holds for this thread or task only, and nests.

    >>> x = node(1)
    >>> with stop_tracing():
    ...     y = x + 1
    >>> y.data, y.parents
    (2, ())
    """
    scope = _Scope()
    scope.tracing = False
    with scope:
        yield


class _Body(_Scope):
    """The body of a bundle as it runs: a scope that says which nodes it read, and how it failed."""

    def __init__(self, bundle: Bundle, call: _Call, key: object) -> None:
        self.bundle, self.call, self.key = bundle, call, key

    def __enter__(self) -> Any:
        self.plain = self.call.plain()
        self.held = {} if _MUTABLE.isdisjoint(map(type, self.plain)) else self._contents()
        return super().__enter__()

    def _contents(self) -> dict[str, list[Any]]:
        """What each node that is a list, dict or set among the arguments holds now."""
        found = {}
        for name, value, data in zip(self.call.names, self.call.values, self.plain, strict=True):
            if type(data) in _MUTABLE and isinstance(value, Node):
                more = data.values() if isinstance(data, dict) else ()
                found[f"{name}, a {type(data).__name__}"] = [*data, *more]
        return found

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        _scope.reset(self.token)
        if error is not None and not isinstance(error, Exception):
            return
        for name, before in self.held.items():
            if [*map(id, before)] != [*map(id, self._contents()[name])]:
                words = "in place: the graph shows the changed value as its input; work on a copy"
                told = f"{self.bundle.__name__}() changed its argument {name}, {words}"
                warnings.warn(told, stacklevel=4)
        if self.reads:
            self._keep_outside()
        if error is None or not self.bundle.options["catch_execution_error"]:
            return
        ours = isinstance(error, MinitraceError) and not hasattr(error, "failure")
        if isinstance(error, ExecutionError) or not ours:
            _fail(self.bundle.op, self.call, error)

    def _keep_outside(self) -> None:
        """Make parents of the nodes that the body found outside, or say which are not allowed."""
        given = {parent._number for value in self.call.values for parent in _nodes_in(value)}
        outside = {n: node for n, node in self.reads.items() if n not in given}
        strays = ", ".join(node.name for node in outside.values() if not _is_code(node))
        if strays and not self.bundle.options["allow_external_dependencies"]:
            used = f"{self.bundle.__name__}() used {strays}, which is not among its arguments"
            remedy = "pass it as an argument, or use @bundle(allow_external_dependencies=True)"
            error = TraceMissingInputsError(f"{used}: {remedy} to make it a parent")
            if self.bundle.trainable and self.call.plain()[0] != self.bundle.source:
                # Code that somebody proposed: a failure like any other.
                _fail(self.bundle.op, self.call, error)
            raise error
        self.call = self.call._replace(outside=outside)
        if around := _scope.get():
            around.reads.update(outside)


def _is_code(node: Node[Any]) -> bool:
    return node._base.startswith("__code")


_MUTABLE = {list, dict, set}


class Bundle:
    """A function whose calls are recorded: what `@bundle` makes. See `bundle`."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        import inspect

        functools.update_wrapper(self, function)
        inner: Any = inspect.unwrap(function)
        while isinstance(inner, functools.partial):
            inner = inner.func
        self.fun, self._inner = function, inner
        self.__name__ = name = getattr(inner, "__name__", type(inner).__name__)
        self.__qualname__ = getattr(inner, "__qualname__", name).replace("<locals>.", "")
        called = inner if inspect.isroutine(inner) else type(inner).__call__
        self.is_async = inspect.iscoroutinefunction(called)
        self.options, self.trainable = options, cast(bool, options["trainable"])
        self.traceable_code: bool = options["traceable_code"]
        self.limits: Any = options["limits"]
        self.parameter: ParameterNode[str] | None = None
        self._owner: tuple[type | None, str] = None, ""
        self._plan(function)
        words = options["description"] or inspect.getdoc(inner) or ""
        named = re.match(r"\s*\[([^\]]+)\]\s*", options["description"] or "")
        name, words = (named[1], words[named.end() :]) if named else (self.__qualname__, words)
        names = self._positional + self._keyword_only
        if self.trainable:
            self._train(options["source"], options["projections"])
            names, function = ("__code", *names), self._evaluate
            name, words = "eval", f"{name}: {words}" if words else f"{name}, by the code in __code"
        last = options["effects"], len(self._keyword_only), self
        self.op = _Operator(name, words.rstrip(), names, function, *last)

    def _plan(self, function: Callable[..., Any]) -> None:
        """Read the signature once, so that a call need not.

        What arranges the arguments of a call is a function with the same signature, whose defaults
        are nodes: Python binds them by its own rules, and says in its own words what does not fit.
        """
        import inspect

        try:
            self.signature = inspect.signature(function)
        except (TypeError, ValueError):  # some functions written in C have none
            self.signature = inspect.signature(lambda *args, **kwargs: None)
        plain, defaults = [], {}
        names: list[list[str]] = [[], [], [], [], []]  # by the kind of argument
        for p in self.signature.parameters.values():
            names[p.kind].append(p.name)
            if p.default is not p.empty:
                defaults[p.name] = _wrap(p.default, p.name)
                p = p.replace(default=_Verbatim(f"defaults[{p.name!r}]"))
            plain.append(p.replace(annotation=p.empty))
        only, either, rest, keyword_only, keywords = names
        self._positional, self._rest = (*only, *either), "".join(rest)
        self._keyword_only = tuple(keyword_only)
        self._simple = not (rest or keyword_only or keywords)
        header = str(inspect.Signature(plain))[1:-1]
        parts = (f"[{', '.join(part)}]" for part in (self._positional, keyword_only))
        values = ", ".join([*parts, *(rest or ["()"]), *(keywords or ["{}"])])
        self._arrange = eval(f"lambda {header}: ({values})", {"defaults": defaults})
        self._arrange.__qualname__ = self.__name__

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """The call with a name for every argument, defaults too; `TypeError` if it does not fit."""
        names = self._positional
        if self._simple and not kwargs and len(args) == len(names):
            nodes = [v if isinstance(v, Node) else _wrap(v, names[n]) for n, v in enumerate(args)]
            return _Call(names, tuple(nodes))
        first, last, rest, more = self._arrange(*args, **kwargs)
        extra = (f"{self._rest}_{i}" for i in range(len(rest)))
        names = (*names, *extra, *self._keyword_only, *more)
        wrapped = map(_wrap, (*first, *rest, *last, *more.values()), names)
        return _Call(names, tuple(wrapped), len(last) + len(more))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        scope, parameter, function = _scope.get(), self.parameter, self.fun
        if parameter is not None:
            parameter = self.code_of(args[0] if args else None)
            function = functools.partial(self._evaluate, parameter.data)
        key = self if parameter is None else parameter
        if self.traceable_code or (scope is not None and scope.runs(key)):
            result = function(*args, **kwargs)
            return node(result) if self.traceable_code and not self.is_async else result
        call = self._bind(args, kwargs)
        if parameter is not None:
            if scope is not None and scope.tracing:  # made here or not, it is an input from outside
                scope.reads[parameter._number] = parameter
            call = _Call(("__code", *call.names), (parameter, *call.values), call.keywords)
        return (self._later if self.is_async else self._now)(_Body(self, call, key))

    def _now(self, body: _Body) -> MessageNode[Any]:
        with body:
            data = to_data(body.call.apply(self.op.function, body.plain))
        return _record(self.op, body.call, data)

    async def _later(self, body: _Body) -> MessageNode[Any]:
        with body:
            data = to_data(await body.call.apply(self.op.function, body.plain))
        return _record(self.op, body.call, data)

    # Trainable code.
    def _train(self, source: str | None, projections: Any) -> None:
        """Make the function's source a parameter."""
        import textwrap

        name, words = self.__name__, f"The source code of {self.__name__}"
        if name == "<lambda>":
            raise TypeError("a lambda cannot be trainable: its source has no name; use def")
        given = textwrap.dedent(source or "").strip("\n")
        self.source, self._locals = (given, {}) if given else _source_of(self._inner)
        header = _header(self.source, name)
        check = functools.partial(check_code, name=name, signature=header, limits=self.limits)
        rules: dict[str, Any] = {"check": check, "projections": projections or ()}
        rules["constraint"] = f"It must define: {header.splitlines()[-1]}"
        self.parameter = ParameterNode(self.source, "__code", words, **rules)
        self._function = functools.lru_cache(16)(self._function_from)

    def code_of(self, instance: Any) -> ParameterNode[str]:
        """The code parameter of this bundle as `instance` has it: each instance owns its copy."""
        shared = cast("ParameterNode[str]", self.parameter)
        (owner, name), classes = self._owner, type(instance).__mro__
        state = getattr(instance, "__dict__", None)
        if owner not in classes or type(state) is not dict:
            return shared
        key = f"code of {name}, {classes.index(owner)}"  # a class and its base may share a name
        if key not in state:
            state[key] = shared._root(shared._data, "__code")
        return cast("ParameterNode[str]", state[key])

    def _evaluate(self, code: str, *args: Any, **kwargs: Any) -> Any:
        """Run the code that the parameter holds now."""
        if self.limits is not None:
            return self.limits.run(code, self.__name__, args, kwargs)
        if code == self.source:
            return self.fun(*args, **kwargs)
        try:
            return self._function(code)(*args, **kwargs)
        except (SystemExit, GeneratorExit) as error:  # proposed code does not end the program
            raise RuntimeError(f"the code raised {type(error).__name__}") from error

    def _function_from(self, text: str) -> Any:
        """The function that a text defines, with the original's globals, closure and defaults."""
        original = self._inner if isinstance(self._inner, FunctionType) else _header
        inside = zip(original.__code__.co_freevars, original.__closure__ or (), strict=True)
        cells = {key: CellType(value) for key, value in self._locals.items()} | dict(inside)
        cells.setdefault("__class__", CellType(self._owner[0]))  # for super()
        code = _maker(text, cells, self.__name__, getattr(self._owner[0], "__name__", "_"))
        closure = tuple(cells[key] for key in code.co_freevars)
        function = FunctionType(code, original.__globals__, self.__name__, None, closure)()
        if isinstance(function, FunctionType):
            for name in "__defaults__", "__kwdefaults__", "__qualname__", "__module__":
                setattr(function, name, getattr(original, name))
        return function

    def parameters(self) -> list[ParameterNode[Any]]:
        """Its code, if that is trainable; of a method, the instance's own."""
        return [] if self.parameter is None else [self.parameter]

    @property
    def info(self) -> dict[str, Any]:
        """The function's name, documentation, signature and file."""
        code = getattr(self.fun, "__code__", None)
        place = {"file": code.co_filename, "line": code.co_firstlineno} if code else {}
        facts = {"fun": self.fun, "fun_name": self.__qualname__, "signature": str(self.signature)}
        return facts | place

    # As an attribute of a class it is a method.
    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner, name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else _Bound(self, instance)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<bundle {self.__qualname__}{self.signature}>"


class _Bound:
    """A bundle seen through an instance, which becomes its first argument."""

    def __init__(self, bundle: Bundle, instance: Any) -> None:
        self.__func__, self.__self__ = bundle, instance

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("__func__", "__self__"):  # not set yet, while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.__func__, name)

    @property
    def parameter(self) -> ParameterNode[str] | None:
        """The instance's own code parameter."""
        return self.__func__.code_of(self.__self__) if self.__func__.trainable else None

    parameters: Any = Bundle.parameters

    def __repr__(self) -> str:
        return f"{self.__func__!r} of {type(self.__self__).__name__}"


def _bundle(function: Any, options: Mapping[str, Any]) -> Any:
    """Bundle a function, or the one inside a staticmethod, a classmethod or a property."""
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(_bundle(function.__func__, options))
    if isinstance(function, property):
        return property(_bundle(function.fget, options), function.fset, function.fdel)
    if not callable(function):
        raise TypeError(f"@bundle marks a function, not {to_text(function, 60)}")
    return Bundle(function, options)


def bundle(
    description: Any = None,
    *,
    trainable: bool = False,
    traceable_code: bool = False,
    catch_execution_error: bool = True,
    allow_external_dependencies: bool = False,
    overwrite_python_recursion: bool = False,
    projections: Iterable[Callable[[str], str]] | None = None,
    source: str | None = None,
    limits: Any = None,
    effects: bool = False,
) -> Any:
    """Mark a function: each call becomes one node, whose parents are the arguments.

    Use it with or without parentheses, on functions, methods and `async def`. The body works on
    plain values; a container that holds nodes is unwrapped, and each of them is a parent.

    Args:
        description: `"[op_name] what it does"`; the function's name and docstring by default.
        trainable: make the function's source a parameter, which an optimizer may rewrite.
        traceable_code: run the body on nodes, as if it were not bundled.
        catch_execution_error: make a node of a failure and raise `ExecutionError`.
        allow_external_dependencies: nodes that the body uses beside its arguments become parents.
        overwrite_python_recursion: accepted for programs written for Trace; recursion is one node.
        projections: functions that move new code to code that is allowed.
        source: the source, where Python keeps none (`python -c`, `exec`).
        limits: run the code in a child process under these `Limits`.
        effects: it does more than compute (asks a language model, writes a file): `rerun` leaves
            it alone.

    Raises: when called, `ExecutionError`, `TraceMissingInputsError`, or `TypeError` if the
        arguments do not fit.

    >>> @bundle(trainable=True)
    ... def greet(name):
    ...     "Greet somebody."
    ...     return "Hello " + name
    >>> greeting = greet(node("Ada", name="name"))
    >>> greeting.data, list(greeting.inputs)
    ('Hello Ada', ['__code', 'name'])
    >>> greet.parameter.set("def greet(name):\\n    return 'Hi, ' + name + '!'")
    >>> greet("Ada").data
    'Hi, Ada!'

    Source: Trace, arXiv:2406.16218, where it is `trace.bundle`.
    """
    options = locals()  # every argument by its name
    if description is None or isinstance(description, str):
        return functools.partial(_bundle, options=options)
    return _bundle(description, {**options, "description": None})


def _source_of(function: Any) -> tuple[str, dict[str, Any]]:
    """The source of a function as its author wrote it, dedented, without its bundle decorator.

    Decorators above `@bundle` wrap the bundle, not the function, and go too; those below stay. The
    second result holds the local names that those below need.
    """
    import ast
    import linecache

    code: Any = getattr(function, "__code__", None)
    lines = linecache.getlines(code.co_filename, function.__globals__) if code else []
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back:
        frame = frame.f_back
    with contextlib.suppress(SyntaxError):
        for found in _definitions(ast.walk(ast.parse("".join(lines))), code and code.co_name):
            marks = found.decorator_list
            if min(part.lineno for part in [*marks, found]) == code.co_firstlineno:
                known = {} if frame.f_locals is frame.f_globals else frame.f_locals
                names = set(re.findall(r"\w+", " ".join(map(ast.unparse, marks))))
                local = {name: known[name] for name in names if name in known}
                return _cut_out(found, lines, {**function.__globals__, **known}), local
    called, file = getattr(function, "__qualname__", function), code and code.co_filename
    remedy = "write the function in a file, or give it as bundle(trainable=True, source=text)"
    raise ValueError(f"the source of {called} cannot be read (from {file}): {remedy}")


def _definitions(parts: Iterable[ast.AST], name: str) -> list[Any]:
    """The definitions of a function called `name` among some parts of a program."""
    kinds = "FunctionDef", "AsyncFunctionDef"
    return [part for part in parts if type(part).__name__ in kinds and vars(part)["name"] == name]


def _cut_out(found: Any, lines: list[str], namespace: Mapping[str, Any]) -> str:
    """The lines of a function definition from below its bundle decorator, dedented."""
    import ast

    marks, margin = found.decorator_list, found.col_offset
    while any(_names_bundle(mark, namespace) for mark in marks):
        marks = marks[1:]
    inside: set[int] = set()  # lines of a text of several: their white space is part of its value
    for part in ast.walk(found):
        documents = part is getattr(found.body[0], "value", None)
        if isinstance(part, (ast.Constant, ast.JoinedStr)) and not documents:
            inside.update(range(part.lineno + 1, (part.end_lineno or 0) + 1))
    text = ""
    for n in range([*marks, found][0].lineno, found.end_lineno + 1):
        row = lines[n - 1]
        text += row if n in inside or row[:margin].strip() else row[margin:] or "\n"
    return text.rstrip()


def _names_bundle(decorator: ast.expr, namespace: Mapping[str, Any]) -> bool:
    """Is this decorator `bundle`, whatever it is called here?"""
    import ast

    for part in ast.walk(decorator):
        first, *rest = ast.unparse(part).split(".")
        value = functools.reduce(lambda v, name: getattr(v, name, None), rest, namespace.get(first))
        if value is bundle or getattr(value, "func", None) in (bundle, _bundle):
            return True
    return False


def _header(text: str, name: str) -> str:
    """The lines that define the one function `name` of a text of code, its decorators first."""
    import ast

    found = _definitions(ast.parse(text).body, name)
    if not found:
        raise ValueError(f"the source does not define {name}()")
    found[0].body = []
    return ast.unparse(found[0]).strip()


_files = itertools.count()


def _maker(text: str, free: Iterable[str], name: str, owner: str) -> CodeType:
    """The code of a function that, called, defines what the text defines and returns `name`.

    It lies inside another that holds the free names, so that it can be given the living cells of a
    closure, and inside a class, so that private names work. Its globals are those of whoever calls
    it, and nothing is written there.
    """
    import ast
    import linecache

    # The names of files are used again after so many: entries are replaced, and never taken away
    # while somebody else walks through the cache.
    filename = f"<code {next(_files) % 1024}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    outer = f"class {owner}:\n def outer():\n  {' = '.join(free)} = None"
    tree: Any = ast.parse(f"{outer}\n  def maker():\n   return {name}")
    tree.body[0].body[0].body[1].body[:0] = ast.parse(text, filename).body
    code = compile(tree, filename, "exec")  # annotations stay unevaluated, as in this file
    for _ in "class", "outer", "maker":
        code = next(part for part in code.co_consts if isinstance(part, CodeType))
    return code


class _Verbatim(str):
    """A text that stands for a value and is shown as it is: one that JSON could not hold."""

    __repr__ = str.__str__


_DEPTH = 100  # levels of containers in containers that one value may have
_TAGS: dict[str, Any] = {f"${kind.__name__}": kind for kind in (tuple, set, frozenset, dict)}
_TAGS |= {"$bytes": bytes.fromhex, "$float": float.fromhex, "$text": _Verbatim}
_TAGS["$int"] = functools.partial(int, base=16)


def encode(value: Any, place: str = "value", depth: int = 0, as_text: bool = False) -> Any:
    """Turn a Python value into what strict JSON can hold, so that `decode` gives it back exactly.

    What JSON lacks is tagged: a tuple is `{"$tuple": [...]}`, and so on for sets, bytes, numbers
    that are not finite or have thousands of digits, and mappings with other keys than strings.
    Only exact built-in types pass: a subclass would come back as something else.

    Args:
        value: None, bool, int, float, str, bytes, list, tuple, set, frozenset or dict, nested.
        place: what an error calls the value.
        depth: how many containers are around it; at most 100.
        as_text: write what cannot be written as its text, `{"$text": ...}`.

    Returns:
        lists, string-keyed dicts, strings, numbers, booleans and None.

    Raises:
        TypeError: something inside cannot be written; the message names the place.

    >>> encode({"shape": (2, 3), "loss": float("inf")})
    {'shape': {'$tuple': [2, 3]}, 'loss': {'$float': 'inf'}}
    >>> encode([1, {"x": print}], "args")
    Traceback (most recent call last):
    TypeError: args[1]['x']: a builtin_function_or_method cannot be written as JSON
    """
    kind, inside = type(value), functools.partial(encode, depth=depth + 1, as_text=as_text)
    if value is None or kind in (bool, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is int:
        return value if value.bit_length() <= 10_000 else {"$int": hex(value)}
    if kind in (float, bytes):
        return {f"${kind.__name__}": value.hex()}
    if kind is _Verbatim:
        return {"$text": str(value)}
    if depth <= _DEPTH and kind is dict:
        if all(type(key) is str and key[:1] != "$" for key in value):
            return {k: inside(item, f"{place}[{k!r}]") for k, item in value.items()}
        return {"$dict": [inside(list(pair), place) for pair in value.items()]}
    if depth <= _DEPTH and kind in (list, tuple, set, frozenset):
        items = [inside(item, f"{place}[{i}]") for i, item in enumerate(value)]
        if kind in (set, frozenset):
            items.sort(key=json.dumps)
        return items if kind is list else {f"${kind.__name__}": items}
    if as_text:
        base = next((base for base in (int, float, str) if isinstance(value, base)), None)
        return encode(base(value)) if base else {"$text": to_text(value)}
    if depth > _DEPTH:
        raise TypeError(f"{place[:60]}...: nested more than {_DEPTH} levels deep")
    raise TypeError(f"{place}: a {kind.__name__} cannot be written as JSON")


def decode(tree: Any) -> Any:
    """Give back the value that `encode` turned into `tree`.

    Raises:
        ValueError or TypeError: the tree is none that `encode` writes.

    >>> decode({"$set": [1, 2]}), decode({"$dict": [[{"$tuple": [0, 1]}, "edge"]]})
    ({1, 2}, {(0, 1): 'edge'})
    """
    if type(tree) is not dict:
        return [*map(decode, tree)] if type(tree) is list else tree
    tag = next(iter(tree), "")
    if tag[:1] != "$":
        return {key: decode(item) for key, item in tree.items()}
    if tag not in _TAGS:
        raise ValueError(f"{tag!r} is no tag of this encoding")
    return _TAGS[tag](decode(tree[tag]))


def _write(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole: under another name first, then in place of the old one."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path))) as folder:
        name = os.path.join(folder, "whole")
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)


class Module:
    """An object with parameters: what `torch.nn.Module` is to tensors.

    Parameters are found in attributes that are parameters, trainable bundles, modules, or lists,
    tuples and dicts of these at any depth; a property is never run. A call runs `forward`.

    >>> class Greeter(Module):
    ...     def __init__(self):
    ...         self.words = [node("Hello", name="word", trainable=True)]
    ...     def forward(self, name):
    ...         return self.words[0] + ", " + name
    >>> greeter = Greeter()
    >>> greeter("Ada").data, list(greeter.parameters_dict())
    ('Hello, Ada', ['words.0'])
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a call runs: yours to write."""
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def parameters(self) -> list[ParameterNode[Any]]:
        """Every parameter, each once."""
        return list(self.parameters_dict().values())

    def parameters_dict(self) -> dict[str, ParameterNode[Any]]:
        """Every parameter by the dotted path of attributes that leads to it first."""
        found: dict[str, ParameterNode[Any]] = {}
        for path, parameter in _parameters_in("", self, set()):
            found[_free(path, found)] = parameter
        return found

    def copy(self) -> Any:
        """A new object of the same class that shares every attribute, parameters too."""
        self.parameters()  # code that was not touched yet is shared as well
        return copy.copy(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters' values to a file as JSON, whole or not at all."""
        values = {name: encode(each._data, name) for name, each in self.parameters_dict().items()}
        _write(path, json.dumps({"minitrace": 1, "parameters": values}, indent=1, allow_nan=False))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read values that `save` wrote. All are checked, code too, before any is set.

        Raises: `ValueError` that lists what is missing and extra, or says which value is wrong.
        """
        with open(path, encoding="utf-8") as file:
            text = file.read()
        try:
            saved = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not a saved module: {error}") from None
        values = saved.get("parameters") if isinstance(saved, dict) else None
        if not isinstance(values, dict):
            raise ValueError(f"{os.fspath(path)} is not a saved module")
        own = self.parameters_dict()
        missing, extra = sorted(own.keys() - values.keys()), sorted(values.keys() - own.keys())
        if missing or extra:
            faults = f"missing {missing}, extra {extra}"
            raise ValueError(f"{os.fspath(path)} is of another module: {faults}")
        good = {name: own[name].checked(decode(value)) for name, value in values.items()}
        for name, value in good.items():
            own[name].set(value)


def _parameters_in(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The parameters in a value, each with its path. What was seen is not entered again."""
    if isinstance(value, (Bundle, _Bound)):
        value = value.parameter
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, ParameterNode):
        yield path, value
    for name, item in _attributes(value):
        yield from _parameters_in(f"{path}.{name}" if path else str(name), item, seen)


def _attributes(value: Any) -> Iterable[tuple[Any, Any]]:
    """The items of a container, or the attributes of a module: its own, then its classes'."""
    if isinstance(value, dict):
        return list(value.items())
    if not isinstance(value, Module):
        return enumerate(value if isinstance(value, (list, tuple)) else ())
    own = {name: item for name, item in vars(value).items() if not name.startswith("code of ")}
    codes = []
    for kind in type(value).__mro__:
        for name, item in vars(kind).items():
            while not isinstance(item, Bundle) and hasattr(item, "__wrapped__"):
                item = item.__wrapped__
            if isinstance(item, Bundle) and item.trainable:
                path = f"{kind.__name__}.{name}" if name in own else name
                codes.append((path, item.code_of(value)))
            own.setdefault(name, None if isinstance(item, Bundle) else item)
    return [*own.items(), *codes]


def model(cls: type[Any]) -> type[Any]:
    """Make a plain class a `Module`; its name, docstring and `isinstance` stay.

    >>> @model
    ... class Counter:
    ...     "It counts."
    ...     def __init__(self):
    ...         self.step = node(1, name="step", trainable=True)
    >>> Counter.__name__, Counter.__doc__, len(Counter().parameters())
    ('Counter', 'It counts.', 1)
    """
    names = "__module__", "__qualname__", "__doc__", "__firstlineno__"  # the last from 3.13 on
    facts = {name: getattr(cls, name) for name in names if hasattr(cls, name)}
    return type(cls.__name__, (cls, Module), facts)


# Code by a language model: may it be accepted?

_LONGEST, _DEEPEST = 20_000, 500  # characters of code; operators in one expression of it
_CALM = str.split("bool bytes complex dict float frozenset int list range re.compile set str tuple")
_STATEMENTS = str.split("Import ImportFrom FunctionDef AsyncFunctionDef Assign AnnAssign Expr")
_NESTS = r"not|lambda|if|else|await|and|or|in|is|for|yield|[^\w\s:=)\]}]+"


def _nesting(source: str) -> int:
    """At most how deep the expressions of some code nest: operators in one without a comma."""
    import tokenize

    deepest = depth = 0
    with contextlib.suppress(tokenize.TokenError, SyntaxError):  # the parser will stop there too
        for kind, text, *_ in tokenize.generate_tokens(io.StringIO(source).readline):
            if kind == tokenize.NEWLINE or text in (",", ";"):
                depth = 0
            elif kind in (tokenize.OP, tokenize.NAME):
                depth += bool(re.fullmatch(_NESTS, text))
            deepest = max(deepest, depth)
    return deepest


def _parse(source: str) -> ast.Module:
    """Parse and compile, refusing first what is so long or deep that it could crash the parser."""
    import ast

    most = f"{_LONGEST:,} characters or {_DEEPEST} operators in an expression"
    tree = ast.parse("")
    try:
        if len(source) > _LONGEST or _nesting(source) > _DEEPEST:
            raise SyntaxError(f"over {most}")
        tree = ast.parse(source, "the code")
        compile(tree, "the code", "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        if "no binding for nonlocal" not in str(error):  # a closure may hold it
            raise ValueError(f"the code does not parse: {error}") from None
    return tree


def _on_load(tree: ast.Module) -> Iterator[ast.AST]:
    """The parts of some code that would have effects when it is loaded."""
    import ast

    for statement in tree.body:
        parts = [p for p in ast.iter_child_nodes(statement) if not isinstance(p, ast.stmt)]
        for part in itertools.chain([statement], *map(ast.walk, parts)):
            acts = isinstance(part, ast.stmt) and type(part).__name__ not in _STATEMENTS
            calls = isinstance(part, ast.Call) and ast.unparse(part.func) not in _CALM
            places = isinstance(part, (ast.Attribute, ast.Subscript))
            if acts or calls or (places and isinstance(vars(part)["ctx"], ast.Store)):
                yield part


def _bare(function: Any) -> str:
    """A function's header without annotations: what stays when its code is rewritten."""
    import ast

    vars(function).update(body=[], decorator_list=[], returns=None)
    for part in ast.walk(function):
        vars(part).pop("annotation", None)
    return ast.unparse(function).strip("\n:")


def check_code(
    source: str, name: str, signature: str | None = None, limits: Any = None
) -> None:
    """Say why some code cannot be the new source of a function, or return in silence.

    Cheap, and always done before code that a language model wrote is accepted. The code is at most
    20,000 characters, parses and compiles, and holds one function called `name` beside imports,
    helper functions and constants. Nothing else may run when it is loaded, and no class stand
    there: one can stand inside a function. The size and nesting are bounded before the parser sees
    the text, since deep input crashes the interpreter's own parser.

    Under `limits` it also imports only what `limits.imports` lists, and names no `open`, `exec`,
    `getattr` and their like, no attribute such as `__class__` or `gi_frame`, and no text such as
    `"{0.__class__}"`. Not caught: such names put together at run time.

    Args:
        source: Python code.
        name: the function that must be there.
        signature: its header, `"def f(x, k=2)"` or `"(x, k=2)"`. Names, kinds and defaults of the
            arguments must be the same; annotations may differ. None: any.
        limits: the `Limits` it will run under, or None.

    Raises:
        ValueError: a reason in one sentence, written to be sent back to the language model.

    >>> check_code("import math\\ndef area(r): return math.pi * r**2", "area", "(r)")
    >>> check_code("def area(radius): return 3 * radius", "area", "(r)")
    Traceback (most recent call last):
    ValueError: the signature must stay `def area(r)`, not `def area(radius)`
    """
    import ast

    tree: Any = _parse(source)
    if limits is not None:
        limits.check(source)
    found = _definitions(tree.body, name)
    if len(found) != 1:
        raise ValueError(f"the code must define one function `{name}` at top level")
    if signature is not None:
        header = signature.rstrip(": ") if "def " in signature else f"def {name}{signature}"
        given: Any = ast.parse(f"{header}: pass").body[0]
        known = set(map(ast.unparse, given.decorator_list))  # they and the defaults are the user's
        extra = [mark for mark in found[0].decorator_list if ast.unparse(mark) not in known]
        old, new = _bare(given), _bare(copy.deepcopy(found[0]))
        if old != new:
            raise ValueError(f"the signature must stay `{old}`, not `{new}`")
        empty: Any = ast.parse("def f(): 0").body[0]
        vars(found[0]).update(decorator_list=extra, args=empty.args)
    for part in _on_load(tree):
        text = ast.unparse(part).strip().partition("\n")[0][:80]
        good = "only imports, functions and constants may be there"
        raise ValueError(f"`{text}` at top level: {good}")


# ---- 3. Backward ---------------------------------------------------------------------------------
#
# How does feedback reach what may change?  From the output to the parents, the last made first.
#
#       x:0 ──┐                           output.backward("too small")
#             ├── add:0 ── multiply:0 ◄── the walk: multiply:0, add:0, then x:0 and y:0,
#       y:0 ──┘                           each once, after all that it fed
#
# A propagator says how feedback starts, how several merge, and what each parent receives. With sums
# it is a gradient; with one growing TraceGraph it is Trace. The graph is never changed by the walk.
# Left out: what the parameters should become (section 4).


class GraphError(MinitraceError):
    """A trace graph that cannot be read or used: it says what is wrong, and at which node.

    >>> TraceGraph.from_json('{"nodes": [{"id": "x"}, {"id": "x"}]}')
    Traceback (most recent call last):
    minitrace.GraphError: nodes[1] (x): the id is used twice
    """


Rule = Callable[["Node[Any]", Any], "Sequence[Any]"]


class Propagator:
    """How feedback flows: three small duties, which a subclass may redefine.

    `init_feedback` says how it starts, `aggregate` how several that reach one node merge,
    `propagate` what each parent receives. `register` overrides `propagate` for one operator.

    The derivative of a sum and of a product are enough for a first gradient:

    >>> gradients = SumPropagator()
    >>> def product(node, g):
    ...     return [g * other.data for other in reversed(node.parents)]
    >>> gradients.register("multiply", product)
    >>> x, y = node(3.0, name="x", trainable=True), node(4.0, name="y", trainable=True)
    >>> found = backward(x * y + x, 1.0, gradients)
    >>> found[x], found[y]
    (5.0, 3.0)
    """

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}

    def register(self, op_name: str, function: Rule) -> None:
        """Let `function(node, feedback)` say what the parents of this operator's nodes receive: a
        list with one feedback for each of `node.parents`."""
        self._rules[op_name] = function

    def init_feedback(self, node: Node[Any], feedback: Any) -> Any:
        """What an output itself receives."""
        return feedback

    def start(self, outputs: Sequence[Output]) -> list[Any]:
        """What each of several outputs receives: `init_feedback` of each, unless they share it."""
        return [self.init_feedback(each.node, each.feedback) for each in outputs]

    def aggregate(self, feedbacks: list[Any]) -> Any:
        """One feedback from those that the children of a node sent, the first child's first."""
        raise NotImplementedError(f"{type(self).__name__} has no aggregate()")

    def propagate(self, node: Node[Any], feedback: Any) -> Sequence[Any]:
        """What each of `node.parents` receives: the same, unless told otherwise."""
        return [feedback] * len(node.parents)

    def __call__(self, node: Node[Any], feedback: Any) -> Sequence[Any]:
        """`propagate`, or what was registered for the node's operator."""
        rule = self._rules.get(node.op_name, self.propagate) if self._rules else self.propagate
        sent = rule(node, feedback)
        listed = isinstance(sent, (list, tuple))
        if not listed or len(sent) != len(node.parents):
            said = f"{len(sent)} feedbacks" if listed else to_text(sent, 80)
            raise ValueError(
                f"{node.op_name} at {node.name}: {said} for {len(node.parents)} parents; a rule "
                "gives a list with one feedback for each of node.parents"
            )
        return sent


class _Joined(str):
    """Several texts joined, each once, that remembers them."""

    pieces: tuple[str, ...]


class SumPropagator(Propagator):
    """Feedback that adds up: numbers are summed, texts are joined, each text once.

    `None` says nothing and adds nothing.

    >>> x = node(1, name="x", trainable=True)
    >>> backward(x + x, 1, SumPropagator())[x], backward(x + x, "too small", SumPropagator())[x]
    (2, 'too small')
    """

    def aggregate(self, feedbacks: list[Any]) -> Any:
        """The sum of numbers, or the distinct texts in lines of their own."""
        said = [feedback for feedback in feedbacks if feedback is not None]
        if len(said) < 2 or not all(isinstance(feedback, str) for feedback in said):
            return functools.reduce(operator.add, said) if said else None
        pieces = tuple(dict.fromkeys(p for text in said for p in getattr(text, "pieces", (text,))))
        joined = _Joined("\n".join(pieces))
        joined.pieces = pieces
        return joined


class GraphPropagator(Propagator):
    """Feedback that carries the graph along: every node it passes joins one `TraceGraph`.

    One backward makes one graph, shared by all the parameters it reaches.

    >>> x = node(1, name="x", trainable=True)
    >>> (x + 1).backward("too small")
    >>> graph = x.feedback[0]
    >>> [graph.kind(each) for each in graph], graph.feedback
    (['parameter', 'input', 'operator'], ['too small'])

    Source: Trace, arXiv:2406.16218, where it is the minimal subgraph propagator.
    """

    def start(self, outputs: Sequence[Output]) -> list[Any]:
        """One new graph for all the outputs, with what was said of each."""
        graph = TraceGraph()
        graph.outputs = [*outputs]
        return [graph] * len(outputs)

    def aggregate(self, feedbacks: list[TraceGraph]) -> TraceGraph:
        """The one graph that they all are."""
        return feedbacks[0]

    def propagate(self, node: Node[Any], feedback: TraceGraph) -> Sequence[Any]:
        """The graph, with this node in it."""
        feedback.add(node)
        return [feedback] * len(node.parents)


class Output(NamedTuple):
    """An output, what was said of it, and its score if there was one (higher is better).

    """

    node: Any
    feedback: Any
    score: float | None = None
    extra: Mapping[str, Any] = _EMPTY


def backward(
    output: Node[Any] | Sequence[Node[Any]],
    feedback: Any = "",
    propagator: Propagator | None = None,
    *,
    score: Any = None,
    _level: int = 2,
) -> dict[Node[Any], Any]:
    """Carry feedback from an output to every node that lies between it and a parameter.

    Nodes are visited in the reverse of their creation, so each has heard from all its children
    before it is its turn. Takes time linear in the graph, a sort aside, and leaves the graph as it
    was.

    Args:
        output: a node, or a list of nodes with a list of feedback.
        feedback: any object, often words; `None` is allowed.
        propagator: how it flows; a `GraphPropagator` by default.
        score: a number, higher is better; for several outputs a list.

    Returns: what each node reached received, merged: a dict from node to feedback. Nothing is
        stored; `node.backward` does that. If no parameter is reached there is a warning, and it is
        empty.

    >>> GRAPH.clear()
    >>> x, y = node(2, name="x", trainable=True), node(3, name="y")
    >>> found = backward(x + y, "too small", SumPropagator())
    >>> [(each.py_name, words) for each, words in found.items()]
    [('add0', 'too small'), ('x0', 'too small')]

    Source: reverse mode differentiation; the order by counting is Kahn's, 1962, found at creation.
    """
    propagator = propagator or GraphPropagator()
    outputs = _outputs(output, feedback, score)
    waiting: defaultdict[int, list[Any]] = defaultdict(list)
    for each, start in zip(outputs[::-1], propagator.start(outputs)[::-1], strict=True):
        waiting[each.node._number].append(start)
    reached: dict[Node[Any], Any] = {}
    for node in reversed(_ancestors([each.node for each in outputs], tracked=True)):
        reached[node] = merged = propagator.aggregate(waiting.pop(node._number)[::-1])
        for parent, sent in zip(node.parents[::-1], propagator(node, merged)[::-1], strict=True):
            if parent._tracked:  # the last first, as the nodes come; turned round when merged
                waiting[parent._number].append(sent)
    if not reached:
        names = ", ".join(each.node.name for each in outputs)
        words = (
            f"backward from {names} reaches no parameter: a trace ends where a value is read "
            "plainly, by ==, bool, int(), an f-string or .data, and in stop_tracing"
        )
        warnings.warn(words, stacklevel=_level)
    return reached


def _outputs(output: Node[Any] | Sequence[Node[Any]], feedback: Any, score: Any) -> list[Output]:
    """Each output with its feedback and score; what is no list holds for all of them."""
    several = isinstance(output, (list, tuple))
    nodes, words = (output, feedback) if several else ([output], [feedback])
    for each in nodes:
        if not isinstance(each, Node):
            told = f"backward() starts from a node, not {to_text(each, 60)}: was it read with .data?"
            raise TypeError(told)
    count = len(nodes)
    words = words if isinstance(words, (list, tuple)) else [words] * count
    scores = score if isinstance(score, (list, tuple)) else [score] * count
    if not all(each is None or isinstance(each, (int, float)) for each in scores):
        raise TypeError(f"backward(): a score is a number, not {to_text(score, 60)}")
    if not count == len(words) == len(scores):
        said = f"{count} outputs, {len(words)} feedbacks, {len(scores)} scores"
        raise ValueError(f"backward(): {said}")
    return [*map(Output, nodes, words, scores)]


def _send_back(
    output: Node[Any], *said: Any, retain_graph: bool = False, visualize: bool = False, **score: Any
) -> TraceGraph | None:
    """`Node.backward`: propagate, then store on the parameters what reached them.

    Returns: if asked to `visualize`, the graph with the feedback, which notebooks draw.
    """
    for each, received in backward(output, *said, **score, _level=4).items():
        if isinstance(each, ParameterNode):
            each.feedback.append(received)
    if not visualize:
        return None
    graph = TraceGraph.of(output)
    graph.outputs = [Output(output, *said[:1], **score)]
    return graph


class TraceGraph:
    """The part of a graph between parameters and outputs, with the feedback, for an optimizer.

    It is the nodes themselves, what was said of the outputs, and the values that the parameters
    had: nodes never change, but parameters do. Iterating gives the nodes, parents first.

    Attributes:
        outputs: an `Output` for each node that backward started from.
        values: the parameters, and the value of each as it was.
        extra: what a JSON form said beyond what is known here.

    >>> GRAPH.clear()
    >>> x = node(3, name="x", trainable=True)
    >>> (x * 2).backward("too small", score=0.5)
    >>> x.set(4)
    >>> graph = x.feedback[0]
    >>> [(graph.names[each], graph.kind(each), graph.value(each)) for each in graph]
    [('x0', 'parameter', 3), ('int0', 'input', 2), ('multiply0', 'operator', 6)]
    >>> graph.feedback, graph.score
    (['too small'], 0.5)
    """

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.values: dict[Node[Any], Any] = {}
        self.extra: dict[str, Any] = {}
        self.specs: dict[Node[Any], dict[str, Any]] = {}  # of nodes that were read from JSON
        self._added: deque[Node[Any]] = deque()

    @classmethod
    def of(cls, *nodes: Node[Any]) -> TraceGraph:
        """The whole graph above some nodes, also where no parameter is."""
        graph = cls()
        graph.outputs = [Output(each, None) for each in nodes]
        for each in reversed(_ancestors(nodes)):
            graph.add(each)
        return graph

    @classmethod
    def merged(cls, graphs: Iterable[TraceGraph]) -> TraceGraph:
        """One graph of several: shared nodes once, all the outputs."""
        whole = cls()
        for graph in {id(graph): graph for graph in graphs}.values():
            whole._added += graph._added
            whole.values.update(graph.values)
            whole.specs.update(graph.specs)
            whole.outputs += graph.outputs
            whole.extra.update(graph.extra)
        return whole

    def add(self, node: Node[Any]) -> None:
        """Take in a node before its parents, in the order in which backward comes by."""
        self._added.appendleft(node)
        if node.trainable:
            self.values[node] = node._data
        if "_nodes" in self.__dict__:  # what was derived from fewer nodes
            for derived in "_nodes", "names", "_children":
                self.__dict__.pop(derived, None)

    @functools.cached_property
    def _nodes(self) -> dict[Node[Any], bool]:
        """The nodes, parents first: was it added, or does it only feed one that was?"""
        found: dict[Node[Any], bool] = {}
        for node in self._added:
            for parent in node.parents:
                found.setdefault(parent, False)
            found[node] = True
        return found

    def __iter__(self) -> Iterator[Node[Any]]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __repr__(self) -> str:
        said = ", ".join(to_text(words, 60) for words in self.feedback)
        return f"<TraceGraph of {len(self)} nodes, {len(self.outputs)} outputs: {said}>"

    def kind(self, node: Node[Any]) -> str:
        """What a node is here: "parameter", "input", "operator" or "exception"."""
        if node in self.values:
            return "parameter"
        if not self.parents(node):
            return "input"
        return "exception" if isinstance(node, ExceptionNode) else "operator"

    def value(self, node: Node[Any]) -> Any:
        """The data of a node; of a parameter, as it was at backward."""
        return self.values.get(node, node._data)

    def parents(self, node: Node[Any]) -> Nodes:
        """The parents of a node; none of what only feeds the graph from the side."""
        return node.parents if self._nodes.get(node) else ()

    def children(self, node: Node[Any]) -> list[Node[Any]]:
        """The nodes computed from this one, in topological order."""
        return self._children.get(node, [])

    @functools.cached_property
    def _children(self) -> dict[Node[Any], list[Node[Any]]]:
        found: dict[Node[Any], list[Node[Any]]] = {}
        for node in self:
            for parent in dict.fromkeys(self.parents(node)):
                found.setdefault(parent, []).append(node)
        return found

    @property
    def parameters(self) -> list[ParameterNode[Any]]:
        """The parameters it can update."""
        return [node for node in self if isinstance(node, ParameterNode)]

    @property
    def ids(self) -> dict[Node[Any], Any]:
        """The id of each node in the JSON form: the one it was read with, or else its name."""
        return {each: self.specs[each]["id"] if each in self.specs else name
                for each, name in self.names.items()}  # fmt: skip

    @property
    def feedback(self) -> list[Any]:
        """What was said of each output."""
        return [output.feedback for output in self.outputs]

    @property
    def score(self) -> float | None:
        """The mean of the scores that were given."""
        scores = [output.score for output in self.outputs if output.score is not None]
        return sum(scores) / len(scores) if scores else None

    @functools.cached_property
    def names(self) -> dict[Node[Any], str]:
        """A name for each node: an identifier that no other node here has.

        Parameters keep their own. The others are counted in the order of this graph, so that what
        ran before, or beside it in another thread, changes nothing.
        """
        taken: dict[str, Node[Any]] = {}
        counts: dict[str, Iterator[int]] = defaultdict(itertools.count)
        for node in sorted(self, key=lambda node: not node.trainable):  # parameters first
            named = node.trainable or node in self.specs
            name = node.py_name if named else ""
            while not name or name in taken:
                name = _identifier(f"{node._base}{next(counts[node._base])}")
            taken[name] = node
        return {node: name for name, node in taken.items()}

    def tree(self, ascii: bool | None = None, lines: int = 200) -> str:
        """The graph as a text tree, its outputs on top, in at most 90 columns and so many lines.

        It is plain text, in ASCII alone where standard output is not UTF-8 or where asked for.

        >>> GRAPH.clear()
        >>> x = node(3, name="x", trainable=True)
        >>> (x * x + 1).backward("too small")
        >>> print(x.feedback[0].tree(ascii=True))
        add0 = 10  <- too small
        |- multiply0 = 9
        |  |- x0 = 3  [parameter]
        |  `- x0 = 3  [parameter]
        `- int0 = 1
        """
        return _tree(self, ascii, lines)

    def to_json(self, indent: int | None = None) -> str:
        """The graph as JSON, in the format that tutorial chapter 9 documents."""
        return json.dumps(_graph_form(self), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TraceGraph:
        """Read a graph. Trainable nodes become new parameters, which an optimizer can update.

        Raises: `GraphError` with the place of what is wrong: not JSON, not a trace graph, a newer
            major version, an id used twice, an input that does not come before its use.

        >>> text = '{"nodes": [{"id": "x", "value": 3, "trainable": true}]}'
        >>> TraceGraph.from_json(text).parameters
        [<ParameterNode x = 3>]
        """
        return _read_graph(text)


_FORMAT, _VERSION = "minitrace-graph", "1.0"
_NODE_FIELDS = {
    "id": (str, int), "name": str, "kind": str, "operator": str, "inputs": dict, "type": str,
    "description": str, "value": object, "trainable": bool, "constraint": str, "choices": list,
    "bounds": list,
}  # fmt: skip
_OUTPUT_FIELDS = {"id": (str, int), "feedback": object, "score": (int, float)}
_GRAPH_FIELDS = {"format": str, "version": str, "nodes": list, "operators": dict, "outputs": list}


def _graph_form(graph: TraceGraph) -> dict[str, Any]:
    """A trace graph as strict JSON can hold it."""
    ids, extra = graph.ids, dict(graph.extra)
    operators = dict(extra.pop("operators", {}))
    for node in graph:
        if graph.parents(node):
            operators.setdefault(node.op_name, node.description)
    nodes = [graph.specs.get(node) or _node_form(graph, node, ids, operators) for node in graph]
    outputs = []
    for output in graph.outputs:
        said = {"feedback": encode(output.feedback, as_text=True), "score": output.score}
        outputs.append({"id": ids[output.node], **_filled(said), **output.extra})
    form = {"format": _FORMAT, "version": _VERSION, "nodes": nodes, "operators": operators}
    return {**form, "outputs": outputs, **extra}


def _node_form(
    graph: TraceGraph, node: Node[Any], ids: dict[Node[Any], Any], operators: dict[str, str]
) -> dict[str, Any]:
    """One node of the JSON form."""
    computed = bool(graph.parents(node))
    known = computed and operators[node.op_name] == node.description
    form = {
        "id": ids[node],
        "name": node._base,
        "kind": graph.kind(node),
        "operator": node.op_name if computed else "",
        "inputs": {name: ids[parent] for name, parent in node.inputs.items()} if computed else {},
        "type": type(graph.value(node)).__name__,
        "description": "" if known else node.description,
    }
    if isinstance(node, ParameterNode):
        form |= {"constraint": node.constraint, "trainable": True}
        form["choices"] = node.choices and encode(node.choices, as_text=True)
        form["bounds"] = node.bounds and [*map(encode, node.bounds)]
    return {**_filled(form), "value": encode(graph.value(node), as_text=True)}


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something."""
    return {key: value for key, value in fields.items() if value not in (None, "", {})}


@contextlib.contextmanager
def _at(place: str) -> Iterator[None]:
    """Say where in a JSON form something was wrong."""
    try:
        yield
    except GraphError:
        raise
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise GraphError(f"{place}: {error}") from None


def _check_fields(spec: Any, fields: Mapping[str, Any], needed: str) -> None:
    """`TypeError` if an object of the JSON form lacks a field, or has one of another type."""
    if not isinstance(spec, dict) or spec.get(needed) is None:
        raise TypeError(f"it must be an object with {needed!r}")
    for field, kinds in fields.items():
        value = spec.get(field)
        fits = isinstance(value, kinds) and isinstance(value, bool) is (kinds is bool)
        if value is not None and kinds is not object and not fits:
            raise TypeError(f"its {field} cannot be {to_text(value, 60)}")


def _beyond(spec: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in fields}


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON: write it as a tagged float, as chapter 9 says")


def _read_graph(text: str) -> TraceGraph:
    """The graph of a JSON text."""
    with _at("not JSON"):
        form: Any = json.loads(text, parse_constant=_no_number)
    with _at("not a trace graph"):
        _check_fields(form, _GRAPH_FIELDS, "nodes")
        named, version = form.get("format", _FORMAT), form.get("version", _VERSION)
        if named != _FORMAT or not re.fullmatch(r"\d{1,9}(\.\d{1,9})*", version):
            raise ValueError(f"format {named!r}, version {version!r}")
        if int(version.partition(".")[0]) > int(_VERSION.partition(".")[0]):
            raise ValueError(f"version {version} is newer than {_VERSION}, which this file reads")
    graph, known = TraceGraph(), dict[str, Node[Any]]()
    graph.extra = _beyond(form, _GRAPH_FIELDS.keys() - {"operators"})
    for n, spec in enumerate(form["nodes"]):
        with _at(f"nodes[{n}]"):
            _check_fields(spec, _NODE_FIELDS, "id")
        with _at(f"nodes[{n}] ({spec['id']})"):
            node = _node_from(spec, known, form.get("operators") or {})
        known[str(spec["id"])], graph.specs[node] = node, spec
    for node in reversed(known.values()):
        graph.add(node)
    for n, spec in enumerate(form.get("outputs") or ()):
        with _at(f"outputs[{n}]"):
            _check_fields(spec, _OUTPUT_FIELDS, "id")
            graph.outputs.append(_output_from(spec, known))
    return graph


def _node_from(
    spec: dict[str, Any], known: dict[str, Node[Any]], words: dict[str, str]
) -> Node[Any]:
    """One node of the JSON form; its parents are known already."""
    if str(spec["id"]) in known:
        raise ValueError("the id is used twice")
    value, inputs = decode(spec.get("value")), spec.get("inputs") or {}
    for parent in map(str, inputs.values()):
        if parent not in known:
            raise ValueError(f"its input {to_text(parent, 60)} is no node before it")
    base = str(spec.get("name") or spec["id"])
    name = spec.get("operator") or base
    description = spec.get("description", words.get(name, "") if inputs else "")
    if spec.get("trainable", spec.get("kind") == "parameter"):
        if inputs:
            raise ValueError("a trainable node is a root and has no inputs")
        rules = {field: decode(spec.get(field)) for field in ("choices", "bounds", "constraint")}
        node: Node[Any] = ParameterNode(value, base, description, **rules)
    elif inputs:
        kind = ExceptionNode if spec.get("kind") == "exception" else MessageNode
        parents = tuple([known[str(parent)] for parent in inputs.values()])
        operator = _Operator(name, description, tuple(inputs), None)
        node = kind(value, operator, parents, any(parent._tracked for parent in parents))
    else:
        node = Node(value, base, description)
    node._base, node._index = str(spec["id"]), None
    return node


def _output_from(spec: dict[str, Any], known: dict[str, Node[Any]]) -> Output:
    """One output of the JSON form."""
    if str(spec["id"]) not in known:
        raise ValueError(f"{to_text(spec['id'], 60)} is the id of no node")
    score = spec.get("score")
    if score is not None:
        float(score)  # OverflowError if it is too large for one
    feedback = decode(spec.get("feedback"))
    return Output(known[str(spec["id"])], feedback, score, _beyond(spec, _OUTPUT_FIELDS))


def _rerun(output: Node[Any], changes: Mapping[Any, Any], effects: bool) -> Node[Any]:
    """The output as it would be if some nodes had other values, as the end of a new graph.

    Only what depends on a changed node is computed again. A bundle marked with `effects`, and a
    call of a language model, keeps its recorded value unless `effects` is true.

    >>> x, y = node(3, name="x", trainable=True), node(4, name="y")
    >>> (x * y + 1).rerun({x: 5}).data, x.data
    (21, 3)
    """
    nodes = _ancestors([output])
    changed = {getattr(each, "_number", None): value for each, value in changes.items()}
    known = {each._number for each in nodes}
    strays = [to_text(each, 60) for each in changes if getattr(each, "_number", None) not in known]
    if strays:
        raise GraphError(f"rerun: {', '.join(strays)} has no part in {output.name}")
    new: dict[int, Node[Any]] = {}
    with _Scope() as scope:
        scope.stand_ins = new
        for each in nodes:
            op, number = each._op, each._number
            if number in changed:
                new[number] = each._root(changed[number], each._base)
            elif op and (effects or not op.effects) and any(p._number in new for p in each.parents):
                new[number] = _again(op, each, new)
    return new.get(output._number, output)


def _again(op: _Operator, each: Node[Any], new: dict[int, Node[Any]]) -> Node[Any]:
    """A node computed again, where `new` holds the nodes that took the place of others."""

    def leaf(part: Any) -> Any:
        return new.get(part._number, part) if isinstance(part, Node) else part

    if op.function is None:
        what = f"the function of {each.name} ({op.name})"
        raise GraphError(f"rerun: {what} is not known in this process")
    call = (each._call or _Call(op.names, each.parents, op.keywords)).map(leaf)
    if op.bundle is None:
        return _run(op, call)
    new.update({n: node for n, node in call.outside.items() if node._number != n})
    bundle, body = op.bundle, _Body(op.bundle, call._replace(outside={}), op.bundle)
    again: MessageNode[Any] = _finish(bundle._later(body)) if bundle.is_async else bundle._now(body)
    if body.call.outside:  # the stand-ins are the parents, not what the body names
        again._call = body.call.map(leaf)
        again.parents = tuple(again._call.inputs().values())
    return again


def _finish(awaitable: Any) -> Any:
    """What an awaitable gives, by a loop of its own, since one may be running in this thread."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def whole() -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, whole()).result()


# ---- 4. Optimize ---------------------------------------------------------------------------------
#
# What should the parameters become?  Four steps, each with its own name:
#
#       describe ──── the trace graph as a text of at most so many signs    prompt()
#       ask ───────── any callable from messages to text                    propose()
#       check ─────── the reply is untrusted: type, choices, bounds, code
#       apply ─────── all of it or none of it                               update()
#
# A refused reply changes nothing, and the reason goes back to whoever wrote it. At the end stands
# what repeats the four over a dataset: `train`, and its journal.
# Left out: keys and wires (section 5). A language model is here any callable.


class ReplyError(MinitraceError):
    """The language model's replies could not be used, however often it was asked.

    Nothing was changed. `replies` holds what it said, `problems` what was wrong with the last.

    >>> x = node(1, name="x", trainable=True)
    >>> optimizer = OptoPrime([x], llm=lambda messages: "banana", retries=0)
    >>> optimizer.backward(x + 1, "too small")
    >>> optimizer.step()
    Traceback (most recent call last):
    minitrace.ReplyError: no usable reply in 1 attempt: No answer was found in the reply, neither \
as JSON nor in tags.
    """

    def __init__(self, why: str, replies: Sequence[str] = (), problems: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.replies, self.problems = list(replies), list(problems)


# What a reply may weigh: characters, and brackets inside brackets. More is refused, not tried.
MAX_REPLY, MAX_DEPTH = 200_000, 64


class Reading(NamedTuple):
    """What a language model answered: raw values by variable name, or problems and no values.

    A problem is a sentence that can go back to the language model. The values are as they were
    written: `coerce_value` turns each into the type of its parameter.
    """

    reasoning: str
    answer: str
    values: dict[str, Any]
    problems: list[str]


def read_reply(text: str, names: Collection[str]) -> Reading:
    """Read the new values of the variables `names` from a reply, as JSON or as tags.

    Whatever can mean only one thing is read: JSON or a Python dict, in prose or a fence, with
    comments, trailing commas and raw newlines; or tags, so that code needs no escaping. The last
    complete answer counts. Whatever is cut short, said twice or addressed to nobody is a problem,
    and then there are no values at all: a refusal costs a question more, a misreading a parameter.

    Args:
        text: the reply, at most MAX_REPLY characters; read in one pass, in linear time.
        names: the variables' names as the prompt shows them, such as `x0` or `__code0`.

    Returns: a Reading; never raises, whatever the text.

    >>> read_reply('Sure! {"reasoning": "too low", "suggestion": {"x:0": 7,}}', ["x0"])
    Reading(reasoning='too low', answer='', values={'x0': 7}, problems=[])
    >>> read_reply('<variable name="x0"> 7 </variable>', ["x0"]).values
    {'x0': ' 7 '}
    >>> read_reply('{"suggestion": {"y0": 7}}', ["x0", "x1"]).problems
    ["There is no variable 'y0', only x0, x1."]
    >>> read_reply('{"suggestion": {"x0": 7', ["x0"]).problems
    ['The reply cannot be read: it is cut short.']
    """
    if len(text) > MAX_REPLY:
        long = f"The reply has {len(text):,} characters; at most {MAX_REPLY:,} are read."
        return Reading("", "", {}, [long])
    return _ReplyReader(text, names).read()


def coerce_value(value: Any, like: Any) -> Any:
    """Read a reply's raw value as the type of `like`, the value that a parameter has now.

    Nothing is guessed: 7, 7.0 and "7" are the integer 7; 7.5, true and "banana" are none. Text is
    read as a literal where something else than text is wanted ("false" is False, "[1]" a list), and
    a number as its digits where text is wanted. 1, 0 and "yes" are no bools. Of lists, tuples, sets
    and dicts only the outer type must match. `like=None` takes anything.

    Raises: ValueError with a sentence that says what was expected and what came.

    >>> coerce_value("7", like=1), coerce_value("false", like=True), coerce_value([1, 2], like=())
    (7, False, (1, 2))
    >>> coerce_value("banana", like=1)
    Traceback (most recent call last):
    ValueError: Expected int, not 'banana'.
    """
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        given, end = value, 0
        if isinstance(value, str) and not isinstance(like, (str, type(None))):
            given, end = _read_literal(value)
            given = object() if value[end:].strip() or isinstance(given, str) else given
        elif isinstance(like, str) and type(value) in (int, float):
            given = str(value)
        return _fit(given, like)
    finite = "a finite " * isinstance(like, float)
    raise ValueError(f"Expected {finite}{type(like).__name__}, not {to_text(value, 80)}.")


class _Unread(ValueError):
    """Text that is no literal: `args` are what is wrong, and how far the text was read."""


_TOKEN = r"""(?sx) (?P<space> \s+ | (?:\#|//)[^\n]* | /\*.*?(?:\*/|\Z)) | (?P<mark> [][(){},:])
    | (?P<quote>\"\"\"|\'\'\'|["'`]) (?P<inside>(?:[^\\"'`]+|\\.|(?!(?P=quote))["'`])*)
      (?P<end>(?P=quote))? | (?P<word> \b[^\W\d]\w{0,98}) (?P<key>(?=\s*:))?
    | (?P<number> [-+]?(?:\d{1,400}\.?\d{0,400}|\.\d{1,400})(?:[eE][-+]?\d{1,9})?(?![\w.])) | ."""
_ESCAPE = r"(?s)\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U(000[\da-fA-F]{5})|(.))"
_ESCAPES = dict(zip("ntrbf\\/\"'`", "\n\t\r\b\f\\/\"'`", strict=True)) | {"\n": ""}
_WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}


def _read_literal(text: str, pos: int = 0) -> tuple[Any, int]:
    """Read one literal at `pos`, in JSON, Python or anything between, and say where it ends.

        literal := string | number | word | "{" items "}" | "[" items "]" | "(" items ")"
        items   := [literal [":" literal] {"," literal [":" literal]} [","]]
        string  := text between two of ", ', `, three of " or three of '; newlines as they are
        word    := true | false | null | none, in any case; before a colon any word

    Space and comments (# // /* */) may stand between tokens. Each token is respelled as Python, and
    Python's own reader does the rest. It gets brackets no deeper than MAX_DEPTH, and a value only
    after a bracket, comma or colon: no chain of operators, calls or indices, which can crash it.
    """
    import ast

    written, depth = [""], 0
    for token in re.compile(_TOKEN).finditer(text, pos):
        spelled, pos = _spell(token), token.end()
        depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(spelled, 0)
        misplaced = spelled not in ")]},:" and written[-1] not in "([{,:"
        if misplaced or spelled == "?" or depth > MAX_DEPTH:
            raise _Unread(f"it breaks off at {to_text(text[token.start() : pos + 30], 80)}", pos)
        written += [spelled] if spelled else []
        if not depth and written[-1]:
            break
    else:
        raise _Unread("it is cut short", len(text))
    try:
        tree = ast.parse("".join(written), mode="eval")
        for part in ast.walk(tree):
            keys = [key.value for key in getattr(part, "keys", ()) if isinstance(key, ast.Constant)]
            if len(set(keys)) < len(keys):
                raise _Unread("it has the same key twice", pos)
        return ast.literal_eval(tree), pos
    except (SyntaxError, TypeError):
        raise _Unread("its commas, colons and brackets do not fit together", pos) from None


def _spell(token: re.Match[str]) -> str:
    """A token as Python spells it; nothing for space and text without end, `?` for the rest."""
    if token["end"]:
        plain = re.sub(_ESCAPE, _unescape, token["inside"])
        return repr(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    if token["word"]:
        return repr(token["word"]) if token["key"] == "" else _WORDS.get(token[0].lower(), "?")
    return token["mark"] or token["number"] or ("" if token["space"] or token["quote"] else "?")


def _unescape(found: re.Match[str]) -> str:
    """The character that an escape stands for; one that Python does not know stands for itself."""
    digits = found[1] or found[2] or found[3]
    return chr(int(digits, 16)) if digits else _ESCAPES.get(found[4], found[0])


_THOUGHT = r"(?is)\A\s*<(think\w*|thoughts?|reflection|scratchpad)>(?:.*?</\1>|.*)"
_NAMED = r"""<\s*(?:var|variable|param|parameter)\b
    (?: (?:[^<>]{0,200}?\bname)? \s*=[\s"'`]* (?P<attribute>[^\s"'`<>]{1,99}) [^<>]*>
      | [^<>]*>\s*<\s*name\s*> (?P<child>[^<>]{1,99}) </\s*name\s*> )"""
_KEY = r"""(?=\s*(?:(?:["'`](?P<key>[\w:. -]{1,99})["'`]|[\w:]{1,99})\s{0,9}:|[/#]))"""
_OPENING = rf"(?xi) \{{{_KEY} | (?P<named>{_NAMED}) | <(?P<tag>[\w:]{{1,99}})\s*>"
_FIELDS = ("reasoning", "answer", "suggestion")
_BARE, _TAGGED, _WHOLE = 1, 2, 3


class _ReplyReader:
    """Reads a reply from left to right and keeps the last complete answer.

        reply    := [thought] {object | variable | reasoning | any other character}
        thought  := "<think>" text "</think>"
        object   := a literal with the keys reasoning, answer, suggestion, or with names as keys
        variable := "<x0>" value "</x0>" | "<variable name='x0'>" value "</variable>"
                  | "<variable><name>x0</name><value>" value "</value></variable>"

    An object with a suggestion is whole and replaces the one before. It outranks tags, and tags
    outrank bare objects such as `{"x0": 5}`, so that examples in the prose change nothing; tags add
    up, and so do bare objects. An answer that is broken or cut short keeps its rank as a problem:
    nothing inside or after it counts, except another answer that replaces it.
    """

    def __init__(self, text: str, names: Collection[str]) -> None:
        self.text, self.names = re.sub(_THOUGHT, "", text), names
        folded = {name.casefold(): name for name in names}
        self.folded = folded if len(folded) == len(names) else {}
        self.rank, self.reasoning, self.answer = 0, "", ""
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []

    def read(self) -> Reading:
        """Read the whole text."""
        pos = 0
        while opening := re.compile(_OPENING).search(self.text, pos):
            pos = self.read_object(opening) if opening[0] == "{" else self.read_tag(opening)
        if re.match(r"</?[a-zA-Z_][^<>]*\Z", self.text[self.text.rfind("<") :]):
            self.begin(_TAGGED, "The reply is cut short inside a tag.")
        if not (self.rank or self.reasoning):
            self.begin(_BARE, "No answer was found in the reply, neither as JSON nor in tags.")
        values = {} if self.problems else self.values
        return Reading(self.reasoning, self.answer, values, self.problems[:8])

    def begin(self, rank: int, *problems: str) -> bool:
        """Say whether an item of this rank counts; a whole or higher one drops all before it."""
        if rank > self.rank or rank == self.rank == _WHOLE:
            self.rank, self.values, self.problems = rank, {}, []
        self.problems += problems if rank == self.rank else ()
        return rank == self.rank

    def name(self, given: Any) -> str:
        """The variable that is meant, or an empty text: `x:0`, "`X0` " and `x0` are one."""
        plain = str(given).strip(" \t\r\n\"'`").replace(":", "")
        return plain if plain in self.names else self.folded.get(plain.casefold(), "")

    def assign(self, given: Any, value: Any) -> None:
        """Note a value for a variable, or what is wrong with it."""
        name = self.name(given)
        value = _unfence(value) if name[:6] == "__code" and isinstance(value, str) else value
        if not name:
            known = ", ".join(self.names)
            self.problems.append(f"There is no variable {to_text(given, 80)}, only {known}.")
        elif repr(self.values.setdefault(name, value)) != repr(value):
            self.problems.append(f"The reply gives {name} twice, with different values.")

    def read_object(self, opening: re.Match[str]) -> int:
        """Read the object that begins here, if it is one, and say where to go on."""
        try:
            found, pos = _read_literal(self.text, opening.start())
            self.take(found if isinstance(found, dict) else {})
        except _Unread as error:
            problem, pos = error.args
            key = opening["key"] or ""
            if pos >= len(self.text) or self.name(key) or key.lower() in _FIELDS:
                self.begin(_WHOLE, f"The reply cannot be read: {problem}.")
        return max(pos, opening.end())

    def take(self, made: dict[Any, Any]) -> None:
        """Take an answer from an object, if it has one of its fields or a variable's name."""
        said = [(self.name(key) or str(key).strip().lower(), value) for key, value in made.items()]
        form = {key: value for key, value in said if key in _FIELDS}
        given = form.get("suggestion") or {}
        if not isinstance(given, dict):
            raise _Unread("its suggestion is not an object of names and values", len(self.text))
        pairs = [(n, v) for n, v in said if n in self.names or not (given or n in _FIELDS)]
        self.reasoning = str(form.get("reasoning") or self.reasoning)
        self.answer = str(form.get("answer") or self.answer)
        ours = "suggestion" in form or (pairs and form) or any(n in self.names for n, _ in pairs)
        if ours and self.begin(_WHOLE if form.keys() - {"answer"} else _BARE):
            for name, value in [*given.items(), *pairs]:
                self.assign(name, value)

    def read_tag(self, opening: re.Match[str]) -> int:
        """Read what a tag holds, if it is one of ours, and say where to go on.

        A value may hold ends of tags itself: the last one before the next such tag counts.
        """
        tag = (opening["attribute"] or opening["child"] or opening["tag"]).strip()
        reasons = tag.lower() == "reasoning"
        if not (opening["named"] or reasons or self.name(tag)):
            return opening.end()
        same, word = (_NAMED, r"var\w*|param\w*") if opening["named"] else (rf"<{tag}\s*>", tag)
        after = re.compile(f"(?xi){same}").search(self.text, opening.end())
        stop = after.start() if after else len(self.text)
        ends = [*re.compile(rf"(?i)</\s*(?:{word})\s*>").finditer(self.text, opening.end(), stop)]
        if not ends:
            self.begin(_TAGGED, f"The reply is cut short: the tag of {to_text(tag, 80)} has no end.")
            return len(self.text)
        end = ends[0 if reasons else -1]
        body = self.text[opening.end() : end.start()]
        if reasons:
            self.reasoning = body.strip()
        elif self.begin(_TAGGED):
            self.assign(tag, _untag(body))
        return end.end()


def _unfence(text: str) -> str:
    """What stands inside a fence of ``` or ~~~, if the text is one fence and nothing else."""
    fence = re.match(r"(?s)\s*(`{3,}|~{3,})[^\n`]*\n(.*)\n[ \t]*\1\s*\Z", text)
    first = re.search(rf"(?m)^[ \t]*{fence[1]}.*$", fence[2]) if fence else None
    return text if not fence or (first and first[0].strip() == fence[1]) else fence[2]


def _untag(body: str) -> str:
    """What stands between two tags, less what stands there for the tags' sake only.

    That is: a line break at either end, a fence or a CDATA section around all of it, and entities
    where there is a `&lt;` and no `<` shows that signs stand for themselves.
    """
    import html

    body = re.sub(r"(?is)\A\s*<\s*value\s*>(.*)</\s*value\s*>\s*\Z", r"\1", body)
    body = _unfence(re.sub(r"\A[ \t]*\r?\n|\r?\n[ \t]*\Z", "", body))
    body = re.sub(r"(?s)\A\s*<!\[CDATA\[(.*)\]\]>\s*\Z", r"\1", body)
    return html.unescape(body) if "&lt;" in body and "<" not in body else body


_SYSTEM = """\
You improve a program by changing its variables. It ran once: Code has a line for each call, in \
the order they ran, with the value it gave after #. Feedback says how good the outputs were; work \
back from it to the variables that caused them.
Answer with one JSON object and nothing else:
{"reasoning": "what caused the feedback, and which change would mend it", "answer": "the answer to \
a question in the instruction or the feedback; else empty", "suggestion": {"variable name": value}}
In suggestion give each variable that should change, whole and in its own type. One that should \
stay is left out; if nothing should change, suggestion is {}. A variable of type code is Python \
source in a JSON string: it starts at the margin and keeps the name and the signature of its \
function."""

_OBJECTIVE = "Change the variables so that the feedback becomes as good as it can."
_PAST = "Past attempts, the oldest first"
_AGAIN = "That reply was refused and changed nothing:\n- {}\nAnswer again, whole."


# ---- The optimizer: proposals, a history of attempts, and the four steps.


class Prompt(list[dict[str, str]]):
    """The messages that an optimizer sends, with `stats` on what they show.

    `stats` counts `characters`, `nodes`, `shown`, `left_out`, and says `why` some are left out.
    """

    stats: dict[str, Any]


class Proposal(dict[ParameterNode[Any], Any]):
    """New values by parameter, checked but not applied, and how they came about.

    A dict; `prompt`, `replies`, `refused`, `reasoning`, `answer`, `usage` and `seconds` tell its
    story; usage is summed over all the replies.

    >>> x = node(1, name="x", trainable=True)
    >>> print(Proposal({x: 2}).diff().splitlines()[-1])
    +2
    """

    prompt: Sequence[dict[str, str]] = ()
    replies: Sequence[str] = ()
    refused: Sequence[str] = ()
    reasoning = answer = ""
    usage: Mapping[str, int] | None = None
    seconds = 0.0

    @property
    def ran(self) -> dict[str, str]:
        """Where each new code runs, by name: in this process, or in a child under its limits."""
        checks = {parameter.py_name: parameter.check for parameter in self if _is_code(parameter)}
        limits = {n: getattr(check, "keywords", {}).get("limits") for n, check in checks.items()}
        return {n: f"in a child under {v}" if v else "in this process" for n, v in limits.items()}

    def diff(self) -> str:
        """The changes as a unified diff."""
        import difflib

        rows: list[str] = []
        for parameter, value in self.items():
            name, old, new = parameter.py_name, _lines(parameter._data), _lines(value)
            rows += difflib.unified_diff(old, new, name, f"{name} (new)", lineterm="")
        return "\n".join(rows)


def _lines(value: Any) -> list[str]:
    return value.splitlines() if isinstance(value, str) else [to_text(value)]


class Attempt(NamedTuple):
    """A step as an optimizer's history keeps it.

    The values that were tried, by name, what was said of them, and the proposal that followed;
    `reason` says why its values did not stay, if they did not.
    """

    values: dict[str, Any]
    feedback: list[Any]
    score: float | None
    proposal: Proposal | None = None
    diff: str = ""
    reason: str = ""


_Approve = Callable[[str], Any]


class Optimizer:
    """What optimizers share: feedback in, checked proposals out, all of an update or none of it.

    A subclass says how to make a proposal: by a prompt (`describe`, what it puts before the
    language model) or, with `propose` redefined, in any way it likes.

    Args:
        parameters: parameters, or a module or bundle that has some.
        llm: any callable from messages to text; what `MINITRACE_MODEL` names, or else a `StubLLM`.
        propagator: how feedback flows; a `GraphPropagator`.
        objective: the instruction, in words.
        memory_size: how many past attempts a prompt shows.
        max_tokens: passed on to the language model if given.
        max_chars: what a prompt may take at most, in characters.
        retries: how often it is asked again after a reply that cannot be used.
        on_refusal: then "raise" a `ReplyError`, or "keep" the values as they are.
        include_example: accepted for programs written for Trace; the prompt shows the form of a
            reply.

    >>> GRAPH.clear()
    >>> class Increment(Optimizer):
    ...     def propose(self):
    ...         return Proposal({parameter: parameter.data + 1 for parameter in self.parameters})
    >>> x = node(1, name="x", trainable=True)
    >>> Increment([x]).step(), x.data
    ({<ParameterNode x:0 = 2>: 2}, 2)
    """

    def __init__(
        self,
        parameters: Any,
        llm: Any = None,
        propagator: Propagator | None = None,
        *,
        objective: str | None = None,
        memory_size: int = 8,
        max_tokens: int | None = None,
        max_chars: int = 12_000,
        retries: int = 2,
        on_refusal: str = "raise",
        include_example: bool = False,
    ) -> None:
        if llm is not None and not callable(llm):
            raise TypeError(f"llm= takes a callable, such as LLM('openai/gpt-4o'), not {llm!r:.60}")
        self._named = _by_name(parameters)
        self.names, self.parameters = list(self._named), list(self._named.values())
        self.llm, self.propagator = llm, propagator or GraphPropagator()
        self.objective = objective or _OBJECTIVE
        self.memory_size, self.max_tokens, self.max_chars = memory_size, max_tokens, max_chars
        self.retries, self.on_refusal = retries, on_refusal
        self.history: list[Attempt] = []
        self.refused: dict[str, None] = {}  # every rule that replies broke, in order
        self._outputs: list[Output] = []  # what was said, where no graph carries it

    def zero_feedback(self) -> None:
        """Forget the feedback of every parameter."""
        self._outputs.clear()
        for parameter in self.parameters:
            parameter.zero_feedback()

    def backward(
        self, output: Any, feedback: Any = "", score: Any = None, **for_trace: Any
    ) -> None:
        """Send feedback from an output to the parameters, by this optimizer's propagator.

        What else programs written for Trace pass, such as `visualize=False`, changes nothing.
        """
        reached = backward(output, feedback, self.propagator, score=score, _level=3)
        for each, received in reached.items():
            if isinstance(each, ParameterNode):
                each.feedback.append(received)

    def step(
        self, bypassing: bool = False, verbose: bool = False, approve: _Approve | None = None
    ) -> dict[ParameterNode[Any], Any]:
        """Propose new values and set them; return what changed, by parameter.

        Args:
            bypassing: propose only; set nothing.
            verbose: print the prompt and the replies.
            approve: a function of the diff that returns true, or words of refusal.
        """
        proposal = self.propose()
        if verbose:
            print(*(m["content"] for m in proposal.prompt), *proposal.replies, sep="\n\n")
        verdict = approve(proposal.diff()) if approve and proposal else True
        refusal = "" if verdict is True else str(verdict or "refused")
        if not (refusal or bypassing):
            return self.update(proposal)
        if refusal:
            self.refused[f"{_listed(_values_by_name(proposal))}: {refusal}"] = None
        self._remember(proposal, refusal or "bypassed")
        return dict(proposal) if bypassing else {}

    def update(self, update: Mapping[Any, Any]) -> dict[ParameterNode[Any], Any]:
        """Set new values, by parameter or by name: all of them, or none if one is refused."""
        good = self.checked(update)
        proposal = update if isinstance(update, Proposal) else Proposal(good)
        self._remember(proposal, "" if good else "no change")
        return _assign(good)

    def checked(self, values: Mapping[Any, Any]) -> dict[ParameterNode[Any], Any]:
        """The values as the parameters would take them; `ValueError` if one is refused."""
        pairs = [(self._named[k] if isinstance(k, str) else k, v) for k, v in values.items()]
        return {parameter: parameter.checked(value) for parameter, value in pairs}

    def propose(self, n: int | None = None) -> Any:
        """Ask for new values; nothing is set. A `Proposal`, empty if nothing should change.

        With `n`, a list of so many, asked for side by side; each prompt says which of them it is.
        """
        if n is None or n == 1:
            alone = self._ask(self._prompts(""))
            return alone if n is None else [alone]
        note = " This is candidate {} of {}: seek one unlike the others."
        return _side_by_side(self._ask, [self._prompts(note.format(i + 1, n)) for i in range(n)])

    def prompt(self, note: str = "") -> Prompt:
        """The messages that would be sent, before anything is spent."""
        parts = self._prompts(note)
        whole = Prompt(itertools.chain(*parts))
        whole.stats = {**parts[0].stats, "characters": sum(p.stats["characters"] for p in parts)}
        return whole

    def _prompts(self, note: str) -> list[Prompt]:
        """All that is asked for one proposal: here a single prompt, about all the variables."""
        graph = self.graph()
        if not graph.outputs:
            raise MinitraceError(_NO_FEEDBACK)
        return [self._prompt(self._named, _feedback_text(graph), note)]

    def _prompt(self, named: Mapping[str, ParameterNode[Any]], feedback: str, note: str) -> Prompt:
        """A prompt about some variables; feedback and the past take a third of the room each."""
        variables = "\n".join(_variable_text(name, each) for name, each in named.items())
        head = _page(Instruction=self.objective + note)
        room = self.max_chars - len(_SYSTEM + head + variables) - 80
        if room < 400:
            raise ValueError(
                "the prompt's fixed text and the variables' own values take "
                f"{self.max_chars - room:,} characters, and max_chars is {self.max_chars:,}: "
                "raise it, or optimize fewer parameters"
            )
        feedback, past = _cut(feedback, room // 3), self._past(room // 3)
        tail = _page(Variables=variables, Feedback=feedback, **{_PAST: past})
        shown, stats = self.describe(self.max_chars - len(_SYSTEM + head + tail) - 2)
        text = "\n".join(filter(None, (head, shown, tail)))
        prompt = Prompt([_message("system", _SYSTEM), _message("user", text)])
        prompt.stats = {"characters": len(_SYSTEM + text), **stats}
        return prompt

    def describe(self, room: int) -> tuple[str, dict[str, Any]]:
        """What is shown of the program, in at most `room` characters, and what to say about it.

        Every prompt has the instruction, the variables, the feedback and past attempts already.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither describe() nor propose()")

    def graph(self) -> TraceGraph:
        """All the feedback that the parameters hold, as one graph; an empty one if there is none."""
        found = (each for parameter in self.parameters for each in parameter.feedback)
        graph = TraceGraph.merged(each for each in found if isinstance(each, TraceGraph))
        graph.outputs = graph.outputs or self._outputs
        return graph

    def _ask(self, prompts: Sequence[Prompt]) -> Proposal:
        """One proposal from the answers to all the prompts, which are asked side by side."""
        return _joined(_side_by_side(self._answer, prompts))

    def _answer(self, prompt: Prompt) -> Proposal:
        """Ask until a reply can be used, each time telling what was wrong with the last."""
        began = time.monotonic()
        options = {"max_tokens": self.max_tokens} if self.max_tokens else {}
        proposal, answers, refused = ask_until_usable(
            self.llm, prompt, self._read, self.retries, **options
        )
        problems = [problem for each in refused for problem in each]
        self.refused.update(dict.fromkeys(problems))
        replies = [*map(_reply_text, answers)]
        if len(refused) == len(answers) and self.on_refusal == "raise":
            times = f"{len(replies)} attempt{'s' * (len(replies) > 1)}"
            raise ReplyError(f"no usable reply in {times}: {problems[-1]}", replies, refused[-1])
        proposal.prompt, proposal.replies, proposal.refused = prompt, replies, problems
        proposal.usage = sum(map(_usage_told, answers), Counter())
        proposal.seconds = time.monotonic() - began
        return proposal

    def _read(self, text: str) -> tuple[Proposal, list[str]]:
        """The proposal in a reply, which is empty if something is wrong, and all that is wrong."""
        reply = read_reply(text, self.names)
        changed, problems = dict[ParameterNode[Any], Any](), list(reply.problems)
        for name, raw in reply.values.items():
            parameter = self._named[name]
            try:
                value = parameter.checked(coerce_value(raw, parameter._data))
                if to_text(value) != to_text(parameter._data):
                    changed[parameter] = value
            except ValueError as error:
                problems.append(f"{name}: {_cut(str(error), 600)}")
        proposal = Proposal({} if problems else changed)
        proposal.reasoning, proposal.answer = reply.reasoning, reply.answer
        return proposal, problems

    def _remember(self, proposal: Proposal, reason: str) -> None:
        graph, values = self.graph(), {name: p._data for name, p in self._named.items()}
        self.remember(Attempt(values, graph.feedback, graph.score, proposal, proposal.diff(), reason))

    def remember(self, attempt: Attempt) -> None:
        """Put an attempt into the history."""
        self.history.append(attempt)
        if len(self.history) > 100:  # of what is older, only values, score and update stay
            old = self.history[-101]
            light = None if old.proposal is None else Proposal(old.proposal)
            self.history[-101] = old._replace(feedback=[], proposal=light, diff="")

    @property
    def best(self) -> Attempt | None:
        """The attempt with the highest score, the latest of equals; none that was tried and not kept."""
        kept = (attempt for attempt in self.history if attempt.reason != _NOT_KEPT)
        scored = [attempt for attempt in kept if attempt.score is not None]
        return max(reversed(scored), key=lambda attempt: cast(float, attempt.score), default=None)

    def restore(self, attempt: Attempt) -> None:
        """Put back the values of an attempt, such as `optimizer.best`: all of them, or none."""
        _assign(self.checked(attempt.values))

    def undo(self) -> None:
        """Put back the values from before the last update that was not undone yet."""
        for place, attempt in reversed([*enumerate(self.history)]):
            if attempt.proposal and not attempt.reason:
                self.restore(attempt)
                self.history[place] = attempt._replace(reason="undone")
                return
        raise MinitraceError("there is no update to undo")

    def _past(self, room: int) -> str:
        """Past attempts with what was said of them, and the rules that replies broke."""
        rows = []
        shown = self.history[-self.memory_size :] if self.memory_size else []
        for number, attempt in enumerate(shown, 1):
            rows.append(f"{number}. {_listed(attempt.values)}")
            rows += [f"   feedback: {_said(each, 300)}" for each in attempt.feedback]
            rows += [f"   score: {attempt.score:g}"] if attempt.score is not None else []
        if self.refused:
            rows.append("Refused so far, do not repeat:")
            rows += [f"- {_said(words, 300)}" for words in [*self.refused][-8:]]
        return _cut("\n".join(rows), room)


_NOT_KEPT = "not kept"
_NO_FEEDBACK = "there is no feedback to learn from: call backward(output, feedback) before step()"


def _by_name(parameters: Any) -> dict[str, ParameterNode[Any]]:
    """The parameters by the names that prompts give them, which must differ."""
    found = parameters.parameters() if hasattr(parameters, "parameters") else parameters
    found = [found] if isinstance(found, Node) else found
    if not isinstance(found, Iterable):
        raise TypeError(f"{to_text(found, 60)} has no parameters: pass optimizer=, or parameters")
    named: dict[str, ParameterNode[Any]] = {}
    for each in found:
        if not isinstance(each, ParameterNode):
            raise TypeError(f"an optimizer works on parameters; {to_text(each, 60)} is none")
        name = each.py_name
        if named.setdefault(name, each) is not each:
            raise ValueError(f"two parameters are called {name}: give one of them another name")
    if not named:
        raise ValueError("an optimizer needs at least one parameter: node(value, trainable=True)")
    return named


def _values_by_name(values: Mapping[ParameterNode[Any], Any]) -> dict[str, Any]:
    """Values by the names of their parameters."""
    return {parameter.py_name: value for parameter, value in values.items()}


def _assign(values: dict[ParameterNode[Any], Any]) -> dict[ParameterNode[Any], Any]:
    """Set values that were checked, and return them."""
    for parameter, value in values.items():
        parameter.restore(value)
    return values


def _joined(parts: Sequence[Proposal]) -> Proposal:
    """One proposal with the values and the stories of several."""
    whole = Proposal({parameter: value for part in parts for parameter, value in part.items()})
    for field in "prompt", "replies", "refused":
        setattr(whole, field, [each for part in parts for each in getattr(part, field)])
    for field in "reasoning", "answer":
        setattr(whole, field, "\n".join(getattr(part, field) for part in parts).strip())
    whole.usage = sum((Counter(part.usage) for part in parts), Counter()) or None
    whole.seconds = max(part.seconds for part in parts)
    return whole


S = TypeVar("S")


def _side_by_side(
    function: Callable[[S], T], items: Sequence[S], workers: int = 8, executor: Any = None
) -> list[T]:
    """Call a function in threads, each in a copy of this context; the results, in order."""
    from concurrent.futures import ThreadPoolExecutor, wait

    if executor is None and (workers < 2 or len(items) < 2):
        return list(map(function, items))
    with contextlib.ExitStack() as stack:
        own = ThreadPoolExecutor(min(workers, len(items) or 1))
        pool: Any = stack.enter_context(own) if executor is None else executor
        here = isinstance(pool, ThreadPoolExecutor)  # where a context can follow
        futures: list[Any] = []
        try:
            for item in items:
                call: Any = contextvars.copy_context().run if here else function
                futures.append(pool.submit(call, *[function] * here, item))
            return [future.result() for future in futures]
        finally:
            wait([future for future in futures if not future.cancel()])


def ask(diff: str) -> bool | str:
    """Show a diff on the terminal and ask a person: true, or words of refusal.

    For `step(approve=ask)`.

    >>> from unittest import mock
    >>> with mock.patch("sys.stdin", io.StringIO("four is unlucky")):
    ...     ask("-1\\n+4")
    Accept? Enter, or what is wrong with it: 'four is unlucky'
    """
    print(diff, file=sys.stderr)
    words = input("Accept? Enter, or what is wrong with it: ").strip()
    return words or True


# ---- Asking: what any callable may return, and asking again until a reply can be used.


class Reply(str):
    """The text that a language model gave, with what is known about it.

    Attributes:
        usage: `{"input_tokens": int, "output_tokens": int}`, or None if the server did not count.
        finish_reason: `"stop"`, `"length"` for a text cut off by a limit, or the server's own word.
        model: the language model that answered, in the server's words.

    >>> reply = Reply("4", usage={"input_tokens": 9, "output_tokens": 1}, model="llama3")
    >>> reply + "2", reply.usage["output_tokens"], reply.finish_reason
    ('42', 1, 'stop')
    """

    usage: dict[str, int] | None = None
    finish_reason = "stop"
    model = ""

    def __new__(cls, text: str = "", **facts: Any) -> Reply:
        # A lone surrogate, which JSON can carry, would break the first file that the text goes to.
        self = super().__new__(cls, text.encode("utf-8", "backslashreplace").decode("utf-8"))
        self.__dict__.update(facts)
        return self


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _reply_text(answer: Any) -> str:
    """The text of what a language model returned: text, or a chat completion as object or dict."""
    if isinstance(answer, str):
        return answer
    get: Any = operator.getitem if isinstance(answer, dict) else getattr
    try:
        return str(get(get(get(answer, "choices")[0], "message"), "content") or "")
    except (AttributeError, KeyError, IndexError, TypeError):
        raise TypeError(f"a language model must return text, not {to_text(answer, 80)}") from None


def _usage_told(answer: Any) -> Counter[str]:
    """What an answer says that it took: the counts in a dict, or in an object's attributes."""
    told = getattr(answer, "usage", None)
    counts = getattr(told, "__dict__", told)
    pairs = counts.items() if isinstance(counts, dict) else ()
    return Counter({key: count for key, count in pairs if isinstance(count, int)})


_warned_of_stub = False


def _default_llm() -> Any:
    """The language model that the environment names, or the stub, with a warning the first time."""
    global _warned_of_stub
    if os.environ.get("MINITRACE_MODEL"):
        return LLM()
    if not _warned_of_stub:
        _warned_of_stub = True
        warnings.warn(
            "no language model is configured, so a StubLLM answers: it can search numbers and "
            "choices but not write. Set MINITRACE_MODEL (such as openai/gpt-4o) and the "
            "provider's key, or pass llm=",
            stacklevel=7,
        )
    return StubLLM()


def ask_until_usable(
    llm: Any, prompt: Sequence[Any], read: Callable[[str], tuple[T, list[str]]],
    retries: int = 2, **options: Any,
) -> tuple[T, list[Reply], list[list[str]]]:  # fmt: skip
    """Ask until a reply can be used or `retries` are over, each time telling what was wrong.

    Args:
        llm: any callable from messages to text; None for the one that the environment names.
        prompt: the messages.
        read: a function of a reply's text; it gives a result, and a list of what is wrong with it.

    Returns: what `read` made of the last reply; all the replies; for each that was refused, why.

    >>> def read(text):
    ...     return text, [] if text.isdigit() else ["Only digits, please."]
    >>> ask_until_usable(Script(["seven", "7"]), [{"role": "user", "content": "How many?"}], read)
    ('7', ['seven', '7'], [['Only digits, please.']])
    """
    llm = llm or _default_llm()
    messages, answers, refused = [*prompt], list[Any](), list[list[str]]()
    while True:
        answers.append(_ask_any(llm, [*messages], options))
        text = _reply_text(answers[-1])
        result, problems = read(text)
        refused += [problems] if problems else []
        if not problems or len(answers) > retries:
            return result, answers, refused
        again = _AGAIN.format("\n- ".join(problems))
        messages += [_message("assistant", _cut(text, 12_000)), _message("user", again)]


# ---- Three optimizers: what each of them asks, and shows of the program.


class OptoPrime(Optimizer):
    """The optimizer that shows the language model the whole trace graph, as code.

    The prompt has the calls as lines of code with the values they gave, the documentation of the
    operators, the variables with their rules, the feedback, and past attempts. It obeys `max_chars`
    on any graph: what is nearest to the outputs, to the parameters and to a failure stays.

    >>> GRAPH.clear()
    >>> x = node(3, name="x", trainable=True, bounds=(0, 10))
    >>> optimizer = OptoPrime([x], llm=StubLLM())
    >>> optimizer.backward(x * 2, "too low")
    >>> print(optimizer.prompt()[1]["content"])
    # Instruction
    Change the variables so that the feedback becomes as good as it can.
    # Code
    multiply0 = x0 * 2  # 6
    # Variables
    (int) x0 = 3  # at least 0, at most 10
    # Feedback
    multiply0: too low
    >>> optimizer.step()
    {<ParameterNode x:0 = 6>: 6}

    Source: Trace, arXiv:2406.16218. Its prompt lists every value in sections of its own; here a
    value stands beside the call that gave it.
    """

    def describe(self, room: int) -> tuple[str, dict[str, Any]]:
        """The graph as text."""
        view = _View(self.graph(), room)
        return view.text(view.shown), view.stats()


class OPRO(Optimizer):
    """The optimizer that shows past values and what was said of them, and nothing of the program.

    >>> GRAPH.clear()
    >>> x = node(3, name="x", trainable=True)
    >>> optimizer = OPRO([x], llm=StubLLM(), objective="Find the number.")
    >>> for words in "too low", "too high":
    ...     optimizer.zero_feedback()
    ...     optimizer.backward(x * 2, words)
    ...     update = optimizer.step()
    >>> print(optimizer.prompt()[1]["content"])
    # Instruction
    Find the number.
    # Variables
    (int) x0 = 4
    # Feedback
    multiply0: too high
    # Past attempts, the oldest first
    1. x0 = 3
       feedback: too low
    2. x0 = 6
       feedback: too high

    Source: OPRO, arXiv:2309.03409, which sorts its attempts by score; these stay in order of time.
    """

    def describe(self, room: int) -> tuple[str, dict[str, Any]]:
        """Nothing of the program."""
        nodes, shown = len(self.graph()), len(self.parameters)
        why = "only variables are shown"
        return "", {"nodes": nodes, "shown": shown, "left_out": nodes - shown, "why": why}


_CRITICISM = """\
A step of a program: {}
Feedback on what it gave: {}
Say in a few sentences how its input {} should change for better feedback."""


class _Critic(SumPropagator):
    """Feedback that a language model rewrites at every step, for each parent its own."""

    def __init__(self, optimizer: TextGrad) -> None:
        super().__init__()
        self.optimizer = optimizer

    def start(self, outputs: Sequence[Output]) -> list[Any]:
        """What was said, which the optimizer's history keeps."""
        self.optimizer._outputs += outputs
        return super().start(outputs)

    def propagate(self, node: Node[Any], feedback: Any) -> list[Any]:
        """Ask what each parent that depends on a parameter should be like; side by side."""
        llm, inputs = self.optimizer.llm or _default_llm(), node.inputs
        call = ", ".join(f"{name}={to_text(p._data, 1000)}" for name, p in inputs.items())
        step = f"{node.op_name}({call}) gave {to_text(node._data, 1000)}.\n{node.op_name}: "
        step = _cut(step, 6000) + _cut(node.description, 1000)

        def criticism(name: str) -> str:
            question = _CRITICISM.format(step, _said(feedback, 3000), name)
            return _reply_text(_ask_any(llm, [_message("user", question)]))

        names = [name for name, parent in inputs.items() if parent._tracked]
        answers = dict(zip(names, _side_by_side(criticism, names), strict=True))
        return [answers.get(name) for name in inputs]


class TextGrad(Optimizer):
    """The optimizer that asks for a criticism at every edge, then for a rewrite of each parameter.

    >>> GRAPH.clear()
    >>> word = node("Hello", name="word", trainable=True)
    >>> replies = ["Make word warmer.", '{"suggestion": {"word0": "Hi"}}']
    >>> optimizer = TextGrad([word], llm=Script(replies))
    >>> optimizer.backward(word + ", Ada", "too stiff")
    >>> word.feedback, optimizer.step()
    (['Make word warmer.'], {<ParameterNode word:0 = 'Hi'>: 'Hi'})

    Source: TextGrad, arXiv:2406.07496.
    """

    def __init__(self, parameters: Any, llm: Any = None, **options: Any) -> None:
        options["propagator"] = options.get("propagator") or _Critic(self)
        super().__init__(parameters, llm, **options)

    def _prompts(self, note: str) -> list[Prompt]:
        """A prompt for each parameter that has feedback."""
        heard = {name: each for name, each in self._named.items() if each.feedback}
        if not heard:
            raise MinitraceError(_NO_FEEDBACK)
        said = {n: "\n".join(f"{n}: {_said(f)}" for f in p.feedback) for n, p in heard.items()}
        return [self._prompt({name: heard[name]}, said[name], note) for name in heard]

    def describe(self, room: int) -> tuple[str, dict[str, Any]]:
        """Nothing of the program: the criticisms have seen it."""
        return "", {}


# ---- What a prompt shows: feedback, variables, and as much of the graph as there is room for.


def _page(**sections: str) -> str:
    """The sections that are not empty, each under its title."""
    return "\n".join(f"# {title}\n{text}" for title, text in sections.items() if text)


_TITLES = "Instruction|Code|Documentation|Variables|Inputs|Feedback|Past attempts"
_HEADING = rf"(?m)^(?=# (?:{_TITLES})\b)"


def _said(words: Any, limit: int = 0) -> str:
    """Feedback, or the message of a failure, without memory addresses or headings of ours."""
    return _cut(re.sub(_HEADING, "> ", re.sub(r" at 0x[0-9a-fA-F]{1,16}", "", str(words))), limit)


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} = {to_text(value, 300)}" for name, value in values.items())


def _feedback_text(graph: TraceGraph) -> str:
    rows = []
    for each, feedback, score, _ in graph.outputs:
        judged = "" if score is None else f" (score: {score:g})"
        rows.append(f"{graph.names[each]}: {_said(feedback) or '(no words)'}{judged}")
    return "\n".join(rows)


def _variable_text(name: str, parameter: ParameterNode[Any]) -> str:
    """A parameter in the prompt: its whole value, and the rules for a new one."""
    low, high = parameter.bounds or (None, None)
    rules = {"at least": low, "at most": high, "one of": parameter.choices}
    words = [f"{rule} {to_text(value)}" for rule, value in rules.items() if value is not None]
    note = ", ".join(filter(None, (parameter.description, parameter.constraint, *words)))
    note = note and f"  # {note}"
    if _is_code(parameter):
        return f"(code) {name}:{note}\n```python\n{parameter._data}\n```"
    return f"({type(parameter._data).__name__}) {name} = {to_text(parameter._data)}{note}"


_FORMULA = r"[-+~]?x(?: [^\w\s]+ y|\[index\])?$"


def nearest_calls(graph: TraceGraph) -> Iterator[Node[Any]]:
    """The calls of a trace graph, those first that a reader wants first: failures, outputs, the
    first use of each parameter, and from there outwards.

    Of more than twelve calls of one operator in a row only the first and the last four are given.

    >>> x = node(1, name="x", trainable=True)
    >>> (x * 2 + 1).backward("too small")
    >>> [call.op_name for call in nearest_calls(x.feedback[0])]
    ['add', 'multiply']
    """
    calls = [each for each in graph if graph.parents(each)]
    outputs = {output.node: None for output in graph.outputs}
    folded = _repeated(graph, calls) - outputs.keys()
    failed = [each for each in calls if graph.kind(each) == "exception"]
    uses = [graph.children(parameter)[:1] for parameter in graph.parameters]
    near = [*failed, *outputs, *itertools.chain(*uses)]
    seen: set[Node[Any]] = set()
    for each in near:  # it grows on the way
        parents = graph.parents(each)
        if parents and each not in seen:
            seen.add(each)
            near += parents
            if each not in folded:
                yield each


def _repeated(graph: TraceGraph, calls: Iterable[Node[Any]]) -> set[Node[Any]]:
    """The middle of every run of more than twelve calls of one operator in a row."""
    folded: set[Node[Any]] = set()
    for _, run in itertools.groupby(calls, lambda each: (each.op_name, graph.kind(each))):
        row = [*run]
        folded.update(row[4:-4] if len(row) > 12 else ())
    return folded


class _View:
    """The part of a trace graph that fits into so many characters, as text.

    Calls enter in the order of their nearness, each with what it needs: its line, the documentation
    of its operator, inputs too long to stand in the line.
    """

    def __init__(self, graph: TraceGraph, room: int) -> None:
        import bisect

        self.graph, self.names = graph, graph.names
        self.calls = [each for each in graph if graph.parents(each)]
        self.outputs = {output.node for output in graph.outputs}
        self.limit = max(60, min(600, room // (2 * len(self.calls) + 1)))  # of a value
        self.most = max(60, min(1500, room // 4))  # of an output's value, or of a call
        self.nearest = [*itertools.islice(nearest_calls(graph), room // 15)]
        parents = itertools.chain.from_iterable(map(graph.parents, self.nearest))
        inputs = (each for each in parents if graph.kind(each) == "input")
        self.inputs = {each: to_text(each._data, self.limit) for each in inputs}
        self.lines = {each: self._line(each) for each in self.nearest}
        sizes = range(1, len(self.nearest) + 1)
        self.shown = bisect.bisect(sizes, room, key=lambda size: len(self.text(size)))

    def _operand(self, parent: Node[Any]) -> str:
        """A parent as a call shows it: by name, unless it is a short input."""
        text = self.inputs.get(parent, "")
        return text if 0 < len(text) <= 40 else self.names[parent]

    def _line(self, each: Node[Any]) -> str:
        """A call as a line of code, with its value."""
        given = {name: self._operand(parent) for name, parent in each.inputs.items()}
        call = each.description
        if re.match(_FORMULA, call):
            call = re.sub(r"\b(x|y|index)\b", lambda found: given.get(found[0], found[0]), call)
        else:
            items = ", ".join(f"{name}={value}" for name, value in given.items())
            call = f"{each.op_name}({items})"
        value = to_text(each._data, self.most if each in self.outputs else self.limit)
        if self.graph.kind(each) == "exception":
            value = f"raised {_said(each._data, self.most)}"
        return f"{self.names[each]} = {_cut(call, self.most)}  # {value}"

    def text(self, size: int) -> str:
        """So many of the nearest calls, in the order of the program, with what they need."""
        near = set(self.nearest[:size])
        calls = [each for each in self.calls if each in near]
        told = dict.fromkeys((each.op_name, each.description) for each in calls)
        docs = [(name, words) for name, words in told if not re.match(_FORMULA, words)]
        limit = max(60, min(600, 2 * self.most // (len(docs) + 1)))
        about = [f"{name}: {_cut(words, limit)}" for name, words in docs]
        used = dict.fromkeys(itertools.chain.from_iterable(each.parents for each in calls))
        long = [each for each in used if len(self.inputs.get(each, "")) > 40]
        inputs = [f"{self.names[each]} = {self.inputs[each]}" for each in long]
        code = self._code(near)
        return _page(Code=code, Documentation="\n".join(about), Inputs="\n".join(inputs))

    def _code(self, near: set[Node[Any]]) -> str:
        """The lines of these calls, and a line for each gap between them."""
        rows: list[str] = []
        for shown, group in itertools.groupby(self.calls, lambda call: call in near):
            rows += [self.lines[each] for each in group] if shown else [self._gap([*group])]
        return "\n".join(rows)

    def _gap(self, calls: list[Node[Any]]) -> str:
        """The line that stands for calls left out: how many, from where to where, and which."""
        counts = Counter(each.op_name for each in calls).most_common(5)
        kinds = ", ".join(f"{count} {name}" for name, count in counts)
        first, last = self.names[calls[0]], self.names[calls[-1]]
        return _cut(f"# {len(calls)} calls left out, {first} to {last}: {kinds}", 120)

    def stats(self) -> dict[str, Any]:
        """How many nodes there are, how many are shown, and why the others are not."""
        nodes, left = len(self.graph), len(self.calls) - self.shown
        folded = len(_repeated(self.graph, self.calls) - self.outputs)
        reasons = {"repeat their neighbours": folded, "for want of room": left - folded}
        why = ", ".join(f"{count} {words}" for words, count in reasons.items() if count)
        return {"nodes": nodes, "shown": nodes - left, "left_out": left, "why": why}


# ---- 5. Language models --------------------------------------------------------------------------
#
# How does text go out to a language model and come back, whoever serves it?
#
#     messages --> counted by every Budget --> LLM     --> POST, retries, one deadline --> Reply
#                                              Replay  --> a line of a cassette        --> Reply
#                                              Script  --> a canned reply              --> Reply
#
# A language model is any callable from messages to text; these are the ones we bring. A message is
# {"role": ..., "content": ...}; a plain text is one message of the user. Left out, on purpose:
# streaming, tools, images, and connection reuse (a reply takes seconds, a handshake does not).

_Messages = list[dict[str, Any]]


class LLMError(MinitraceError):
    """A language model gave no usable answer.

    The message says who was asked, where, what came back in the server's own words, and what to do.
    It never holds a key.

    Attributes:
        kind: what went wrong: `setup` (nothing was sent), `network`, `timeout`, `status` (an error
            from the server), `unreadable`, `empty`, `refused`, `filtered`, `cut off` (a limit came
            before any text), `miss` (a `Replay` or `Script` has no such reply).
        status: the HTTP status, 0 if there was none.
        words: what the server said.
        provider, model, url: who was asked, and where, without the query string.

    >>> try:
    ...     Script(["only one"]).map(["first", "second"], workers=1)
    ... except LLMError as error:
    ...     print(error.kind, "-", error)
    miss - the script has no reply for call 2: 'second'
    """

    kind, status, provider, model, url, words = "setup", 0, "", "", "", ""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


def _dig(data: Any, *path: str | int) -> Any:
    """The value at a path inside data that we do not trust, or None."""
    try:
        return functools.reduce(lambda inner, step: inner[step], path, data)
    except (LookupError, TypeError):
        return None


def _content(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(_content(_dig(p, "text")) for p in content if _dig(p, "type") == "text")
    return content if isinstance(content, str) else ""


def _prompt(messages: _Messages) -> str:
    """A conversation as one text."""
    return "\n".join(_content(message["content"]) for message in messages)


def _tokens(text: str) -> int:
    """Tokens in a text, roughly: four bytes each."""
    return len(text.encode("utf-8", "replace")) // 4 + 1


def _in_thread(work: Callable[[], Any]) -> Any:
    """The future of `work`, run in this context in a daemon thread, which lets a program end."""
    from concurrent.futures import Future

    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return future


Hook = Callable[..., Any]
_hooks: ContextVar[tuple[Hook, ...]] = ContextVar("minitrace_hooks", default=())


@contextlib.contextmanager
def around_calls(hook: Hook) -> Iterator[None]:
    """Stand around every call of a language model in this block: a budget, a journal, telemetry.

    Instead of the call, `hook(llm, messages, options, ask)` runs: `ask()` makes the call and gives
    its `Reply`, and what the hook returns is what the caller gets. Blocks nest, the outer hook
    first. A call that a language model makes in turn is part of the outer call, and not seen.

    >>> def count(llm, messages, options, ask):
    ...     reply = ask()
    ...     print(llm.model, "said", reply)
    ...     return reply
    >>> with around_calls(count):
    ...     reply = Script(["Paris."])("The capital of France?")
    script said Paris.
    """
    _hooks.set((*_hooks.get(), hook))
    try:
        yield
    finally:
        hooks = [*_hooks.get()]
        del hooks[len(hooks) - 1 - hooks[::-1].index(hook)]
        _hooks.set(tuple(hooks))


class LanguageModel:
    """A callable from messages to `Reply`; a subclass defines one method, `complete`.

    >>> class Echo(LanguageModel):
    ...     def complete(self, messages, options):
    ...         return Reply(messages[-1]["content"])
    >>> Echo()("Hello"), Echo().map(["a", "b"])
    ('Hello', ['a', 'b'])
    """

    model: str | None = None
    options: Mapping[str, Any] = {}

    def complete(self, messages: _Messages, options: dict[str, Any]) -> Reply:
        raise NotImplementedError

    def __call__(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """Ask once. Options go over those of the constructor; None takes one away."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": str(messages)}]
        if not messages or any(not {"role", "content"} <= set(m) for m in messages):
            raise TypeError(f"not a text, nor messages of role and content: {messages!r:.200}")
        merged = {k: v for k, v in {**self.options, **options}.items() if v is not None}
        given = [dict(message) for message in messages]
        ask = functools.partial(self.complete, given, merged)
        for hook in reversed(dict.fromkeys(_hooks.get())):
            ask = functools.partial(hook, self, given, merged, ask)
        scope = _hooks.set(())
        try:
            return cast(Reply, ask())
        finally:
            _hooks.reset(scope)

    def map(self, prompts: Iterable[Any], workers: int = 8, **options: Any) -> list[Reply]:
        """Ask all prompts, up to `workers` at a time; replies come in the order of the prompts.

        The first failure is raised when the calls in flight have ended, and no other is started.
        """
        jobs = iter(list(enumerate(prompts)))

        def work() -> list[tuple[int, Reply]]:
            try:  # one iterator, shared: each job goes to one thread
                return [(place, self(prompt, **options)) for place, prompt in jobs]
            finally:
                list(jobs)

        threads = [_in_thread(work) for _ in range(max(1, workers))]
        try:
            done = [thread.result() for thread in threads]
        finally:
            list(jobs)
        return [reply for _, reply in sorted(itertools.chain(*done))]

    async def acall(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """Ask without blocking the event loop; a cancelled call is left to its own deadline."""
        from asyncio import wrap_future

        return await wrap_future(_in_thread(lambda: self(messages, **options)))

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        return self  # a connection, not a value: copies of its owner share it, key and all


class _Foreign(LanguageModel):
    """Any other callable from messages to text, counted and recorded as ours are."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.model = str(getattr(function, "model", None) or "callable")

    def complete(self, messages: _Messages, options: dict[str, Any]) -> Reply:
        answer = self.function(messages, **options)
        if isinstance(answer, Reply):
            return answer
        return Reply(_reply_text(answer), usage=dict(_usage_told(answer)) or None)


def _ask_any(llm: Any, messages: Any, options: Mapping[str, Any] = {}) -> Reply:
    """Ask any callable from messages to text."""
    return (llm if isinstance(llm, LanguageModel) else _Foreign(llm))(messages, **options)


# ---- Two tables say how to talk to everybody: a protocol is how, a provider is where.


class _Protocol(NamedTuple):
    """A wire format: where a request goes, what it looks like, where things are in an answer."""

    path: str  # what follows the base address
    options: dict[str, str]  # an option's names on the wire; the first that is not refused is sent
    fields: Callable[[_Messages], dict[str, Any]]  # from messages to the fields that carry them
    text: tuple[str | int, ...]  # the path to the text of an answer
    end: tuple[str | int, ...]  # the path to why the text ended
    usage: tuple[str, str]  # the counts that add up to the tokens in, and out
    headers: Mapping[str, str] = {}  # those it demands beside the key


class _Provider(NamedTuple):
    """Who serves language models: a row of `PROVIDERS`, where any tuple in this order will do."""

    protocol: str  # a name in PROTOCOLS
    base_url: str  # with the /v1 where the provider has one
    keys: str = ""  # variables that may hold the key; the first that is set wins
    variable: str = ""  # the variable that moves the address ...
    adapt: Callable[[str], str] = str  # ... and how to read it


def _anthropic_fields(messages: _Messages) -> dict[str, Any]:
    """The system's words go on top, where every Anthropic language model takes them."""
    on_top = ("system", "developer")
    system = "\n\n".join(_content(m["content"]) for m in messages if m["role"] in on_top)
    turns = [m for m in messages if m["role"] not in on_top]
    return {"max_tokens": 8192, "messages": turns} | ({"system": system} if system else {})


def _ollama_address(host: str) -> str:
    """OLLAMA_HOST in its forms ("", "1.2.3.4", ":5678", "https://h/path"), as a base address."""
    from urllib.parse import urlsplit

    scheme, _, rest = host.strip().rpartition("://")
    parts = urlsplit(f"{scheme or 'http'}://{rest}")
    port = parts.port or {"http": 80, "https": 443}.get(scheme, 11434)
    name = parts.hostname or "0.0.0.0"  # which a server binds to, and no client can call
    name = f"[{name}]" if ":" in name else name.replace("0.0.0.0", "127.0.0.1")
    return f"{parts.scheme}://{name}:{port}{parts.path.rstrip('/')}/v1"


def _same(names: str) -> dict[str, str]:
    """Options that have their own names on the wire."""
    return {name: name for name in names.split()}


PROTOCOLS = {
    "openai": _Protocol(
        "/chat/completions",
        _same("temperature top_p seed stop reasoning_effort response_format")
        | {"max_tokens": "max_tokens max_completion_tokens"},
        lambda messages: {"messages": messages},
        ("choices", 0, "message", "content"),
        ("choices", 0, "finish_reason"),
        ("prompt_tokens", "completion_tokens"),
    ),
    # Since this version the official client sends its key as a bearer token. For a gateway that
    # knows the older form: LLM(headers={"x-api-key": ..., "anthropic-version": "2023-06-01"}).
    "anthropic": _Protocol(
        "/v1/messages",
        _same("temperature top_p top_k max_tokens") | {"stop": "stop_sequences"},
        _anthropic_fields,
        ("content",),
        ("stop_reason",),
        ("input_tokens cache_creation_input_tokens cache_read_input_tokens", "output_tokens"),
        {"anthropic-version": "2026-10-21"},
    ),
}
# By the first part of a name, as in "groq/llama-3"; "compatible" serves bare names at a `base_url`.
# fmt: off
PROVIDERS: dict[str, tuple[Any, ...]] = {
    "openai": ("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": ("anthropic", "https://api.anthropic.com",
                  "ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"),
    "gemini": ("openai", "https://generativelanguage.googleapis.com/v1beta/openai",
               "GOOGLE_API_KEY GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL",
               lambda url: url.rstrip("/") + "/v1beta/openai"),
    "ollama": ("openai", "http://127.0.0.1:11434/v1",
               "OLLAMA_API_KEY", "OLLAMA_HOST", _ollama_address),
    "openrouter": ("openai", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "groq": ("openai", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": ("openai", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "deepseek": ("openai", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "together": ("openai", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "xai": ("openai", "https://api.x.ai/v1", "XAI_API_KEY"),
    "lmstudio": ("openai", "http://127.0.0.1:1234/v1"),
    "vllm": ("openai", "http://127.0.0.1:8000/v1", "VLLM_API_KEY"),
    "llamacpp": ("openai", "http://127.0.0.1:8080/v1", "LLAMA_API_KEY"),
    "compatible": ("openai", "", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
}
# fmt: on


# ---- The wire: one POST, its answer as plain data, and a deadline that holds.

_LARGEST = 16 << 20  # bytes in an answer, before and after decompression


class _Answer(NamedTuple):
    """What came back, or why nothing did: the `kind` of an `LLMError`, and words as `body`."""

    kind: str = ""
    body: str = ""
    status: int = 0
    headers: Mapping[str, str] = {}


def _post(route: _Route, body: bytes, seconds: float) -> _Answer:
    """The answer to one POST, or what kept it from coming within `seconds`.

    The timeout of `urllib` or of a socket is per read: an answer that drips outlives it, and a
    name look-up has none. So a thread talks, we wait no longer than we may, and then shut down its
    socket, which must be in our hands for that: hence `http.client`. It follows no redirect either.
    """
    import socket
    from concurrent.futures import wait

    late, wires = _Answer("timeout", "no whole answer in time"), list[socket.socket]()
    deadline = time.monotonic() + seconds

    def talk() -> _Answer:
        # Whatever goes wrong becomes text: a traceback through http.client would show the key.
        try:
            connection, target, more = _connection(route, seconds + 1)
            with contextlib.closing(connection):
                connection.connect()
                wires.append(connection.sock)
                if time.monotonic() > deadline:  # nobody pays for an answer that nobody waits for
                    return late
                connection.request("POST", target, body, {**route.headers, **more})
                return _receive(connection.getresponse(), route.redact)
        except Exception as error:
            return _Answer("network", f"{type(error).__name__}: {error}")

    talking = _in_thread(talk)
    try:
        wait([talking], seconds)
        return talking.result() if talking.done() else late
    finally:
        for wire in wires:
            with contextlib.suppress(OSError):  # closed already
                socket.socket.shutdown(wire, socket.SHUT_RDWR)


def _receive(response: Any, redact: Callable[[str], str]) -> _Answer:
    """Read an answer whole, but never more than the largest we take, and without our key."""
    import zlib

    body = response.read(_LARGEST + 1)
    cut = bool(response.length)  # read(n) is silent about what did not come
    if body.startswith(b"\x1f\x8b"):  # gzip, which some send unasked
        unpack = zlib.decompressobj(wbits=31)
        body = unpack.decompress(body, _LARGEST + 1)
        cut = cut or not unpack.eof
    if len(body) > _LARGEST:
        return _Answer("unreadable", f"an answer larger than {_LARGEST:,} bytes")
    if cut:
        return _Answer("network", "the answer was cut")
    headers = {name.lower(): redact(value) for name, value in response.getheaders()}
    return _Answer("", redact(body.decode("utf-8-sig", "replace")), response.status, headers)


def _connection(route: _Route, seconds: float) -> tuple[Any, str, dict[str, str]]:
    """A connection not yet open, what to ask of it, and headers for a proxy on the way."""
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.request import ProxyHandler, Request, getproxies, proxy_bypass

    request = Request(route.url)
    goal, scheme = request.host, request.type
    proxy = getproxies().get(scheme, "")
    if proxy and not route.here and not proxy_bypass(goal):
        if re.match("(?!http:).*://", proxy):
            kind = proxy.partition("://")[0]
            raise OSError(f"a proxy must have an http:// address, not {kind}://")
        ProxyHandler({}).proxy_open(request, proxy, scheme)
    make = HTTPSConnection if scheme == "https" else HTTPConnection
    connection = make(request.host, timeout=seconds)
    if scheme == "http" or request.host == goal:
        return connection, request.selector, dict(request.headers)
    connection.set_tunnel(goal, headers=request.headers)
    return connection, request.selector, {}


# ---- Reading an answer: a text, or an error that says what to do.

_FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
_KINDS = {"length": "cut off", "refusal": "refused", "content_filter": "filtered"}
_NEVER_HEALS = r"insufficient_quota|billing_error|CERTIFICATE|an answer larger"
_REFUSES = (
    r"un(supported|known|recognized|expected)|not (support|allowed)|permitted|extra_forbidden"
)
_ADVICE = [  # the first row whose pattern is found in "kind status words"
    ("insufficient_quota|billing|credit", "the account has nothing left: top it up or use another"),
    ("context.?(length|window)|maximum context|too long|status 413", "shorten the prompt"),
    ("^status 40[13]|api.?key", "check the key: api_key= or {keys}"),
    ("^status 404|model.{0,80}not (found|exist)", "check the language model's name, and base_url="),
    ("^status 3", "redirects are not followed, to keep the key: set base_url= to the new address"),
    ("^status (408|409|429|5)", "asking again did not help: try later, or raise retries="),
    ("^status", "see its words, and the options and extra= of the call"),
    ("^timeout", "raise timeout=, or ask for less with max_tokens="),
    ("CERTIFICATE", "it is not trusted here: SSL_CERT_FILE can name who vouches for it"),
    ("^network", "see that the server runs and that its address is right"),
    ("^unreadable", "see that base_url= points at the API of a language model"),
    ("^cut off", "raise max_tokens="),
    ("", "change the prompt, or ask again"),
]


def _words(data: Any, answer: _Answer) -> str:
    """A server's own words for an error, in whichever of the many shapes they come."""
    data = data[0] if isinstance(data, list) and data else data
    paths = (("error", "message"), ("error",), ("detail",), ("message",))
    words = next(filter(None, (_dig(data, *path) for path in paths)), None)
    if words is None:
        words = re.sub(r"<[^>]*>|\s+", " ", answer.body[:2000])
    text = words if isinstance(words, str) else json.dumps(words)
    codes = [_dig(data, "error", "code"), _dig(data, "error", "type")]
    labels = [f"[{code:.80}]" for code in codes if isinstance(code, str)]
    return " ".join([text.strip()[:500], *labels, answer.headers.get("location", "")]).strip()


def _asked_pause(answer: _Answer) -> float:
    """The seconds a server asks us to wait, in any of four forms; 0 if it does not."""
    from email.utils import parsedate_to_datetime

    info = re.search(r'"retryDelay":\s*"([\d.]+)s"', answer.body)
    after, thousandths = map(answer.headers.get, ("retry-after", "retry-after-ms"))
    for text, unit in ((thousandths, 1000), (after, 1), (info and info[1], 1)):
        if re.fullmatch(r"\d+(\.\d+)?", text or ""):
            return float(text or 0) / unit
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0, parsedate_to_datetime(after or "").timestamp() - time.time())
    return 0


def _may_heal(answer: _Answer, error: LLMError) -> bool:
    """Is it worth asking again?"""
    said = answer.headers.get("x-should-retry")
    if said in ("true", "false") or re.search(_NEVER_HEALS, error.words):
        return said == "true"
    # A body cut where no length tells is bad JSON; a page for people begins with "<", and stays.
    cut = error.kind == "unreadable" and answer.body.strip()[:1] in ("{", "")
    return cut or error.kind == "network" or error.status in (408, 409, 429) or error.status >= 500


class _Key(str):
    """A text that no repr shows: no traceback with its variables, no `vars`, no crash report."""

    def __repr__(self) -> str:
        return "'[key]'"


class _Route(NamedTuple):
    """Where a language model is and how it is spoken to."""

    provider: str
    model: str
    protocol: _Protocol
    url: str
    keys: str
    headers: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}"

    @property
    def here(self) -> bool:
        """Does it lead to this machine's own loopback, and not only look like it?"""
        net = r"127(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}"
        host = rf"localhost|{net}|\[::1]|\[::ffff:{net}]"
        return bool(re.match(rf"https?://({host})(?![^:/?])", self.url))

    @property
    def secrets(self) -> list[_Key]:
        hidden = (k for k in self.headers if re.search("auth|key|token|secret|cookie", k))
        return [_Key(word) for name in hidden for word in self.headers[name].split()]

    def redact(self, text: str) -> str:
        """The text without the keys in it (shorter ones, such as "none", are no secret)."""
        for word in sorted((w for w in self.secrets if len(w) > 7), key=len, reverse=True):
            text = text.replace(word, "[key]")
        return text

    def fault(self, may_be_plain: bool, needs_key: bool) -> str:
        """Why nothing may be sent this way, or ""."""
        headers = (f"{name}:{value}" for name, value in self.headers.items())
        if not self.url:
            return """name a provider (openai/NAME), or give base_url=: http(s)://..., \
without a user or a password"""
        if not all(re.fullmatch("[!-9;-~]+:[ -~]+", header) for header in headers):
            return "the key, or another header, holds a line break or what else none can carry"
        if self.secrets and self.url.startswith("http:") and not (self.here or may_be_plain):
            return "plain http would show the key: use https, or allow_http=True, or api_key=''"
        if needs_key and not (self.here or self.secrets):
            return f"there is no key: pass api_key= or set {self.keys or 'headers='}"
        return ""

    def error(self, kind: str, words: str, status: int = 0) -> LLMError:
        """What went wrong, where, and what to do."""
        words, url = self.redact(words), self.url.partition("?")[0]
        said = f"{kind} {status} {words}" if status else f"{kind}: {words}"
        advice = next(advice for pattern, advice in _ADVICE if re.search(pattern, said, re.I))
        message = f"{self.name} at {url}: {said}; {advice.replace('{keys}', self.keys)}."
        where = {"provider": self.provider, "model": self.model, "url": url}
        return LLMError(message, kind=kind, status=status, words=words, **where)

    def read(self, answer: _Answer) -> Reply | LLMError:
        """The reply in an answer, or what is wrong with it."""
        if answer.kind:
            return self.error(answer.kind, answer.body)
        try:
            data = json.loads(answer.body)
        except (ValueError, RecursionError):
            data = None
        words, status, path = _words(data, answer), answer.status, self.protocol.text
        if _dig(data, "error") or not 200 <= status < 300:
            code = str(_dig(data, "error", "code"))
            if status == 200 and re.fullmatch(r"[45]\d\d", code):  # as some gateways do
                status = int(code)
            return self.error("status", words, status)
        if not isinstance(_dig(data, path[0]), list):
            return self.error("unreadable", words, status)
        text, refusal = _content(_dig(data, *path)), _dig(data, *path[:-1], "refusal")
        end = str(_dig(data, *self.protocol.end) or "stop")
        end = _FINISHES.get(end, end)
        kind = "refused" if refusal else _KINDS.get(end, "empty")
        if kind in ("refused", "filtered") or not text.strip():
            return self.error(kind, f"{refusal or text} (finish reason: {end})", status)
        model = self.redact(str(_dig(data, "model") or self.model))
        usage = _usage(data, self.protocol)
        return Reply(self.redact(text), usage=usage, finish_reason=end, model=model)


def _usage(data: Any, protocol: _Protocol) -> dict[str, int] | None:
    """The tokens that an answer says it took."""
    counts = [[_dig(data, "usage", name) for name in names.split()] for names in protocol.usage]
    if not all(isinstance(count[0], int) for count in counts):
        return None
    tokens_in, tokens_out = (sum(n for n in count if isinstance(n, int)) for count in counts)
    return {"input_tokens": tokens_in, "output_tokens": tokens_out}


class LLM(LanguageModel):
    """A language model behind HTTP: `llm("question")` or `llm(messages)` gives a `Reply`.

    A call is one POST, repeated while that may help (overload, resets, cut answers) after growing
    pauses or those that the server asks for, all inside one deadline. A parameter that a server
    refuses by name is renamed or, with a warning, left out from then on. Nothing is read from the
    environment or sent before the first call. One object serves any number of threads. A key (of 8
    characters or more) is in no repr, error, traceback, pickle or recording, nor left in an answer.

    Args:
        model: "provider/name", the provider from `PROVIDERS` and the rest verbatim, or a bare name
            for the OpenAI-compatible server at `base_url`; by default the variable MINITRACE_MODEL.
        base_url: by default the provider's own, or that in its variable (OPENAI_BASE_URL, ...).
        api_key: by default the provider's variable (OPENAI_API_KEY, ...); "" is no key.
        headers: more headers; one with a credential (api-key, ...) takes the place of a key.
        timeout: seconds for one call, its repeats and pauses included.
        retries: how often to ask again.
        allow_http: let a key travel over plain http to another machine.
        extra: fields of the request that this server alone knows.
        sleep: what waits between repeats.
        options: temperature, top_p, top_k, max_tokens, stop, seed, reasoning_effort,
            response_format; a call may give its own, and `extra` too.

    Raises:
        LLMError: from a call without a usable text; its `kind` tells the cases apart.
        TypeError: an option that no protocol knows, or not the one in use.
        ValueError: a timeout that is none.

    >>> LLM("ollama/llama3", temperature=0)
    LLM('ollama/llama3', temperature=0)
    >>> LLM("ollama/llama3", heat=1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    TypeError: no option 'heat': known are max_tokens, ...; ... goes into extra={...}

    Your own provider is a row: protocol, base address, variable of the key.

    >>> PROVIDERS["mine"] = ("openai", "https://llm.example.org/v1", "MY_KEY")
    >>> LLM("mine/small")("Hello?")
    Traceback (most recent call last):
        ...
    minitrace.LLMError: mine/small: there is no key: pass api_key= or set MY_KEY
    >>> del PROVIDERS["mine"]
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] = {},
        timeout: float = 300.0,
        retries: int = 4,
        allow_http: bool = False,
        extra: Mapping[str, Any] | None = None,
        sleep: Callable[[float], object] = time.sleep,
        **options: Any,
    ) -> None:
        # Both names are bound anew, since this frame may be shown in a traceback.
        self._key = api_key = api_key and _Key(api_key)
        self._headers = headers = {name: _Key(value) for name, value in headers.items()}
        self.model, self.base_url, self.timeout, self.retries = model, base_url, timeout, retries
        self.allow_http, self.sleep, self.options = allow_http, sleep, {**options, "extra": extra}
        self._refused: set[str] = set()
        self._found: _Route | None = None
        _check_options(options, *PROTOCOLS.values())
        if not 0 < timeout <= 1e6:
            raise ValueError(f"timeout is in seconds, above 0 and up to a million, not {timeout!r}")

    def __repr__(self) -> str:
        given = [f"{k}={v!r}" for k, v in self.options.items() if v is not None]
        return f"LLM({', '.join([repr(self.model), *given])})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_key": None, "_headers": {}, "_found": None}

    def complete(self, messages: _Messages, options: dict[str, Any]) -> Reply:
        import random

        deadline, attempt = time.monotonic() + self.timeout, 0
        route = self._found = self._found or self._route()
        _check_options(options, route.protocol)
        while True:
            sent = self._request(route, messages, options)
            body = json.dumps(sent, allow_nan=False).encode()
            answer = _post(route, body, deadline - time.monotonic())
            result = route.read(answer)
            if isinstance(result, Reply):
                return result
            self._learn(route, sent, result)
            if sent != self._request(route, messages, options):
                continue
            pause = _asked_pause(answer) or min(0.5 * 2**attempt, 8) * random.uniform(0.75, 1)
            in_time = time.monotonic() + pause < deadline
            if attempt >= self.retries or not in_time or not _may_heal(answer, result):
                raise result
            self.sleep(pause)
            attempt += 1

    def _request(self, route: _Route, messages: _Messages, options: Any) -> dict[str, Any]:
        """The body of a request, without what the server has refused by name."""
        body = {"model": route.model, **route.protocol.fields(messages)}
        for option, value in options.items():
            names = route.protocol.options.get(option, "").split()
            for name in [name for name in names if name not in self._refused][:1]:
                body[name] = [value] if option == "stop" and isinstance(value, str) else value
        return {**body, **options.get("extra", {})}

    def _learn(self, route: _Route, sent: dict[str, Any], error: LLMError) -> None:
        """Remember an option that the server refuses by name; another name is tried, or none."""
        if error.status not in (400, 422) or not re.search(_REFUSES, error.words, re.I):
            return
        families = [names.split() for names in route.protocol.options.values()]
        known = {name: names for names in families for name in names if name in sent}
        for name in [name for name in known if re.search(rf"\b{name}\b", error.words)][:1]:
            self._refused.add(name)
            if self._refused.issuperset(known[name]):
                words = f"{route.name} refuses {name!r}: it is left out from now on"
                warnings.warn(words, stacklevel=5)

    def _route(self) -> _Route:
        """Where the language model is; the environment is read here, and the key sealed."""
        name = self.model or os.environ.get("MINITRACE_MODEL", "")
        if not name:
            raise LLMError(
                "no language model is configured: pass LLM('provider/name'), or set MINITRACE_MODEL"
                f" to it and the variable of the provider's key. Providers: {', '.join(PROVIDERS)}"
            )
        first, _, rest = name.partition("/")
        provider, model = (first, rest) if rest and first in PROVIDERS else ("compatible", name)
        row = _Provider(*PROVIDERS[provider])
        moved = os.environ.get(row.variable, "")
        base = self.base_url or (row.adapt(moved) if moved else row.base_url)
        protocol, headers = PROTOCOLS[row.protocol], _headers(row, self._key, self._headers)
        url = _address(base, protocol.path)
        route = _Route(provider, model, protocol, url, row.keys, headers)
        fault = route.fault(self.allow_http, base == row.base_url)
        if fault:
            raise LLMError(f"{route.name}: {fault}", provider=provider, model=model)
        if url.startswith("https://api.openai.com/"):
            self._refused.add("max_tokens")
        return route


def _check_options(options: Iterable[str], *protocols: _Protocol) -> None:
    known = sorted({name for protocol in protocols for name in protocol.options})
    for name in sorted(set(options) - {*known, "extra"}):
        words = "what one server alone knows goes into extra={...}"
        raise TypeError(f"no option {name!r}: known are {', '.join(known)}; {words}")


def _address(base: str, path: str) -> str:
    """The address of a request, or "" if the base is no address."""
    host = r"(?:[\w.-]+|\[[\da-fA-F:.]+\])"
    form = rf"(?=[!-~]+\Z)(https?://{host}(?::\d+)?)((?:/[^?#]*)?)((?:\?[^#]*)?)"
    parts = re.fullmatch(form, base)
    if not parts:
        return ""
    origin, trunk, query = parts.groups()
    trunk = trunk.rstrip("/").removesuffix(path)
    trunk = trunk.removesuffix("/v1") if path.startswith("/v1/") else trunk
    return origin + trunk + path + query


def _headers(row: _Provider, key: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request. Nothing is raised here, where the environment's keys are bare."""
    get, prefix = os.environ.get, row.variable.partition("_BASE")[0]
    lines = get(f"{prefix}_CUSTOM_HEADERS", "")
    if prefix == "OPENAI":
        lines += f"\nOpenAI-Organization:{get('OPENAI_ORG_ID', '')}"
        lines += f"\nOpenAI-Project:{get('OPENAI_PROJECT_ID', '')}"
    pairs = [*(line.partition(":")[::2] for line in lines.splitlines()), *given.items()]
    own = {k.strip().lower(): _Key(v.strip()) for k, v in pairs if v.strip()}
    if key is None and not own.keys() & {"authorization", "x-api-key", "api-key", "x-goog-api-key"}:
        key = next(filter(None, map(get, row.keys.split())), None)
    if key and key.strip():
        own.setdefault("authorization", _Key(f"Bearer {key.strip()}"))
    common = {"content-type": "application/json", "user-agent": "minitrace"}
    return {**common, **PROTOCOLS[row.protocol].headers, **own}


class Script(LanguageModel):
    """Canned replies, for tests and lessons: texts in order, or (pattern, reply) pairs, or both.

    The first pattern found in the conversation (a regular expression, `re.search`) answers, however
    often; what fits no pattern gets the next text. `asked` keeps the messages of every call.

    Raises:
        LLMError: no reply is left and no pattern fits (`kind` is `miss`).

    >>> ask = Script([("capital of (France|Italy)", "I know that one."), "First.", "Second."])
    >>> ask("Hello"), ask("The capital of Italy?"), ask("Bye")
    ('First.', 'I know that one.', 'Second.')
    >>> ask.asked[1]
    [{'role': 'user', 'content': 'The capital of Italy?'}]
    """

    model = "script"

    def __init__(self, replies: Iterable[str | tuple[str, str]]) -> None:
        self.replies, self.asked = list(replies), list[_Messages]()
        self._texts = iter([reply for reply in self.replies if isinstance(reply, str)])

    def complete(self, messages: _Messages, options: dict[str, Any]) -> Reply:
        self.asked.append(messages)
        prompt = _prompt(messages)
        pairs = (pair for pair in self.replies if not isinstance(pair, str))
        fits = (reply for pattern, reply in pairs if re.search(pattern, prompt))
        for reply in itertools.chain(fits, self._texts):
            return Reply(reply, model="script")
        words = f"the script has no reply for call {len(self.asked)}: {prompt!r:.200}"
        raise LLMError(words, kind="miss")


def _call_llm(*prompts: Any) -> MessageNode[Any]:
    """Ask a language model, as a step: `call_llm(llm, system, *user)`, or without `llm`."""
    llm, words = (prompts[0], prompts[1:]) if callable(to_data(prompts[0])) else (None, prompts)
    ask = functools.partial(_asked, to_data(llm))
    means = "the reply of a language model to the prompts"
    return _apply(_Operator("call_llm", means, ("system",), ask, effects=True), words)


def _asked(llm: Any, system: str, *prompts: str) -> str:
    messages = [_message("system", system), *(_message("user", prompt) for prompt in prompts)]
    return str(_reply_text(_ask_any(llm or _default_llm(), messages)))


operators.call_llm = _call_llm


class StubLLM(LanguageModel):
    """An honest stand-in for a language model: it searches numbers and choices, and cannot write.

    It reads the same prompt that a language model would get, past attempts included, and answers in
    the same form; a pure function of its seed and the prompt. Numbers follow the words of the
    feedback ("too low", "higher") by doubling and then bisection, or climb its score, inside their
    bounds. Booleans and choices: one not tried yet. Text and code it leaves as they are, and says
    so.

    Args:
        seed: which of several equal guesses it makes.

    >>> prompt = "# Variables\\n(int) x0 = 3  # at least 0, at most 10\\n# Feedback\\nadd0: too low"
    >>> StubLLM()(prompt)
    '{"reasoning": "x0: up from 3.", "answer": "", "suggestion": {"x0": 6}}'
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def complete(self, messages: _Messages, options: dict[str, Any]) -> Reply:
        import random

        asked = [str(m["content"]) for m in messages if m["role"] == "user"]
        text, rng = "\n" + asked[0], random.Random(f"{self.seed}\n{asked}")
        row = r"^\((\w+)\) (\w+)(?: = (.*?))?(?:  # (.*))?$"
        rows = re.findall(row, _section(text, "Variables"), re.M)
        past = re.split(r"\n\d+\. ", _section(text, "Past attempts"))[1:]
        now = "; ".join(f"{name} = {value}" for _, name, value, _ in rows)
        tried = [_attempt(block) for block in [*past, now + "\n" + _section(text, "Feedback")]]
        reasons, suggestion = [], dict[str, Any]()
        for place, (kind, name, _, rules) in enumerate(rows):
            seen = [(values[name], way, score) for values, way, score in tried if name in values]
            new, why = _guess(kind, rules, seen, (place, len(rows)), rng)
            reasons.append(f"{name}: {why}")
            suggestion |= {name: new} if new is not None else {}
        said = {"reasoning": "; ".join(reasons) + ".", "answer": "", "suggestion": suggestion}
        return Reply(json.dumps(said), model="stub")


def _section(text: str, title: str) -> str:
    """What stands under a heading of a prompt."""
    found = re.search(rf"\n# {title}[^\n]*(\n.*?)(?=\n# [A-Z]|\Z)", text, re.S)
    return found[1] if found else ""


_MORE = "low|small|cold|little|few|short|below|under|increase|higher|more|larger|bigger|raise|up"
_LESS = (
    "high|big|large|hot|warm|long|above|over|too much|too many"
    "|decrease|lower|less|fewer|smaller|reduce|down"
)


def _attempt(block: str) -> tuple[dict[str, str], int, float | None]:
    """The values of an attempt, the way its feedback points (up if above 0), and its score."""
    values, _, said = block.partition("\n")
    up, down = (len(re.findall(rf"\b(?:{w})\b", said, re.I)) for w in (_MORE, _LESS))
    score = re.search(r"score:? *(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", said)
    named = dict(re.findall(r"(\w+) = (.*?)(?=; \w+ = |$)", values))
    return named, up - down, float(score[1]) if score else None


_Seen = list[tuple[float, int, Any]]  # values of a number, the way from each, and its score or None
_Guess = tuple[Any, str]  # the next value of a variable, or None to leave it, and why


def _guess(kind: str, rules: str, seen: Any, turn: tuple[int, int], rng: random.Random) -> _Guess:
    """A choice not tried yet, or the next number."""
    import ast

    choices = re.search(r"one of (\[.*\])", rules)
    if kind == "bool" or choices:
        tried = {value for value, _, _ in seen}
        listed = ast.literal_eval(choices[1]) if choices else [False, True]
        left = [choice for choice in listed if repr(choice) not in tried]
        return (rng.choice(left), "not tried yet") if left else (None, "all were tried")
    if kind in ("int", "float"):
        return _next_number(kind, rules, [(float(v), w, s) for v, w, s in seen], turn)
    return None, "a stub cannot write"


def _next_number(kind: str, rules: str, seen: _Seen, turn: tuple[int, int]) -> _Guess:
    """Where the feedback points, inside the bounds."""
    value, way, score = seen[-1]
    if not way and score is None:
        return None, "the feedback does not say which way"
    new = _bisected(seen) if way else _climbed(seen, *turn)
    ends = dict(re.findall(r"at (least|most) (-?[\d.e+-]+)", rules))
    new = min(max(new, float(ends.get("least", "-inf"))), float(ends.get("most", "inf")))
    if kind == "int":  # on a climb away from the value, which is where it would stand still
        new = round(new) if way else math.ceil(new) if new > value else math.floor(new)
    if new == value:
        return None, f"it stays at {value:g}"
    return new, f"{'up' if new > value else 'down'} from {value:g}"


def _bisected(seen: _Seen) -> float:
    """Twice as far while only one side is known, then the middle between the nearest of both."""
    value, way, _ = seen[-1]
    beyond = [v for v, w, _ in seen if w * way < 0 and (v - value) * way > 0]
    if not beyond:
        return value + math.copysign(max(abs(value), 1), way)
    return (value + min(beyond, key=lambda v: abs(v - value))) / 2


def _climbed(seen: _Seen, turn: int, variables: int) -> float:
    """A step from the best value so far: on after a success, else back and shorter, by turns."""
    scored = [(value, score) for value, _, score in seen if score is not None]
    scores = [score for _, score in scored]
    failures = len(scores) - 1 - scores.index(max(scores))  # as good again is no success
    *before, best = [value for value, _ in scored][: len(scored) - failures]
    strides = [best - value for value in before if value != best] or [max(abs(best), 1) / 4]
    if failures // 2 % variables != turn:
        return best
    if not failures:
        return best + 2 * strides[-1]
    return best + (-1.0) ** failures * strides[-1] / 3.0 ** (failures // (2 * variables))


# ---- 6. Looking ----------------------------------------------------------------------------------
#
# What happened?  A trace graph as text, its outputs on top:
#
#       add0 = 7  <- too small
#       ├─ multiply0 = 6
#       │  ├─ x0 = 3  [parameter]
#       │  └─ int0 = 2
#       └─ int1 = 1
#
# or as a picture, its outputs at the bottom: SVG drawn here, or text for Mermaid or Graphviz.
# Functions of a TraceGraph that return text. Left out: live nodes, files.


def _clean(text: str, ascii: bool = False) -> str:
    """The text with what nobody can see, such as control characters, as escapes."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            c if c.isprintable() or c == "\u200d" else repr(c)[1:-1] for c in text.expandtabs(4)
        )
    return text.encode("ascii", "backslashreplace").decode() if ascii else text


@functools.lru_cache(4096)
def _width(character: str) -> int:
    """The columns that it takes on a terminal: an accent none, a wide character two."""
    import unicodedata

    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _columns(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_width, text))


def _trimmed(text: str, room: int) -> str:
    """The text, its end cut off if it is wider than so many columns."""
    if _columns(text) <= room:
        return text
    ends = itertools.accumulate(map(_width, text))
    return text[: sum(end <= room - 3 for end in ends)] + "..."


def _verdicts(graph: TraceGraph) -> dict[Node[Any], str]:
    """What was said of each output: the words and the score."""
    said: dict[Node[Any], str] = {}
    for each, words, score, _ in graph.outputs:
        told = words if isinstance(words, str) else "" if words is None else to_text(words)
        judged = "" if score is None else f"(score: {to_text(score, 24)})"
        said[each] = " ".join(filter(None, (said.get(each, ""), told, judged)))
    return said


def _tree(graph: TraceGraph, ascii: bool | None, lines: int) -> str:
    """The graph as a text tree of 90 columns; a shared node is drawn once and referred to."""
    if ascii is None:
        ascii = "utf" not in (getattr(sys.stdout, "encoding", "") or "").lower()
    branch, corner, bar = ("|- ", "`- ", "|  ") if ascii else ("├─ ", "└─ ", "│  ")
    said, drawn = _verdicts(graph), set[Node[Any]]()
    stack = [("", "", each) for each in reversed(said)]
    rows: list[str] = []
    while stack and len(rows) < lines:
        margin, mark, node = stack.pop()
        parents, again = graph.parents(node), node in drawn
        if again and not mark:
            continue
        where = "above" if again else "below" if len(margin) > 36 else ""
        where = where if parents else ""
        row = _tree_line(graph, node, where, said.get(node, ""), 90 - len(margin + mark), ascii)
        rows.append(margin + mark + row)
        if where == "below":  # too far to the right, so it goes on at the left
            stack.insert(0, ("", "", node))
        elif not where:
            drawn.add(node)
            inside = margin + {branch: bar, corner: "   ", "": ""}[mark]
            marks = [corner] + [branch] * (len(parents) - 1)
            stack += [(inside, *each) for each in zip(marks, parents[::-1], strict=False)]
    left = len(graph) - len(drawn)
    return "\n".join(rows + [f"... {left} more nodes"] * (left > 0))


def _tree_line(
    graph: TraceGraph, node: Node[Any], where: str, said: str, room: int, ascii: bool
) -> str:
    """One node of the tree, in so many columns."""
    name = _trimmed(_clean(graph.names[node], ascii), room // 3)
    if where:
        return f"{name} (see {where})"
    end = "  [parameter]" if node in graph.values else ""
    words = _clean(_cut(" ".join(said.split()), room // 2), ascii)
    end += words and f"  <- {_trimmed(words, room - _columns(name + end) - 16)}"
    left = max(room - _columns(name + end) - 3, 8)
    return f"{name} = {_trimmed(_clean(to_text(graph.value(node), max(left, 12)), ascii), left)}{end}"


# ---- 7. Demo and command line --------------------------------------------------------------------
#
# What does it look like when it runs?  `python3 minitrace.py` tells two stories with no key, no
# network and no package; with `--live` a language model of yours plays its part.


def _tell_of_a_number(llm: Any) -> None:
    """The first story: a number found through words."""

    @bundle("[comfort] Say how a room feels.")  # type: ignore[untyped-decorator]
    def comfort(degrees: Any) -> Any:
        return "too cold" if degrees < 23 else "too warm" if degrees > 23 else "just right"

    GRAPH.clear()
    degrees = node(20, name="degrees", trainable=True, bounds=(0, 40))
    optimizer = OptoPrime([degrees], llm=llm)
    print("1. A number, found through words\n\nDeclare\n")
    print('    degrees = node(20, name="degrees", trainable=True, bounds=(0, 40))\n')
    _show(comfort.fun)
    for step in range(1, 11):
        feeling = comfort(degrees)
        if step == 1:
            print("\nForward\n")
            _say(feeling.tree())
            print("\nOptimize: the output is the feedback\n")
        print(f"    {degrees.data} degrees: {feeling.data}")
        if feeling == "just right":
            break
        optimizer.zero_feedback()
        optimizer.backward(feeling, feeling.data)
        optimizer.step()


def _sales_agent(llm: Any) -> Any:
    """The program of the second story."""

    @model
    class SalesAgent:
        """Greet a customer by name, in the customer's own language."""

        def __init__(self) -> None:
            self.ask_language = node("Decide the language.", name="ask_language", trainable=True)
            self.ask_name = node("Extract the name.", name="ask_name", trainable=True)

        def forward(self, message: str) -> Any:
            reply = operators.call_llm(llm, self.ask_language, message)
            name = operators.call_llm(llm, self.ask_name, message)
            return self.greet(self.language(reply), name)

        @bundle("[language] Answer en or es.", trainable=True)  # type: ignore[untyped-decorator]
        def language(self, reply: str) -> Any:
            return "en"

        @bundle("[greet] Write the greeting.", trainable=True)  # type: ignore[untyped-decorator]
        def greet(self, language: str, name: str) -> Any:
            return f"Hello, {name}!"

    return SalesAgent()


_AGENT_SCRIPT = [
    ("en or es only", "es"),
    ("name only", "Juan"),
    ("Decide the language", "This message is in Spanish."),
    ("Extract the name", "The name is Juan."),
]
_SUGGESTION = {
    "ask_language": "In which language is this? Answer with en or es only.",
    "ask_name": "What is the customer's name? Answer with the name only.",
    "language": 'def language(self, reply):\n    return "es" if "es" in reply.lower() else "en"',
    "greet": "def greet(self, language, name):\n"
    "    hello = {'en': 'Hello', 'es': 'Hola'}[language]\n    return f'{hello}, {name}!'",
}
_REASONING = """language() never looks at the reply and greet() never at the language; both \
prompts bring back a sentence where one word is wanted."""


def _canned(agent: Any) -> Script:
    """What plays the optimizer's language model in the second story."""
    names = {path: parameter.py_name for path, parameter in agent.parameters_dict().items()}
    suggestion = {names[path]: value for path, value in _SUGGESTION.items()}
    return Script([json.dumps({"reasoning": _REASONING, "answer": "", "suggestion": suggestion})])


def _tell_of_an_agent(llm: Any) -> None:
    """The second story: prompts and code improved together."""
    GRAPH.clear()
    agent = _sales_agent(llm or Script(_AGENT_SCRIPT))
    optimizer = OptoPrime(agent, llm=llm or _canned(agent))
    who = (
        "a language model of yours answers" if llm else "every reply of a language model is canned"
    )
    print(f"\n2. A sales agent: two prompts and two functions that may change\n   ({who})\n")
    _show(_sales_agent, "    @model", "    return SalesAgent()")
    message, wanted = "Hola, soy Juan.", "Hola, Juan!"
    for _ in range(5):
        greeting = agent(message)
        print(f"\nForward: {message!r} is answered {greeting.data!r}")
        if greeting == wanted:
            break
        feedback = f"It should be {wanted!r}: the customer's language, and the bare name."
        optimizer.zero_feedback()
        optimizer.backward(greeting, feedback)
        _tell_of_a_step(optimizer)


def _tell_of_a_step(optimizer: Optimizer) -> None:
    """What the optimizer sees, asks, and gets."""
    import textwrap

    prompt = optimizer.prompt()
    print()
    _say(optimizer.graph().tree())
    print(f"\nOptimize: asked with {prompt.stats['characters']:,} characters, among them\n")
    _say(_section("\n" + prompt[1]["content"], "Code").strip())
    update = optimizer.step()
    reasoning = cast(Proposal, optimizer.history[-1].proposal).reasoning
    print("\nwhat came back\n")
    _say(textwrap.fill(reasoning, 90, initial_indent="# ", subsequent_indent="# "))
    for parameter, value in update.items():
        _say(f"{parameter.py_name} = {value}")


def _show(function: Any, start: str = "", end: str = "") -> None:
    """Print the source of a function, or what stands in it from one line to another."""
    import inspect
    import textwrap

    source = inspect.getsource(function)
    inside = source[source.find(start) : source.find(end) if end else None]
    _say(re.sub("  # type: ignore.*", "", textwrap.dedent(inside).strip()))


def _say(text: str) -> None:
    """Print a text a little to the right."""
    for line in text.splitlines():
        print("   ", line if len(line) <= 92 else f"{line[:89]}...")


_NOT_CONFIGURED = """set MINITRACE_MODEL (such as openai/gpt-4o) and the provider's variables \
(such as OPENAI_API_KEY, and OPENAI_BASE_URL for another server that speaks the same protocol)"""


def _exit_with(code: int, words: str) -> int:
    """Say what went wrong on standard error; the exit code."""
    print(words, file=sys.stderr)
    return code


def _demo(live: bool) -> int:
    if live and not os.environ.get("MINITRACE_MODEL"):
        return _exit_with(2, f"demo --live: {_NOT_CONFIGURED}")
    _tell_of_a_number(LLM() if live else StubLLM())
    _tell_of_an_agent(LLM() if live else None)
    return 0


def _suggest(path: str) -> int:
    """Read a trace graph, ask for better values, print them as JSON by the ids of the graph."""
    try:
        with open(0 if path == "-" else path, encoding="utf-8") as file:
            graph = TraceGraph.from_json(file.read())
        if not graph.parameters:
            raise GraphError("it has no trainable node, so there is nothing to suggest")
        if not graph.outputs:
            raise GraphError("it has no outputs with feedback, so there is nothing to learn from")
        llm = LLM() if os.environ.get("MINITRACE_MODEL") else StubLLM()
        optimizer = OptoPrime(graph.parameters, llm=llm)
    except (OSError, UnicodeDecodeError, GraphError, ValueError) as error:
        place = "standard input" if path == "-" else path
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _exit_with(2, f"suggest: {place}: {' '.join(words.split())}")
    if isinstance(llm, StubLLM):
        told = "suggest: a StubLLM answers, which cannot write text or code; for a language model"
        print(told, _NOT_CONFIGURED, file=sys.stderr)
    for parameter in graph.parameters:
        parameter.feedback.append(graph)
    ids = graph.ids
    print(json.dumps({ids[p]: encode(v) for p, v in optimizer.propose().items()}, indent=1))
    return 0


def _try(question: str) -> int:
    """Ask the language model once, and tell who answered, how fast, and what it took."""
    if not os.environ.get("MINITRACE_MODEL"):
        return _exit_with(2, f"llm: {_NOT_CONFIGURED}")
    llm, began = LLM(), time.monotonic()
    reply = llm(question)
    seconds, provider = time.monotonic() - began, cast(Any, llm._found).provider
    print(f"{provider}, {reply.model}, {seconds:.1f} s, usage {reply.usage or 'not told'}")
    print(reply)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: `demo`, `suggest GRAPH.json`, `llm QUESTION`, `--version`.

    Returns: the exit code; 0 if all went well, 1 if a language model failed, 2 for bad input.

    >>> main(["--version"])
    minitrace 0.1.0
    0
    """
    import argparse

    parser = argparse.ArgumentParser(
        "minitrace.py", description="Autograd for AI systems, in one file."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    demo = commands.add_parser("demo", help="two short stories, the default")
    demo.add_argument("--live", action="store_true", help="ask what MINITRACE_MODEL names")
    suggest = commands.add_parser("suggest", help="better values for a trace graph, as JSON")
    suggest.add_argument("graph", help="a file, or - for standard input")
    llm = commands.add_parser("llm", help="try the language model that MINITRACE_MODEL names")
    llm.add_argument("question")
    arguments = parser.parse_args(argv)
    try:
        if arguments.version:
            print(f"minitrace {__version__}")
            return 0
        if arguments.command == "suggest":
            return _suggest(arguments.graph)
        if arguments.command == "llm":
            return _try(arguments.question)
        return _demo(getattr(arguments, "live", False))
    except MinitraceError as error:
        return _exit_with(1, f"minitrace: {error}")
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


_MOVED = {
    "minitrace_limits": "CodeError LimitError Limits",
    "minitrace_record": "Budget BudgetError Replay",
    "minitrace_train": "Evaluation Guide Judge Run evaluate train",
    "minitrace_pictures": "to_dot to_mermaid to_svg",
}


def __getattr__(name: str) -> Any:
    """Say in which companion a name is."""
    for companion, names in _MOVED.items():
        if name in names.split():
            raise ImportError(
                f"{name} is in the companion {companion}: copy tutorial/companions/{companion}.py "
                f"beside minitrace.py, and write `from {companion} import {name}`"
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
