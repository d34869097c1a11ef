"""Exercise 10: a reply is untrusted. Write a body, then run `python3 tutorial check 10`."""

import json


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
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the reply is not JSON: {error}") from None
    suggestion = answer.get("suggestion") if isinstance(answer, dict) else None
    if not isinstance(suggestion, dict):
        raise ValueError('the reply must be an object with an object "suggestion"')
    values = {}
    for name, value in suggestion.items():
        if name not in variables:
            raise ValueError(f"there is no variable {name!r}")
        kind = type(variables[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
        values[name] = value
    return values
