"""Exercise 13: a guide. Write a body, then run `python3 tutorial check 13`."""

import math


def guide(query, response, info):
    """How good is an estimate, and what should be said of it?

    A program was asked `query` and estimated a number, `response`. The right one, from the dataset,
    is `info`. The checker trains a program with this guide.

    A response may not be a number at all: while it learns, a program may return a text, `None` or
    `nan`. Judge that too: an exception in a guide ends the whole training.

    Returns: a pair of score and feedback.
    - The score is a finite number, higher is better: 0 for the right number, otherwise minus the
      distance. A response that is not a finite number scores -1000.
    - The feedback is "just right", "too low" or "too high", or words with "not a number" in them.
    """
    if not isinstance(response, (int, float)) or not math.isfinite(response):
        return -1000.0, f"not a number: {response!r}"
    if response == info:
        return 0.0, "just right"
    return -abs(response - info), "too low" if response < info else "too high"
