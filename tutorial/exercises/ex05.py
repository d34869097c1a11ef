"""Exercise 5: find the parameters. Write a body, then `python3 tutorial check 5`.

A `Module` finds its parameters wherever they hide. Here you do it for a class `Part`, which knows
nothing of minitrace.
"""

from minitrace import ParameterNode  # noqa: F401  (you will need it)


class Part:
    """An object with attributes: `vars(part)` is the dict of them."""


def collect(thing):
    """Every parameter in a thing, by the path to it: a dict from text to `ParameterNode`.

    Look at the attributes of a Part, the items of a list or tuple, the values of a dict, and into
    those, at any depth. The path is the names, indices and keys on the way, with dots between:
    `words.0` for `part.words[0]`. A parameter that can be reached twice counts once, by the first
    path. A Part may hold itself, or its owner: do not go in circles.
    """
    raise NotImplementedError
