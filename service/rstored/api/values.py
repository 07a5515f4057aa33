"""Values in JSON and msgpack bodies: the members ``value`` and ``encoding``, as they are read and written."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from rstore.core.encodings import Encoding, InvalidJSON, Value, check_numbers
from rstore.core.media_types import JSON_MEDIA_TYPE
from rstored.api.answers import encode_body
from rstored.engine.values import check_stored
from rstored.limits import Limits
from rstored.problems import Problem, of_storage

EncodingLabel: TypeAlias = Literal["json", "bytes", "pickle", "sealed"]

_stored_json: Final = of_storage("a value")(msgspec.json.decode)


def wire_value(value: Value, form: str) -> tuple[Raw, EncodingLabel | UnsetType]:
    """A value as the members ``value`` and ``encoding`` (absent for JSON) of a body.

    In msgpack, a JSON value stays JSON text, with encoding ``json``, if it has an integer beyond 64 bits, or a number
    that would become 0.
    """
    encoding, data = value
    if encoding is Encoding.JSON:
        if form == JSON_MEDIA_TYPE:
            # If it were not JSON, the whole body that it is written into would not be.
            check_stored(value)
            return Raw(data), UNSET
        parsed = _stored_json(data)
        try:
            check_numbers(data)
            return Raw(msgspec.msgpack.encode(parsed)), UNSET
        except (InvalidJSON, OverflowError):
            return Raw(msgspec.msgpack.encode(data)), "json"
    label: EncodingLabel = encoding.label  # type: ignore[assignment]
    # msgspec writes bytes as a base64 string in JSON, and unchanged in msgpack.
    return Raw(encode_body(data, form)), label


def read_value(raw: Raw, encoding: EncodingLabel | UnsetType, form: str, limits: Limits, pointer: str) -> Value:
    """The value in the members ``value`` and ``encoding`` of a body. ``pointer`` is their place.

    JSON is not parsed here, because the engine parses every value that is written. Raises Problem ``invalid-body``,
    ``invalid-value`` or ``value-too-large``.
    """
    if form == JSON_MEDIA_TYPE:
        if encoding is UNSET or encoding == "json":
            return Value(Encoding.JSON, bytes(raw))
        data = _bytes_of(raw, msgspec.json.decode, "a base64 string", pointer)
        return Value(Encoding.from_label(encoding), data)
    if encoding is UNSET or encoding == "json":
        return Value(Encoding.JSON, _json_text(raw, limits, may_be_text=encoding == "json", pointer=pointer))
    return Value(Encoding.from_label(encoding), _bytes_of(raw, msgspec.msgpack.decode, "binary", pointer))


def nothing_but_json(value: Any) -> None:
    """Raise ``ValueError`` if the decoded msgpack ``value`` has something that JSON cannot express.

    >>> nothing_but_json({"a": [1, None, "text"]})
    >>> nothing_but_json([b"binary"])
    Traceback (most recent call last):
    ValueError: JSON has no bytes
    """
    if isinstance(value, dict):
        for name, member in value.items():
            if type(name) is not str:
                raise ValueError("a map has a key that is not a string")
            nothing_but_json(member)
    elif isinstance(value, list):
        for item in value:
            nothing_but_json(item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("JSON has no NaN and no Infinity")
    elif value is not None and not isinstance(value, str | int):
        raise ValueError(f"JSON has no {type(value).__name__}")


def _bytes_of(raw: Raw, decode: Any, what: str, pointer: str) -> bytes:
    try:
        data: bytes = decode(raw, type=bytes)
    except msgspec.DecodeError as error:
        # A string that does not decode is a wrong value. Anything else is a body of another shape.
        code = "invalid-value" if "base64" in str(error) else "invalid-body"
        raise Problem(code, f"a value with this encoding must be {what}", pointer=pointer) from None
    return data


def _json_text(raw: Raw, limits: Limits, *, may_be_text: bool, pointer: str) -> bytes:
    size, size_max = memoryview(raw).nbytes, limits.value_bytes_max
    if size > size_max:
        # A byte of msgpack may become an object of 72 bytes, so the size is checked before decoding.
        raise Problem.beyond("value-too-large", f"the value has {size} bytes of msgpack", size_max, pointer=pointer)
    try:
        value = msgspec.msgpack.decode(raw)
        if may_be_text and isinstance(value, bytes):
            return value
        nothing_but_json(value)
    except ValueError as error:
        reason = "text that is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise Problem("invalid-value", f"not a JSON value: {reason}", pointer=pointer) from None
    except RecursionError:
        raise Problem("nesting-too-deep", "the value is nested too deeply", pointer=pointer) from None
    return msgspec.json.encode(value)
