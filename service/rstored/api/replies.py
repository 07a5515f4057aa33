"""What an endpoint returns: a status, headers that are ready to send, and a whole or streamed body."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]

# A browser must not guess the type of an answer, send its address to the next site, show it in a frame, or embed it in
# a page of another site. No cache may keep it.
ON_ALL: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-site"),
)
# The connection ends with this answer.
CLOSE: Final[Header] = (b"connection", b"close")

# The status of a reply that nobody gets, because the client is gone. Only metrics and log show it.
CLIENT_GONE: Final = 499
_WITHOUT_BODY: Final = frozenset({204, 304})


class Reply:
    """An answer. ``body`` is bytes, or a generator of chunks, which the front door always closes.

    ``begun`` has the first chunks of a generator that has begun. The server adds the headers of
    :meth:`~rstored.api.requests.Request.headers_of`, and those that say where the body ends.
    """

    __slots__ = ("begun", "body", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: tuple[Header, ...] = (),
        body: bytes | AsyncGenerator[bytes, None] = b"",
        begun: tuple[bytes, ...] = (),
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.begun = begun

    @property
    def has_length(self) -> bool:
        """Whether it has a Content-Length for its whole body (RFC 9110, 8.6)."""
        return self.status not in _WITHOUT_BODY


def content_type(media_type: str) -> Header:
    """The Content-Type header for a media type of printable ASCII."""
    return (b"content-type", media_type.encode("ascii"))


NO_CONTENT: Final = Reply(204)
