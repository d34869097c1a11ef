"""Every example in the file, the README and the tutorial runs, offline, and prints what it says."""

import doctest
import re
import textwrap

import pytest
from conftest import ROOT

import minitrace

FLAGS = doctest.NORMALIZE_WHITESPACE * 0
PAGES = [ROOT / "README.md", *sorted((ROOT / "tutorial").glob("**/*.md"))]
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = [test for test in FINDER.find(minitrace, "minitrace") if test.examples]


def run(test):
    runner, report = doctest.DocTestRunner(optionflags=FLAGS), []
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_docstring(test, offline):
    run(test)


def page_test(path):
    """A page as a doctest: the fences of its code blocks are no part of any output."""
    text = re.sub(r"^```.*$", "", path.read_text(encoding="utf-8"), flags=re.M)
    space = {"__name__": "__main__"}
    return doctest.DocTestParser().get_doctest(text, space, path.name, str(path), 0)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page(path, offline, monkeypatch):
    monkeypatch.chdir(ROOT)
    run(page_test(path))


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
