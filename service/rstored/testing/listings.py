"""Cases of a backend's listings."""

from __future__ import annotations

from rstored.backends.abc import (
    Backend,
    Head,
    Kind,
    Listing,
    PutHead,
    Slice,
    namespace_place,
)
from rstored.testing.tools import NS, commit, kv, read

KEYS = [
    "",
    "a",
    "a\U0010ffff",
    "a\U0010ffff\U0010ffff",
    "a\U0010ffffb",
    "aé",
    "b",
    "é",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "😀",
]


class ListingCases:
    """Inherited by :class:`rstored.testing.BackendContract`."""

    async def test_keys_are_listed_in_order_of_their_utf8_bytes(self, backend: Backend) -> None:
        keys = sorted([*filter(None, KEYS), "\U0010ffff", "\x01", "~", "\n", "a/b", ".."], key=str.encode)
        await commit(backend, PutHead(NS, Head(b"")), *(PutHead(kv(key), Head(b"m", b"v")) for key in reversed(keys)))
        (listed,) = await read(backend, Listing("ns", Kind.KV))
        assert listed == Slice([(key, Head(b"m")) for key in keys], False)
        for prefix in KEYS:
            (listed,) = await read(backend, Listing("ns", Kind.KV, prefix))
            assert [key for key, _ in listed.items] == [key for key in keys if key.startswith(prefix)]
            for after in KEYS:
                (listed,) = await read(backend, Listing("ns", Kind.KV, prefix, after))
                wanted = [key for key in keys if key.startswith(prefix) and key.encode() > after.encode()]
                assert [key for key, _ in listed.items] == wanted

    async def test_a_listing_stops_at_its_limits(self, backend: Backend) -> None:
        heads = {f"{n}": Head(b"m", b"x" * n) for n in range(1, 6)}
        await commit(backend, PutHead(NS, Head(b"")), *(PutHead(kv(key), head) for key, head in heads.items()))
        items = list(heads.items())
        assert await read(
            backend,
            Listing("ns", Kind.KV, values=True, limit=5),
            Listing("ns", Kind.KV, values=True, limit=4),
            Listing("ns", Kind.KV, values=True, bytes_max=6),
            Listing("ns", Kind.KV, values=True, bytes_max=7),
            Listing("ns", Kind.KV, values=True, bytes_max=15),
            Listing("ns", Kind.KV, values=True, bytes_max=1),
            Listing("ns", Kind.TS, values=True),
        ) == [
            Slice(items, False),
            Slice(items[:4], True),
            Slice(items[:3], True),
            Slice(items[:4], True),
            Slice(items, False),
            Slice(items[:1], True),
            Slice([], False),
        ]

    async def test_namespaces_are_listed(self, backend: Backend) -> None:
        names = ["-", ".", "A", "a", "b.c", "z"]
        await commit(backend, *(PutHead(namespace_place(name), Head(name.encode())) for name in names))
        (listed,) = await read(backend, Listing("", Kind.NAMESPACE))
        assert listed == Slice([(name, Head(name.encode())) for name in names], False)
        (listed,) = await read(backend, Listing("", Kind.NAMESPACE, after="A", limit=2))
        assert [name for name, _ in listed.items] == ["a", "b.c"]
        assert listed.more
