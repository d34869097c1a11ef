"""Exercise 13: a guide. Write a body, then `python3 tutorial check 13`."""


def guide(query, response, info):
    """How good is an estimate, and what should be said of it?

    A program was asked `query` and estimated a number: `response`. The dataset knows the right one:
    `info`. With this guide the checker trains a program.

    A response may be no number at all: a program that learns gives anything at times, a text or
    `None` or `nan`. Judge that too: an exception of a guide ends the whole training.

    Returns: a pair of score and feedback.
    - The score is a finite number, higher is better: 0 for the right number, otherwise minus the
      distance. What is no finite number scores -1000.
    - The feedback is "just right", "too low" or "too high", or words with "not a number" in them.
    """
    raise NotImplementedError
