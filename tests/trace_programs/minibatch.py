"""Several outputs become one text, which is judged as a whole."""

from scripted import Scripted, heard, parents

from opto import trace
from opto.optimizers import OPRO, OptoPrime
from opto.optimizers.utils import print_color  # noqa: F401

shift = trace.node(0, name="shift", trainable=True)


@trace.bundle()
def predict(x, shift):
    """Guess."""
    return x + shift


@trace.bundle(allow_external_dependencies=True)
def concat(*items):
    """The items as one text."""
    return "".join(f"ID [{i}]: {item}\n" for i, item in enumerate(items))


for kind in OptoPrime, OPRO:
    shift = trace.node(0, name="shift", trainable=True)
    optimizer = kind([shift], llm=Scripted({"int": 2}, {"int": 5}))
    for _ in range(2):
        outputs = [predict(x, shift) for x in (1, 2, 3)]
        feedbacks = [f"{output.data} is too small" for output in outputs]
        target, feedback = concat(*outputs), concat(*feedbacks)
        optimizer.zero_feedback()
        optimizer.backward(target, feedback.data)
        print(parents(target), heard(shift))
        optimizer.step(verbose=False)
        print(kind.__name__, shift.data)
