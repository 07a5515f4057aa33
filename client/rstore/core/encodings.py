"""Value encodings: what the bytes of a stored value are, and how they are sent.

A value is an :class:`Encoding` and bytes. SDK and service share this module, so they agree on what a JSON value is.
"""

from __future__ import annotations

import enum
import itertools
import re
from typing import Any, Final, NamedTuple

import msgspec

from rstore.core.decoding import decoding_failure, is_blank
from rstore.core.media_types import (
    JSON_MEDIA_TYPE,
    MSGPACK_MEDIA_TYPE,
    OCTET_STREAM,
    PICKLE_MEDIA_TYPE,
    SEALED_MEDIA_TYPE,
)

JSON_INTEGER_CHARACTERS_MAX: Final = 4300
"""The longest integer that :func:`parse_json` takes, its sign included."""

JSON_INTEGER_MIN: Final = 1 - 10 ** (JSON_INTEGER_CHARACTERS_MAX - 1)
JSON_INTEGER_MAX: Final = 10**JSON_INTEGER_CHARACTERS_MAX - 1
_OBJECT: Final[dict[str, Any]] = {
    JSON_MEDIA_TYPE: msgspec.json.Decoder(dict[str, msgspec.Raw]).decode,
    MSGPACK_MEDIA_TYPE: msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode,
}
# Two patterns, because a search for one that begins with plain text is a hundred times as fast as for a choice.
_SMALL: Final = (re.compile(rb"e-0*[1-9][0-9]{2}"), re.compile(rb"E-0*[1-9][0-9]{2}"))
_ZEROS: Final = b"0" * 200
_IS_ZERO: Final = re.compile(r"-?[0.]+([eE]|\Z)")
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"?')
_NOT_STRUCTURE: Final = bytes(set(range(256)).difference(b'[]{}"'))
_STEPS_AT_ONCE: Final = 65_536
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


class Encoding(enum.IntEnum):
    """What a value's bytes are. The number is what blocks, events and sealed plaintexts carry."""

    JSON = 0
    BYTES = 1
    PICKLE = 2
    SEALED = 3

    @property
    def label(self) -> str:
        """The name on the wire: ``json``, ``bytes``, ``pickle`` or ``sealed``."""
        return _LABELS[self]

    @classmethod
    def from_label(cls, label: str) -> Encoding:
        """The encoding with this wire name; ``ValueError`` if there is none."""
        try:
            return _BY_LABEL[label]
        except KeyError:
            raise ValueError(f"unknown encoding {label!r}: use one of {', '.join(_BY_LABEL)}") from None


class Value(NamedTuple):
    """A value as it is stored and sent: its encoding and its bytes.

    >>> Value(Encoding.JSON, b"[1, 2]")
    Value(encoding=<Encoding.JSON: 0>, data=b'[1, 2]')
    """

    encoding: Encoding
    data: bytes


class InvalidJSON(ValueError):
    """The bytes are not JSON that a value may be. The message says why."""


class NestingTooDeep(InvalidJSON):
    """The JSON is nested deeper than it may be."""


_LABELS: Final = {encoding: encoding.name.lower() for encoding in Encoding}
_BY_LABEL: Final = {label: encoding for encoding, label in _LABELS.items()}
_BY_MEDIA_TYPE: Final = {
    JSON_MEDIA_TYPE: Encoding.JSON,
    PICKLE_MEDIA_TYPE: Encoding.PICKLE,
    SEALED_MEDIA_TYPE: Encoding.SEALED,
}
_MEDIA_TYPES: Final = {encoding: media_type for media_type, encoding in _BY_MEDIA_TYPE.items()}


def encoding_of(media_type: str) -> Encoding:
    """The encoding of a key/value body with this bare, lower-case media type.

    >>> encoding_of("image/png").label
    'bytes'
    """
    return _BY_MEDIA_TYPE.get(media_type, Encoding.BYTES)


def media_type_of(encoding: Encoding) -> str:
    """The media type of a body in ``encoding``; ``application/octet-stream`` for plain bytes."""
    return _MEDIA_TYPES.get(encoding, OCTET_STREAM)


def parse_json(data: bytes, *, nesting_max: int = 128) -> Any:
    """Parse UTF-8 JSON strictly (RFC 8259): no NaN, no invalid UTF-8, no lone surrogate, bounded nesting.

    Raises :class:`InvalidJSON`. Integers keep every digit; they may have 4,300 characters. Any other number is read as
    the nearest double, and refused if it is beyond their range; :func:`check_numbers` finds those that become 0.

    >>> parse_json(b'{"a": 1}')
    {'a': 1}
    """
    if data.count(b"[") + data.count(b"{") > nesting_max and _nesting(data) > nesting_max:
        raise NestingTooDeep(f"JSON is nested deeper than {nesting_max} levels")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        hint = '; a value is expected, such as null or ""' if is_blank(data) else ""
        raise InvalidJSON(f"not valid JSON: {decoding_failure(error, data)}{hint}") from None


def render_json(value: Any) -> bytes:
    """JSON text of a value that :func:`parse_json` returned, as UTF-8 without spaces."""
    return msgspec.json.encode(value)


def members_of(body: bytes | msgspec.Raw, form: str) -> dict[str, msgspec.Raw]:
    """The members of an object in JSON or msgpack that decodes, and whose names hold no colon.

    Raises :class:`InvalidJSON` if a member stands twice. Decoders keep the last one and raise no error.

    >>> {name: bytes(value) for name, value in members_of(b'{"a": 1, "b": ":"}', JSON_MEDIA_TYPE).items()}
    {'a': b'1', 'b': b'":"'}
    >>> members_of(b'{"a": 1, "\\\\u0061": 2}', JSON_MEDIA_TYPE)
    Traceback (most recent call last):
    rstore.core.encodings.InvalidJSON: a member stands twice in one object
    """
    found: dict[str, msgspec.Raw] = _OBJECT[form](body)
    if form == JSON_MEDIA_TYPE:
        # Each member has a colon, and so has one that the decoder dropped.
        repeated = bytes(body).count(b":") != len(found) + b"".join(found.values()).count(b":")
    else:
        repeated = _map_size(bytes(memoryview(body)[:5])) != len(found)
    if repeated:
        raise InvalidJSON("a member stands twice in one object")
    return found


def check_numbers(data: bytes) -> None:
    """Raise :class:`InvalidJSON` if a number in JSON text that parses is not 0, and would be read as 0.

    >>> check_numbers(b"[5e-324, 0e-400]")
    >>> check_numbers(b"1e-400")
    Traceback (most recent call last):
    rstore.core.encodings.InvalidJSON: a number is not 0, but nearer to 0 than any double
    """
    if has_small_numbers(data):
        try:
            _decode_numbers(data)
        except msgspec.ValidationError:
            raise InvalidJSON("a number is not 0, but nearer to 0 than any double") from None


def has_small_numbers(data: bytes) -> bool:
    """Whether JSON text may hold a number so small that it is read as 0. It is quick, and False for most texts."""
    # Such a number has an exponent of three digits, below 0, or hundreds of zeros.
    return (b"-" in data and any(pattern.search(data) for pattern in _SMALL)) or _ZEROS in data


def on_one_line(text: bytes) -> bytes:
    """JSON text without the line breaks that it may hold between its tokens.

    >>> on_one_line(b'[1,\\n 2]')
    b'[1,2]'
    """
    return msgspec.json.format(text, indent=-1) if b"\n" in text or b"\r" in text else text


def _map_size(head: bytes) -> int:
    """The number of members that a msgpack map says it has."""
    return head[0] & 0x0F if head[0] < 0xDE else int.from_bytes(head[1:3] if head[0] == 0xDE else head[1:5], "big")


def _nesting(data: bytes) -> int:
    """The deepest nesting of arrays and objects in JSON text; brackets inside strings do not count.

    It makes passes in C only, because it is not rare: a large text has more brackets than nesting.
    """
    if b"\\" in data:
        data = _ESCAPE.sub(b"", data)
    skeleton = data.translate(None, _NOT_STRUCTURE)
    # Without two quotes side by side, each bracket is still inside or outside a string as before.
    skeleton = skeleton.replace(b'""', b"")
    if b'"' in skeleton:
        skeleton = _STRING.sub(b"", skeleton)
    steps = memoryview(skeleton.translate(_STEPS)).cast("b")
    deepest = depth = 0
    # In pieces, so that other threads get their turn between them.
    for start in range(0, len(steps), _STEPS_AT_ONCE):
        depths = list(itertools.accumulate(steps[start : start + _STEPS_AT_ONCE], initial=depth))
        deepest, depth = max(deepest, max(depths)), depths[-1]
    return deepest


def _number(text: str) -> float:
    number = float(text)
    if number == 0 and _IS_ZERO.match(text) is None:
        raise ValueError
    return number


_decode_numbers: Final = msgspec.json.Decoder(float_hook=_number).decode
