"""What an endpoint sees of a request: the place it names, its headers, and its body, read under a bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from rstored.api.media_types import ContentType, parse_content_type
from rstored.api.state import State
from rstored.engine.engine import Engine
from rstored.problems import Problem

__all__ = ["DEFAULT_NAMESPACE", "ClientGone", "Receive", "Request", "header_fields"]

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

DEFAULT_NAMESPACE: Final = "default"

# Lists that may arrive as several fields; a repeat of any other field is joined too and then fails to parse.
_JOINED: Final = b", "


class ClientGone(Exception):
    """The client closed the connection before its request was complete; there is nobody to answer."""


def header_fields(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The header fields by lower-case name; the values of a repeated field are joined with a comma."""
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = {}
        for name, value in headers:
            fields[name] = fields[name] + _JOINED + value if name in fields else value
    return fields


class Request:
    """One request. ``namespace`` and ``key`` are checked names; a route without a namespace means the default one.

    ``fields`` are the header fields by lower-case name. ``form`` is the media type that the answer shall have, out
    of those that the operation offers. ``body_unread`` is true while there is a body that nobody has read to its end.
    """

    __slots__ = ("_receive", "body_unread", "engine", "fields", "form", "id", "key", "namespace", "state")

    def __init__(self, state: State, fields: dict[bytes, bytes], receive: Receive, request_id: bytes) -> None:
        self.state = state
        self.engine: Engine = state.engine
        self.fields = fields
        self.id = request_id
        self.namespace = DEFAULT_NAMESPACE
        self.key = ""
        self.form = ""
        self.body_unread = b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
        self._receive = receive

    def header(self, name: bytes) -> str | None:
        """The value of a header field, or None. ``name`` is lower case."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def content_type(self) -> ContentType | None:
        """The Content-Type, or None if there is none; raises Problem ``unsupported-media-type``."""
        value = self.fields.get(b"content-type")
        return parse_content_type(value.decode("latin-1")) if value is not None else None

    async def body(self, size_max: int | None = None, code: str = "body-too-large") -> bytes:
        """The whole body. Raises Problem ``code`` as soon as it is known to exceed ``size_max`` bytes.

        The limit on bodies holds in any case. Raises Problem ``request-timeout`` if the body takes too long to
        arrive, and :class:`ClientGone` if the client goes away before it has.
        """
        if self.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem("unsupported-media-type", "Content-Encoding: only identity is taken; send the body as it is")
        body_max = self.state.limits.body_bytes_max
        if size_max is None or size_max > body_max:
            size_max, code = body_max, "body-too-large"
        if not self.body_unread:
            return b""
        announced = self.fields.get(b"content-length")
        if announced is not None and (not announced.isdigit() or int(announced) > size_max):
            raise _too_large(code, size_max)
        received = bytearray()
        try:
            async with asyncio.timeout(self.state.body_timeout_seconds):
                while True:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        raise ClientGone
                    chunk: bytes = message.get("body", b"")
                    if len(received) + len(chunk) > size_max:
                        raise _too_large(code, size_max)
                    if not message.get("more_body"):
                        self.body_unread = False
                        return bytes(received + chunk) if received else chunk
                    received += chunk
        except TimeoutError:
            seconds = self.state.body_timeout_seconds
            raise Problem("request-timeout", f"the body did not arrive within {seconds:g} seconds") from None

    async def discard_body(self, bytes_max: int, seconds_max: float) -> None:
        """Read on until the body ends, the client goes, or a bound is reached, and forget it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                while bytes_max > 0:
                    message = await self._receive()
                    bytes_max -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        return


def _too_large(code: str, size_max: int) -> Problem:
    what = "value" if code == "value-too-large" else "body"
    return Problem(code, f"the {what} is larger than {size_max} bytes", limit=size_max)
