"""Failures of operators, of functions, of functions inside them, and of code that was learned."""

from scripted import Scripted, heard

from opto.optimizers import OptoPrime
from opto.trace import bundle, node
from opto.trace.bundle import ExecutionError, TraceMissingInputsError
from opto.trace.nodes import ExceptionNode, Node

x, y = Node(1, name="node_x"), Node(0, name="node_y")
hidden = node(4, name="hidden", trainable=True)


def helper(x):
    x + 10
    return x / 0


@bundle()
def top(x):
    x += 1
    return helper(x)


@bundle(trainable=True)
def learned(x):
    """Half of it."""
    return x / 0


@bundle()
def careless(x):
    return x + hidden.data


@bundle(catch_execution_error=False)
def bare(x):
    return x / 0


for fail in (lambda: x / y, lambda: top(1), lambda: learned(node(8, name="x"))):
    try:
        fail()
    except ExecutionError as error:
        failed = error.exception_node
        print(failed.data, isinstance(failed, ExceptionNode), failed.create_feedback() == failed.data)
        print([p.data for p in failed.parents if "def" not in str(p.data)])
        print(str(error) != "", "ZeroDivisionError" in str(error))
full = failed.create_feedback("full")
print("return x / 0" in full, "division by zero" in full, "(ZeroDivisionError)" in full)
llm = Scripted({"code": "def learned(x):\n    return x / 2"})
optimizer = OptoPrime(learned.parameters(), llm=llm)
optimizer.zero_feedback()
optimizer.backward(failed, str(failed.data))
print(heard(learned.parameter)[0])
optimizer.step()
print(learned(8).data)
for fail in (lambda: careless(1), lambda: bare(1)):
    try:
        fail()
    except (TraceMissingInputsError, ZeroDivisionError) as error:
        print(type(error).__name__)
