"""What an endpoint returns: a status, headers that are ready to send, and a body that is whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final, TypeAlias

__all__ = ["CLIENT_GONE", "NO_CONTENT", "ON_ALL", "Header", "Reply", "content_type"]

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


# The status of a reply that nobody gets, since the client is gone; it stands in metrics and log alone.
CLIENT_GONE: Final = 499
_WITHOUT_BODY: Final = frozenset({204, 304})


class Reply:
    """An answer. ``body`` is the bytes, or a generator of chunks, which the front door always closes.

    ``begun`` are the first chunks of a generator that has begun. What is written also has the headers of
    :meth:`~rstored.api.requests.Request.headers_of`, and what says where the body ends.
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
        """Whether it says how long its whole body is (RFC 9110, 8.6)."""
        return self.status not in _WITHOUT_BODY


def content_type(media_type: str) -> Header:
    """The Content-Type header of a media type that is known to be printable ASCII."""
    return (b"content-type", media_type.encode("ascii"))


NO_CONTENT: Final = Reply(204)
