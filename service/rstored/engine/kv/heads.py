"""Key/value pairs: what the head of a pair says."""

from __future__ import annotations

import binascii
import functools
import hashlib
import re
import string
import struct
from collections.abc import Sequence
from typing import Final

from rstore.core.encodings import Encoding, Value
from rstored.backends.abc import Head, Place
from rstored.engine.model import Entry
from rstored.problems import of_storage

_ETAG_LENGTH: Final = 22
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_IN_ETAGS: Final = (string.ascii_letters + string.digits + "-_").encode()
# ETag, encoding and size. The media type follows.
_META: Final = struct.Struct(f">{_ETAG_LENGTH}sBI")
_ENCODINGS: Final = tuple(Encoding)
_MEDIA_TYPE: Final = re.compile(rb"[ -~]+/[\t -~]+")


def packed_meta(value: Value, media_type: str, salt: str) -> bytes:
    """ETag, encoding, size and media type of a value. The ETag is a hash of media type, salt and content."""
    name, begun = _begun(media_type)
    digest = begun.copy()
    digest.update(b"%b\0" % salt.encode())
    digest.update(value.data)
    etag = binascii.b2a_base64(digest.digest(), newline=False)[:_ETAG_LENGTH].translate(_URL_SAFE)
    return _META.pack(etag, value.encoding, len(value.data)) + name


def packed_etag(meta: bytes) -> str:
    """The ETag in what :func:`packed_meta` has just made, which needs no check."""
    return meta[:_ETAG_LENGTH].decode()


def etag_of(head: Head) -> str:
    """The ETag of the pair."""
    return entry_of(head, with_value=False).etag


@of_storage("a key's record")
def size_of(head: Head) -> int:
    """How many bytes the value has, even if it was not read."""
    size: int = _META.unpack_from(head.meta)[2]
    return size


@of_storage("a key's record")
def entry_of(head: Head, *, with_value: bool = True) -> Entry:
    """The entry of a head. ``with_value``: whether the head was read with its value, whose length is then checked."""
    meta, data, expires_ms = head
    etag, encoding, size = _META.unpack_from(meta)
    # All parts go into the head of an answer.
    if (with_value and len(data) != size) or etag.translate(None, _IN_ETAGS):
        raise ValueError("not the record of a key")
    return Entry(Value(_ENCODINGS[encoding], data), _media_type(meta[_META.size :]), etag.decode(), expires_ms)


def unexpired(head: Head | None, now: int) -> Head | None:
    """The head; None if it has expired, or there is none."""
    return None if head is None or (head.expires_ms is not None and head.expires_ms <= now) else head


def present(places: Sequence[Place], heads: Sequence[Head | None], now: int) -> list[tuple[str, Entry]]:
    """The entries among the heads, with their keys."""
    return [
        (place.key, entry_of(head))
        for place, found in zip(places, heads, strict=True)
        if (head := unexpired(found, now)) is not None
    ]


@functools.lru_cache(maxsize=64)
def _begun(media_type: str) -> tuple[bytes, hashlib.blake2b]:
    """The media type as bytes, and a hash that has read them. Beginning a hash takes longer than a short value does."""
    name = media_type.encode()
    return name, hashlib.blake2b(b"%b\0" % name, digest_size=16)


@functools.lru_cache(maxsize=64)
def _media_type(name: bytes) -> str:
    if _MEDIA_TYPE.fullmatch(name) is None:
        raise ValueError("not a media type")
    return name.decode()
