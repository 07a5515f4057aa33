"""How the keys of Redis hold a store.

**The model.** Namespaces are records of the *registry*, whose keys all carry the tag ``{prefix}``. A namespace has a
random id that is never used again, and ``buckets`` buckets. A record lives in the bucket that the CRC16 of its key
picks, or of the ``{part}`` of it in braces (Redis Cluster's own rule, so users can keep keys together). The tag of a
bucket is ``{prefix/id/bucket}``. All its keys carry the tag, so they are in one slot. T is the
tag of the registry or of a bucket:

    T:h:<kind>:<key>          hash: ``h`` the head (version 8 bytes, expiry 8 bytes, meta), ``v`` the value if it is not
                              empty, ``l`` the lanes that were ever used (``0,2``); of a namespace ``i``: its id
    T:i:<kind>                sorted set of keys, all of score 0: listed by ZRANGEBYLEX, counted by ZCARD
    T:x:<kind>                sorted set of expiry ‖ key, all of score 0
    T:s:<kind>:<lane>:<key>   sorted set of the rows' ``sort``, all of score 0
    T:b:<kind>:<lane>:<key>   sorted set of the rows' ``by``, all of score 0
    T:d:<kind>:<lane>:<key>   hash of the rows: ``s``+sort → value, ``y``+sort → by, ``b``+by → sort
    T:ns                      hash in each bucket: ``h`` a copy of the namespace's head, ``n`` its name. It exists as
                              long as the namespace: it shows whether the namespace still has this id.

    {prefix}:store            hash: the version of this layout, the number of buckets, and ``h``: the store's id, of 8
                              random bytes; the first process fixes all of them
    {prefix}:trash            set of ids whose buckets have not been erased yet
    {prefix}:due              sorted set of buckets (id/bucket) that have records with an expiry, by a time in ms before
                              which none of them expires
    {prefix}:pending          sorted set of ids that are being made (cluster), by when in seconds
    {prefix}:unsettled        set of names whose new head may not yet be in every bucket (cluster)

Members of one score give the order. Scores do not, because they are doubles, which cannot tell int64 apart beyond 2^53.
"""

from __future__ import annotations

import struct
from binascii import crc_hqx
from typing import Final

from rstored.backends.abc import Head, Kind, Place
from rstored.problems import of_storage

ABSENT: Final = b""
"""The version of a record that does not exist."""

_NEVER: Final = bytes(8)
_SIGN: Final = 2**63
U64: Final = struct.Struct(">Q")
EXACT: Final = 2**53


class Bucket:
    """A part of a namespace in one slot, or the registry, which has no ``ns_key``.

    ``life_key`` is the key that exists as long as the namespace or the store does.
    """

    __slots__ = ("life_key", "ns_key", "slot", "tag")

    def __init__(self, tag: bytes, slot: int, ns_key: bytes = b"") -> None:
        self.tag = tag
        self.slot = slot
        self.ns_key = ns_key
        self.life_key = ns_key or tag + b":store"

    def record_key(self, kind: int, key: bytes) -> bytes:
        return b"%b:h:%d:%b" % (self.tag, kind, key)


class Owner:
    """A namespace that exists, or the registry, which owns the namespaces."""

    __slots__ = ("buckets", "id", "name")

    def __init__(self, name: str, owner_id: bytes, buckets: list[Bucket]) -> None:
        self.name = name
        self.id = owner_id
        self.buckets = buckets

    def bucket(self, place: Place) -> Bucket:
        buckets = self.buckets
        return buckets[0] if len(buckets) == 1 else buckets[record_hash(place) & (len(buckets) - 1)]


def record_hash(place: Place) -> int:
    """The CRC16 of the key, or of the first ``{part}`` in braces that is not empty."""
    key = (place.key.partition(" ")[2] if place.kind is Kind.WRITE else place.key).encode()
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0)


def bounds(low: bytes | None, high: bytes | None) -> tuple[bytes, bytes]:
    """Both bounds, inclusive, in the form of ZRANGEBYLEX.

    >>> bounds(b"a", None)
    (b'[a', b'+')
    """
    return b"-" if low is None else b"[" + low, b"+" if high is None else b"[" + high


@of_storage("a record")
def unpacked(packed: bytes, value: bytes) -> Head:
    return Head(packed[16:], value, unpacked_expiry(packed[8:16]))


@of_storage("when a record expires")
def unpacked_expiry(packed: bytes) -> int | None:
    return None if packed == _NEVER else U64.unpack(packed)[0] - _SIGN


def packed_expiry(expires_ms: int | None) -> bytes:
    return _NEVER if expires_ms is None else U64.pack(expires_ms + _SIGN)


def expiry_bound(expires_ms: int) -> bytes:
    """The exclusive bound below which everything is that expires before this moment."""
    return b"+" if expires_ms >= _SIGN else b"(" + packed_expiry(expires_ms)


def due_member(bucket: Bucket) -> bytes:
    """The name of a bucket in ``due``: id/number. The registry has the empty name."""
    return bucket.tag[bucket.tag.index(b"/") + 1 : -1] if bucket.ns_key else b""
