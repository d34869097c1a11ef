"""Exercise 10: a reply is untrusted. Write a body, then run `python3 tutorial check 10`."""

import json  # noqa: F401  (you will need it)


def read(text, variables):
    """The new values in a language model's reply, or a refusal.

    `variables` is a dict from the name of a variable to its present value. A good reply is one
    JSON object such as `{"reasoning": "too low", "suggestion": {"x0": 7}}`.

    Returns: the suggestion, a dict from names to values; it may be empty.

    Raises: `ValueError` with a sentence that can go back to the language model, if
    - the text is not JSON, or not an object, or has no "suggestion" that is an object,
    - a name is not one of the variables: the sentence says which,
    - a value is not of the same type as the present one: the sentence says whose. True and False
      are not numbers here; an int in place of a float is fine, and becomes a float.

    It is all or nothing: if one value is bad, none of the good ones is returned.
    """
    raise NotImplementedError
