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

# What a user writes, with what the checkers say of it: `# >` and a type, or `# ! ` and a wrong call.
PROGRAM = """\
import asyncio

from minitrace import Module, Node, OptoPrime, bundle, model, node, operators


@bundle(trainable=True)
def scale(x: int, by: int = 2) -> int:
    return x * by


@bundle
def plain(x: str) -> str:
    return x


@bundle("[words] Words.", allow_external_dependencies=True)
async def later(x: str) -> list[str]:
    return [x]


@bundle()
def total(xs: list[int], **options: float) -> int:
    return sum(xs)


class Agent(Module):
    def __init__(self) -> None:
        self.word = node("hi", trainable=True)

    @bundle(trainable=True)
    def act(self, x: int, *, loud: bool = False) -> str:
        return self.word.data * x

    @bundle()
    async def wait(self, x: int) -> int:
        return x

    @staticmethod
    @bundle()
    def twice(x: int) -> int:
        return 2 * x

    @bundle()
    @staticmethod
    def thrice(x: int) -> int:
        return 3 * x

    @classmethod
    @bundle()
    def kind(cls, x: int) -> str:
        return cls.__name__ * x

    @property
    @bundle()
    def size(self) -> int:
        return 1


@model
class Greeter:
    @bundle(trainable=True)
    def greet(self, name: str) -> str:
        return name


agent, n, word = Agent(), node(3), node("a")
reveal_type(scale(n))  # > MessageNode[int]
reveal_type(scale(3, by=n).data)  # > int
reveal_type(plain("a").data)  # > str
reveal_type(plain(plain(word)).data)  # > str
reveal_type(agent.act(n, loud=True).data)  # > str
reveal_type(Agent.act(agent, n).data)  # > str
reveal_type(agent.twice(n).data)  # > int
reveal_type(Agent.thrice(1).data)  # > int
reveal_type(agent.kind(n).data)  # > str
reveal_type(Agent.kind(1).data)  # > str
reveal_type(agent.size.data)  # > int
reveal_type(scale.parameter)  # > ParameterNode[str]
reveal_type(agent.act.parameter)  # > ParameterNode[str]
reveal_type(operators.concat(word, "b"))  # > MessageNode[Any]
total([n, 2], rate=n)
total(node([1, 2]))
OptoPrime([scale.parameter, *agent.parameters(), *agent.act.parameters()])
scale.save("scale.json")
agent.act.load("act.json")
scale.parameter.set("def scale(x, by=2): return 1")


async def main() -> None:
    reveal_type((await later(word)).data)  # > list[str]
    reveal_type((await agent.wait(n)).data)  # > int


asyncio.run(main())
scale()  # !
scale(1, 2, 3)  # !
scale(n, n, n)  # !
scale(1, bye=2)  # !
scale("a")  # !
agent.act()  # !
agent.act(1, 2)  # !
agent.act(n, quiet=True)  # !
agent.twice(1, 2)  # !
plain(1)  # !
bundle(1)  # !
"""


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


@pytest.mark.parametrize(
    "tool", [["mypy", "--strict", "--python-version", "3.10"], ["pyright"]], ids=["mypy", "pyright"]
)
def test_a_program_has_the_types_that_it_should(tool, beside):
    """Each line with a mark is told of, and no other line."""
    (beside / "program.py").write_text(PROGRAM)
    _, said = check(*tool, "program.py", cwd=beside)
    lines = PROGRAM.splitlines()
    marked = {n: line[-1:] for n, line in enumerate(lines, 1) if line.endswith("# !")}
    told = {int(n) for n in re.findall(r"program\.py:(\d+)[:\d]* ?-? error", said)}
    assert told == marked.keys(), said
    marked = {str(n): line.partition("# > ")[2] for n, line in enumerate(lines, 1) if "# >" in line}
    revealed = re.findall(r'program\.py:(\d+).*(?:Revealed type is|is) "([^"]+)"$', said, re.M)
    plain = {n: re.sub(r"\b(builtins|minitrace)\.", "", kind) for n, kind in revealed}
    assert plain == marked, said


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_ruff_finds_nothing(path):
    rules = "--no-cache", "--config", ROOT / ".ci" / "ruff.toml"
    for command in ("check",), ("format", "--check"):
        code, said = check("ruff", *command, *rules, path)
        assert code == 0, said
