"""Answers in JSON or msgpack, made from the structs of their shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from rstore.core.media_types import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from rstored.api.replies import Header, Reply, content_type
from rstored.api.requests import Request
from rstored.problems import Problem
from rstored.threads import run_sized

_CONTENT_TYPES: Final[dict[str, Header]] = {form: content_type(form) for form in (JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE)}
_ENCODE: Final = {JSON_MEDIA_TYPE: msgspec.json.Encoder().encode, MSGPACK_MEDIA_TYPE: msgspec.msgpack.Encoder().encode}


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
