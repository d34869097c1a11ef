"""The file keeps its own rules: sections in order, small functions, documented names, few lines.

What is measured here was promised. Where a promise is not kept yet, its test is expected to fail and
says by how much; the ratchets beside it keep the file from growing further.
"""

import ast
import builtins
import doctest
import io
import itertools
import re
import statistics
import subprocess
import symtable
import sys
import tokenize

import pytest
from conftest import ROOT

import minitrace

PATH = ROOT / "minitrace.py"
SOURCE = PATH.read_text(encoding="utf-8")
LINES = SOURCE.splitlines()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"# ---- (\d)\. ([A-Z][\w ]+) -{3,}")
SECTIONS = {
    1: "Declare", 2: "Forward", 3: "Backward", 4: "Optimize", 5: "Language models", 6: "Looking",
    7: "Demo and command line",
}  # fmt: skip
STARTS = {int(m[1]): n for n, line in enumerate(LINES, 1) if (m := BANNER.match(line))}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = [each for each in ast.walk(TREE) if isinstance(each, DEFINITIONS[:2])]


def section_of(line):
    """The section that a line stands in; 0 is what comes before the first."""
    return max((number for number, start in STARTS.items() if start <= line), default=0)


def docstring_lines():
    found = set()
    for each in ast.walk(TREE):
        if isinstance(each, (*DEFINITIONS, ast.Module)) and ast.get_docstring(each) is not None:
            found.update(range(each.body[0].lineno, each.body[0].end_lineno + 1))
    return found


def code_lines():
    """The numbers of the lines that hold code: no blanks, comments, docstrings."""
    plain = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    plain |= {tokenize.ENCODING, tokenize.ENDMARKER}
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline):
        if token.type not in plain:
            found.update(range(token.start[0], token.end[0] + 1))
    return found - docstring_lines()


CODE = code_lines()


def length(function):
    return len(CODE & set(range(function.lineno, function.end_lineno + 1)))


# ---- What it needs


def imported():
    for each in ast.walk(TREE):
        if isinstance(each, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            yield each.module.partition(".")[0]


def test_only_the_standard_library_is_imported():
    assert set(imported()) - set(sys.stdlib_module_names) == set()


HEAVY = (
    "urllib.request", "http.client", "ast", "inspect", "dataclasses", "logging", "asyncio",
    "concurrent.futures", "subprocess", "multiprocessing", "argparse", "difflib", "textwrap", "html",
    "tempfile", "random", "pickle", "hashlib", "signal", "socket", "ssl", "graphlib", "statistics",
)  # fmt: skip


def test_nothing_heavy_is_imported_before_it_is_needed():
    told = (
        "import sys; before = set(sys.modules); import minitrace; print(*set(sys.modules) - before)"
    )
    command = [sys.executable, "-S", "-c", told]
    came = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(HEAVY) & set(came) == set()


def test_the_top_level_holds_what_it_should():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout")
    tops = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    assert tops == {
        ".ci",
        ".gitignore",
        "LICENSE",
        "README.md",
        "minitrace.py",
        "tests",
        "tutorial",
    }


# ---- Its order

# What has to look down: one-line forwarders, and defaults resolved when they are called.
LOOK_DOWN = {
    (1, "_fail"): "an operator that fails makes an exception node",
    (1, "TraceGraph"): "Node.tree and its kin draw the graph above a node",
    (1, "_rerun"): "Node.rerun",
    (1, "_send_back"): "Node.backward",
    (3, "_tree"): "TraceGraph.tree",
    (3, "_mermaid"): "TraceGraph.to_mermaid",
    (3, "_dot"): "TraceGraph.to_dot",
    (3, "_svg"): "TraceGraph.to_svg",
    (4, "Budget"): "train counts calls, if no budget is given",
    (4, "_ask_any"): "whatever is asked is counted, by budgets and by the journal",
    (4, "BudgetError"): "train ends when a budget is spent",
    (4, "LLM"): "the language model that the environment names",
    (4, "StubLLM"): "the language model if none is named",
}


def test_the_sections_stand_in_order_and_open_with_a_few_lines():
    titles = [m.groups() for line in LINES if (m := BANNER.match(line))]
    assert titles == [(str(number), title) for number, title in SECTIONS.items()]
    for start in STARTS.values():
        opening = list(itertools.takewhile(lambda line: line.startswith("#"), LINES[start:]))
        assert 3 <= len(opening) <= 20 and "?" in opening[1]


def defined():
    """The section of each name that the module defines at its top."""
    found = {}
    for each in TREE.body:
        names = [each.name] if isinstance(each, DEFINITIONS) else []
        for target in getattr(each, "targets", [getattr(each, "target", None)]):
            names += (
                [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
                if target
                else []
            )
        for name in names:
            found.setdefault(name, section_of(each.lineno))
    return found


def scopes(table):
    """The functions of a symbol table at any depth; annotations are for readers and not in it."""
    for child in table.get_children():
        if child.get_type() == "function":
            yield child
        yield from scopes(child)


def looks_down():
    """The names that a function uses from a section below its own."""
    homes, found = defined(), set()
    for scope in scopes(symtable.symtable(SOURCE, "minitrace.py", "exec")):
        section = section_of(scope.get_lineno())
        for symbol in scope.get_symbols():
            if (
                symbol.is_global()
                and symbol.is_referenced()
                and homes.get(symbol.get_name(), 0) > section
            ):
                found.add((section, symbol.get_name()))
    return found


def test_a_section_uses_what_stands_above_it():
    assert looks_down() == LOOK_DOWN.keys()


def test_no_name_is_defined_and_never_used():
    tops = [each.name for each in TREE.body if isinstance(each, DEFINITIONS)]
    assert [name for name in tops if len(re.findall(rf"\b{name}\b", SOURCE)) < 2] == []


def test_no_name_is_defined_twice():
    tops = [each.name for each in TREE.body if isinstance(each, DEFINITIONS)]
    assert {name for name in tops if tops.count(name) > 1} == {
        "node"
    }  # once for each type it gives


# ---- Its size


def test_functions_are_short():
    sizes = {f"{each.name}:{each.lineno}": length(each) for each in FUNCTIONS}
    assert statistics.median(sizes.values()) <= 7
    assert {name: size for name, size in sizes.items() if size > 30} == {}


def size(*sections):
    return sum(section_of(line) in sections for line in CODE)


def test_the_file_does_not_grow():
    assert size(1, 2, 3) <= 1675 and len(CODE) <= 4085


@pytest.mark.xfail(
    strict=True, reason="promised: sections 1 to 3 in 800 code lines; they have twice that"
)
def test_the_whole_idea_is_as_small_as_promised():
    assert size(1, 2, 3) <= 800


@pytest.mark.xfail(
    strict=True, reason="promised: 2,200 code lines in all; there are nearly twice as many"
)
def test_the_file_is_as_small_as_promised():
    assert len(CODE) <= 2200


def test_lines_are_no_wider_than_a_hundred():
    assert [(n, len(line)) for n, line in enumerate(LINES, 1) if len(line) > 100] == []


# ---- Its names and words


def test_public_names_are_few_sorted_and_there():
    assert len(minitrace.__all__) <= 50
    assert all(hasattr(minitrace, name) for name in minitrace.__all__)
    assert len(set(minitrace.__all__)) == len(minitrace.__all__)


def test_no_public_name_hides_a_builtin():
    assert set(minitrace.__all__) & set(dir(builtins)) == set()


@pytest.mark.parametrize("name", minitrace.__all__)
def test_a_public_name_has_a_docstring_and_a_doctest(name):
    parser = doctest.DocTestParser()
    plain = ast.literal_eval("{}")
    for each in TREE.body:
        if isinstance(each, DEFINITIONS) and each.name == name:
            plain[name] = ast.get_docstring(each) or plain.get(name, "")
    words = plain.get(name) or getattr(minitrace, name).__doc__ or ""
    table = name in ("PROTOCOLS", "PROVIDERS")  # shown where they are used, by LLM
    assert table or (words.strip() and parser.get_examples(words)), name


def public_methods():
    for each in TREE.body:
        if isinstance(each, ast.ClassDef) and each.name in minitrace.__all__:
            for part in each.body:
                if isinstance(part, DEFINITIONS) and part.name[0] != "_":
                    yield f"{each.name}.{part.name}", part


def test_public_methods_have_a_docstring():
    assert [name for name, part in public_methods() if not ast.get_docstring(part)] == []


def test_public_functions_are_annotated():
    bare = []
    for each in FUNCTIONS:
        arguments = [*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs]
        typed = all(a.annotation or a.arg in ("self", "cls") for a in arguments)
        if not typed or (each.returns is None and each.name != "__init__"):
            bare.append(f"{each.name}:{each.lineno}")
    assert bare == []


def comments():
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def test_nothing_is_left_to_be_done_and_no_code_is_commented_out():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [line for line, words in comments() if marks.search(words)] == []
    left = []
    for line, words in comments():
        if re.match(r"(fmt|type|noqa|mypy|pragma|ruff)\b", words):
            continue
        try:
            body = ast.parse(words).body
        except SyntaxError:
            continue
        plain = (ast.Name, ast.Constant, ast.Tuple, ast.Attribute)
        if any(not isinstance(getattr(each, "value", each), plain) for each in body):
            left.append((line, words))
    assert left == []


def test_assert_is_for_our_own_invariants():
    used = [each.lineno for each in ast.walk(TREE) if isinstance(each, ast.Assert)]
    assert used == []


APART = "test_house.py", "hostile.py"  # one says what to look for, one attacks
PLAIN = re.compile(
    r"/(tmp|home|root|work|Users)/|[Ii]ssue #?\d|\bsub\W?agents?\b|\bhelper\W+sessions?\b"
)


def test_the_project_speaks_of_itself_alone():
    pages = [
        *ROOT.glob("*.md"),
        PATH,
        *(ROOT / "tutorial").rglob("*"),
        *(ROOT / "tests").rglob("*"),
    ]
    for page in pages:
        if page.suffix in (".py", ".md", ".jsonl", ".svg") and page.name not in APART:
            found = PLAIN.search(page.read_text(encoding="utf-8"))
            assert not found, f"{page.name}: {found[0]}"
