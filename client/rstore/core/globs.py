"""Globs over keys and namespaces: ``*`` is any run of characters, ``?`` is one, and all others are literal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Glob(NamedTuple):
    """A compiled pattern: every key that matches begins with ``prefix``.

    If ``exact``, only the key ``prefix`` itself matches. Otherwise ``predicate`` says whether a key that begins with
    ``prefix`` matches, in time linear in the key; None means that every such key does.
    """

    prefix: str
    exact: bool
    predicate: Callable[[str], bool] | None

    def matches(self, key: str) -> bool:
        """Whether the whole key matches."""
        if self.exact:
            return key == self.prefix
        return key.startswith(self.prefix) and (self.predicate is None or self.predicate(key))


def compile_glob(pattern: str) -> Glob:
    """Compile a glob: ``*`` is any run of characters, ``?`` is one, others are literal. The whole key must match.

    >>> compile_glob("a*.?").matches("a/b.c")
    True
    >>> compile_glob("logs/*")
    Glob(prefix='logs/', exact=False, predicate=None)
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

    def predicate(key: str) -> bool:
        if len(key) < shortest or not _fits(first, key, 0) or not _fits(last, key, len(key) - len(last)):
            return False
        # The leftmost place for each segment leaves the most room for the next, so no other place needs a try.
        position = len(first)
        end = len(key) - len(last)
        for length, find in middle:
            found = find(key, position, end)
            if found < 0:
                return False
            position = found + length
        return True

    return Glob(prefix, False, predicate)


def _fits(segment: str, key: str, position: int) -> bool:
    """Whether the segment matches the key from ``position`` on, where ``?`` matches any character."""
    if "?" not in segment:
        return key.startswith(segment, position)
    return all(wanted in ("?", found) for wanted, found in zip(segment, key[position:], strict=False))


def _finder(segment: str) -> Callable[[str, int, int], int]:
    """A function like ``str.find(segment, start, end)`` in which ``?`` in the segment matches any character."""
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
