"""A proxy between clients and service processes that loses, cuts, delays, holds back and repeats whole requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from tests.faults.proxy import listening

LATE_SECONDS_MAX = 2.0


class Mischief:
    """Passes each request on to one of the ports over a connection of its own, or does what ``chance`` says.

    ``done`` counts what was done. ``settled`` returns when nothing is held back any more.
    """

    def __init__(self, ports: list[int], chance: random.Random) -> None:
        self._ports = ports
        self._chance = chance
        self._late: set[asyncio.Task[None]] = set()
        self.url = ""
        self.done: dict[str, int] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._pass_on(await _message(reader), writer):
                pass
        writer.transport.abort()

    async def settled(self) -> None:
        while self._late:
            await asyncio.gather(*self._late)

    async def _pass_on(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Do something with a request; True if its connection goes on."""
        chance = self._chance
        deeds = ("pass", "delay", "repeat", "lose", "hold", "cut", "cut request", "cut answer")
        (deed,) = chance.choices(deeds, (40, 10, 20, 8, 8, 4, 5, 5))
        self.done[deed] = self.done.get(deed, 0) + 1
        if deed == "cut":
            return False
        if deed == "cut request":
            _, upstream = await asyncio.open_connection("127.0.0.1", chance.choice(self._ports))
            upstream.write(request[: chance.randrange(len(request))])
            await upstream.drain()
            upstream.close()
            return False
        if deed in ("hold", "repeat"):
            task = asyncio.create_task(self._send_late(request, chance.uniform(0, LATE_SECONDS_MAX)))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            if deed == "hold":
                return False
        if deed == "delay":
            await asyncio.sleep(chance.uniform(0, 0.3))
        answer = await self._answer(request)
        if deed == "lose":
            return False
        if deed == "cut answer":
            writer.write(answer[: chance.randrange(len(answer))])
            await writer.drain()
            writer.close()
            return False
        writer.write(answer)
        await writer.drain()
        return True

    async def _send_late(self, request: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(request)

    async def _answer(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._chance.choice(self._ports))
        try:
            writer.write(request)
            return await _message(reader, to_head=request.startswith(b"HEAD "))
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader, *, to_head: bool = False) -> bytes:
    """A whole request or answer, as it came."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    if to_head or head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")):
        return head
    if fields.get(b"transfer-encoding") == b"chunked":
        while not head.endswith(b"\r\n0\r\n\r\n"):
            head += await reader.readuntil(b"\r\n")
        return head
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


@contextlib.asynccontextmanager
async def mischievous(ports: list[int], chance: random.Random) -> AsyncIterator[Mischief]:
    """The proxy, on a port of its own."""
    mischief = Mischief(ports, chance)
    try:
        async with listening(mischief.serve) as port:
            mischief.url = f"http://127.0.0.1:{port}"
            yield mischief
    finally:
        await mischief.settled()
