"""Functions with which the cases are written."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Final, TypeAlias

from hypothesis import HealthCheck, settings

from rstored.backends.abc import (
    Backend,
    Commit,
    Head,
    Kind,
    Place,
    PutHead,
    PutRow,
    Query,
    Read,
    Row,
    Update,
    Write,
    namespace_place,
)
from rstored.problems import Problem

GENERATED: Final = settings(
    max_examples=60,
    deadline=None,
    # An inherited case runs in several classes, and examples that only read may share a backend.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)

Heads: TypeAlias = Mapping[Place, Head | None]
Planning: TypeAlias = Generator[Query, list[Any], Commit[Any]]

NS: Final = namespace_place("ns")
SERIES: Final = Place("ns", Kind.TS, "series")


def writing(*writes: Write, answer: Any = None) -> Update[Any]:
    """An update that makes the writes unconditionally.

    >>> update = writing(PutHead(kv("a"), Head(b"")), PutHead(kv("b"), Head(b"")), answer=2)
    >>> [place.key for place in update.places]
    ['a', 'b']
    """

    def plan(heads: Heads) -> Planning:
        return Commit(writes, answer)
        yield

    return Update(tuple({write.place: None for write in writes}), plan)


async def commit(backend: Backend, *writes: Write) -> None:
    """Make the writes in one update, or in one for each record if the backend has no atomic batches."""
    together: dict[Any, list[Write]] = {}
    for write in writes:
        namespace = write.place.namespace or write.place.key
        together.setdefault(namespace if backend.capabilities.atomic_batches else write.place, []).append(write)
    assert await backend.update([writing(*part) for part in together.values()]) == [None] * len(together)


async def read(backend: Backend, *reads: Read) -> list[Any]:
    """The results of one query."""
    (results,) = await backend.read([reads])
    assert not isinstance(results, Problem)
    return results


def kv(key: str, namespace: str = "ns") -> Place:
    """The place of a key/value pair.

    >>> kv("color")
    Place(namespace='ns', kind=<Kind.KV: 1>, key='color')
    """
    return Place(namespace, Kind.KV, key)


async def fill(backend: Backend, *rows: Row, lane: int = 0) -> None:
    """Create the record ``SERIES`` with these rows."""
    puts = [PutRow(SERIES, lane, row) for row in rows]
    await commit(backend, PutHead(NS, Head(b"")), PutHead(SERIES, Head(b"m")), *puts)


async def purge(backend: Backend) -> None:
    """Purge until nothing is left to erase."""
    for _ in range(10_000):
        if not await backend.purge():
            return
    raise AssertionError("purge() never says that nothing is left to erase")
