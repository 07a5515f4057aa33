"""Long work goes piece by piece. One piece begins between two looks at the connections, and the clients take turns.

It would not be enough if each long request let others in after each piece. With a hundred long requests, a hundred
pieces would come before the next look at the connections, and short requests would wait for all of them. Requests do
not take turns, because a client with a hundred requests would then have a hundred turns for each turn of another
client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import Final

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""The client on whose behalf this runs, by its address."""

SHORT: Final = 100
"""Up to this many keys are read without waiting for a turn."""


class Turns:
    """Whose turn it is. It takes almost no time while nobody else has long work.

    Turns have sizes. Several may last at once if all of them fit into ``room``, and a turn that would never fit lasts
    alone. ``async with turns:`` holds a turn of size 1, and :meth:`begin` and :meth:`end` hold a turn of any size.
    """

    def __init__(self, room: int = 1) -> None:
        self._room = self._free = room
        # Whether a piece has begun since the last look at the connections.
        self._begun = False
        # The client whose turn is next comes first.
        self._waiting: dict[str, deque[tuple[asyncio.Future[None], int]]] = {}

    async def take(self) -> None:
        """Return when it is the caller's turn. The turn ends when the caller next waits."""
        async with self:
            pass

    async def begin(self, size: int = 1) -> None:
        """Return when it is the caller's turn. The turn lasts until :meth:`end` is called with the same size."""
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
        """End a turn of this size."""
        self._free += min(size, self._room)
        self._pass_on()

    async def __aenter__(self) -> None:
        await self.begin()

    async def __aexit__(self, *error: object) -> None:
        self.end()

    def _look(self) -> None:
        # The event loop calls this once between two looks at the connections, as long as pieces begin.
        self._begun = False
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and not self._begun:
            client, turns = next(iter(self._waiting.items()))
            turn, size = turns[0]
            taken = min(size, self._room)
            if taken > self._free and not turn.done():
                # A smaller turn does not overtake it. Otherwise there might never be room for it.
                return
            turns.popleft()
            # The client goes to the end, behind all others.
            del self._waiting[client]
            if turns:
                self._waiting[client] = turns
            if not turn.done():
                self._free -= taken
                self._begun = True
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._look)
