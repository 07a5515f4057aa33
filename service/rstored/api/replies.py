"""What an endpoint returns: a status, headers that are ready to send, and a body that is whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, TypeAlias

__all__ = ["NO_CONTENT", "ON_ALL", "Header", "Reply", "content_type"]

Header: TypeAlias = tuple[bytes, bytes]

# No answer is to be guessed at, kept by whatever stands between, told of to the next site, shown in a frame, or
# embedded by a page of another site. Browsers obey the last two also where they say nothing of the page.
ON_ALL: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-site"),
)


class Reply:
    """An answer. ``body`` is the bytes, or a generator of chunks that the front door sends and always closes.

    The front door adds ``Content-Length`` (of a whole body) and ``X-Request-Id``; everything else is in ``headers``.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, status: int, headers: tuple[Header, ...] = (), body: bytes | AsyncGenerator[bytes, None] = b""
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def content_type(media_type: str) -> Header:
    """The Content-Type header of a media type that is known to be printable ASCII."""
    return (b"content-type", media_type.encode("ascii"))


NO_CONTENT: Final = Reply(204)
