"""A request: what arrived, what the front door adds to it for an endpoint, and its body, which is read with a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from rstored.api.access import NOBODY, Grant, denied
from rstored.api.media_types import ContentType, parse_content_type
from rstored.api.replies import CLOSE, ON_ALL, Header, Reply
from rstored.api.state import ServiceState
from rstored.engine.engine import Engine
from rstored.engine.model import Access
from rstored.problems import Problem

# It returns the next part of the body, and whether more follows. Raises ClientGone.
Receive: TypeAlias = Callable[[], Awaitable[tuple[bytes, bool]]]

DEFAULT_NAMESPACE: Final = "default"

# The number of requests bounds bodies and answers up to this size. Larger ones are counted.
UNCOUNTED_BYTES_MAX: Final = 64 * 2**10

# Bodies up to this size do not wait for a turn.
_SHORT_BODY_BYTES: Final = 16 * 2**10

# Lists may arrive as several fields, which are joined. Any other field that is repeated then fails to parse.
_JOINED: Final = b", "


class ClientGone(Exception):
    """The client closed the connection before its request was complete. Nobody waits for an answer."""


class Request:
    """One request. A server makes it from what arrived. ``raw_path`` and ``query_string`` are as the client sent them,
    ``fields`` are those of :func:`joined_fields`, ``receive`` returns the body, and ``client`` is the address of the
    client.

    The front door sets the rest. ``namespace`` and ``key`` are checked names, and a route without a namespace means the
    default one. ``grant`` says what the client may do. ``form`` is the media type of the answer, out of those that the
    operation offers. ``body_unread`` is true while nobody has read the body to its end. ``on_all`` has the headers that
    every answer gets. ``late`` is the problem of a request that took too long. Then its ``task`` is cancelled, which
    the server sets as soon as there is one. The request is counted under the path and method of ``route``, and logged
    with the namespace ``subject``.
    """

    __slots__ = (
        "_body_bytes",
        "_body_since",
        "_bytes_held",
        "_turn_bytes",
        "_window",
        "body_unread",
        "client",
        "engine",
        "fields",
        "form",
        "grant",
        "id",
        "is_tls",
        "key",
        "late",
        "method",
        "namespace",
        "on_all",
        "query_string",
        "raw_path",
        "receive",
        "route",
        "started",
        "state",
        "subject",
        "task",
    )

    engine: Engine
    state: ServiceState

    def __init__(
        self,
        method: str,
        raw_path: bytes,
        query_string: bytes,
        fields: dict[bytes, bytes],
        receive: Receive,
        client: str = "",
        *,
        is_tls: bool = False,
    ) -> None:
        self.started = time.perf_counter()
        self.method = method
        self.raw_path = raw_path
        self.query_string = query_string
        self.fields = fields
        self.client = client
        self.is_tls = is_tls
        self.id = b""
        self.namespace = DEFAULT_NAMESPACE
        self.key = ""
        self.grant: Grant = NOBODY
        self.form = ""
        self.body_unread = b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
        self.on_all: tuple[Header, ...] = ON_ALL
        self.task: asyncio.Task[Any] | None = None
        self.late: Problem | None = None
        self.route: tuple[str, str] | None = None
        self.subject: str | None = None
        self.receive = receive
        self._bytes_held = 0
        self._turn_bytes = 0
        self._body_bytes = 0
        self._body_since: float | None = None
        self._window = (0.0, 0)

    def headers_of(self, reply: Reply) -> list[Header]:
        """The headers of the reply, and those of this request alone. The answer also has those of ``on_all``, and what
        says how long its body is."""
        headers = [*reply.headers, (b"x-request-id", self.id)]
        if self.body_unread and (reply.status >= 400 or b"expect" in self.fields) and not self._body_is_short:
            headers.append(CLOSE)
        return headers

    def hold(self, size: int) -> None:
        """Count ``size`` bytes of this request or its answer as held until it ends.

        Small sizes are not counted, because the number of requests bounds them. Raises Problem ``overloaded`` if there
        is no room in all or for this client.
        """
        more = size - self._bytes_held
        if size <= UNCOUNTED_BYTES_MAX or more <= 0:
            return
        state = self.state
        of_client = state.bytes_held_of.get(self.client, 0) + more
        if state.bytes_held + more > state.limits.in_flight_bytes_max:
            raise Problem("overloaded", "the bodies and answers under way leave too little memory for it: try again")
        if of_client > state.limits.in_flight_bytes_per_client_max:
            raise Problem("overloaded", "this client's bodies and answers leave too little memory for it: try again")
        state.bytes_held += more
        state.bytes_held_of[self.client] = of_client
        self._bytes_held = size

    def release(self) -> None:
        """Release what :meth:`hold` has counted."""
        if not self._bytes_held:
            return
        state = self.state
        state.bytes_held -= self._bytes_held
        of_client = state.bytes_held_of.pop(self.client) - self._bytes_held
        if of_client:
            state.bytes_held_of[self.client] = of_client
        self._bytes_held = 0

    async def begin_turn(self, size: int) -> None:
        """Return when a body of ``size`` bytes may be parsed. A long body keeps its turn until the answer is made.

        Only a bounded number of bytes of long bodies is worked on at once. A parsed body takes many times its size, and
        a batch with many long ones would keep others waiting.
        """
        if size > _SHORT_BODY_BYTES and not self._turn_bytes:
            await self.state.long_bodies.begin(size)
            self._turn_bytes = size

    def end_turn(self) -> None:
        """End the turn: the answer is made, or there will be none."""
        size, self._turn_bytes = self._turn_bytes, 0
        if size:
            self.state.long_bodies.end(size)

    def lateness(self, now: float) -> Problem | None:
        """The problem of a request that takes too long, or whose body arrives too slowly; otherwise None.

        It is called again and again. The rate of the body is measured between two calls.
        """
        limits = self.state.limits
        if now - self.started > limits.request_seconds_max:
            return Problem(
                "deadline-exceeded",
                f"the request took longer than {limits.request_seconds_max} seconds, and a write may have taken place",
                limit=limits.request_seconds_max,
            )
        since = self._body_since
        if since is None:
            return None
        if now - since > limits.body_seconds_max:
            return Problem("request-timeout", f"the body did not arrive within {limits.body_seconds_max} seconds")
        window_start, bytes_then = self._window
        if now - max(window_start, since) > limits.stall_seconds_max:
            least = limits.transfer_bytes_per_second_min
            if self._body_bytes - bytes_then < least * limits.stall_seconds_max:
                return Problem("request-timeout", f"the body arrived at less than {least} bytes a second")
            self._window = (now, self._body_bytes)
        return None

    def require(self, access: Access) -> None:
        """Raise Problem ``access-denied`` unless the client has this access to the namespace."""
        if not self.grant.allows(self.namespace, access):
            raise denied()

    def header(self, name: bytes) -> str | None:
        """The value of a header field, or None. ``name`` is lower case."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def content_type(self) -> ContentType | None:
        """The Content-Type, or None if there is none. Raises Problem ``unsupported-media-type``."""
        value = self.fields.get(b"content-type")
        return parse_content_type(value.decode("latin-1")) if value is not None else None

    async def body(self, size_max: int | None = None, code: str = "body-too-large", *, frames: bool = False) -> bytes:
        """The whole body. Raises Problem ``code`` as soon as it exceeds ``size_max`` bytes.

        The limit on bodies, or on those of points ``frames``, holds in any case. Raises Problem ``overloaded`` if all
        bodies together are too large, and :class:`ClientGone` if the client goes away before the body has arrived. The
        front door ends a request that takes too long.
        """
        if self.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem(
                "unsupported-media-type",
                "Content-Encoding: the service takes only identity; send the body without compression",
            )
        if self.fields.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise Problem(
                "unsupported-media-type",
                "Transfer-Encoding: the service takes only chunked; send the body without compression",
            )
        limits = self.state.limits
        body_max = limits.frames_bytes_max if frames else limits.body_bytes_max
        if size_max is None or size_max > body_max:
            size_max, code = body_max, "body-too-large"
        if not self.body_unread:
            return b""
        announced = self.fields.get(b"content-length")
        if announced is not None and (not announced.isdigit() or int(announced) > size_max):
            raise _too_large(code, size_max)
        received = bytearray()
        self._body_since = time.perf_counter()
        while True:
            chunk, more = await self.receive()
            self._body_bytes = len(received) + len(chunk)
            if self._body_bytes > size_max:
                raise _too_large(code, size_max)
            self.hold(self._body_bytes)
            if not more:
                self.body_unread = False
                self._body_since = None
                if not received:
                    return chunk
                received += chunk
                return bytes(received)
            received += chunk

    @property
    def _body_is_short(self) -> bool:
        """Whether the announced body is so short that reading it is quicker than closing the connection."""
        size = self.fields.get(b"content-length", b"")
        return size.isdigit() and int(size) <= UNCOUNTED_BYTES_MAX and b"expect" not in self.fields


def _too_large(code: str, size_max: int) -> Problem:
    what = "value" if code == "value-too-large" else "body"
    return Problem(code, f"the {what} is larger than {size_max} bytes", limit=size_max)


def joined_fields(headers: list[Header]) -> dict[bytes, bytes]:
    """The header fields by name. The values of a field that is repeated are joined with a comma.

    >>> joined_fields([(b"accept", b"a/b"), (b"accept", b"c/d")])
    {b'accept': b'a/b, c/d'}
    """
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = {}
        for name, value in headers:
            fields[name] = fields[name] + _JOINED + value if name in fields else value
    return fields
