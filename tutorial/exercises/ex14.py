"""Exercise 14: a beam. Write a body, then run `python3 tutorial check 14`."""


def beam_search(start, expand, score, width=2, steps=10):
    """The best value found by a search that makes several attempts at a time.

    The beam is a list of the best values so far, at most `width` of them; at first it holds only
    `start`. Each step expands every value in the beam, and keeps the best of the old and the new
    values together, each value once. The search ends after `steps` steps, or when a step leaves
    the beam as it was.

    Args:
        start: a value. Values can be keys of a dict.
        expand: a function from a value to a list of others to try, as an optimizer proposes them.
        score: a function from a value to a number, higher is better. It costs a run of the whole
            program, so call it only once for each value, even if the value comes up again.
        width: how many values to keep.
        steps: the maximum number of steps.
    """
    raise NotImplementedError
