"""JSON and msgpack bodies of requests, which are read strictly into the structs of their shapes.

Each shape of ``docs/rest.md`` is one msgspec struct, which decodes it, encodes it and describes it in OpenAPI.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import msgspec.inspect
from msgspec import Raw

from rstore.core.decoding import decoding_failure, is_blank, shape_failure
from rstore.core.encodings import InvalidJSON, members_of
from rstore.core.media_types import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from rstored.api.media_types import JSON_FORMS, ContentType, form_refused
from rstored.api.origins import is_cross_origin
from rstored.api.requests import Request
from rstored.problems import Problem
from rstored.threads import run_sized

BodyT = TypeVar("BodyT")

_ITEMS: Final = {
    JSON_MEDIA_TYPE: msgspec.json.Decoder(list[Raw]).decode,
    MSGPACK_MEDIA_TYPE: msgspec.msgpack.Decoder(list[Raw]).decode,
}


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


class _Envelope(NamedTuple):
    """The names of all members of a shape and of its parts, and the members that are arrays of parts."""

    names: tuple[bytes, ...]
    parts: dict[str, _Envelope]


def _named_type(request: Request) -> ContentType | None:
    """The media type of the body, if the request names one. A form is refused."""
    media_type = request.content_type
    if media_type is not None and media_type.is_form:
        raise form_refused(f"-H 'Content-Type: {JSON_MEDIA_TYPE}', if the body is JSON")
    return media_type


@lru_cache(maxsize=64)
def _decoder(form: str, shape: Any) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    return msgspec.json.Decoder(shape) if form == JSON_MEDIA_TYPE else msgspec.msgpack.Decoder(shape)


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
