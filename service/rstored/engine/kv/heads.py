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
_SIZE_AT: Final = _ETAG_LENGTH + 1
_MEDIA_TYPE_AT: Final = _SIZE_AT + 4
_ENCODINGS: Final = tuple(Encoding)
_META: Final = re.compile(rb"[A-Za-z0-9_-]{%d}[\0-\3].{4}[ -~]+/[\t -~]+" % _ETAG_LENGTH, re.DOTALL)


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
    return _sound(head.meta)[:_ETAG_LENGTH].decode()


@of_storage("a key's record")
def size_of(head: Head) -> int:
    """How many bytes the value has, even if it was not read."""
    size: int = _SIZE.unpack_from(_sound(head.meta), _SIZE_AT)[0]
    return size


@of_storage("a key's record")
def entry_without_value(head: Head) -> Entry:
    """The entry of a head that was read without its value."""
    meta = _sound(head.meta)
    value = Value(_ENCODINGS[meta[_ETAG_LENGTH]], head.value)
    return Entry(value, meta[_MEDIA_TYPE_AT:].decode(), meta[:_ETAG_LENGTH].decode(), head.expires_ms)


def entry_of(head: Head) -> Entry:
    """The entry of a head. Its value must be as long as its meta says."""
    entry = entry_without_value(head)
    if len(head.value) != size_of(head):
        raise damaged("a key's value")
    return entry


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


def _sound(meta: bytes) -> bytes:
    """The meta, which is as :func:`packed_meta` makes it: what it holds goes into the head of an answer."""
    if _META.fullmatch(meta) is None:
        raise ValueError("not the meta of a key")
    return meta
