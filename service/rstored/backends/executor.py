"""How a backend behind a network runs the plans of a batch: in step, so that their reads travel together.

The backend reads and writes. This module decides in which order that happens.
"""

from __future__ import annotations

import abc
import asyncio
import random
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from rstored.backends.abc import Commit, Head, Kind, Place, Query, Update, Write, namespace_place

RACED: Final = "other processes keep writing the same records: try again"
"""The message for an update that other processes disturbed too often."""

_Planning: TypeAlias = Generator[Query, list[Any], Commit[Any]]


async def pause(tries: int, seconds_max: float) -> None:
    """Wait before trying again a batch that others disturbed: longer each time, and for a random time."""
    await asyncio.sleep(random.random() * min(0.001 * 2**tries, seconds_max))  # noqa: S311 - not a secret


class Executor(abc.ABC):
    """A batch of updates that a backend carries out.

    ``results`` gets the answer of each update, or the exception that its plan raised. A backend sets ``stopped`` when
    it cannot carry out further plans. Then no other plan begins.
    """

    def __init__(self, updates: Sequence[Update[Any]], results: list[Any]) -> None:
        self.updates = updates
        self.results = results
        self.stopped = False

    @abc.abstractmethod
    def heads(self, update: Update[Any]) -> Mapping[Place, Head | None]:
        """The present heads of the update's places and of their namespaces, with which its plan begins."""

    @abc.abstractmethod
    async def ask(self, asked: Sequence[tuple[int, Query]]) -> Sequence[list[Any] | Exception]:
        """Answer queries of the plans of some updates, in one round trip if possible.

        The answers show all writes that were taken before. An exception becomes the result of its update alone.
        """

    @abc.abstractmethod
    async def take(self, ended: Sequence[tuple[int, Sequence[Write]]]) -> None:
        """Take over, in order, the writes of plans that have ended. A plan that raised an exception has none."""

    async def execute(self, positions: Sequence[int]) -> list[int]:
        """Run the plans of the updates at these positions. Returns the positions of those that were not begun."""
        left: list[int] = []
        for wave in waves([self.updates[position] for position in positions]):
            wanted = [positions[number] for number in wave]
            if self.stopped:
                left += wanted
            else:
                await self._run(wanted)
        return left

    async def _run(self, wave: Sequence[int]) -> None:
        """Run the plans of a wave. They touch different records."""
        ended: dict[int, Sequence[Write]] = {}
        asking: list[tuple[int, _Planning, Query]] = []
        results = self.results

        def advance(position: int, planning: _Planning, answer: list[Any] | None) -> None:
            try:
                asking.append((position, planning, next(planning) if answer is None else planning.send(answer)))
            except StopIteration as stop:
                commit: Commit[Any] = stop.value
                ended[position], results[position] = commit.writes, commit.answer
            except Exception as error:
                ended[position], results[position] = (), error

        for position in wave:
            update = self.updates[position]
            advance(position, update.plan(self.heads(update)), None)
        unended = deque(wave)
        while True:
            # Plans that still ask must see the writes of all updates before them.
            first = asking[0][0] if asking else None
            taken: list[tuple[int, Sequence[Write]]] = []
            while unended and unended[0] != first:
                position = unended.popleft()
                if position in ended:
                    taken.append((position, ended[position]))
            if taken:
                await self.take(taken)
            if not asking:
                return
            asked, asking = asking, []
            answers = await self.ask([(position, query) for position, _, query in asked])
            for (position, planning, _), answer in zip(asked, answers, strict=True):
                if isinstance(answer, Exception):
                    planning.close()
                    results[position] = answer
                else:
                    advance(position, planning, answer)


def waves(updates: Sequence[Update[Any]]) -> list[list[int]]:
    """The positions of the updates, in waves. Updates that share a record are in different waves, in their order.

    Updates of one namespace may be in one wave, unless one of them names the record of the namespace.

    >>> def update(*keys):
    ...     return Update(tuple(Place("zoo", Kind.KV, key) for key in keys), lambda heads: iter(()))
    >>> waves([update("a"), update("b"), update("a", "c")])
    [[0, 1], [2]]
    """
    found: list[list[int]] = []
    # The first wave that may touch a record, and the first that may name the record of a namespace.
    free: dict[Place, int] = {}
    unused: dict[str, int] = {}
    for position, update in enumerate(updates):
        wave = 0
        for place in update.places:
            if place.kind is Kind.NAMESPACE:
                wave = max(wave, unused.get(place.key, 0))
            wave = max(wave, free.get(place, 0), free.get(namespace_place(place.namespace), 0))
        for place in update.places:
            free[place] = wave + 1
            unused[place.namespace] = max(unused.get(place.namespace, 0), wave + 1)
        if wave == len(found):
            found.append([])
        found[wave].append(position)
    return found
