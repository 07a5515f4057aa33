"""The one paged listing that keys, series, sequences, namespaces and tokens share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rstore.core.globs import Glob, compile_glob
from rstored.backends.abc import Head, HeadRead, Kind, Listing, Place, Slice
from rstored.engine.batching import Storage
from rstored.engine.model import Page
from rstored.turns import SHORT

SCAN_MAX: Final = 10_000
CHUNK: Final = 1_000
_VALUES_AT_ONCE: Final = 16


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
    """At most ``limit`` records in key order, whose keys follow ``after``, begin with ``prefix`` and match the glob.

    ``accept`` filters further. Without ``values``, the values of the heads are empty. With them, the page ends after
    the record with which they reach ``bytes_max`` bytes. A call looks at about :data:`SCAN_MAX` records, so a page may
    be short or empty and still have a cursor, which is the key to pass as ``after`` next. At the end it is None.
    """
    glob = compile_glob(match) if match is not None else Glob("", False, None)
    if glob.prefix.startswith(prefix):
        prefix = glob.prefix
    elif glob.exact or not prefix.startswith(glob.prefix):
        return Page([], None)
    # If few of the records may match, their values are read later: only of those that do.
    values_later = values and glob.predicate is not None
    items: list[tuple[str, Head]] = []
    size = 0
    scanned = 0
    chunk = 1 if glob.exact else limit if glob.predicate is None else CHUNK
    while True:
        # A backend may read without letting others in between. A long scan therefore takes turns with them.
        read = storage.read_in_turn if chunk > SHORT or values else storage.read
        bytes_left = None if bytes_max is None else bytes_max - size
        found: Slice[tuple[str, Head]]
        (found,) = await read(Listing(namespace, kind, prefix, after, values and not values_later, chunk, bytes_left))
        candidates = [item for item in found.items if glob.predicate is None or glob.predicate(item[0])]
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
        chunk = CHUNK


async def _with_values(storage: Storage, namespace: str, kind: Kind, keys: list[str]) -> list[tuple[str, Head]]:
    """The keys that still exist, with their heads and values."""
    heads: list[Head | None] = await storage.read_in_turn(*(HeadRead(Place(namespace, kind, key)) for key in keys))
    return [(key, head) for key, head in zip(keys, heads, strict=True) if head is not None]
