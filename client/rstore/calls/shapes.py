"""The shapes that several answers share, and the memory that they take."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

import msgspec

from rstore.calls.answers import malformed
from rstore.core.encodings import Encoding, Value
from rstore.core.names import KEY_BYTES_MAX
from rstore.core.numeric import INT64_MAX, INT64_MIN

# The most bytes that an object of CPython takes on 64 bits, beside the names and data in it.
TUPLE_BYTES: Final = 112
SLOT_BYTES: Final = 16
NameText = Annotated[str, msgspec.Meta(max_length=KEY_BYTES_MAX)]
Int64 = Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)]
NonNegative = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
BASE64: Final = msgspec.json.Decoder(str)


def value_in(raw: msgspec.Raw, label: str) -> Value:
    """The value that JSON holds as ``raw`` beside the label of its encoding."""
    if label == "json":
        return Value(Encoding.JSON, bytes(raw))
    try:
        return Value(Encoding.from_label(label), base64.b64decode(BASE64.decode(raw), validate=True))
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        malformed("a value is not what its encoding says")
