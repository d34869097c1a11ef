"""Exercise 17: leave Trace's names behind. Write a body, then run `python3 tutorial check 17`."""

from minitrace import OptoPrime  # noqa: F401  (you will need it)

IGNORED = "config_list", "ignore_extraction_error", "filter_dict", "prompt_symbols"


def moved(parameters, llm, **options):
    """minitrace's own `OptoPrime`, in place of Trace's in a program that was written for Trace.

    The program expects that a prompt has no past attempts, that each step asks for one reply, and
    that a reply that cannot be used changes nothing and raises nothing. An option that the program
    gives replaces these defaults. The options named in `IGNORED` have no meaning here, and
    minitrace's own OptoPrime does not take them; all others are passed on.
    """
    raise NotImplementedError
