"""A loop goes on whatever the language model says, and steps without feedback."""

import warnings

from scripted import Scripted, heard

from opto.optimizers import OptoPrime
from opto.trace import node

warnings.simplefilter("ignore")
x, unused = node(3, name="x", trainable=True), node("spare", name="unused", trainable=True)
llm = Scripted("I cannot help with that.", '{"suggestion": {"x0": "banana"}}', '{"reasoning": "", "suggestion": {}}',
               "TERMINATE", {"int": 8})
optimizer = OptoPrime([x, unused], llm=llm, memory_size=0)
for _ in range(5):
    output = x * 2
    optimizer.zero_feedback()
    optimizer.backward(output, "too small")
    optimizer.step(anything=True)
    print(x.data, output.data, heard(x), llm.calls, unused.data)
