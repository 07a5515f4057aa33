"""What a decoder says of a text that it cannot read, in sentences of our own.

msgspec's messages quote values of the text, and speak of Python's types.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

_MALFORMED: Final = re.compile(r"(?:JSON|MessagePack data) is malformed: (.*) \(byte (\d+)\)\Z", re.DOTALL)
_AT: Final = re.compile(r" - at `(?:key in )?\$(.*)`\Z", re.DOTALL)
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_EXPECTED: Final = re.compile(r"Expected `([^`]*)`([^,]*)(?:, got `([^`]*)`)?", re.DOTALL)
_MEMBER: Final = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_TYPES: Final = {
    "array": "an array",
    "bool": "true or false",
    "bytes": "binary data",
    "float": "a number",
    "int": "an integer",
    "object": "an object",
    "str": "a string",
}


def decoding_failure(error: Exception, data: bytes, what: str = "the text") -> str:
    """The message for ``data`` that is not well formed. It names positions, and never a value.

    >>> decoding_failure(msgspec.DecodeError("Input data was truncated"), b"[1,")
    'the text ends too early, or holds an invalid escape'
    >>> decoding_failure(msgspec.DecodeError("JSON is malformed: trailing characters (byte 2)"), b"1 2", "the body")
    'the body is malformed at byte 2: trailing characters'
    """
    if isinstance(error, UnicodeDecodeError):
        return f"{what} is not valid UTF-8"
    if isinstance(error, RecursionError):
        return f"{what} is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return shape_failure(error)[0]
    malformed = _MALFORMED.match(str(error))
    if malformed is not None:
        # An opcode is a byte of the data.
        reason = malformed[1].partition(" '\\x")[0]
        return f"{what} is malformed at byte {malformed[2]}: {reason}"
    return f"{what} is empty" if is_blank(data) else f"{what} ends too early, or holds an invalid escape"


def shape_failure(error: msgspec.ValidationError, shape: Any = None) -> tuple[str, str]:
    """The message for data of another shape than the decoder expects, and the JSON pointer to the place.

    The message names types and members, and never a value. With the ``shape`` of the decoder it lists the texts that
    may stand at the place.

    >>> try:
    ...     msgspec.json.decode(b'[[1, "2"]]', type=list[list[int]])
    ... except msgspec.ValidationError as error:
    ...     shape_failure(error)
    ('an integer is expected, and this is a string', '/0/1')
    """
    text = str(error)
    at = _AT.search(text)
    steps: list[str] = [name or index for name, index in _STEP.findall(at[1])] if at else []
    pointer = "".join(f"/{step}" for step in steps)
    return _sentence(text[: at.start()] if at else text, shape, steps), pointer


def is_blank(data: bytes) -> bool:
    """Whether it holds nothing but white space."""
    return not data or data.isspace()


def _sentence(text: str, shape: Any, steps: Sequence[str]) -> str:
    """The sentence for msgspec's, without its place."""
    if (expected := _EXPECTED.match(text)) is not None:
        types, bound, found = expected.groups()
        sentence = f"{' or '.join(map(_type, types.split(' | ')))}{bound} is expected"
        return sentence if found is None else f"{sentence}, and this is {_type(found)}"
    if (member := _MEMBER.match(text)) is not None:
        name = member[2][:100]
        return f"the member {name} is missing" if member[1] == "missing required" else f"no member {name} is known here"
    if text.startswith(("Invalid enum value", "Invalid value")):
        texts = _texts(shape, steps)
        return f"one of {', '.join(texts)} is expected" if texts else "this is none of the texts that may stand here"
    if "base64" in text:
        return "base64 is expected (RFC 4648, with padding)"
    return "the number is out of range" if "out of range" in text else "this is not of the expected form"


def _type(name: str) -> str:
    return _TYPES.get(name, name)


def _texts(shape: Any, steps: Sequence[str]) -> list[str]:
    """The texts that may stand where the steps lead in a shape; empty if they do not lead to a list of texts."""
    if shape is None:
        return []
    kind = msgspec.inspect.type_info(shape)
    for step in steps:
        kind = _inside(kind, step)
    return [str(text) for text in getattr(_bare(kind), "values", ())]


def _inside(kind: Any, step: str) -> Any:
    kind = _bare(kind)
    if isinstance(kind, msgspec.inspect.StructType):
        return next((field.type for field in kind.fields if field.encode_name == step), None)
    return getattr(kind, "item_type", None)


def _bare(kind: Any) -> Any:
    """The type without None, and without what is said of it beside."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        kinds = [_bare(other) for other in kind.types]
        return next((other for other in kinds if not isinstance(other, msgspec.inspect.NoneType)), None)
    return kind
