"""A function is rewritten until its test passes; then a function that tests it is learned beside it."""

import contextlib
import io

from scripted import Scripted, heard, parents

from opto.optimizers import OptoPrime
from opto.trace import GRAPH, ExecutionError, bundle, node

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


# Two functions, two optimizers, in turns: one is to pass, the other to test.


@bundle(trainable=True)
def evens(numbers):
    """The even numbers of a list."""
    return numbers


@bundle(trainable=True)
def verifier():
    """An input to test with, and what should come out."""
    return [1, 2], [2, 0]


@bundle()
def concat_msg(validity, test_input, expected, got):
    """What was tested."""
    return f"valid: {validity}, input: {test_input}, expected: {expected}, got: {got}"


code = "def evens(numbers):\n    return [n for n in numbers if n % 2 == 0 and n / 0]", (
    "def evens(numbers):\n    return [n for n in numbers if n % 2 == 0]")  # fmt: skip
tests = "def verifier():\n    return [1, 2, 4], [2, 4]"
code_optimizer = OptoPrime(evens.parameters(), llm=Scripted(*({"code": text} for text in code)), ignore_extraction_error=True)
test_optimizer = OptoPrime(verifier.parameters(), llm=Scripted({"code": tests}), ignore_extraction_error=True)
for turn in range(4):
    try:
        test_input, expected = verifier()
        got = evens(test_input)
        validity = got.eq(expected)
        target = concat_msg(validity, test_input, expected, got)
        feedback = "passed" if validity.data else "the code does not pass"
    except ExecutionError as error:
        target, feedback = error.exception_node, error.exception_node.data
    print(turn, target.data, "|", feedback)
    if feedback == "passed":
        break
    optimizer = test_optimizer if turn == 2 else code_optimizer
    optimizer.zero_feedback()
    optimizer.backward(target, feedback, retain_graph=True)
    print([heard(p)[0] for p in optimizer.parameters], len(target.parents))
    optimizer.step()
