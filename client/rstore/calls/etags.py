"""ETags: those in headers and bodies, and those that callers give."""

from __future__ import annotations

import re
from typing import Final

from rstore.calls.answers import malformed
from rstore.core.errors import StoreRequestError

_ETAG: Final = re.compile(r'"([\x21\x23-\x7e]{1,256})"\Z')
_BARE_ETAG: Final = re.compile(r"[\x21\x23-\x7e]{1,256}\Z")


def bare_etag(text: str) -> str:
    """The ETag without quotes. A header or a body may have it with or without them."""
    if _BARE_ETAG.match(text):
        return text
    match = _ETAG.match(text)
    if match is None:
        malformed("an ETag is malformed")
    return match[1]


def condition(etag: str) -> str:
    """The header for an ETag that a caller gives, or for ``*``."""
    if not _BARE_ETAG.match(etag):
        message = "if_match is an ETag, 1 to 256 visible ASCII characters without quotes, or *"
        raise StoreRequestError(message, code="invalid-parameter")
    return etag if etag == "*" else f'"{etag}"'
