"""Connections to Redis: one server, or the masters of a Redis Cluster.

What is here carries calls to where their slot lives and knows nothing of records. It uses redis-py's connections
(TLS, login, the protocol), but neither its clients nor their pipelines: those repeat whatever failed, and a commit
whose outcome is not known must not be sent twice; and they spend more on a command than Redis does.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple, TypeAlias

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from rstored.backends.redis_dsn import Address, RedisDSN
from rstored.problems import Problem

__all__ = [
    "FAILURES",
    "IS_REPLICA",
    "Argument",
    "Call",
    "Cluster",
    "Script",
    "Servers",
    "SingleServer",
    "facts_of",
    "open_servers",
    "problem_of",
    "translated",
    "unusable",
]

# To get a connection: a free one or a new one, greeted and logged in.
_CONNECT_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 10.0
_CONNECTIONS_MAX: Final = 8
# How long calls are tried again that a cluster cannot serve for a moment, because a slot moves or a master is being
# replaced; after how many tries with pauses; and how often nodes are tried that do not answer.
_PATIENCE_SECONDS: Final = 1.0
_REDIRECTIONS_MAX: Final = 3
_FAILURES_MAX: Final = 1
_PAUSE_SECONDS: Final = 0.05

Argument: TypeAlias = bytes | str | int

# redis-py's own errors and those of the sockets below it; asyncio's TimeoutError is an OSError.
FAILURES: Final = (RedisError, OSError)


class Script(NamedTuple):
    """A Lua script of the folder ``lua``."""

    source: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        source = resources.files("rstored.backends").joinpath("lua", name).read_text("utf-8")
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """A script's or, without one, a plain command's arguments, and the slot that it is about.

    In a cluster ``keys`` are all the keys that a script is going to touch: while their slot moves from one node to
    another, Redis then refuses to run it on a node that has not all of them. What is to be sent at most ``once`` is
    not sent again when the connection breaks before the answer.
    """

    slot: int
    script: Script | None
    arguments: Sequence[Argument]
    keys: Collection[bytes] = ()
    once: bool = False

    def command(self, unloaded: bool) -> tuple[Argument, ...]:
        """As it goes over the wire; a server that does not know the script has to be sent its source."""
        if self.script is None:
            return tuple(self.arguments)
        if unloaded:
            return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.arguments)
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)


# redis-py's own way to do this takes several times as long; hiredis takes any number of arguments in its one tuple.
_packed: Final[Callable[[tuple[Argument, ...]], bytes]] = pack_command  # type: ignore[assignment]


class _Unsent(Exception):
    """There was no connection to send anything over; its cause says why."""


class _Node:
    """One server, and a few connections to it."""

    def __init__(self, address: Address, dsn: RedisDSN) -> None:
        # The driver's pool would cost more than sending a command does.
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
        # Those that nobody uses. Another list takes its place when what is in use is not to be used again.
        self._free: list[AbstractConnection] = []

    async def exchange(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Send the commands at once and return their answers, errors of the server among them.

        Raises :class:`_Unsent`, or what broke the connection while the answers were awaited.
        """
        loop = asyncio.get_running_loop()
        connection: AbstractConnection | None = None
        answers: list[Any] = []
        free = self._free
        try:
            async with asyncio.timeout_at(loop.time() + _CONNECT_SECONDS) as timeout, self._permits:
                connection = await self._connected()
                timeout.reschedule(loop.time() + _ANSWER_SECONDS)
                try:
                    await connection.send_packed_command([*map(_packed, commands)], check_health=False)
                    for _ in commands:
                        try:
                            answers.append(await connection.read_response())
                        except ResponseError as error:
                            answers.append(error)
                except BaseException:
                    # Answers may still be under way on it.
                    await connection.disconnect(nowait=True)
                    raise
        except FAILURES as error:
            if connection is None:
                raise _Unsent from error
            raise
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            # It was demoted; a new connection finds its successor.
            await self.close()
        if free is self._free:
            free.append(connection)
        else:
            await connection.disconnect(nowait=True)
        return answers

    async def _connected(self) -> AbstractConnection:
        """A connection that nobody uses, the one that was used last, or a new one."""
        while self._free:
            connection = self._free.pop()
            try:
                if not await connection.can_read():
                    return connection
            except FAILURES:
                pass
            # The server has closed it, or has answered what was not asked.
            await connection.disconnect(nowait=True)
        connection = self._make_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def close(self) -> None:
        """Let go of every connection; those in use go when they are not needed any more."""
        free, self._free = self._free, []
        for connection in free:
            await connection.disconnect(nowait=True)


class Servers(abc.ABC):
    """Where calls go."""

    cluster: bool

    @abc.abstractmethod
    def slot(self, key: bytes) -> int:
        """What a call about this key gives as its slot. Calls with one slot can be one call."""

    @abc.abstractmethod
    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """The answers to the calls, in order, or the exceptions (of :data:`FAILURES`) that they met.

        Calls with one slot are carried out in order. Calls that differ in slot do not wait for each other.
        """

    @abc.abstractmethod
    async def on_every_server(self, *commands: tuple[Argument, ...]) -> list[list[Any]]:
        """The answers of each server (of a cluster, each master) to some commands. Raises what went wrong."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of every connection."""


class SingleServer(Servers):
    """One Redis server."""

    cluster = False

    def __init__(self, dsn: RedisDSN) -> None:
        self._node = _Node(dsn.addresses[0], dsn)

    def slot(self, key: bytes) -> int:
        return 0

    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        for last_try in (False, True):
            try:
                answers = await self._node.exchange([call.command(unloaded=False) for call in calls])
                break
            except FAILURES as error:
                # A connection that broke may only have been old; a server that does not answer would not a second time.
                if last_try or isinstance(error, TimeoutError) or any(call.once for call in calls):
                    return [error] * len(calls)
            except _Unsent as unsent:
                return [unsent.__cause__] * len(calls)
        unloaded = [position for position, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unloaded:
            unloaded = _with_followers(unloaded, calls, answers)
            commands = [
                calls[position].command(unloaded=isinstance(answers[position], NoScriptError)) for position in unloaded
            ]
            try:
                later = await self._node.exchange(commands)
            except FAILURES as error:
                later = [error] * len(commands)
            except _Unsent as unsent:
                later = [unsent.__cause__] * len(commands)
            for position, answer in zip(unloaded, later, strict=True):
                answers[position] = answer
        return answers

    async def on_every_server(self, *commands: tuple[Argument, ...]) -> list[list[Any]]:
        return [await _answers_of(self._node, commands)]

    async def close(self) -> None:
        await self._node.close()


class Cluster(Servers):
    """The masters of a Redis Cluster. It learns which slots they have from any node, and again when one moved."""

    cluster = True

    def __init__(self, dsn: RedisDSN) -> None:
        self._dsn = dsn
        self._startup = dsn.addresses
        self._nodes: dict[Address, _Node] = {}
        self._masters: list[Address] = []
        self._slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._failing: set[Address] = set()
        self._loading: asyncio.Task[None] | None = None

    def slot(self, key: bytes) -> int:
        return key_slot(key)

    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        answers: list[Any] = [None] * len(calls)
        waiting: Sequence[int] = range(len(calls))
        # Calls that a node asked to be tried at another one, and those whose script has to be sent along.
        asked: dict[int, Address] = {}
        unloaded: set[int] = set()
        failures = 0
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for round_number in itertools.count():
            batches: dict[Address | None, list[int]] = {}
            for position in waiting:
                batches.setdefault(asked.get(position) or self._slots[calls[position].slot], []).append(position)
            sending = [self._send(to, batch, calls, asked, unloaded, answers) for to, batch in batches.items()]
            # One batch alone is not worth a task.
            broken = [await sending[0]] if len(sending) == 1 else await asyncio.gather(*sending)
            again = []
            moved = busy = False
            for position in waiting:
                answer = answers[position]
                if isinstance(answer, MovedError):
                    moved = True
                    asked.pop(position, None)
                    self._slots[answer.slot_id] = self._redirection(answer, calls[position])
                elif isinstance(answer, AskError):
                    asked[position] = self._redirection(answer, calls[position])
                elif isinstance(answer, NoScriptError):
                    unloaded.add(position)
                elif isinstance(answer, ClusterDownError | TryAgainError):
                    moved |= isinstance(answer, ClusterDownError)
                    busy = True
                elif isinstance(answer, _Unsent):
                    if failures >= _FAILURES_MAX:
                        continue
                elif isinstance(answer, FAILURES) and not isinstance(answer, ResponseError | TimeoutError):
                    if failures >= _FAILURES_MAX or calls[position].once:
                        continue
                else:
                    continue
                again.append(position)
            if any(broken):
                failures += 1
            # Also when nothing is left to do here: what comes next must not meet the same dead node.
            if moved or any(broken):
                await self._reload()
            if not again or time.monotonic() > deadline:
                break
            if busy or round_number >= _REDIRECTIONS_MAX:
                await asyncio.sleep(_PAUSE_SECONDS)
            waiting = _with_followers(again, calls, answers)
        return [answer.__cause__ if isinstance(answer, _Unsent) else answer for answer in answers]

    async def on_every_server(self, *commands: tuple[Argument, ...]) -> list[list[Any]]:
        if not self._masters:
            await self._load()
        try:
            return await asyncio.gather(*(_answers_of(self._node(address), commands) for address in self._masters))
        except FAILURES:
            await self._reload()
            return await asyncio.gather(*(_answers_of(self._node(address), commands) for address in self._masters))

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.close()

    async def _send(
        self,
        address: Address | None,
        batch: list[int],
        calls: Sequence[Call],
        asked: dict[int, Address],
        unloaded: set[int],
        answers: list[Any],
    ) -> bool:
        """Have one node answer some of the calls; True if the connection failed."""
        if address is None:
            for position in batch:
                answers[position] = ClusterDownError("the slot is not served")
            return False
        commands: list[tuple[Argument, ...]] = []
        for position in batch:
            if position in asked:
                commands.append(("ASKING",))
            commands.append(calls[position].command(unloaded=position in unloaded))
        try:
            found = iter(await self._node(address).exchange(commands))
            self._failing.discard(address)
        except (*FAILURES, _Unsent) as error:
            self._failing.add(address)
            for position in batch:
                asked.pop(position, None)
                answers[position] = error
            return True
        for position in batch:
            if asked.pop(position, None):
                next(found)
            answers[position] = next(found)
        return False

    def _redirection(self, error: AskError, call: Call) -> Address:
        # A node that does not know the name it goes by leaves it out: then it is the one that answered.
        current = self._slots[call.slot]
        return error.host or (current[0] if current else self._startup[0][0]), error.port

    def _node(self, address: Address) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Node(address, self._dsn)
        return node

    async def _reload(self) -> None:
        """Learn anew who serves which slot; those who ask while it goes on share it. A failure leaves all as it was."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
        try:
            await asyncio.shield(self._loading)
        except FAILURES:
            pass
        finally:
            if self._loading is not None and self._loading.done():
                self._loading = None

    async def _load(self) -> None:
        failure: BaseException | None = None
        known = dict.fromkeys([*self._masters, *self._nodes, *self._startup])
        # Those that did not answer last time are asked last.
        for address in sorted(known, key=self._failing.__contains__):
            try:
                (ranges,) = await self._node(address).exchange([("CLUSTER", "SLOTS")])
            except (*FAILURES, _Unsent) as error:
                failure = error.__cause__ if isinstance(error, _Unsent) else error
                continue
            if isinstance(ranges, Exception):
                failure = ranges
                continue
            slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for first, last, (host, port, *_), *_replicas in ranges:
                master = (host.decode() if host else address[0]), port
                slots[first : last + 1] = [master] * (last + 1 - first)
            self._slots = slots
            self._masters = list(dict.fromkeys(filter(None, slots)))
            for gone in self._nodes.keys() - {*self._masters, *self._startup}:
                await self._nodes.pop(gone).close()
            return
        raise failure or OSError("the DSN names no server")


def _with_followers(again: Sequence[int], calls: Sequence[Call], answers: Sequence[Any]) -> list[int]:
    """The calls that are sent again, and those behind them in their slot: these were to see what the others do.

    A call that is to be sent once and was carried out is not among them.
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


async def _answers_of(node: _Node, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    try:
        return await node.exchange(commands)
    except _Unsent as unsent:
        raise unsent.__cause__ or unsent from None


def open_servers(dsn: RedisDSN) -> Servers:
    """The servers that a DSN names, not yet connected to. Of a cluster's addresses one that answers is enough."""
    if dsn.cluster:
        return Cluster(dsn)
    return SingleServer(dsn)


def facts_of(info: bytes | Exception) -> dict[str, str]:
    """The fields of an answer to INFO; an error that came in its place is raised."""
    if isinstance(info, Exception):
        raise info
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


# --- failing -----------------------------------------------------------------------------------------------


def problem_of(error: Exception) -> Exception:
    """As :func:`translated`, anew for each who gets it."""
    return Problem(error.code, error.detail) if isinstance(error, Problem) else translated(error)


def translated(error: BaseException) -> Exception:
    """The problem that a driver's or a server's error means; the error itself if it can only be a mistake in here."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return Problem("storage-full", "Redis has reached its maxmemory: give it more or delete something")
    if isinstance(error, AuthenticationError | NoPermissionError) or _REFUSED.match(text):
        return Problem("backend-unavailable", "Redis refuses the DSN's user or password, or what it may do")
    if text.startswith("WRONGTYPE"):
        return Problem(
            "backend-corrupt", "a key of the store holds something else: is the prefix used by another program?"
        )
    if text.startswith("MISCONF"):
        return Problem("backend-unavailable", "Redis cannot write to its disk and takes no writes: see its log")
    if text.startswith("ROWS"):
        return AssertionError(text)
    if isinstance(error, ResponseError) and text.startswith("ERR") and "max number of clients" not in text:
        return error
    if isinstance(error, ReadOnlyError) or text.startswith("READONLY"):
        return Problem("backend-unavailable", IS_REPLICA)
    return Problem("backend-unavailable", _UNAVAILABLE)


# The last three are what a script is told whose user may not run a command or touch a key.
_REFUSED: Final = re.compile(
    "NOAUTH|WRONGPASS|NOPERM|.*(ACL failure in script|can't run this command|can't access at least one of the keys)"
)
IS_REPLICA: Final = "Redis is a replica, which takes no writes and may be behind: name its primary in the DSN"
_UNAVAILABLE: Final = "Redis does not answer or turns requests away: try again"


def unusable(error: Exception) -> Problem:
    """The problem of a store that cannot be opened, which is as likely to be in the DSN as in the server."""
    problem = problem_of(error)
    if isinstance(problem, Problem) and problem.detail != _UNAVAILABLE:
        return problem
    reason = " ".join(str(error).split()) or type(error).__name__
    return Problem("backend-unavailable", f"cannot connect to Redis: {reason[:300]}")
