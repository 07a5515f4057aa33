"""Plans that run in step leave what they would have left one after the other, and their reads travel together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstored.backends.abc import (
    Commit,
    DeleteRecord,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    Query,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.executor import Executor

pytestmark = pytest.mark.anyio


class Memory(Executor):
    """Records in a dict. ``rounds`` counts the times that it was asked."""

    def __init__(self, updates: Sequence[Update[Any]]) -> None:
        super().__init__(updates, [None] * len(updates))
        self.records: dict[Place, Head] = {}
        self.rounds = 0

    def heads(self, update: Update[Any]) -> dict[Place, Head | None]:
        places = {*update.places, *(namespace_place(place.namespace) for place in update.places)}
        return {place: self.records.get(place) for place in places}

    async def ask(self, asked: Sequence[tuple[int, Query]]) -> list[list[Any] | Exception]:
        self.rounds += 1
        return [self.found_by(query) for _, query in asked]

    async def carry_out(self, position: int) -> None:
        """Carry out one update as the contract says it, in the plainest words."""
        update = self.updates[position]
        planning = update.plan(self.heads(update))
        answer: Any = None
        try:
            while True:
                answer = self.found_by(planning.send(answer))
                if isinstance(answer, Exception):
                    raise answer
        except StopIteration as stop:
            await self.take([(position, stop.value.writes)])
            self.results[position] = stop.value.answer
        except Exception as error:
            self.results[position] = error

    def found_by(self, query: Query) -> list[Any] | Exception:
        if any(isinstance(read, Listing) for read in query):
            return LookupError("it cannot be listed")
        return [self.records.get(read.place) for read in query if isinstance(read, HeadRead)]

    async def take(self, ended: Sequence[tuple[int, Sequence[Write]]]) -> None:
        for _, writes in ended:
            for write in writes:
                if isinstance(write, PutHead):
                    self.records[write.place] = write.head
                else:
                    gone = write.place
                    self.records.pop(gone, None)
                    if gone.kind is Kind.NAMESPACE:
                        self.records = {at: head for at, head in self.records.items() if at.namespace != gone.key}


class Step(NamedTuple):
    """An update: the records that it names, how often it reads them again, and how it ends."""

    places: tuple[Place, ...]
    reads: int
    ends: str


# Records of one namespace, or namespaces.
PLACES = st.sampled_from("ab").flatmap(
    lambda namespace: st.lists(st.sampled_from("kl"), min_size=1, max_size=2, unique=True).map(
        lambda keys: tuple(Place(namespace, Kind.KV, key) for key in keys)
    )
) | st.lists(st.sampled_from("ab"), min_size=1, max_size=2, unique=True).map(
    lambda names: tuple(map(namespace_place, names))
)
STEPS = st.builds(
    Step,
    PLACES,
    st.integers(0, 3),
    st.sampled_from(["put", "put", "put", "delete", "raise", "unanswered"]),
)


def update_of(number: int, step: Step) -> Update[Any]:
    """It writes into its records all that it has seen of them."""

    def plan(heads):
        seen = [[heads[place] for place in step.places]]
        for _ in range(step.reads):
            seen += [(yield tuple(map(HeadRead, step.places)))]
        if step.ends == "unanswered":
            yield (Listing("a", Kind.KV),)
        if step.ends == "raise":
            raise ValueError(number)
        if step.ends == "delete":
            return Commit([DeleteRecord(place) for place in step.places], seen)
        head = Head(b"%d" % number, repr(seen).encode())
        parents = {namespace_place(place.namespace) for place in step.places if place.namespace}
        made = [PutHead(parent, Head(b"")) for parent in parents if heads[parent] is None]
        return Commit([*made, *(PutHead(place, head) for place in step.places)], seen)

    return Update(step.places, plan)


def comparable(results: Sequence[Any]) -> list[Any]:
    return [repr(result) if isinstance(result, Exception) else result for result in results]


@given(st.lists(STEPS, max_size=12))
async def test_plans_in_step_leave_what_they_would_leave_one_after_the_other(steps: list[Step]) -> None:
    updates = [update_of(number, step) for number, step in enumerate(steps)]
    together, apart = Memory(updates), Memory(updates)
    assert await together.execute(range(len(updates))) == []
    for position in range(len(updates)):
        await apart.carry_out(position)
    assert comparable(together.results) == comparable(apart.results)
    assert together.records == apart.records


async def test_the_reads_of_plans_travel_together() -> None:
    steps = [Step((Place("a", Kind.KV, f"k{number}"),), number % 4, "put") for number in range(40)]
    memory = Memory([update_of(number, step) for number, step in enumerate(steps)])
    await memory.execute(range(40))
    assert memory.rounds == 3


async def test_after_a_stop_no_further_plan_is_begun() -> None:
    place = Place("a", Kind.KV, "k")

    class Stopping(Memory):
        async def take(self, ended: Sequence[tuple[int, Sequence[Write]]]) -> None:
            await super().take(ended)
            self.stopped = self.stopped or any(position == 1 for position, _ in ended)

    memory = Stopping([update_of(number, Step((place,), 1, "put")) for number in range(4)])
    assert await memory.execute([0, 1, 2, 3]) == [2, 3]
    assert memory.records[place].meta == b"1"
    assert memory.results[2:] == [None, None]
