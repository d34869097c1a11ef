"""Two moons of points, and two programs that learn to tell them apart: one by numbers, one by words.

`Network` is the network of micrograd's demo: neurons as in chapter 8, with derivatives that minitrace's
own backward carries. `Curve` has only two numbers, which can be learned either way. `python3
tutorial/cases/moons.py` trains both, prints how that went, and draws both pictures of the case study
again. It takes about half a minute.
"""

import copy
import math
import operator
import random
import sys
from functools import reduce
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE, HERE.parent.parent))

from plot import chart, plane  # noqa: E402

from minitrace import (  # noqa: E402
    Module,
    Optimizer,
    OptoPrime,
    Propagator,
    Proposal,
    StubLLM,
    bundle,
    node,
    to_data,
)


def two_moons(count, seed=1):
    """Points with labels, ((x, y), label): in turns from an upper moon, 1, and from a lower, -1.

    Three decimals are kept, so that a point is the same number on every machine.
    """
    dice, points = random.Random(seed), []
    for n in range(count):
        angle = dice.uniform(0, math.pi)
        x, y = math.cos(angle), math.sin(angle)
        x, y, label = (1 - x, 0.5 - y, -1) if n % 2 else (x, y, 1)
        points.append((tuple(round(each + dice.gauss(0, 0.1), 3) for each in (x, y)), label))
    return points


# ---- Two programs: from the place of a point to a score, which should be above 0 for the upper moon


def above_zero(x):
    return x if x > 0 else 0.0


relu = bundle("[relu] x, or 0 if that is more.")(above_zero)


class Network(Module):
    """Layers of neurons; each weighs all its inputs, adds a bias, and is cut off below 0.

    Only the last one is not cut off: it gives the score. The weights are drawn between -1 and 1
    from a seed, in the order in which micrograd draws its own.
    """

    def __init__(self, seed=1, sizes=(2, 16, 16, 1)):
        self.relu, dice = relu, random.Random(seed)
        self.layers = [
            [neuron(dice, before) for _ in range(after)] for before, after in pairwise(sizes)
        ]

    def forward(self, place):
        for layer in self.layers[:-1]:
            place = [self.relu(weighed(neuron, place)) for neuron in layer]
        return weighed(self.layers[-1][0], place)


def neuron(dice, inputs):
    """The weights of a neuron, and behind them its bias."""
    weights = [node(dice.uniform(-1, 1), name="w", trainable=True) for _ in range(inputs)]
    return [*weights, node(0.0, name="b", trainable=True)]


def weighed(neuron, inputs):
    """The bias and the weighted inputs, added up."""
    *weights, total = neuron
    for weight, value in zip(weights, inputs, strict=True):
        total = total + weight * value  # sum() would round otherwise from Python 3.12 on
    return total


class Curve(Module):
    """How far a place is above a curve through the middle between the moons."""

    def __init__(self):
        self.bend = node(0.0, name="bend", trainable=True, bounds=(-9, 9))
        self.slope = node(0.0, name="slope", trainable=True, bounds=(-9, 9))

    def forward(self, place):
        x, y = place[0] - 0.5, place[1] - 0.25
        return y - self.bend * x**3 - self.slope * x


def plain(model):
    """What a model computes now, as a function from a place to a number that records nothing."""
    copied = copy.copy(model)
    vars(copied).update(to_data(vars(model)), relu=above_zero)
    return copied.forward


# ---- How wrong a program is: the loss, which has slopes, and the number of points, which has none


def margin_loss(model, points):
    """What a score misses from 1 on its own side, on average; large weights cost a little more.

    Source: the demo of micrograd, whose order of operations is kept.
    """
    missing = [relu(model(place) * -label + 1) for place, label in points]
    squares = sum(parameter * parameter for parameter in model.parameters())
    return sum(missing) * (1.0 / len(missing)) + squares * 1e-4


def astray(model, points):
    """How many points are on the wrong side."""
    score = plain(model)
    return sum((score(place) > 0) != (label > 0) for place, label in points)


# ---- One loop for both


def learn(model, points, optimizer, say, steps):
    """Forward, backward, update: the losses before each step, and after the last."""
    losses = []
    for _ in range(steps):
        loss = margin_loss(model, points)
        losses.append(loss.data)
        optimizer.zero_feedback()
        optimizer.backward(loss, **say(model, points))
        optimizer.step()
    return [*losses, margin_loss(model, points).data]


def in_words(model, points):
    """What somebody would say who looks at the picture, and a score: fewer is better."""
    wrong = astray(model, points)
    return {"feedback": f"{wrong} of {len(points)} points are on the wrong side.", "score": -wrong}


def as_slope(model, points):
    """What derivatives start from: as the loss grows, so does the loss."""
    return {"feedback": 1.0}


class Slopes(Propagator):
    """Derivatives, as in chapter 8: what reaches a node by several ways adds up."""

    def aggregate(self, feedbacks):
        return reduce(operator.add, feedbacks)


def derivatives():
    """`Slopes` with a rule for each operator used here: what its parents receive."""

    def multiply(node, slope):
        x, y = node.parents
        return [slope * y.data, slope * x.data]

    slopes = Slopes()
    slopes.register("add", lambda node, slope: [slope, slope])
    slopes.register("subtract", lambda node, slope: [slope, -slope])
    slopes.register("multiply", multiply)
    slopes.register("relu", lambda node, slope: [slope if node.data > 0 else 0.0])
    return slopes


class Descent(Optimizer):
    """Down the slope, at a rate that falls from 1 to 0.1 in so many steps, as in micrograd's demo."""

    def __init__(self, parameters, steps):
        super().__init__(parameters, propagator=derivatives())
        self.steps, self.step_number = steps, 0

    def propose(self, n=None):
        rate = 1.0 - 0.9 * self.step_number / self.steps
        self.step_number += 1
        return Proposal({each: each.data - rate * sum(each.feedback) for each in self.parameters})


# ---- The study


STEPS = 50


def by_numbers(model, points, steps=STEPS):
    return learn(model, points, Descent(model, steps), as_slope, steps)


def by_words(model, points, steps=STEPS, llm=None):
    """The same loop with another optimizer; in the end the model has the best values of all."""
    optimizer = OptoPrime(model, llm=llm or StubLLM())
    losses = learn(model, points, optimizer, in_words, steps)
    optimizer.restore(optimizer.best)
    return losses


WAYS = {
    "a network, by numbers": (Network, by_numbers),
    "a curve, by numbers": (Curve, by_numbers),
    "a curve, by words": (Curve, by_words),
}
PICTURE, LOSSES = HERE / "case_8_moons.svg", HERE / "case_8_losses.svg"


def study(points):
    """For each way a model that has learned, and its losses."""
    found = {}
    for way, (kind, train) in WAYS.items():
        model = kind()
        found[way] = model, train(model, points)
    return found


def picture(models, points):
    """The moons, and where each model sees the border between them, as SVG."""
    scores = {way: plain(model) for way, model in models.items()}
    return plane(scores, points, "Two moons, and the side that each program gives to a place")


def losses_picture(losses):
    panels = {way: {"loss": each[::10]} for way, each in losses.items()}
    ticks = {2: "2", 1: "1", 0.1: "0.1", 0.01: "0.01"}
    return chart(panels, "The loss, every ten steps", "step", "", ticks, every=10)


def main():
    points, new = two_moons(100), two_moons(200, seed=2)
    found = study(points)
    for way, (model, losses) in found.items():
        wrong, others = astray(model, points), astray(model, new)
        print(f"{way + ':':23} loss {losses[0]:.3f} -> {losses[-1]:.3f}, ", end="")
        print(f"{wrong} of 100 points astray, {others} of 200 new ones")
    models, losses = ({way: pair[n] for way, pair in found.items()} for n in (0, 1))
    PICTURE.write_text(picture(models, points), encoding="utf-8")
    LOSSES.write_text(losses_picture(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
