"""Exercise 4: a failure is a node too. Write a body, then `python3 tutorial check 4`."""

from minitrace import ExecutionError  # noqa: F401  (you will need it)


def attempt(program, *inputs):
    """Call `program(*inputs)`, whose steps are bundles; give a node and what to say of it.

    If all went well: its output and the word "fine". If a recorded step failed: the node that
    stands where the output would be, and its feedback in full, with the line that failed marked.
    Only a failure of a recorded step is feedback. Any other exception is a bug in the program
    around the steps, and passes through.

    Returns: a pair (node, text).
    """
    raise NotImplementedError
