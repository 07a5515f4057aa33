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

    ``async with turns:`` holds a turn, of which there are ``at_once``; so do :meth:`begin` and :meth:`end`.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._free = at_once
        # Whether a piece has begun since the last look at the connections.
        self._begun = False
        # The client whose turn is next comes first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self) -> None:
        """Return when it is this one's turn, which is over when it next waits."""
        async with self:
            pass

    async def begin(self) -> None:
        """Return when it is this one's turn, which lasts until :meth:`end`."""
        if self._free and not self._begun:
            self._give()
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(CLIENT.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.end()
            raise

    def end(self) -> None:
        """The turn is over."""
        self._free += 1
        self._pass_on()

    async def __aenter__(self) -> None:
        await self.begin()

    async def __aexit__(self, *error: object) -> None:
        self.end()

    def _give(self) -> None:
        self._free -= 1
        self._begun = True
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        # Called once between two looks at the connections, as long as pieces begin.
        self._begun = False
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._free and not self._begun:
            client, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            # Once for each client, and then the first again.
            del self._waiting[client]
            if turns:
                self._waiting[client] = turns
            if not turn.done():
                turn.set_result(None)
                self._give()
