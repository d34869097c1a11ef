"""A number is changed until a function of it is large enough."""

from scripted import Scripted, heard, parents

from opto.optimizers import OptoPrime
from opto.trace import GRAPH, bundle, node

GRAPH.clear()


def blackbox(x):
    return -x * 2


@bundle()
def bar(x):
    "This is a test function, which does negative scaling."
    return blackbox(x)


def foo(x):
    y = x + 1
    return x * y


def foobar(x):
    return foo(bar(x))


def user(x):
    return "The number needs to be larger." if x < 50 else "Success."


x = node(-1.0, trainable=True)
print(x.name, x.py_name, x.data, x.trainable, x.is_root)
optimizer = OptoPrime([x], llm=Scripted({"float": -2.5}, {"float": "-4"}, {"float": 7}), config_list=[])
for _ in range(4):
    output = foobar(x)
    feedback = user(output.data)
    print(x.data, output.data, output.level, parents(output), feedback)
    if feedback == "Success.":
        break
    optimizer.zero_feedback()
    optimizer.backward(output, feedback)
    print(heard(x))
    optimizer.step(verbose=False, mask=["#Others"])
print(len(optimizer.log), [type(entry["response"]).__name__ for entry in optimizer.log])
