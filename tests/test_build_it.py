"""Appendix A: its blocks, put together, are a program of about a hundred lines that works alone."""

import doctest
import io
import re
import subprocess
import sys
import tokenize

import pytest
from conftest import ROOT

PAGE = (ROOT / "tutorial" / "a_build_it.md").read_text(encoding="utf-8")
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def blocks():
    """The page's code, block by block, each as a list of doctest examples."""
    for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M):
        yield doctest.DocTestParser().get_examples(text)


def is_program(examples):
    """Does it print nothing?"""
    return not any(example.want for example in examples)


def program():
    """The source of the blocks that print nothing."""
    parts = [example.source for block in blocks() if is_program(block) for example in block]
    return "\n".join(parts)


def code_lines(source):
    """How many lines hold code: neither blank lines nor comments do."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


@pytest.fixture
def space():
    """The names of the program, run by itself."""
    names = {"__name__": "mini"}
    exec(compile(program(), "mini.py", "exec"), names)
    return names


def test_it_is_about_a_hundred_lines_and_the_page_says_how_many():
    count = code_lines(program())
    assert 85 <= count <= 105
    assert f"in {count} lines of code" in PAGE


def test_it_needs_nothing_but_the_standard_library(tmp_path):
    (tmp_path / "mini.py").write_text(program(), encoding="utf-8")
    command = [sys.executable, "-I", "mini.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "minitrace" not in program()


def test_the_other_blocks_try_it_and_print_what_the_page_says(space):
    trials = [example for block in blocks() if not is_program(block) for example in block]
    assert len(trials) > 10
    runner, report = doctest.DocTestRunner(), []
    test = doctest.DocTest(trials, space, "a_build_it", None, 0, None)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_a_ladder_of_diamonds_and_a_long_chain_are_walked(space):
    x = rung = space["Node"](1, trainable=True)
    for _ in range(60):
        rung = rung + rung
    heard = space["backward"](rung, 1, sum, lambda each, said: [said] * len(each.parents))
    assert heard[x] == rung.data == 2**60
    for _ in range(10_000):
        rung = rung + 1
    space["give"](rung, "too big")
    ((graph, output, words),) = x.feedback
    assert (len(graph), output, words) == (20_061, rung, "too big")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("", "Expecting value"),
        ("7", "an object with a suggestion is expected"),
        ('{"suggestion": [1]}', "an object with a suggestion is expected"),
        ('{"suggestion": {"y": 1}}', "no variable takes y = 1"),
        ('{"suggestion": {"x": true}}', "no variable takes x = True"),
    ],
)
def test_a_bad_reply_is_refused_and_changes_nothing(space, reply, words):
    x = space["Node"](1, "x", trainable=True)
    x.name = "x"
    space["give"](x + 1, "too small")
    asked = []
    with pytest.raises(ValueError, match="no usable reply, 3 times"):
        space["step"]([x], lambda text: asked.append(text) or reply)
    assert words in asked[-1] and x.data == 1
