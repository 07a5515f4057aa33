"""What pydantic finds wrong with a setting or a query parameter, in sentences of our own, which quote no value."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

_SENTENCES: Final = {
    "bool": "true or false is expected",
    "extra_forbidden": "there is no such name",
    "finite_number": "a number is expected",
    "float": "a number is expected",
    "greater_than": "more than {gt} is expected",
    "greater_than_equal": "{ge} or more is expected",
    "int": "an integer is expected",
    "less_than_equal": "{le} or less is expected",
    "literal_error": "{expected} is expected",
    "model_type": "a JSON object is expected",
    "string_pattern_mismatch": "a text that matches {pattern} is expected",
}


def first_failure(errors: ValidationError) -> tuple[tuple[str, ...], str]:
    """Where the first error is, as the names that lead to it, and the sentence for it.

    The sentence of a validator of our own is its message.
    """
    # The context of an error may hold an exception, whose traceback leads to the caller's frame. So it stays in here.
    first = errors.errors(include_input=False, include_url=False)[0]
    place = tuple(map(str, first["loc"]))
    kind, context = first["type"], first.get("ctx", {})
    if kind == "value_error":
        return place, str(context["error"])
    sentence = _SENTENCES.get(kind) or _SENTENCES.get(kind.partition("_")[0]) or "another value is expected"
    return place, sentence.format(**context)
