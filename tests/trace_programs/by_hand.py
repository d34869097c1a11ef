"""Nodes made by hand stand in a graph like any others."""

from scripted import heard, parents

import opto.trace as trace
from opto.trace import bundle, node, stop_tracing
from opto.trace.nodes import ExceptionNode, MessageNode, Node, ParameterNode
from opto.trace.utils import contain

rate = ParameterNode(3, name="rate", trainable=True, constraint="a small number")
hours = node(5, name="hours")
total = MessageNode(15, inputs={"rate": rate, "hours": hours}, description="[bill] rate times hours.", name="bill")
listed = MessageNode("a note", inputs=[rate], description="[note] A note.", name="note")
print(total.name, total.data, parents(total), sorted(total.inputs), total.level)
print(listed.name, parents(listed), isinstance(listed, Node), isinstance(rate, MessageNode))
failed = ExceptionNode(KeyError("no such room"), inputs={"total": total}, name="exception_room")
print(failed.name, failed.data, contain(failed.parents, total), isinstance(failed, MessageNode))
result = (total + 1) * 2
print(result.data, parents(result))
result.backward("too much")
print(heard(rate), len(total.children), rate.children[0] is total or contain(rate.children, total))
print(result.is_leaf, total.is_leaf, total.is_root, rate.is_root)
try:
    raise trace.ExecutionError(failed)
except trace.ExecutionError as error:
    print(error.exception_node is failed)


@bundle()
def double(x):
    return 2 * x


with stop_tracing():
    quiet = double(rate)
print(quiet.data, len(quiet.parents), len(double(rate).parents))
