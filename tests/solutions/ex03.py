"""Exercise 3: one node for a whole call. Write a body, then run `python3 tutorial check 3`.

This is what `@bundle` does, without its extras. There is no minitrace here either.
"""

import functools


class Value:
    """Any data, the Values that it was computed from, and the name of what computed it."""

    def __init__(self, data, parents=(), name=""):
        self.data, self.parents, self.name = data, parents, name


def record(function):
    """A function like this one, but each call returns one Value.

    The arguments may be Values or plain things, by position or by name. `function` itself is
    called with plain things only: it gets the data of each Value. The Value returned has
    - the result of the function as its data,
    - those arguments that are Values as its parents, a tuple in the order of the call,
    - the function's `__name__` as its name.
    """

    @functools.wraps(function)
    def recorded(*args, **kwargs):
        def plain(thing):
            return thing.data if isinstance(thing, Value) else thing

        result = function(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})
        parents = [each for each in (*args, *kwargs.values()) if isinstance(each, Value)]
        return Value(result, tuple(parents), function.__name__)

    return recorded
