"""Sequences whose heads an older version wrote: they do not say whether the events are sealed."""

from __future__ import annotations

from unittest import mock

import msgspec
import pytest

from rstore.core.encodings import Encoding, Value
from rstored.backends.abc import Backend, Commit, Head, HeadRead, Kind, Place, PutHead
from rstored.engine.batching import Storage
from rstored.engine.es import EventSequences, applying
from rstored.engine.model import Change, PruneResult
from rstored.limits import Limits
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

PLAIN, PICKLED, SEALED = Value(Encoding.JSON, b"1"), Value(Encoding.PICKLE, b"N."), Value(Encoding.SEALED, b"\x01")


@pytest.fixture
def es(backend: Backend) -> EventSequences:
    return EventSequences(Storage(backend), Limits(), lambda: 1_000)


async def put(es: EventSequences, key: str, item: str, value: Value, t: int | None = None) -> None:
    state = await es.current("n", key)
    revision = 0 if state is None else state.revision
    await es.apply("n", key, [Change(item, "setitem", value)], timestamp=t, revision=revision)


async def refused(es: EventSequences, key: str, value: Value) -> None:
    for t in (None, 5, 15, 3_000):
        with pytest.raises(Problem) as caught:
            await put(es, key, "b", value, t)
        assert caught.value.code == "sealing-mismatch"


async def make_older(backend: Backend, key: str) -> None:
    """Cut the head down to what an older version wrote."""
    place = Place("n", Kind.ES, key)

    def plan(heads):
        fields = msgspec.msgpack.decode(heads[place].meta)
        return Commit((PutHead(place, Head(msgspec.msgpack.encode(fields[:6]))),), None)
        yield

    await Storage(backend).update((place,), plan)
    (head,) = await Storage(backend).read(HeadRead(place))
    assert len(msgspec.msgpack.decode(head.meta)) == 6


@pytest.mark.parametrize(
    ("kept", "other"), [(PLAIN, SEALED), (PICKLED, SEALED), (SEALED, PLAIN)], ids=["plain", "pickled", "sealed"]
)
async def test_what_such_a_sequence_takes_is_seen_from_its_ends(backend, es, kept, other):
    for t in (10, 20, 30):
        await put(es, "k", "a", kept, t)
    await make_older(backend, "k")
    await refused(es, "k", other)
    await put(es, "k", "b", kept)
    # That has written a head that says it.
    (head,) = await Storage(backend).read(HeadRead(Place("n", Kind.ES, "k")))
    assert msgspec.msgpack.decode(head.meta)[6] is (kept is SEALED)
    await refused(es, "k", other)


async def test_one_that_is_mixed_is_read_pruned_and_mended(backend, es):
    def anything(place, meta, encodings):
        return None
        yield

    with mock.patch.object(applying, "sealed_after", anything):
        await put(es, "k", "a", SEALED, 10)
        await put(es, "k", "b", PLAIN, 20)
    await make_older(backend, "k")
    state = await es.current("n", "k")
    assert (state.items, [event.item for event in state.events]) == ({"b": PLAIN}, ["a"])
    assert (await es.past("n", "k", 15)).items == {}
    await put(es, "k", "c", PLAIN, 15)
    await put(es, "k", "c", SEALED)
    await put(es, "k", "b", SEALED)
    assert await es.prune("n", "k") == PruneResult(2, False)
    await refused(es, "k", PLAIN)
    assert len((await es.current("n", "k")).events) == 3
