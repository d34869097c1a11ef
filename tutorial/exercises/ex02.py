"""Exercise 2: stay in the graph. Write two bodies, then `python3 tutorial check 2`.

Both functions get nodes and give a node. Every step must be one that the graph records: a node read
plainly, as by `len()` or an f-string, has no part in the result.
"""

from minitrace import operators  # noqa: F401  (you may need it)


def mean(numbers):
    """The mean of a node that holds a list of numbers, as a node.

    The sum is part of the graph, and so is the length: both were computed from `numbers`.
    """
    raise NotImplementedError


def label(name, price):
    """What a price tag says, as a node: `tea: 3 euro` for the name `tea` and the price 3.

    `name` is a node with a text, which stays as it is; `price` is a node with a number.
    """
    raise NotImplementedError
