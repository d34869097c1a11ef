"""What the programs here share: a language model that is read from a script, and how facts are told.

It answers Trace's prompts and minitrace's alike: of a variable it needs the name alone, which both
write after the type, as in `(int) x0`.
"""

import json
import re
from types import SimpleNamespace


def variables(messages):
    """The part of a prompt with the variables; Trace's OPRO shows their values alone."""
    page = re.sub(r'"variables": {\s*"(\w+)"', r"(int) \1", messages[-1]["content"])
    return re.split(r"\n# ?Variables\n", page)[-1]


class Scripted:
    """Answers with the next values: a dict of the type of a variable to its new value, or a text."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), 0

    def __call__(self, *args, messages, **options):
        self.calls += 1
        answer = self.answers.pop(0)
        if not isinstance(answer, str):
            page = variables(messages)
            found = {kind: re.search(rf"\({kind}\) (\w+)", page)[1] for kind in answer}
            suggestion = {found[kind]: value for kind, value in answer.items()}
            answer = json.dumps({"reasoning": "as scripted", "suggestion": suggestion})
        message = SimpleNamespace(content=answer, role="assistant")
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    create = __call__


def parents(node):
    """The values of a node's parents, the code of functions first."""
    return sorted((str(parent.data) for parent in node.parents), key=lambda told: told[:4] != "def ")


def heard(parameter):
    """The words that reached a parameter, and how many nodes came with them."""
    from opto.trace.utils import sum_feedback

    graph = sum_feedback([parameter])
    return graph.user_feedback, len(graph.graph)
