"""What type checkers and the linter find in the file: nothing. Each is tried where it is installed."""

import importlib.util
import re
import subprocess
import sys

import pytest
from conftest import ROOT

SNIPPET = """\
from minitrace import Module, ParameterNode, bundle, node

reveal_type(node(1).data)
reveal_type(node("a", trainable=True))
reveal_type(node("a", trainable=True).data)


class Greeter(Module):
    pass


reveal_type(Greeter().parameters())
"""
REVEALED = ["int", "ParameterNode[str]", "str", "list[ParameterNode[Any]]"]


def check(tool, *arguments):
    """Run a tool of this environment; its exit code and what it said."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    command = [sys.executable, "-m", tool, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_mypy_finds_nothing(tmp_path):
    cache = f"--cache-dir={tmp_path}"
    code, said = check("mypy", "--strict", "--python-version", "3.10", cache, "minitrace.py")
    assert code == 0, said


def test_pyright_finds_nothing():
    code, said = check("pyright", "--pythonversion", "3.10", "minitrace.py")
    assert code == 0, said


@pytest.mark.parametrize("tool", ["mypy", "pyright"])
def test_an_editor_knows_what_a_node_holds(tool, tmp_path):
    page = tmp_path / "snippet.py"
    page.write_text(SNIPPET)
    (tmp_path / "minitrace.py").write_bytes((ROOT / "minitrace.py").read_bytes())
    _, said = check(tool, page, *([f"--cache-dir={tmp_path}"] if tool == "mypy" else []))
    found = re.findall(r'(?:Revealed type is|is) "([^"]+)"', said)
    assert [re.sub(r"\b(builtins|minitrace)\.", "", each) for each in found] == REVEALED, said


def test_ruff_finds_nothing():
    code, said = check("ruff", "check", "--no-cache", "--config", ".ci/ruff.toml", "minitrace.py")
    assert code == 0, said
    code, said = check(
        "ruff", "format", "--check", "--no-cache", "--config", ".ci/ruff.toml", "minitrace.py"
    )
    assert code == 0, said
