"""Exercise 11: what does a model get to see? Write a body, then run `python3 tutorial check 11`."""

from minitrace import Optimizer


class Ranked(Optimizer):
    """An optimizer that shows the past sorted by score, the best last, as in the OPRO paper.

    Every prompt has the instruction, the variables and the feedback already. `describe` returns
    what else it shows, as in appendix C.
    """

    def describe(self, room):
        """The attempts of `self.history` that have a score, one line for each, the best last.

        An attempt has `values`, a dict from names to values, and `score`, a number or None. A line
        reads `score 0.5: x0 = 3, y0 = 4`, with the score and the values as `str` gives them. The
        text has at most `room` characters, line ends included: if there are too many lines, the
        worst attempts are left out.

        Returns: the text.
        """
        raise NotImplementedError
