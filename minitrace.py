"""minitrace: autograd for AI systems, in one file.

You declare what may change: numbers, texts such as prompts, the source code of functions. You run
your program forward, and a graph of it records itself. Then you optimize: feedback on the output,
in words or numbers, travels back through the graph to everything that had a part in it, and an
optimizer, usually a language model, proposes better values. The idea is Trace's (Cheng, Nie and
Swaminathan, NeurIPS 2024, arXiv:2406.16218); the code is new, and needs only the standard library.

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

The words used here, with one meaning each:

    node          a value that remembers its parents: the nodes that it was made from
    root          a node with no parents
    parameter     a root that an optimizer may change
    operator      a function whose calls make nodes: + and its kin, or one marked with @bundle
    output        the node that backward starts from
    feedback      what is said of an output, and what flows back from it
    propagator    how feedback flows
    child         a node made from this one
    trace graph   the part of a graph between parameters and outputs, with the feedback
    optimizer     what turns feedback into new values
    language model  any callable from messages to text
    module        an object with parameters; `@model` makes a class one
    companion     a file to copy beside this one when you want more: tutorial/companions/

The file reads from top to bottom. 1 Declare, 2 Forward and 3 Backward are the whole idea, and you
may stop there; helpers that come later do what their names say. What is built on it follows:
4 Code, 5 Optimize, 6 Language models, 7 Looking, 8 Command line. Copy the file where you need it.

For companions, and for code of yours, these are the extension points: `LanguageModel`, a base class
with one method to write; `around_calls`, a block that wraps every call of a language model;
`ask_until_usable`, `read_reply` and `coerce_value`, which get values out of what a language model
says; `bundle(limits=...)`, an object that checks and runs code; `nearest_calls` and `to_text`,
which choose and show parts of a trace graph; `encode` and `decode`, values as JSON;
`run_coroutine`, with which plain code calls async code.

Changes: 0.1.0 is the first; 0.2.0 moves training, recording, limits and pictures into companions.

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

import _thread
import builtins
import codecs
import copy
import io
import json
import math
import operator
import os
import re
import sys
import time
import weakref

if sys.version_info < (3, 10):  # noqa: UP036
    raise ImportError(f"minitrace needs Python 3.10 or newer, and this is {sys.version.split()[0]}")

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import cached_property, lru_cache, partial, reduce, update_wrapper
from itertools import chain, count, dropwhile, groupby, islice, pairwise, zip_longest
from threading import Thread, get_ident, main_thread
from types import CellType, CodeType, CoroutineType, FunctionType, MemberDescriptorType, MethodType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, cast, overload
from warnings import catch_warnings, simplefilter, warn

if TYPE_CHECKING:
    import ast
    from collections.abc import Coroutine
    from typing import Concatenate, Literal, NoReturn, Protocol, TypeAlias

__version__ = "0.2.0"
# fmt: off
__all__ = [
    "GRAPH", "LLM", "OPRO", "PROTOCOLS", "PROVIDERS", "Attempt", "ExceptionNode", "ExecutionError",
    "GraphError", "GraphPropagator", "LLMError", "LanguageModel", "MessageNode", "MinitraceError",
    "Module", "Node", "Optimizer", "OptoPrime", "ParameterNode", "Propagator", "Proposal", "Reply",
    "ReplyError", "Script", "StubLLM", "SumPropagator", "TextGrad", "TraceGraph",
    "TraceMissingInputsError", "around_calls", "ask", "ask_until_usable", "backward", "bundle",
    "check_code", "coerce_value", "decode", "encode", "model", "nearest_calls", "node", "operators",
    "read_reply", "run_coroutine", "stop_tracing", "to_data", "to_text",
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
# a new node that names its parents. Nodes are numbered as they are made, so parents always come
# first. Left out: functions (section 2), feedback (section 3).

T = TypeVar("T")
P = ParamSpec("P")
# Short names for the types in signatures.
AnyNode: TypeAlias = "Node[Any]"
Parameter: TypeAlias = "ParameterNode[Any]"
Nodes = tuple["Node[Any]", ...]
Fields = dict[str, Any]
Options = Mapping[str, Any]
Texts = Mapping[str, str]
Function = Callable[..., Any]
Method = Callable[..., "MessageNode[Any]"]


class MinitraceError(Exception):
    """The base class of minitrace's own errors.

    Wrong arguments raise `TypeError` or `ValueError`, as they do elsewhere in Python.

    >>> issubclass(ExecutionError, MinitraceError), issubclass(LLMError, MinitraceError)
    (True, True)
    """


_numbers = count()
_names = defaultdict[str, Iterator[int]](count)  # a counter for each name


class GRAPH:
    """The counters behind nodes' names. Nodes are not registered: an unused graph is freed.

    >>> GRAPH.clear()
    >>> node(1, name="x").name
    'x:0'
    """

    @staticmethod
    def clear() -> None:
        """Start every name from zero again: the next `x` is `x:0`."""
        _names.clear()


# The `_Scope` (see section 2) that the running code is in, or None.
_scope: ContextVar[_Scope | None] = ContextVar("minitrace_scope", default=None)
_bodies: set[_Body] = set()  # of the bundles that are running, in any thread


# How does `x + y` become a node?  Each operator is an `_Op`; `_define` wraps its function so that a
# call is recorded. On a first reading skip to `class Node`, and come back after `_record`.


class _Op(NamedTuple):
    """A recorded function: its name, what it does in words, and the names of its arguments.

    One that has `effects` (it asks a language model, writes a file, draws at random) is not run
    again by `rerun` unless that is asked for. `bundle` is the bundle whose calls it records.
    """

    name: str
    description: str
    names: tuple[str, ...]
    function: Any
    effects: bool = False
    bundle: Any = None

    def __reduce__(self) -> Any:
        return _pickled_op(self)


class _Operators:
    """Every operator as a function of nodes and plain values, and any function of the standard
    `operator` module that computes a value.

    >>> operators.concat("Hello, ", node("Ada"), "!").data, operators.truth(node([])).data
    ('Hello, Ada!', False)
    """

    def __getattr__(self, name: str) -> Method:
        function = getattr(operator, name, None)
        if function is None or name.startswith("__"):
            raise AttributeError(f"no operator {name!r}: see dir(operators), or use @bundle")
        words = (function.__doc__ or name).splitlines()[0]
        on_copy = lambda x, *more: function(_copy_if_mutable(x), *more)  # noqa: E731
        return _define(name, on_copy, words, "x", "y", "z")


operators = _Operators()


def _define(name: str, function: Function, description: str, *names: str) -> Method:
    """Put a function among minitrace's `operators` (Python's module is `operator`): it runs on the
    data, and the call is recorded."""
    op = _Op(name, description, names or ("x",), function)

    def method(*args: Any, **kwargs: Any) -> MessageNode[Any]:
        return _call_op(op, args, kwargs)

    setattr(method, "op", op)
    setattr(operators, name, method)
    return method


def _reads(function: Function) -> Any:
    """A method that reads the data and returns what `function` makes of it, unrecorded."""
    return lambda self, *others: function(self.data, *map(to_data, others))


def _method(name: str, words: str, *names: str) -> Method:
    """Define the operator that calls the method of this name."""

    def call(x: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    return _define(name, call, words, "x", *names)


def _infix(name: str, function: Any, words: str, *names: str) -> tuple[Method, Method]:
    """The methods of an operator between two values: `x + y`, which is the fast path, and its
    reflection, which a comparison does not need."""
    op: _Op = getattr(_define(name, function, words, *(names or ("x", "y"))), "op")
    scope_here = _scope.get

    def method(x: Any, y: Any) -> MessageNode[Any]:
        # A container may hold nodes, and inside a scope reads are noted: the slow path.
        if not isinstance(y, Node):
            if isinstance(y, _CONTAINERS):
                return _call_op(op, (x, y))
            y = Node(y)
        if scope_here() or _bodies:
            return _call_op(op, (x, y))
        try:
            data = function(x._data, y._data)
        except Exception as error:
            _fail(op, _Call(op.names, (x, y)), error)
        return MessageNode(data, op, (x, y), x._depends or y._depends)

    def reflected(y: Any, x: Any) -> MessageNode[Any]:
        return _call_op(op, (x, y))

    return method, reflected


# With `Any` as a base class, type checkers let a node stand wherever its value may.
class Node(Generic[T], cast(Any, object)):  # type: ignore[misc]
    """A value and where it came from.

    Made by `node`, by operators and by bundles. `data` is the value; `parents` the nodes that it
    was computed from, `()` for a root. Operators on a node make new nodes and never change its
    data, if that is of a built-in type. Python decides what stays plain: `==`, `bool`, `len`, `in`,
    `str`, f-strings, `int` and `float` read the value, and the trace stops there; `x.eq(y)` and
    `x.len()` are the traced forms. `hash` goes by identity, so a set or dict finds a node only by
    that node itself.

    Args:
        data: any Python value.
        name: the base of its name; the type's name by default. `name` is `base:index`.
        description: what it is, in words; shown in prompts.

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

    parents: Nodes = ()  # these are of a root; a MessageNode has slots for them
    trainable = False
    _op: _Op | None = None
    _call: _Call | None = None
    _depends = False  # whether it is a parameter, or depends on one

    def __init__(self, data: T, name: str | None = None, description: str | None = None) -> None:
        self._data = data
        self._base = base = type(data).__name__ if name is None else _base_of(name)
        self._description = description
        self._number = next(_numbers)
        self._index: int | None = next(_names[base])

    @property
    def data(self) -> T:
        """The value. Read inside a bundle's body, it is noted as an input from outside."""
        scope = _scope.get()
        if scope:
            return cast(T, scope.read(self))
        return _read_elsewhere(self) if _bodies else self._data

    @data.setter
    def data(self, value: T) -> None:
        """Refuse: a node keeps its value, and a parameter checks a new one."""
        remedy = "call its set(value)" if self.trainable else "make a new node"
        raise AttributeError(f"the data of {self.name} cannot be assigned: {remedy}")

    @property
    def name(self) -> str:
        """`base:index`, such as `x:0`, unique until `GRAPH.clear()`; of code, `function_code`."""
        return self._base if self._index is None else f"{self._base}:{self._index}"

    @property
    def py_name(self) -> str:
        """The name as an identifier, such as `x0`: how prompts write it."""
        return _identifier(self._base if self._index is None else f"{self._base}{self._index}")

    @property
    def inputs(self) -> dict[str, AnyNode]:
        """The parents by argument name."""
        if self._call:
            return self._call.inputs()
        return dict(zip(self._op.names, self.parents, strict=False)) if self._op else {}

    @property
    def is_root(self) -> bool:
        """Whether it has no parents."""
        return not self.parents

    @property
    def level(self) -> int:
        """The length of the longest path up to a root, which is at level 0."""
        levels = dict[AnyNode, int]()
        for each in _ancestors([self]):
            levels[each] = max([levels[parent] + 1 for parent in each.parents], default=0)
        return levels[self]

    @property
    def op_name(self) -> str:
        """The name of the operator that made it, or else of its class."""
        return self._op.name if self._op else type(self).__name__

    @property
    def description(self) -> str:
        """What it is, or what its operator does, in words."""
        return self._description or (self._op.description if self._op else "")

    @property
    def type(self) -> builtins.type[T]:
        """The type of the data."""
        return self._data.__class__

    @property
    def feedback(self) -> list[Any]:
        """An entry for each backward that reached this parameter; only parameters keep feedback."""
        return []

    def zero_feedback(self) -> None:
        """Forget the feedback."""
        self.feedback.clear()

    def detach(self) -> Node[T]:
        """A new root with a copy of the value and no past; of a parameter, a new parameter."""
        return copy.deepcopy(self)

    def backward(
        self, feedback: Any = "", propagator: Propagator | None = None, *, score: Any = None
    ) -> None:
        """Send feedback from here to every parameter that had a part in it: see `backward`."""
        _store(_carried_back(_outputs(self, feedback, score), propagator))

    def rerun(self, changes: Mapping[Any, Any], *, effects: bool = False) -> Node[T]:
        """What this would be if the nodes in `changes` had those values; operators with effects
        keep their values unless `effects` is true."""
        return _rerun(self, changes, effects)

    def tree(self, **options: Any) -> str:
        """This node and all that it came from, as a text tree: see `TraceGraph.tree`."""
        return TraceGraph.of(self).tree(**options)

    def _as_root(self, data: T, base: str) -> Node[T]:
        """A new root like this one."""
        return Node(data, base, self._description)

    # Plain: these read the value, and the trace stops here.
    __bool__ = _reads(bool)
    __len__ = _reads(len)
    __contains__ = _reads(operator.contains)
    __eq__ = _reads(operator.eq)
    __ne__ = _reads(operator.ne)
    __int__ = _reads(int)
    __float__ = _reads(float)
    __complex__ = _reads(complex)
    __index__ = _reads(operator.index)
    __str__ = _reads(str)
    __hash__ = object.__hash__

    def __format__(self, spec: str) -> str:
        if self._depends and not _scope.get():
            message = (
                "the trace ends at this f-string: it reads the value of a node that depends on a "
                "parameter; use operators.format, which takes a template string (t-string) from "
                "Python 3.14 on, or + to keep it in the graph"
            )
            warn(message, stacklevel=2)
        return format(self.data, spec)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} = {to_text(self.data, 60)}>"

    def __iter__(self) -> Iterator[MessageNode[Any]]:
        # A sequence or an array gives x[i]; a dict, a set or a DataFrame is made a list first.
        data: Any = self.data
        array = hasattr(data, "shape") and not hasattr(data, "iloc")
        items = self if array or isinstance(data, Sequence) else operators.to_list(self)
        return (items[i] for i in range(len(cast(Any, items.data))))

    def __copy__(self) -> Node[T]:
        return self._as_root(self.data, f"{self.py_name}_copy")

    def __deepcopy__(self, memo: dict[int, Any]) -> Node[T]:
        return self._as_root(copy.deepcopy(self.data, memo), f"{self.py_name}_copy")

    def __reduce__(self) -> tuple[Any, ...]:
        return _pickled_node(self)

    def __pow__(self, y: Any, modulus: Any = None) -> MessageNode[Any]:
        return operators.pow(self, y, modulus) if modulus is not None else self._power(y)

    # Traced: one line each. A reflected operator comes with its own.
    # fmt: off
    __add__, __radd__ = _infix("add", operator.add, "x + y")
    __sub__, __rsub__ = _infix("subtract", operator.sub, "x - y")
    __mul__, __rmul__ = _infix("multiply", operator.mul, "x * y")
    __truediv__, __rtruediv__ = _infix("divide", operator.truediv, "x / y")
    __floordiv__, __rfloordiv__ = _infix("floor_divide", operator.floordiv, "x // y")
    __mod__, __rmod__ = _infix("mod", operator.mod, "x % y")
    _power, __rpow__ = _infix("power", operator.pow, "x ** y")
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
    __neg__ = _define("neg", operator.neg, "-x")
    __pos__ = _define("pos", operator.pos, "+x")
    __invert__ = _define("invert", operator.invert, "~x")
    __abs__ = _define("abs", abs, "abs(x)")
    __round__ = _define("round", round, "round(x, digits)", "x", "digits")
    __floor__ = _define("floor", math.floor, "the largest integer that is not above x")
    __ceil__ = _define("ceil", math.ceil, "the smallest integer that is not below x")
    __trunc__ = _define("trunc", math.trunc, "x without its fraction")
    # From here on some names are those of built-in functions, which methods still see.
    __call__ = _define("call", lambda f, /, *args, **kwargs: f(*args, **kwargs),
                       "call f with the arguments", "f")
    len = _define("len", len, "the length of x")
    getattr = _define("getattr", getattr,
                      "the attribute of x that has this name", "x", "name", "default")
    call = _define("call_method", lambda x, name, /, *args, **kwargs:
                   getattr(_copy_if_mutable(x), name)(*args, **kwargs),
                   "call the method of x that has this name", "x", "name")
    clone = _define("clone", copy.deepcopy, "a copy of x")
    append = _define("append", lambda x, item: [*x, item],
                     "a new list: x with item at its end", "x", "item")
    pop = _define("pop", lambda x, *where: _copy_if_mutable(x).pop(*where),
                  "the item of x at index (the last by default)", "x", "index", "default")
    keys = _define("keys", lambda x: list(x.keys()), "the keys of x as a list")
    values = _define("values", lambda x: list(x.values()), "the values of x as a list")
    items = _define("items", lambda x: list(x.items()), "the (key, value) pairs of x as a list")
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

    __slots__ = ("_call", "_depends", "_op", "parents")

    def __init__(
        self, data: T, op: _Op, parents: Nodes, depends: bool, call: _Call | None = None
    ) -> None:
        self._data, self.parents, self._depends = data, parents, depends
        self._op, self._call, self._description = op, call, None
        self._base = base = op.name
        self._number, self._index = next(_numbers), next(_names[base])


_LISTS = list, tuple
_RULES = "choices", "bounds", "constraint", "projections", "check"


class ParameterNode(Node[T]):
    """A root that may change: what an optimizer works on.

    A new value, set here or by an optimizer, is kept only if it has the type of the present one,
    or converts to it without loss, and passes every rule given here; so must the first value.

    Args:
        choices: the values allowed; for an Enum its members, by default.
        bounds: `(low, high)`, both inclusive; `None` leaves a side open.
        constraint: what a good value is, in words, shown in prompts.
        projections: functions that move a value to the nearest good one, applied in order, first.
        check: a function of the value that returns `False` or a reason (a text) to refuse it.

    >>> rate = node(0.5, name="rate", trainable=True, bounds=(0, 1))
    >>> rate.set(1)
    >>> rate.data
    1.0
    >>> rate.set(7)
    Traceback (most recent call last):
    ValueError: parameter rate:0 cannot take 7: it must be between 0 and 1
    """

    __slots__ = ("_changes", "feedback", *_RULES)
    trainable = True
    _depends = True

    def __init__(
        self,
        data: T,
        name: str | None = None,
        description: str | None = None,
        *,
        choices: Iterable[T] | None = None,
        bounds: tuple[Any, Any] | None = None,
        constraint: str | None = None,
        projections: Iterable[Function] = (),
        check: Function | None = None,
    ) -> None:
        super().__init__(data, name, description)
        if choices is None and hasattr(type(data), "__members__"):
            choices = cast(Any, type(data))  # an Enum is a choice of its members
        ordered = _in_order(choices) if isinstance(choices, (set, frozenset)) else choices
        self.choices = None if ordered is None else list(ordered)
        if bounds is not None and not (isinstance(bounds, _LISTS) and len(bounds) == 2):
            raise TypeError(f"bounds must be a pair (low, high), not {to_text(bounds, 60)}")
        self.bounds, self.constraint = bounds, constraint
        self.projections, self.check = tuple(projections), check
        self.feedback: list[Any] = []
        # The last changes: when (the number of the next node), and the value before.
        self._changes: deque[tuple[int, Any]] = deque(maxlen=8)
        self.set(data)

    def set(self, value: Any) -> None:
        """Give it a new value, after the checks."""
        self.restore(self.checked(value))

    def restore(self, value: T) -> None:
        """Set a value that was checked already, such as one that it had, without checking again."""
        if value is not self._data:
            self._changes.append((next(_numbers), self._data))
        self._data = value

    def checked(self, value: Any) -> T:
        """The value as this parameter would keep it; `ValueError` says why it would not."""
        shown = to_text(value, 80)
        try:
            for project in self.projections:
                value = project(value)
            value = _as_type_of(self._data, value, self.choices)
            if reason := self._objection(value):
                raise ValueError(reason)
        except Exception as error:
            raise ValueError(f"parameter {self.name} cannot take {shown}: {error}") from error
        return cast(T, value)

    def _objection(self, value: Any) -> str:
        """Why a value of the right type is refused, or nothing."""
        if self.choices is not None and value not in self.choices:
            return f"it must be one of {to_text(self.choices, 400)}"
        low, high = self.bounds or (None, None)
        above = low is None or _everywhere(low <= value)
        below = high is None or _everywhere(value <= high)
        if not (above and below):
            words = f"at least {low}" if high is None else f"between {low} and {high}"
            return f"it must be {words if low is not None else f'at most {high}'}"
        verdict = self.check(value) if self.check else None
        if isinstance(verdict, str):
            return verdict
        return "" if verdict is None or _everywhere(verdict) else "its check failed"

    def _as_root(self, data: T, base: str) -> ParameterNode[T]:
        rules = {rule: getattr(self, rule) for rule in _RULES}
        return _accepted_parameter(data, base, self._description, rules)


def _base_of(name: Any) -> str:
    """The part of a name before its index."""
    if not isinstance(name, str):
        raise TypeError(f"a node's name is a string, not {to_text(name, 60)}; write trainable=True")
    return name.partition(":")[0]


def _everywhere(verdict: Any) -> bool:
    """Whether it is true; of an array, whether every element is."""
    return bool(verdict.all() if hasattr(verdict, "all") else verdict)


@overload
def node(data: Node[T], *args: Any, **options: Any) -> Any: ...


@overload
def node(
    data: T, name: str | None = ..., trainable: Literal[False] = ..., description: str | None = ...
) -> Node[T]: ...


@overload
def node(data: T, name: str | None = ..., *args: Any, **options: Any) -> ParameterNode[T]: ...


def node(
    data: Any, name: Any = None, trainable: bool = False, description: Any = None, **rules: Any
) -> Any:
    """Declare a value: a root of the graph, or with `trainable=True` a parameter.

    `node(n)` is the node n itself; `node(n, trainable=True)` a new parameter with its value. A
    container that holds nodes becomes one node, and they are its parents; a parameter, which has
    no parents, takes their values.

    Args:
        data: any Python value.
        name: the base of its name, the type's name by default.
        trainable: whether an optimizer may change it.
        description: what it is, in words; shown in prompts.
        rules: `choices`, `bounds`, `constraint`, `projections`, `check`: see `ParameterNode`.

    Returns: a `Node`, or a `ParameterNode`.
    Raises: `ValueError` if the value breaks its own rules; `TypeError` for rules on a plain node.

    >>> greeting = node("Hello", name="greeting", trainable=True, constraint="one polite word")
    >>> greeting
    <ParameterNode greeting:0 = 'Hello'>
    >>> (greeting + ", you").data
    'Hello, you'
    """
    if unknown := sorted(rules.keys() - set(_RULES)):
        raise TypeError(f"node() has no argument {unknown[0]!r}; its rules are {', '.join(_RULES)}")
    if rules and not trainable:
        raise TypeError(f"node(): {', '.join(rules)} is for a parameter: add trainable=True")
    if isinstance(data, Node):
        if not trainable:
            if name is not None or description is not None:
                warn(f"{data.name} keeps its name and description in node()", stacklevel=2)
            return data
        data, name = data.data, name or data._base
    elif _holds_nodes(data):
        made = operators.identity(data)
        if not trainable:
            made._description = description
            if name is not None:
                made._base, made._index = _base_of(name), next(_names[_base_of(name)])
            return made
        data = made._data
    if trainable:
        return ParameterNode(data, name, description, **rules)
    return Node(data, name, description)


_DICTS = dict, getattr(builtins, "frozendict", dict)
_CONTAINERS = (*{list, tuple, set, frozenset, deque, slice, *_DICTS},)


def _items(container: Any) -> Iterable[Any]:
    """What a container holds; of a dict first its keys, then its values."""
    if isinstance(container, slice):
        return container.start, container.stop, container.step
    return [*container, *container.values()] if isinstance(container, _DICTS) else container


def _in_order(container: Any) -> Iterable[Any]:
    """What a container holds, in an order that is the same on every run, of a set too."""
    if not isinstance(container, (set, frozenset)):
        return _items(container)
    return sorted(
        container, key=lambda x: (x._number, "") if isinstance(x, Node) else (-1, to_text(x))
    )


def _inside(value: Any, kind: Any = Node) -> Iterator[Any]:
    """All of a kind, such as the nodes, in a value: itself, or inside containers at any depth."""
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if isinstance(item, kind):
            yield item
        elif isinstance(item, _CONTAINERS) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(_items(item))


def _holds_nodes(value: Any) -> bool:
    """Whether it is a container with a node in it at any depth."""
    return isinstance(value, _CONTAINERS) and next(_inside(value), None) is not None


def _map_leaves(value: Any, leaf: Function) -> Any:
    """A copy of a container, of its own type, with `leaf(item)` for whatever is no container."""
    if not isinstance(value, _CONTAINERS):
        return leaf(value)
    if isinstance(value, _DICTS):
        new = {}
        for key, item in value.items():
            changes = isinstance(key, Node) or _holds_nodes(key)
            new[_map_leaves(key, leaf) if changes else key] = _map_leaves(item, leaf)
        return _filled(value, new)
    return _filled(value, [_map_leaves(item, leaf) for item in _in_order(value)])


def _filled(like: Any, items: Any) -> Any:
    """A container of the type of `like` that holds these items."""
    kind: Any = type(like)
    if isinstance(like, slice):
        return slice(*items)
    if isinstance(like, (list, dict, deque)):
        result: Any = copy.copy(like)  # it keeps what a subclass adds, such as a default factory
        result.clear()
        result.update(items) if isinstance(like, dict) else result.extend(items)
        return result
    return getattr(kind, "_make", kind)(items)  # of a named tuple


def _paths(path: str, value: Any) -> Iterator[tuple[str, AnyNode]]:
    """The nodes of an argument, each with the path to it: `xs[0]`, `options['key']`."""
    if isinstance(value, Node):
        yield path, value
    elif isinstance(value, _DICTS):
        for key, item in value.items():
            yield from ((f"{path}.key", found) for found in _inside(key))
            yield from _paths(f"{path}[{to_text(key, 60)}]", item)
    elif isinstance(value, _CONTAINERS):
        for index, item in enumerate(_in_order(value)):
            yield from _paths(f"{path}[{index}]", item)


def _wrap(value: Any, name: str | None = None) -> Any:
    """The value as a node; a container that holds nodes as one with a node for every leaf."""
    if isinstance(value, Node):
        return value
    return _map_leaves(value, _wrap) if _holds_nodes(value) else Node(value, name)


_SIMPLE = {int, float, str, bool, bytes, complex, type(None)}  # they hold no nodes


def to_data(value: Any) -> Any:
    """The plain value: every node, inside containers too, is replaced by its data.

    >>> to_data({"a": [node(1), (node("two"), 3)]})
    {'a': [1, ('two', 3)]}
    """
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, Node):
        return value.data
    return _map_leaves(value, to_data) if _holds_nodes(value) else value


def _copy_if_mutable(value: Any) -> Any:
    """A copy of what a method could change in place: an operator never changes its node's data."""
    return copy.copy(value) if isinstance(value, (*_CONTAINERS, bytearray)) else value


class _Call(NamedTuple):
    """How an operator was called: a name and a value for each argument, with nodes at any depth.

    The last `keywords` arguments go by name. `outside` holds the nodes that the function used
    without being given them, each by its number; in a rerun, what stands for it by that number.
    """

    names: tuple[str, ...]
    values: tuple[Any, ...]
    keywords: int = 0
    outside: Mapping[int, AnyNode] = {}

    def inputs(self) -> dict[str, AnyNode]:
        """Each node by the argument it stands in: `x`, or `xs[0]` inside a container."""
        arguments = list(zip(self.names, self.values, strict=False))
        arguments += [(node.py_name, node) for node in self.outside.values()]
        found: dict[str, AnyNode] = {}
        for name, value in arguments:
            for path, each in _paths(name, value):
                found[_unused_name(path, found)] = each
        return found

    def map(self, leaf: Function) -> _Call:
        """The same call with `leaf(item)` for each argument, and for each item of a container."""
        values = tuple([_map_leaves(value, leaf) for value in self.values])
        outside = {number: leaf(node) for number, node in self.outside.items()}
        return _Call(self.names, values, self.keywords, outside)

    def data(self) -> list[Any]:
        """The values without their nodes, as the current scope reads them."""
        plain = not (_scope.get() or _bodies)
        return [v._data if plain and isinstance(v, Node) else to_data(v) for v in self.values]

    def invoke(self, function: Any, data: Sequence[Any]) -> Any:
        """Call a function with these values as the arguments."""
        if not self.keywords:
            return function(*data)
        start = len(data) - self.keywords
        named = zip(self.names[start:], data[start:], strict=True)
        return function(*data[:start], **dict(named))


def _unused_name(name: str, taken: Container[str]) -> str:
    """The name, with underscores added until it is free."""
    while name in taken:
        name += "_"
    return name


def _call_op(op: _Op, args: Sequence[Any], kwargs: Mapping[str, Any] = {}) -> MessageNode[Any]:
    """Run an operator on nodes and plain values, and record it."""
    rest = [f"args_{i}" for i in range(len(args) - len(op.names))]
    names = (*op.names[: len(args)], *rest, *kwargs)
    values = tuple([_wrap(value) for value in (*args, *kwargs.values())])
    return _compute(op, _Call(names, values, len(kwargs)))


def _compute(op: _Op, call: _Call) -> MessageNode[Any]:
    """Run the function of an operator, and record the call."""
    try:
        data = call.invoke(op.function, call.data())
    except Exception as error:
        _fail(op, call, error)
    return _record(op, call, data)


def _record(
    op: _Op, call: _Call, data: Any, kind: type[MessageNode[Any]] = MessageNode
) -> MessageNode[Any]:
    """The node for a call that gave `data`; while tracing is off it has no parents."""
    scope = _scope.get()
    if scope and not scope.tracing:
        return kind(data, op, (), False)
    # The usual call is one node for each argument, and needs no record of its own.
    if call.names == op.names and not (call.keywords or call.outside):
        depends = False
        for value in call.values:
            if not isinstance(value, Node):
                break
            depends = depends or value._depends
        else:
            return kind(data, op, call.values, depends)
    parents = tuple(call.inputs().values())
    return kind(data, op, parents, any(parent._depends for parent in parents), call)


_by_number = operator.attrgetter("_number")


def _ancestors(nodes: Iterable[AnyNode], depending: bool = False) -> list[AnyNode]:
    """The nodes and all they come from, parents first; or only those that depend on a parameter.

    A node is numbered after its parents, so sorting by number is a topological order. The ancestors
    of the first node come first, so that programs which ran side by side stay apart; each group
    holds all its ancestors that no group before it has, so the whole is in order too.
    """
    found, order = set[int](), list[AnyNode]()
    for start in nodes:
        stack, new = [start], []
        while stack:
            each = stack.pop()
            if each._number not in found and (each._depends or not depending):
                found.add(each._number)
                new.append(each)
                stack.extend(each.parents)
        order += sorted(new, key=_by_number)
    return order


# fmt: off
_define("identity", lambda x: x, "x itself")
_define("pow", pow, "pow(x, y, modulus)", "x", "y", "modulus")
_define("cond", lambda test, a, b: a if test else b,
        "a if test is true, else b", "test", "a", "b")
_define("not_", operator.not_, "not x")
_define("is_", operator.is_, "x is y", "x", "y")
_define("is_not", operator.is_not, "x is not y", "x", "y")
_define("in_", lambda x, y: x in y, "x in y", "x", "y")
_define("not_in", lambda x, y: x not in y, "x not in y", "x", "y")
_define("concat", lambda *parts: reduce(operator.add, parts),
        "the parts joined by +", "x", "y")
_define("ord_", ord, "the code point of the character x")
_define("chr_", chr, "the character with code point x")
_define("make_list", lambda *items: [*items], "a list of the items", "x")
_define("make_tuple", lambda *items: items, "a tuple of the items", "x")
_define("make_set", lambda *items: {*items}, "a set of the items", "x")
_define("make_dict", lambda **items: items, "a dict of the items")
_define("list_extend", lambda x, y: [*x, *y],
        "a new list: x with the items of y at its end", "x", "y")
_define("dict_update", lambda x, y: {**x, **y},
        "a new dict: x with the items of y put over it", "x", "y")
# fmt: on
for _kind in (list, tuple, set, dict):
    _define(f"to_{_kind.__name__}", _kind, f"{_kind.__name__}(x)")


# ---- 2. Forward ----------------------------------------------------------------------------------
#
# What is recorded while a program runs?  Each call of a function marked `@bundle`, as one node.
#
#       question ─┐
#                 ├── answer ── answer:0          one node, whatever happens inside
#       style ────┘
#
# The body sees plain values. If it fails, the node is an ExceptionNode and its message is feedback;
# if it looks at a node that was not an argument, that is noticed. Last come modules, which hold
# parameters. Left out: functions whose code may change (section 4), feedback (section 3).


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
    """What a failed call leaves behind: a node whose data is `(TypeName) message`.

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


def _fail(op: _Op, call: _Call, error: Any) -> NoReturn:
    """Raise the `ExecutionError` of a failed call; its message is that of the innermost bundle.

    An error of minitrace's own, such as an `LLMError`, is not the program's failure and is raised
    as it is, except an inner `ExecutionError`, or one whose attribute `failure` says that it is.
    """
    kind = type(error)  # `isinstance` would ask the error, which may raise in turn
    if issubclass(kind, ExecutionError):
        inner, original = error.exception_node, error.__cause__ or error
        message, full = inner.data, inner.create_feedback("full")
    elif issubclass(kind, MinitraceError) and not hasattr(error, "failure"):
        raise error
    else:
        message, source = _failure(error)
        full, original = message + source, error
    failed: Any = _record(op, call, message, ExceptionNode)
    failed._full = full
    raise ExecutionError(failed) from original


class _Scope:
    """What surrounds a line of code as it runs: a bundle's body, `stop_tracing` or `rerun`.

    `_scope` holds the innermost. While a bundle's body runs, `Node.data` reports here, and that is
    how a node from outside is noticed.

    `key` says whose body it is: a bundle, or its code where that may change. `reads` collects the
    nodes from outside that a bundle's body looks at. `replacements` holds what is read instead
    of some of them during a `rerun`, by their numbers.
    """

    tracing = True
    key: object = None
    replacements: Mapping[int, AnyNode] = {}

    def begin(self) -> None:
        """Surround what runs from here on in this thread or task, until `_scope` is set again."""
        self.outer = outer = _scope.get()
        self.first = next(_numbers)  # every node made before has a lower number
        self.reads: dict[int, AnyNode] = {}
        if outer:
            self.tracing &= outer.tracing
            self.replacements = outer.replacements
        _scope.set(self)

    def read(self, node: AnyNode) -> Any:
        """The node's data, noted as read when the node was made before this scope began."""
        current = self.replacements.get(node._number, node)
        if self.tracing and node._number < self.first:
            self.reads[node._number] = current
        return current._data

    def runs(self, key: object) -> bool:
        """Whether this bundle or code is running already, here or further out: then a call
        recurses, and is not recorded."""
        return self.key is key or bool(self.outer and self.outer.runs(key))


@contextmanager
def stop_tracing() -> Iterator[None]:
    """A block in which nothing is recorded: results are nodes without parents.

    It holds for this thread or task only, and nests.

    >>> x = node(1)
    >>> with stop_tracing():
    ...     y = x + 1
    >>> y.data, y.parents
    (2, ())
    """
    scope, around = _Scope(), _scope.get()
    scope.tracing = False
    try:
        scope.begin()
        yield
    finally:
        _scope.set(around)  # a single call of C code, which Ctrl-C cannot interrupt


def _is_code(node: AnyNode) -> bool:
    """Whether it is the source of a function that may change: see section 4."""
    return getattr(getattr(node, "check", None), "func", None) is check_code


class _Body(_Scope):
    """The body of a bundle as it runs: a scope that says which nodes it read, and how it failed."""

    held: Any = ()  # what it could change in place, as it was

    def __init__(self, bundle: Bundle[..., Any], call: _Call, key: object) -> None:
        self.bundle, self.call, self.key = bundle, call, key

    def __enter__(self) -> None:
        self.arguments = self.call.data()
        if not _SIMPLE.issuperset(map(type, self.arguments)):
            inputs = self.call.inputs().items()
            self.held = [(name, each._data, _held_by(each._data)) for name, each in inputs]
        # Threads that are older than the body work for others; see `_read_elsewhere` in section 6.
        self.threads = {*sys._current_frames()} if _thread._count() else ()
        self.thread, self.hooks = get_ident(), _hooks.get()
        self.begin()
        _bodies.add(self)  # last, since other threads look at it from here on

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        """Warn of arguments changed in place, add nodes from outside to `call`, and raise the
        `ExecutionError` of a failure."""
        _bodies.discard(self)
        if _scope.get() is self:  # else this is another context, in which a coroutine ended
            _scope.set(self.outer)
        if error is not None and not isinstance(error, Exception):
            return
        for name, data, before in self.held:
            if [*map(id, before)] != [*map(id, _held_by(data))]:
                words = "in place: the graph shows the changed value as its input; work on a copy"
                name += f", a {type(data).__name__},"
                warn(f"{self.bundle.__name__}() changed its argument {name} {words}", stacklevel=4)
        if self.reads:
            self._keep_outside()
        if error is not None and self.bundle.options["catch_execution_error"]:
            _fail(self.bundle.op, self.call, error)

    def _keep_outside(self) -> None:
        """Add the outside nodes as parents, or refuse those that are not allowed."""
        given = {each._number for value in self.call.values for each in _inside(value)}
        outside = {n: each for n, each in self.reads.items() if each._number not in given}
        strays = ", ".join(each.name for each in outside.values() if not _is_code(each))
        if strays and not self.bundle.options["allow_external_dependencies"]:
            error = TraceMissingInputsError(
                f"{self.bundle.__name__}() used {strays}, which is not among its arguments: pass "
                "it as an argument, or use @bundle(allow_external_dependencies=True) to make it a "
                "parent"
            )
            if self.bundle.trainable and self.call.data()[0] != getattr(self.bundle, "source"):
                # New code fails like any other.
                setattr(error, "failure", (f"({type(error).__name__}) {error}", ""))
            _fail(self.bundle.op, self.call, error)
        self.call = self.call._replace(outside=outside)
        if around := _scope.get():
            for number, each in outside.items():
                if number < around.first or _is_code(each):  # code is made when first looked up
                    around.reads[number] = each


class Parameterized:
    """What has parameters, with a path for each: a module, or a bundle with its code."""

    def parameters_dict(self) -> dict[str, Parameter]:
        """Every parameter by its path."""
        raise NotImplementedError

    def parameters(self) -> list[Parameter]:
        """Every parameter, each once."""
        return list(self.parameters_dict().values())

    def state_dict(self) -> Fields:
        """The values of the parameters, by the paths of `parameters_dict`."""
        return {path: parameter.data for path, parameter in self.parameters_dict().items()}

    def load_state_dict(self, values: Options) -> None:
        """Set all parameters. All values are checked, code too, before any is set.

        Raises: `ValueError` that lists what is missing and extra, or says which value is wrong.
        """
        own = self.parameters_dict()
        missing, extra = sorted(own.keys() - values.keys()), sorted(values.keys() - own.keys())
        if missing or extra:
            raise ValueError(f"values of another module: missing {missing}, extra {extra}")
        checked = {path: own[path].checked(value) for path, value in values.items()}
        for path, value in checked.items():
            own[path].restore(value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict()` to a file as JSON, whole or not at all."""
        _save(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read values that `save` wrote, and hand them to `load_state_dict`."""
        try:
            self.load_state_dict(_load(path))
        except ValueError as error:
            raise ValueError(f"{os.path.basename(path)}: {error}") from None


class Bundle(Parameterized, Generic[P, T]):
    """A function whose calls are recorded: what `@bundle` makes. See `bundle`."""

    trainable = False

    def __init__(self, function: Function, options: Options) -> None:
        import inspect

        self.parameter: ParameterNode[str] = cast(Any, None)  # its code, if that may change
        update_wrapper(self, function)
        self.fun, self.options = function, options
        inner: Any = inspect.unwrap(function)
        while isinstance(inner, partial):
            inner = inner.func
        self._inner = inner
        self.__name__ = name = getattr(inner, "__name__", type(inner).__name__)
        self.__qualname__ = getattr(inner, "__qualname__", name).replace("<locals>.", "")
        # A decorator may make a function of another kind than the one inside it.
        outer = function.func if isinstance(function, partial) else function
        called: Any = outer if inspect.isroutine(outer) else type(outer).__call__
        self.is_async = inspect.iscoroutinefunction(called)
        if self.is_async:  # `inspect` looks at these
            self.__code__, self.__defaults__, self.__kwdefaults__ = called.__code__, None, None
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(f"{name}() is a generator, which runs after its call: return a list")
        self.traceable_code: bool = options["traceable_code"]
        self._read_signature()
        self.op = self._describe(inspect.getdoc(inner) or "")

    def _read_signature(self) -> None:
        """Read the signature once, so that a call need not."""
        import inspect

        options: Any = {"annotation_format": 4} if sys.version_info >= (3, 14) else {}  # as texts
        try:
            self.signature = inspect.signature(self.fun, **options)
        except Exception:  # some functions written in C have none, and annotations may fail
            self.signature = inspect.signature(lambda *args, **kwargs: None)
        parameters = self.signature.parameters.values()
        self._rest = "".join([p.name for p in parameters if p.kind == p.VAR_POSITIONAL])
        self._positional = tuple([p.name for p in parameters if p.kind < p.VAR_POSITIONAL])
        self._simple = len(self._positional) == len(parameters)

    def _describe(self, words: str) -> _Op:
        """The operator that its calls are recorded as."""
        name, description = self.__qualname__, self.options["description"]
        if description:
            named: Any = re.match(r"\s*(?:\[([^\]]+)\])?\s*(.*)", description, re.DOTALL)
            name, words = named[1] or name, named[2]
        return _Op(name, words.rstrip(), self._positional, self.fun, self.options["effects"], self)

    def _bind(self, args: tuple[Any, ...], kwargs: Fields) -> _Call:
        """The call with a name for every argument, defaults too; `TypeError` if it does not fit."""
        names = self._positional
        if self._simple and not kwargs and len(args) == len(names):
            return _Call(names, (*map(_wrap, args, names),))
        # A decorator has arguments of its own; a NumPy function does not take all its defaults.
        wraps = hasattr(self.fun, "__wrapped__") or hasattr(self.fun, "nargs")
        try:
            bound = self.signature.bind(*args, **kwargs)
            given = {*bound.arguments}
            bound.apply_defaults()
            if wraps:  # it gets what the caller gives, and defaults only where they are nodes
                kwargs |= {
                    n: v for n, v in bound.arguments.items() if n not in given and [*_inside(v)]
                }
            else:
                args, kwargs = bound.args, bound.kwargs
        except TypeError as error:
            if not wraps:
                raise TypeError(f"{self.__name__}() {error}") from None
            names = ()
        rest = [f"{self._rest or 'args'}_{i}" for i in range(len(args) - len(names))]
        names = (*names[: len(args)], *rest, *kwargs)
        return _Call(names, tuple(map(_wrap, (*args, *kwargs.values()), names)), len(kwargs))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        scope = _scope.get()
        if self.traceable_code or (scope and scope.runs(self)):
            return self._run_unrecorded(self.fun, args, kwargs)  # type: ignore
        return self._run(_Body(self, self._bind(args, kwargs), self))  # type: ignore

    def _run_unrecorded(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call the function as if it were not bundled; inside its own body, or when asked to."""
        result = function(*args, **kwargs)
        if self.traceable_code and not isinstance(result, CoroutineType):
            return node(result)
        return result

    def _run(self, body: _Body) -> Any:
        """Run the body, and record the call; of an async bundle, when it is awaited."""
        if self.is_async:
            return self._run_async(body)
        around = _scope.get()
        try:
            with body:
                data = to_data(body.call.invoke(self.op.function, body.arguments))
        finally:
            _scope.set(around)  # even if Ctrl-C came while the block was entered or left
            _bodies.discard(body)
        if isinstance(data, CoroutineType):  # of an async function, passed on
            return self._run_async(body, data)
        return _record(self.op, body.call, data)

    async def _run_async(self, body: _Body, begun: Any = None) -> MessageNode[Any]:
        with body:
            begun = begun or body.call.invoke(self.op.function, body.arguments)
            data = to_data(await begun)
        return _record(self.op, body.call, data)

    def parameters_dict(self) -> dict[str, Parameter]:
        """Its code, if that is trainable, by its name; of a method, the instance's own."""
        return {} if self.parameter is None else {self.__name__: self.parameter}

    def __get__(self, instance: Any, owner: Any = None) -> BoundCode[P, T]:
        return self if instance is None else MethodType(self, instance)  # type: ignore

    def __reduce__(self) -> str:
        return self.__qualname__  # a text: pickle looks the bundle up by this name

    def __repr__(self) -> str:
        return f"<bundle {self.__qualname__}{self.signature}>"


def _bundle(function: Any, options: Options) -> Any:
    """Bundle a function, or the one inside a staticmethod, a classmethod or a property."""
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(_bundle(function.__func__, options))
    if isinstance(function, property):
        return property(_bundle(function.fget, options), function.fset, function.fdel)
    if not callable(function):
        raise TypeError(f"@bundle marks a function, not {to_text(function, 60)}")
    return (CodeBundle if options["trainable"] else Bundle)(function, options)


# For type checkers: what `bundle` returns is generic.
@cast("Callable[[Any], _Mark]", lambda function: function)
def bundle(
    description: Any = None,
    *,
    trainable: bool = False,
    traceable_code: bool = False,
    catch_execution_error: bool = True,
    allow_external_dependencies: bool = False,
    projections: Iterable[Function] = (),
    source: str | None = None,
    limits: Any = None,
    effects: bool = False,
) -> Any:
    """Mark a function: each call becomes one node, whose parents are the arguments.

    Use it with or without parentheses, on functions, methods and `async def`. The body works on
    plain values; a container that holds nodes is unwrapped, and each of them is a parent. A body
    that changes its arguments in place falsifies the graph, and a warning says so; it looks into
    built-in containers, up to a thousand items, but not into NumPy arrays or your own objects.
    A bundle whose code may change can `save(path)` and `load(path)` it.

    Args:
        description: `"[op_name] what it does"`; the function's name and docstring by default.
        trainable: make the function's source a parameter, which an optimizer may rewrite.
        traceable_code: record each operator in the body instead of one node for the call.
        catch_execution_error: turn a failure into a node and raise `ExecutionError`.
        allow_external_dependencies: nodes that the body uses beside its arguments become parents.
        projections: functions that turn new code into code that is allowed.
        source: the source, where Python keeps none (`python -c`, `exec`).
        limits: an object that checks and runs the code: `check(source)` raises `ValueError`,
            `run(source, name, args, kwargs)` calls it. The companion `minitrace_limits` has one.
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
    ('Hello Ada', ['greet_code', 'name'])
    >>> greet.parameter.set("def greet(name):\\n    return 'Hi, ' + name + '!'")
    >>> greet("Ada").data
    'Hi, Ada!'

    Source: Trace, arXiv:2406.16218, where it is `trace.bundle`.
    """
    options = locals()  # every argument by its name
    if description is None or isinstance(description, str):
        return partial(_bundle, options=options)
    # A bare `@bundle`: the function came as the description.
    return _bundle(description, {**options, "description": None})


class Module(Parameterized):
    """An object with parameters: what `torch.nn.Module` is to tensors.

    Parameters are found in attributes that are parameters, trainable bundles, modules, or lists,
    tuples and dicts of these at any depth; a property is never run. The code of a method that a
    subclass overrides is among them only if the new method calls it. Calling a module runs
    `forward`.

    >>> class Greeter(Module):
    ...     def __init__(self):
    ...         self.words = [node("Hello", name="word", trainable=True)]
    ...     def forward(self, name):
    ...         return self.words[0] + ", " + name
    >>> greeter = Greeter()
    >>> greeter("Ada").data, greeter.state_dict()
    ('Hello, Ada', {'words.0': 'Hello'})
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a call runs: yours to write."""
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with parameters {', '.join(self.parameters_dict())}>"

    def parameters_dict(self) -> dict[str, Parameter]:
        """Every parameter by the dotted path of attributes that leads to it first."""
        found = dict[str, Parameter]()
        for path, parameter in _parameters_in("", self, set()):
            found[_unused_name(path, found)] = parameter
        return found

    def copy(self) -> Any:
        """A new object of the same class that shares every attribute, parameters too."""
        self.parameters()  # a method's code is copied when first looked up: do it now, to share it
        return copy.copy(self)


def model(cls: type[Any]) -> type[Any]:
    """Make a plain class a `Module` with the same name and docstring; `isinstance` still works.

    >>> @model
    ... class Counter:
    ...     "It counts."
    ...     def __init__(self):
    ...         self.step = node(1, name="step", trainable=True)
    >>> Counter.__name__, Counter.__doc__, len(Counter().parameters())
    ('Counter', 'It counts.', 1)
    """
    anew = "__dict__ __weakref__ __slots__"  # which `type()` makes
    own = {name: value for name, value in vars(cls).items() if name not in anew.split()}
    # The copy holds the methods too, so that tools find them in the new class. What the
    # `__init_subclass__` of a base class does was done for `cls`, and is not done again.
    setattr(cls, "__init_subclass__", classmethod(lambda cls: None))
    made = type(cls.__name__, (cls, Module), own)
    delattr(cls, "__init_subclass__")
    return made


# ---- 3. Backward ---------------------------------------------------------------------------------
#
# How does feedback reach what may change?  From the output to the parents, the last made first.
#
#       x:0 ──┐                           output.backward("too small")
#             ├── add:0 ── multiply:0 ◄── the walk: multiply:0, add:0, then y:0 and x:0,
#       y:0 ──┘                           each once, after every node made from it
#
# A propagator says how feedback starts, how feedback from several children merges, and what each
# parent receives. Adding numbers gives gradients; passing on one shared TraceGraph gives what Trace
# does. The walk never changes the graph.
# Left out: what the parameters should become (section 5).


class GraphError(MinitraceError):
    """A trace graph that cannot be read or used: it says what is wrong, and at which node.

    >>> TraceGraph.from_json('{"nodes": [{"id": "x"}, {"id": "x"}]}')
    Traceback (most recent call last):
    minitrace.GraphError: nodes[1] (x): the id is used twice
    """


class Output(NamedTuple):
    """An output, what was said of it, and its score if there was one (higher is better).

    >>> x = node(1, name="x", trainable=True)
    >>> backward(x, "too small", score=0.5)[x].outputs[0].score
    0.5
    """

    node: AnyNode
    feedback: Any
    score: float | None = None
    extra: Mapping[str, Any] = {}


Rule = Callable[["Node[Any]", Any], "Sequence[Any]"]


class Propagator:
    """How feedback flows: a few small methods, which a subclass may redefine.

    `init_feedback` says how it starts (`start`, which calls it, does so for all outputs at once),
    `aggregate` how feedback from several children merges, `propagate` what each parent receives.
    `register` overrides `propagate` for one operator.

    The derivatives of a sum and of a product are enough for a first gradient:

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

    def init_feedback(self, node: AnyNode, feedback: Any) -> Any:
        """What an output itself receives."""
        return feedback

    def start(self, outputs: Sequence[Output]) -> list[Any]:
        """What each of several outputs receives: `init_feedback` of each, unless they share it."""
        return [self.init_feedback(each.node, each.feedback) for each in outputs]

    def aggregate(self, feedbacks: list[Any]) -> Any:
        """One feedback from those that the children of a node sent, the first child's first."""
        raise NotImplementedError(f"{type(self).__name__} has no aggregate()")

    def propagate(self, node: AnyNode, feedback: Any) -> Sequence[Any]:
        """What each of `node.parents` receives: the same, unless told otherwise."""
        return [feedback] * len(node.parents)

    def __call__(self, node: AnyNode, feedback: Any) -> Sequence[Any]:
        """`propagate`, or what was registered for the node's operator."""
        sent = self._rules.get(node.op_name, self.propagate)(node, feedback)
        listed = isinstance(sent, _LISTS)
        if not listed or len(sent) != len(node.parents):
            said = f"{len(sent)} feedbacks" if listed else to_text(sent, 80)
            raise ValueError(
                f"{node.op_name} at {node.name}: {said} for {len(node.parents)} parents; a rule "
                "gives a list with one feedback for each of node.parents"
            )
        return sent


class _JoinedText(str):
    """Several texts joined, that remembers them, so that a text that arrives twice is said once."""

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
        texts = [feedback for feedback in said if isinstance(feedback, str)]
        if len(said) < 2 or not texts:
            return reduce(operator.add, said) if said else None
        if len(texts) < len(said):
            raise TypeError(
                f"feedback in words and in numbers does not add up: {to_text(said, 200)}"
            )
        pieces = [piece for text in said for piece in getattr(text, "pieces", (text,))]
        distinct = tuple(dict.fromkeys(pieces))
        joined = _JoinedText("\n".join(distinct))
        joined.pieces = distinct
        return joined


class GraphPropagator(Propagator):
    """Feedback that carries the graph along: every node it passes joins one `TraceGraph`.

    One backward makes one graph, shared by all the parameters it reaches. A rule that is registered
    here must add its node itself.

    >>> x = node(1, name="x", trainable=True)
    >>> (x + 1).backward("too small")
    >>> graph = x.feedback[0]
    >>> [graph.kind(each) for each in graph], graph.feedback
    (['parameter', 'input', 'operator'], ['too small'])

    Source: Trace, arXiv:2406.16218, where it is the minimal subgraph propagator.
    """

    def start(self, outputs: Sequence[Output]) -> list[Any]:
        """One new graph for all the outputs, with what was said of each."""
        return [TraceGraph(outputs)] * len(outputs)

    def aggregate(self, feedbacks: list[TraceGraph]) -> TraceGraph:
        """They are all the same graph."""
        return feedbacks[0]

    def propagate(self, node: AnyNode, feedback: TraceGraph) -> Sequence[Any]:
        """The graph, with this node in it."""
        feedback.add(node)
        return [feedback] * len(node.parents)


def backward(
    output: AnyNode | Sequence[AnyNode],
    feedback: Any = "",
    propagator: Propagator | None = None,
    *,
    score: Any = None,
) -> dict[AnyNode, Any]:
    """Carry feedback from an output to every node that lies between it and a parameter.

    Every node is visited after all its children, so it has heard from each of them. Takes time
    linear in the graph, apart from a sort, and leaves the graph as it was.

    Args:
        output: a node, or a list of nodes.
        feedback: any object, often words; `None` is allowed. For several outputs a list, or one
            feedback on all of them.
        propagator: how it flows; a `GraphPropagator` by default.
        score: a number, higher is better; for several outputs a list, or one for all of them.

    Returns: a dict from each node that was reached to its merged feedback; empty, with a warning,
        if no parameter was. Nothing is stored; `node.backward` does that.

    >>> GRAPH.clear()
    >>> x, y = node(2, name="x", trainable=True), node(3, name="y")
    >>> found = backward(x + y, "too small", SumPropagator())
    >>> [(each.py_name, words) for each, words in found.items()]
    [('add0', 'too small'), ('x0', 'too small')]

    Source: reverse-mode differentiation. Creation order replaces Kahn's topological sort (1962).
    """
    return _carried_back(_outputs(output, feedback, score), propagator)


def _carried_back(outputs: Sequence[Output], propagator: Propagator | None) -> dict[AnyNode, Any]:
    """What `backward` returns."""
    if propagator is None:
        propagator = GraphPropagator()
    # A node hears from its last child first: all lists are filled backwards, and reversed
    # before they are merged. Roots are propagated too: that is how a parameter joins a trace graph.
    heard = defaultdict[int, list[Any]](list)
    for each, start in zip(reversed(outputs), reversed(propagator.start(outputs)), strict=True):
        heard[each.node._number].append(start)
    reached = dict[AnyNode, Any]()
    for node in reversed(_ancestors([each.node for each in outputs], depending=True)):
        reached[node] = merged = propagator.aggregate(heard.pop(node._number)[::-1])
        sent_back = propagator(node, merged)
        for parent, sent in zip(reversed(node.parents), reversed(sent_back), strict=True):
            if parent._depends:
                heard[parent._number].append(sent)
    if doubt := _doubt(reached):
        names = ", ".join(each.node.name for each in outputs)
        warn(f"backward from {names}{doubt}", stacklevel=3)
    return reached


def _doubt(reached: Collection[Any]) -> str:
    """Why the feedback may be lost or wrong: no parameter is reached, or one changed since a node
    was computed from it."""
    if not reached:
        return (
            " reaches no parameter: a trace ends where a value is read plainly, by ==, "
            "bool, int(), an f-string or .data, and in stop_tracing"
        )
    changes = (each._changes for each in reached if each.trainable)
    newest = max([each[-1][0] for each in changes if each], default=0)
    pairs = ((p, each) for each in reached if each._number < newest for p in each.parents)
    changed = (p.name for p, each in pairs if p.trainable and _changed_since(p, each._number))
    names = ", ".join(dict.fromkeys(changed))
    return f": it used an older value of {names}; run the program again" if names else ""


def _outputs(output: AnyNode | Sequence[AnyNode], feedback: Any, score: Any) -> list[Output]:
    """Each output with its feedback and score; a single one of these is that of every output."""
    several = isinstance(output, _LISTS)
    nodes: Any = output if several else [output]
    words = feedback if several and isinstance(feedback, _LISTS) else [feedback] * len(nodes)
    scores = score if isinstance(score, _LISTS) else [score] * len(nodes)
    for each in nodes:
        if not isinstance(each, Node):
            raise TypeError(
                f"backward() starts from a node, not {to_text(each, 60)}: was it read with .data?"
            )
    if not len(nodes) == len(words) == len(scores):
        said = f"{len(nodes)} outputs, {len(words)} feedbacks, {len(scores)} scores"
        raise ValueError(f"backward(): {said}")
    return list(map(Output, nodes, words, map(_as_score, scores)))


def _as_score(score: Any) -> float | None:
    """A score as a float, if it is a number; nan is ignored."""
    if score is None:
        return None
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"backward(): a score is a number, not {to_text(score, 60)}") from None
    if number == number:
        return number
    warn("a score of nan is ignored", stacklevel=4)
    return None


def _store(reached: Mapping[AnyNode, Any]) -> None:
    """Keep on each parameter what backward brought there."""
    for each, feedback in reached.items():
        if each.trainable:
            each.feedback.append(feedback)


class TraceGraph:
    """The part of a graph between parameters and outputs, with the feedback, for an optimizer.

    It is the nodes themselves, what was said of the outputs, and the values that the parameters
    had, since only parameters ever change. Iterating gives the nodes, parents first.

    Attributes:
        outputs: an `Output` for each node that backward started from.
        values: the parameters, and the value of each as it was.
        extra: the fields of a JSON form that this version does not know.

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

    def __init__(self, outputs: Iterable[Output] = ()) -> None:
        self.outputs = [*outputs]
        self.values: dict[AnyNode, Any] = {}
        self.extra: Fields = {}
        self.named: dict[AnyNode, str] = {}  # names that an optimizer gave to its parameters
        self.specs: dict[AnyNode, Fields] = {}  # of nodes that were read from JSON
        self._added: deque[AnyNode] = deque()  # parents first: backward adds at the left

    @classmethod
    def of(cls, *nodes: AnyNode) -> TraceGraph:
        """The whole graph above some nodes, with or without parameters."""
        graph = cls(Output(each, None) for each in nodes)
        for each in reversed(_ancestors(nodes)):
            graph.add(each)
        return graph

    @classmethod
    def merged(cls, graphs: Iterable[TraceGraph]) -> TraceGraph:
        """One graph of several: shared nodes once, all the outputs."""
        whole = cls()
        distinct = {id(graph): graph for graph in graphs}.values()
        for graph in distinct:
            whole._added += graph._added
            whole.values.update(graph.values)
            whole.specs.update(graph.specs)
            whole.outputs += graph.outputs
            whole.extra.update(graph.extra)
        if len(distinct) > 1:  # of one, the order stays
            whole._added = deque(sorted(set(whole._added), key=_by_number))
        return whole

    def add(self, node: AnyNode) -> None:
        """Add a node; call for children before their parents, as backward does."""
        self._added.appendleft(node)
        if node.trainable:
            self.values[node] = node._data
        if "_nodes" in self.__dict__:  # the cached properties are out of date
            for derived in "_nodes", "names", "_children":
                self.__dict__.pop(derived, None)

    @cached_property
    def _nodes(self) -> dict[AnyNode, bool]:
        """The nodes, parents first. True: backward passed here, and its parents are shown. False:
        it feeds the graph from the side, no parameter in it, and is shown as a leaf."""
        added = set(self._added)
        found = {each.node: False for each in self.outputs if each.node not in added}
        for node in self._added:
            for parent in node.parents:
                found.setdefault(parent, False)
            found[node] = True
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> TraceGraph:
        return self  # it says what happened, and its nodes are not to be told from their copies

    def __iter__(self) -> Iterator[AnyNode]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __repr__(self) -> str:
        said = ", ".join(to_text(words, 60) for words in self.feedback)
        return f"<TraceGraph of {len(self)} nodes, {len(self.outputs)} outputs: {said}>"

    def kind(self, node: AnyNode) -> str:
        """What a node is here: "parameter", "input", "operator" or "exception"."""
        if node in self.values:
            return "parameter"
        if not self.parents(node):
            return "input"
        return "exception" if isinstance(node, ExceptionNode) else "operator"

    def value(self, node: AnyNode) -> Any:
        """The data of a node; of a parameter, as it was at backward."""
        return self.values.get(node, node._data)

    def parents(self, node: AnyNode) -> Nodes:
        """The parents of a node; `()` of one that only feeds the graph from the side."""
        return node.parents if self._nodes.get(node) else ()

    def children(self, node: AnyNode) -> list[AnyNode]:
        """The nodes computed from this one, in topological order."""
        return self._children.get(node, [])

    @cached_property
    def _children(self) -> dict[AnyNode, list[AnyNode]]:
        found = dict[AnyNode, list[AnyNode]]()
        for node in self:
            for parent in dict.fromkeys(self.parents(node)):
                found.setdefault(parent, []).append(node)
        return found

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters it can update."""
        return [node for node in self if isinstance(node, ParameterNode)]

    @property
    def ids(self) -> dict[AnyNode, Any]:
        """The id of each node in the JSON form: the one it was read with, or else its name."""
        return _ids(self)

    @property
    def feedback(self) -> list[Any]:
        """What was said of each output."""
        return [output.feedback for output in self.outputs]

    @property
    def score(self) -> float | None:
        """The mean of the scores that were given."""
        scores = [output.score for output in self.outputs if output.score is not None]
        mean = sum(scores) / len(scores) if scores else None
        return mean if mean == mean else None  # inf and -inf have none

    @cached_property
    def names(self) -> dict[AnyNode, str]:
        """A name for each node: an identifier that no other node here has.

        Parameters keep their own. The others are counted in the order of this graph, so that what
        ran before, or beside it in another thread, changes nothing.
        """
        taken = dict[str, AnyNode]()
        counts: dict[str, Iterator[int]] = defaultdict(count)
        first = sorted(self, key=lambda node: (node not in self.named, not node.trainable))
        for node in first:  # parameters, and of these an optimizer's own
            own = node.py_name if node.trainable or node in self.specs else ""
            name = self.named.get(node, own)
            while not name or name in taken:
                name = _identifier(f"{node._base}{next(counts[node._base])}")
            taken[name] = node
        return {node: name for name, node in taken.items()}

    def tree(self, ascii: bool | None = None, lines: int = 200) -> str:
        """The graph as a text tree, its outputs on top, in `lines` of at most 90 characters and one
        that says how much is left out.

        It is plain text: ASCII if you ask for it, or if standard output is not UTF-8.

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


# ---- 4. Code -------------------------------------------------------------------------------------
#
# What if the function itself may change?  Its source becomes a parameter, and each call an operator
# on that parameter and the arguments:
#
#       answer_code ─┐
#                    ├── answer ── answer:0
#       question ────┘
#
# So the source has to be found, new source has to be checked, and what was accepted compiled where
# the old function stood: with its globals, its closure and its defaults. Code from a language model
# is text that Python runs, and a check is not a sandbox: see `check_code`. Left out: who writes it.


_files = count()


class CodeBundle(Bundle[..., Any]):
    """A bundle whose source code is a parameter: what `@bundle(trainable=True)` makes."""

    trainable = True
    _owner = cast(Any, (None, ""))  # the class that it is a method of, and its name there

    def __init__(self, function: Function, options: Options) -> None:
        import textwrap

        super().__init__(function, options)
        name, self.limits = self.__name__, options["limits"]
        if name == "<lambda>":
            raise TypeError("a lambda cannot be trainable: its source has no name; use def")
        self.source = textwrap.dedent(options["source"] or "").strip("\n")
        self._locals: Fields = {}
        with catch_warnings():  # Python showed the compiler's when it loaded the file
            simplefilter("ignore")
            if not self.source:
                self.source, self._locals = _source_of(self._inner)
            header = _signature_text(self.source, name)
            if header[0] != "@" and getattr(function, "__func__", function) is not self._inner:
                raise TypeError(
                    f"new code would lose what is around {name}(), which its source does not show: "
                    "write it, and @bundle over it, at the def"
                )
            self.parameter = ParameterNode(
                self.source,
                f"{name}_code",
                f"the source code of {name}",
                constraint=f"it defines: {header.splitlines()[-1]}",
                projections=options["projections"] or (),
                check=partial(check_code, name=name, signature=header, limits=self.limits),
            )
        self.parameter._index = None  # it is called after its function
        self._function_of = lru_cache(16)(self._compile)

    def _describe(self, words: str) -> _Op:
        op = super()._describe(words)
        named = op.name if op.name != self.__qualname__ else self.__name__
        names = f"{self.__name__}_code", *op.names
        return op._replace(name=named, names=names, function=self._evaluate)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        parameter, scope = self.code_of(args[0] if args else None), _scope.get()
        if self.traceable_code or (scope and scope.runs(parameter)):
            return self._run_unrecorded(partial(self._evaluate, parameter._data), args, kwargs)
        if scope and scope.tracing:  # made here or not, it is an input from outside
            scope.reads[parameter._number] = parameter
        call = self._bind(args, kwargs)
        names = f"{self.__name__}_code", *call.names
        call = call._replace(names=names, values=(parameter, *call.values))
        return self._run(_Body(self, call, parameter))

    def code_of(self, instance: Any) -> ParameterNode[str]:
        """The code parameter of this bundle as `instance` has it: each instance owns its copy."""
        shared = self.parameter
        (owner, name), classes = self._owner, type(instance).__mro__
        state = getattr(instance, "__dict__", None)
        if owner not in classes or type(state) is not dict:
            return shared
        key = f"code of {name}, {classes.index(owner)}"  # a class and its base may share a name
        if key not in state:
            state[key] = shared._as_root(shared._data, shared._base)
        return cast("ParameterNode[str]", state[key])

    def _evaluate(self, code: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run the code that the parameter holds now."""
        if self.limits is not None:
            return self.limits.run(code, self.__name__, args, kwargs)
        if code == self.source:
            return self.fun(*args, **kwargs)
        try:
            return self._function_of(code)(*args, **kwargs)
        except (SystemExit, GeneratorExit) as error:  # proposed code does not end the program
            raise RuntimeError(f"the code raised {type(error).__name__}") from error

    def _compile(self, text: str) -> Any:
        """The function that a text defines, with the original's globals, closure and defaults."""
        original = self._inner if isinstance(self._inner, FunctionType) else _signature_text
        inside = zip(original.__code__.co_freevars, original.__closure__ or (), strict=True)
        cells = {name: CellType(value) for name, value in self._locals.items()} | dict(inside)
        cells.setdefault("__class__", CellType(self._owner[0]))  # for super()
        given = [*(original.__defaults__ or ()), *(original.__kwdefaults__ or {}).values()]
        cells |= {f"_default_{n}": CellType(value) for n, value in enumerate(given)}
        code = self._compile_in_closure(text, cells)
        closure = tuple([cells[name] for name in code.co_freevars])
        function = FunctionType(code, original.__globals__, self.__name__, None, closure)()
        if isinstance(function, FunctionType):
            function.__qualname__ = original.__qualname__
        return function

    def _compile_in_closure(self, text: str, free: Iterable[str]) -> CodeType:
        """The code of a function that, called, defines what the text defines and returns ours.

        It is nested in a function that holds the free names, so that it can be given the living
        cells of a closure, and in a class, so that private names work. Its globals are those of its
        caller, and nothing is written there.
        """
        import ast
        import linecache

        # The names of files are reused, so that entries of the cache are replaced, and none is
        # removed while another thread iterates over it.
        filename, name = f"<code {next(_files) % 1024}>", self.__name__
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
        owner = getattr(self._owner[0], "__name__", "_")
        outer = f"class {owner}:\n def outer():\n  {' = '.join(free)} = None"
        # The name is the maker's own, or a text that defines another would get the bundle itself.
        tree: Any = ast.parse(
            f"{outer}\n  def maker():\n   if 0: {name} = 0\n   try: return {name}\n   except "
            f"NameError: raise ValueError('the code defines no function `{name}`') from None"
        )
        parts: Any = ast.parse(text, filename).body
        body = [part for part in parts if getattr(part, "module", "") != "__future__"]
        for part in body:
            part.is_lazy = 0  # no import in a function can be lazy
        for function in _definitions(body, name):
            n = count()  # the defaults are those of the original
            for old in function.args.defaults, function.args.kw_defaults:
                old[:] = [each and ast.Name(f"_default_{next(n)}", ast.Load()) for each in old]
        tree.body[0].body[0].body[1].body[:0] = body
        ast.fix_missing_locations(tree)
        code = compile(tree, filename, "exec")  # the imports from __future__ are those of this file
        for _ in "class", "outer", "maker":
            code = next(part for part in code.co_consts if isinstance(part, CodeType))
        return code

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner, name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else BoundCode(self, instance)


Q = ParamSpec("Q")


class BoundCode(Parameterized, Generic[P, T]):
    """A bundle with code seen through an instance, its first argument, which owns its code."""

    def __init__(self, bundle: CodeBundle, instance: Any) -> None:
        update_wrapper(self, MethodType(bundle, instance), updated=())

    # A type checker does not see what is bound, since classmethod or staticmethod may stand around.
    @overload
    def __call__(
        self: BoundCode[Concatenate[Any, Q], T], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> T: ...
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    @property
    def parameter(self) -> ParameterNode[str]:
        """The instance's own code parameter."""
        return self.__func__.code_of(self.__self__)  # type: ignore

    parameters_dict = Bundle.parameters_dict

    def __get__(self, *_: Any) -> BoundCode[P, T]:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundCode) and self.__wrapped__ == other.__wrapped__

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __reduce__(self) -> Any:
        return BoundCode, (self.__func__, self.__self__)

    def __repr__(self) -> str:
        return f"{self.__func__!r} of {type(self.__self__).__name__}"


if TYPE_CHECKING:

    class _Mark(Protocol):
        """What `bundle` makes of a function, for type checkers: its calls give nodes."""

        @overload
        def __call__(  # type: ignore[overload-overlap]
            self, function: Callable[P, Coroutine[Any, Any, T]], /
        ) -> Bundle[P, Coroutine[Any, Any, MessageNode[T]]]: ...
        @overload
        def __call__(self, function: Callable[P, T], /) -> Bundle[P, MessageNode[T]]: ...
        @overload
        def __call__(self, description: str | None = None, **options: Any) -> _Mark: ...


# Which parameters does a module have? Those in its attributes, and the code of its methods.


def _parameters_in(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The parameters in a value, each with its path. What was seen is not entered again."""
    if isinstance(value, (CodeBundle, BoundCode)):
        value = value.parameter
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, ParameterNode):
        yield path, value
    for name, item in _attributes(value):
        yield from _parameters_in(f"{path}.{name}".lstrip("."), item, seen)


def _attributes(value: Any) -> Iterable[tuple[Any, Any]]:
    """The items of a container, or the attributes of a module: its own, then its classes'."""
    if isinstance(value, _DICTS):
        return list(value.items())
    if not isinstance(value, Module):
        return enumerate(_in_order(value) if isinstance(value, _CONTAINERS) else ())
    own = {name: item for name, item in vars(value).items() if not name.startswith("code of ")}
    codes, seen, called = [], Fields(), set[Any]()
    inside = {property: "fget", cached_property: "func"}  # what may be in what may run
    for kind in type(value).__mro__:
        calls = set[Any]()
        for name, item in vars(kind).items():
            if isinstance(item, MemberDescriptorType):  # of __slots__
                own[name] = getattr(value, name, None)
            while not isinstance(item, Bundle) and (
                inner := getattr(item, inside.get(type(item), "__wrapped__"), None)
            ):
                item = inner
            # What was redefined counts if code before it calls it: by super(), or by its class.
            ways = {("super", name), (kind.__name__, name)}
            if seen.get(name, item) is item or ways & called:
                path = f"{kind.__name__}.{name}" if name in seen else name
                if isinstance(item, CodeBundle):
                    codes.append((path, item.code_of(value)))
                seen[name] = item
                calls |= _calls_in(getattr(getattr(item, "_inner", item), "__code__", None))
            called -= ways
            own.setdefault(name, None if isinstance(item, Bundle) else item)
        called |= calls
    return [*own.items(), *codes]


@lru_cache(4096)
def _calls_in(code: Any) -> set[Any]:
    """What some code may call: `("x", "m")` for x.m(), `("super", "m")` for super().m()."""
    import dis

    steps = dis.get_instructions(code) if isinstance(code, CodeType) else ()
    names = [f"{'.' * step.opname.endswith(('_ATTR', '_METHOD'))}{step.argval}" for step in steps]
    pairs = re.findall(r"(\w+) \.(\w+)", re.sub(r"\bsuper( \w+)+", "super", " ".join(names)))
    return {*pairs}.union(*map(_calls_in, getattr(code, "co_consts", ())))


# Where is the source of a function, and which part of it did its author write?


def _source_of(function: Any) -> tuple[str, Fields]:
    """The source of a function as its author wrote it, dedented, without its bundle decorator.

    Decorators above `@bundle` wrap the bundle, not the function, and go too; those below stay. The
    second result holds the local names that those below need.
    """
    import linecache

    code: Any = getattr(function, "__code__", None)
    file, space = getattr(code, "co_filename", ""), getattr(function, "__globals__", None)
    before = linecache.getlines(file, space)
    with suppress(AttributeError):  # what is typed at a prompt, from Python 3.13 on
        before = before or getattr(linecache, "_getlines_from_code")(code)
    linecache.checkcache(file)
    for lines in linecache.getlines(file, space), before:  # a file may change after it was loaded
        if found := _definition_of(code, "".join(lines)):
            local = _drop_bundle(found, code)
            return _lines_of(found, lines), local
    called = getattr(function, "__qualname__", function)
    remedy = "it has changed since it was loaded: load it again" if before else "write it in a file"
    remedy += ", or give the source as bundle(trainable=True, source=text)"
    raise ValueError(f"the source of {called} cannot be read (from {file or None}): {remedy}")


def _definition_of(code: CodeType, text: str) -> Any:
    """The definition of the function with this code in the text of its file; None if that has
    changed. A tool such as pytest may have put more into the code than the author wrote."""
    import __future__

    import ast

    try:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as in a notebook
        flags |= code.co_flags & __future__.annotations.compiler_flag
        tree, codes = ast.parse(text), [compile(text, "", "exec", flags, True)]
    except (SyntaxError, AttributeError):  # a function written in C has no code
        return None
    for each in codes:  # it grows on the way
        codes += [part for part in each.co_consts if isinstance(part, CodeType)]
    more = [(c.co_name, c.co_firstlineno, {*c.co_names} < {*code.co_names}) for c in codes]
    if code not in codes and (code.co_name, code.co_firstlineno, True) not in more:
        return None
    line, named = code.co_firstlineno, _definitions(ast.walk(tree), code.co_name)
    return next((each for each in named if line == [*each.decorator_list, each][0].lineno), None)


def _drop_bundle(found: Any, code: CodeType) -> Fields:
    """Remove the decorator that is running now, and those above it, from a definition. The result
    holds the local names that the others need."""
    import ast
    import traceback

    marks = found.decorator_list
    for frame, line in traceback.walk_stack(None):
        here = frame.f_code.co_filename == code.co_filename
        if here and code.co_firstlineno <= (line or 0) <= found.lineno:
            below = sum(mark.lineno > line for mark in marks)
            if line == found.lineno:  # Python 3.10, at the `def`: count the calls so far
                done = frame.f_code.co_code[: frame.f_lasti]
                below = (len(done) - len(done.rstrip(b"\x83\x01"))) // 2
            del marks[: len(marks) - below]
            known = frame.f_locals
            if not frame.f_code.co_flags & 1:  # the body of a class: it sees what is around it
                known = {**getattr(frame.f_back, "f_locals", {}), **known}
            words = re.findall(r"\w+", " ".join(map(ast.unparse, marks)))
            return {name: known[name] for name in words if name in known}
    return {}


def _definitions(parts: Iterable[Any], name: str) -> list[Any]:
    """The definitions of a function called `name` among some parts of a program."""
    kinds = "FunctionDef", "AsyncFunctionDef"
    return [part for part in parts if type(part).__name__ in kinds and part.name == name]


def _lines_of(found: Any, lines: list[str]) -> str:
    """The lines of a function definition, dedented."""
    import ast

    marks, margin = found.decorator_list, found.col_offset
    while marks and ast.unparse(marks[0]) in ("property", "classmethod", "staticmethod"):
        marks = marks[1:]  # these stand around the bundle: see `_bundle`
    inside = set[int]()  # lines of a text of several: their white space is part of its value
    for part in ast.walk(found):
        documents = part is getattr(found.body[0], "value", None)
        if isinstance(part, (ast.Constant, ast.JoinedStr)) and not documents:
            inside.update(range(part.lineno + 1, (part.end_lineno or 0) + 1))
    text = ""
    for n in range([*marks, found][0].lineno, found.end_lineno + 1):
        row = lines[n - 1]
        text += row if n in inside or row[:margin].strip() else row[margin:] or "\n"
    return text.rstrip()


def _signature_text(text: str, name: str) -> str:
    """The lines that define the one function `name` of a text of code, its decorators first."""
    import ast

    if not (found := _definitions(ast.parse(text).body, name)):
        raise ValueError(f"the source does not define {name}()")
    found[0].body = []
    return ast.unparse(found[0]).strip()


# May new code be accepted?

_SIZE, _NESTED = 20_000, 500  # characters of code; operators in one expression of it
_HARMLESS_CALLS = "bool bytes complex dict float frozenset int list range re.compile set str tuple"
_STATEMENTS = "Import ImportFrom FunctionDef AsyncFunctionDef Assign AnnAssign Expr"
_NESTS = r"not|lambda|if|else|await|and|or|in|is|for|yield|[^\w\s:=)\]}]+"


def check_code(source: str, name: str, signature: str | None = None, limits: Any = None) -> None:
    """Say why some code cannot be the new source of a function, or return None.

    Cheap, and always done before code that a language model wrote is accepted. The code has at most
    20,000 characters, parses and compiles, and defines one function called `name`, besides imports,
    helper functions and constants. Nothing else may run when it is loaded, and a class
    may only be inside a function. The size and nesting are bounded before the parser sees
    the text, since deep input crashes the interpreter's own parser.

    Args:
        source: Python code.
        name: the function that must be there.
        signature: its header, `"def f(x, k=2)"` or `"(x, k=2)"`. Names, kinds and defaults of the
            arguments must be the same; annotations may differ. None allows any.
        limits: an object whose `check(source)` raises `ValueError` for what it does not allow.

    Raises:
        ValueError: a reason in one sentence, written to be sent back to the language model.

    >>> check_code("import math\\ndef area(r): return math.pi * r**2", "area", "(r)")
    >>> check_code("def area(radius): return 3 * radius", "area", "(r)")
    Traceback (most recent call last):
    ValueError: the signature must stay `def area(r)`, not `def area(radius)`
    """
    import ast

    tree = _parse(source)
    if limits is not None:
        limits.check(source)
    found = _definitions(tree.body, name)
    if len(found) != 1:
        raise ValueError(f"the code must define one function `{name}` at top level")
    function = found[0]
    if _is_generator(function):
        raise ValueError(f"`{name}` must return a list: a generator runs after its call")
    if signature is not None:
        header = signature.rstrip(": ") if "def " in signature else f"def {name}{signature}"
        given: Any = ast.parse(f"{header}: pass").body[0]
        known = set(map(ast.unparse, given.decorator_list))  # they and the defaults are the user's
        around = [*function.decorator_list, function.returns]
        old, new = _bare_signature(given), _bare_signature(function)
        if old != new:
            raise ValueError(f"the signature must stay `{old}`, not `{new}`")
        tree.body.remove(function)
        tree.body += [ast.Expr(p) for p in around if p and ast.unparse(p) not in known]
    if acting := next(_acting_parts(tree), None):
        text = ast.unparse(acting).strip().partition("\n")[0][:80]
        good = "only imports, functions and constants may be there"
        raise ValueError(f"`{text}` at top level: {good}")


def _parse(source: str) -> ast.Module:
    """Parse and compile, refusing first what is so long or deep that it could crash the parser."""
    import ast

    try:
        if len(source) > _SIZE or _nesting(source) > _NESTED:
            raise SyntaxError(f"over {_SIZE:,} characters or {_NESTED} operators in an expression")
        compile(source, "the code", "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        if "no binding for nonlocal" not in str(error):  # a closure may hold it
            raise ValueError(f"the code does not parse: {error}") from None
    return ast.parse(source)


def _nesting(source: str) -> int:
    """An upper bound for how deep expressions nest in some code: the operators up to a comma."""
    import tokenize

    deepest = depth = 0
    with suppress(tokenize.TokenError, SyntaxError):  # the parser will stop there too
        for kind, text, *_ in tokenize.generate_tokens(io.StringIO(source).readline):
            if kind == tokenize.NEWLINE or text in (",", ";"):
                depth = 0
            elif kind in (tokenize.OP, tokenize.NAME):
                depth += bool(re.fullmatch(_NESTS, text))
            deepest = max(deepest, depth)
    return deepest


def _is_generator(function: ast.AST) -> bool:
    """Does it yield, apart from the functions inside it?"""
    import ast

    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
    around, *others = (set(ast.walk(p)) for p in ast.walk(function) if isinstance(p, kinds))
    return any(isinstance(p, (ast.Yield, ast.YieldFrom)) for p in around.difference(*others))


def _bare_signature(function: Any) -> str:
    """A function's header without annotations: what stays when its code is rewritten."""
    import ast

    vars(function).update(body=[], decorator_list=[], returns=None)
    for part in ast.walk(function):
        vars(part).pop("annotation", None)
    return ast.unparse(function).strip("\n:")


def _acting_parts(tree: ast.Module) -> Iterator[ast.AST]:
    """The parts of some code that would have effects when it is loaded."""
    import ast

    for statement in tree.body:
        parts = [p for p in ast.iter_child_nodes(statement) if not isinstance(p, ast.stmt)]
        if type(statement).__name__ not in _STATEMENTS.split():
            yield statement
        inside: Any = chain(*map(ast.walk, parts))
        for part in inside:
            kind = type(part).__name__
            stars = kind == "alias" and part.name == "*"
            calls = kind == "Call" and ast.unparse(part.func) not in _HARMLESS_CALLS.split()
            places = kind in ("Attribute", "Subscript") and isinstance(part.ctx, ast.Store)
            if stars or calls or places:
                yield part


# ---- 5. Optimize ---------------------------------------------------------------------------------
#
# What should the parameters become?  Four steps, each with its own name:
#
#       describe ──── the trace graph as text, within a limit on its length     prompt()
#       ask ───────── any callable from messages to text                        propose()
#       check ─────── the reply is untrusted: type, choices, bounds, code
#       apply ─────── all of it or none of it                                   update()
#
# A reply that is refused changes nothing, and the reason goes back to the language model. First
# come replies and how they are read, then the optimizers, then what a prompt shows.
# Left out: keys and wires (section 6). Here a language model is any callable.


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
        self.replies, self.problems = [*replies], [*problems]


# The limits of a reply: its characters, and brackets inside brackets. More is refused, not tried.
MAX_REPLY, MAX_DEPTH = 200_000, 64


class Reading(NamedTuple):
    """What a language model answered: raw values by variable name, or problems and no values.

    A problem is a sentence that can go back to the language model. The values are as they were
    written: `coerce_value` turns each into the type of its parameter.
    """

    reasoning: str
    answer: str
    values: Fields
    problems: list[str]


def read_reply(text: str, names: Collection[str]) -> Reading:
    """Read the new values of the variables `names` from a reply, as JSON or as tags.

    Whatever can mean only one thing is read: JSON or a Python dict, in prose or a fence, with
    comments, trailing commas and raw newlines; or tags, so that code needs no escaping. The last
    complete answer counts. A reply that is cut short, contradicts itself or names no variable is a
    problem, and then there are no values at all: a refusal costs one more question, and a
    misreading costs a parameter.

    Args:
        text: the reply, at most MAX_REPLY characters; read in one pass, in linear time.
        names: the variables' names as the prompt shows them, such as `x0` or `greet_code`.

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


_BUILTINS: Any = bool, int, float, str, list, tuple, set, frozenset, dict
_NUMBERS = int, float
_AMOUNT_TO: Any = {list: (list, deque), dict: _DICTS}  # what is a list, or a dict, by other names
# What tells the kinds that read text: Enums, dates, Decimals, paths.
_READ_TEXT = "__members__", "fromisoformat", "as_integer_ratio", "__fspath__"


def _as_builtin(value: Any) -> Any:
    """The bool, number, text or container that a value amounts to: of an Enum its value, of a NumPy
    number Python's own, of a date, a path, a Decimal and anything else a text."""
    if hasattr(type(value), "__members__"):
        value = value.value
    elif getattr(value, "shape", None) == ():
        value = value.item()
    for kind in _BUILTINS:
        if isinstance(value, _AMOUNT_TO.get(kind, kind)):
            return kind(value)
    reads_text = any(hasattr(type(value), name) for name in _READ_TEXT)
    return None if value is None else str(value) if reads_text else to_text(value)


def _changed_since(parameter: Parameter, number: int) -> bool:
    """Did a parameter have another value when the node with this number was made?"""
    for changed, older in parameter._changes:
        if changed > number:
            return not _is_same(older, parameter._data)
    return False


def _is_same(old: Any, new: Any) -> bool:
    """Are two values of a parameter the same, as far as a reader can tell?"""
    return old is new or (type(old) is type(new) and to_text(old) == to_text(new))


def _as_type_of(like: Any, value: Any, choices: Iterable[Any] | None = None) -> Any:
    """The value as the type of `like`: 7.0 is the int 7, a list may be a tuple. Or a choice of any
    type. Else `ValueError`."""
    kind = type(like)
    if like is None or (isinstance(value, kind) and kind not in _NUMBERS):
        return value
    old, new, made = type(_as_builtin(like)), _as_builtin(value), None
    with suppress(ValueError, TypeError, ArithmeticError):
        if old in _NUMBERS:
            fits = type(new) in _NUMBERS and (old is float or new % 1 == 0)
        else:
            listed = type(new) in _LISTS and old in (*_LISTS, set, frozenset)
            fits = listed or type(new) is old
        if fits and (old is not str or isinstance(like, str)):
            made = _filled(like, old(new))
        elif fits and any(hasattr(kind, name) for name in _READ_TEXT):
            made = getattr(kind, "fromisoformat", kind)(new)
        if made is not None:
            getattr(made, "as_integer_ratio", int)()  # a number that is not finite has none
            return made
    if any(type(each) is type(value) and each == value for each in choices or ()):
        return value
    name = "finite float" if kind is float else kind.__name__
    article = "an" if name[0] in "aeiou" else "a"
    raise ValueError(f"it must be {article} {name}, as its present value is")


def coerce_value(value: Any, like: Any) -> Any:
    """Read a reply's raw value as the type of `like`, the value that a parameter has now.

    Nothing is guessed: 7, 7.0 and "7" are the integer 7; 7.5, true and "banana" are not. Text is
    read as a literal where something else is wanted ("false" is False, "[1]" a list), and a number
    as its digits where text is wanted. 1, 0 and "yes" are not bools. Of lists, tuples, sets
    and dicts only the outer type must match. `like=None` takes anything.

    Raises: ValueError with a sentence that says what was expected and what came.

    >>> coerce_value("7", like=1), coerce_value("false", like=True), coerce_value([1, 2], like=())
    (7, False, (1, 2))
    >>> coerce_value("banana", like=1)
    Traceback (most recent call last):
    ValueError: Expected int, not 'banana'.
    """
    with suppress(ValueError, TypeError, OverflowError):
        given, text_wanted = value, isinstance(_as_builtin(like), str)
        if isinstance(value, str) and not (text_wanted or like is None):
            given, end, _ = _read_literal(value)
            given = None if value[end:].strip() or isinstance(given, str) else given
        elif text_wanted and type(value) in _NUMBERS:
            given = str(value)
        return _as_type_of(like, given)
    finite = "a finite " * isinstance(like, float)
    raise ValueError(f"Expected {finite}{type(like).__name__}, not {to_text(value, 80)}.")


def _from_reply(raw: Any, parameter: Parameter) -> Any:
    """A reply's raw value for a parameter: the choice that it names, or else a value of its type.

    A choice is named by what it amounts to, in the prompt's form or else as plain text, or by its
    name in an Enum.
    """
    choices = [(each, _as_builtin(each)) for each in parameter.choices or ()]
    for each, plain in choices:
        if to_text(plain) == to_text(raw):
            return each
    for each, plain in choices:
        if str(raw).strip() in (str(plain), getattr(each, "_name_", plain)):
            return each
    return coerce_value(raw, parameter._data)


Match = re.Match[str]
_TOKEN = r"""(?sx) (?P<space> \s+ | (?:\#|//)[^\n]* | /\*.*?(?:\*/|\Z))
    | (?P<same> [][(){},:]
      | [-+]?(?:\d{1,400}\.?\d{0,400}|\.\d{1,400})(?:[eE][-+]?\d{1,9})?(?![\w.]))
    | (?P<quote>\"\"\"|\'\'\'|["'`]) (?P<inside>(?:[^\\"'`]+|\\.|(?!(?P=quote))["'`])*)
      (?P<end>(?P=quote))? | (?P<word> \b[^\W\d]\w{0,98}) (?P<key>(?=\s*:))? | ."""
_ESCAPE = r"""\\(?:([/`])|x[\da-fA-F]{2}|u[\da-fA-F]{4}|U000[\da-fA-F]{5}|[ntrbf\\"'\n])"""
_WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}


def _read_literal(text: str, pos: int = 0) -> tuple[Any, int, str]:
    """Read one literal at `pos`, in JSON, Python or anything between: its value, where it ends,
    and, if it has no value, what is wrong with it.

        literal := string | number | word | "{" items "}" | "[" items "]" | "(" items ")"
        items   := [literal [":" literal] {"," literal [":" literal]} [","]]
        string  := text between two of ", ', `, three of " or three of '; newlines as they are
        word    := true | false | null | none, in any case; before a colon any word

    Space and comments (# // /* */) may stand between tokens. Each token is respelled as Python, and
    Python's own reader does the rest. It gets brackets no deeper than MAX_DEPTH, and a value only
    after a bracket, comma or colon: no chain of operators, calls or indices, which can crash it.
    """
    import ast

    written, depth = "", 0
    for token in re.compile(_TOKEN).finditer(text, pos):
        spelled, pos = _spell(token), token.end()
        depth += (spelled in "([{") - (spelled in ")]}")
        misplaced = spelled not in ")]},:" and written[-1:] not in "([{,:"
        if misplaced or spelled == "?" or depth > MAX_DEPTH:
            return None, pos, f"it breaks off at {to_text(text[token.start() : pos + 30], 80)}"
        written += spelled
        if written and not depth:
            break
    else:
        return None, len(text), "it is cut short"
    try:
        tree = ast.parse(written, mode="eval")
        for part in ast.walk(tree):
            keys = [*map(ast.literal_eval, getattr(part, "keys", ()))]
            if len(set(keys)) < len(keys):
                return None, pos, "it has the same key twice"
        return ast.literal_eval(tree), pos, ""
    except (SyntaxError, TypeError):
        return None, pos, "its commas, colons and brackets do not fit together"


def _spell(token: Match) -> str:
    """A token as Python spells it; nothing for space and text without end, `?` for the rest."""
    if token["end"]:
        plain = re.sub(
            _ESCAPE,
            lambda found: found[1] or codecs.decode(found[0], "unicode_escape"),
            token["inside"],
        )
        return repr(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    if token["word"]:
        return repr(token["word"]) if token["key"] == "" else _WORDS.get(token[0].lower(), "?")
    return token["same"] or ("" if token["space"] or token["quote"] else "?")


# How models mark their thoughts, and where the answer begins after them.
_THINKING = r"think|thought|reflect|analysis|scratchpad|monologue|deliberat|planning|draft|cot\b"
_THOUGHT = rf"""<\s*/?\s*[|｜]?(?:[\w-]{{1,20}}[:_-])?(?:ant)?(?:{_THINKING})[^<>]{{0,200}}>
    | \[/?THINK(?:ING)?\]
    | ◁/?think▷ | <[|｜](?:begin|end|start)[_▁](?:of[_▁])?(?:think|thought)[^<>]{{0,20}}>
    | <unused9[45]> | <\|channel\|>\s*\w{{1,20}}
    | \bassistantfinal | \[BEGIN\ FINAL\ RESPONSE\] | here\ is\ my\ response: """
_THOUGHT_KIND = rf"(?i){_THINKING}|unused|channel|assistant|response"
_THOUGHT_END = r"(?i)/|end|final|unused95|response"
_NAMED = r"""<\s*(?P<element>var|variable|param|parameter)\b
    (?: (?:[^<>]{0,200}?\bname)? \s*=[\s"'`]* (?P<attribute>[^\s"'`<>]{1,99}) [^<>]*>
      | [^<>]*>\s*<\s*name\s*> (?P<child>[^<>]{1,99}) </\s*name\s*> )"""
_KEY = r"""(?=\s*(?:(?:["'`](?P<key>[\w:. -]{1,99})["'`]|[\w:]{1,99})\s{0,9}:|[/#]))"""
_OPENING = rf"""(?xi) \{{{_KEY} | {_NAMED} | (?P<thought>{_THOUGHT})
    | (?P<turn>(?m:^|(?<=>))[^\S\n]*(?:\[INST\] | <(?:\||start_of_turn>)[\w|>]{{0,25}}user\b))
    | (?m:^)[^\S\n]* <(?: !--(?s:.*?)(?:-->|\Z) | details\b(?s:.*?)(?:</details>|\Z))
    | <(?P<tag>[\w:\\]{{1,99}})(?:\s[^<>]{{0,200}})?>"""
# The end of a tag, with a group for each side on which it stands at the end of a line.
_CLOSING = r"(?im)(^[^\S\n]*)?</\s*{}\s*>((?=[^\S\n]*(?:\n|<|\Z)))?"
_BROKEN = r"(?i)[\"'“”{,]\s*suggestion[\"'”]?\s*[:=：]|suggestion[\"'”]?\s*="
_FORM_WORDS = "reasoning answer suggestion variable think thinking thought analysis reflection"
_FIELDS = ("reasoning", "answer", "suggestion")
_BARE, _TAGGED, _WHOLE = 1, 2, 3


class _ReplyReader:
    """Reads a reply from left to right and keeps the last complete answer.

        reply    := {thought | object | variable | reasoning | answer | any other character}
        thought  := "<think>" text "</think>", or other marks of the kind
        object   := a literal with the keys reasoning, answer, suggestion, or with names as keys
        variable := "<x0>" value "</x0>" | "<variable name='x0'>" value "</variable>"
                  | "<variable><name>x0</name><value>" value "</value></variable>"

    An object with a suggestion is whole and replaces the one before. It outranks tags, and tags
    outrank bare objects such as `{"x0": 5}`, so that examples in the prose change nothing; tags add
    up, and so do bare objects. An answer that is broken or cut short keeps its rank as a problem:
    nothing inside or after it counts, except another answer that replaces it. Nothing in a thought,
    or in a comment or details of HTML, is an answer, nor anything before the end of a thought whose
    beginning is missing, or after an answer in a turn that is marked as the user's.
    """

    def __init__(self, text: str, names: Collection[str]) -> None:
        self.text, self.names = text, names
        self.forget()

    def forget(self) -> None:
        """Begin as if nothing had been read."""
        self.rank, self.words = 0, {"reasoning": "", "answer": ""}
        self.values: Fields = {}
        self.problems: list[str] = []
        self.unread = ""  # what stood between the answers since the last one

    def read(self) -> Reading:
        """Read the whole text."""
        pos = 0
        while opening := re.compile(_OPENING).search(self.text, pos):
            self.unread += self.text[pos : opening.start()]
            if opening["turn"] and self.rank:  # of the user: what follows was made up
                pos = len(self.text)
            elif opening[0] == "{":
                pos = self.read_object(opening)
            elif opening["thought"] and not self.name(opening[0].strip("</>")):
                pos = self.skip_thought(opening)
            else:
                pos = self.read_tag(opening)
        if re.search(r"</?[a-zA-Z_][^<>]*\Z", self.text):
            self.take(_TAGGED, [], "The reply is cut short inside a tag.")
        if not self.problems and re.search(_BROKEN, self.unread + self.text[pos:]):
            self.take(_WHOLE, [], "The reply cannot be read: an answer in it is broken.")
        reasoning = self.words["reasoning"]
        if not self.rank and (not reasoning or _ReplyReader(reasoning, self.names).read().values):
            self.take(_BARE, [], "No answer was found in the reply, neither as JSON nor in tags.")
        values = {} if self.problems else self.values
        return Reading(**self.words, values=values, problems=self.problems[:8])

    def skip_thought(self, mark: Match) -> int:
        """Skip a thought, with those inside it; at the mere end of one, forget what came before."""
        if re.search(_THOUGHT_END, mark[0]):
            self.forget()
            return mark.end()
        kind = re.findall(_THOUGHT_KIND, mark[0])[0].lower()
        depth, end = 1, len(self.text)
        for other in re.compile(rf"(?xi){_THOUGHT}").finditer(self.text, mark.end()):
            if kind in other[0].lower():
                depth += 1
                if re.search(_THOUGHT_END, other[0]):
                    depth, end = depth - 2, other.end()
                if not depth:
                    break
        return end

    def name(self, given: Any) -> str:
        """The variable that is meant, or an empty text: `x:0`, "`X0` " and `x0` are one."""
        plain = re.sub(r"^\s*\(\w+\)|[\s\"'`:]", "", str(given))
        alike = [name for name in self.names if name.casefold() == plain.casefold()]
        return plain if plain in alike else alike[0] if len(alike) == 1 else ""

    def take(self, rank: int, pairs: list[Any], *problems: str) -> None:
        """Take an answer, values by name or what is wrong, unless a higher one was taken; a whole
        or higher one drops all before it.

        Where an object and tags say different things, two objects are about different variables, or
        a bare object that ends a line differs from what was said, it is not clear which counts.
        """
        given = {self.name(name): str(value).strip() for name, value in pairs}
        taken = {name: str(value).strip() for name, value in self.values.items()}
        if rank < self.rank:
            unclear = (rank > _BARE or self.ends_line) and {**taken, **given} != taken
            if not unclear:
                return
        else:
            disjoint = bool(given and taken) and taken.keys().isdisjoint(given)
            unclear = disjoint and rank == _WHOLE and self.rank > _BARE
        if rank > self.rank or rank == _WHOLE:
            self.rank, self.values, self.problems, self.unread = rank, {}, [], ""
        if unclear:
            problems = ("The reply gives several answers, and it is not clear which counts.",)
        self.problems += problems
        for key, value in pairs:
            self.assign(key, value)

    def assign(self, key: Any, value: Any) -> None:
        """Note a value for a variable, or what is wrong with it."""
        name = self.name(key)
        value = _unfence(value) if "_code" in name and isinstance(value, str) else value
        if not name:
            self.problems.append(
                f"There is no variable {to_text(key, 80)}, only {', '.join(self.names)}."
            )
        elif repr(self.values.setdefault(name, value)) != repr(value):
            self.problems.append(f"The reply gives {name} twice, with different values.")
        elif isinstance(value, str) and value.strip() == _TEMPLATE:
            self.problems.append(f"The value of {name} has only the words of the form.")

    def read_object(self, opening: Match) -> int:
        """Read the object that begins here, if it is one, and say where to go on."""
        found, pos, problem = _read_literal(self.text, opening.start())
        key = opening["key"] or ""
        self.ends_line = self.text[pos : pos + 1] in "\n"  # or all of the text
        if isinstance(found, dict):
            self.read_fields(found)
        elif problem and (pos >= len(self.text) or self.name(key) or key.lower() in _FIELDS):
            self.take(_WHOLE, [], f"The reply cannot be read: {problem}.")
        return pos

    def read_fields(self, made: dict[Any, Any]) -> None:
        """Take an answer from an object, if it has one of its fields or a variable's name."""
        known = [(key, value) for key, value in made.items() if self.name(key)]
        form = {str(key).strip().lower(): made[key] for key in made if not self.name(key)}
        strange = [(key, value) for key, value in form.items() if key not in _FIELDS]
        nested = [value for value in made.values() if isinstance(value, dict)]
        given = form.get("suggestion") or {}
        for key in self.words:
            if form.get(key) is not None:
                self.words[key] = str(form[key])
        if not isinstance(given, dict):
            words = "The reply cannot be read: its suggestion is not an object of names and values."
            self.take(_WHOLE, [], words)
        elif "suggestion" in form:
            self.take(_WHOLE, [*given.items(), *known])
        elif known or len(form) > len(strange) > 0:  # beside another field
            self.take(_WHOLE if "reasoning" in form else _BARE, known + strange)
        elif self.rank and any(key == "suggestion" or self.name(key) for key in chain(*nested)):
            self.take(_WHOLE, [], "The reply cannot be read: an answer stands inside an object.")
        elif len(nested) == 1 and "suggestion" in nested[0]:  # the arguments of a tool
            self.read_fields(nested[0])

    def read_tag(self, opening: Match) -> int:
        """Read what a tag holds, if it is one of ours, and say where to go on.

        A value may hold ends of tags itself: the last one before the next such tag counts, of those
        alone on a line if there are any, or else of those at the end of a line.
        """
        tag = opening["attribute"] or opening["child"] or opening["tag"] or opening[0].strip("</>")
        tag, start = tag.strip(), opening.end()
        name, element = self.name(tag), opening["element"]
        field = tag.lower() if tag.lower() in self.words and not name else ""
        if not (element or field or name):
            if _stem(tag) in map(_stem, self.names) and f"</{tag}" in self.text:
                self.take(_TAGGED, [(tag, "")])  # there is no such variable
            return start
        same, word = (_NAMED, element) if element else (rf"<{re.escape(tag)}(?:\s[^<>]*)?>", tag)
        after = re.compile(f"(?xi){same}").search(self.text, start)
        inside = start, after.start() if after else len(self.text)
        ends = [*re.compile(_CLOSING.format(re.escape(word))).finditer(self.text, *inside)]
        if not ends and after and tag in after[0] and self.unread.rpartition("\n")[2].strip():
            return start  # it was only mentioned, in the middle of a line
        if not ends:
            return self.skip_unended(tag, *inside)
        alone = max(reversed(ends), key=lambda end: [each is not None for each in end.groups()])
        end = ends[0] if field else alone
        body = self.text[start : end.start()]
        if field == "answer" and _ReplyReader(body, self.names).read().values:
            self.forget()  # it is not the answer to a question, but stands around all
            return start
        if field:
            self.words[field] = body.strip()
        else:
            self.take(_TAGGED, [(tag, _untag(body, "_code" in name))])
        return end.end()

    def skip_unended(self, tag: str, start: int, stop: int) -> int:
        """Go on after a tag without an end, which was cut, or else was a draft in a thought."""
        self.take(_TAGGED, [], f"The reply is cut short: the tag of {to_text(tag, 80)} has no end.")
        thought = re.compile(rf"(?xi){_THOUGHT}").search(self.text, start, stop)
        return thought.start() if thought else len(self.text)


def _stem(name: str) -> str:
    """What a name and those that may be meant for it share."""
    return re.sub(r"\\|_code|(?<![\d_])[\d_]+$", "", name).casefold()


_FENCED = r"""(?xs) \A\s* (`{3,}|~{3,}) [^\n`]* \n
    (?! (?:(?![ \t]*\1)[^\n]*\n)* [ \t]*\1[^\S\n]*\n \s*\S )  # it ends, and another thing follows
    (.*) \n [ \t]* \1 \s* \Z"""


def _unfence(text: str) -> str:
    """What stands inside a fence of ``` or ~~~, if the text is one fence and nothing else."""
    return re.sub(_FENCED, r"\2", text)


def _untag(body: str, code: bool) -> str:
    """The text between two tags, without what is there only because of the tags.

    That is: a line break at either end, a fence or a CDATA section around all of it, and entities,
    where a `&lt;` and no `<` shows that characters were escaped, as in code that does not parse
    otherwise.
    """
    import html

    inner = r"(?is)\A\s*(?:<(\w+)>[^<>]*</\1>\s*)*<\s*value\s*>(.*)</\s*value\s*>\s*\Z"
    body = re.sub(inner, r"\2", body)
    body = _unfence(re.sub(r"\A[ \t]*\r?\n|\r?\n[ \t]*\Z", "", body))
    if "<" in body or not (code or "&lt;" in body):
        return re.sub(r"(?s)\A\s*<!\[CDATA\[(.*)\]\]>\s*\Z", r"\1", body)
    with suppress(ValueError):
        if code and _parse(body):  # it is right as it stands
            return body
    return html.unescape(body)


_AGAIN = "That reply was refused and changed nothing:\n- {}\nAnswer again, whole."
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f]"
_UNFINISHED = "length", "cut off", "refused", "filtered", "failed"
_CUT_OFF = "The reply was cut off by the limit on its length: answer briefly, or raise max_tokens."


def ask_until_usable(
    llm: Any,
    prompt: Sequence[Any],
    read: Callable[[str], tuple[T, list[str]]],
    retries: int = 2,
    forgiving: bool = False,
    **options: Any,
) -> tuple[T, list[Reply], list[list[str]]]:
    """Ask until a reply can be used or `retries` are used up, saying each time what was wrong.

    Args:
        llm: any callable from messages to text; None for the one that the environment names.
        prompt: the messages.
        read: a function of a reply's text; it returns a result, and a list of what is wrong.
        forgiving: let an `LLMError` of a language model that refused, was filtered, was cut off or
            said nothing be one more refusal, the last, instead of an error.

    Returns: what `read` made of the last reply; all the replies; for each that was refused, why.

    >>> def read(text):
    ...     return text, [] if text.isdigit() else ["Only digits, please."]
    >>> ask_until_usable(Script(["seven", "7"]), [{"role": "user", "content": "How many?"}], read)
    ('7', ['seven', '7'], [['Only digits, please.']])
    """
    messages, replies, refused = [*prompt], list[Reply](), list[list[str]]()
    while True:
        try:
            reply = _ask_any(llm, [*messages], options)
        except MinitraceError as error:
            if forgiving and hasattr(error, "failure"):
                return read("")[0], replies, [*refused, [str(error)]]
            raise
        replies.append(reply)
        cut = reply.finish_reason in _UNFINISHED  # however well what is there can be read
        result, problems = read("" if cut else reply)
        problems = [_CUT_OFF] if cut else problems
        if problems:
            refused.append(problems)
        if not problems or len(replies) > retries:
            return result, replies, refused
        again = _AGAIN.format("\n- ".join(problems))
        if reply.strip():
            messages += [_message("assistant", _cut(reply, 12_000)), _message("user", again)]
        else:  # some servers refuse an empty turn, or two of the user
            messages = [*prompt[:-1], _message("user", f"{prompt[-1]['content']}\n\n{again}")]


def _message(role: str, content: str) -> Texts:
    return {"role": role, "content": content}


# ---- The optimizer: proposals, a history of attempts, and the four steps.

_TASK = """\
Change the variables of a program so that the feedback on what it gave becomes as good as it can.\
"""
_CODE_NOTE = """ Code has a line for each call that led to the {}, in order, with the value \
that it gave after #. Work back from the feedback to the variables that caused it."""
# Each form with the field that stands in it where the instruction asks for an answer.
_JSON_FORM = """
Answer with one JSON object and nothing else:
{{"reasoning": "what caused the feedback, and what would mend it", {0}"suggestion": \
{{"{1}": value, ...}}}}
"""
_JSON_ANSWER = '"answer": "the answer that the instruction asks for", '
_TEMPLATE = "its new value as it is, without quotes or escapes"
_TAG_FORM = """
Answer in this form and nothing else:
<reasoning>what caused the feedback, and what would mend it</reasoning>
{0}<{1}>
{2}
</{1}>
"""
_TAG_ANSWER = "<answer>the answer that the instruction asks for</answer>\n"
_RULES_OF_REPLY = """\
Give every variable that should change, whole and in its type, and leave out the others."""
_CODE_RULES = """ Code is Python: keep the name and the signature of the function; imports, \
constants and helper functions may stand beside it."""


Prompt = list[Texts]  # the messages that an optimizer sends
Named = Mapping[str, "ParameterNode[Any]"]


class Proposal(dict[ParameterNode[Any], Any]):
    """New values by parameter, checked but not applied, and how they came about.

    A dict; `prompt`, `replies`, `refused`, `reasoning`, `answer`, `usage` and `seconds` say how it
    was made. `refused` has an entry for each reply that was refused; `usage` is the sum over all.

    >>> x = node(1, name="x", trainable=True)
    >>> print(Proposal({x: 2}).diff().splitlines()[-1])
    +2
    """

    prompt: Sequence[Texts] = ()
    replies: Sequence[str] = ()
    refused: Sequence[str] = ()
    accepted: Mapping[Parameter, Any] = {}  # the values that were checked when they were read
    before: Mapping[Parameter, Any] = {}  # after an update, the values that these replaced
    reasoning = answer = ""
    usage: Mapping[str, int] | None = None
    seconds = 0.0

    def diff(self) -> str:
        """The changes as a unified diff."""
        import difflib

        rows = list[str]()
        for parameter, value in self.items():
            name, values = parameter.py_name, (self.before.get(parameter, parameter._data), value)
            old, new = ((v if isinstance(v, str) else to_text(v)).splitlines() for v in values)
            rows += difflib.unified_diff(old, new, name, f"{name} (new)", lineterm="")
        return "\n".join(rows)


class Attempt(NamedTuple):
    """A step as an optimizer's history keeps it.

    The values that were tried, by name, what was said of them, and the proposal that followed;
    `reason` says why its values were not kept, if they were not. `outputs` holds what the program
    returned, as texts. `proposal.refused` says what was wrong with replies that were refused.

    >>> Attempt({"x0": 3}, ["too low"], None).reason
    ''
    """

    values: Fields
    feedback: list[Any]
    score: float | None
    proposal: Proposal | None = None
    diff: str = ""
    reason: str = ""
    outputs: Sequence[str] = ()


class Optimizer:
    """What optimizers share: feedback in, checked proposals out, all of an update or none of it.

    A subclass says how to make a proposal: by a prompt (`describe`, what it puts before the
    language model) or, with `propose` redefined, in any way it likes.

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
        on_refusal: str | None = None,
    ) -> None:
        """Set up what every optimizer has.

        Args:
            parameters: parameters, or a module or bundle that has some.
            llm: any callable from messages to text; what `MINITRACE_MODEL` names, or else a
                `StubLLM`.
            propagator: how feedback flows; a `GraphPropagator`.
            objective: the instruction, in words.
            memory_size: how many past attempts a prompt shows.
            max_tokens: passed on to the language model if given.
            max_chars: the most characters in a prompt.
            retries: how often to ask again after a reply that cannot be used.
            on_refusal: what to do then: "raise" a `ReplyError`, the default, or "keep" the values
                as they are, the default of `train`, where no answer at all is no error either.
        """
        self._named = _by_name(parameters)
        if type(self).propose is Optimizer.propose:  # by asking a language model
            _refuse_unreadable(self._named.values(), llm)
        self.names, self.parameters = [*self._named], [*self._named.values()]
        self.llm = llm
        self.propagator = self._flow() if propagator is None else propagator
        self.objective = objective or ""
        self.memory_size = memory_size
        self.max_tokens, self.max_chars = max_tokens, max_chars
        self.retries = retries
        self.on_refusal = on_refusal
        self.history: list[Attempt] = []
        self.refused: dict[str, None] = {}  # every rule that replies broke, in order
        self._heard: list[TraceGraph] = []  # what was said, where the feedback carries no graph

    def _flow(self) -> Propagator:
        """How feedback flows by default."""
        return GraphPropagator()

    def rename(self, names: Mapping[Parameter, str]) -> None:
        """Call parameters by names such as `x:0`, as another process did, so that prompts agree."""
        for each, name in names.items():
            each._base, _, index = name.partition(":")
            each._index = int(index) if index else None
        self._named = _by_name(self.parameters)
        self.names[:] = self._named

    def zero_feedback(self) -> None:
        """Forget the feedback of every parameter."""
        self._heard.clear()
        for parameter in self.parameters:
            parameter.zero_feedback()

    def backward(self, output: Any, feedback: Any = "", score: Any = None) -> None:
        """Send feedback from an output to its own parameters, by its propagator."""
        outputs = _outputs(output, feedback, score)
        reached = _carried_back(outputs, self.propagator)
        own: dict[AnyNode, Any] = {p: reached[p] for p in self.parameters if p in reached}
        if not any(each.feedback for each in self.parameters):  # somebody cleared it
            self._heard.clear()
        if own:
            self._heard.append(TraceGraph(outputs))
            self._heard[-1].values = {each: each._data for each in own}
        _store(own)

    def step(self, bypassing: bool = False, verbose: bool = False, approve: Any = None) -> Proposal:
        """Propose new values and set them; return the proposal, empty if nothing changed.

        Args:
            bypassing: propose only; set nothing.
            verbose: print the prompt and the replies.
            approve: a function of the diff that returns true, or words of refusal.
        """
        if any(map(self._is_stale, self._graphs())):
            warn("some feedback is older than the last change: call zero_feedback()", stacklevel=2)
        proposal = self.as_proposal(self.propose())
        if verbose:
            print(*(m["content"] for m in proposal.prompt), *proposal.replies, sep="\n\n")
        verdict = approve(proposal.diff()) if approve and proposal else True
        if verdict not in (True,):  # which NumPy's is too
            refusal = str(verdict or "refused")
            named = {parameter.py_name: value for parameter, value in proposal.items()}
            self.refused[f"{_listed(named)}: {refusal}"] = None
            self._remember_step(copy.copy(proposal), refusal)
            proposal.clear()
            return proposal
        if bypassing:
            self._remember_step(proposal, "bypassed")
            return proposal
        return self.update(proposal)

    def update(self, values: Mapping[Any, Any]) -> Proposal:
        """Set new values, by parameter or by name: all of them, or none if one is refused."""
        proposal = self.as_proposal(values)
        self._remember_step(proposal, "" if proposal else "no change")
        proposal.before = {parameter: parameter._data for parameter in proposal}
        for parameter, value in proposal.items():
            parameter.restore(value)
        return proposal

    def as_proposal(self, values: Mapping[Any, Any]) -> Proposal:
        """A proposal with its values as the parameters take them, which no later check repeats."""
        good = self.checked(values)
        proposal = values if isinstance(values, Proposal) else Proposal()
        proposal.clear()
        proposal.update(good)
        proposal.accepted = good
        return proposal

    def checked(self, values: Mapping[Any, Any]) -> dict[Parameter, Any]:
        """The values as the parameters would take them; `ValueError` if one is refused."""
        accepted, given = getattr(values, "accepted", {}), self._by_parameter(values).items()
        return {p: v if accepted.get(p, given) is v else p.checked(v) for p, v in given}

    def _by_parameter(self, values: Mapping[Any, Any]) -> dict[Parameter, Any]:
        """The values, by parameter or by name, as they are by parameter."""
        known: dict[Any, Parameter] = {key: p for p in self.parameters for key in (p, p.name)}
        known |= self._named  # two functions of one name have names of their own here
        strays = [to_text(key, 60) for key in values if key not in known]
        if strays:
            raise ValueError(
                f"{', '.join(strays)}: no parameter of this optimizer, "
                f"which has {', '.join(self.names)}"
            )
        return {known[key]: value for key, value in values.items()}

    def propose(self, n: int | None = None) -> Any:
        """Ask for new values; nothing is set. A `Proposal`, empty if nothing should change.

        With `n`, a list of `n`, asked for side by side; each prompt says which of them it is.
        """
        count = n or 1
        note = " This is candidate {} of {}: seek one unlike the others." if count > 1 else ""
        prompts = [self._prompts(note.format(i + 1, count)) for i in range(count)]
        proposals = _side_by_side(self._ask, prompts)
        return proposals[0] if n is None else proposals

    def prompt(self, note: str = "") -> Prompt:
        """The messages that would be sent, before anything is spent."""
        return list(chain(*self._prompts(note)))

    def _prompts(self, note: str) -> list[Prompt]:
        """All that is asked for one proposal."""
        prompts = [self._prompt(*question, note) for question in self._questions()]
        if not prompts:
            raise MinitraceError(
                "there is no feedback to learn from: call backward(output, feedback) before step()"
            )
        return prompts

    def _questions(self) -> Iterator[tuple[Named, str]]:
        """The variables that each prompt is about, and the feedback: here all in a single one.

        What was said of several outputs appears once.
        """
        graph, about = self.graph(), defaultdict[str, list[str]](list)
        for each, feedback, score, _ in graph.outputs:
            judged = "" if score is None else f" (score: {score:g})"
            about[f"{_said(feedback) or '(no words)'}{judged}"].append(graph.names[each])
        rows = [f"{_cut(', '.join(names), 200)}: {words}" for words, names in about.items()]
        if rows:
            yield self._reached(), "\n".join(rows)

    def _reached(self) -> Named:
        """The parameters that the feedback reached, by name: only these are offered for change."""
        reached = self.graph().values
        return {name: each for name, each in self._named.items() if each in reached}

    def _prompt(self, named: Named, feedback: str, note: str) -> Prompt:
        """A prompt about some variables; feedback and the past take a third of the room each."""
        variables = "\n".join(map(_variable_text, named, named.values()))
        head = _page({"Instruction": (self.objective + note).strip()})
        system = self._system(named, "# Code")
        room = self.max_chars - len(system + head + variables) - 80
        if room < 400:
            raise ValueError(
                "the prompt's fixed text and the variables' own values take "
                f"{self.max_chars - room:,} characters, and max_chars is {self.max_chars:,}: "
                "raise it, or optimize fewer parameters"
            )
        feedback, past = _fitted(feedback, room // 3), self._past(named, room // 3)
        tail = _page(
            {"Variables": variables, "Feedback": feedback, "Past attempts, the oldest first": past}
        )
        left = self.max_chars - len(system + head + tail) - 2
        shown = _cut(self.describe(left), left)
        text = "\n".join(filter(None, (head, shown, tail)))
        return [_message("system", self._system(named, shown)), _message("user", text)]

    def _system(self, named: Named, shown: str) -> str:
        """The task, and the form of a reply, for what there is at hand."""
        text, count = _TASK, len(self.graph().outputs)
        if shown.startswith("# Code"):
            text += _CODE_NOTE.format("output" if count == 1 else f"{count} outputs")
        long = [name for name, each in named.items() if _is_code(each) or _is_long(each._data)]
        form, answer = (_TAG_FORM, _TAG_ANSWER) if long else (_JSON_FORM, _JSON_ANSWER)
        asked = re.search(r"(?i)\banswer (?:the|this|with|in|to)\b|\?", self.objective)
        text += form.format(answer if asked else "", next(iter(long or named)), _TEMPLATE)
        return text + _RULES_OF_REPLY + _CODE_RULES * any(map(_is_code, named.values()))

    def describe(self, room: int) -> str:
        """What is shown of the program, in at most `room` characters.

        Every prompt has the instruction, the variables, the feedback and past attempts already.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither describe() nor propose()")

    def graph(self) -> TraceGraph:
        """All the feedback that the parameters hold, as one graph; empty if there is none."""
        graph = TraceGraph.merged(self._graphs())
        graph.named = {each: name for name, each in self._named.items()}
        return graph

    def _graphs(self) -> list[TraceGraph]:
        """The trace graphs of the feedback, or what was said where it carries none."""
        found = chain(*[parameter.feedback for parameter in self.parameters])
        return [each for each in found if isinstance(each, TraceGraph)] or self._heard

    def _is_stale(self, graph: TraceGraph) -> bool:
        """Has a parameter of this optimizer another value now than this feedback was about?"""
        return any(
            each in graph.values and not _is_same(each._data, graph.values[each])
            for each in self.parameters
        )

    def _ask(self, prompts: Sequence[Prompt]) -> Proposal:
        """One proposal from the answers to all the prompts, which are asked side by side."""
        began, proposal = time.monotonic(), Proposal()
        readings, replies, refused = zip(*_side_by_side(self._answer, prompts), strict=True)
        reasoning, answers, values, _ = zip(*readings, strict=True)
        for each in values:
            proposal.update(each)
        proposal.accepted, proposal.prompt = {**proposal}, [*chain(*prompts)]
        proposal.replies = said = [*chain(*replies)]
        proposal.refused = [*map("; ".join, chain(*refused))]
        proposal.reasoning = "\n".join(filter(None, reasoning))
        proposal.answer = "\n".join(filter(None, answers))
        proposal.usage = sum((Counter(reply.usage) for reply in said), Counter()) or None
        proposal.seconds = time.monotonic() - began
        return proposal

    def _answer(self, prompt: Prompt) -> tuple[Any, ...]:
        """What `ask_until_usable` gives: a reading, the replies, and what was wrong with them."""
        options = {"max_tokens": self.max_tokens} if self.max_tokens else {}
        keeps = self.on_refusal == "keep"
        asked = ask_until_usable(self.llm, prompt, self._read, self.retries, keeps, **options)
        _, replies, refused = asked
        self.refused |= dict.fromkeys(chain(*refused[: len(replies)]))  # but no silence
        if len(refused) == len(replies) and not keeps:
            words = f"no usable reply in {len(replies)} attempt{'s' * (len(replies) > 1)}"
            raise ReplyError(f"{words}: {refused[-1][-1]}", replies, refused[-1])
        return asked

    def _read(self, text: str) -> tuple[Reading, list[str]]:
        """A reply with what it changes by parameter, nothing if something is wrong; and what is."""
        reply = read_reply(text, self._reached())
        changed, problems = dict[Any, Any](), reply.problems
        for name, raw in reply.values.items():
            parameter = self._named[name]
            try:
                value = parameter.checked(_from_reply(raw, parameter))
                if type(value) is not type(parameter._data) or value != parameter._data:
                    changed[parameter] = value
                if isinstance(value, str) and re.search(_CONTROL, value):
                    problems.append(
                        f"The value of {name} has a control character: write backslashes twice."
                    )
            except ValueError as error:
                problems.append(f"{name}: {_cut(str(error), 600)}")
        return reply._replace(values={} if problems else changed), problems

    def _remember_step(self, proposal: Proposal, reason: str) -> None:
        graph = TraceGraph.merged(each for each in self._graphs() if not self._is_stale(each))
        values = {name: p._data for name, p in self._named.items()}
        if proposal.refused and reason == "no change":
            reason = f"replies refused ({len(proposal.refused)}): {proposal.refused[-1]}"
        outputs = [to_text(each.node._data, 100) for each in graph.outputs]
        said = graph.feedback, graph.score
        self.remember(Attempt(values, *said, proposal, proposal.diff(), reason, outputs))

    def remember(self, attempt: Attempt) -> None:
        """Add an attempt to the history; the hundred before it are kept in full."""
        self.history.append(attempt)
        if len(self.history) > 100:  # of what is older, only values, score and update stay
            old = self.history[-101]
            light = old.proposal and Proposal(old.proposal)
            self.history[-101] = old._replace(feedback=[], proposal=light, diff="")

    @property
    def best(self) -> Attempt | None:
        """The attempt with the highest score, the latest if several are equal; attempts whose
        values were tried and "not kept" do not count."""
        kept = [a for a in self.history if a.score is not None and a.reason != "not kept"]
        return max(reversed(kept), key=lambda each: each.score or 0, default=None)

    def restore(self, attempt: Attempt) -> None:
        """Put back the values of an attempt, such as `optimizer.best`: all of them, or none."""
        if attempt is None:
            raise MinitraceError("there is no attempt to restore: best is None without a score")
        for parameter, value in self._by_parameter(attempt.values).items():
            parameter.restore(value)

    def undo(self) -> None:
        """Put back the values from before the last update that has not been undone."""
        for place, attempt in reversed([*enumerate(self.history)]):
            if attempt.proposal and not attempt.reason:
                self.restore(attempt)
                self.history[place] = attempt._replace(reason="undone")
                return
        raise MinitraceError("there is no update to undo")

    def _past(self, named: Named, room: int) -> str:
        """Past attempts, what was said of them, and the rules that replies broke."""
        shown = self.history[-self.memory_size :] if self.memory_size else []
        now = Attempt({name: each._data for name, each in named.items()}, [], None)
        rows = list[str]()
        for number, (attempt, then) in enumerate(pairwise([*shown, now]), 1):
            values = {name: attempt.values.get(name) for name in named}
            rows += _attempt_rows(number, attempt, values, then.values)
        if self.refused:
            rows.append("Refused so far, do not repeat:")
            rows += [f"- {_said(words, 300)}" for words in [*self.refused][-8:]]
        return _cut("\n".join(rows), room)


def _attempt_rows(number: int, attempt: Attempt, values: Options, then: Options) -> Iterator[str]:
    """An attempt: its values, what they gave, what was said, and how long texts changed then."""
    import difflib

    short = {name: value for name, value in values.items() if not _is_long(value)}
    long = [name for name in values if name not in short]
    yield f"{number}. {_listed(short) or ', '.join(long) + ' as it was then'}"
    about = defaultdict[str, list[str]](list)
    for words, gave in zip_longest(attempt.feedback, attempt.outputs, fillvalue=""):
        said = _said(words, 300)
        told = re.escape(gave.strip("'\""))
        known = re.search(rf"(?<!\w){told}(?!\w)", said)
        about[said] += [] if known else [gave]
    for said, outputs in about.items():
        gave = _cut(", ".join(outputs), 200)
        yield f"   feedback{' on ' * bool(gave)}{gave}: {said}" if said else f"   gave {gave}"
    if attempt.score is not None:
        yield f"   score: {attempt.score:g}"
    for name in long:
        old, new = (str(each.get(name)).splitlines() for each in (values, then))
        rows = difflib.unified_diff(old, new, n=0, lineterm="")
        changed = [f"   {row}" for row in rows if not re.match(r"@@|(---|\+\+\+) $", row)]
        if changed:
            yield f"   then {name} was changed:"
            yield from changed[:20]
        if len(changed) > 20:
            yield f"   ... {len(changed) - 20} more lines"


def _by_name(parameters: Any) -> Named:
    """The parameters by the names that prompts give them, which must differ."""
    if isinstance(parameters, Node) or hasattr(parameters, "parameters"):
        parameters = [parameters]
    elif not isinstance(parameters, Iterable):
        raise TypeError(
            f"{to_text(parameters, 60)} has no parameters: pass optimizer=, or parameters"
        )
    elif isinstance(parameters, Mapping):  # such as `parameters_dict()`
        parameters = parameters.values()
    groups = [p.parameters() if hasattr(p, "parameters") else [p] for p in parameters]
    named = dict[str, Parameter]()
    for each in {id(each): each for each in chain(*groups)}.values():
        if not isinstance(each, ParameterNode):
            raise TypeError(f"an optimizer works on parameters; {to_text(each, 60)} is none")
        name = _unused_name(each.py_name, named if _is_code(each) else _FORM_WORDS.split())
        if name in named:  # only functions of one name are told apart
            raise ValueError(f"two parameters are called {name}: give one of them another name")
        named[name] = each
    if not named:
        raise ValueError("an optimizer needs at least one parameter: node(value, trainable=True)")
    return named


def _refuse_unreadable(parameters: Iterable[Parameter], llm: Any) -> None:
    """Refuse, before anything is paid, a parameter whose kind of value no reply could give, and
    what is no language model."""
    if llm is not None and (isinstance(llm, type) or not callable(llm)):
        raise TypeError(f"llm= takes a callable, such as LLM('openai/gpt-4o'), not {llm!r:.60}")
    for each in parameters:
        made = None
        with suppress(ValueError):
            made = _from_reply(_as_builtin(each._data), each)
        if type(made) is not each.type and not each.choices:
            raise TypeError(
                f"no reply can give {each.name} another {each.type.__name__}: keep it as a text, a "
                "number or a list and convert it in a bundle, or give it choices=[...]"
            )


def _side_by_side(function: Callable[[Any], T], items: Sequence[Any], workers: int = 8) -> list[T]:
    """Call a function in threads, each in a copy of this context; the results, in order.

    Where no thread can be started, the calls come one after the other.
    """
    from concurrent.futures import ThreadPoolExecutor

    if min(len(items), workers) < 2 or _in_thread(get_ident).result() == get_ident():
        return [*map(function, items)]
    with ThreadPoolExecutor(workers) as pool:
        calls = [partial(copy_context().run, function, item) for item in items]
        return [*pool.map(lambda call: call(), calls)]  # a failure cancels what has not begun


def ask(diff: str) -> bool | str:
    """Show a diff on the terminal and ask a person: true, false, or words of refusal.

    For `step(approve=ask)`. Enter, `y`, `yes` and `ok` accept; `n` and `no` refuse without words.

    >>> from unittest import mock
    >>> with mock.patch("sys.stdin", io.StringIO("four is unlucky")), mock.patch("sys.stderr"):
    ...     ask("-1\\n+4")
    Accept? Enter, or what is wrong with it: 'four is unlucky'
    """
    print(diff, file=sys.stderr)
    words = input("Accept? Enter, or what is wrong with it: ").strip()
    if words.lower() in ("n", "no"):
        return False
    return words.lower() in ("", "y", "yes", "ok") or words


# ---- Three optimizers: what each of them asks, and shows of the program.


class OptoPrime(Optimizer):
    """The optimizer that shows the language model the whole trace graph, as code.

    The prompt has the calls as lines of code with the values they gave, the documentation of the
    operators, the variables with their rules, the feedback, and past attempts. It keeps to
    `max_chars` with any graph: what is nearest to outputs, parameters and a failure is shown.

    >>> GRAPH.clear()
    >>> x = node(3, name="x", trainable=True, bounds=(0, 10))
    >>> optimizer = OptoPrime([x], llm=StubLLM())
    >>> optimizer.backward(x * 2, "too low")
    >>> print(optimizer.prompt()[1]["content"])
    # Code
    multiply0 = x0 * 2  # 6
    # Variables
    (int) x0 = 3  # at least 0, at most 10
    # Feedback
    multiply0: too low
    >>> optimizer.step()
    {<ParameterNode x:0 = 6>: 6}

    Source: Trace, arXiv:2406.16218. Its prompt lists every value in sections of its own; here a
    value is next to the call that returned it.
    """

    def describe(self, room: int) -> str:
        """The graph as text."""
        from bisect import bisect

        view = _View(self.graph(), room)
        sizes = range(1, len(view.nearest) + 1)
        return view.text(bisect(sizes, room, key=lambda size: len(view.text(size))))


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
       feedback on 6: too low
    2. x0 = 6
       feedback on 12: too high

    Source: OPRO, arXiv:2309.03409, which sorts its attempts by score; these stay in order of time.
    """

    def describe(self, room: int) -> str:
        """Nothing of the program."""
        return ""


_CRITICISM = """\
A step of a program: {}
Feedback on what it gave: {}
Say in a few sentences how its input {} should change for better feedback."""


class _Critic(SumPropagator):
    """Feedback that a language model rewrites at every step, for each parent its own."""

    optimizer: Optimizer

    def propagate(self, node: AnyNode, feedback: Any) -> list[Any]:
        """Ask what each parent that depends on a parameter should be like; side by side."""
        inputs = node.inputs
        call = ", ".join(f"{name}={to_text(p._data, 1000)}" for name, p in inputs.items())
        step = f"{node.op_name}({call}) gave {to_text(node._data, 1000)}.\n{node.op_name}: "
        step = _cut(step, 6000) + _cut(node.description, 1000)

        def criticism(name: str) -> str | None:
            if not inputs[name]._depends:
                return None
            question = _message("user", _CRITICISM.format(step, _said(feedback, 3000), name))
            return _ask_any(self.optimizer.llm, [question])

        return _side_by_side(criticism, [*inputs])


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

    def _flow(self) -> Propagator:
        critic = _Critic()
        critic.optimizer = self
        return critic

    def _questions(self) -> Iterator[tuple[Named, str]]:
        """A prompt for each parameter that has feedback."""
        for name, each in self._named.items():
            if each.feedback:
                yield {name: each}, "\n".join(f"{name}: {_said(words)}" for words in each.feedback)

    describe = OPRO.describe  # nothing of the program: the criticisms have seen it


# ---- What a prompt shows: feedback, variables, and as much of the graph as there is room for.


def _page(sections: Mapping[str, str]) -> str:
    """The sections that are not empty, each under its title."""
    return "\n".join(f"# {title}\n{text}" for title, text in sections.items() if text)


def _said(words: Any, limit: int = 0) -> str:
    """Feedback, or the message of a failure, without memory addresses; its lines are indented, so
    that none can be taken for a heading."""
    text = words if isinstance(words, str) else "" if words is None else to_text(words)
    text = re.sub(r" at 0x[0-9a-fA-F]{1,16}", "", text)
    return "\n    ".join(_cut(text, limit).splitlines())


def _fitted(text: str, room: int) -> str:
    """A list within a number of characters: each entry cut, and those in the middle left out."""
    if len(text) <= room:
        return text
    entries = re.split(r"\n(?=\S)", text)
    share = max(200, room // len(entries))
    rows, half = [_cut(entry, share - 1) for entry in entries], max(room // share // 2, 1)
    if len(rows) > 2 * half:
        rows[half:-half] = [f"... {len(rows) - 2 * half} more"]
    return _cut("\n".join(rows), room)


def _listed(values: Options) -> str:
    return "; ".join(f"{name} = {to_text(_as_builtin(each), 300)}" for name, each in values.items())


def _variable_text(name: str, parameter: Parameter) -> str:
    """A parameter in the prompt: its whole value, and the rules for a new one."""
    low, high = parameter.bounds or (None, None)
    choices = parameter.choices and [*map(_as_builtin, parameter.choices)]
    rules = {"at least": low, "at most": high, "one of": choices}
    words = [f"{rule} {to_text(value)}" for rule, value in rules.items() if value is not None]
    note = ", ".join(filter(None, (parameter.description, parameter.constraint, *words)))
    code, value = _is_code(parameter), _as_builtin(parameter._data)
    note = f"  # {_said(note)}" if note and not code else ""
    if code or (isinstance(value, str) and "\n" in value):
        fence = max(re.findall("`{3,}", value), default="``") + "`"
        start, language = ("(code)", "python") if code else ("(str)", "")
        return f"{start} {name}:{note}\n{fence}{language}\n{value}\n{fence}"
    kind = type(value)
    if kind is str and not isinstance(parameter._data, str):  # it stands for something else
        kind = parameter.type
    return f"({kind.__name__}) {name} = {to_text(value)}{note}"


def _is_long(value: Any) -> bool:
    """Is it a text whose escapes in a reply would lead to mistakes?"""
    return isinstance(value, str) and ("\n" in value or len(value) > 300)


_FORMULA = r"[-+~]?x(?: [^\w\s]+ y|\[index\])?$"


def nearest_calls(graph: TraceGraph) -> Iterator[AnyNode]:
    """The calls of a trace graph, the most interesting first: failures, outputs, the first use of
    each parameter, and from there outward.

    Of more than twelve calls of one operator in a row, only the first four and last four are given.

    >>> x = node(1, name="x", trainable=True)
    >>> (x * 2 + 1).backward("too small")
    >>> [call.op_name for call in nearest_calls(x.feedback[0])]
    ['add', 'multiply']
    """
    calls = [each for each in graph if graph.parents(each)]
    outputs = [output.node for output in graph.outputs]
    folded = set[AnyNode]()  # the middle of every long run
    for _, run in groupby(calls, lambda each: (each.op_name, graph.kind(each))):
        row = [*run]
        if len(row) > 12:
            folded |= {*row[4:-4]}
    folded -= {*outputs}
    failed = [each for each in calls if isinstance(each, ExceptionNode)]
    uses = [graph.children(parameter)[:1] for parameter in graph.parameters]
    near = [*failed, *outputs, *chain(*uses)]
    seen = set[AnyNode]()
    for each in near:  # it grows on the way
        parents = graph.parents(each)
        if parents and each not in seen:
            seen.add(each)
            near += parents
            if each not in folded:
                yield each


class _View:
    """The part of a trace graph that fits into a number of characters, as text.

    Calls enter in the order of their nearness, each with what it needs: its line, what its operator
    does, inputs too long for the line.
    """

    def __init__(self, graph: TraceGraph, room: int) -> None:
        self.outputs = {output.node for output in graph.outputs}
        self.calls = [each for each in graph if graph.parents(each)]
        self.limit = max(60, min(600, room // (2 * len(self.calls) + 1)))  # of a value
        self.most = max(60, min(1500, room // 4))  # of a call, or of all the outputs' values
        self.nearest = [*islice(nearest_calls(graph), room // 15)]
        self.own = graph.named
        inputs = {*chain(*map(graph.parents, self.nearest))}.difference(self.own, self.calls)
        self.names = {**graph.names}
        self.inputs: dict[Any, str] = {}
        self.docs: dict[Any, str] = {}
        for each in inputs:
            text = "" if _is_code(each) else _said(to_text(graph.value(each), self.limit))
            if len(text) > 40:
                self.inputs[each] = f"{self.names[each]} = {text}"
            elif text:
                self.names[each] = text  # a short input stands where it is used
        self.lines = {each: self._line(each) for each in self.nearest}

    def _line(self, each: AnyNode) -> str:
        """A call as a line of code, with its value; what its operator does is noted if neither its
        line nor its code says it."""
        inputs, words = each.inputs.items(), each.description
        codes = [parent for _, parent in inputs if _is_code(parent)]
        given = {name: self.names[parent] for name, parent in inputs if not _is_code(parent)}
        if re.match(_FORMULA, words):
            call = re.sub(r"\b(x|y|index)\b", lambda found: given.get(found[0], found[0]), words)
        else:
            for parent in codes:
                if self.names[parent] != parent._base:
                    given["code"] = self.names[parent]
            call = f"{each.op_name}({', '.join(map('='.join, given.items()))})"
            code = " ".join(str(parent._data) for parent in codes if parent in self.own)
            if words and " ".join(words.split()) not in " ".join(code.split()):
                self.docs[each] = f"{each.op_name}: {words}"
        share = self.most // len(self.outputs) if each in self.outputs else 0
        value = _said(to_text(each._data, max(self.limit, share)))
        if isinstance(each, ExceptionNode):
            value = f"raised {_said(each._data, self.most)}"
        return f"{self.names[each]} = {_cut(call, self.most)}  # {value}"

    def text(self, size: int) -> str:
        """So many of the nearest calls, in the order of the program, with what they need."""
        near, rows = {*self.nearest[:size]}, list[str]()
        for shown, group in groupby(self.calls, lambda call: call in near):
            run = [*group]
            rows += [self.lines[each] for each in run] if shown else [self._gap(run)]
        calls = [each for each in self.calls if each in near]
        docs = dict.fromkeys(filter(None, map(self.docs.get, calls)))
        limit = max(60, min(600, 2 * self.most // (len(docs) + 1)))
        used = chain(*[each.parents for each in calls])
        sections = {
            "Code": rows,
            "Documentation": [_said(words, limit) for words in docs],
            "Inputs": filter(None, dict.fromkeys(map(self.inputs.get, used))),
        }
        return _page({title: "\n".join(rows) for title, rows in sections.items()})

    def _gap(self, calls: list[AnyNode]) -> str:
        """The line that stands for calls left out: how many, from where to where, and which."""
        counts = Counter(each.op_name for each in calls).most_common(5)
        kinds = ", ".join(f"{count} {name}" for name, count in counts)
        names = [self.names[each] for each in calls]
        return _cut(f"# {len(calls)} calls left out, {names[0]} to {names[-1]}: {kinds}", 120)


# ---- 6. Language models --------------------------------------------------------------------------
#
# How does text go out to a language model and come back, from any provider?
#
#     messages --> every hook around the call --> LLM     --> POST, retries, one deadline --> Reply
#                                                 Script  --> a canned reply              --> Reply
#                                                 StubLLM --> a search by rules           --> Reply
#
# A language model is any callable from messages to text; these are the ones we bring. A message is
# {"role": ..., "content": ...}; a plain text is one message of the user. Left out, on purpose:
# streaming, tools, images, connection reuse (a reply takes seconds, a handshake does not), and what
# else a provider's own client reads from the environment: `headers=` can say it.

_Messages = list[Fields]


class LLMError(MinitraceError):
    """A language model gave no usable answer.

    The message says who was asked, where, what came back in the server's own words, and what to do.
    It never holds a key that was given to `LLM`.

    Attributes:
        kind: what went wrong: `setup` (nothing was sent), `network`, `timeout`, `status` (an error
            from the server), `failed` (it gave up in the middle), `unreadable`, `empty`, `refused`,
            `filtered`, `cut off` (a limit came before any text), `miss` (nothing recorded or
            scripted answers this), `raised` (by a callable of yours; its error is the cause).
        status: the HTTP status, 0 if there was none.
        words: what the server said.
        hopeless: whether it is known that asking the same again cannot help.
        wait: the seconds that the server asks to wait before that, 0 if it does not.
        provider, model, url: who was asked, and where, without the query string.

    >>> try:
    ...     Script(["only one"]).map(["first", "second"], workers=1)
    ... except LLMError as error:
    ...     print(error.kind, "-", error)
    miss - the script has no reply for call 2: 'second'
    """

    kind, status, wait, hopeless = "setup", 0, 0.0, False
    provider = model = url = words = ""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)
        if self.kind in ("refused", "filtered", "empty", "cut off"):
            self.failure = f"(LLMError) {message}", ""  # of the program, as its prompts caused it


def _dig(data: Any, paths: str) -> Any:
    """What is found first in an object or dict at one of some paths ("error|choices 0 error")."""
    for path in paths.split("|"):
        found: Any = data
        for step in path.split():
            try:
                found = found[int(step) if step.isdigit() else step]
            except (LookupError, TypeError, AttributeError):
                found = getattr(found, step, None)
        if found is not None:
            return found
    return None


def _given(**fields: Any) -> Fields:
    """The fields that are not None."""
    return {field: value for field, value in fields.items() if value is not None}


def _content(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(_content(_dig(p, "text")) for p in content if _dig(p, "type") == "text")
    return content if isinstance(content, str) else ""


class Reply(str):
    """The text that a language model gave, with what is known about it.

    It is made from a text, or from what an official client returned, object or dict.

    Attributes:
        usage: `{"input_tokens": int, "output_tokens": int}`, or None if the server did not count.
        finish_reason: `"stop"`, `"length"` if a limit cut it off, another word if there is none.
        model: the language model that answered, in the server's words.

    >>> completion = {
    ...     "choices": [{"message": {"content": "4"}, "finish_reason": "length"}],
    ...     "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    ... }
    >>> reply = Reply(completion, model="llama3")
    >>> reply + "2", reply.usage, reply.finish_reason
    ('42', {'input_tokens': 9, 'output_tokens': 1}, 'length')
    """

    usage: dict[str, int] | None = None
    finish_reason = "stop"
    model = ""

    def __new__(cls, answer: Any = "", **facts: Any) -> Reply:
        if isinstance(answer, Reply) and not facts:
            return answer
        text = answer
        if not isinstance(answer, str):
            if not isinstance(_dig(answer, "choices|content"), list):
                raise TypeError(f"a language model must return text, not {to_text(answer, 80)}")
            text = _content(_dig(answer, "choices 0 message content|content"))
        # A lone surrogate, which JSON can carry, would break the first file that the text goes to.
        self = super().__new__(cls, text.encode("utf-8", "backslashreplace").decode("utf-8"))
        end = "refusal" if _dig(answer, _REFUSAL) else _content(_dig(answer, _END))
        model = _content(_dig(answer, "model"))
        facts = {"finish_reason": _ENDS.get(end.lower(), end), "model": model, **facts}
        told, usage = facts.get("usage") or _dig(answer, "usage"), Fields()
        for name, *kinds in map(str.split, _COUNTS):
            counts = [count for kind in kinds if isinstance(count := _dig(told, kind), int)]
            if counts:
                usage.setdefault(name, sum(counts))
        facts["usage"] = usage
        self.__dict__.update({name: fact for name, fact in facts.items() if fact})
        return self


# Where an answer has the word for why its text ended. OpenAI's form comes first, then Anthropic's.
_END = "choices 0 finish_reason|stop_reason"
_REFUSAL = "choices 0 message refusal"  # words in place of a text
# What the words for an end mean: a text that is whole, one cut by a limit, or else none at all.
_ENDS = {
    word: kind
    for kind, words in (
        row.split(": ")
        for row in """
stop: end_turn stop_sequence eos
length: max_tokens model_length max_output_tokens
cut off: model_context_window_exceeded
refused: refusal
filtered: content_filter content_filtered sensitive safety recitation blocklist prohibited_content \
invalid_prompt content_policy_violation data_inspection_failed
failed: error network_error insufficient_system_resource abort aborted cancelled
""".strip().splitlines()
    )
    for word in words.split()
}
# What the counts of tokens are called; those of the first row that is found add up.
_COUNTS = (
    "input_tokens prompt_tokens",
    "input_tokens input_tokens cache_creation_input_tokens cache_read_input_tokens",
    "output_tokens completion_tokens",
    "output_tokens output_tokens",
)


# The hooks of the blocks around this code, or None where there is none; and those of all blocks.
_hooks: ContextVar[tuple[Function, ...] | None] = ContextVar("minitrace_hooks", default=None)
_open_hooks: list[Function] = []


def _is_bare() -> bool:
    """Is this a thread that took no context along, such as a plain `Thread` or one of a pool?"""
    return _hooks.get() is None and get_ident() != main_thread().ident


def _read_elsewhere(node: AnyNode) -> Any:
    """The data of a node outside all scopes; noted by a body that started this thread and waits."""
    import traceback

    value, frames = node._data, sys._current_frames() if _is_bare() else {}
    for body in [*_bodies]:
        bare = body.thread != main_thread().ident and body.hooks is None
        sibling = bare and not body.outer
        frame = None if sibling or get_ident() in body.threads else frames.get(body.thread)
        waits = frame and frame.f_globals.get("__name__") in ("threading", "selectors")
        if waits and any(f.f_locals.get("body") is body for f, _ in traceback.walk_stack(frame)):
            value = body.read(node)
    return value


@contextmanager
def around_calls(hook: Function) -> Iterator[None]:
    """Wrap every call of a language model in this block: a budget, a journal, telemetry.

    Instead of the call, `hook(llm, messages, options, ask)` runs: `ask()` makes the call and
    returns its `Reply`, and what the hook returns is what the caller gets. Blocks nest, the outer
    hook first. A call that a language model makes in turn is part of the outer call, and not seen.

    A block applies to this thread or task, and to all that copy its context. A thread that does
    not (`Thread`, `ThreadPoolExecutor`, `run_in_executor`) may work for any block: its calls are
    seen by the hooks of all that are open.

    >>> def count(llm, messages, options, ask):
    ...     reply = ask()
    ...     print(llm.model, "said", reply)
    ...     return reply
    >>> with around_calls(count):
    ...     reply = Script(["Paris."])("The capital of France?")
    script said Paris.
    """
    before = _hooks.get()
    try:
        _open_hooks.append(hook)
        _hooks.set((*(before or ()), hook))
        yield
    finally:
        with suppress(ValueError):
            _open_hooks.remove(hook)
            left = [*(_hooks.get() or ())]
            left.remove(hook)
            _hooks.set(tuple(left) or (before and ()))


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

    def complete(self, messages: _Messages, options: Fields) -> Reply:
        """The reply to some messages: yours to write."""
        raise NotImplementedError(f"{type(self).__name__} has no complete()")

    def __call__(self, messages: str | Sequence[Options], **options: Any) -> Reply:
        """Ask once. Options override those of the constructor; None removes one."""
        if isinstance(messages, str):
            messages = [_message("user", str(messages))]
        if not messages or any(not {"role", "content"} <= set(m) for m in messages):
            raise TypeError(f"not a text, nor messages of role and content: {messages!r:.200}")
        given = [dict(message) for message in messages]
        merged = _given(**{**self.options, **options})
        ask, before = partial(self._complete, given, merged), _hooks.get()
        for hook in reversed(dict.fromkeys(_open_hooks if _is_bare() else before or ())):
            ask = partial(hook, self, given, merged, ask)
        try:
            _hooks.set(())
            return ask()
        finally:
            _hooks.set(before)

    def _complete(self, messages: _Messages, options: Fields) -> Reply:
        """What `complete` returns; if one of yours raises, the language model has failed."""
        try:
            answer = self.complete(messages, options)
        except Exception as error:
            if isinstance(error, (MinitraceError, NotImplementedError)) or isinstance(self, LLM):
                raise
            raise LLMError(
                f"the language model {self.model or type(self).__name__} raised "
                f"{to_text(error, 500)}, the cause of this",
                kind="raised",
            ) from error
        return Reply(answer)

    def map(self, prompts: Iterable[Any], workers: int = 8, **options: Any) -> list[Reply]:
        """Ask all prompts, up to `workers` at a time; replies come in the order of the prompts.

        The first failure is raised when the calls in flight have ended, and no other is started.
        """
        return _side_by_side(partial(self, **options), list(prompts), workers)

    async def acall(self, messages: str | Sequence[Options], **options: Any) -> Reply:
        """Ask without blocking the event loop; a cancelled call is left to its own deadline."""
        from asyncio import wrap_future

        return await wrap_future(_in_thread(lambda: self(messages, **options)))

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        return self  # a connection, not a value: copies of its owner share it, key and all


def _in_thread(work: Callable[[], Any]) -> Any:
    """The future of `work`, run in this context in a daemon thread, which lets a program end.

    Where there are no daemons, any thread does; where there are no threads, it is run at once.
    """
    from concurrent.futures import Future

    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    context = copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    for daemon in True, False:  # a subinterpreter has no daemons, WebAssembly no threads
        with suppress(RuntimeError):
            Thread(target=run, daemon=daemon).start()
            return future
    run()
    return future


# ---- Any other callable is a language model too, and one is there by default.


def _ask_any(llm: Any, messages: Any, options: Mapping[str, Any] = {}) -> Reply:
    """Ask any callable from messages to text, or by default the one that the environment names;
    hooks see it as they see ours."""
    llm = _default_llm() if llm is None else llm
    if not isinstance(llm, LanguageModel):
        function, llm = llm, LanguageModel()
        llm.function = function
        llm.complete = lambda messages, options: function(messages, **options)
        llm.model = str(getattr(function, "model", None) or "callable")
    return cast(Reply, llm(messages, **options))


def _warn_outside(words: str) -> None:
    """Warn, at the first line outside this file."""
    level, frame = 1, sys._getframe()
    while frame.f_code.co_filename == __file__ and frame.f_back:
        level, frame = level + 1, frame.f_back
    warn(words, stacklevel=level)


_warned_of_stub = False


def _default_llm() -> LanguageModel:
    """The language model that the environment names, or the stub, with a warning the first time."""
    global _warned_of_stub
    if os.environ.get("MINITRACE_MODEL"):
        return LLM()
    if not _warned_of_stub:
        _warned_of_stub = True
        _warn_outside(
            "no language model is configured, so a StubLLM answers: it can search numbers and "
            "choices but not write. Set MINITRACE_MODEL (such as openai/gpt-4o) and the "
            "provider's key, or pass llm="
        )
    return StubLLM()


# ---- Two tables say how to talk to everybody: a protocol is how, a provider is where.


class _Protocol(NamedTuple):
    """A wire format: where a request goes, and what it looks like."""

    path: str  # what follows the base address
    options: str  # and "=" the names on the wire, if they differ; the first not refused is sent
    fields: Callable[[_Messages], Fields]  # from messages to the fields that carry them
    headers: Mapping[str, str] = {}  # those it demands beside the key

    def names(self) -> dict[str, list[str]]:
        """The names on the wire of each option."""
        pairs = re.findall(r"(\w+)=?(\S*)", self.options)
        return {option: (names or option).split("|") for option, names in pairs}


def _anthropic_fields(messages: _Messages) -> Fields:
    """The system's words go on top, unless nobody else says anything."""
    on_top = ("system", "developer")
    system = "\n\n".join(_content(m["content"]) for m in messages if m["role"] in on_top)
    turns = [m for m in messages if m["role"] not in on_top]
    alone = [_message("user", system)]
    return _given(max_tokens=8192, messages=turns or alone, system=(turns and system) or None)


PROTOCOLS = {
    "openai": _Protocol(
        "/chat/completions",
        "temperature top_p seed=seed|random_seed stop reasoning_effort response_format "
        "max_tokens=max_tokens|max_completion_tokens",
        lambda messages: {"messages": messages},
    ),
    # Since this version the official client sends its key as a bearer token. For a gateway that
    # knows the older form: LLM(headers={"x-api-key": ..., "anthropic-version": "2023-06-01"}).
    "anthropic": _Protocol(
        "/v1/messages",
        "temperature top_p top_k max_tokens stop=stop_sequences",
        _anthropic_fields,
        {"anthropic-version": "2026-10-21"},
    ),
}
# Who serves language models, by the first part of a name, as in "groq/llama-3": the protocol, the
# base address, variables that may hold the key (the first that is set wins), the variable that
# moves the address, and what stands behind what that says. "compatible" serves bare names, and has
# no address of its own.
PROVIDERS: dict[str, tuple[str, ...]] = {
    name: tuple(rest)
    for name, *rest in (
        row.split("  ")
        for row in """
openai  openai  https://api.openai.com/v1  OPENAI_API_KEY  OPENAI_BASE_URL
anthropic  anthropic  https://api.anthropic.com  ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN  \
ANTHROPIC_BASE_URL
gemini  openai  https://generativelanguage.googleapis.com/v1beta/openai  \
GOOGLE_API_KEY GEMINI_API_KEY  GOOGLE_GEMINI_BASE_URL  /v1beta/openai
ollama  openai  http://127.0.0.1:11434/v1  OLLAMA_API_KEY  OLLAMA_HOST  /v1
openrouter  openai  https://openrouter.ai/api/v1  OPENROUTER_API_KEY
groq  openai  https://api.groq.com/openai/v1  GROQ_API_KEY  GROQ_BASE_URL  /openai/v1
mistral  openai  https://api.mistral.ai/v1  MISTRAL_API_KEY
deepseek  openai  https://api.deepseek.com/v1  DEEPSEEK_API_KEY
together  openai  https://api.together.xyz/v1  TOGETHER_API_KEY
xai  openai  https://api.x.ai/v1  XAI_API_KEY
lmstudio  openai  http://127.0.0.1:1234/v1
vllm  openai  http://127.0.0.1:8000/v1  VLLM_API_KEY
llamacpp  openai  http://127.0.0.1:8080/v1  LLAMA_API_KEY
compatible  openai    OPENAI_API_KEY  OPENAI_BASE_URL
""".strip().splitlines()
    )
}


def _moved_address(variable: str, path: str) -> str:
    """The base address that a variable names: a URL, in OLLAMA_HOST also a host with a port."""
    said = os.environ.get(variable, "").strip().rstrip("/")
    if said and variable == "OLLAMA_HOST" and "://" not in said:
        said = f"http://{said}" if ":" in said else f"http://{said}:11434"
    return said + path if said and not said.endswith(path) else said


# ---- The wire: one POST, read to a reply or an error, and a deadline that holds.

_LARGEST = 16 << 20  # bytes in an answer
_CONNECT = 10.0  # seconds until a host that does not answer counts as not there
_REFUSES = (
    "un(supported|known|recognized|expected)|not (support|allowed|accepted)|permitted"
    "|extra_forbidden|deprecated|no longer"
)
# The first line whose pattern is found in "kind status words" has the advice, and says whether the
# same may be asked again (->) or that it is hopeless (=>).
_ADVICE = """
x-should-retry: true -> try again later, or raise retries= and timeout=
insufficient.(quota|balance|funds|credits)|balance is too low|(any|more|no) credits|billing_error\
|^status 402 => the account has nothing left: top it up or use another
context.?(length|window|size|limit)|maximum (context|prompt)|(prompt|input|request) (is )?too long\
|token count|too many (input )?tokens|inputs`.{0,30} must|request.too.large|reduce the length\
|status 413 => shorten the prompt
the proxy \\S+: (no connection|.*407) => \
see the proxy: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names it
CERTIFICATE => it is not trusted here: SSL_CERT_FILE can name who vouches for it
^(failed|status (408|409|429|5)).*x-should-retry: false => it says that another try cannot help
^status (408|409|429|5)|^failed -> try again later, or raise retries= and timeout=
^status 401.*x-api-key => check the key, or send it as the server asks: \
headers={"x-api-key": ..., "anthropic-version": "2023-06-01"}
^status 40[13]|api.?key|no connected db => check the key: api_key= or {keys}
^status 404|model.{0,80}not (found|exist)|invalid model|no endpoints \
=> check the language model's name, and base_url=
^status 3 => redirects are not followed, to keep the key: set base_url= to the new address
^status => see the server's words, and check the options and extra= of the call
^timeout => raise timeout=, or ask for less with max_tokens=
^network -> check that the server runs and that its address is right
^unreadable => check that base_url= points to the API of a language model
^cut off|in its reasoning => raise max_tokens=
 => change the prompt, or ask again
"""


def _wait(headers: Any, body: str) -> float:
    """The seconds a server asks us to wait, in any of four forms; 0 if it does not."""
    from email.utils import parsedate_to_datetime

    after, short = headers.get("retry-after", "").strip(), headers.get("retry-after-ms")
    for said in (f"{short}e-3", after, *re.findall(r'"retryDelay":\s*"([\d.]+)s"', body)):
        if re.fullmatch(r"\d+(\.\d+)?(e-3)?", said):
            return float(said)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0, parsedate_to_datetime(after).timestamp() - time.time())
    return 0


def _words(error: Any) -> str:
    """A server's own words for an error, in whichever of the many shapes they come."""
    words = _dig(error, "message") or error
    text = (words if isinstance(words, str) else json.dumps(words))[:500]
    notes = [_dig(error, name) for name in ("code", "type", "metadata raw")]
    return text + "".join(f" [{note:.300}]" for note in notes if isinstance(note, str))


def _read(body: str, status: int) -> tuple[Reply, str, int, str]:
    """The reply in an answer, or the kind of error that it is, with its status and words."""
    data, reply = None, Reply()
    with suppress(ValueError, RecursionError):
        data = json.loads(body, strict=False)
    error = _dig(data, "error|0 error|choices 0 error")
    page = re.sub(r"<[^>]*>|[^\w!-~]", " ", body[:2000])
    words = _words(error or _dig(data, "detail|message") or page)
    code, end = str(_dig(error, "code")), str(_dig(data, _END) or "stop")
    if status == 200 and re.fullmatch("[45][0-9][0-9]", code):  # as some gateways do
        status = int(code)
    if error or not 200 <= status < 300:
        kind = _ENDS.get(code) or (status < 400 and _ENDS.get(end)) or "status"
        return reply, kind, status, words
    try:
        reply = Reply([] if isinstance(data, str) else data)
    except TypeError:
        broken = data is None or "\ufffd" in body  # on its way, and not a page for people
        if broken and body.strip()[:1] in ("{", ""):
            return reply, "network", status, f"no whole JSON: {words}"
        return reply, "unreadable", status, words
    kind = reply.finish_reason
    if kind not in ("refused", "filtered", "failed", "cut off"):  # whatever the text
        kind = "" if reply.strip() else "cut off" if kind == "length" else "empty"
    thought = _dig(data, "choices 0 message reasoning_content|choices 0 message reasoning")
    said = _dig(data, _REFUSAL) or reply.strip() or ("all is in its reasoning" if thought else "")
    return reply, kind, status, f"{str(said)[:500]} (finish reason: {end:.80})".strip()


class _Key(str):
    """A text that no repr shows: no traceback with its variables, no `vars`, no crash report."""

    def __repr__(self) -> str:
        return "'[key]'"


_CREDENTIALS = {"authorization", "x-api-key", "api-key", "x-goog-api-key"}


class _Route:
    """Where a language model is and how it is spoken to. The environment is read when it is made.

    Attributes:
        name: the provider's, "/", and that of the `model`.
        names: those of options on the wire, less those that were refused.
        keys: the variables that may hold the key.
        secrets: what no text may show, the longest first.
    """

    def __init__(self, llm: LLM, name: str) -> None:
        provider, _, self.model = name.partition("/")
        if provider not in PROVIDERS or not self.model:
            provider, self.model = "compatible", name
        form, base, self.keys, variable, path = (*PROVIDERS[provider], "", "", "")[:5]
        self.name, self.protocol = f"{provider}/{self.model}", PROTOCOLS[form]
        self.names = self.protocol.names()
        moved = llm.base_url or _moved_address(variable, path) or base
        # Servers listen at 0.0.0.0, and say so, but it is not an address to call.
        called = re.sub(r"//0\.0\.0\.0(?![^:/])", "//127.0.0.1", moved)
        self.url = _address(called, self.protocol.path)
        if "//api.openai.com/" in self.url:  # its newer models refuse the older name
            self.names["max_tokens"].reverse()
        basic = {"content-type": "application/json", "user-agent": "minitrace"}
        self.headers = {**basic, **self.protocol.headers, **llm._headers}
        key = llm._key
        if key is None and not self.headers.keys() & _CREDENTIALS:
            key = _Key(next(filter(None, map(os.environ.get, self.keys.split())), ""))
        if key and key.strip():
            self.headers.setdefault("authorization", _Key(f"Bearer {key.strip()}"))
        secret, headers = "auth|key|token|secret|cookie", self.headers.items()
        hidden = [value for name, value in headers if re.search(secret, name)]
        self.secrets = sorted(map(_Key, " ".join(hidden).split()), key=len, reverse=True)
        if fault := self.fault(llm.allow_http, moved == base):
            raise LLMError(f"{self.name}: {fault}", provider=provider, model=self.model)

    @property
    def here(self) -> bool:
        """Does it lead to this machine's own loopback, and not only look like it?"""
        net = r"127(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}"
        host = rf"localhost|{net}|\[::1]|\[::ffff:{net}]"
        return bool(re.match(rf"https?://({host})(?![^:/?])", self.url))

    def redact(self, text: str) -> str:
        """The text without the keys in it (shorter ones, such as "none", are no secret)."""
        for word in self.secrets:
            if len(word) > 7:
                text = text.replace(word, "[key]")
        return text

    def fault(self, may_be_plain: bool, needs_key: bool) -> str:
        """Why nothing may be sent this way, or ""."""
        headers = (f"{name}:{value}" for name, value in self.headers.items())
        if not self.url:
            return "name a provider, or give base_url=: http(s)://..., without a user or password"
        if not all(re.fullmatch("[!-9;-~]+:[ -~]+", header) for header in headers):
            return "the key, or another header, holds a line break or what else none can carry"
        if self.secrets and self.url.startswith("http:") and not (self.here or may_be_plain):
            return "plain http would show the key: use https, or allow_http=True, or api_key=''"
        if needs_key and not (self.here or self.secrets):
            return f"there is no key: pass api_key= or set {self.keys or 'headers='}"
        return ""

    def request(self, messages: _Messages, options: Fields) -> Fields:
        """The body of a request, without what the server has refused by name."""
        body = {"model": self.model, **self.protocol.fields(messages)}
        for option, value in options.items():
            if names := self.names.get(option):
                alone = option == "stop" and isinstance(value, str)
                body[names[0]] = [value] if alone else value
        return {**body, **options.get("extra", {})}

    def learn(self, sent: Fields, error: LLMError) -> None:
        """Remember an option that the server refuses by name; another name is tried, or none."""
        if error.status not in (400, 422) or not re.search(_REFUSES, error.words, re.I):
            return
        said = error.words.replace("_", "")  # since some say it in camelCase
        for names in self.names.values():
            for name in sent.keys() & names:
                if re.search(rf"\b{name.replace('_', '')}\b", said, re.I):
                    names[:] = [other for other in names if other != name]
                    if not names:
                        left = f"{self.name} refuses {name!r}: it is left out from now on"
                        _warn_outside(f"{left} ({error.words})")
                    return

    def error(self, kind: str, words: str, status: int = 0, wait: float = 0) -> LLMError:
        """What went wrong, where, and what to do."""
        words, url = " ".join(self.redact(Reply(words)).split()), self.url.partition("?")[0]
        said = f"{kind} {status} {words}" if status else f"{kind}: {words}"
        rows = re.findall(r"(.*) ([-=])> (.*)", _ADVICE.replace("{keys}", self.keys))
        sign, advice = next(row[1:] for row in rows if re.search(row[0], said, re.I | re.S))
        facts = {"kind": kind, "status": status, "words": words, "hopeless": sign == "="}
        facts |= {"wait": wait, "model": self.model, "provider": self.name.partition("/")[0]}
        return LLMError(f"{self.name} at {url}: {said}; {advice}.", url=url, **facts)

    def post(self, body: bytes, seconds: float) -> Reply | LLMError:
        """The reply to one POST, or what kept it from coming within `seconds`.

        The timeout of a socket is per read: an answer that drips outlives it, and a name look-up
        has none. So a thread talks, we wait no longer than we may, and then shut down its socket.
        """
        import socket
        from concurrent.futures import wait
        from urllib.request import Request

        sockets = list[Any]()

        def talk() -> Reply | LLMError:
            # Whatever goes wrong becomes text: a traceback through urllib would show the key.
            request = Request(self.url, body, {**self.headers}, method="POST")
            try:
                opener = self._opener(seconds, sockets)
                with opener.open(request, timeout=min(seconds, _CONNECT)) as response:
                    if response.status == 407:
                        raise OSError("status 407")
                    return self._receive(response)
            except Exception as error:
                said = repr(getattr(error, "reason", error))
                said = said if sockets else f"no connection: {said}"
                if request.host not in self.url:
                    said = f"the proxy {request.host}: {said}"
                return self.error("network", said)

        talking = _in_thread(talk)
        try:
            done = wait([talking], seconds).done
            return talking.result() if done else self.error("timeout", "no whole answer in time")
        finally:
            for each in sockets:
                with suppress(OSError):  # closed already
                    socket.socket.shutdown(each, socket.SHUT_RDWR)

    def _opener(self, seconds: float, sockets: list[Any]) -> Any:
        """What opens a request: past proxies if it stays here, and without following redirects.

        Its socket is put among the `sockets` as soon as it is connected, before anything is sent.
        """
        import socket
        from urllib import request

        deadline = time.monotonic() + seconds

        class Connects(request.HTTPSHandler, request.HTTPHandler):
            def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
                def connect(connection: Any) -> None:
                    http_class.connect(connection)
                    opened = connection.sock
                    sockets.append(opened)
                    opened.settimeout(seconds + 1)
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    if hasattr(socket, "TCP_KEEPIDLE"):
                        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
                    if time.monotonic() > deadline:  # nobody pays for what nobody waits for
                        raise TimeoutError("connected too late")

                tells: Any = type("Connection", (http_class,), {"connect": connect})
                return super().do_open(tells, req, **options)

        proxies = {} if self.here else request.getproxies()
        if "all" in proxies:
            proxies = {"http": proxies["all"], "https": proxies["all"], **proxies}
        # Certificates take long to load: none are, where nothing is encrypted.
        context: Any = None if "https:" in f"{self.url} {proxies}" else 0
        opener = request.OpenerDirector()
        opener.add_handler(request.ProxyHandler(proxies))
        opener.add_handler(Connects(context=context))
        opener.add_handler(request.UnknownHandler())
        return opener

    def _receive(self, response: Any) -> Reply | LLMError:
        """Read an answer whole, but never more than the largest we take."""
        raw = response.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            return self.error("unreadable", f"an answer larger than {_LARGEST:,} bytes")
        if response.length:  # read(n) is silent about what did not come
            return self.error("network", "the answer was cut")
        body, headers = raw.decode("utf-8-sig", "replace"), response.headers
        reply, kind, status, words = _read(body, response.status)
        if not kind:
            model = self.redact(reply.model or self.model)
            return Reply(self.redact(reply), **vars(reply) | {"model": model})
        wait = _wait(headers, body)
        words += f" [it asks to wait {wait:g} s]" if wait else ""
        for name in "location", "x-should-retry", "content-encoding":
            words += f" [{name}: {headers[name]}]" if name in headers else ""
        return self.error(kind, words, status, wait)


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
        timeout: seconds for one call, its repeats and pauses included. A host that does not answer
            within 10 of them counts as not there, and may be asked again.
        retries: how often to ask again.
        allow_http: let a key travel over plain http to another machine.
        extra: fields of the request that only this server knows.
        sleep: what waits between repeats.
        options: temperature, top_p, top_k, max_tokens, stop, seed, reasoning_effort,
            response_format; a call may give its own, and `extra` too.

    Raises:
        LLMError: from a call without a usable text; its `kind` tells the cases apart.
        TypeError: an option that no protocol knows, or not the one in use.
        ValueError: a timeout that is not a number of seconds above 0.

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
        sleep: Callable[[float], object] = time.sleep,
        **options: Any,
    ) -> None:
        # Both names are bound anew, since this frame may be shown in a traceback.
        self._key = api_key = api_key and _Key(api_key)
        headers = {k.lower(): _Key(str(v).strip()) for k, v in headers.items() if v}
        self._headers = headers
        self.model = model
        self.base_url = base_url
        self.timeout = timeout
        self.retries = retries
        self.allow_http = allow_http
        self.sleep = sleep
        self.options = options
        _check_options(options, chain(*(each.names() for each in PROTOCOLS.values())))
        if not 0 < timeout <= 1e6:
            raise ValueError(f"timeout is in seconds, above 0 and up to a million, not {timeout!r}")

    def __repr__(self) -> str:
        given = [f", {k}={v!r}" for k, v in _given(**self.options).items()]
        return f"LLM({self.model!r}{''.join(given)})"

    def __getstate__(self) -> Fields:
        kept = {name: value for name, value in vars(self).items() if name != "_route"}
        return {**kept, "_key": None, "_headers": {}}

    def complete(self, messages: _Messages, options: Fields) -> Reply:
        import random

        deadline, attempt, route = time.monotonic() + self.timeout, 0, self._route
        _check_options(options, route.names)
        while True:
            sent = route.request(messages, options)
            body = json.dumps(sent, allow_nan=False).encode()
            result = route.post(body, deadline - time.monotonic())
            if isinstance(result, Reply):
                return result
            route.learn(sent, result)
            if sent != route.request(messages, options):
                continue
            pause = result.wait or min(0.5 * 2**attempt, 8) * random.uniform(0.75, 1)
            in_time = time.monotonic() + pause < deadline
            if attempt >= self.retries or not in_time or result.hopeless:
                raise result
            self.sleep(pause)
            attempt += 1

    @cached_property
    def _route(self) -> _Route:
        name = self.model or os.environ.get("MINITRACE_MODEL", "").strip()
        if not name:
            raise LLMError(
                "no language model is configured: pass LLM('provider/name'), or set MINITRACE_MODEL"
                f" to it and the variable of the provider's key. Providers: {', '.join(PROVIDERS)}"
            )
        return _Route(self, name)


def _check_options(options: Fields, known: Iterable[str]) -> None:
    names = sorted({*known})
    for name in sorted(options.keys() - {*names, "extra"}):
        raise TypeError(
            f"no option {name!r}: known are {', '.join(names)}; "
            "what one server alone knows goes into extra={...}"
        )


def _address(base: str, path: str) -> str:
    """The address of a request, or "" if the base, which may end as the path does, is none."""
    host = r"(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::\d+)?"
    ending = re.sub("^/v1(/.*)", r"/v1(?:\1)?", path)
    form = rf"(?=[!-~]+\Z)(https?://{host}(?:/[^?#]*?)??)/*(?:{ending})?/*(\?[^#]*)?"
    parts = re.fullmatch(form, base)
    return parts[1] + path + (parts[2] or "") if parts else ""


class Script(LanguageModel):
    """Canned replies, for tests and lessons: texts in order, or (pattern, reply) pairs, or both.

    The first pattern found in the conversation (a regular expression, `re.search`) selects the
    reply, any number of times; where none is found, the next text is the reply. `asked` keeps the
    messages of every call.

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
        self.replies = [replies] if isinstance(replies, str) else list(replies)
        self.asked = list[_Messages]()
        self._texts = iter([reply for reply in self.replies if isinstance(reply, str)])

    def complete(self, messages: _Messages, options: Fields) -> Reply:
        self.asked.append(messages)
        prompt = "\n".join(_content(message["content"]) for message in messages)
        pairs = [pair for pair in self.replies if not isinstance(pair, str)]
        fits = (reply for pattern, reply in pairs if re.search(pattern, prompt))
        for reply in chain(fits, self._texts):
            return Reply(reply, model="script")
        raise LLMError(
            f"the script has no reply for call {len(self.asked)}: {prompt!r:.200}", kind="miss"
        )


def _call_llm(*prompts: Any) -> MessageNode[Any]:
    """Ask a language model, as a step: `call_llm(llm, system, *user)`, or without `llm`.

    The first text is the system message, those after it are the user's. A template string is a text
    as `operators.format` makes it.
    """
    llm, words = to_data(prompts[0]), prompts[1:]
    if not callable(llm):
        llm, words = None, prompts  # the default

    def asked(*texts: str) -> str:
        roles = ["system"] + ["user"] * len(texts)
        return str(_ask_any(llm, [*map(_message, roles, texts)]))

    means = "the reply of a language model to the prompts"
    return _call_op(
        _Op("call_llm", means, ("system",), asked, effects=True), [*map(_without_template, words)]
    )


setattr(operators, "call_llm", _call_llm)


def _format(x: Any, /, *args: Any, **kwargs: Any) -> Any:
    """`x.format()`; a template string (from Python 3.14 on) is taken apart into text and values."""
    if hasattr(x, "interpolations"):
        args, parts, x = (*map(_without_template, x.values),), x, ""
        for part in parts:
            if isinstance(part, str):
                x += re.sub("[{}]", r"\g<0>\g<0>", part)
            else:
                x += f"{{!{part.conversion}".replace("!None", "")
                x += f":{part.format_spec}}}" if part.format_spec else "}"
    return Node.format(x, *args, **kwargs)


setattr(operators, "format", update_wrapper(_format, operators.format))


def _without_template(x: Any) -> Any:
    """A template string as the node of a text, anything else as it is."""
    return _format(x) if hasattr(x, "interpolations") else x


_MORE = (
    r"(?i)\b(?:low|small|cold|little|few|short|below|under"
    r"|increase|higher|more|larger|bigger|raise|up)\b"
)
_LESS = (
    r"(?i)\b(?:high|big|large|hot|warm|long|above|over|too much|too many"
    r"|decrease|lower|less|fewer|smaller|reduce|down)\b"
)


class StubLLM(LanguageModel):
    """An honest stand-in for a language model: it searches numbers and choices, and cannot write.

    It reads the same prompt that a language model would get, past attempts included, and answers in
    the same form, which depends only on its seed and the prompt. Numbers follow the words of the
    feedback ("too low", "higher") by doubling and then bisection, or climb its score, inside their
    bounds. Booleans and choices: one not tried yet. Text and code it leaves as they are, and says
    so.

    Args:
        seed: which of several equal guesses it makes.

    >>> prompt = "# Variables\\n(int) x0 = 3  # at least 0, at most 10\\n# Feedback\\nadd0: too low"
    >>> StubLLM()(prompt)
    '{"reasoning": "x0: up from 3.", "suggestion": {"x0": 6}}'
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def complete(self, messages: _Messages, options: Fields) -> Reply:
        import random

        asked = [str(m["content"]) for m in messages if m["role"] == "user"]
        rng = random.Random(f"{self.seed}\n{asked}")
        section = r"\n# (Variables|Past attempts|Feedback)[^\n]*(\n.*?)(?=\n# [A-Z]|\Z)"
        found = re.findall(section, f"\n{asked[0]}", re.S)
        sections = defaultdict(str, reversed(found))  # of two with one title the first
        row = r"^\((\w+)\) (\w+)(?: = (.*?))?(?:  # (.*))?$"
        rows = re.findall(row, sections["Variables"], re.M)
        attempts = re.split(r"\n\d+\. ", sections["Past attempts"])[1:]
        now = "; ".join(f"{name} = {value}" for _, name, value, _ in rows)
        tried = [*map(self._read, [*attempts, now + sections["Feedback"]])]
        reasons, suggestion = [], Fields()
        for place, (kind, name, _, rules) in enumerate(rows):
            seen = [(values[name], *said) for values, *said in tried if name in values]
            new, why = self._guess(kind, rules, seen, (place, len(rows)), rng)
            reasons.append(f"{name}: {why}")
            if new is not None:
                suggestion[name] = new
        said = {"reasoning": "; ".join(reasons) + ".", "suggestion": suggestion}
        return Reply(json.dumps(said), model="stub")

    def _read(self, attempt: str) -> Any:
        """The values of an attempt, the way its feedback points (up if above 0), and its score."""
        values, _, said = attempt.partition("\n")
        way = len(re.findall(_MORE, said)) - len(re.findall(_LESS, said))
        scores = re.findall(r"score:? *(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", said)
        named = dict(re.findall(r"(\w+) = (.*?)(?=; \w+ = |$)", values))
        return named, way, float(scores[0]) if scores else None

    def _guess(self, kind: str, rules: str, seen: Any, turn: Any, rng: Any) -> tuple[Any, str]:
        """The next value of a variable, or None to leave it, and why.

        It is a choice not tried yet, or where the feedback points, inside the bounds. `seen` holds
        for each attempt the value, the way from there, and the score or None.
        """
        import ast

        if kind == "bool":
            rules = "one of [False, True]"
        for choices in re.findall(r"one of (\[.*\])", rules):
            tried = {value for value, _, _ in seen}
            left = [choice for choice in ast.literal_eval(choices) if repr(choice) not in tried]
            return (rng.choice(left), "not tried yet") if left else (None, "all were tried")
        if kind not in ("int", "float"):
            return None, "a stub cannot write"
        seen = [(float(value), *said) for value, *said in seen]
        value, way, score = seen[-1]
        if not way and score is None:
            return None, "the feedback does not say which way"
        new = value if way else self._climb(seen, *turn)
        if way:  # twice as far, or to the middle between the nearest two, one on each side
            doubled = value + 2 * math.copysign(max(abs(value), 1), way)
            beyond = [v for v, w, _ in seen if w * way < 0 < (v - value) * way]
            new = (value + min(beyond, key=lambda v: abs(v - value), default=doubled)) / 2
        ends = dict(re.findall(r"at (least|most) (-?[\d.e+-]+)", rules))
        new = min(max(new, float(ends.get("least", "-inf"))), float(ends.get("most", "inf")))
        if kind == "int":  # on a climb away from the value, which is where it would stand still
            new = round(new) if way else math.ceil(new) if new > value else math.floor(new)
        if new == value:
            return None, f"it stays at {value:g}"
        return new, f"{'up' if new > value else 'down'} from {value:g}"

    def _climb(self, seen: Any, turn: int, variables: int) -> Any:
        """A step from the best value so far: on after a success, else back and shorter."""
        values, scores = zip(*[(v, s) for v, _, s in seen if s is not None], strict=True)
        first = scores.index(max(scores))  # as good again is no success
        best, failures = values[first], len(scores) - 1 - first
        strides = [max(abs(best), 1) / 4, *(best - v for v in values[:first] if v != best)]
        if failures // 2 % variables != turn:
            return best
        stride = strides[-1] * ((-1.0) ** failures if failures else 2)
        return best + stride / 3.0 ** (failures // (2 * variables))


# ---- 7. Looking ----------------------------------------------------------------------------------
#
# What happened?  A trace graph as text, its outputs on top:
#
#       add0 = 7  <- too small
#       ├─ multiply0 = 6
#       │  ├─ x0 = 3  [parameter]
#       │  └─ int0 = 2
#       └─ int1 = 1
#
# What if a value had been another?  `rerun` computes a graph again from there. And how does a graph
# travel?  As JSON to other programs, in pickles to other processes of Python.
# Left out: pictures, which the companion `minitrace_pictures` draws.


_ADDRESS = r" at 0x[0-9a-fA-F]{1,16}"
_OBJECT = rf"(<)[\w.<>]{{0,200}}?(\w{{1,99}}) (?:object{_ADDRESS}|with parameters [^<>]*)(?=>)"


def to_text(value: Any, limit: int = 0) -> str:
    """`repr`, the same on every run (no address, sets sorted), cut in the middle to `limit`.

    >>> to_text([{"b", "a"}, object()]), to_text("x" * 1000, 44)
    ("[{'a', 'b'}, <object>]", "'xxxxxxxxxxx ...(1,002 characters)... xxxxx'")
    """
    try:
        text = _repr_in_order(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    if not isinstance(value, str) and (" at 0x" in text or " with parameters " in text):
        text = re.sub(f"{_OBJECT}|{_ADDRESS}", r"\1\2", text)
    return _cut(text, limit)


def _held_by(value: Any, most: int = 1000) -> list[Any]:
    """What a container holds at any depth, or the bytes of an array, up to a number of items."""
    found = [value]
    for item in found:  # it grows on the way
        if len(found) > most:
            break
        if isinstance(item, _CONTAINERS):
            found += islice(_items(item), most)
        elif isinstance(item, bytearray) or type(item).__module__ == "array":
            found += bytes(item[:most])
    return found


def _repr_in_order(value: Any, around: tuple[int, ...] = ()) -> str:
    """`repr`, with the items of up to a thousand sets in order; `around` are the ids of sets."""
    text, found, seen, known = repr(value), [value], {*around}, dict[str, str]()
    for item in found if "{" in text else ():  # it grows on the way
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (set, frozenset)):
            items = sorted(_repr_in_order(each, (*around, id(item))) for each in item)
            known[f"{{{', '.join(map(repr, item))}}}"] = f"{{{', '.join(items)}}}"
        elif isinstance(item, _CONTAINERS):
            found += _items(item)
        elif hasattr(type(item), "__dataclass_fields__"):
            fields = item.__dataclass_fields__.values()
            found += [getattr(item, field.name, None) for field in fields if field.repr]
    for was in sorted(known, key=len, reverse=True)[:1000]:  # a set before those inside it
        text = text.replace(was, known[was])
    return text


def _cut(text: str, limit: int) -> str:
    """The text; if it is longer than `limit`, its full length is given in place of its middle."""
    if not limit or len(text) <= limit:
        return text
    note = f" ...({len(text):,} characters)... "
    room = max(limit - len(note), 8)
    return text[: room - room // 3] + note + text[-(room // 3) :]


def _identifier(text: str) -> str:
    word = re.sub(r"\W", "_", text)
    return f"_{word}" if word[:1].isdigit() else word


def _failure(error: Exception) -> tuple[str, str]:
    """What a failure says, and its marked source; an error may have `failure`, both as a pair."""
    kind, source = "Exception", ""
    try:
        kind = type(error).__name__
        source = _marked_source(error)
        told: Any = getattr(error, "failure", None)
        if type(told) is tuple and [*map(type, told)] == [str, str]:
            return cast("tuple[str, str]", told)
        words = _cut(re.sub(_ADDRESS, "", str.__str__(str(error))), 20_000)
    except Exception:
        words = "its message cannot be read"
    return f"({kind}) {words}".rstrip(), source


def _marked_source(error: Exception) -> str:
    """The source of the user's function that failed, an arrow at the line, and the way on in."""
    import inspect
    import linecache
    import textwrap
    import traceback

    text = ""
    walk = traceback.walk_tb(error.__traceback__)
    steps = [(f.f_code, line) for f, line in walk if f.f_code.co_filename != __file__]
    for code, line in steps[:8] + steps[8:][-4:]:  # of an endless recursion both ends
        row = linecache.getline(code.co_filename, line).strip()
        if text and row:
            text += f"\nin {code.co_name}: {row}"
        elif not text:
            with suppress(Exception):  # where there is no source, nothing is shown
                rows, first = inspect.getsourcelines(code)
                failed = line - max(first, 1)
                rows[failed] = f"{rows[failed].rstrip()}   <-- {type(error).__name__}\n"
                shown = dropwhile(lambda row: row.lstrip().startswith("@"), rows)
                text = "\n" + textwrap.dedent("".join(shown)).rstrip()
    return text


def _verdicts(graph: TraceGraph) -> dict[AnyNode, str]:
    """What was said of each output: the words and the score."""
    said = {output.node: "" for output in graph.outputs}
    for node, words, score, _ in graph.outputs:
        if words is not None:
            said[node] += f" {words if isinstance(words, str) else to_text(words)}"
        if score is not None:
            said[node] += f" (score: {to_text(score, 24)})"
    return said


def _tree(graph: TraceGraph, ascii: bool | None, lines: int) -> str:
    """The graph as a text tree; a shared node is drawn once and referred to."""
    if ascii is None:
        ascii = "utf" not in str(getattr(sys.stdout, "encoding", "")).lower()
    said = _verdicts(graph) or {node: "" for node in graph if not graph.children(node)}
    stack, rows, drawn = [("", node) for node in reversed(said)], list[str](), set[AnyNode]()
    while stack and len(rows) < lines:
        margin, node = stack.pop()
        parents, again, room = graph.parents(node), node in drawn, 90 - len(margin)
        if again and not margin:
            continue
        line = margin + _shown(graph.names[node], room // 3, ascii)
        if parents and (again or room < 51):
            rows.append(f"{line} (see {'above' if again else 'below'})")
            if not again:  # too far to the right, so it goes on at the left
                stack.insert(0, ("", node))
            continue
        end = "  [parameter]" if node in graph.values else ""
        if said.get(node):
            words = _cut(" ".join(said[node].split()), room // 2)
            end += f"  <- {_shown(words, 74 - len(line + end), ascii)}"
        left = 87 - len(line + end)
        rows.append(f"{line} = {_shown(to_text(graph.value(node), left), left, ascii)}{end}")
        drawn.add(node)
        margin = margin.replace("├─", "│ ").replace("└─", "  ")
        for n, parent in enumerate(reversed(parents)):
            stack.append((margin + ("├─ " if n else "└─ "), parent))
    left = len(graph) - len(drawn)
    text = "\n".join([*rows, f"... {left} more nodes"] if left > 0 else rows)
    return text.translate(str.maketrans("├└│─", "|`|-")) if ascii else text


def _shown(text: str, room: int, ascii: bool) -> str:
    """The text in so many characters; what nobody can see stands as an escape."""
    text = "".join(c if c.isprintable() or c == "\u200d" else repr(c)[1:-1] for c in text)
    if ascii:
        text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= room else f"{text[: room - 3]}..."


# ---- What would be if a value had been another.


def _rerun(output: AnyNode, changes: Mapping[Any, Any], effects: bool) -> AnyNode:
    """The output as it would be if some nodes had other values, as the end of a new graph.

    Only what depends on a changed node is computed again. A bundle marked with `effects`, and a
    call of a language model, keeps its recorded value unless `effects` is true.

    >>> x, y = node(3, name="x", trainable=True), node(4, name="y")
    >>> (x * y + 1).rerun({x: 5}).data, x.data
    (21, 3)
    """
    output.data  # a bundle that reruns it uses it  # noqa: B018
    nodes = _ancestors([output])
    if strays := [to_text(each, 60) for each in set(changes).difference(nodes)]:
        raise GraphError(f"rerun: {', '.join(strays)} has no part in {output.name}")
    new = dict[int, AnyNode]()
    scope, around = _Scope(), _scope.get()
    try:
        scope.begin()
        scope.replacements = new
        for each in nodes:
            op: Any = each._op
            if each in changes:
                root = new[each._number] = each._as_root(to_data(changes[each]), each._base)
                if isinstance(root, ParameterNode):
                    root.set(root._data)  # which checks all but its type
            elif any(p._number in new for p in each.parents) and (effects or not op.effects):
                new[each._number] = _recompute(op, each, new)
    finally:
        _scope.set(around)
    return new.get(output._number, output)


def _recompute(op: Any, each: AnyNode, new: dict[int, AnyNode]) -> Any:
    """A node computed again, where `new` holds the nodes that took the place of others."""
    if op.function is None:
        raise GraphError(
            f"rerun: the function of {each.name} ({op.name}) is not known in this process"
        )
    call = (each._call or _Call(op.names, each.parents)).map(
        lambda part: new.get(part._number, part) if isinstance(part, Node) else part
    )
    if op.bundle is None:
        return _compute(op, call)
    new.update({n: each for n, each in call.outside.items() if each._number != n})
    bundle = key = op.bundle
    if bundle.parameter is not None:  # a body whose code may change is known by its code
        key = bundle.code_of(*call.data()[1:2] or [None])
    again: Any = bundle._run(_Body(bundle, call._replace(outside={}), key))
    return again if isinstance(again, Node) else run_coroutine(again)


def run_coroutine(coroutine: Any) -> Any:
    """The result of a coroutine, for plain code such as `rerun`: an event loop in a thread runs it.

    Here each has a loop of its own. `minitrace_train` sets `_on_shared_loop`, which keeps one loop
    for all, so that clients and locks, which belong to a loop, serve every call.

    >>> async def double(x):
    ...     return 2 * x
    >>> run_coroutine(double(4))
    8
    """
    import asyncio

    if _on_shared_loop:
        return _on_shared_loop(coroutine)
    return _in_thread(lambda: asyncio.run(coroutine)).result()


_on_shared_loop: Function | None = None


# ---- JSON: values, saved modules, and trace graphs that any language can write.


class _Verbatim(str):
    """A text that stands for a value and is shown as it is: one that JSON could not hold."""

    __repr__ = str.__str__


_DEPTH = 100  # levels of containers in containers that one value may have
_TAGS: dict[str, Any] = {
    "$tuple": tuple, "$set": set, "$frozenset": frozenset, "$dict": dict, "$frozendict": _DICTS[-1],
    "$text": _Verbatim, "$bytes": bytes.fromhex, "$float": float.fromhex,
    "$int": partial(int, base=16),
}  # fmt: skip


def encode(
    value: Any, place: str = "value", around: tuple[int, ...] = (), as_text: bool = False
) -> Any:
    """Turn a Python value into what strict JSON can hold, so that `decode` gives it back exactly.

    What JSON lacks is tagged: a tuple is `{"$tuple": [...]}`, and so on for sets, bytes, numbers
    that are not finite or have thousands of digits, and mappings with other keys than strings.
    Only exact built-in types pass: a subclass would come back as something else.

    Args:
        value: None, bool, int, float, str, bytes, list, tuple, set, frozenset, dict or frozendict,
            nested.
        place: what an error calls the value.
        around: the ids of the containers around it; at most 100.
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
    kind, tag = type(value), f"${type(value).__name__}"
    if value is None or kind in (bool, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is int:
        return value if value.bit_length() <= 10_000 else {tag: hex(value)}
    if kind in (float, bytes):
        return {tag: value.hex()}
    fits = len(around) <= _DEPTH and id(value) not in around
    inside = partial(encode, around=(*around, id(value)), as_text=as_text)
    if fits and kind in _DICTS:
        if kind is dict and all(type(key) is str and key[:1] != "$" for key in value):
            return {key: inside(item, f"{place}[{key!r}]") for key, item in value.items()}
        return {tag: [inside(list(pair), place) for pair in value.items()]}
    if fits and kind in (list, tuple, set, frozenset):
        items = [inside(item, f"{place}[{i}]") for i, item in enumerate(value)]
        if kind in (set, frozenset):
            items.sort(key=json.dumps)
        return items if kind is list else {tag: items}
    if as_text or kind is _Verbatim:
        for base in int, float, str:  # of a subclass, the plain value
            if isinstance(value, base) and kind is not _Verbatim:
                return encode(base(value))
        return {"$text": to_text(value)}
    if not fits:
        raise TypeError(f"{place[:60]}: inside itself, or nested more than {_DEPTH} levels deep")
    raise TypeError(f"{place}: a {kind.__name__} cannot be written as JSON")


def decode(tree: Any) -> Any:
    """Give back the value that `encode` turned into `tree`.

    Raises:
        ValueError or TypeError: the tree is not one that `encode` writes.

    >>> decode({"$set": [1, 2]}), decode({"$dict": [[{"$tuple": [0, 1]}, "edge"]]})
    ({1, 2}, {(0, 1): 'edge'})
    """
    if type(tree) is list:
        return [decode(item) for item in tree]
    if type(tree) is not dict:
        return tree
    tag = next(iter(tree), "")
    if tag[:1] != "$":
        return {key: decode(item) for key, item in tree.items()}
    if tag not in _TAGS or len(tree) > 1:
        raise ValueError(f"{to_text(tree, 60)} is no tag of this encoding")
    return _TAGS[tag](decode(tree[tag]))


def _for_json(value: Any) -> Any:
    """The builtin value that a parameter's value amounts to, if it can be made of that again."""
    plain = _as_builtin(value)
    with suppress(ValueError):
        if type(_as_type_of(value, plain)) is type(value):
            return plain
    return value


def _save(path: str | os.PathLike[str], values: Options) -> None:
    """Write values to a file, whole: under another name first, then in place of the old one."""
    import tempfile

    tree = {name: encode(_for_json(value), name) for name, value in values.items()}
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        whole = os.path.join(inside, "whole")
        with open(whole, "w", encoding="utf-8") as file:
            json.dump({"minitrace": 1, "parameters": tree}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, path)


def _load(path: str | os.PathLike[str]) -> Fields:
    """Read values that `_save` wrote."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return {name: decode(value) for name, value in json.load(file)["parameters"].items()}
    except _UNREADABLE as error:
        raise ValueError(f"it is not a saved module: {error}") from None


_UNREADABLE = LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError
_TYPES = {  # of the fields of a graph, its nodes and its outputs
    "str": "format name kind operator type description constraint code",
    "list": "nodes outputs choices bounds",
    "dict": "operators inputs",
    "bool": "trainable",
    "str int": "id",
    "int float": "score",
}


def _ids(graph: TraceGraph) -> dict[AnyNode, Any]:
    """The id of each node: the one it was read with, or else its name, if no other id is that."""
    ids, taken = dict[AnyNode, Any](), set[str]()
    for node in sorted(graph, key=lambda node: node not in graph.specs):
        own = graph.specs[node]["id"] if node in graph.specs else graph.names[node]
        if str(own) in taken:
            own = _unused_name(graph.names[node], taken)
        taken.add(str(own))
        ids[node] = own
    return ids


def _graph_form(graph: TraceGraph) -> Fields:
    """A trace graph as strict JSON can hold it."""
    ids, extra = graph.ids, dict(graph.extra)
    words = {**extra.pop("operators", {})}
    for node in graph:
        if graph.parents(node):
            words.setdefault(node.op_name, node.description)
    outputs = []
    for node, feedback, score, more in graph.outputs:
        score = score if abs(score or 0) < math.inf else None
        said = _given(id=ids[node], feedback=encode(feedback, as_text=True), score=score)
        outputs.append({**said, **more})
    return {
        "format": "minitrace-graph",
        "version": "1.0",
        "nodes": [_node_form(graph, node, ids, words) for node in graph],
        "operators": words,
        "outputs": outputs,
        **extra,
    }


def _node_form(graph: TraceGraph, node: AnyNode, ids: Any, words: Texts) -> Fields:
    """One node of the JSON form; one that was read has what it was read with."""
    value, form = graph.value(node), Fields()
    if node._op and (graph.parents(node) or not node.parents):  # a call, if not cut off here
        inputs = {name: ids[parent] for name, parent in node.inputs.items()}
        form = {"operator": node.op_name, "inputs": inputs}
    if node.description != words.get(form.get("operator", ""), ""):
        form["description"] = node.description
    if node in graph.specs:
        return {**graph.specs[node], **form, "id": ids[node]}
    if isinstance(node, ParameterNode):
        check: Any = node.check
        form |= _given(
            trainable=True,
            constraint=node.constraint,
            choices=encode(node.choices, as_text=True),
            bounds=encode(node.bounds and [*node.bounds], as_text=True),
            code=check.keywords["signature"] if _is_code(node) else None,
        )
    return {
        "id": ids[node],
        "name": node._base,
        "kind": graph.kind(node),
        "type": type(value).__name__,
        **form,
        "value": encode(value, as_text=True),
    }


@contextmanager
def _reading(place: str, spec: Any, needed: str) -> Iterator[Fields]:
    """The fields of an object of the JSON form that are not null, checked; an error inside says
    where in the form something is wrong."""
    try:
        given = _given(**spec) if isinstance(spec, dict) else {}
        if needed not in given:
            raise TypeError(f"it must be an object with {needed}")
        for kinds, fields in _TYPES.items():
            for field in fields.split():
                if field in given and type(given[field]).__name__ not in kinds.split():
                    raise TypeError(f"its {field} cannot be {to_text(given[field], 60)}")
        yield given
    except _UNREADABLE as error:
        known = _dig(spec, "id")
        place = place if known is None else f"{place} ({known})"
        raise GraphError(f"{place}: {error}") from None


def _finite(number: str) -> float:
    """A number of the JSON text, if it is not too large, or what JSON lacks, such as NaN."""
    if math.isfinite(float(number)):
        return float(number)
    raise ValueError(f"{number[:20]} is not finite: write it as a tagged float, as chapter 9 says")


def _read_graph(text: str) -> TraceGraph:
    """The graph of a JSON text."""
    try:
        form: Any = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise GraphError(f"not JSON: {error}") from None
    graph, known = TraceGraph(), dict[str, AnyNode]()
    with _reading("not a trace graph", form, "nodes") as graph.extra:
        pop = graph.extra.pop
        form = f"{pop('format', 'minitrace-graph')}, version {pop('version', 1)}"
        if not re.match(r"minitrace-graph, version 1(\.|$)", form):
            raise ValueError(f"{form[:60]} is not read here; a newer minitrace.py may read it")
        words = graph.extra.get("operators", {})
        if not all(isinstance(said, str) for said in words.values()):
            raise TypeError("its operators are not described by texts")
    for n, spec in enumerate(pop("nodes")):
        with _reading(f"nodes[{n}]", spec, "id") as given:
            node = known[str(given["id"])] = _node_from(given, known, words)
            graph.specs[node] = spec
    for n, spec in enumerate(pop("outputs", ())):
        with _reading(f"outputs[{n}]", spec, "id") as given:
            node = _find_node("id", given.pop("id"), known)
            said, score = decode(given.pop("feedback", None)), given.pop("score", None)
            float(score or 0)  # OverflowError if it is too large for one
            graph.outputs.append(Output(node, said, score, given))
    for node in reversed(known.values()):
        graph.add(node)
    return graph


def _find_node(what: str, own: Any, known: Mapping[str, AnyNode]) -> AnyNode:
    """The node with this id."""
    if str(own) not in known:
        raise ValueError(f"its {what} {to_text(own, 60)} is no node before it")
    return known[str(own)]


def _node_from(given: Fields, known: Mapping[str, AnyNode], words: Texts) -> AnyNode:
    """One node of the JSON form; its parents are known already."""
    get, own, inputs = given.get, str(given["id"]), given.get("inputs", {})
    if own in known:
        raise ValueError("the id is used twice")
    value = decode(get("value"))
    parents = tuple([_find_node("input", each, known) for each in inputs.values()])
    name = get("operator") or get("name") or own
    description = get("description", words.get(name) if inputs else None)
    if get("trainable", get("kind") == "parameter"):
        if inputs:
            raise ValueError("a trainable node is a root and has no inputs")
        node: AnyNode = ParameterNode(value, own, description, **_rules_from(given))
    elif inputs or get("operator"):
        kind = ExceptionNode if get("kind") == "exception" else MessageNode
        op = _Op(name, description or "", tuple(inputs), None)
        node = kind(value, op, parents, any(parent._depends for parent in parents))
    else:
        node = Node(value, own, description)
    node._base, node._index = own, None
    return node


def _rules_from(given: Fields) -> Fields:
    """The rules of a parameter in the JSON form; a function defined by its header must stay so."""
    rules = {rule: decode(given.get(rule)) for rule in ("choices", "bounds", "constraint")}
    bounds, header = rules["bounds"], given.get("code")
    if bounds:  # values that JSON has only the text of have none
        rules["bounds"] = None if _Verbatim in map(type, bounds) else tuple(bounds)
    if header:
        if not (name := re.search(r"def\s+(\w+)", header)):
            raise ValueError(f"no header of a function: {to_text(header, 80)}")
        rules["check"] = partial(check_code, name=name[1], signature=header)
    return rules


# ---- Pickles: a graph of any depth goes to another process of Python.


class _Pickled:
    """A node inside a pickle. It stands after its parents and names them, so that nothing recurses,
    and lives as long as the pickling: two outputs pickled together share what they share."""

    __slots__ = ("__weakref__", "node")

    def __init__(self, node: MessageNode[Any]) -> None:
        self.node = node

    def __reduce__(self) -> tuple[Any, ...]:
        node = self.node
        parents = tuple(map(_in_pickle, node.parents))
        call = node._call and node._call.map(_in_pickle)
        return type(node), (node._data, node._op, parents, node._depends, call)


_pickling: weakref.WeakValueDictionary[int, _Pickled] = weakref.WeakValueDictionary()


def _in_pickle(value: Any) -> Any:
    """What stands for a node in a pickle; roots and everything else are themselves."""
    if not isinstance(value, MessageNode):
        return value
    return _pickling.setdefault(value._number, _Pickled(value))


def _accepted_parameter(data: T, base: str, words: Any, rules: Options) -> ParameterNode[T]:
    """A parameter whose value was checked before."""
    parameter: ParameterNode[Any] = ParameterNode(None, base, words)  # no rules yet
    parameter.restore(data)
    for name, rule in rules.items():
        setattr(parameter, name, rule)
    if _is_code(parameter):
        parameter._index = None  # it is called after its function
    return parameter


def _pickled_node(node: AnyNode) -> tuple[Any, ...]:
    """How a pickle makes a node again: a callable and its arguments."""
    root = node.data, node._base, node._description
    if isinstance(node, ParameterNode):
        return _accepted_parameter, (*root, {rule: getattr(node, rule) for rule in _RULES})
    if isinstance(node, MessageNode):
        return operator.itemgetter(-1), ([*map(_in_pickle, _ancestors([node]))],)
    return Node, root


def _pickled_op(op: _Op) -> tuple[Any, ...]:
    """How a pickle finds an operator again: where it lives, and what is known of it."""
    module, path = __name__, f"operators.{op.name}.op"
    if op.bundle:
        module, path = op.bundle.__module__, f"{op.bundle.__qualname__}.op"
    return _find_op, (module, path, (*op[:3], None))


def _find_op(module: str, path: str, known: Any) -> _Op:
    """The living operator if it is here, or else its description, which cannot run."""
    with suppress(AttributeError, KeyError):
        found = operator.attrgetter(path)(sys.modules[module])
        if isinstance(found, _Op) and found.description == known[1]:
            return found
    return _Op(*known)


# ---- What to type instead of an attribute that a node does not have.


class _Advice:
    """Stands for an attribute that a node lacks, and its value or a parameter may have."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, node: AnyNode | None, owner: Any) -> NoReturn:
        name = self.name
        words = f"a node has no attribute {name!r}"
        if node is not None and hasattr(node.type, name):
            words += f"; its value has one: write x.call({name!r}, ...) or x.getattr({name!r})"
        elif name in vars(ParameterNode):
            words += "; a parameter has one: write node(..., trainable=True)"
        raise AttributeError(words)


# A `__getattr__` would do for all names, and make every use of every attribute slower.
_kinds = str, bytes, int, float, list, dict, set, tuple, ParameterNode
for _name in {*chain(*map(dir, _kinds))}.difference(dir(Node)):
    if _name[0] != "_":
        setattr(Node, _name, _Advice(_name))


# ---- In a browser a long chain of nodes that is freed at once would end Python.

_unlinked: list[Any] = []


def _free_one_by_one(node: MessageNode[Any]) -> None:
    """Free what a node came from one after the other, not one inside the other."""
    _unlinked.append([node.parents, node._call])
    node.parents, node._call = (), None
    if len(_unlinked) == 1:
        for each in _unlinked:  # it grows on the way
            each.clear()
        _unlinked.clear()


if sys.platform == "emscripten":
    setattr(MessageNode, "__del__", _free_one_by_one)


# ---- 8. Command line -----------------------------------------------------------------------------
#
# What does it look like when it runs?  `python3 minitrace.py` runs two examples of its own
# documentation and shows them as they go, with no key, no network and no package; with `--live` a
# language model of yours plays its part. `suggest` improves a trace graph that another program
# wrote as JSON; `llm` asks one question.


def demo(live: bool = False) -> None:
    """Run the example at the top of this file, then this one, and show each as it goes.

    A sales agent: two prompts and two functions that may change. A language model plays both
    parts, the agent's and the optimizer's; here its replies are canned.

    >>> GRAPH.clear()
    >>> @model
    ... class SalesAgent:
    ...     "Greet a customer by name, in the customer's own language."
    ...     def __init__(self, llm):
    ...         self.llm = llm
    ...         self.ask_language = node("Decide the language.", "ask_language", trainable=True)
    ...         self.ask_name = node("Extract the name.", "ask_name", trainable=True)
    ...     def forward(self, message):
    ...         reply = operators.call_llm(self.llm, self.ask_language, message)
    ...         name = operators.call_llm(self.llm, self.ask_name, message)
    ...         return self.greet(self.language(reply), name)
    ...     @bundle("[language] Answer en or es.", trainable=True)
    ...     def language(self, reply):
    ...         return "en"
    ...     @bundle("[greet] Write the greeting.", trainable=True)
    ...     def greet(self, language, name):
    ...         return f"Hello, {name}!"
    >>> canned = [
    ...     ("en or es only", "es"),
    ...     ("name only", "Juan"),
    ...     ("Decide the language", "This message is in Spanish."),
    ...     ("Extract the name", "The name is Juan."),
    ...     json.dumps({
    ...         "reasoning": "language() never looks at the reply, nor greet() at the language; "
    ...         "both prompts bring back a sentence where one word is wanted.",
    ...         "suggestion": {
    ...             "ask_language0": "In which language is this? Answer with en or es only.",
    ...             "ask_name0": "What is the customer's name? Answer with the name only.",
    ...             "language_code": "def language(self, reply):\\n"
    ...                        "    return 'es' if 'es' in reply.lower() else 'en'",
    ...             "greet_code": "def greet(self, language, name):\\n"
    ...                        "    hello = {'en': 'Hello', 'es': 'Hola'}[language]\\n"
    ...                        "    return f'{hello}, {name}!'"}})]
    >>> agent = SalesAgent(Script(canned[:4]))
    >>> optimizer = OptoPrime(agent, llm=Script(canned[4:]))
    >>> message, wanted = "Hola, soy Juan.", "Hola, Juan!"
    >>> for _ in range(5):
    ...     greeting = agent(message)
    ...     print(message, "is answered:", greeting)
    ...     if greeting == wanted:
    ...         break
    ...     optimizer.zero_feedback()
    ...     optimizer.backward(greeting, f"It should be {wanted!r}.")
    ...     print(optimizer.graph().tree(ascii=True))
    ...     update = optimizer.step()
    ...     for changed, value in update.items():
    ...         print(changed.py_name, "=", value)
    Hola, soy Juan. is answered: Hello, The name is Juan.!
    greet0 = 'Hello, The name is Juan.!'  <- It should be 'Hola, Juan!'.
    |- greet_code = 'def greet(self, language, ...(64 characters)... o, {name}!"'  [parameter]
    |- self1 = <SalesAgent>
    |- language0 = 'en'
    |  |- language_code = 'def language(self, reply):\\n    return "en"'  [parameter]
    |  |- self0 = <SalesAgent>
    |  `- call_llm0 = 'This message is in Spanish.'
    |     |- ask_language0 = 'Decide the language.'  [parameter]
    |     `- str0 = 'Hola, soy Juan.'
    `- call_llm1 = 'The name is Juan.'
       |- ask_name0 = 'Extract the name.'  [parameter]
       `- str1 = 'Hola, soy Juan.'
    ask_language0 = In which language is this? Answer with en or es only.
    ask_name0 = What is the customer's name? Answer with the name only.
    language_code = def language(self, reply):
        return 'es' if 'es' in reply.lower() else 'en'
    greet_code = def greet(self, language, name):
        hello = {'en': 'Hello', 'es': 'Hola'}[language]
        return f'{hello}, {name}!'
    Hola, soy Juan. is answered: Hola, Juan!
    """
    import doctest
    import linecache

    sys.modules.setdefault("minitrace", sys.modules[__name__])
    for story, text in enumerate((__doc__, demo.__doc__), 1):
        GRAPH.clear()
        space = {"__name__": "__main__", **globals()}
        for example in doctest.DocTestParser().get_examples(str(text)):
            code = example.source
            if live:
                if code.startswith("canned"):
                    continue
                code = re.sub(r"(StubLLM|Script)\(.*?\)", "LLM()", code)
            print(">>> " + code.rstrip().replace("\n", "\n... "))
            name = f"<story {story}, line {example.lineno}>"
            linecache.cache[name] = (len(code), None, code.splitlines(True), name)
            exec(compile(code, name, "single"), space)


_NOT_CONFIGURED = """set MINITRACE_MODEL (such as openai/gpt-4o) and the provider's variables \
(such as OPENAI_API_KEY, and OPENAI_BASE_URL for another server that speaks the same protocol)"""


def _exit_with(code: int, words: str) -> int:
    """Say what went wrong on standard error; the exit code."""
    print(words, file=sys.stderr)
    return code


def _suggest(path: str) -> int:
    """Read a trace graph, ask for better values, print them as JSON by the ids of the graph."""
    llm = LLM() if os.environ.get("MINITRACE_MODEL") else StubLLM()
    try:
        with open(0 if path == "-" else path, encoding="utf-8-sig") as file:
            graph = TraceGraph.from_json(file.read())
        if not (graph.parameters and graph.outputs):
            raise GraphError("nothing to suggest without a trainable node and an output")
        optimizer = OptoPrime(graph.parameters, llm=llm)
    except (OSError, GraphError, ValueError) as error:
        place = "standard input" if path == "-" else path
        words = getattr(error, "strerror", None) or " ".join(str(error).split())
        return _exit_with(2, f"suggest: {place}: {words}")
    if isinstance(llm, StubLLM):
        told = "suggest: a StubLLM answers, which cannot write text or code; for a language model"
        _exit_with(0, f"{told} {_NOT_CONFIGURED}")
    _store(dict.fromkeys(graph.parameters, graph))
    ids = graph.ids
    found = {ids[each]: encode(value) for each, value in optimizer.propose().items()}
    print(json.dumps(found, indent=1))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: `demo`, `suggest GRAPH.json`, `llm QUESTION`, `--version`.

    Returns: the exit code; 0 if all went well, 1 if a language model failed, 2 for bad input.

    >>> main(["--version"])
    minitrace 0.2.0
    0
    """
    import argparse

    parser = argparse.ArgumentParser(
        "minitrace.py", description="Autograd for AI systems, in one file."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    add = commands.add_parser
    stories = add("demo", help="two short stories, the default")
    stories.add_argument("--live", action="store_true", help="ask what MINITRACE_MODEL names")
    suggest = add("suggest", help="better values for a trace graph, as JSON")
    suggest.add_argument("graph", help="a file, or - for standard input")
    add("llm", help="try the language model that MINITRACE_MODEL names").add_argument("question")
    arguments = parser.parse_args(argv)
    if arguments.version:
        print(f"minitrace {__version__}")
        return 0
    try:
        return _run_command(arguments)
    except MinitraceError as error:
        return _exit_with(1, f"minitrace: {error}")
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _run_command(arguments: Any) -> int:
    """Run it; `llm` asks once, and says who answered, how fast, and how many tokens it took."""
    if arguments.command == "suggest":
        return _suggest(arguments.graph)
    live = arguments.command == "llm" or getattr(arguments, "live", False)
    if live and not os.environ.get("MINITRACE_MODEL"):
        return _exit_with(2, f"{arguments.command}: {_NOT_CONFIGURED}")
    if arguments.command != "llm":
        if not demo.__doc__:
            return _exit_with(2, "demo: it runs docstrings, which python -OO leaves out")
        demo(live)
        return 0
    provider, began = os.environ["MINITRACE_MODEL"].partition("/")[0], time.monotonic()
    reply = LLM()(arguments.question)
    told = f"{provider}, {reply.model}, {time.monotonic() - began:.1f} s"
    print(f"{told}, usage {reply.usage or 'not reported'}")
    print(reply)
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
    if sys.stdout:  # it may be closed
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
    sys.exit(main())
