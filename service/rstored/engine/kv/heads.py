"""Key/value pairs: what the head of a pair says."""

from __future__ import annotations

import binascii
import functools
import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Final

from rstore.core.encodings import Encoding, Value
from rstored.backends.abc import Head, Place
from rstored.engine.model import Entry
from rstored.problems import damaged, of_storage

__all__ = ["entry_of", "entry_without_value", "etag_of", "packed_meta", "present", "size_of", "unexpired"]

_ETAG_LENGTH: Final = 22
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_SIZE: Final = struct.Struct(">I")
_ENCODINGS: Final = tuple(Encoding)
# Whatever goes from here into the head of an answer must be fit for it.
_META: Final = re.compile(rb"([A-Za-z0-9_-]{%d})([\0-\3])(.{4})([ -~]+/[\t -~]+)" % _ETAG_LENGTH, re.DOTALL)


def packed_meta(value: Value, media_type: str, salt: str) -> bytes:
    """ETag, encoding, size and media type of a value. The ETag is a hash of media type, salt and content."""
    name, begun = _begun(media_type)
    digest = begun.copy()
    digest.update(b"%b\0" % salt.encode())
    digest.update(value.data)
    etag = binascii.b2a_base64(digest.digest(), newline=False)[:_ETAG_LENGTH].translate(_URL_SAFE)
    return b"%b%c%b%b" % (etag, value.encoding, _SIZE.pack(len(value.data)), name)


@of_storage("a key's record")
def etag_of(head: Head) -> str:
    """The ETag of the pair."""
    etag, _, _, _ = _parts(head.meta)
    return etag.decode()


@of_storage("a key's record")
def size_of(head: Head) -> int:
    """How many bytes the value has, even if it was not read."""
    _, _, size, _ = _parts(head.meta)
    return int.from_bytes(size)


@of_storage("a key's record")
def entry_without_value(head: Head) -> Entry:
    """The entry of a head that was read without its value."""
    etag, encoding, _, media_type = _parts(head.meta)
    return Entry(Value(_ENCODINGS[encoding[0]], head.value), media_type.decode(), etag.decode(), head.expires_ms)


@of_storage("a key's record")
def entry_of(head: Head) -> Entry:
    """The entry of a head. Its value must be as long as its meta says."""
    etag, encoding, size, media_type = _parts(head.meta)
    if len(head.value) != int.from_bytes(size):
        raise damaged("a key's value")
    return Entry(Value(_ENCODINGS[encoding[0]], head.value), media_type.decode(), etag.decode(), head.expires_ms)


def unexpired(head: Head | None, now: int) -> Head | None:
    """The head; None if it has expired, or there is none."""
    return None if head is None or (head.expires_ms is not None and head.expires_ms <= now) else head


def present(places: Sequence[Place], heads: Sequence[Head | None], now: int) -> list[tuple[str, Entry]]:
    """The entries among the heads, with their keys."""
    return [
        (place.key, entry_of(head))
        for place, head in zip(places, heads, strict=True)
        if head is not None and (head.expires_ms is None or head.expires_ms > now)
    ]


@functools.lru_cache(maxsize=64)
def _begun(media_type: str) -> tuple[bytes, hashlib.blake2b]:
    """The media type as bytes, and a hash that has read them. Beginning a hash takes longer than a short value does."""
    name = media_type.encode()
    return name, hashlib.blake2b(b"%b\0" % name, digest_size=16)


def _parts(meta: bytes) -> tuple[bytes, ...]:
    """ETag, encoding, size and media type, as :func:`packed_meta` put them together."""
    found = _META.fullmatch(meta)
    if found is None:
        raise ValueError("not the meta of a key")
    return found.groups()
