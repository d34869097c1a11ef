"""What test_pyodide.py runs inside Pyodide: doctests, and what became of them as one line of JSON."""

import contextlib
import doctest
import io
import json
import sys
from pathlib import Path

import minitrace
from minitrace import SumPropagator, backward, node


def outcome(test):
    """Its name, how many examples it has, how many failed, and what is said of those."""
    minitrace.GRAPH.clear()
    report, runner = [], doctest.DocTestRunner(verbose=False)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        runner.run(test, out=report.append)
    return test.name, runner.tries, runner.failures, "".join(report) + said.getvalue()


def doctests():
    """Those of minitrace.py, and chapters 0 to 12."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    yield from (test for test in finder.find(minitrace, "minitrace") if test.examples)
    for page in sorted(Path("tutorial").glob("??_*.md"))[:13]:
        text, names = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
        yield doctest.DocTestParser().get_doctest(text, names, page.name, str(page), 0)


def limits():
    """What Limits says where no process can start."""
    sys.path.append("tutorial/companions")
    from minitrace_limits import LimitError, Limits

    said = []
    for attempt in (
        lambda: Limits().run("def f():\n    return 1", "f"),
        lambda: Limits().report(),
    ):
        try:
            said.append(repr(attempt()))
        except LimitError as error:
            said.append(str(error))
    return said


told = {"platform": sys.platform, "python": sys.version.split()[0]}
told["outcomes"] = [outcome(test) for test in doctests()]
told["limits"] = limits()
print("\n" + json.dumps(told))
