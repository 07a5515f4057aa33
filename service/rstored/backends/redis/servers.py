"""Connections to Redis servers.

This module sends calls to the server of their slot, and knows nothing of records. It uses redis-py's connections (TLS,
login, the protocol), but neither its clients nor their pipelines. Those repeat every command that fails, but a commit
whose outcome is unknown must not be sent twice. They also take longer for a command than Redis does.
"""

from __future__ import annotations

import abc
import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from rstored.backends.redis.calls import Argument, Call, packed
from rstored.backends.redis.dsn import Address, RedisDSN
from rstored.backends.redis.failures import FAILURES

# How long it may take to get a connection, login included.
_CONNECT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 10.0
_CONNECTIONS_MAX: Final = 8


class Unsent(Exception):
    """There was no connection, so nothing was sent. The cause says why."""


class Node:
    """One server, and a few connections to it."""

    def __init__(self, address: Address, dsn: RedisDSN) -> None:
        # The pool of the driver would take longer than sending a command.
        self._make_connection: Callable[[], AbstractConnection] = functools.partial(
            SSLConnection if dsn.tls else Connection,
            host=address[0],
            port=address[1],
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=_CONNECT_SECONDS,
            **dsn.connection,
        )
        self._permits = asyncio.Semaphore(_CONNECTIONS_MAX)
        # The connections that nobody uses. A new list replaces it when those in use must not be used again.
        self._free: list[AbstractConnection] = []

    async def exchange(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Send the commands together. Returns their answers, which may be errors of the server.

        Raises :class:`Unsent`, or the error that broke the connection before all answers came.
        """
        loop = asyncio.get_running_loop()
        connection: AbstractConnection | None = None
        answers: list[Any] = []
        free = self._free
        try:
            async with asyncio.timeout_at(loop.time() + _CONNECT_SECONDS) as timeout, self._permits:
                connection = await self._connected()
                timeout.reschedule(loop.time() + ANSWER_SECONDS)
                try:
                    await connection.send_packed_command([*map(packed, commands)], check_health=False)
                    for _ in commands:
                        try:
                            answers.append(await connection.read_response())
                        except ResponseError as error:
                            answers.append(error)
                except BaseException:
                    # Answers to these commands may still arrive on it.
                    await connection.disconnect(nowait=True)
                    raise
        except FAILURES as error:
            if connection is None:
                raise Unsent from error
            raise
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            # The server was demoted. A new connection finds its successor.
            await self.close()
        if free is self._free:
            free.append(connection)
        else:
            await connection.disconnect(nowait=True)
        return answers

    async def _connected(self) -> AbstractConnection:
        """The free connection that was used last, or a new one."""
        while self._free:
            connection = self._free.pop()
            try:
                if not await connection.can_read():
                    return connection
            except FAILURES:
                pass
            # The server has closed it, or has sent something that nobody asked for.
            await connection.disconnect(nowait=True)
        connection = self._make_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def close(self) -> None:
        """Close every connection. Those in use are closed after their use."""
        free, self._free = self._free, []
        for connection in free:
            await connection.disconnect(nowait=True)


class Servers(abc.ABC):
    """The servers to which calls go."""

    cluster: bool

    @abc.abstractmethod
    def slot(self, key: bytes) -> int:
        """The slot of a call about this key. Calls with the same slot can be put into one."""

    @abc.abstractmethod
    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """The answers to the calls, in order, or their exceptions, which are of :data:`FAILURES`.

        Calls with one slot are carried out in order. Calls with different slots do not wait for each other.
        """

    @abc.abstractmethod
    async def on_every_server(self, *commands: tuple[Argument, ...]) -> list[list[Any]]:
        """The answers of each server, or of each master of a cluster, to some commands. Raises the first failure."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close every connection."""


class SingleServer(Servers):
    """One Redis server."""

    cluster = False

    def __init__(self, dsn: RedisDSN) -> None:
        self._node = Node(dsn.addresses[0], dsn)

    def slot(self, key: bytes) -> int:
        return 0

    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        for last_try in (False, True):
            try:
                answers = await self._node.exchange([call.command(unloaded=False) for call in calls])
                break
            except FAILURES as error:
                # A broken connection may only have been old. A server that does not answer will not do so the next
                # time.
                if last_try or isinstance(error, TimeoutError) or any(call.once for call in calls):
                    return [error] * len(calls)
            except Unsent as unsent:
                return [unsent.__cause__] * len(calls)
        unloaded = [position for position, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unloaded:
            unloaded = with_followers(unloaded, calls, answers)
            commands = [
                calls[position].command(unloaded=isinstance(answers[position], NoScriptError)) for position in unloaded
            ]
            try:
                later = await self._node.exchange(commands)
            except FAILURES as error:
                later = [error] * len(commands)
            except Unsent as unsent:
                later = [unsent.__cause__] * len(commands)
            for position, answer in zip(unloaded, later, strict=True):
                answers[position] = answer
        return answers

    async def on_every_server(self, *commands: tuple[Argument, ...]) -> list[list[Any]]:
        return [await answers_of(self._node, commands)]

    async def close(self) -> None:
        await self._node.close()


def with_followers(again: Sequence[int], calls: Sequence[Call], answers: Sequence[Any]) -> list[int]:
    """The calls that are sent again, and the later calls in their slots, which must see the effects of the others.

    A call with ``once`` that was carried out is not among them.
    """
    first: dict[int, int] = {}
    for position in again:
        first.setdefault(calls[position].slot, position)
    chosen = set(again)
    for position, call in enumerate(calls):
        follows = position > first.get(call.slot, position)
        if follows and not call.once and not isinstance(answers[position], Exception):
            chosen.add(position)
    return sorted(chosen)


async def answers_of(node: Node, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    try:
        return await node.exchange(commands)
    except Unsent as unsent:
        raise unsent.__cause__ or unsent from None


def facts_of(info: bytes | Exception) -> dict[str, str]:
    """The fields of an answer to INFO. If the answer is an error, it is raised."""
    if isinstance(info, Exception):
        raise info
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
