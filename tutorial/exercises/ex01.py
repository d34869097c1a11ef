"""Exercise 1: a value that remembers. Write two bodies, then run `python3 tutorial check 1`.

There is no minitrace here: this is the seed of it.
"""


class Value:
    """A number and where it came from.

    `data` is the number, and `parents` are the Values that it was computed from, `()` for a root.
    The checker shows a Value as its data and its parents: `(5, (2,), (3,))` is 5, from 2 and 3.
    """

    def __init__(self, data, parents=()):
        self.data, self.parents = data, parents

    def __add__(self, other):
        """A new Value: the sum, with the parents `(self, other)`.

        If `other` is a plain number, make a Value of it first, so that it can be a parent. Neither
        `self` nor `other` changes.
        """
        raise NotImplementedError

    def __mul__(self, other):
        """A new Value: the product, in the same way."""
        raise NotImplementedError
