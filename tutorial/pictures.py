"""The pictures of graphs in the README and in the chapters, as `minitrace_pictures` draws them.

    python3 tutorial/pictures.py            writes all of them into tutorial/pictures/
    python3 tutorial/pictures.py diamond    prints one

Each function below runs a small program and returns its graph. A test compares the files with what is
drawn now, so that no picture shows what the library no longer does.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tutorial" / "companions")]

from minitrace_pictures import to_svg  # noqa: E402

from minitrace import (  # noqa: E402
    GRAPH,
    ExecutionError,
    Module,
    Script,
    bundle,
    node,
    operators,
)


def comfort():
    """The README's first example, at the last step that had feedback."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^>>> from minitrace.*?(?=^[^>.])", page, re.M | re.S)[0]
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(re.sub(r"^(>>>|\.\.\.) ?", "", example, flags=re.M), names)
    return names["degrees"].feedback[0]


def diamond():
    """Chapter 7: a node that hears feedback twice."""
    x = node(3, name="x", trainable=True)
    (x + x).backward("too small")
    return x.feedback[0]


def ladder():
    """Chapter 7: three diamonds, one on top of the other."""
    x = top = node(1, name="x", trainable=True)
    for _ in range(3):
        top = top + top
    top.backward("too big")
    return x.feedback[0]


def failure():
    """Chapter 4: a call that failed is a node as well."""
    people = node(0, name="people", trainable=True)

    @bundle("[per_person] Share the cost.")
    def per_person(cost, people):
        return cost / people

    try:
        per_person(node(90, name="cost"), people)
    except ExecutionError as error:
        error.exception_node.backward("Somebody has to pay.")
    return people.feedback[0]


def expression():
    """Chapter 8: the published example of micrograd."""
    relu = bundle("[relu] x, or 0 if that is more.")(lambda x: max(0, x))
    a, b = node(-4.0, name="a", trainable=True), node(2.0, name="b", trainable=True)
    c, d = a + b, a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + relu(b + a)
    d += 3 * d + relu(b - a)
    f = (c - d) ** 2
    g = f / 2.0 + 10.0 / f
    g.backward("1.0")
    return a.feedback[0]


class SalesAgent(Module):
    """Greet a customer by name, in the customer's own language: two prompts and two functions."""

    def __init__(self, llm):
        self.llm = llm
        self.ask_language = node("Decide the language.", name="ask_language", trainable=True)
        self.ask_name = node("Extract the name.", name="ask_name", trainable=True)

    def forward(self, message):
        reply = operators.call_llm(self.llm, self.ask_language, message)
        name = operators.call_llm(self.llm, self.ask_name, message)
        return self.greet(self.language(reply), name)

    @bundle("[language] Answer en or es.", trainable=True)
    def language(self, reply):
        return "en"

    @bundle("[greet] Write the greeting.", trainable=True)
    def greet(self, language, name):
        return f"Hello, {name}!"


def agent():
    """The second story of the demo, before anything is learned; the replies are the author's."""
    replies = [
        ("Decide the language", "This message is in Spanish."),
        ("Extract the name", "The name is Juan."),
    ]
    made = SalesAgent(Script(replies))
    made("Hola, soy Juan.").backward("It should be 'Hola, Juan!'.")
    return made.ask_name.feedback[0]


GRAPHS = {each.__name__: each for each in (comfort, diamond, ladder, failure, expression, agent)}
FOLDER = ROOT / "tutorial" / "pictures"


def draw(name):
    """A picture, whatever was made before."""
    GRAPH.clear()
    return to_svg(GRAPHS[name]()) + "\n"


def main(names):
    for name in names:
        print(draw(name), end="")
    for name in () if names else GRAPHS:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.svg").write_text(draw(name), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
