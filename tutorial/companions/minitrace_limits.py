"""Limits: code that a language model wrote. RAW: cut out of the old file, to be rewritten."""

# Code by a language model: may it be accepted (`check_code`), and what if it runs (`Limits`)?
#
#     caller ── request, one line of JSON ──▶ child process: the same check, fewer built-ins,
#     caller ◀── reply, one line of JSON ───  resource limits, no network, no environment
#
# One warm child serves many calls. A child that reaches a limit is killed with everything it
# started, and the next call gets a new one. A seat belt, not a wall: `Limits` says what it leaves.

_LONGEST, _DEEPEST = 20_000, 500  # characters of code; operators in one expression of it
_CROSSING, _PRINTED = 4_000_000, 20_000  # characters that cross at once; that one call prints
_IDLE = 8  # warm children kept for each memory limit
_PURE = str.split("""abc array base64 bisect calendar cmath collections copy csv dataclasses
    datetime decimal difflib enum fractions functools hashlib heapq html itertools json math numbers
    operator random re statistics string struct textwrap typing unicodedata""")
_CALM = str.split("bool bytes complex dict float frozenset int list range re.compile set str tuple")
_BARRED = str.split("""__import__ __loader__ __spec__ breakpoint compile copyright credits delattr
    dir eval exec exit getattr globals hasattr help input license locals open quit setattr vars""")
_STATEMENTS = str.split("Import ImportFrom FunctionDef AsyncFunctionDef Assign AnnAssign Expr")
_NESTS = r"not|lambda|if|else|await|and|or|in|is|for|yield|[^\w\s:=)\]}]+"
_INNER = r"__\w+__|(gi|cr|ag|tb)_(frame|code)|f_(back|builtins|code|globals|locals)"
_HIDDEN = r"(?:^|[.\[])__\w+__"
_LAST_WORDS = {"LimitError": "", "MemoryError": "memory: used up", "SystemExit": "exit: "}
_STATUS = {152: "time", -24: "time"}  # the signal for too much processor time


def _nesting(source: str) -> int:
    """At most how deep the expressions of some code nest: operators in one without a comma."""
    import tokenize

    deepest = depth = 0
    with contextlib.suppress(tokenize.TokenError, SyntaxError):  # the parser will stop there too
        for kind, text, *_ in tokenize.generate_tokens(io.StringIO(source).readline):
            if kind == tokenize.NEWLINE or text in (",", ";"):
                depth = 0
def _out_of_reach(tree: ast.Module, imports: Sequence[str]) -> Iterator[str]:
    """The imports, built-ins and inner attributes of some code that lead out of it."""
    import ast

    parts: list[Any] = list(ast.walk(tree))
    own = {p.id for p in parts if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store)}
    own |= {getattr(p, "arg", getattr(p, "name", "")) for p in parts}
    for part in parts:
        kind = type(part).__name__
        lists = [v if type(v) is list else [v] for v in vars(part).values()]
        words = [word for word in itertools.chain(*lists) if isinstance(word, str)]
        if kind in ("Import", "ImportFrom"):
            words = words or [alias.name if kind == "Import" else "." for alias in part.names]
            yield from (word for word in words if not _allows(imports, word))
        elif not kind.endswith("FunctionDef"):
            inner = re.compile(_HIDDEN if kind == "Constant" else rf"^({_INNER})$")
            barred = set(_BARRED) - own if kind == "Name" else ()
            yield from (word for word in words if inner.search(word) or word in barred)


def _allows(imports: Iterable[str], module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in (*imports, "__future__"))


class LimitError(MinitraceError):
    """Code under limits did not end as a function should; the message begins with the word for how.

    `time`, `memory`, `output` (too much printed or returned), `exit`, `crashed`, `refused` (by
    `check_code`), or `cannot cross` (an argument or result that JSON cannot hold, with its place).

    >>> raise LimitError("time: no result within 2 seconds")
    Traceback (most recent call last):
    minitrace.LimitError: time: no result within 2 seconds
    """


class CodeError(MinitraceError):
    """An exception that code under limits raised, told by its child process.

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
        super().__init__(f"{kind}: {message}" + (f" (line {line}: {text})" if line else ""))
        self.kind, self.message, self.line = str(kind), str(message), line
        self.text, self.output = text, output


class Limits:
    """Run code that a language model wrote in a child process that is short of everything.

    The child has no environment, no network where Linux namespaces let an ordinary program give it
    up, a working directory that no longer exists, and bounds on time, memory, open files, file
    size, processes and output. Arguments, results and errors cross as JSON; the child's word is
    never evaluated, and its loops, floods and crashes end as a `LimitError`. One warm child serves
    many calls, dies with its parent and is replaced when it reached a limit.

    This is a seat belt, not a wall: it catches accidents and most tricks. Code that gets around the
    restricted built-ins runs as the same user. It can read that user's files and delete them or
    change their names; it can see other processes; without namespaces (`report` tells) it can also
    use the network and signal or outlive the caller. Calls of one child share the state of the
    modules that they import. Code from somebody you do not trust belongs in a virtual machine.

    Args:
        seconds: of wall-clock time for one call.
        memory_mb: megabytes of address space beside what the child itself takes.
        imports: modules that the code may import, with their submodules. By default pure ones:
            `math`, `re`, `json`, `itertools` and their like. Only the standard library is there.

    >>> limits = Limits(seconds=2)
    >>> limits.run("def f(x, k):\\n    return {x: x * k}", "f", [(1, 2)], {"k": 2})
    {(1, 2): (1, 2, 1, 2)}
    >>> limits.run("def f():\\n    import os", "f")
    Traceback (most recent call last):
    minitrace.LimitError: refused: `os` is not allowed under limits, nor any import but \
Limits.imports
    """

    def __init__(
        self, seconds: float = 2, memory_mb: int = 256, imports: Iterable[str] = _PURE
    ) -> None:
        self.seconds, self.memory_mb, self.imports = seconds, memory_mb, tuple(imports)
        if not (0 < seconds < 1e6 and 16 <= memory_mb < 1e6):
            raise ValueError(f"{seconds=} must be above 0 and {memory_mb=} at least 16")

    def __repr__(self) -> str:
        return f"Limits(seconds={self.seconds}, memory_mb={self.memory_mb})"

    def run(self, source: str, name: str, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Call the function `name` of some code in a child process, and return its result.

        The code is loaded afresh for each call, so that nothing it keeps lasts. Safe in threads. An
        `async def` is run to its end.

        Raises:
            LimitError: the call ended otherwise; see there for the words.
            CodeError: the code itself raised.
        """
        head = json.dumps([source, name, self.imports, self.seconds])
        line = f"[{head}, {_pack(list(args), 'args')}, {_pack(dict(kwargs or {}), 'kwargs')}]"
        with _child(self.memory_mb) as child:
            answer = _ask_child(child, line, self.seconds)
            if isinstance(answer, CodeError) and answer.kind in _LAST_WORDS:
                raise LimitError(f"{_LAST_WORDS[answer.kind]}{answer.message}")
        if isinstance(answer, CodeError):
            raise answer
        return answer

    def report(self) -> dict[str, bool]:
        """Which limits hold on this platform, found by starting a child and asking it.

        >>> Limits().report()["time"]
        True
        """
        with _child(self.memory_mb) as child:
            holds = _ask_child(child, "[]", 30)
        words = "time output environment network memory cpu files descriptors processes core"
        return {word: word in holds for word in words.split()}


def _pack(value: Any, place: str) -> str:
    """Write a value as one line of JSON."""
    try:
        text = json.dumps(encode(value, place), allow_nan=False)
    except TypeError as error:
        raise LimitError(f"cannot cross: {error}") from None
    if len(text) > _CROSSING:
        raise LimitError(f"cannot cross: {place} takes more than {_CROSSING:,} characters")
    return text


def _unpack(line: bytes) -> Any:
    """What a child replied, be it an exception. Nesting is bounded before the parser sees it."""
    plain = line.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = re.sub(rb'"[^"]*"?|[^][{}"]+', b"", plain)
    depths = itertools.accumulate(1 if bracket in b"[{" else -1 for bracket in brackets)
    try:
        word, answer = json.loads(line if max(depths) < 3 * _DEPTH else b"0")
        return CodeError(*answer) if word == "raised" else decode(answer)
    except (ValueError, TypeError, RecursionError):
        raise LimitError("crashed: what came back is no reply") from None


_idle: dict[int, list[subprocess.Popen[bytes]]] = {}


@contextlib.contextmanager
def _child(memory_mb: int) -> Iterator[subprocess.Popen[bytes]]:
    """Lend a child to one thread: a warm one, or else a new one.

    After a fork, `poll` takes the children of another process for dead; so no two share one.
    """
    idle = _idle.setdefault(memory_mb, [])
    try:
        child = next(child for child in iter(idle.pop, None) if child.poll() is None)
    except IndexError:
        child = _start(memory_mb)
    try:
        yield child
    except BaseException:
        _kill(child)
        raise
    idle.append(child) if len(idle) < _IDLE else _kill(child)


def _start(memory_mb: int) -> subprocess.Popen[bytes]:
    """Start a child: this very file, in isolated mode, with no environment and nowhere to be."""
    import tempfile
    from subprocess import PIPE, Popen

    boot = """import sys; from importlib import util
s = util.spec_from_file_location("minitrace", sys.argv[1])
m = sys.modules["minitrace"] = util.module_from_spec(s); s.loader.exec_module(m); m._serve()"""
    command = [sys.executable, "-ISBc", boot, os.path.abspath(__file__), str(memory_mb)]
    env = {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if os.name == "nt" else {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:  # removed under its feet
        child = Popen(command, stdin=PIPE, stdout=PIPE, cwd=home, env=env, start_new_session=True)
    _ask_child(child, "[]", 30)  # its start is no part of anybody's call
    return child


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child with everything in its process group."""
    with contextlib.suppress(OSError):  # it may have ended by itself
        os.killpg(child.pid, 9) if hasattr(os, "killpg") else child.kill()
    child.wait()


def _ask_child(child: Any, line: str, seconds: float) -> Any:
    """A child's answer to one request; what carries another mark than the request is no answer.

    A thread of its own waits on the pipe, which works everywhere.
    """
    mark = os.urandom(8).hex().encode()
    replies: list[bytes] = []

    def exchange() -> None:
        with contextlib.suppress(OSError, ValueError):
            child.stdin.write(mark + line.encode() + b"\n")
            child.stdin.flush()
            while not replies and (reply := child.stdout.readline(_CROSSING + 100)):
                replies.extend([reply[16:]] * reply.startswith(mark))

    thread = threading.Thread(target=exchange, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise LimitError(f"time: no result within {seconds:g} seconds")
    if replies:
        return _unpack(replies[0])
    with contextlib.suppress(Exception):
        child.wait(1)
    status = child.returncode or 0
    word = _STATUS.get(status, "exit" if 0 <= status < 128 else "crashed")
    raise LimitError(f"{word}: the child process ended with status {status}")


# What follows runs in the child.


def _serve() -> None:
    """Give up what can be given up, then answer requests until the pipe closes."""
    import queue

    received, sent = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for stream in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    holds = ["time", "output", "environment"]
    admin = getattr(os, "getuid", int)() == 0  # who may start processes all the same
    with contextlib.suppress(ImportError, AttributeError, OSError):
        holds += _unshare()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(received, requests.put), daemon=True).start()
    with contextlib.suppress(ImportError):
        holds += [word for word in _tighten(int(sys.argv[2])) if word != "processes" or not admin]
    while line := requests.get():
        request = json.loads(line[16:])
        answer = _answer(*request) if request else json.dumps(["holds", holds])
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

    if sys.platform != "linux" or ctypes.CDLL(None).unshare(0x10000000 | 0x20000000 | 0x40000000):
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
    bounds = {"files FSIZE": 0, "descriptors NOFILE": 32, "processes NPROC": 0, "core CORE": 0}
    bounds["memory AS"] = used * resource.getpagesize() + (memory_mb << 20)
    held = ["cpu"]
    for names, bound in bounds.items():
        word, limit = names.split()
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
    """Run one request: its result, or what it raised and where."""
    import traceback

    sys.stdout = sys.stderr = printed = _Printed()
    try:
        return f'["result", {_pack(_result(head, decode(args), decode(kwargs)), "the result")}]'
    except BaseException as error:
        trace = traceback.walk_tb(error.__traceback__)
        line = max([0, *(n for frame, n in trace if frame.f_code.co_filename == "the code")][-1:])
        text = head[0].splitlines()[line - 1].strip() if line else ""
        told = [type(error).__name__, str(error)[:2000], line, text, printed.getvalue()]
        return json.dumps(["raised", told])


@functools.lru_cache(64)
def _loaded(source: str, name: str, imports: tuple[str, ...]) -> Any:
    """Check and compile some code, once."""
    try:
        check_code(source, name, limits=Limits(imports=imports))
    except ValueError as error:
        raise LimitError(f"refused: {error}") from None
    return compile(source, "the code", "exec")


def _result(head: list[Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Load the code afresh and call its function."""
    source, name, imports, seconds = head
    code = _loaded(source, name, tuple(imports))
    with contextlib.suppress(ImportError, ValueError):
        import resource

        spent = int(sum(os.times()[:2]) + seconds) + 2  # this limit counts all calls of the child
        resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    known = {key: item for key, item in vars(builtins).items() if key not in _BARRED}
    known["__import__"] = functools.partial(_import, imports)
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": known}
    exec(code, namespace)
    result = namespace[name](*args, **kwargs)
    if hasattr(result, "__await__"):
        import asyncio

        result = asyncio.run(result)
    return result


def _import(imports: Any, name: str, _g: Any, _l: Any, wanted: Any, level: int) -> ModuleType:
    """The `__import__` of code under limits: a copy of a listed module without its own imports."""
    if level or not _allows(imports, name):
        raise ImportError(f"importing {name} is not allowed under limits")
    module = __import__(name, fromlist=wanted)
    face = ModuleType(module.__name__)
    for key, item in vars(module).items():
        inner = isinstance(item, ModuleType) and f"{face.__name__}.{key}" not in sys.modules
        if key in getattr(module, "__all__", ()) or not (inner or key[:1] == "_"):
            vars(face)[key] = item
    return face


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
