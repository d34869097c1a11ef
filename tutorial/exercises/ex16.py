"""Exercise 16: code from a stranger. Write a body, then `python3 tutorial check 16`."""

from minitrace_limits import CodeError, LimitError, Limits  # noqa: F401  (you will need them)

from minitrace import check_code  # noqa: F401


def trial(source, argument, wanted):
    """Try code that somebody wrote: does its `solve(argument)` give what is wanted?

    First it must be what `check_code` accepts as a function `solve` with the signature `(x)`; what
    is not accepted never runs. Then it runs in a child process with `Limits(seconds=1)`.

    Returns: a pair of a score and feedback for whoever wrote the code:
    - `(1.0, "correct")` if the result is the wanted one,
    - `(0.0, words)` if it is another; the words hold both, as `repr` shows them,
    - `(0.0, words)` if it was not accepted, or did not end as a function should; the words are
      those of the error,
    - `(0.0, words)` if the code itself raised: the words hold the type of the exception and the
      number of the line.
    """
    raise NotImplementedError
