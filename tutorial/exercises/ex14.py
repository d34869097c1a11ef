"""Exercise 14: a beam. Write a body, then `python3 tutorial check 14`."""


def beam_search(start, expand, score, width=2, steps=10):
    """Search with several attempts at a time; the best value that was found.

    The beam is a list of the best values so far, at most `width` of them; in the beginning it holds
    `start` alone. In each step every value of the beam is expanded, and of the old and the new
    values together the best stay, each value once. The search ends after `steps` steps, or when a
    step leaves the beam as it was.

    Args:
        start: a value. Values can be keys of a dict.
        expand: a function from a value to a list of others to try, as an optimizer proposes them.
        score: a function from a value to a number, higher is better. It costs a run of the whole
            program, so it is called once for each value, however often that is met.
        width: how many values stay.
        steps: how many steps at most.
    """
    raise NotImplementedError
