"""Code under limits: what is refused, how hostile code ends, and that nothing is left behind."""

import gc
import json
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time

import minitrace_limits
import pytest
from conftest import COMPANIONS, ROOT, patient
from hostile import HOSTILE
from minitrace_limits import CodeError, LimitError, Limits

from minitrace import ExecutionError, MinitraceError, bundle, check_code, node

LINUX = sys.platform == "linux"
PATHS = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(COMPANIONS)!r}]\n"


def descendants(pid):
    """Process ids below one process, by /proc."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, last = set(), {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last}
        found |= last
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(question, seconds=5):
    end = time.monotonic() + patient(seconds)
    while not question() and time.monotonic() < end:
        time.sleep(0.02)
    return question()


def outcome(limits, source, name="f", args=()):
    try:
        limits.run(source, name, args)
        return "fine"
    except LimitError as error:
        return str(error)
    except CodeError as error:
        return error.kind


def python(program, *options, **more):
    """Run a program in a Python of its own."""
    command = [sys.executable, *options, "-c", PATHS + program]
    return subprocess.run(command, capture_output=True, text=True, **more)


# ---- how code ends


# Of every three that end in the same way, two are slow tests.
EACH_HOSTILE = [
    pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * bool(number % 3))
    for number, row in enumerate(sorted(HOSTILE, key=lambda row: row[3]))
]


@pytest.mark.skipif(not LINUX, reason="the table is written for Linux")
@pytest.mark.parametrize("what, modules, body, word", EACH_HOSTILE)
def test_hostile_code_ends_within_its_limit_and_the_next_call_works(what, modules, body, word):
    seconds = 0.3 if word in ("time", "") else 3  # what ends by itself may do so on a busy machine
    limits = Limits(seconds, 64) if modules == "_" else Limits(seconds, 64, modules.split())
    # where a child would not be alone with its processes, code must not touch those of others
    if modules != "_" and not limits.report()["network"]:
        pytest.skip("needs namespaces")
    limits.run("def f(): return 1", "f")  # warm: the start of a child is no part of its call
    started = time.monotonic()
    ended = outcome(limits, f"def f():\n {body}\n")
    took = time.monotonic() - started
    assert ended.startswith(tuple(word.split("|"))), ended
    assert took < seconds + patient(1), took
    assert limits.run("def f(x): return x + 1", "f", [1]) == 2


def test_memory_is_bounded_by_megabytes():
    source = "def f(mb): return len(bytearray(mb << 20)) >> 20"
    assert Limits(memory_mb=64).run(source, "f", [40]) == 40
    if LINUX:
        assert outcome(Limits(memory_mb=64), source, args=[80]) == "memory: used up"


@pytest.mark.slow
def test_processor_time_is_counted_for_each_call():
    """Calls that together take more than the limit on one of them all succeed in one child."""
    limits = Limits(seconds=3, memory_mb=77, imports=["time", "os"])
    source = """
import os, time
def f():
    end = time.process_time() + 0.5
    while time.process_time() < end: pass
    return os.getpid(), time.process_time()
"""
    results = [limits.run(source, "f") for _ in range(11)]
    assert len({pid for pid, _ in results}) == 1 and results[-1][1] > 5


@pytest.mark.skipif(not LINUX, reason="Linux has this limit")
def test_processor_time_is_bounded_too():
    source = """
import resource, time
def f(): return resource.getrlimit(resource.RLIMIT_CPU)[0] - time.process_time()
"""
    left = Limits(seconds=5, imports=["resource", "time"]).run(source, "f")
    assert 6 < left < 8


@pytest.mark.skipif(not LINUX, reason="the status is that of Linux")
def test_processor_time_that_is_used_up_is_time():
    source = """
import resource
def f():
    resource.setrlimit(resource.RLIMIT_CPU, (1, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    while True: pass
"""
    ended = outcome(Limits(seconds=30, memory_mb=78, imports=["resource"]), source)
    assert ended.startswith("time: the child process ended with status"), ended


def test_an_exception_tells_where_it_was_raised():
    source = """def helper(x):
    return 1 / x

def f(x):
    print('here')
    return helper(x)
"""
    with pytest.raises(CodeError) as caught:
        Limits().run(source, "f", [0])
    error = caught.value
    assert (error.kind, error.message) == ("ZeroDivisionError", "division by zero")
    assert (error.line, error.text, error.output) == (2, "return 1 / x", "here\n")
    assert str(error) == "ZeroDivisionError: division by zero (line 2: return 1 / x)"
    with pytest.raises(CodeError, match="missing 1 required positional argument") as caught:
        Limits().run(source, "f")
    assert caught.value.line == 0


def test_lines_are_counted_as_python_counts_them():
    with pytest.raises(CodeError) as caught:
        Limits().run("def f(x):\r\n  y = '\x0b \x85 \u2028'\n  return 1 / x", "f", [0])
    assert (caught.value.line, caught.value.text) == (3, "return 1 / x")


def test_what_an_exception_says_is_bounded():
    ended = outcome(Limits(), "def f(): raise SystemExit('x' * 9_999)")
    assert ended == "exit: " + "x" * 1994
    with pytest.raises(CodeError) as caught:
        Limits().run("def f(): raise ValueError('x' * 9_999)", "f")
    assert caught.value.message == "x" * 2000


def test_what_cannot_cross_is_refused_by_its_name():
    echo = "def f(x): return x"
    named = r"cannot cross: args\[0\]\['x'\]: a TextIOWrapper cannot be written as JSON"
    with open(os.devnull) as file, pytest.raises(LimitError, match=named):
        Limits().run(echo, "f", [{"x": file}])
    with pytest.raises(LimitError, match=r"cannot cross: kwargs\['x'\]: a object cannot"):
        Limits().run(echo, "f", kwargs={"x": object()})
    with pytest.raises(LimitError, match="cannot cross: args takes more than 4,000,000"):
        Limits().run(echo, "f", ["x" * 4_000_000])
    big = ['\u00e9[{"' * 100_000]
    assert Limits().run(echo, "f", [big]) == big
    deep = ()
    for _ in range(98):
        deep = (deep,)
    assert Limits().run(echo, "f", [deep]) == deep
    with pytest.raises(LimitError, match=r"cannot cross: args.* nested more than 100 levels deep"):
        Limits().run(echo, "f", [((deep,),)])


def test_a_reply_is_bounded_before_it_is_parsed():
    """In a process of its own: a crash is the failure looked for."""
    program = """
import threading, minitrace_limits
sys.setrecursionlimit(10**6)
threading.stack_size(1 << 20)
def work():
    for reply in b"[" * 10**6, b'["result", ' + b"[" * 10**6 + b"]" * 10**6 + b"]", b"{":
        try: minitrace_limits._read(reply)
        except minitrace_limits.LimitError as error: print(error)
thread = threading.Thread(target=work); thread.start(); thread.join()
"""
    done = python(program)
    assert done.stdout == "crashed: what came back is not a reply\n" * 3, done


def test_code_that_is_alright_runs():
    source = '''
from __future__ import annotations
"""A comment."""
import collections.abc, dataclasses, enum
from collections import Counter as C
LIMIT: int = float("inf")
async def f(text: str, *, k: int = 2) -> Undefined:
    @dataclasses.dataclass
    class Point:
        x: int
        def __add__(self, other): return Point(self.x + other.x)
    class Colour(enum.Enum):
        RED = 1
    assert isinstance([], collections.abc.Sequence)
    input = sorted(C(text).items())
    return [*input, Point(1) + Point(k) == Point(3), Colour.RED.value, LIMIT]
'''
    check_code(source, "f", "async def f(text, *, k: int=2) -> str:", Limits())
    assert Limits().run(source, "f", ["aab"], {"k": 2}) == [("a", 2), ("b", 1), True, 1, math.inf]


def test_modules_show_their_submodules_and_nothing_that_they_import():
    source = """
import json.decoder, xml.etree.ElementTree as tree
def f(text):
    found = [json.decoder.JSONDecoder().decode(text), tree.fromstring('<a/>').tag]
    for look in [lambda: json.codecs, lambda: json.decoder.re, lambda: tree.sys]:
        try: look()
        except AttributeError as error: found.append(str(error))
    return found
"""
    found = Limits(imports=["json", "xml"]).run(source, "f", ["[1]"])
    assert found[:2] == [[1], "a"] and len(found) == 5, found


def test_nothing_lasts_from_call_to_call():
    source = "import math\nkept = []\ndef f():\n kept.append(1)\n math.pi = 3\n return len(kept)"
    limits = Limits()
    assert [limits.run(source, "f") for _ in range(3)] == [1, 1, 1]
    assert limits.run("import math\ndef f(): return math.pi", "f") == math.pi


# ---- the child process


def test_no_key_of_the_environment_is_visible(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    limits = Limits(memory_mb=111, imports=["os"])
    keys = limits.run("import os\ndef f(): return sorted(os.environ)", "f")
    assert set(keys) <= {"LC_CTYPE", "SYSTEMROOT"}
    if LINUX:
        source = "import os\ndef f():\n with os.fdopen(os.open('/proc/self/environ', 0)) as e: return e.read()"
        assert "secret" not in limits.run(source, "f")


def test_there_is_no_network_where_namespaces_allow_that():
    limits = Limits(seconds=10, imports=["socket"])
    if not limits.report()["network"]:
        pytest.skip("needs namespaces")
    source = "import socket\ndef f(address): socket.create_connection(address, 5)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert outcome(limits, source, args=[server.getsockname()]) == "OSError"


def test_a_child_loads_both_files_by_their_paths_and_nothing_that_lies_beside_them(tmp_path):
    for file in ROOT / "minitrace.py", COMPANIONS / "minitrace_limits.py":
        shutil.copy(file, tmp_path)
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the wrong one')")
    program = f"""
sys.path[:2] = [{str(tmp_path)!r}]
from minitrace_limits import Limits
limits = Limits(seconds=10, imports=["colorsys", "sys"])
source = '''
import colorsys, sys
def f():
    files = [(name, repr(module)) for name, module in sys.modules.items() if "minitrace" in name]
    return files, sys.flags.isolated, colorsys.rgb_to_hsv(0, 0, 1)[2]
'''
print(limits.run(source, "f"))
"""
    done = python(program, cwd=tmp_path)
    expected = [
        (name, f"<module '{name}' from {str(tmp_path / name) + '.py'!r}>")
        for name in ("minitrace", "minitrace_limits")
    ]
    assert done.stdout == f"{(expected, 1, 1)}\n", done


def test_a_companion_without_minitrace_says_which_file_to_copy(tmp_path):
    shutil.copy(COMPANIONS / "minitrace_limits.py", tmp_path)
    command = [sys.executable, "-c", "import minitrace_limits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    needed = "ImportError: minitrace_limits.py needs minitrace.py: copy it beside this file"
    assert done.stderr.splitlines()[-1] == needed, done


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_hostile_code_leaves_no_process():
    limits = Limits(seconds=0.3, imports=["os", "time"])
    if not limits.report()["network"]:
        pytest.skip("needs namespaces")
    before = descendants(os.getpid())
    source = """
import os, time
def f():
    try: pid = os.fork()
    except OSError: return
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(77)
        os._exit(0)
    while True: pass
"""
    assert outcome(limits, source).startswith(("time", "fine"))
    old = before | descendants(os.getpid())
    assert eventually(lambda: len([p for p in old if alive(p)]) <= len(before))
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "time.sleep(77)" not in found


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.slow
def test_many_calls_leak_nothing(slow):
    calls = 10_000 if slow else 500
    limits = Limits()
    source = "import math\ndef f(x):\n    return math.isqrt(x)"
    for x in range(100):
        limits.run(source, "f", [x])
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    processes = descendants(os.getpid())
    started = time.perf_counter()
    for x in range(calls):
        assert limits.run(source, "f", [x]) == math.isqrt(x)
    each = (time.perf_counter() - started) / calls
    print(f"{each * 1e6:.0f} microseconds for each call")
    assert each < patient(0.01)  # about 0.0005 on a quiet machine
    assert descendants(os.getpid()) == processes
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.slow
def test_calls_that_reach_their_limit_leak_nothing():
    limits = Limits(seconds=0.05)
    outcome(limits, "def f():\n while True: pass")
    gc.collect()
    files, processes = len(os.listdir("/proc/self/fd")), descendants(os.getpid())
    threads = threading.active_count()  # one may be the loop of another test's coroutines
    for _ in range(10):
        assert outcome(limits, "def f():\n while True: pass").startswith("time")
    assert len(os.listdir("/proc/self/fd")) <= files  # closed at once, not by the collector
    assert eventually(lambda: len(descendants(os.getpid())) <= len(processes))
    assert eventually(lambda: threading.active_count() <= threads)


@pytest.mark.slow
def test_no_way_to_end_leaves_a_warning():
    """Python warns of every pipe or process that nobody ended."""
    program = """
import gc, threading
import minitrace_limits
from minitrace_limits import CodeError, LimitError, Limits
for body in ["raise SystemExit", "while True: pass", "return f", "os._exit(3)", "print('x' * 10**6)",
             "return 'x' * 10**7", "import socket", "raise ValueError", "return 1"]:
    limits = Limits(0.3 if "while" in body else 9, imports=["os"])
    try: limits.run(f"import os\\ndef f(*x):\\n {body}", "f", ["x" * 10**6])
    except (LimitError, CodeError) as error: print(str(error)[:20])
(idle,) = minitrace_limits._idle.values()
idle[0].kill()  # it dies without our doing
idle[0].wait()
threads = [threading.Thread(target=limits.run, args=("def f(): return 2", "f")) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
del idle
gc.collect()
"""
    done = python(program, "-X", "dev", "-W", "error")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "time: no result" in done.stdout and "exit: " in done.stdout, done.stdout


def test_threads_at_once():
    limits, results = Limits(seconds=5), {}

    def work(thread):
        for i in range(30):
            results[thread, i] = limits.run("def f(x): return [x]", "f", [(thread, i)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {(n, i): [(n, i)] for n in range(12) for i in range(30)}
    assert all(len(idle) <= minitrace_limits._IDLE for idle in minitrace_limits._idle.values())


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize(
    "body", ["return 1", "while True: pass", "import time; time.sleep(60)"], ids=str
)
def test_a_child_dies_with_its_parent(body):
    program = f"""{PATHS}
from minitrace_limits import Limits
limits = Limits(seconds=60, imports=["time"])
print("ready", flush=True)
limits.run("def f():\\n {body}", "f"); print("done", flush=True); sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ready\n"
    assert eventually(lambda: descendants(parent.pid))
    time.sleep(0.7)
    children = descendants(parent.pid)
    assert children and all(alive(pid) for pid in children)
    parent.kill()
    parent.communicate()
    assert eventually(lambda: not any(alive(pid) for pid in children)), children


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_is_not_shared_across_forks():
    limits = Limits(seconds=5)
    source = "import os\ndef f(x): return os.getpid(), x"
    tells = Limits(seconds=5, memory_mb=88, imports=["os"])
    before = tells.run(source, "f", [1])
    first = limits.run("def f(): return 1", "f")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            tells.run(source, "f", [2])
            results = [limits.run("def f(x): return x", "f", [n]) for n in range(200)]
            os.write(write, b"good" if results == list(range(200)) else b"bad")
        finally:
            os._exit(0)
    found = [limits.run("def f(x): return -x", "f", [n]) for n in range(200)]
    assert found == [-n for n in range(200)]
    os.waitpid(pid, 0)
    assert os.read(read, 10) == b"good" and first == 1
    assert tells.run(source, "f", [1]) == before  # the other process ended no child of this one
    os.close(read), os.close(write)


def test_a_child_killed_while_idle_is_replaced():
    limits = Limits(memory_mb=99)
    limits.run("def f(): return 1", "f")
    for idle in minitrace_limits._idle.values():
        for child in idle:
            child.kill()
            child.wait()
    assert limits.run("def f(): return 2", "f") == 2


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True], ids=["free", "busy"])
def test_a_killed_child_leaves_no_resource_warning(busy):
    """Whoever waits on its pipes may still be at it when it is killed, on a busy machine."""
    program = PATHS + (
        "import gc, minitrace_limits, threading, time\n"
        "class Busy:\n"
        "    def __enter__(self): pass\n"
        "    def __exit__(self, *error): time.sleep(0.8)\n"
        "    def acquire(self, timeout): return False\n"
        "limits = minitrace_limits.Limits(seconds=0.3)\n"
        "for source in 'while True: pass', 'return f()', 'return [0] * 10**9':\n"
        "    limits.run('def f(): return 1', 'f')\n"
        f"    if {busy}: minitrace_limits._idle[256][-1].in_use = Busy()\n"
        "    try: limits.run(f'def f():\\n    {source}', 'f')\n"
        "    except minitrace_limits.MinitraceError as error: print(type(error).__name__)\n"
        "time.sleep(1.5)\n"
        "gc.collect()\n"
    )
    command = [sys.executable, "-X", "dev", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert len(done.stdout.split()) == 3 and done.stderr == ""


def test_limits_are_checked_and_shown():
    with pytest.raises(ValueError, match="seconds=0 must be above 0"):
        Limits(seconds=0)
    with pytest.raises(ValueError, match="memory_mb=1 at least 16"):
        Limits(memory_mb=1)
    with pytest.raises(ValueError, match="seconds=None must be above 0"):
        Limits(seconds=None)
    assert repr(Limits(1, 64)) == "Limits(seconds=1, memory_mb=64)"
    held = Limits().report()
    assert all(type(holds) is bool for holds in held.values()) and held["time"]
    if LINUX:
        assert held["memory"] and held["files"] and held["cpu"] and held["core"]
        assert held["processes"] == (os.getuid() != 0)


# ---- what is refused


UNDER_LIMITS = [
    ("import os\ndef f(): pass", "`os` is not allowed under limits"),
    ("import math, os.path\ndef f(): pass", "`os.path`"),
    ("def f():\n from os import path", "`os`"),
    ("from . import x\ndef f(): pass", r"`\.`"),
    ("from .math import x\ndef f(): pass", r"`\.math`"),
    ("from mathematics import x\ndef f(): pass", "`mathematics`"),
    ("from math import __loader__\ndef f(): pass", "`__loader__`"),
    ("def f(): return open('x')", "`open`"),
    ("def f(): return exec", "`exec`"),
    ("def f(x): return getattr(x, 'y')", "`getattr`"),
    ("def f(x): return x.__class__", "`__class__`"),
    ("def f(x): x.__class__ = int", "`__class__`"),
    ("def f(): return __builtins__", "`__builtins__`"),
    ("def f():\n global __builtins__\n", "`__builtins__`"),
    ("def f(x): return f'{x.__class__}'", "`__class__`"),
    ("def f(x): return '{x.__class__}'.format(x=x)", "`__class__`"),
    ("def f(x): return '''\n{0[__class__]}'''", "`__class__`"),
    ("def f(x): return '__class__'", "`__class__`"),
    ("def f(x):\n match x:\n  case object(__class__=c): return c", "`__class__`"),
    ("def f(x): return x.gi_frame", "`gi_frame`"),
    ("def f(x): return f.f_globals", "`f_globals`"),
]


@pytest.mark.parametrize("source, words", UNDER_LIMITS)
def test_code_is_refused_under_limits_only(source, words):
    check_code(source, "f")
    with pytest.raises(ValueError, match=words) as caught:
        check_code(source, "f", limits=Limits())
    with pytest.raises(ValueError, match=words):
        Limits().check(source)
    assert str(caught.value).endswith(
        " is not allowed under limits, nor any import but Limits.imports"
    )
    assert outcome(Limits(), source) == f"refused: {caught.value}"


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations\ndef f(): pass",
        "import collections.abc\ndef f(input, dir=1): return input",
        "def f(x):\n vars = 1\n class A:\n  def __init__(self): self.open = x.compile\n return vars",
        "def f(x): return 'the file __init__.py'",
        f"def f(x): return {10**5_000:#x}",
    ],
)
def test_ordinary_code_is_accepted_under_limits(source):
    check_code(source, "f", limits=Limits())
    Limits().check(source)


def test_the_imports_are_those_that_are_listed():
    limits = Limits(imports=["os.path", "xml"])
    limits.check("import os.path, xml.etree.ElementTree\nfrom os.path import join")
    for source in "import os", "import math", "from os import environ", "import xmlrpc":
        with pytest.raises(ValueError, match="is not allowed under limits"):
            limits.check(source)


DEEP = {
    "too long": "def f():\n " + "x = 1\n " * 3_000,
    "minus": "def f(): return " + "-" * 6_000 + "1",
    "plus over lines": "def f(): return (1" + "\n+1" * 5_000 + ")",
    "attributes": "def f(a): return a" + ".b" * 6_000,
    "lambdas": "def f(): return " + "lambda:" * 2_500 + "1",
    "brackets": "def f(): return " + "(" * 9_000 + ")" * 9_000,
    "huge": "x = 1\n" * 1_000_000,
    "no code": "def f(",
}


@pytest.mark.parametrize("stack", [0, 1 << 20], ids=["large stack", "small stack"])
def test_a_check_alone_bounds_code_before_it_parses_it(stack):
    """In a process of its own: a crash is the failure looked for."""
    program = f"""
import json, threading
from minitrace_limits import Limits
threading.stack_size({stack})
def work():
    for source in json.load(sys.stdin):
        try: Limits().check(source)
        except ValueError as error: print(str(error)[:80])
thread = threading.Thread(target=work); thread.start(); thread.join()
"""
    done = python(program, input=json.dumps([*DEEP.values()]))
    assert done.returncode == 0 and done.stderr == "", done
    said = done.stdout.splitlines()
    assert len(said) == len(DEEP), said
    assert all(words.startswith("the code does not parse: ") for words in said), said


# ---- what minitrace makes of it


def test_the_errors_are_errors_of_the_library_and_pickle():
    assert issubclass(LimitError, MinitraceError) and issubclass(CodeError, MinitraceError)
    error = CodeError("ValueError", "bad", 2, "raise ValueError('bad')", "printed\n")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and vars(again) == vars(error)
    assert str(pickle.loads(pickle.dumps(LimitError("exit: bye")))) == "exit: bye"
    assert vars(pickle.loads(pickle.dumps(Limits(1, 64)))) == vars(Limits(1, 64))


@pytest.mark.parametrize(
    "line, words, marked",
    [
        (
            "return 1 / x",
            "(ZeroDivisionError) division by zero",
            "return 1 / x   <-- ZeroDivisionError",
        ),
        ("raise KeyError", "(KeyError)", "raise KeyError   <-- KeyError"),
        ("while True: pass", "(LimitError) time: no result within 0.3 seconds", None),
        ("raise SystemExit('bye')", "(LimitError) exit: bye", None),
        (
            "return f",
            "(LimitError) cannot cross: the result: a function cannot be written as JSON",
            None,
        ),
    ],
)
def test_a_failure_under_limits_is_a_node_with_its_words_and_its_line(line, words, marked):
    @bundle(trainable=True, limits=Limits(seconds=0.3))
    def f(x):
        return x

    assert f(3).data == 3
    f.parameter.set(f"def f(x):\n    {line}")
    x = node(0, "x", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        f(x)
    failure = caught.value.exception_node
    full = words + (f"\nline 2: {marked}" if marked else "")
    assert (failure.data, failure.create_feedback("full")) == (words, full)
    assert isinstance(caught.value.__cause__, LimitError if marked is None else CodeError)
    assert x in failure.parents


def test_a_failure_before_the_first_line_marks_none():
    with pytest.raises(CodeError) as caught:
        Limits().run("def f(x): return x", "f")
    assert caught.value.failure[0].startswith("(TypeError) f() missing 1 required")
    assert caught.value.failure[1] == ""


def test_a_bundle_under_limits_refuses_code_and_keeps_the_old():
    @bundle(trainable=True, limits=Limits())
    def f(x):
        return x

    with pytest.raises(ValueError, match="`os` is not allowed under limits"):
        f.parameter.set("def f(x):\n    import os\n    return os.getpid()")
    assert f([1, (2,)]).data == [1, (2,)]


def test_a_failure_under_limits_is_feedback_like_any_other():
    @bundle(trainable=True, limits=Limits(seconds=0.3))
    def work(x):
        return x

    work.parameter.set("def work(x):\n    y = x - 1\n    return x / y")
    with pytest.raises(ExecutionError) as caught:
        work(1)
    failed = caught.value.exception_node
    assert failed.data == "(ZeroDivisionError) division by zero"
    assert "line 3: return x / y   <-- ZeroDivisionError" in failed.create_feedback("full")
    work.parameter.set("def work(x):\n    while True:\n        pass")
    with pytest.raises(ExecutionError, match="time: no result within 0.3 seconds") as caught:
        work(1)
    failed = caught.value.exception_node
    failed.backward(failed.create_feedback())
    assert work.parameter.feedback[0].feedback == [
        "(LimitError) time: no result within 0.3 seconds"
    ]
    work.parameter.set("def work(x):\n    return x + 1")
    assert work(1).data == 2
    with pytest.raises(ValueError, match="`open` is not allowed under limits"):
        work.parameter.set("def work(x):\n    return open('/etc/passwd').read()")
