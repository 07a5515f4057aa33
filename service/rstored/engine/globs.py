"""Globs over keys, and the one paged listing that keys, series, sequences and namespaces share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from rstored.backends.abc import Head, HeadRead, Kind, Listing, Place, Slice
from rstored.engine.batching import Storage
from rstored.engine.model import Page
from rstored.turns import SHORT

__all__ = ["SCAN_MAX", "Glob", "compile_glob", "list_page"]

SCAN_MAX: Final = 10_000
_CHUNK: Final = 1_000
_VALUES_AT_ONCE: Final = 16


class Glob(NamedTuple):
    """A compiled pattern: every key that matches begins with ``prefix``.

    ``exact``: only the key ``prefix`` itself matches. ``matches`` tells of a key that begins with ``prefix``
    whether it matches, in time linear in the key; None means that all of them do.
    """

    prefix: str
    exact: bool
    matches: Callable[[str], bool] | None

    def admits(self, key: str) -> bool:
        """Whether the whole key matches."""
        if self.exact:
            return key == self.prefix
        return key.startswith(self.prefix) and (self.matches is None or self.matches(key))


def compile_glob(pattern: str) -> Glob:
    """Compile a glob: ``*`` is any run of characters, ``?`` is one, all else is literal; the whole key must match.

    >>> compile_glob("a*.?").matches("a/b.c")
    True
    >>> compile_glob("logs/*")
    Glob(prefix='logs/', exact=False, matches=None)
    """
    segments = pattern.split("*")
    if len(segments) == 1 and "?" not in pattern:
        return Glob(pattern, True, None)
    prefix = segments[0].partition("?")[0]
    if len(segments) > 1 and prefix == segments[0] and not any(segments[1:]):
        return Glob(prefix, False, None)
    first, last = segments[0], segments[-1]
    if len(segments) == 1:
        return Glob(prefix, False, lambda key: len(key) == len(first) and _fits(first, key, 0))
    middle = [(len(segment), _finder(segment)) for segment in segments[1:-1] if segment]
    shortest = sum(map(len, segments))

    def matches(key: str) -> bool:
        if len(key) < shortest or not _fits(first, key, 0) or not _fits(last, key, len(key) - len(last)):
            return False
        # The leftmost place for each segment leaves the most room for the next, so there is nothing to try again.
        position = len(first)
        end = len(key) - len(last)
        for length, find in middle:
            found = find(key, position, end)
            if found < 0:
                return False
            position = found + length
        return True

    return Glob(prefix, False, matches)


def _fits(segment: str, key: str, position: int) -> bool:
    """Whether the segment, ``?`` standing for any character, is what the key has from ``position`` on."""
    if "?" not in segment:
        return key.startswith(segment, position)
    return all(wanted in ("?", found) for wanted, found in zip(segment, key[position:], strict=False))


def _finder(segment: str) -> Callable[[str, int, int], int]:
    """A function like ``str.find(segment, start, end)`` in which ``?`` in the segment stands for any character."""
    if "?" not in segment:
        return lambda key, start, end: key.find(segment, start, end)
    # Shift-and: bit i of the state says that the segment's first i + 1 characters end at the current one.
    wild = sum(1 << i for i, character in enumerate(segment) if character == "?")
    masks = {c: wild | sum(1 << i for i, other in enumerate(segment) if other == c) for c in set(segment) - {"?"}}
    complete = 1 << (len(segment) - 1)

    def find(key: str, start: int, end: int) -> int:
        state = 0
        for position in range(start, end):
            state = (state << 1 | 1) & masks.get(key[position], wild)
            if state & complete:
                return position + 1 - len(segment)
        return -1

    return find


async def list_page(
    storage: Storage,
    namespace: str,
    kind: Kind,
    *,
    match: str | None = None,
    prefix: str = "",
    after: str | None = None,
    limit: int = 1_000,
    values: bool = False,
    bytes_max: int | None = None,
    accept: Callable[[str, Head], bool] | None = None,
) -> Page[tuple[str, Head]]:
    """At most ``limit`` records in key order, after ``after``, that begin with ``prefix`` and match the glob ``match``.

    ``accept`` filters further. Without ``values`` the heads' values are empty; with them the page ends after the
    record with which they reach ``bytes_max`` bytes. About :data:`SCAN_MAX` records are looked at, so a page may be
    short or empty and still have a cursor: the key to pass as ``after`` next. The cursor is None at the end.
    """
    glob = compile_glob(match) if match is not None else Glob("", False, None)
    if glob.prefix.startswith(prefix):
        prefix = glob.prefix
    elif glob.exact or not prefix.startswith(glob.prefix):
        return Page([], None)
    # When few of the records looked at may match, their values are read only once it is known which do.
    values_later = values and glob.matches is not None
    items: list[tuple[str, Head]] = []
    size = 0
    scanned = 0
    chunk = 1 if glob.exact else limit if glob.matches is None else _CHUNK
    while True:
        # Where a read does not wait, a long scan would otherwise keep everybody else waiting.
        read = storage.read_in_turn if chunk > SHORT else storage.read
        bytes_left = None if bytes_max is None else bytes_max - size
        found: Slice[tuple[str, Head]]
        (found,) = await read(Listing(namespace, kind, prefix, after, values and not values_later, chunk, bytes_left))
        candidates = [item for item in found.items if glob.matches is None or glob.matches(item[0])]
        group = _VALUES_AT_ONCE if values_later else max(len(candidates), 1)
        for start in range(0, len(candidates), group):
            loaded: list[tuple[str, Head]] = candidates[start : start + group]
            if values_later:
                loaded = await _with_values(storage, namespace, kind, [key for key, _ in loaded])
            for key, head in loaded:
                if (glob.exact and key != glob.prefix) or (accept is not None and not accept(key, head)):
                    continue
                items.append((key, head))
                size += len(head.value)
                if len(items) == limit or (bytes_max is not None and size >= bytes_max):
                    at_end = glob.exact or (not found.more and key == found.items[-1][0])
                    return Page(items, None if at_end else key)
        if glob.exact or not found.more:
            return Page(items, None)
        after = found.items[-1][0]
        scanned += len(found.items)
        if scanned >= SCAN_MAX:
            return Page(items, after)
        chunk = _CHUNK


async def _with_values(storage: Storage, namespace: str, kind: Kind, keys: list[str]) -> list[tuple[str, Head]]:
    """The heads of those of the keys that are still there, with their values."""
    heads: list[Head | None] = await storage.read(*(HeadRead(Place(namespace, kind, key)) for key in keys))
    return [(key, head) for key, head in zip(keys, heads, strict=True) if head is not None]
