"""Exercise 5: find the parameters. Write a body, then run `python3 tutorial check 5`.

A `Module` finds its parameters wherever they are. Here you do the same for a class `Part`, which
knows nothing of minitrace.
"""

from minitrace import ParameterNode


class Part:
    """An object with attributes: `vars(part)` is the dict of them."""


def collect(thing):
    """Every parameter in a thing, by the path to it: a dict from text to `ParameterNode`.

    Look at the attributes of a Part, the items of a list or tuple and the values of a dict, at any
    depth. The path is made of the names, indices and keys on the way, joined by dots: `words.0`
    for `part.words[0]`. A parameter that can be reached twice counts once, by the first path. A
    Part may hold itself, or its owner: do not go in circles.
    """
    found, seen = {}, set()

    def look(path, thing):
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, ParameterNode):
            found[path] = thing
        elif isinstance(thing, Part):
            look_into(path, vars(thing).items())
        elif isinstance(thing, dict):
            look_into(path, thing.items())
        elif isinstance(thing, (list, tuple)):
            look_into(path, enumerate(thing))

    def look_into(path, items):
        for name, item in items:
            look(f"{path}.{name}" if path else str(name), item)

    look("", thing)
    return found
