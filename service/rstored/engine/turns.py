"""Long work goes piece by piece, and one piece of all of it between two looks at the connections.

That each of many long requests lets others in after a piece would not do: with a hundred of them, a hundred pieces
would come before the next look, and whoever asks for little would wait for all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

__all__ = ["SHORT", "Turns"]

SHORT: Final = 100
"""So many keys are read without waiting for a turn."""


class Turns:
    """Whose turn it is. Costs next to nothing while nobody else has long work."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return when the next piece may begin; to be called before each that takes a millisecond or more."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._pass_on)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _pass_on(self) -> None:
        # Called once between two looks at the connections, as long as anybody waits.
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._pass_on)
                return
        self._taken = False
