"""Functions that misbehave, and the word that tells how each of them ends under limits.

A row is (what it does, modules it is allowed to import, body of `def f():`, word). The word is the
beginning (or several, divided by `|`) of a `LimitError`, the name of the exception's type for a
`CodeError`, or `fine` when the call must simply return. Each loop here is finite or ends with the
child, so that a broken limit costs seconds and not the machine. An underscore in `modules` stands for what the default list allows.
"""

from __future__ import annotations

ESCAPED = "os sys time threading signal socket ctypes resource subprocess inspect operator"  # as if it had got out

# writes {0} in the place of the reply, with the mark of the request that is being answered
FORGE = """import inspect, operator
 look, frame = operator.attrgetter('f_' + 'locals'), inspect.currentframe()
 while 'sent' not in look(frame): frame = operator.attrgetter('f_' + 'back')(frame)
 here = look(frame)
 here['sent'].write(here['line'][:16] + {0} + b'\\n')
 here['sent'].flush()
 while True: pass"""

HOSTILE: list[tuple[str, str, str, str]] = [
    # time
    ("endless loop", "_", "while True: pass", "time"),
    (
        "endless loop that catches all",
        "_",
        "while True:\n  try:\n   while True: pass\n  except BaseException: pass",
        "time",
    ),
    ("sleeps", ESCAPED, "import time\n time.sleep(60)", "time"),
    ("one long step in C", "_", "return len(str(3 ** (3 ** 17)))", "time"),
    (
        "regular expression that backtracks",
        "_",
        "import re\n return re.match('(a+)+$', 'a' * 40 + 'b')",
        "time",
    ),
    (
        "endless iterator in C",
        "_",
        "import itertools\n return sum(0 for _ in itertools.count())",
        "time",
    ),
    (
        "endless tuple repr",
        "_",
        "class R:\n  def __repr__(self):\n   while True: pass\n return str(R())",
        "time",
    ),
    (
        "exception whose text never ends",
        "_",
        "class E(Exception):\n  def __str__(self):\n   while True: pass\n raise E()",
        "time",
    ),
    ("stops itself", ESCAPED, "import os\n os.kill(os.getpid(), 19)", "time"),
    (
        "deadlock",
        ESCAPED,
        "import threading\n lock = threading.Lock()\n lock.acquire()\n lock.acquire()",
        "time",
    ),
    (
        "ignores signals",
        ESCAPED,
        "import signal\n for n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n while True: pass",
        "time",
    ),
    (
        "awaits for ever",
        "asyncio",
        "import asyncio\n async def g():\n  while True: await asyncio.sleep(1)\n return asyncio.run(g())",
        "time",
    ),
    # memory
    ("list that fills the memory", "_", "return [0] * 10**10", "memory"),
    ("list that grows", "_", "kept = []\n while True: kept.append('x' * 1_000_000)", "memory"),
    ("text that doubles", "_", "text = 'x'\n while True: text += text", "memory"),
    ("number that doubles", "_", "return 1 << (1 << 40)", "memory"),
    ("bytes", "_", "return bytes(10**12)", "memory"),
    # output
    ("endless printing", "_", "while True: print('x' * 100)", "output"),
    ("one huge print", "_", "print('x' * 10**7)", "output"),
    (
        "printing that catches all",
        "_",
        "while True:\n  try: print('x' * 10**5)\n  except BaseException: pass",
        "time",
    ),
    (
        "endless writing beside the pipe",
        ESCAPED,
        "import os\n while True: os.write(1, b'x' * 65536)",
        "time",
    ),
    ("huge result", "_", "return 'x' * 10**7", "cannot cross"),
    # exit and crash
    ("raises SystemExit", "_", "raise SystemExit(3)", "exit"),
    ("os._exit", ESCAPED, "import os\n os._exit(0)", "exit"),
    ("kills itself", ESCAPED, "import os\n os.kill(os.getpid(), 9)", "crashed"),
    ("segmentation fault", ESCAPED, "import ctypes\n ctypes.string_at(0)", "crashed"),
    ("abort", ESCAPED, "import os\n os.abort()", "crashed"),
    (
        "kills its parent and group",
        ESCAPED,
        "import os\n os.kill(os.getppid(), 9) if os.getppid() < 2 else None\n os.killpg(0, 9)",
        "crashed",
    ),
    ("recursion without end", "_", "return f()", "RecursionError"),
    (
        "recursion without a limit",
        ESCAPED,
        "import sys\n sys.setrecursionlimit(10**9)\n def g(x): return max([x], key=g)\n return g(1)",
        "crashed|RecursionError",
    ),
    ("closes all pipes", ESCAPED, "import os\n os.closerange(0, 64)", "exit"),
    ("raises KeyboardInterrupt", "_", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("raises GeneratorExit", "_", "raise GeneratorExit", "GeneratorExit"),
    (
        "exception that calls itself a limit",
        "_",
        "class LimitError(Exception): pass\n raise LimitError('time: no result')",
        "LimitError",
    ),
    (
        "exception whose text raises",
        "_",
        "class E(Exception):\n  def __str__(self): raise self\n raise E()",
        "exit",
    ),
    # forged replies: WRITE sends bytes on every descriptor that takes them
    (
        "forged reply",
        ESCAPED,
        "import os\n for n in range(3, 32):\n  try: os.write(n, b'0123456789abcdef[\"result\", 666]\\n')\n  except OSError: pass\n return 1",
        "fine",
    ),
    (
        "forged reply without an end",
        ESCAPED,
        "import os\n while True:\n  for n in range(3, 32):\n   try: os.write(n, b'x' * 60000)\n   except OSError: pass",
        "time",
    ),
    (
        "forged bomb of brackets with the right mark",
        ESCAPED,
        FORGE.format("b'[' * 1_000_000"),
        "crashed",
    ),
    ("forged reply that is no pair", ESCAPED, FORGE.format("b'7'"), "crashed"),
    (
        "forged reply with a wrong tag",
        ESCAPED,
        FORGE.format('b\'["result", {"$tuple": 7}]\''),
        "crashed",
    ),
    (
        "forged exception of a wrong shape",
        ESCAPED,
        FORGE.format("b'[\"raised\", [[], {}]]'"),
        "crashed",
    ),
    (
        "forged exception with fields of other types",
        ESCAPED,
        FORGE.format("b'[\"raised\", [1, 2, 3, 4, 5]]'"),
        "crashed",
    ),
    (
        "forged number that is too large",
        ESCAPED,
        FORGE.format('b\'["result", {"$float": "0x1p99999"}]\''),
        "crashed",
    ),
    # processes and threads
    (
        "fork bomb",
        ESCAPED,
        "import os\n for _ in range(6):\n  try: os.fork()\n  except OSError: pass\n while True: pass",
        "time",
    ),
    (
        "grandchild that keeps the pipe",
        ESCAPED,
        "import os, time\n try: pid = os.fork()\n except OSError: pid = 1\n if not pid:\n  os.setsid()\n  time.sleep(60)\n os._exit(5)",
        "exit",
    ),
    (
        "threads",
        ESCAPED,
        "import threading, time\n for _ in range(100): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n while True: pass",
        "",
    ),
    (
        "starts a program",
        ESCAPED,
        "import subprocess\n subprocess.run(['sleep', '60'])\n while True: pass",
        "",
    ),
    # reaching out
    ("opens a file", "_", "return open('/etc/passwd').read()", "refused"),
    ("imports os", "_", "import os\n return os.listdir('/')", "refused"),
    ("imports through a built-in", "_", "return __import__('os')", "refused"),
    ("evaluates text", "_", "return eval('1')", "refused"),
    ("reads the interpreter", "_", "return ().__class__.__base__.__subclasses__()", "refused"),
    ("formats the interpreter", "_", "return '{0.__class__}'.format(1)", "refused"),
    ("a frame's globals", "_", "g = (x for x in [1])\n return g.gi_frame.f_builtins", "refused"),
    (
        "a module inside a module",
        "_",
        "import random\n return random._os.getcwd()",
        "AttributeError",
    ),
    (
        "a module inside a submodule",
        "_",
        "import json\n return str(json.decoder.re.enum.sys.modules)",
        "AttributeError",
    ),
    (
        "a name put together at run time",
        "_",
        "import operator\n return operator.attrgetter('__glo' + 'bals__')(f)['__buil' + 'tins__']['open']",
        "KeyError",
    ),
    (
        "a class pattern reads a dunder",
        "_",
        "match 1:\n  case int(__class__=c): return str(c)",
        "refused",
    ),
    (
        "writes a file",
        ESCAPED,
        "import os\n n = os.open('/tmp/minitrace-hostile', os.O_CREAT | os.O_WRONLY)\n os.unlink('/tmp/minitrace-hostile')\n return os.write(n, b'x')",
        "OSError",
    ),
    (
        "creates a file where it is",
        ESCAPED,
        "import os\n os.open('x', os.O_CREAT)",
        "FileNotFoundError",
    ),
    (
        "opens many files",
        ESCAPED,
        "import os\n for _ in range(100): os.open('/dev/null', os.O_RDONLY)",
        "OSError",
    ),
    (
        "raises its own time",
        ESCAPED,
        "import resource\n resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n while True: pass",
        "",
    ),
    # what cannot cross
    ("returns a function", "_", "return f", "cannot cross"),
    ("returns a list in itself", "_", "x = []\n x.append(x)\n return x", "cannot cross"),
    ("returns a subclass", "_", "class D(dict): pass\n return {'a': [D()]}", "cannot cross"),
]
