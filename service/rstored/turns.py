"""Long work goes piece by piece: one begins between two looks at the connections, and the clients take turns.

That each of many long requests lets others in after a piece would not do: with a hundred of them, a hundred pieces
would come before the next look, and whoever asks for little would wait for all. Nor would it do to go by requests: who
sends a hundred would have a hundred turns for each of another client's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import Final

__all__ = ["CLIENT", "SHORT", "Turns"]

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""On whose behalf this runs: the client of the request, by its address."""

SHORT: Final = 100
"""So many keys are read without waiting for a turn."""


class Turns:
    """Whose turn it is. Costs next to nothing while nobody else has long work.

    Turns of a size last at once as far as all of them fit into ``room``, and one that would never fit lasts alone.
    ``async with turns:`` holds a turn of size 1; :meth:`begin` and :meth:`end` hold one of any size.
    """

    def __init__(self, room: int = 1) -> None:
        self._room = self._free = room
        # Whether a piece has begun since the last look at the connections.
        self._begun = False
        # The client whose turn is next comes first.
        self._waiting: dict[str, deque[tuple[asyncio.Future[None], int]]] = {}

    async def take(self) -> None:
        """Return when it is this one's turn, which is over when it next waits."""
        async with self:
            pass

    async def begin(self, size: int = 1) -> None:
        """Return when it is this one's turn, which lasts until :meth:`end` is called with the same size."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(CLIENT.get(), deque()).append((turn, size))
        self._pass_on()
        if turn.done():
            return
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.end(size)
            raise

    def end(self, size: int = 1) -> None:
        """The turn is over."""
        self._free += min(size, self._room)
        self._pass_on()

    async def __aenter__(self) -> None:
        await self.begin()

    async def __aexit__(self, *error: object) -> None:
        self.end()

    def _look(self) -> None:
        # Called once between two looks at the connections, as long as pieces begin.
        self._begun = False
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and not self._begun:
            client, turns = next(iter(self._waiting.items()))
            turn, size = turns[0]
            taken = min(size, self._room)
            if taken > self._free and not turn.done():
                # A smaller turn does not overtake it; otherwise there might never be room for this one.
                return
            turns.popleft()
            # Once for each client, and then the first again.
            del self._waiting[client]
            if turns:
                self._waiting[client] = turns
            if not turn.done():
                self._free -= taken
                self._begun = True
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._look)
