"""A function is rewritten until its test passes, and the test is traced too."""

import contextlib
import io

from scripted import Scripted, heard, parents

from opto.optimizers import OptoPrime
from opto.trace import GRAPH, bundle, node

GRAPH.clear()


@bundle(trainable=True)
def zigzag(numbers):
    """
    Order a list: the least, the greatest, the least of the rest, and so on.

    zigzag([1, 2, 3, 4]) == [1, 4, 2, 3]
    """
    numbers = sorted(numbers)
    return numbers


ordered = zigzag([1, 2, 3, 4])
print(ordered.data, parents(ordered))
correct = ordered.eq([1, 4, 2, 3])
figure = correct.backward("test failed", visualize=True, print_limit=25)
print(correct.data, figure is not None, heard(zigzag.parameter))

better = '''def zigzag(numbers):
    """Order a list."""
    rest, found = sorted(numbers), []
    while rest:
        found.append(rest.pop(0 if len(found) % 2 == 0 else -1))
    return found'''


def get_feedback(predict, target):
    return "test case passed!" if predict == target else "test case failed!"


optimizer = OptoPrime(zigzag.parameters(), llm=Scripted({"code": better}))
for epoch in range(3):
    output = zigzag(node([1, 2, 3, 4]))
    correctness = output.eq([1, 4, 2, 3])
    feedback = get_feedback(output.data, [1, 4, 2, 3])
    print(epoch, output.data, correctness.data, feedback)
    if correctness:
        break
    optimizer.zero_feedback()
    optimizer.backward(correctness, feedback)
    print(heard(zigzag.parameter))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        optimizer.step(verbose="output")
    print("rest.pop" in told.getvalue(), "zigzag([1, 2" in told.getvalue())
print(zigzag([9, 7, 8]).data, "rest.pop" in zigzag.parameter.data)
