"""Results: JSON, one value to a line."""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from typing import Any, Final

from rstore.cli.exact import LongNumber
from rstore.core.command import Failure

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_LINES_AT_ONCE: Final = 1_000
_PLAIN: Final = frozenset({str, bool, type(None)})
_string: Final = json.JSONEncoder(ensure_ascii=False).encode


def print_values(*values: Any) -> None:
    """Print each value on a line of its own."""
    for start in range(0, len(values), _LINES_AT_ONCE):
        lines = [shown(value) + "\n" for value in values[start : start + _LINES_AT_ONCE]]
        try:
            sys.stdout.write("".join(lines))
        except UnicodeEncodeError:
            # Nothing is written yet. This writes the lines before the one that cannot be encoded.
            sys.stdout.writelines(lines)


def print_line(text: str) -> None:
    """Print text that is not JSON."""
    sys.stdout.write(text + "\n")


def shown(value: Any) -> str:
    """A value as JSON. A value that JSON has no form for is base64, or a string with what Python shows of it."""
    try:
        text = _json(value)
    except RecursionError:
        raise Failure("the value is nested too deeply to be shown, or contains itself") from None
    # Control characters of a stored value must not reach the terminal. They stand only inside of strings.
    return text if text.isprintable() else _UNPRINTABLE.sub(_escaped, text)


def _json(value: Any) -> str:
    kind = type(value)
    try:
        if kind is int or (kind is float and math.isfinite(value)):
            return repr(value)
        if kind is LongNumber:
            return str(value.text)
        if kind is list or kind is tuple:
            return f"[{', '.join(map(_json, value))}]"
        if kind is dict and all(type(name) is str for name in value):
            return "{" + ", ".join([f"{_string(name)}: {_json(member)}" for name, member in value.items()]) + "}"
        if kind is bytes:
            return f'{{"base64": "{base64.b64encode(value).decode()}"}}'
        return _string(value if kind in _PLAIN else repr(value))
    except ValueError:
        # Python prints no integer of more than 4,300 digits.
        return _string(f"<{kind.__name__} with too many digits to be shown>")


def _escaped(character: re.Match[str]) -> str:
    return character[0] if character[0].isprintable() else json.dumps(character[0])[1:-1]
