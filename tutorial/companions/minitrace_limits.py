"""Limits: run code that a language model wrote in a child process, with limits on everything.

A companion of `minitrace.py`: copy both files into one folder.

>>> from minitrace import ExecutionError, bundle
>>> @bundle(trainable=True, limits=Limits(seconds=0.5))
... def half(x):
...     return x / 2
>>> half(3).data
1.5
>>> half.parameter.set("def half(x):\\n    while x: pass")
>>> try:
...     half(3)
... except ExecutionError as error:
...     print(error.exception_node.data)
(LimitError) time: no result within 0.5 seconds

How it works: a child process loads minitrace.py and this file, gives up what it can, and waits.

    caller ── request, one line of JSON ──▶ child: checks the code, runs it with fewer built-ins
    caller ◀── reply, one line of JSON ───  under resource limits, no network, no environment

One warm child serves many calls. A child that reaches a limit is killed with everything it started,
and the next call gets a new one. The first half of this file runs in the caller, the second in the
child.

Where it runs: the limits on time, output and environment hold wherever Python can start a process.
The others need POSIX: those on processor time, open files, file size, processes and core files hold
on all such systems, that on memory on all but macOS. Only Linux, where namespaces are allowed, cuts
off the network and ends everything that a child started. On Windows, a child leaves an empty
working directory behind, and what it started outlives it. In a browser there are no processes:
`run` and `report` raise a `LimitError`.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import functools
import io
import itertools
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from subprocess import PIPE, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NoReturn

try:
    from minitrace import MinitraceError, check_code, decode, encode
except ModuleNotFoundError as error:
    raise ImportError("minitrace_limits.py needs minitrace.py: copy it beside this file") from error

__all__ = ["CodeError", "LimitError", "Limits"]

_CROSSING = 4_000_000  # characters that cross at once
_DEEPEST = 300  # brackets in brackets of a reply; `encode` never writes as many
_PRINTED = 20_000  # characters that one call may print
_IDLE = 8  # warm children kept for each memory limit
_OUT_OF_TIME = (-24, 152)  # exit statuses of a process that used up its processor time
_PURE = str.split("""abc array base64 bisect calendar cmath collections copy csv dataclasses
    datetime decimal difflib enum fractions functools hashlib heapq html itertools json math numbers
    operator random re statistics string struct textwrap typing unicodedata""")
_BARRED = str.split("""__import__ __loader__ __spec__ breakpoint compile copyright credits delattr
    dir eval exec exit getattr globals hasattr help input license locals open quit setattr vars""")
_INNER = re.compile(r"__\w+__|(gi|cr|ag|tb)_(frame|code)|f_(back|builtins|code|globals|locals)")
_INNER_IN_TEXT = re.compile(r"(?:^|[.\[])(__\w+__)")  # as in "{0.__class__}".format(x)


# ---- In the caller -------------------------------------------------------------------------------


class LimitError(MinitraceError):
    """Code under limits neither returned nor raised; the message begins with a word that says why.

    `time`, `memory`, `output` (too much printed), `exit`, `crashed`, `refused` (by `check_code`),
    `cannot cross` (an argument or result that JSON cannot hold, with its place), or `no process`
    (none can be started here, as in a browser).

    >>> raise LimitError("time: no result within 2 seconds")
    Traceback (most recent call last):
    minitrace_limits.LimitError: time: no result within 2 seconds
    """

    @property
    def failure(self) -> tuple[str, str]:
        """What the node of a failed call says, and what "full" feedback adds to it."""
        return f"(LimitError) {self}", ""


class CodeError(MinitraceError):
    """An exception that code under limits raised, reported by its child process.

    Attributes:
        kind: name of the exception's type.
        message: its text.
        line: number of the line of the code that failed, from 1; 0 if it was none of them.
        text: that line.
        output: what the code had printed, at most 20,000 characters.

    >>> try:
    ...     Limits().run("def f(x):\\n    return 1 / x", "f", [0])
    ... except CodeError as error:
    ...     print(error.kind, error.line, error.text)
    ZeroDivisionError 2 return 1 / x
    """

    def __init__(self, kind: str, message: str, line: int, text: str, output: str) -> None:
        super().__init__(kind, message, line, text, output)  # all of them, so that it pickles
        self.kind = kind
        self.message = message
        self.line = line
        self.text = text
        self.output = output

    def __str__(self) -> str:
        where = f" (line {self.line}: {self.text})" if self.line else ""
        return f"{self.kind}: {self.message}{where}"

    @property
    def failure(self) -> tuple[str, str]:
        """What the node of a failed call says, and the marked line that "full" feedback adds."""
        marked = f"\nline {self.line}: {self.text}   <-- {self.kind}" if self.line else ""
        return f"({self.kind}) {self.message}".rstrip(), marked


class Limits:
    """Run code that a language model wrote in a child process, with limits on everything.

    The child has no environment, no network where Linux namespaces let an ordinary program give it
    up, a working directory that no longer exists, and bounds on time, memory, open files, file
    size, processes and output. Arguments, results and errors are passed as JSON; nothing that the
    child says is evaluated, and its loops, floods and crashes end as a `LimitError`. One warm child
    serves many calls, dies with its parent, and is replaced when it reaches a limit.

    This is a seat belt, not a wall: it catches accidents and most tricks. Code that gets around the
    restricted built-ins runs as the same user. It can read that user's files, and delete or rename
    them; it can see other processes; without namespaces (see `report`) it can also use the network,
    and signal or outlive the caller. Calls of one child share the state of the
    modules that they import. Code from somebody you do not trust belongs in a virtual machine.

    Args:
        seconds: of wall-clock time for one call.
        memory_mb: megabytes of address space, not counting what the child itself takes.
        imports: modules that the code may import, with their submodules. By default pure ones:
            `math`, `re`, `json`, `itertools` and their like. Only the standard library is there.

    >>> limits = Limits(seconds=2)
    >>> limits.run("def f(x, k):\\n    return {x: x * k}", "f", [(1, 2)], {"k": 2})
    {(1, 2): (1, 2, 1, 2)}
    """

    def __init__(
        self, seconds: float = 2, memory_mb: int = 256, imports: Iterable[str] = _PURE
    ) -> None:
        self.seconds = seconds
        self.memory_mb = memory_mb
        self.imports = tuple(imports)
        numbers = all(isinstance(each, (int, float)) for each in (seconds, memory_mb))
        if not (numbers and 0 < seconds < 1e6 and 16 <= memory_mb < 1e6):
            raise ValueError(f"{seconds=} must be above 0 and {memory_mb=} at least 16")

    def __repr__(self) -> str:
        return f"Limits(seconds={self.seconds}, memory_mb={self.memory_mb})"

    def check(self, source: str) -> None:
        """Raise an error if some code may not run under these limits.

        The code imports only what `imports` lists, and names no `open`, `exec`, `getattr` and their
        like, no attribute such as `__class__` or `gi_frame`, and no text such as
        `"{0.__class__}"`. Not caught: such names put together at run time. `check_code` asks this
        of its `limits`, and bundles ask `check_code`.

        Raises:
            ValueError: a reason in one sentence, written to be sent back to the language model.

        >>> Limits().check("import os")
        Traceback (most recent call last):
        ValueError: `os` is not allowed under limits, nor any import but Limits.imports
        """
        try:
            # It bounds the code and parses it. Then it misses a function: none has an empty name.
            check_code(source, "")
        except ValueError as error:
            if "must define" not in str(error):
                raise
        word = next(_out_of_reach(ast.parse(source), self.imports), "")
        if word:
            good = "nor any import but Limits.imports"
            raise ValueError(f"`{word}` is not allowed under limits, {good}")

    def run(
        self,
        source: str,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function `name` of some code in a child process, and return its result.

        The code is checked there and loaded afresh for each call, so that nothing it keeps lasts.
        An `async def` is run to its end. Safe in threads.

        Raises:
            LimitError: the call ended otherwise; see there for the words.
            CodeError: the code itself raised.

        >>> Limits().run("def f():\\n    return open('/etc/passwd')", "f")
        Traceback (most recent call last):
        minitrace_limits.LimitError: refused: `open` is not allowed under limits, nor any import \
but Limits.imports
        """
        head = json.dumps([source, name, self.imports, self.seconds])
        values = f"{_pack(list(args), 'args')}, {_pack(dict(kwargs or {}), 'kwargs')}"
        answer = _ask(self.memory_mb, f"[{head}, {values}]", self.seconds)
        if isinstance(answer, CodeError):
            raise answer
        return answer

    def report(self) -> dict[str, bool]:
        """Which limits hold on this platform, found by starting a child and asking it.

        >>> Limits().report()["time"]
        True
        """
        held = _ask(self.memory_mb, "[]", 30)
        words = "time output environment network memory cpu files descriptors processes core"
        return {word: word in held for word in words.split()}


def _out_of_reach(tree: ast.Module, imports: Iterable[str]) -> Iterator[str]:
    """The imports, built-ins and inner attributes of some code that lead out of it."""
    parts = list(ast.walk(tree))
    own = {part.id for part in parts if isinstance(part, ast.Name) and type(part.ctx) is ast.Store}
    own |= {getattr(part, "arg", getattr(part, "name", "")) for part in parts}
    barred = set(_BARRED) - own
    for part in parts:
        match part:
            case ast.Import(names):
                yield from (alias.name for alias in names if not _allows(imports, alias.name))
            case ast.ImportFrom(module, _, level):
                name = "." * level + (module or "")
                if not _allows(imports, name):
                    yield name
            case ast.Constant(str(text)):
                yield from _INNER_IN_TEXT.findall(text)
            case ast.Name(name) if name in barred:
                yield name
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pass  # a class may define what Python itself calls, such as `__add__`
            case _:
                yield from filter(_INNER.fullmatch, _words(part))


def _allows(imports: Iterable[str], module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in (*imports, "__future__"))


def _words(part: ast.AST) -> Iterator[str]:
    """The names that a part of some code itself holds."""
    for field in vars(part).values():
        words = field if isinstance(field, list) else [field]
        yield from (word for word in words if isinstance(word, str))


def _pack(value: Any, place: str) -> str:
    """Write a value as one line of JSON."""
    try:
        text = json.dumps(encode(value, place), allow_nan=False)
    except TypeError as error:
        raise LimitError(f"cannot cross: {error}") from None
    if len(text) > _CROSSING:
        raise LimitError(f"cannot cross: {place} takes more than {_CROSSING:,} characters")
    return text


_idle: dict[int, list[_Child]] = {}


def _ask(memory_mb: int, request: str, seconds: float) -> Any:
    """A child's answer to a request; the child stays warm for the next, unless there are enough."""
    idle = _idle.setdefault(memory_mb, [])
    child = _take(idle) or _Child(memory_mb)
    answer = child.ask(request, seconds)
    if len(idle) < _IDLE:
        idle.append(child)
    else:
        child.end()
    return answer


def _take(idle: list[_Child]) -> _Child | None:
    """A warm child that is alive, if there is one.

    After a fork, `poll` takes the children of another process for dead; so no two share one.
    """
    with contextlib.suppress(IndexError):  # there is none, or another thread was faster
        while True:
            child = idle.pop()
            if child.poll() is None:
                return child
            child.close()
    return None


@atexit.register
def _end_idle() -> None:
    """End the warm children with the program."""
    for idle in list(_idle.values()):
        while child := _take(idle):
            child.end()


class _Child(Popen[bytes]):
    """A child process that answers one request at a time; whatever goes wrong is its end."""

    def __init__(self, memory_mb: int) -> None:
        import inspect

        files = map(os.path.abspath, [inspect.getfile(MinitraceError), __file__])
        command = [sys.executable, "-ISBc", _BOOT, *files, str(memory_mb)]
        env = {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if os.name == "nt" else {}
        self.in_use = threading.Lock()  # its pipes
        self.ended = False
        with TemporaryDirectory(ignore_cleanup_errors=True) as home:  # removed under its feet
            try:
                super().__init__(
                    command, stdin=PIPE, stdout=PIPE, cwd=home, env=env, start_new_session=True
                )
            except (OSError, RuntimeError) as error:  # in a browser; in a subinterpreter
                raise LimitError(
                    "no process: Limits runs code in a child process, and none can be started "
                    f"here ({error}); any object with `check` and `run` can stand in its place"
                ) from None
        self.ask("[]", 30)  # its start is no part of anybody's call

    def ask(self, request: str, seconds: float) -> Any:
        """Its answer to one request; what carries another mark than the request is no answer.

        A thread of its own waits on the pipe, which works everywhere.
        """
        mark = os.urandom(8).hex().encode()
        replies: list[bytes] = []

        def exchange() -> None:
            assert self.stdin and self.stdout
            with self.in_use, contextlib.suppress(OSError, ValueError):  # it may be dead by now
                self.stdin.write(mark + request.encode() + b"\n")
                self.stdin.flush()
                while not replies and (reply := self.stdout.readline(_CROSSING + 100)):
                    if reply.startswith(mark):
                        replies.append(reply[16:])
            if self.ended:  # while this thread was in the way
                self.close()

        thread = threading.Thread(target=exchange)  # it ends with the child
        try:
            thread.start()
            thread.join(seconds)
            if thread.is_alive():
                raise LimitError(f"time: no result within {seconds:g} seconds")
            return _read(replies[0]) if replies else self._stopped()
        except BaseException:
            self.end()
            raise

    def _stopped(self) -> NoReturn:
        """Say how it ended, when it did not answer."""
        with contextlib.suppress(TimeoutExpired):
            self.wait(1)
        status = self.returncode or 0
        word = "exit" if 0 <= status < 128 else "time" if status in _OUT_OF_TIME else "crashed"
        raise LimitError(f"{word}: the child process ended with status {status}")

    def end(self) -> None:
        """Kill it with everything in its process group, and close its pipes."""
        with contextlib.suppress(OSError):  # it may have ended by itself
            getattr(os, "killpg", os.kill)(self.pid, 9)
        self.wait()
        self.ended = True
        if self.in_use.acquire(timeout=1):  # or else whoever uses the pipes closes them
            self.close()

    def close(self) -> None:
        """Close the pipes of a dead child, as `with` does for any process."""
        with contextlib.suppress(OSError), self:
            pass


def _read(reply: bytes) -> Any:
    """What a reply says: a result, or the `CodeError` that the code raised. It is not trusted."""
    try:
        kind, content = json.loads(reply if _depth(reply) < _DEEPEST else b"")
        if kind == "raised" and [*map(type, content)] != [str, str, int, str, str]:
            raise TypeError("that is no CodeError")
        answer = CodeError(*content) if kind == "raised" else decode(content)
    except Exception:
        raise LimitError("crashed: what came back is not a reply") from None
    if kind == "ended":
        raise LimitError(answer)
    return answer


def _depth(line: bytes) -> int:
    """How deep the brackets of some JSON nest: too deep, and the parser would crash."""
    plain = line.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = re.sub(rb'"[^"]*"?|[^][{}"]+', b"", plain)
    return max(itertools.accumulate(1 if bracket in b"[{" else -1 for bracket in brackets))


# ---- In the child --------------------------------------------------------------------------------

_BOOT = """
import sys
from importlib import util
for name, path in zip(["minitrace", "minitrace_limits"], sys.argv[1:]):
    spec = util.spec_from_file_location(name, path)
    sys.modules[name] = module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
module._serve(int(sys.argv[3]))
"""


def _serve(memory_mb: int) -> None:
    """Give up what can be given up, then answer requests until the pipe closes."""
    received, sent = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    held = ["time", "output", "environment"]
    admin = getattr(os, "getuid", int)() == 0  # who may start processes all the same
    with contextlib.suppress(ImportError, AttributeError, OSError):
        held += _unshare()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(received, requests.put), daemon=True).start()
    with contextlib.suppress(ImportError):
        held += [word for word in _tighten(memory_mb) if word != "processes" or not admin]
    while line := requests.get():
        request = json.loads(line[16:])  # before it is its mark, which the reply carries too
        answer = _answer(*request) if request else json.dumps(["held", held])
        sent.write(line[:16] + answer.encode() + b"\n")
        sent.flush()


def _watch(received: Iterable[bytes], put: Callable[[bytes], None]) -> None:
    """Pass requests on; when the parent is gone, so is the child, whatever it is doing."""
    for line in received:
        put(line)
    os._exit(0)


def _unshare() -> list[str]:
    """On Linux, where allowed: no network, and processes that see no others and die together."""
    import ctypes

    users, processes, network = 0x10000000, 0x20000000, 0x40000000
    if sys.platform != "linux" or ctypes.CDLL(None).unshare(users | processes | network):
        return []
    for _ in range(2):  # the first process of a namespace is deaf to signals; the second works
        if pid := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os._exit(status if status >= 0 else 128 - status)
    return ["network"]


def _tighten(memory_mb: int) -> list[str]:
    """Set the resource limits of this process; return the words of those that it took."""
    import resource

    used = 0  # pages that the interpreter itself takes
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        used = int(file.read().split()[0])
    bounds = {
        "memory": ("AS", used * resource.getpagesize() + (memory_mb << 20)),
        "files": ("FSIZE", 0),
        "descriptors": ("NOFILE", 32),
        "processes": ("NPROC", 0),
        "core": ("CORE", 0),
    }
    if sys.platform == "darwin":
        del bounds["memory"]  # it would be taken, and not enforced
    held = ["cpu"]
    for word, (limit, bound) in bounds.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (bound, bound))
            held.append(word)
    return held


class _Printed(io.StringIO):
    """What code prints, up to a bound."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > _PRINTED:
            raise LimitError(f"output: more than {_PRINTED:,} characters printed")
        return super().write(text)


def _answer(head: list[Any], args: Any, kwargs: Any) -> str:
    """The reply to one request: its result, how it ended, or what it raised and where."""
    sys.stdout = sys.stderr = printed = _Printed()
    try:
        result = _pack(_result(head, decode(args), decode(kwargs)), "the result")
        return f'["result", {result}]'
    except LimitError as error:
        ended = str(error)
    except MemoryError:
        ended = "memory: used up"
    except SystemExit as error:
        ended = f"exit: {error}"
    except BaseException as error:
        kind, message = type(error).__name__, str(error)[:2000]
        told = [kind, message, *_failed_line(error, head[0]), printed.getvalue()]
        return json.dumps(["raised", told])
    return json.dumps(["ended", ended[:2000]])


def _failed_line(error: BaseException, source: str) -> tuple[int, str]:
    """The number and the text of the innermost line of the code in a traceback."""
    import traceback

    places = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in places if frame.f_code.co_filename == "the code"]
    if not lines:
        return 0, ""
    return lines[-1], re.split(r"\r\n?|\n", source)[lines[-1] - 1].strip()


def _result(head: list[Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Load the code afresh and call its function."""
    source, name, imports, seconds = head
    code = _compiled(source, name, tuple(imports))
    _allow_processor(seconds)
    known = {key: item for key, item in vars(builtins).items() if key not in _BARRED}
    known["__import__"] = functools.partial(_import, imports)
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": known}
    exec(code, namespace)
    result = namespace[name](*args, **kwargs)
    if hasattr(result, "__await__"):
        import asyncio

        result = asyncio.run(result)
    return result


@functools.lru_cache(64)
def _compiled(source: str, name: str, imports: tuple[str, ...]) -> Any:
    """Check and compile some code, once."""
    try:
        check_code(source, name, limits=Limits(imports=imports))
    except ValueError as error:
        raise LimitError(f"refused: {error}") from None
    return compile(source, "the code", "exec")


def _allow_processor(seconds: float) -> None:
    """Move the limit on processor time, which counts all calls of this child."""
    with contextlib.suppress(ImportError, ValueError):
        import resource

        most = int(sum(os.times()[:2]) + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _import(imports: Any, name: str, _g: Any, _l: Any, wanted: Any, level: int) -> ModuleType:
    """What `import` calls in code under limits."""
    if level or not _allows(imports, name):
        raise ImportError(f"importing {name} is not allowed under limits")
    return _without_imports(__import__(name, fromlist=wanted))


def _without_imports(module: ModuleType) -> ModuleType:
    """A copy of a module and its submodules, without the modules that they import themselves."""
    bare = ModuleType(module.__name__)
    public = getattr(module, "__all__", ())
    for key, item in vars(module).items():
        is_module = isinstance(item, ModuleType)
        imported = is_module and f"{module.__name__}.{key}" not in sys.modules
        if key in public or not (imported or key.startswith("_")):
            vars(bare)[key] = _without_imports(item) if is_module else item
    return bare
