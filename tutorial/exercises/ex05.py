"""Exercise 5: find the parameters. Write a body, then run `python3 tutorial check 5`.

A `Module` finds its parameters wherever they are. Here you do the same for a class `Part`, which
knows nothing of minitrace.
"""

from minitrace import ParameterNode  # noqa: F401  (you will need it)


class Part:
    """An object with attributes: `vars(part)` is the dict of them."""


def collect(thing):
    """Every parameter in a thing, by the path to it: a dict from text to `ParameterNode`.

    Look at the attributes of a Part, the items of a list or tuple and the values of a dict, at any
    depth. The path is made of the names, indices and keys on the way, joined by dots: `words.0`
    for `part.words[0]`. A parameter that can be reached twice counts once, by the first path. A
    Part may hold itself, or its owner: do not go in circles.
    """
    raise NotImplementedError
