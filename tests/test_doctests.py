"""Every example in the file, the README and the tutorial runs, offline, and prints what it says."""

import doctest
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT

import minitrace

PAGES = [ROOT / "README.md", *sorted((ROOT / "tutorial").glob("**/*.md"))]
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = [test for test in FINDER.find(minitrace, "minitrace") if test.examples]
A_FEW = (
    "README.md",
    "tutorial/01_nodes.md",
    "tutorial/10_prompt.md",
    "tutorial/cases/case_2_repair.md",
)


def run(test):
    runner, report = doctest.DocTestRunner(), []
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_docstring(test, offline):
    run(test)


TRAINS_LONG = "case_5_battleship.md", "case_8_moons.md"
EACH_PAGE = [
    pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.name in TRAINS_LONG))
    for path in PAGES
]


@pytest.mark.parametrize("path", EACH_PAGE)
def test_page(path, offline, monkeypatch):
    """As the standard tool reads it: what stands in a page is a doctest as it is."""
    monkeypatch.chdir(ROOT)
    text, space = path.read_text(encoding="utf-8"), {"__name__": "__main__"}
    run(doctest.DocTestParser().get_doctest(text, space, path.name, str(path), 0))


@pytest.mark.parametrize("page", A_FEW)
def test_the_standard_tool_is_silent(page):
    command = [sys.executable, "-m", "doctest", page]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_standard_tool_is_silent_about_every_page(path):
    test_the_standard_tool_is_silent(str(path.relative_to(ROOT)))


def first_example(text):
    """The first run of lines that are code or its output, from `>>>` to a blank line or a fence."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(">>> "))
    end = next(n for n, line in enumerate(lines) if n > start and (not line or line[:3] == "```"))
    return "\n".join(lines[start:end])


def test_the_first_example_is_everywhere_the_same():
    pages = [ROOT / "README.md", ROOT / "tutorial" / "00_one_screen.md"]
    shown = {first_example(page.read_text(encoding="utf-8")) for page in pages}
    assert shown == {first_example(textwrap.dedent(minitrace.__doc__))}
