"""JSON and msgpack bodies, with the values in them. They are read strictly into structs, and written from structs.

Each shape of ``docs/rest.md`` is one msgspec struct, which decodes it, encodes it and describes it in OpenAPI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
import msgspec.inspect
from msgspec import UNSET, Raw, UnsetType

from rstore.core.decoding import decoding_failure, is_blank, shape_failure
from rstore.core.encodings import Encoding, InvalidJSON, Value, check_numbers, members_of
from rstore.core.media_types import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from rstored.api.media_types import JSON_FORMS, ContentType, form_refused
from rstored.api.origins import is_cross_origin
from rstored.api.replies import Header, Reply, content_type
from rstored.api.requests import Request
from rstored.limits import Limits
from rstored.problems import Problem, of_storage
from rstored.threads import run_sized

__all__ = [
    "EncodingLabel",
    "MsgpackArray",
    "answer",
    "answer_sized",
    "body_form",
    "decode_body",
    "encode_body",
    "nothing_but_json",
    "read_body",
    "read_optional_body",
    "read_value",
    "wire_value",
]

EncodingLabel: TypeAlias = Literal["json", "bytes", "pickle", "sealed"]

BodyT = TypeVar("BodyT")

_CONTENT_TYPES: Final[dict[str, Header]] = {form: content_type(form) for form in (JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE)}
_ENCODE: Final = {JSON_MEDIA_TYPE: msgspec.json.Encoder().encode, MSGPACK_MEDIA_TYPE: msgspec.msgpack.Encoder().encode}


# --- answers -----------------------------------------------------------------------------------------------


def encode_body(body: Any, form: str) -> bytes:
    """A struct, or plain data, in JSON or msgpack."""
    return _ENCODE[form](body)


def answer(request: Request, body: Any, status: int = 200, *headers: Header) -> Reply:
    """The reply with ``body`` in the form that the request asked for."""
    form = request.form
    return Reply(status, (_CONTENT_TYPES[form], *headers), _ENCODE[form](body))


async def answer_sized(
    request: Request, size: int, make: Callable[[str], Any], status: int = 200, *headers: Header
) -> Reply:
    """The reply with the body that ``make`` makes for a form, out of ``size`` bytes of values.

    Values in msgpack are parsed and encoded again, which takes a while if there are many.
    """
    form = request.form
    # Others read their values while this one waits for its thread.
    request.hold(size)
    body = await run_sized(size, lambda: _ENCODE[form](make(form)))
    return Reply(status, (_CONTENT_TYPES[form], *headers), body)


class MsgpackArray:
    """A msgpack body that is a map of one array. It is gathered part by part, and bounded while it grows.

    The array begins with its length, so it cannot be streamed. It is gathered as bytes, because a million rows would
    take ten times the room as Python objects.
    """

    def __init__(self, name: str, request: Request) -> None:
        self._name = name
        self._request = request
        self._limits = request.state.limits
        self._count = 0
        self._parts = bytearray()

    def extend(self, items: Sequence[Any]) -> None:
        """Add items. Raises Problem ``answer-too-large``, or ``overloaded`` if there is no room for them now."""
        self._count += len(items)
        self._parts += b"".join(map(_ENCODE[MSGPACK_MEDIA_TYPE], items))
        for found, limit, what in (
            (self._count, self._limits.answer_points_max, self._name),
            (len(self._parts), self._limits.body_bytes_max, f"bytes of {self._name}"),
        ):
            if found > limit:
                detail = f"an answer in msgpack has at most {limit} {what}: ask for fewer, or for a streamed form"
                raise Problem("answer-too-large", detail, limit=limit)
        self._request.hold(len(self._parts))

    def body(self) -> bytes:
        """The whole body."""
        # The head is that of an array of as many items, each of one byte.
        head = msgspec.msgpack.encode({self._name: [None] * self._count})
        return head[: len(head) - self._count] + self._parts


def wire_value(value: Value, form: str) -> tuple[Raw, EncodingLabel | UnsetType]:
    """A value as the members ``value`` and ``encoding`` (absent for JSON) of a body.

    In msgpack, a JSON value stays JSON text, with encoding ``json``, if it has an integer beyond 64 bits, or a number
    that would become 0.
    """
    encoding, data = value
    if encoding is Encoding.JSON:
        if form == JSON_MEDIA_TYPE:
            return _stored_text(data), UNSET
        parsed = _stored_json(data)
        try:
            check_numbers(data)
            return Raw(msgspec.msgpack.encode(parsed)), UNSET
        except (InvalidJSON, OverflowError):
            return Raw(msgspec.msgpack.encode(data)), "json"
    label: EncodingLabel = encoding.label  # type: ignore[assignment]
    # msgspec writes bytes as a base64 string in JSON, and unchanged in msgpack.
    return Raw(_ENCODE[form](data)), label


@of_storage("a value")
def _stored_text(data: bytes) -> Raw:
    """JSON text as it was stored: if it were none, all of the body that it is written into would be none."""
    if not data.isascii():
        data.decode()
    return _TEXT(data)


_TEXT: Final = msgspec.json.Decoder(Raw).decode
_stored_json: Final = of_storage("a value")(msgspec.json.decode)


# --- requests ----------------------------------------------------------------------------------------------


def body_form(request: Request, forms: Sequence[str] = JSON_FORMS) -> str:
    """The media type of the body, which is one of ``forms``. It is JSON if the request names none.

    Raises Problem ``unsupported-media-type``. A page of another origin must name the type, because a browser sends a
    body without a type for any page, and does not first ask the service whether the page may.
    """
    media_type = _named_type(request)
    if media_type is None:
        if is_cross_origin(request.fields):
            raise Problem("unsupported-media-type", "a page of another origin must name the Content-Type of the body")
        return JSON_MEDIA_TYPE
    if media_type.essence not in forms:
        raise Problem("unsupported-media-type", f"send one of {', '.join(forms)} as Content-Type")
    return media_type.essence


def _named_type(request: Request) -> ContentType | None:
    """The media type of the body, if the request names one. A form is refused."""
    media_type = request.content_type
    if media_type is not None and media_type.is_form:
        raise form_refused(f"-H 'Content-Type: {JSON_MEDIA_TYPE}', if the body is JSON")
    return media_type


async def read_body(request: Request, shape: type[BodyT]) -> BodyT:
    """The JSON or msgpack body as a ``shape``.

    Raises Problem ``malformed-body``, ``invalid-body`` (with ``pointer``), ``nesting-too-deep``,
    ``unsupported-media-type`` or ``body-too-large``.
    """
    form = body_form(request)
    body = await request.body()
    await request.begin_turn(len(body))
    return await run_sized(len(body), decode_body, body, form, shape)


async def read_optional_body(request: Request, shape: type[BodyT]) -> BodyT | None:
    """Like :func:`read_body`, but None if the request has no body or an empty one."""
    _named_type(request)
    body = await request.body()
    return decode_body(body, body_form(request), shape) if body else None


def decode_body(body: bytes, form: str, shape: type[BodyT]) -> BodyT:
    """The body as a ``shape``. Raises the problems of :func:`read_body` that do not depend on the request."""
    try:
        if form == JSON_MEDIA_TYPE and not body.isascii():
            body.decode()
        decoded: BodyT = _decoder(form, shape).decode(body)  # type: ignore[arg-type]
        _check_members(body, form, _envelope(shape))  # type: ignore[arg-type]
    except msgspec.ValidationError as error:
        detail, pointer = shape_failure(error, shape)
        raise Problem("invalid-body", detail, pointer=pointer) from None
    except RecursionError:
        raise Problem("nesting-too-deep", "the body is nested deeper than any value may be") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        members = ", ".join(field.encode_name for field in msgspec.structs.fields(shape))  # type: ignore[arg-type]
        hint = f"; an object with members of {members} is expected" if is_blank(body) else ""
        raise Problem("malformed-body", decoding_failure(error, body, "the body") + hint) from None
    return decoded


@lru_cache(maxsize=64)
def _decoder(form: str, shape: Any) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    return msgspec.json.Decoder(shape) if form == JSON_MEDIA_TYPE else msgspec.msgpack.Decoder(shape)


class _Envelope(NamedTuple):
    """The names of all members of a shape and of its parts, and the members that are arrays of parts."""

    names: tuple[bytes, ...]
    parts: dict[str, _Envelope]


@lru_cache(maxsize=64)
def _envelope(shape: Any) -> _Envelope:
    return _envelope_of(msgspec.inspect.type_info(shape))


def _envelope_of(kind: msgspec.inspect.Type) -> _Envelope:
    assert isinstance(kind, msgspec.inspect.StructType)
    names = [b'"%b"' % field.encode_name.encode() for field in kind.fields]
    parts: dict[str, _Envelope] = {}
    for field in kind.fields:
        item = field.type.item_type if isinstance(field.type, msgspec.inspect.ListType) else None
        for struct in item.types if isinstance(item, msgspec.inspect.UnionType) else (item,):
            if isinstance(struct, msgspec.inspect.StructType):
                parts[field.encode_name] = _envelope_of(struct)
                names += parts[field.encode_name].names
    return _Envelope(tuple(dict.fromkeys(names)), parts)


_ITEMS: Final = {
    JSON_MEDIA_TYPE: msgspec.json.Decoder(list[Raw]).decode,
    MSGPACK_MEDIA_TYPE: msgspec.msgpack.Decoder(list[Raw]).decode,
}


def _check_members(body: bytes, form: str, envelope: _Envelope) -> None:
    """Raise Problem ``invalid-body`` if a member occurs twice in one object. The decoder has kept only the last."""
    # A name that occurs once in the whole body is in no object twice. An escape could hide another occurrence.
    if form != JSON_MEDIA_TYPE or b"\\" in body or any(body.count(name) > 1 for name in envelope.names):
        _check_object(body, form, envelope, "")


def _check_object(raw: bytes | Raw, form: str, envelope: _Envelope, pointer: str) -> None:
    try:
        found = members_of(raw, form)
    except InvalidJSON as error:
        raise Problem("invalid-body", str(error), pointer=pointer) from None
    for name, part in envelope.parts.items():
        for index, item in enumerate(_ITEMS[form](found[name]) if name in found else ()):
            if _is_object(item, form):
                _check_object(item, form, part, f"{pointer}/{name}/{index}")


def _is_object(raw: Raw, form: str) -> bool:
    first = memoryview(raw)[0]
    return first == 0x7B if form == JSON_MEDIA_TYPE else 0x80 <= first <= 0x8F or first >= 0xDE


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
