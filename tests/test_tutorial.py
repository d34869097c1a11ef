"""The tutorial: its pages are whole, its runner runs them, its exercises can be solved and teach."""

import ast
import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import COMPANIONS, ROOT

TUTORIAL = ROOT / "tutorial"
SOLUTIONS = ROOT / "tests" / "solutions"
sys.path.append(str(TUTORIAL / "exercises"))

import checks  # noqa: E402

CHAPTERS = sorted(page for page in TUTORIAL.glob("**/*.md") if page.name != "README.md")
LIBRARY = ["minitrace", *sorted(path.stem for path in COMPANIONS.glob("minitrace_*.py"))]
PAGES = [ROOT / "README.md", TUTORIAL / "README.md", *CHAPTERS]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
MOST = 12  # lines of input in a block; eight is the aim
RETURNED = "Run", "Evaluation"  # met as what train and evaluate return, without being named


def chapter(name):
    (path,) = TUTORIAL.glob(f"{name.zfill(2)}_*.md")
    return path


def text_of(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return path.name


def tutorial(*words, cwd=ROOT, **variables):
    """Run `python3 tutorial`, with no terminal."""
    command = [sys.executable, str(TUTORIAL), *map(str, words)]
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "MINITRACE_MODEL")}
    return subprocess.run(command, cwd=cwd, env={**env, **variables}, text=True, encoding="utf-8",
                          capture_output=True, stdin=subprocess.DEVNULL, timeout=120)  # fmt: skip


# ---- The pages

RUN_ALL = """
import doctest, socket, sys, warnings
from pathlib import Path
sys.path.insert(0, "")
import minitrace

def refuse(*args, **kwargs):
    raise OSError("this test is offline")

socket.socket.connect = socket.getaddrinfo = refuse
for path in map(Path, sys.argv[1:]):
    minitrace.GRAPH.clear()
    text, space = path.read_text(encoding="utf-8"), {"__name__": "__main__"}
    test = doctest.DocTestParser().get_doctest(text, space, path.name, str(path), 0)
    with warnings.catch_warnings():  # some chapters make errors of them
        doctest.DocTestRunner(verbose=False).run(test)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_every_page_prints_what_is_written_whatever_the_hash_seed(seed):
    env = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", RUN_ALL, *map(str, PAGES)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "" and done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", CHAPTERS, ids=name_of)
def test_a_chapter_has_a_title_one_question_and_a_link_to_the_map(path):
    title, blank, rest = text_of(path).split("\n", 2)
    assert re.fullmatch(r"# \S.*", title) and blank == ""
    assert re.match(r"\*[^*]+\?\*\n", rest), "the question in italics comes first"
    the_map = os.path.relpath(TUTORIAL / "README.md", path.parent)
    assert f"]({the_map})" in rest.rstrip().rpartition("\n\n")[2], "its end has the map"


def anchors(path):
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(path):
    prose = re.sub(r"(?ms)^```.*?^```$", "", text_of(path))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            found = path.parent / file if file else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def test_the_map_has_every_chapter():
    text = text_of(TUTORIAL / "README.md")
    links = [path.relative_to(TUTORIAL).as_posix() for path in CHAPTERS]
    assert [link for link in links if f"]({link})" not in text] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", TUTORIAL / "README.md"], ids=str)
def test_both_readmes_list_every_companion(path):
    text, folder = text_of(path), os.path.relpath(COMPANIONS, path.parent)
    listed = [f"| [{each.name}]({folder}/{each.name}) |" in text.replace("+ ", "")
              for each in sorted(COMPANIONS.glob("*.py"))]  # fmt: skip
    assert all(listed)


def test_what_the_readme_says_to_type_works_in_a_fresh_copy(tmp_path):
    """Its blocks and the lines after them in one prompt, then its two commands about files."""
    shutil.copy(ROOT / "minitrace.py", tmp_path)
    shutil.copytree(TUTORIAL, tmp_path / "tutorial")
    page = text_of(ROOT / "README.md")
    typed = [line[4:] for block in BLOCK.findall(page) for line in inputs(block)]
    after = re.search(r"(?m)(^    thermostat = .*\n(?:    .*\n)+)", page)[1]
    commands = re.findall(
        r"(?m)^    python3 (minitrace.py suggest .*|tutorial/report.py .*)$", page
    )
    programs = [["-c", "\n".join([*typed, textwrap.dedent(after)])], *map(str.split, commands)]
    assert len(commands) == 2
    for words in programs:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / "run.html").read_text(encoding="utf-8")


def expression(dice, names, x, y):
    """A random expression of two nodes, with every operator that chapter 8 has a rule for."""
    relu, exp, tanh = names["relu"], names["exp"], names["tanh"]
    nodes = [x, y]
    for _ in range(10):
        p, q = dice.choices(nodes, k=2)
        powers = (tanh(p) + 2) ** tanh(q)
        makers = p + q, p - q, p * q, -p, p / (q * q + 1), relu(p), tanh(p), exp(tanh(p)), powers
        nodes.append(dice.choice(makers))
    return tanh(nodes[-1]) + x * y


def test_the_derivatives_of_chapter_8_agree_with_moving_an_input():
    blocks = [block for block in BLOCK.findall(text_of(chapter("8"))) if "losses" not in block]
    exec("\n".join(line[4:] for block in blocks for line in inputs(block)), names := {})
    for seed in range(100):
        dice = random.Random(seed)
        x, y = (names["node"](dice.uniform(-2, 2), name="v", trainable=True) for _ in "xy")
        output = expression(dice, names, x, y)
        found = names["backward"](output, 1.0, names["derivatives"])
        for each in x, y:
            expected = pytest.approx(names["measured"](output, each), rel=1e-4, abs=1e-4)
            assert found[each] == expected, seed


def test_the_graph_of_chapter_9_is_the_file_beside_it():
    first, *_ = BLOCK.findall(text_of(chapter("9")))
    exec("\n".join(line[4:] for line in inputs(first)), names := {})
    assert json.loads(text_of(TUTORIAL / "graph.json")) == names["form"]


def inputs(block):
    """The lines of a block that a reader would type."""
    return [line for line in block.splitlines() if line[:4] in (">>> ", "... ", "...", ">>>")]


def is_one_definition(block):
    code = "\n".join(line[4:] for line in inputs(block))
    body = ast.parse(code).body
    return len(body) == 1 and isinstance(body[0], (ast.FunctionDef, ast.ClassDef))


def long_blocks(most):
    """The blocks with more input than this that are not one function, one class, or the README's."""
    first = set(BLOCK.findall(text_of(ROOT / "README.md")))
    blocks = [(path.name, block) for path in CHAPTERS for block in BLOCK.findall(text_of(path))]
    long = [each for each in blocks if len(inputs(each[1])) > most and each[1] not in first]
    return [(name, len(inputs(b)), b[:60]) for name, b in long if not is_one_definition(b)]


def test_blocks_are_short():
    assert long_blocks(MOST) == []


def used(page):
    """The names that the code of a page reads or, being errors, that it raises."""
    found = set()
    for block in BLOCK.findall(text_of(page)):
        found |= set(re.findall(r"(?m)^minitrace\.(\w+):", block))
        for part in ast.walk(ast.parse("\n".join(line[4:] for line in inputs(block)))):
            found |= {part.id} if isinstance(part, ast.Name) else set()
            found |= {part.attr} if isinstance(part, ast.Attribute) else set()
    return found


@pytest.mark.parametrize("library", LIBRARY)
def test_every_public_name_is_used_in_some_chapter(library):
    names = set(importlib.import_module(library).__all__)
    assert sorted(names.difference(RETURNED, *map(used, CHAPTERS))) == []


# ---- The runner


def test_the_overview_lists_every_chapter_and_exercise(tmp_path):
    done = tutorial(cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    for path in CHAPTERS:
        title = re.sub(r"^# (Case |Appendix )?(\w{1,2}:? )?", "", text_of(path).partition("\n")[0])
        assert title in " ".join(done.stdout.split())
    shown = done.stdout.partition("Exercises")[2]
    assert [n for n in checks.numbers() if not re.search(rf"\b{n}\b", shown)] == []


def test_a_chapter_is_shown_and_run_from_anywhere(tmp_path):
    done = tutorial("0", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    assert "    24 degrees: too warm\n    23 degrees: just right\n" in done.stdout
    assert tutorial("00_one_screen", cwd=tmp_path).stdout == done.stdout


def test_a_case_study_is_shown_and_says_where_its_picture_is(tmp_path):
    done = tutorial("case_4", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    (place,) = re.findall(r"\(picture: [^,]+, [^,]+,\s+([^)]+)\)", done.stdout)
    assert place == "tutorial/cases/case_4_numbers.svg" and (ROOT / place).exists()


@pytest.mark.parametrize(
    "words", [["77"], ["nothing"], ["1", "2"], ["check", "77"], ["check", "x"]]
)
def test_what_is_not_there_is_one_line(words):
    done = tutorial(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        r"there is no (chapter|exercise) .*: `python3 tutorial` lists them\n", done.stderr
    )


@pytest.fixture
def course(tmp_path):
    """A copy of the runner, with one chapter and no solved exercise."""
    import shutil

    shutil.copy(ROOT / "minitrace.py", tmp_path)
    shutil.copytree(COMPANIONS, tmp_path / "tutorial" / "companions")
    exercises = tmp_path / "tutorial" / "exercises"
    shutil.copytree(TUTORIAL / "exercises", exercises, ignore=shutil.ignore_patterns("ex*"))
    for number in checks.numbers():
        (exercises / f"ex{number:02}.py").write_text(blank(number), encoding="utf-8")
    shutil.copy(TUTORIAL / "__main__.py", tmp_path / "tutorial")
    page = """# 1 One

*What is it?*

See [the map](README.md).

```python
>>> 1 + 1
3
>>> {}["x"]
Traceback (most recent call last):
KeyError: 'x'
>>> print(no_such_name)
>>> import sys

```

| a | b |
|---|---|
"""
    (tmp_path / "tutorial" / "01_one.md").write_text(page, encoding="utf-8")
    return tmp_path


def run_course(course, *words, **variables):
    command, env = [sys.executable, str(course / "tutorial"), *words], {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=course, env=env)


def test_what_differs_from_the_page_is_told(course):
    done = run_course(course, "1")
    assert done.returncode == 1
    assert "2 of these outputs differ from what is written on the page." in done.stdout
    told = "    >>> 1 + 1\n    2\n    but what is written on the page is\n    3\n"
    assert told in done.stdout
    assert "    KeyError: 'x'\n" in done.stdout and "File" not in done.stdout
    assert "NameError: name 'no_such_name' is not defined" in done.stdout
    assert "See the map." in done.stdout
    assert done.stdout.count(">>> 1 + 1") == done.stdout.count(">>> import sys") == 1


A_FEW = ("00_one_screen", "04_errors", "09_trace_graph")
SHOWN = [
    path if path.stem in A_FEW else pytest.param(path, marks=pytest.mark.slow) for path in CHAPTERS
]


@pytest.mark.parametrize("path", SHOWN, ids=name_of)
def test_without_a_terminal_a_block_is_shown_once_and_as_it_is_on_the_page(path):
    shown, blocks = tutorial(path.stem).stdout, BLOCK.findall(text_of(path))
    typed = [line.rstrip() for block in blocks for line in inputs(block)]
    assert re.findall(r"^    ((?:>>>|\.\.\.)(?: .*\S)?) *$", shown, re.M) == typed
    for block in blocks:
        if "Traceback" not in block and "doctest: +" not in block:
            block = "".join(f"    {line.rstrip()}\n" for line in block.rstrip().splitlines())
            assert escaped(block.replace("<BLANKLINE>", "")) in escaped(shown)


def test_indented_lines_are_shown_as_they_are(course):
    page = course / "tutorial" / "01_one.md"
    lines = "    python3 one.py  ->  two\n    three\n"
    page.write_text(f"# 1 One\n\n*What is it?*\n\nSay\n\n{lines}\nand no more.\n", encoding="utf-8")
    assert f"\nSay\n\n{lines}\nand no more.\n" in run_course(course, "1").stdout


def escaped(text):
    """Text as doctest compares it."""
    return text.encode("ascii", "backslashreplace")


TABLE = """\
| what | how many, in words that are wider than a narrow terminal |  |
|---|--:|---|
| `a \\| b` | 1 | see [the map](README.md) |
| | 22 |
"""
WIDE = """\
what     how many, in words that are wider than a narrow terminal
-------  --------------------------------------------------------  -----------
`a | b`                                                         1  see the map
                                                               22
"""
NARROW = """\
what     how many, in words
             that are wider
              than a narrow
                   terminal
-------  ------------------  -----------
`a | b`                   1  see the map
                         22
"""


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_table_is_laid_out_in_columns_as_wide_as_the_terminal(course, columns):
    page = course / "tutorial" / "01_one.md"
    page.write_text(text_of(page).replace("| a | b |\n|---|---|\n", TABLE), encoding="utf-8")
    shown = run_course(course, "1", COLUMNS=columns).stdout
    table = shown[shown.index("\nwhat") + 1 :].split("\n\n")[0] + "\n"
    assert table == (WIDE if columns == "80" else NARROW)


@pytest.mark.parametrize("columns", ["40", "100"])
def test_no_table_of_the_tutorial_is_wider_than_the_terminal(columns):
    for name in "0", "2", "9":
        shown = tutorial(name, COLUMNS=columns).stdout
        tables = re.findall(r"(?:.+\n)+(?=-+(?:  -+)+\n)(?:.+\n)+", shown)
        assert max(len(line) for table in tables for line in table.splitlines()) <= int(columns)
        assert len(tables) == len(re.findall(r"(?m)^\|---", text_of(chapter(name))))


@pytest.mark.skipif(os.name == "nt", reason="it needs a pseudo-terminal")
@pytest.mark.parametrize("colours", [True, False])
def test_on_a_terminal_it_waits_before_each_block_and_q_leaves(course, colours):
    import pty
    import time

    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", **({} if colours else {"NO_COLOR": "1"})}
    env = {k: v for k, v in env.items() if k != "NO_COLOR" or not colours}
    command = [sys.executable, str(course / "tutorial"), "1"]
    child = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)

    def until(words):
        seen, end = b"", time.monotonic() + 30
        while words not in seen and time.monotonic() < end:
            seen += os.read(leader, 1000)
        return seen

    seen = until(b"[Enter runs it, q leaves]")
    assert b">>> 1 + 1" in seen and b"but what is written" not in seen
    assert (b"\x1b[" in seen) == colours
    os.write(leader, b"q\n")
    assert child.wait(30) == 0
    os.close(leader)


# ---- The exercises


def stub(number):
    return TUTORIAL / "exercises" / f"ex{number:02}.py"


def solution(number):
    return SOLUTIONS / f"ex{number:02}.py"


def test_there_is_an_exercise_for_each_chapter_from_1_on():
    chapters = [int(path.name[:2]) for path in CHAPTERS if path.name[0].isdigit()]
    assert checks.numbers() == sorted(set(chapters) - {0})
    assert sorted(SOLUTIONS.glob("*.py")) == [solution(number) for number in checks.numbers()]


GIVEN = "__init__", "hypot", "init_feedback", "record"  # whose bodies an exercise has already


def to_write(tree):
    """The functions of an exercise that are the learner's to write."""
    for part in ast.iter_child_nodes(tree):
        if isinstance(part, ast.FunctionDef) and part.name not in GIVEN:
            yield part
        else:
            yield from to_write(part)


def body_of(function):
    """The statements of a function behind its docstring."""
    return function.body[ast.get_docstring(function) is not None :]


def design(text):
    """An exercise without imports and without what is the learner's to write."""
    tree = ast.parse(text)
    for function in to_write(tree):
        function.body = [*function.body[: -len(body_of(function))], ast.Pass()]
    return [ast.unparse(part) for part in tree.body if not hasattr(part, "names")]


def outline(tree):
    """What stands in an exercise, imports aside: the names of its functions, and the rest by kind."""
    parts = [type(part).__name__ for part in tree.body if not hasattr(part, "names")]
    return parts, [function.name for function in to_write(tree)]


def begun(number, text):
    """Has somebody worked on an exercise? What is a learner's own is no business of a test."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return True
    bodies = {ast.unparse(body_of(function)) for function in to_write(tree)}
    shipped = outline(ast.parse(text_of(solution(number))))
    return outline(tree) != shipped or bodies != {"raise NotImplementedError"}


def blank(number):
    """An exercise as nobody has begun it, made of its solution."""
    lines = text_of(solution(number)).splitlines()
    for function in reversed([*to_write(ast.parse("\n".join(lines)))]):
        body = body_of(function)
        indent = " " * body[0].col_offset
        lines[body[0].lineno - 1 : body[-1].end_lineno] = [f"{indent}raise NotImplementedError"]
    return "\n".join(lines) + "\n"


@pytest.fixture
def shipped(number):
    """The text of an exercise, if it is as it came."""
    try:
        text = text_of(stub(number))
    except (OSError, UnicodeError):
        text = ")"
    if begun(number, text):
        pytest.skip("somebody has begun this exercise")
    return text


@pytest.mark.parametrize("number", checks.numbers())
def test_a_solution_passes(number):
    assert checks.grade(number, solution(number)) == ("passed", "")


@pytest.mark.parametrize("number", checks.numbers())
def test_an_exercise_is_to_do(number, shipped):
    state, words = checks.grade(number)
    assert state == "to do"
    assert re.fullmatch(r"the body is yours to write, in ex\d\d\.py at line \d+\n", words)


@pytest.mark.parametrize("number", checks.numbers())
def test_an_exercise_and_its_solution_differ_in_bodies_only(number, shipped):
    assert design(shipped) == design(text_of(solution(number))) == design(blank(number))


@pytest.mark.parametrize("number", checks.numbers())
def test_a_learner_s_own_work_is_told_from_an_exercise_as_it_came(number):
    text = blank(number)
    assert not begun(number, text) and begun(number, text_of(solution(number)))
    assert begun(number, text.replace("raise NotImplementedError", "return None", 1))
    for added in "def mine():\n    return 1\n", "LIMIT = 3\n", "class Mine:\n    pass\n", ")\n":
        assert begun(number, text + added)


def graded(number, body, tmp_path):
    """The verdict on a file, graded in this process."""
    path = tmp_path / f"ex{number:02}.py"
    path.write_text(body, encoding="utf-8")
    return checks.judge(number, path)


def changed(number, old, new):
    """A solution with a mistake."""
    text = text_of(solution(number))
    assert text.count(old) >= 1, f"no {old!r} in the solution of {number}"
    return text.replace(old, new)


BOTH_ENDS = "return Value(self.data + other.data, (self, other))"
MISTAKES = [  # the exercise, what stands in the solution, what stands there instead, the right hint
    (1, BOTH_ENDS, "return self.data + other.data", "a number remembers nothing"),
    (1, BOTH_ENDS, "return Value(self.data + other.data)", "it remembers nothing: give the new"),
    (1, BOTH_ENDS, "return Value(self.data + other.data, (other, self))", "in the order (self, other)"),
    (1, BOTH_ENDS, "self.data += other.data\n        return self", "make a new Value"),
    (1, BOTH_ENDS, "Value(self.data + other.data, (self, other))", "has to return the new Value"),
    (1, "(self, other))\n\n", "(Value(self.data), Value(other.data)))\n\n", "not copies of them"),
    (1, "other = other if isinstance(other, Value) else Value(other)\n", "\n", "make one of it first"),
    (1, "self.data * other.data", "self.data + other.data", "that is the sum"),
    (2, "sum(numbers) / numbers.len()", "sum(numbers.data) / len(numbers.data)", "the trace ended"),
    (2, "numbers.len()", "len(numbers)", "numbers.len() is the traced form"),
    (2, "sum(numbers) / ", "sum(numbers.data) / ", "computed from the node too"),
    (2, 'operators.format("{}: {} euro", name, price)', 'f"{name}: {price} euro"', "an f-string"),
    (2, 'operators.format("{}: {} euro", name, price)', 'name + ": " + price + " euro"', "cannot be added"),
    (2, '("{}: {} euro", name, price)', '("{}: {} euro", name, price.data)', "the trace ended there"),
    (3, "thing.data if isinstance(thing, Value) else thing", "thing", "the data of each Value"),
    (3, "thing.data if isinstance(thing, Value) else thing", "thing.data", "only a Value has .data"),
    (3, "tuple(parents)", "()", "the parents are forgotten"),
    (3, "tuple(parents)", "parents", "a tuple, please"),
    (3, " if isinstance(each, Value)]", "]", "a plain thing is not a parent"),
    (3, "(*args, *kwargs.values())", "args", "kwargs.values() as well"),
    (3, "k: plain(v) for", "k: v for", "kwargs may hold Values too"),
    (3, ", function.__name__)", ")", "__name__"),
    (3, "return Value(result, tuple(parents), function.__name__)", "return result", "return a Value"),
    (4, "except ExecutionError as", "except ZeroDivisionError as", "the node is error.exception_node"),
    (4, "return error.exception_node, ", "return error, ", "error.exception_node"),
    (4, "return error.exception_node, ", "return None, ", "a failure has a node too"),
    (4, '("full")', "()", 'create_feedback("full") has the source as well'),
    (4, "except ExecutionError as", "except Exception as", "hides bugs"),
    (5, "if id(thing) in seen:", "if False:", "counts once"),
    (5, "(list, tuple)", "tuple", "into lists"),
    (5, "isinstance(thing, ParameterNode)", 'hasattr(thing, "parents")', "only a ParameterNode counts"),
    (5, 'f"{path}.{name}" if path else str(name)', "str(name)", "every name, index and key"),
    (6, "elif id(node) not in seen:", "else:", "reaches a along two paths"),
    (6, "return order", "return order[::-1]", "parents come first"),
    (6, "id(node) not in seen", "node not in order", "compare values"),
    (6, "return order", "return set(order)", "return a list"),
    (7, "sum(feedbacks)", "feedbacks[0]", "a is both parents, and hears twice"),
    (7, "sum(feedbacks)", "max(feedbacks)", "a is both parents, and hears twice"),
    (7, "feedback / len(node.parents) for", "feedback for", "the blame is split"),
    (7, "[feedback / len(node.parents) for _ in node.parents]", "feedback / 2", "a list with one number"),
    (7, "[feedback / len(node.parents) for _ in node.parents]",
     "[feedback / len(node.parents)] * len(node.parents)", "a root has no parents"),
    (7, "len(node.parents) for", "2 for", "by the number of parents"),
    (8, "feedback * ", "", "multiply by feedback"),
    (8, "x, y = (parent.data for parent in node.parents)", "x, y = node.parents", "compute with its .data"),
    (8, "[feedback * x / node.data, feedback * y / node.data]",
     "[feedback * y / node.data, feedback * x / node.data]", "x comes first"),
    (8, " / node.data", "", "divided by the length"),
    (8, "return [", "[", "has to return the list"),
    (9, "return json.dumps(form)", "return form", "turns it into text"),
    (9, ', "trainable": True', "", 'has "trainable": true'),
    (9, '"outputs": [said]', '"output": said', 'goes into "outputs"'),
    (9, '"format": "minitrace-graph", "version": "1.0", ', "", "says what it writes"),
    (9, 'if value in (float("inf"), float("-inf")):', "if False:", 'the tag is {"$float": "inf"}'),
    (9, '"inf" if value > 0 else "-inf"', '"inf"', "below zero"),
    (9, '"inputs": inputs', '"inputs": list(inputs)', "the message says what is refused"),
    (10, 'raise ValueError(f"the reply is not JSON: {error}") from None', "raise", "an error of its own"),
    (10, 'answer.get("suggestion") if isinstance(answer, dict) else None', 'answer["suggestion"]', "is not a sentence"),
    (10, 'raise ValueError(f"there is no variable {name!r}")', "continue", "dropped in silence"),
    (10, 'f"there is no variable {name!r}"', '"there is no such variable"', "say which name"),
    (10, "if name not in variables:", "if False:", "a KeyError is not a sentence"),
    (10, "if type(value) is not kind:", "if not isinstance(value, kind):", "compare type(value) instead"),
    (10, "value = float(value)", "pass", "an int where a float is now is fine"),
    (10, "if type(value) is not kind:", "value = kind(value)\n        if False:", "say which name"),
    (11, ", reverse=True", "", "the best stands last"),
    (11, "key=lambda attempt: attempt.score", "key=lambda attempt: str(attempt.score)", "the order of the words"),
    (11, "if attempt.score is not None", "", "a score may be None"),
    (11, "sorted(scored, key=lambda attempt: attempt.score, reverse=True)", "scored[::-1]", "the order in time"),
    (11, "len(line + text) > room", "False", "leave attempts out"),
    (11, "len(line + text) > room", "len(line + text) > room + 1", "the line ends count"),
    (11, "return text", "return text.splitlines()", "return one text"),
    (12, "if score > most", "if not best", "that is the first of them"),
    (12, "return best", "return most", "not its score"),
    (12, "self.other.propose(n=self.k)", "[self.other.propose() for _ in range(self.k)]", "Was every proposal tried?"),
    (12, "self.score(self.output.data)", "-1e9", "nothing should change"),
    (12, "except ExecutionError", "except KeyError", "catch ExecutionError"),
    (12, "self.output.rerun(proposal).data", "self.output.rerun(proposal)", "takes the data of an output"),
    (13, "-abs(response - info)", "abs(response - info)", "give it a minus"),
    (13, "return 0.0,", "return 1.0,", "the best score is 0 here"),
    (13, "response < info", "response > info", "so it is too low"),
    (13, "not isinstance(response, (int, float)) or ", "", "ends the training"),
    (13, " or not math.isfinite(response)", "", "math.isfinite() tells"),
    (13, "-abs(response - info)", "response - info", "abs() tells it"),
    (14, "reverse=True", "reverse=False", "a higher score is better"),
    (14, "beam + found", "found", "must not lose the best one"),
    (14, "range(steps)", "range(10)", "the search ends after"),
    (14, "[:width]", "", "keeps one value"),
    (14, "[:width]", "[:1]", "the second best, 'b', stays"),
    (14, "if value not in scores:", "if True:", "keep the scores in a dict"),
    (14, "if best == beam:", "if best[0] == beam[0]:", "the whole beam as it was is the last"),
    (14, "if best == beam:", "if False:", "no other will change it: stop"),
    (14, "list(dict.fromkeys(beam + found))", "beam + found", "each value counts once"),
    (15, "return llm(messages, **options)", "llm(messages, **options)", "return the reply"),
    (15, "except LLMError", "except Exception", "nothing more may be spent"),
    (15, "except LLMError", "except (LLMError, TypeError)", "hides bugs"),
    (15, "raise last", "return None", "raise the last error"),
    (15, "last = error", "pass", "keep the error under another"),
    (15, "**options)\n            except", ")\n            except", "pass on the messages and the options"),
    (16, 'check_code(source, "solve", "(x)")\n', "\n", "comes first"),
    (16, "(ValueError, LimitError)", "LimitError", "check_code raises ValueError"),
    (16, "(ValueError, LimitError)", "ValueError", "what is refused under limits"),
    (16, "except CodeError as error", "except KeyError as error", "what the code itself raised"),
    (16, '{error.kind}: {error.message}, in line {error.line}', "{error.message}", "error.kind, error.line"),
    (16, "gave {result!r}, wanted is", "is not", "if told both"),
    (17, '"memory_size": 0, ', "", "memory_size=0 shows no past attempts"),
    (17, ', "retries": 0', "", "it asked again, twice"),
    (17, ', "on_refusal": "keep"', "", 'unless on_refusal="keep"'),
    (17, "{**defaults, **given}", "{**given, **defaults}", "replaces the default"),
    (17, "**{**defaults, **given}", "memory_size=0, retries=0, on_refusal='keep', **given", "given twice"),
    (17, " if name not in IGNORED", "", "does not take these"),
    (17, "if name not in IGNORED", "if name in defaults", "all other options are passed on"),
    (17, "if name not in IGNORED", "if name in [*defaults, 'objective']", "a misspelled option should be an error"),
    (17, "return OptoPrime", "OptoPrime", "has to be returned"),
]  # fmt: skip


@pytest.mark.parametrize("number, old, new, hint", MISTAKES)
def test_a_typical_mistake_gets_its_hint(number, old, new, hint, tmp_path):
    state, words = graded(number, changed(number, old, new), tmp_path)
    assert state == "not yet"
    assert hint in " ".join(words.partition("\nhint ")[2].split()), words
    assert "0x" not in words and "Traceback" not in words


CLUMSY = "stack = [(node, False) for node in reversed(outputs)]"
EVERY_WAY = """
def topological(outputs):
    order, stack = [], [*outputs]
    while stack:
        order.append(stack.pop())
        stack += order[-1].parents
    return list({id(node): node for node in order[::-1]}.values())
"""
ENDLESS = [
    (6, CLUMSY, CLUMSY + "\n    while True: pass", "nothing within 4 seconds"),
    (6, CLUMSY, CLUMSY + "\n    while True: print('flood')", "printed flood"),
    (6, "", EVERY_WAY, "look at a node once"),
]
ENDS = [  # what becomes of an exercise that ends badly; the words of the verdict
    *(pytest.param(*row, marks=pytest.mark.slow) for row in ENDLESS),
    (6, CLUMSY, CLUMSY + "\n    import os; os._exit(0)", "Python itself ended, status 0"),
    (
        6,
        CLUMSY,
        CLUMSY + "\n    import os; os.kill(os.getpid(), 9)",
        "Python itself ended, status -9",
    ),
    (6, CLUMSY, CLUMSY + "\n    raise SystemExit('bye')", "SystemExit: bye, in ex06.py at line"),
    (6, CLUMSY, CLUMSY + "\n    return topological(outputs)", "RecursionError: maximum"),
    (6, CLUMSY, CLUMSY + "\n    print('here', len(outputs))\n    return []", "printed here 1"),
    (6, CLUMSY, CLUMSY + "\n    )", "SyntaxError: unmatched ')', in ex06.py at line"),
    (6, CLUMSY, CLUMSY + "\n    return undefined", ": return undefined"),
    (6, "def topological(", "def other(", "the names that the exercise gave must stay"),
    (
        6,
        "def topological(",
        "1 / 0\ndef topological(",
        "ZeroDivisionError: division by zero, in ex06.py",
    ),
]


@pytest.mark.parametrize("number, old, new, told", ENDS)
def test_an_exercise_that_ends_badly_has_a_verdict(number, old, new, told, tmp_path):
    path = tmp_path / f"ex{number:02}.py"
    path.write_text(changed(number, old, new) if old else new, encoding="utf-8")
    endless = (number, old, new, told) in ENDLESS
    state, words = checks.grade(number, path, seconds=4 if endless else 60)
    assert state == "not yet" and told in " ".join(words.split())
    assert "Traceback" not in words and str(tmp_path) not in words
    assert len(words) < 4000


@pytest.mark.slow
def test_check_tells_one_exercise_or_all(course):
    done = run_course(course, "check", "6")
    assert done.returncode == 1
    assert done.stdout.startswith("exercise 6: to do\n  the body is yours to write, in ex06.py")
    mine = course / "tutorial" / "exercises"
    for number in checks.numbers():
        (mine / f"ex{number:02}.py").write_text(text_of(solution(number)), encoding="utf-8")
    done = run_course(course, "check", "6")
    assert (done.returncode, done.stdout) == (0, "exercise 6: passed\n")
    (mine / "ex06.py").write_text(
        "def topological(outputs):\n    return outputs\n", encoding="utf-8"
    )
    done = run_course(course, "check")
    assert done.returncode == 1 and done.stdout.count(": passed\n") == len(checks.numbers()) - 1
    assert (
        "exercise 6: not yet\n  called  sorted(names(topological([b])))\n  came    ['add0']"
        in done.stdout
    )


def test_no_hint_is_without_its_call():
    """Every exercise has rows, and every row a call, a wish, and a test that can be read."""
    for number in checks.numbers():
        prepared, rows = checks.rows(number)
        ast.parse(prepared)
        assert len(rows) > 3
        for row in rows:
            for expression in (row.call, row.test, *(sign for sign, _ in row.hints if sign)):
                ast.parse(expression, mode="eval")


def test_the_map_asks_what_the_chapters_ask():
    page = (TUTORIAL / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*?\| \[[^\]]+\]\(([\w./]+\.md)\) \| (.*) \|$", page, re.M)
    assert {TUTORIAL / name for name, _ in rows} == {*CHAPTERS}
    for name, question in rows:
        chapter = (TUTORIAL / name).read_text(encoding="utf-8")
        asked = re.search(r"^\*(.+?)\*$", chapter, re.M | re.S)[1]
        assert question == asked.replace("\n", " "), name
