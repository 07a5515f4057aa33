"""The arguments of the scripts: updates for ``commit.lua``, and the keys that it and ``read.lua`` touch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from rstored.backends.abc import Kind
from rstored.backends.redis.calls import Argument, Script
from rstored.backends.redis.layout import Bucket

READ: Final = Script.load("read.lua")
COMMIT: Final = Script.load("commit.lua")


def packed_update(
    checks: Iterable[tuple[bytes, bytes]], claims: Sequence[Argument], writes: Sequence[Argument]
) -> list[Argument]:
    """One update, in the form of ``commit.lua``."""
    flat = [part for check in checks for part in check]
    counted = [len(flat) // 2, *flat, len(claims) // 3, *claims, *writes]
    return [len(counted), *counted]


def new_copy(bucket: Bucket, head: bytes, name: str) -> tuple[Argument, ...]:
    return "f", bucket.ns_key, "h", head, "f", bucket.ns_key, "n", name


def no_copy(bucket: Bucket) -> tuple[Argument, ...]:
    return "u", bucket.ns_key


_Keys: TypeAlias = tuple[int, Callable[[Sequence[Any]], Iterable[bytes]]]


def _record_keys(arguments: Sequence[Any]) -> list[bytes]:
    tag, kind, key = arguments[:3]
    found = [b"%b:h:%d:%b" % (tag, kind, key), b"%b:i:%d" % (tag, kind)]
    if arguments[-1]:
        found.append(b"%b:x:%d" % (tag, kind))
    return found


def _lane_keys(arguments: Sequence[Any]) -> list[bytes]:
    tag, lane = arguments[:2]
    return [b"%b:%b:%b" % (tag, part, lane) for part in (b"s", b"b", b"d")]


def _scan_keys(arguments: Sequence[Any]) -> list[bytes]:
    tag, lane = arguments[:2]
    kind, _, key = lane.split(b":", 2)
    return [b"%b:h:%b:%b" % (tag, kind, key), *_lane_keys(arguments)]


def _first(arguments: Sequence[Any]) -> Sequence[bytes]:
    return arguments[:1]


def _index_key(arguments: Sequence[Any]) -> list[bytes]:
    return [b"%b:i:%d" % (arguments[0], arguments[1])]


def _kind_keys(arguments: Sequence[Any]) -> list[bytes]:
    return [b"%b:%b:%d" % (arguments[0], part, kind) for kind in Kind for part in (b"i", b"x")]


# By the letter of a read or write: the number of its arguments, and the keys that they mean.
_READS: Final[dict[Any, _Keys]] = {
    **dict.fromkeys("hvip", (1, _first)),
    "b": (2, _first),
    "s": (9, _scan_keys),
    "l": (7, _index_key),
    "c": (2, _kind_keys),
    "x": (3, _kind_keys),
}
_WRITES: Final[dict[Any, _Keys]] = {
    "h": (6, _record_keys),
    "D": (4, _record_keys),
    "r": (6, _lane_keys),
    "d": (3, _lane_keys),
    "R": (4, _lane_keys),
    "f": (3, _first),
    "z": (3, _first),
    **dict.fromkeys("tgZaA", (2, _first)),
    "u": (1, _first),
}


def _keys(meanings: Mapping[Any, _Keys], arguments: Sequence[Argument], found: dict[bytes, None]) -> None:
    position = 0
    while position < len(arguments):
        length, keys = meanings[arguments[position]]
        found.update(dict.fromkeys(keys(arguments[position + 1 : position + 1 + length])))
        position += 1 + length


def read_keys(arguments: Sequence[Argument]) -> Collection[bytes]:
    """The keys that a call of ``read.lua`` touches, without those of the records in a listing."""
    found: dict[bytes, None] = {}
    _keys(_READS, arguments, found)
    return found


def commit_keys(arguments: Sequence[Any]) -> Collection[bytes]:
    """The keys that a call of ``commit.lua`` touches."""
    found: dict[bytes, None] = {}
    position = 0
    while position < len(arguments):
        stop = position + 1 + arguments[position]
        checks_stop = position + 2 + 2 * arguments[position + 1]
        found.update(dict.fromkeys(arguments[position + 2 : checks_stop : 2]))
        _keys(_WRITES, arguments[checks_stop + 1 + 3 * arguments[checks_stop] : stop], found)
        position = stop
    return found
