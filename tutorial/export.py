"""Write a trained object back as plain Python, without minitrace.

`export(agent)` returns the source of the agent's class with what was learned: each trainable method has
its present code, each parameter made in `__init__` has its present value, and minitrace's decorators and
base class are gone. If a line still needs minitrace, the result says which.
"""

import ast
import inspect
import sys
import textwrap
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

OURS = {
    "model",
    "bundle",
    "trace",
    "minitrace",
    "Module",
    "operators",
    "node",
    "GRAPH",
    "stop_tracing",
}


def export(agent):
    """The source of an object's class with its learned values, and what still needs minitrace.

    Returns: the source, and a list of `(line, words)`, the line counted in that source.
    """
    source = textwrap.dedent(inspect.getsource(type(agent)))
    tree = ast.parse(source)
    made = tree.body[0]
    made.decorator_list = [mark for mark in made.decorator_list if not names_of(mark) & OURS]
    made.bases = [base for base in made.bases if not names_of(base) & OURS]
    made.body = [learned(part, agent) for part in made.body]
    tree = ast.fix_missing_locations(Plain(agent).visit(tree))
    text = ast.unparse(tree)
    return text + "\n", list(left_over(text))


def names_of(expression):
    """The names that an expression begins with or mentions."""
    return {part.id for part in ast.walk(expression) if isinstance(part, ast.Name)}


def learned(part, agent):
    """A statement of the class, a trainable method replaced by the code that it has now."""
    if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return part
    parameter = getattr(getattr(agent, part.name, None), "parameter", None)
    if parameter is not None:
        part = next(
            d for d in ast.parse(parameter.data).body if getattr(d, "name", "") == part.name
        )
    part.decorator_list = [mark for mark in part.decorator_list if not names_of(mark) & OURS]
    return part


class Plain(ast.NodeTransformer):
    """`node(...)` becomes the value that was learned, `x.data` becomes `x`."""

    def __init__(self, agent):
        self.agent = agent

    def visit_Assign(self, part):
        target, value = part.targets[0], part.value
        made = isinstance(value, ast.Call) and names_of(value.func) & {"node", "trace", "minitrace"}
        if made and isinstance(target, ast.Attribute) and hasattr(self.agent, target.attr):
            part.value = ast.Constant(getattr(self.agent, target.attr).data)
            return part
        return self.generic_visit(part)

    def visit_Attribute(self, part):
        self.generic_visit(part)
        return part.value if part.attr == "data" else part


def left_over(text):
    """What still names minitrace, line by line."""
    for part in ast.walk(ast.parse(text)):
        if isinstance(part, ast.Name) and part.id in OURS:
            yield part.lineno, f"{part.id} belongs to minitrace and has no plain form here"
