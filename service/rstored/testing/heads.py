"""Cases of a backend's heads."""

from __future__ import annotations

from typing import Any

import pytest

from rstored.backends.abc import (
    Backend,
    Commit,
    DeleteRecord,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    Slice,
    Update,
    namespace_place,
)
from rstored.problems import Problem
from rstored.testing.tools import NS, Heads, Planning, commit, kv, read, writing


class HeadCases:
    """Inherited by :class:`rstored.testing.BackendContract`."""

    async def test_a_head_is_what_was_put_last(self, backend: Backend) -> None:
        place = kv("k")
        assert await read(backend, HeadRead(place)) == [None]
        await commit(backend, PutHead(NS, Head(b"policy")), PutHead(place, Head(b"m", b"v", 7)))
        assert await read(backend, HeadRead(place), HeadRead(NS)) == [Head(b"m", b"v", 7), Head(b"policy", b"", None)]
        await commit(backend, PutHead(place, Head(b"\x00\xff", b"")))
        assert await read(backend, HeadRead(place)) == [Head(b"\x00\xff", b"", None)]
        await commit(backend, DeleteRecord(place))
        await commit(backend, DeleteRecord(place))
        assert await read(backend, HeadRead(place)) == [None]

    @pytest.mark.parametrize("count", [1, 3, 10])
    async def test_a_value_that_is_too_long_is_left_out(self, backend: Backend, count: int) -> None:
        places = [kv(f"{{k}}{number}") for number in range(count)]
        await commit(backend, PutHead(NS, Head(b"")), *(PutHead(place, Head(b"m", b"four", 7)) for place in places))
        for bytes_max, value in ((0, b""), (3, b""), (4, b"four"), (None, b"four")):
            heads = await read(backend, *(HeadRead(place, bytes_max) for place in (*places, kv("none"))))
            assert heads == [*[Head(b"m", value, 7)] * count, None]

    async def test_the_same_key_is_another_record_in_another_kind_or_namespace(self, backend: Backend) -> None:
        places = [Place(namespace, kind, "k") for namespace in ("a", "b") for kind in (Kind.KV, Kind.TS, Kind.ES)]
        namespaces = [PutHead(namespace_place(name), Head(b"")) for name in ("a", "b")]
        await commit(backend, *namespaces, *(PutHead(place, Head(repr(place).encode())) for place in places))
        heads = await read(backend, *map(HeadRead, places))
        assert [head.meta for head in heads] == [repr(place).encode() for place in places]

    async def test_a_plan_sees_heads_without_values_and_those_of_the_namespaces(self, backend: Backend) -> None:
        # Every backend can change keys with a common part in braces in one step.
        present, absent, other = kv("{k}1"), kv("{k}2"), kv("{k}1", "other")
        await commit(backend, PutHead(NS, Head(b"p")), PutHead(present, Head(b"m", b"v", 5)))
        seen: list[Any] = []

        def plan(heads: Heads) -> Planning:
            seen.extend(heads[place] for place in (present, absent, NS))
            found = yield (HeadRead(present), Listing("ns", Kind.KV))
            seen.extend(found)
            return Commit((), "answer")

        def plan_elsewhere(heads: Heads) -> Planning:
            return Commit((), (heads[other], heads[namespace_place("other")]))
            yield

        updates = [Update((present, absent), plan), Update((other,), plan_elsewhere)]
        assert await backend.update(updates) == ["answer", (None, None)]
        listed = Slice([("{k}1", Head(b"m", b"", 5))], False)
        assert seen == [Head(b"m", b"", 5), None, Head(b"p"), Head(b"m", b"v", 5), listed]

    async def test_records_that_cannot_be_changed_in_one_step_are_refused_and_others_are_not(
        self, backend: Backend
    ) -> None:
        await commit(backend, PutHead(NS, Head(b"")))
        keys = [f"k{n}" for n in range(100)]
        apart = writing(*(PutHead(kv(key), Head(b"")) for key in keys), answer="apart")
        together = writing(*(PutHead(kv(f"{{part}}{key}"), Head(b"")) for key in keys), answer="together")
        results = await backend.update([apart, together])
        assert results[1] == "together"
        (listed,) = await read(backend, Listing("ns", Kind.KV))
        if backend.capabilities.atomic_batches:
            assert results[0] == "apart"
            assert len(listed.items) == 200
        else:
            assert isinstance(results[0], Problem)
            assert results[0].code == "batch-not-atomic"
            assert len(listed.items) == 100
