"""How the plans of a batch are run by a backend behind a network: in step, so that their reads travel together.

What is read, and how what was planned is written, is the backend's; the order in which it happens is decided here.
"""

from __future__ import annotations

import abc
import asyncio
import random
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from rstored.backends.abc import Commit, Head, Kind, Place, Query, Update, Write, namespace_place

__all__ = ["RACED", "Executor", "pause", "waves"]

RACED: Final = "other processes keep writing the same records: try again"
"""What is said of an update that others got in the way of too often."""

_Planning: TypeAlias = Generator[Query, list[Any], Commit[Any]]


async def pause(tries: int, seconds_max: float) -> None:
    """Wait before a batch is tried again that others got in the way of: longer each time, and never all equally."""
    await asyncio.sleep(random.random() * min(0.001 * 2**tries, seconds_max))  # noqa: S311 - not a secret


class Executor(abc.ABC):
    """A batch of updates as a backend carries it out.

    ``results`` takes each update's answer, or the exception that its plan raised. A backend sets ``stopped`` when what
    is planned from then on cannot be carried out; no further plan is begun.
    """

    def __init__(self, updates: Sequence[Update[Any]], results: list[Any]) -> None:
        self.updates = updates
        self.results = results
        self.stopped = False

    @abc.abstractmethod
    def heads(self, update: Update[Any]) -> Mapping[Place, Head | None]:
        """What the update's plan begins with: the heads of its places and of their namespaces, as they are by now."""

    @abc.abstractmethod
    async def ask(self, asked: Sequence[tuple[int, Query]]) -> Sequence[list[Any] | Exception]:
        """Answer the queries of some updates' plans, after all that was taken before, in one round trip if possible.

        An exception becomes the result of that update alone.
        """

    @abc.abstractmethod
    async def take(self, ended: Sequence[tuple[int, Sequence[Write]]]) -> None:
        """Take over, in order, what plans that have ended want written. A plan that raised wants nothing written."""

    async def execute(self, positions: Sequence[int]) -> list[int]:
        """Run the plans of the updates at these positions; returns those that were not begun."""
        left: list[int] = []
        for wave in waves([self.updates[position] for position in positions]):
            wanted = [positions[number] for number in wave]
            if self.stopped:
                left += wanted
            else:
                await self._run(wanted)
        return left

    async def _run(self, wave: Sequence[int]) -> None:
        """Run the plans of a wave, which touch different records."""
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
            # What comes before all who still ask is there for them to see.
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
    """The updates' positions in waves: those of one wave share no record, and those that do keep their order.

    A namespace is shared by all who use it, unless one of them names its record.
    """
    found: list[list[int]] = []
    # The first wave that may touch a record, and that may name a namespace's record.
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
