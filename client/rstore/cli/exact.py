"""The store of the commands: it keeps every digit of a JSON value, in both directions.

A Python float would turn ``0.12345678901234567890`` into another number.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Self

import rstore
from rstore.core.encodings import Encoding, InvalidJSON, Value, parse_json

# A double keeps 15 digits for sure, and fewer of a tiny number.
_LONG: Final = re.compile(r"[0-9.]{17}|[eE]-[0-9]{3}")


class JsonText(bytes):
    """The text of a JSON value. The store writes it as it is."""

    __slots__ = ()


class LongNumber(float):
    """A number with the text from which it was read, because a double may have too few digits for it."""

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


def json_text(text: str | bytes) -> JsonText:
    """The JSON text of an argument or of standard input. Raises InvalidJSON if the service would not take it."""
    data = text.encode() if isinstance(text, str) else text
    if not data.strip():
        raise InvalidJSON("it is empty, which is not JSON; an empty string is '\"\"'")
    try:
        parse_json(data)
    except InvalidJSON as error:
        # Whoever writes a word means a string. For a number that is out of range the hint would be wrong.
        hint = " (a string needs its quotes: '\"text\"')" if data[:1].isalpha() else ""
        raise InvalidJSON(f"{error}{hint}") from None
    return JsonText(data)


class ExactStore(rstore.Store):
    """A store that takes :class:`JsonText`, and returns long numbers as :class:`LongNumber`."""

    def _dump(self, value: Any) -> str | bytes | Value:
        return Value(Encoding.JSON, bytes(value)) if isinstance(value, JsonText) else super()._dump(value)

    def _load(self, data: str | bytes) -> Any:
        value = super()._load(data)
        if isinstance(data, str) and _LONG.search(data):
            return json.loads(data, parse_float=LongNumber)
        return value
