"""What type checkers and the linter find in the file and its companions: nothing, where installed."""

import importlib.util
import re
import shutil
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


FILES = [ROOT / "minitrace.py", *sorted((ROOT / "tutorial" / "companions").glob("*.py"))]
NAMES = [path.name for path in FILES]


@pytest.fixture
def beside(tmp_path):
    """A folder where the companions lie beside the file, as in somebody's project."""
    for path in FILES:
        shutil.copy(path, tmp_path)
    return tmp_path


def check(tool, *arguments, cwd=ROOT):
    """Run a tool of this environment; its exit code and what it said."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    command = [sys.executable, "-m", tool, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_mypy_finds_nothing(beside):
    code, said = check("mypy", "--strict", "--python-version", "3.10", *NAMES, cwd=beside)
    assert code == 0, said


def test_pyright_finds_nothing(beside):
    code, said = check("pyright", "--pythonversion", "3.10", *NAMES, cwd=beside)
    assert code == 0, said


@pytest.mark.parametrize("tool", ["mypy", "pyright"])
def test_an_editor_knows_what_a_node_holds(tool, tmp_path):
    page = tmp_path / "snippet.py"
    page.write_text(SNIPPET)
    (tmp_path / "minitrace.py").write_bytes((ROOT / "minitrace.py").read_bytes())
    _, said = check(tool, page, *([f"--cache-dir={tmp_path}"] if tool == "mypy" else []))
    found = re.findall(r'(?:Revealed type is|is) "([^"]+)"', said)
    assert [re.sub(r"\b(builtins|minitrace)\.", "", each) for each in found] == REVEALED, said


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_ruff_finds_nothing(path):
    rules = "--no-cache", "--config", ROOT / ".ci" / "ruff.toml"
    for command in ("check",), ("format", "--check"):
        code, said = check("ruff", *command, *rules, path)
        assert code == 0, said
