"""The parts of requests: targets, headers, and values in JSON bodies."""

from __future__ import annotations

import base64
import uuid
from typing import Final
from urllib.parse import quote

import msgspec

from rstore.core.encodings import Encoding, Value
from rstore.core.media_types import JSON_MEDIA_TYPE

ACCEPT_JSON: Final = ((b"accept", JSON_MEDIA_TYPE.encode()),)
JSON_BODY: Final = ((b"content-type", JSON_MEDIA_TYPE.encode()), (b"accept", JSON_MEDIA_TYPE.encode()))
_DOTS: Final = {".": "%2E", "..": "%2E%2E"}


def target_of(namespace: str, kind: str, key: str | None = None, part: str = "", query: str = "") -> str:
    """The target of a request for a kind of records, for one of them, or for a part of that one."""
    path = f"/ns/{segment(namespace)}/{kind}"
    if key is not None:
        path += f"/{segment(key)}"
    return f"{path}/{part}{query}" if part else path + query


def segment(key: str) -> str:
    """A key as one path segment. It escapes a dot segment too, which a URL library would otherwise resolve."""
    return _DOTS.get(key) or quote(key, safe="")


def query_string(**parameters: str | float | None) -> str:
    """A query string of the parameters that are not None."""
    pairs = [f"{name}={quote(str(value), safe='')}" for name, value in parameters.items() if value is not None]
    return "?" + "&".join(pairs) if pairs else ""


def once() -> tuple[tuple[bytes, bytes], ...]:
    """The header by which the service recognises a write that is sent again."""
    return ((b"idempotency-key", uuid.uuid4().hex.encode()),)


def value_members(value: Value) -> tuple[msgspec.Raw | str, str | msgspec.UnsetType]:
    """The members ``value`` and ``encoding`` by which a value stands in a body."""
    encoding, data = value
    if encoding is Encoding.JSON:
        return msgspec.Raw(data), msgspec.UNSET
    return base64.b64encode(data).decode("ascii"), encoding.label
