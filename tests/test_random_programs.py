"""Random programs: recording what a program does changes nothing that it does.

A seed makes a program: parameters, bundles, classes, closures, and a `main` that uses them. It runs
twice, on plain values (`node` gives the value back, `bundle` the function) and on nodes, and both
must agree. `python3 tests/test_random_programs.py 2000` tries so many seeds without pytest, and
`python3 tests/test_random_programs.py 1 42` the one seed 42.
"""

import asyncio
import linecache
import pickle
import random
import re
import sys
import time
import traceback
import types
import warnings
from collections import Counter
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import minitrace
from minitrace import ExecutionError, GraphError, SumPropagator, TraceGraph, backward, to_text

# ---- What every program starts with

HEADER = '''from minitrace import bundle, model, node
def revise(function):
    """Change the code of a bundle by a comment."""
    function.parameter.set(function.parameter.data + "\\n    # revised")
'''
PRELUDE = '''import asyncio, contextlib, functools, math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
Point = namedtuple("Point", "x y")
K = 4
class Trouble(Exception):
    def __init__(self, code, words=""):
        super().__init__(code)
        self.words = words
def flat(value):
    """The sum of what is at any depth of a value."""
    if isinstance(value, dict):
        return flat([*value, *value.values()])
    if isinstance(value, (list, tuple, set, frozenset)):
        return sum(map(flat, value))
    return len(value) if isinstance(value, str) else int(value)
def wrapped(function):
    """A decorator as people write them."""
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
@bundle()
def everything(values):
    return values
'''

# ---- The grammar of expressions: `<kind>` is filled with an expression of that kind

LITERALS = {
    "int": ["0", "1", "2", "3", "7", "-2", "K"],
    "float": ["0.5", "1.5", "-2.0", "1e3"],
    "bool": ["True", "False"],
    "str": ["'a'", "'Banana '", "''", "'x,y'", '"""two\n      lines"""'],
    "list": ["[1, 2, 3]", "[4]", "[]", "[0, -1]"],
    "pair": ["(1, 2)", "(3, -3)", "Point(2, 5)"],
    "dict": ["{'a': 1}", "{'a': 2, 'b': 3}", "OrderedDict(a=4)"],
    "set": ["{1, 2}", "set()", "{3, 30, 300}"],
    "words": ["['a', 'bc']", "['it']"],
    "nest": ["[1, {'k': (2, [3])}]", "{'t': (1, {2, 3})}"],
}
KINDS = list(LITERALS)
# on plain values and on nodes alike; a program of these alone can be rerun with other values
TRACED = {
    "int": [
        "(<int> + <int>)", "(<int> - <int>)", "(<int> * <int>)", "(<int> % 7)", "(7 // <int>)",
        "(-<int>)", "abs(<int>)", "(<int> ** 2)", "(<int> ^ <int>)", "(<int> << 1)", "(~<int>)",
        "<pair>[0]", "<pair>[-1]", "<list>[0]", "<dict>['a']", "<dict>.get('b', <int>)",
        "math.floor(<float>)", "round(<float>)", "divmod(<int>, 5)[1]", "node(<int>)",
        "sum([<int>, <int>])", "sum(<pair>)", "(lambda a, b=2: a + b)(<int>)",
    ],
    "float": [
        "(<float> + <int>)", "(<int> / 4)", "(<float> * <float>)", "(1 / <float>)", "(<float> - 1)",
        "round(<float>, 1)", "abs(<float>)", "(<float> // 2)",
    ],
    "bool": ["(<int> < <int>)", "(<float> >= <int>)", "(<bool> & <bool>)", "(<bool> | <bool>)"],
    "str": [
        "(<str> + <str>)", "(<str> * 2)", "<str>.upper()", "<str>.strip()", "<str>[:3]",
        "<str>[::-1]", "<str>.replace('a', 'b')", "<words>[0]", "<str>.title()", "node(<str>)",
    ],
    "list": [
        "(<list> + <list>)", "<list>[1:]", "[<int>, <int>]", "[x * <int> for x in <pair>]",
        "[*<pair>, <int>]", "node(<list>)",
    ],
    "pair": ["(<int>, <int>)", "divmod(<int>, 5)", "<pair>[::-1]", "Point(<int>, y=<int>)"],
    "dict": ["{'a': <int>, 'b': <int>}", "(<dict> | {'c': <int>})", "OrderedDict(a=<int>)"],
    "set": ["{<int>, <int>}", "(<set> | <set>)"],
    "words": ["<str>.split('a')", "[<str>, <str>]", "(<words> + <words>)"],
    "nest": [
        "[<int>, {'k': <pair>, 'n': [<list>, <dict>]}]", "{<str>: <nest>, 'q': {<int>, 5}}",
        "(<nest>, <float>)", "Point(<dict>, <nest>)", "{(<int>, <str>): <set>}", "node([<int>, 2])",
        "frozenset([<int>, <bool>])", "defaultdict(list, q=[<int>])", "[[[<words>]]]",
    ],
}  # fmt: skip
# these read the value of a node, and the trace ends there
READING = {
    "int": [
        "len(<list>)", "int(<float>)", "sum(<list>)", "max(<int>, <int>)", "(<int> if <bool> else 9)",
        "(<int> and <int>)", "<list>[<int> % 2]", "len(<str>)", "sum(<dict>.values())", "len(<words>)",
        "copy.deepcopy(<int>)",
    ],
    "float": ["float(<int>)", "math.sqrt(abs(<int>))", "min(<float>, 2.5)"],
    "bool": ["(not <int>)", "(<int> == <int>)", "(<int> in <list>)", "(0 < <int> < 5)",
             "isinstance(<nest>, (list, dict))", "any(<list>)", "(<pair> != <pair>)"],
    "str": ["str(<int>)", "f'{<int>}-{<str>}'", "f'{<float>:.1f}'", "'{} of {}'.format(<int>, <str>)",
            "(<str> or 'none')", "f'{<str>:>9}'", "(<str> * (<int> % 3))"],
    "list": ["[x + 1 for x in <list>]", "sorted(<list>)", "[x for x in <list> if x > <int>]",
             "list(<list>)", "[y for x in <list> for y in (x, <int>)]", "list(range(<int> % 4))"],
    "words": ["[w.upper() for w in <words>]", "list(<words>)"],
    "nest": ["[(n, x) for n, x in enumerate(<list>)]", "list(zip(<list>, <words>))"],
}  # fmt: skip
# and these are for plain values alone, inside the body of a bundle
PLAIN = {
    "int": ["flat(<nest>)", "<str>.count('a')", "sum(x * x for x in <list>)", "len(<set>)", "len(<nest>)",
            "max(<list>, default=0)", "functools.reduce(lambda a, b: a - b, <list>, 0)",
            "(n := <int>) + n", "sum(map(abs, <list>))"],
    "bool": ["(<int> in <set>)", "('a' in <str>)", "all(x < 9 for x in <list>)"],
    "str": ["'; '.join(<words>)", "str(<list>)", "f'{<pair>!r}'", "''.join(map(str, <list>))",
            "'%s %d' % (<str>, <int>)"],
    "list": ["sorted(<set>)", "[v for k, v in sorted(<dict>.items())]", "[*map(len, <words>)]"],
    "dict": ["{'a': 0, **{w: len(w) for w in <words>}}", "{**<dict>, 'd': <int>}", "dict(<dict>, a=<int>)"],
    "set": ["{x % 3 for x in <list>}", "(<set> - <set>)", "set(<list>)"],
    "words": ["<str>.split()", "[*sorted(<dict>)]", "[c for c in <str>]"],
    "nest": ["[{'x': x, 'all': [y for y in <list>]} for x in <list>]", "[*enumerate(<words>)]"],
}  # fmt: skip

# Faults that are known: a construct that is not generated while its row stands here, the reason,
# and the shortest program that shows it.
KNOWN = {}


class Argument(NamedTuple):
    name: str
    kind: str
    default: str = ""
    how: str = "plain"  # or position, rest, keyword, options


class Function(NamedTuple):
    """What can be called; a property has no arguments at all."""

    name: str
    kind: str
    arguments: list | None
    outside: bool = False  # does it use nodes beside its arguments?
    awaits: bool = False
    records: bool = True
    cost: int = 1


class Variable(NamedTuple):
    name: str
    kind: str
    plain: bool = True  # never a node, whatever the program runs on


class Frame:
    """Where a statement stands: in the body of a bundle, or where values are nodes."""

    def __init__(self, variables=(), functions=(), body=True, awaits=False, outside=False):
        self.variables, self.functions = [*variables], [*functions]
        self.body, self.awaits, self.outside = body, awaits, outside
        self.cost = 1


class Program(NamedTuple):
    text: str
    changes: dict  # other values of the parameters, by name
    straight: bool = True  # does no value decide, unrecorded, what is computed?


def indented(*lines):
    return ["    " + line for line in lines]


def signature(arguments):
    """The arguments as they stand in a definition."""
    forms = {"rest": "*{}", "options": "**{}"}
    parts, hows = [], [each.how for each in arguments]
    for n, (name, _, default, how) in enumerate(arguments):
        if how == "keyword" and not {"rest", "keyword"} & {*hows[:n]}:
            parts.append("*")
        parts.append(forms.get(how, "{}").format(name) + (f"={default}" if default else ""))
        if how == "position" and "position" not in hows[n + 1 :]:
            parts.append("/")
    return ", ".join(parts)


class Writer:
    """Writes one program. A method for each construct gives its lines."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.number = count()
        self.straight = self.flip(0.7)
        self.roots, self.functions, self.classes, self.factories = [], [], [], []
        self.changes = {}
        self.frame = Frame(body=False)
        self.plain = self.touched = False

    def flip(self, chance=0.5):
        return self.dice.random() < chance

    def some(self, fewest, most, make):
        return [make() for _ in range(self.dice.randint(fewest, most))]

    def fresh(self, base):
        return f"{base}{next(self.number)}"

    @contextmanager
    def inside(self, frame):
        outer, self.frame = self.frame, frame
        yield frame
        self.frame = outer

    # -- expressions

    def expr(self, kind="", depth=2):
        """An expression of this kind, or of any."""
        kind = kind or self.dice.choice(KINDS)
        known = [each for each in self.frame.variables if each.kind == kind]
        known = [each for each in known if each.plain or not self.plain]
        roll = self.dice.random()
        if known and (depth < 0 or roll < 0.4):
            chosen = self.dice.choice(known)
            self.touched |= not chosen.plain
            return chosen.name
        if depth < 0 or roll < 0.5:
            return self.dice.choice(LITERALS[kind])
        callable_ = self.callable(kind) if roll < 0.6 else None
        return self.call(callable_, depth) if callable_ else self.template(kind, depth)

    def plain_expr(self, kind=""):
        """An expression in which no node can be."""
        outer, self.plain = self.plain, True
        text = self.expr(kind, 1)
        self.plain = outer
        return text

    def template(self, kind, depth):
        known = [*TRACED[kind]]
        if self.frame.body or not self.straight:
            known += READING.get(kind, [])
        if self.frame.body:
            known += PLAIN.get(kind, []) * 2
        chosen = self.dice.choice([each for each in known if each not in KNOWN])
        outer = self.plain
        self.plain = outer or chosen in PLAIN.get(kind, [])
        text = re.sub(r"<(\w+)>", lambda found: self.expr(found[1], depth - 1), chosen)
        self.plain = outer
        self.touched |= "node(" in text
        return text

    def callable(self, kind=""):
        """A function that may be called here, if there is one."""
        frame = self.frame
        known = [
            each
            for each in [*self.functions, *frame.functions]
            if kind in ("", each.kind)
            and (frame.outside or not frame.body or not each.outside)
            and (frame.awaits or not frame.body or not each.awaits)
            and not (each.records and self.plain)
            and frame.cost + each.cost < 40
        ]
        return self.dice.choice(known) if known else None

    def call(self, function, depth=1):
        """A call, with arguments by place and by name, and some of the defaults left to hold."""
        self.frame.cost += function.cost
        self.touched |= function.records
        if function.arguments is None:
            return function.name
        parts, named = [], False
        for name, kind, default, how in function.arguments:
            may_omit = not (self.frame.body and function.records and "nested default" in KNOWN)
            if how == "rest":
                more = [self.expr("int", depth - 1), "*" + self.expr("pair", depth - 1)]
                parts += [] if named else self.dice.choice([[], more, more[:1]])
            elif how == "options":
                more = self.expr("int", depth - 1)
                parts += self.dice.choice([[], [f"p={more}"], [f"**{{'q': {more}, 'r': 1}}"]])
            elif default and may_omit and self.flip():
                named = True
            else:
                named = named or how == "keyword" or (how == "plain" and self.flip(0.2))
                parts.append((f"{name}=" if named else "") + self.expr(kind, depth - 1))
        text = f"{function.name}({', '.join(parts)})"
        if function.awaits:
            return f"(await {text})" if self.frame.awaits else f"asyncio.run({text})"
        return text

    # -- statements

    def let(self, kind, name=""):
        """A new variable, as plain as what this statement has used so far."""
        name = name or self.fresh("v")
        self.frame.variables.append(Variable(name, kind, self.frame.body and not self.touched))
        return name

    def assign(self):
        kind = self.dice.choice(KINDS)
        text = self.expr(kind)
        return [f"{self.let(kind)} = {text}"]

    def call_something(self):
        function = self.callable()
        if not function:
            return self.assign()
        text = self.call(function)
        return [f"{self.let(function.kind)} = {text}"]

    def unpack(self):
        text = self.expr("pair")
        return [f"{self.let('int')}, {self.let('int')} = {text}"]

    def inner_function(self):
        """A closure over what is known here, with a default that is evaluated here."""
        name, free = self.fresh("inner"), self.expr("int", 1)
        text = f"{name}({self.expr('int', 0)})"
        lines = [f"def {name}(a, k={self.expr('int', 0)}):", f"    return a * k + {free}"]
        return [*lines, f"{self.let('int')} = {text}"]

    def choose(self):
        kind = self.dice.choice(KINDS)
        test, one, other = self.expr("bool"), self.expr(kind), self.expr(kind)
        name = self.let(kind)
        return [f"if {test}:", f"    {name} = {one}", "else:", f"    {name} = {other}"]

    def attempt(self):
        """An exception that is caught, or none."""
        kind = self.dice.choice(["int", "float", "str"])
        name, bad = self.fresh("v"), self.dice.choice(["1 // <int>", "[][<int>]", "K + <int>"])
        risk = re.sub("<int>", lambda _: self.expr("int"), bad)
        if self.flip() and (function := self.callable(kind)):
            risk = self.call(function)
        lines = ["try:", f"    {name} = {risk}", "except Exception:", f"    {name} = {self.expr('int')}"]
        lines += ["finally:", f"    {name}_ = {self.expr('int')}"] if self.flip(0.3) else []
        kind = kind if risk.startswith("no") else "nest"
        self.let(kind, name)
        return lines

    def loop(self):
        name, items, step = self.fresh("v"), self.expr("list"), self.expr("int", 1)
        lines = [f"{name} = {self.expr('int', 0)}", f"for x in {items}:", f"    {name} += x - {step}"]
        lines += indented(f"if {name} > 9:", self.dice.choice(["    break", "    continue"]))
        self.let("int", name)
        return [*lines, "else:", f"    {name} = {name} * 2"]

    CALM = [assign, call_something, call_something, unpack, inner_function]
    BRANCHING = [choose, attempt, loop]

    def give_up(self):
        errors = ["ValueError('no')", "Trouble(3, words='x')", "KeyError(<int>)", "Trouble(<int>)"]
        error = re.sub("<int>", lambda _: self.expr("int", 0), self.dice.choice(errors))
        return [f"if {self.expr('int')} == {self.dice.randint(0, 4)}:", f"    raise {error}"]

    def collect(self):
        """A list that grows in place, by a loop with a step that may end it."""
        name, item = self.fresh("v"), self.plain_expr("int")
        lines = [f"{name}, left = [], {self.plain_expr('int')} % 5", "while left:"]
        lines += indented(f"{name}.append({item} + left)", "left -= 1")
        self.let("list", name)
        return lines

    def match(self):
        name, subject = self.fresh("v"), self.plain_expr("nest")
        lines = [f"match {subject}:", "    case [first, *others]:", f"        {name} = len(others)"]
        lines += ["    case {'t': _} | {'q': _}:", f"        {name} = {self.expr('int', 1)}"]
        lines += ["    case _:", f"        {name} = -1"]
        self.let("int", name)
        return lines

    def suppress(self):
        name, item = self.fresh("v"), self.plain_expr("int")
        lines = [f"{name} = {self.expr('int', 0)}"]
        lines += ["with contextlib.suppress(ZeroDivisionError):", f"    {name} = 6 / {item}"]
        self.let("float", name)
        return lines

    def generator(self):
        name, items = self.fresh("each"), self.plain_expr("list")
        lines = [f"def {name}(most):", f"    for x in {items}:", "        yield x", "    yield most"]
        return [*lines, f"{self.let('list')} = [*{name}({self.expr('int', 0)})]"]

    def nonlocal_count(self):
        name, by = self.fresh("v"), self.expr("int", 1)
        lines = [f"{name} = 0", f"def add_{name}(x):", f"    nonlocal {name}", f"    {name} += x + {by}"]
        self.let("int", name)
        return [*lines, f"add_{name}({self.expr('int', 1)})", f"add_{name}(1)"]

    def threads(self):
        """A thread runs a part of the body."""
        item, name = self.expr("int", 1), self.fresh("v")
        lines = [f"with ThreadPoolExecutor(1) as pool:", f"    {name} = pool.submit(lambda: {item}).result()"]
        self.let("int", name)
        return lines

    BODY = [give_up, collect, match, suppress, generator, nonlocal_count]

    def gather(self):
        """Several coroutines side by side."""
        calls = [self.callable() for _ in "ab"]
        texts = [self.call(each)[7:-1] for each in calls if each and each.awaits]
        self.touched = True
        texts.append(f"asyncio.sleep(0, {self.expr('int', 1)})")
        return [f"{self.let('nest')} = await asyncio.gather({', '.join(texts)})"]

    def statements(self, fewest, most):
        known = [*self.CALM]
        if self.frame.body or not self.straight:
            known += self.BRANCHING
        if self.frame.body:
            known += self.BODY
        if self.frame.awaits:
            known += [Writer.gather] * 3
        if self.frame.body and self.flip(0.1):
            known += [Writer.threads]
        lines = []
        for _ in range(self.dice.randint(fewest, most)):
            self.touched = False
            lines += self.dice.choice([each for each in known if each.__name__ not in KNOWN])(self)
        return lines
