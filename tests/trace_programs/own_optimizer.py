"""Gradient descent, once on the trace graph and once by a propagator of its own."""

from collections import defaultdict

from scripted import parents

from opto.optimizers.optimizer import Optimizer
from opto.trace import bundle, node
from opto.trace.propagators.propagators import Propagator

SLOPES = {
    "square": lambda x: [2 * x],
    "half": lambda x: [0.5],
    "add": lambda x, y: [1.0, 1.0],
    "multiply": lambda x, y: [y, x],
}


@bundle()
def square(x):
    return x * x


@bundle()
def half(x):
    return x * 0.5


def slopes(child):
    name = child.name.split(":")[0]
    return SLOPES[name](*(parent.data for parent in child.parents))


param = node(1.0, name="param", trainable=True)


def forward():
    return half(param) + square(param) * 0.5


class OnTheGraph(Optimizer):
    def __init__(self, parameters, stepsize, *args, **kwargs):
        super().__init__(parameters, *args, **kwargs)
        self.stepsize = stepsize

    def _step(self, *args, **kwargs):
        trace_graph = self.trace_graph
        grads = defaultdict(float)
        for i, (_, x) in enumerate(reversed(trace_graph.graph)):
            if len(x.parents) == 0:
                continue
            g = trace_graph.user_feedback if i == 0 else grads[x]
            for p, slope in zip(x.parents, slopes(x)):
                grads[p] += g * slope
        return {p: p.data - self.stepsize * grads[p] for p in self.parameters}


class BackPropagator(Propagator):
    def init_feedback(self, node, feedback):
        return feedback

    def _propagate(self, child):
        grad = sum(sum(v) for v in child.feedback.values())
        return {p: grad * slope for p, slope in zip(child.parents, slopes(child))}


class ByPropagator(OnTheGraph):
    def default_propagator(self):
        return BackPropagator()

    def _step(self, *args, **kwargs):
        gradient = {p: sum(sum(v) for v in p.feedback.values()) for p in self.parameters}
        return {p: p.data - self.stepsize * gradient[p] for p in self.parameters}


for kind in OnTheGraph, ByPropagator:
    param = node(1.0, name="param", trainable=True)
    optimizer = kind([param], stepsize=0.1)
    for _ in range(4):
        y = forward()
        optimizer.zero_feedback()
        optimizer.backward(y, 1.0)
        optimizer.step()
        print(kind.__name__, round(y.data, 6), round(param.data, 6))
print(parents(y))
