"""Exercise 8: a derivative for an operator. Write a body, then run `python3 tutorial check 8`."""

import math

from minitrace import bundle


@bundle()
def hypot(x, y):
    """The distance to the point (x, y): the square root of x * x + y * y."""
    return math.hypot(x, y)


def hypot_rule(node, feedback):
    """What the parents of a `hypot` node receive when it receives the number `feedback`.

    `node.parents` are x and y, and `node.data` is the length. The slope of the length in x is
    x / length, and in y it is y / length; by the chain rule each is multiplied by `feedback`. The
    checker registers the rule as chapter 8 does, `derivatives.register("hypot", hypot_rule)`.

    Returns: a list of two numbers, one for each parent.
    """
    raise NotImplementedError
