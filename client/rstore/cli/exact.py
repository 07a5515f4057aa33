"""JSON as it was written: the store that the commands use keeps every digit of a value, in both directions.

Through Python objects ``0.12345678901234567890`` would come out as another number than went in.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import rstore
from rstore.core.encodings import Encoding, InvalidJSON, Value, parse_json

__all__ = ["ExactStore", "JsonText", "LongNumber", "json_text"]

# A double has 15 digits that are sure to come back, and fewer where it is tiny.
_LONG: Final = re.compile(r"[0-9.]{17}|[eE]-[0-9]{3}")


class JsonText(bytes):
    """A JSON value as its text, which is stored as it stands."""

    __slots__ = ()


class LongNumber(float):
    """A number that remembers the text it was read from, as a double may have too few digits for it."""

    def __new__(cls, text: str) -> LongNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


def json_text(text: str | bytes) -> JsonText:
    """The value of an argument or of standard input, if it is what the service takes as JSON; else InvalidJSON."""
    data = text.encode() if isinstance(text, str) else text
    if not data.strip():
        raise InvalidJSON("it is empty, which is no JSON; an empty string is '\"\"'")
    try:
        parse_json(data)
    except InvalidJSON as error:
        # Whoever writes a word means a string; of a number that is out of range the quotes say nothing.
        hint = " (a string needs its quotes: '\"text\"')" if data[:1].isalpha() else ""
        raise InvalidJSON(f"{error}{hint}") from None
    return JsonText(data)


class ExactStore(rstore.Store):
    """A store that takes :class:`JsonText`, and gives long numbers as :class:`LongNumber`."""

    def _dump(self, value: Any) -> str | bytes | Value:
        return Value(Encoding.JSON, bytes(value)) if isinstance(value, JsonText) else super()._dump(value)

    def _load(self, data: str | bytes) -> Any:
        value = super()._load(data)
        if isinstance(data, str) and _LONG.search(data):
            return json.loads(data, parse_float=LongNumber)
        return value
