"""Exercise 9: a graph from elsewhere. Write a body, then run `python3 tutorial check 9`.

Think of this file as written in another language: it has JSON, and no minitrace.
"""

import json


def write_graph(variables, calls, output, feedback):
    """A trace graph as JSON text, in the format of chapter 9.

    Args:
        variables: what may change, a dict from id to value; each becomes a trainable node.
        calls: what ran, a list of `(id, operator, inputs, value)`, where inputs is a dict from
            the name of an argument to the id of a node.
        output: the id of the node that was judged.
        feedback: what was said of it.

    A value may be an infinite number, which JSON does not have: the chapter's table of tags says
    how it is written.
    """

    def written(value):
        if value in (float("inf"), float("-inf")):
            return {"$float": "inf" if value > 0 else "-inf"}
        return value

    nodes = [
        {"id": id, "value": written(value), "trainable": True} for id, value in variables.items()
    ]
    for id, operator, inputs, value in calls:
        nodes.append({"id": id, "operator": operator, "inputs": inputs, "value": written(value)})
    said = {"id": output, "feedback": feedback}
    form = {"format": "minitrace-graph", "version": "1.0", "nodes": nodes, "outputs": [said]}
    return json.dumps(form)
