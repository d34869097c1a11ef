"""Exercise 16: code from a stranger. Write a body, then run `python3 tutorial check 16`."""

from minitrace_limits import CodeError, LimitError, Limits

from minitrace import check_code


def trial(source, argument, wanted):
    """Try code that somebody wrote: does its `solve(argument)` return what is wanted?

    First, `check_code` must accept it as a function `solve` with the signature `(x)`; what is not
    accepted never runs. Then it runs in a child process with `Limits(seconds=1)`.

    Returns: a pair, a score and feedback for the author of the code:
    - `(1.0, "correct")` if the result is what is wanted,
    - `(0.0, words)` if it is something else; the words contain both, as `repr` shows them,
    - `(0.0, words)` if the code was not accepted, or reached a limit; the words are those of the
      error,
    - `(0.0, words)` if the code itself raised; the words contain the type of the exception and the
      number of the line.
    """
    try:
        check_code(source, "solve", "(x)")
        result = Limits(seconds=1).run(source, "solve", [argument])
    except (ValueError, LimitError) as error:
        return 0.0, str(error)
    except CodeError as error:
        return 0.0, f"{error.kind}: {error.message}, in line {error.line}"
    if result == wanted:
        return 1.0, "correct"
    return 0.0, f"solve({argument!r}) gave {result!r}, wanted is {wanted!r}"
