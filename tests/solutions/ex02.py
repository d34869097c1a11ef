"""Exercise 2: stay in the graph. Write two bodies, then run `python3 tutorial check 2`.

Both functions get nodes and return a node. Every step must be one that the graph records: a node
that is read by `len()` or an f-string has no part in the result.
"""

from minitrace import operators


def mean(numbers):
    """The mean of a node that holds a list of numbers, as a node.

    Both the sum and the length are in the graph, since both are computed from `numbers`.
    """
    return sum(numbers) / numbers.len()


def label(name, price):
    """What a price tag says, as a node: `tea: 3 euro` for the name `tea` and the price 3.

    `name` is a node with a text, which is not changed; `price` is a node with a number.
    """
    return operators.format("{}: {} euro", name, price)
