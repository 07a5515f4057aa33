"""A TCP proxy between the service and its backend: it counts round trips, cuts connections, and falls silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

Rule = Callable[[bytes, object], tuple[bytes, bool]]
"""Gets what is about to be passed on, and over which connection; returns what is, and whether it is then cut."""


class Proxy:
    """Passes bytes on, to the server (up) and back (down), until it is told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self.connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._rules: dict[str, Rule | None] = {"up": None, "down": None}
        self.port = 0
        self.bytes = {"up": 0, "down": 0}
        self.cuts = 0
        # What came while nothing was passed on.
        self.held = 0
        # How often the client spoke after it had been answered, or for the first time.
        self.round_trips = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ends = self.connections[task] = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._server)
            ends.append(server_writer)
            answered = [True]
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("up", reader, server_writer, ends, answered))
                group.create_task(self._pump("down", server_reader, writer, ends, answered))
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._abort(ends)
            del self.connections[task]

    async def _pump(
        self,
        way: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: list[asyncio.StreamWriter],
        answered: list[bool],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                if not self._flowing.is_set():
                    self.held += 1
                    await self._flowing.wait()
                if way == "up" and answered[0]:
                    self.round_trips += 1
                answered[0] = way == "down"
                rule, cut = self._rules[way], False
                if rule is not None:
                    data, cut = rule(data, ends)
                self.bytes[way] += len(data)
                writer.write(data)
                await writer.drain()
                if cut:
                    self._rules = dict.fromkeys(self._rules)
                    self.cuts += 1
                    # What was passed on is to arrive; only then is the connection gone.
                    await asyncio.sleep(0.02)
                    break
        self._abort(ends)

    @staticmethod
    def _abort(ends: list[asyncio.StreamWriter]) -> None:
        for end in ends:
            end.transport.abort()

    def redirect(self, port: int, *, cut: bool = True) -> None:
        """From now on the server is another one, as after a failover, which may leave older connections as they are."""
        self._server = self._server[0], port
        if cut:
            self.cut_all()

    def cut_all(self) -> None:
        """Cut every connection now."""
        for ends in self.connections.values():
            self._abort(ends)

    def cut_after(self, way: str, n: int) -> None:
        """Cut a connection, once, when ``n`` more bytes went that way over all of them."""
        left = n

        def rule(data: bytes, _: object) -> tuple[bytes, bool]:
            nonlocal left
            passed = data[:left]
            left -= len(passed)
            return passed, left == 0

        self._rules[way] = rule

    def cut_at(self, text: bytes, after: bytes, *, pass_on: bool) -> None:
        """Cut the connection, once, where ``text`` goes up after ``after`` did: before it, or when it was answered."""
        speaking: object = None

        def up(data: bytes, connection: object) -> tuple[bytes, bool]:
            nonlocal speaking
            if after in data:
                speaking = connection
            if connection is not speaking or text not in data:
                return data, False
            if not pass_on:
                return data[: data.index(text)], True
            self._rules["down"] = lambda data, connection: (b"", True) if connection is speaking else (data, False)
            return data, False

        self._rules["up"] = up

    def heal(self) -> None:
        """Forget what was to be cut, and let everything pass."""
        self._rules = dict.fromkeys(self._rules)
        self._flowing.set()

    def freeze(self) -> None:
        """Accept connections and bytes and pass nothing on, as a network does that lost its way."""
        self._flowing.clear()


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """The port of this machine on which every connection is given to ``serve``; at the end no more are accepted."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def proxied(host: str, port: int) -> AsyncIterator[Proxy]:
    """A proxy to the server at this address, on a port of its own."""
    proxy = Proxy(host, port)
    try:
        async with listening(proxy.serve) as proxy.port:
            yield proxy
    finally:
        proxy.heal()
        proxy.cut_all()
        tasks = list(proxy.connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
