"""The masters of a Redis Cluster, and which slots they have."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ResponseError, TryAgainError

from rstored.backends.redis.calls import Argument, Call
from rstored.backends.redis.dsn import Address, RedisDSN
from rstored.backends.redis.failures import FAILURES
from rstored.backends.redis.servers import Node, Servers, Unsent, answers_of, with_followers

# For a moment a cluster may not serve a call, because a slot moves or a master is replaced. These say for how long such
# a call is tried again, after how many tries there are pauses, and how often nodes are tried that do not answer.
_PATIENCE_SECONDS: Final = 1.0
_REDIRECTIONS_MAX: Final = 3
_FAILURES_MAX: Final = 1
_PAUSE_SECONDS: Final = 0.05


class Cluster(Servers):
    """The masters of a Redis Cluster. Any node tells which slots they have. It is asked again when a slot has moved."""

    cluster = True

    def __init__(self, dsn: RedisDSN) -> None:
        self._dsn = dsn
        self._startup = dsn.addresses
        self._nodes: dict[Address, Node] = {}
        self._masters: list[Address] = []
        self._slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._failing: set[Address] = set()
        self._loading: asyncio.Task[None] | None = None

    def slot(self, key: bytes) -> int:
        return key_slot(key)

    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        answers: list[Any] = [None] * len(calls)
        waiting: Sequence[int] = range(len(calls))
        # Calls that a node has redirected to another node, and calls that need the source of their script.
        asked: dict[int, Address] = {}
        unloaded: set[int] = set()
        failures = 0
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for round_number in itertools.count():
            batches: dict[Address | None, list[int]] = {}
            for position in waiting:
                batches.setdefault(asked.get(position) or self._slots[calls[position].slot], []).append(position)
            sending = [self._send(to, batch, calls, asked, unloaded, answers) for to, batch in batches.items()]
            # A single batch is not worth a task.
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
                elif isinstance(answer, Unsent):
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
            # This is done even if no call is left, so that later calls do not meet the same dead node.
            if moved or any(broken):
                await self._reload()
            if not again or time.monotonic() > deadline:
                break
            if busy or round_number >= _REDIRECTIONS_MAX:
                await asyncio.sleep(_PAUSE_SECONDS)
            waiting = with_followers(again, calls, answers)
        return [answer.__cause__ if isinstance(answer, Unsent) else answer for answer in answers]

    async def on_every_server(self, *commands: tuple[Argument, ...]) -> list[list[Any]]:
        if not self._masters:
            await self._load()
        try:
            return await asyncio.gather(*(answers_of(self._node(address), commands) for address in self._masters))
        except FAILURES:
            await self._reload()
            return await asyncio.gather(*(answers_of(self._node(address), commands) for address in self._masters))

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
        """Send some of the calls to one node. True if the connection failed."""
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
        except (*FAILURES, Unsent) as error:
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
        # A node that does not know its own name leaves it out. The name is then that of the node that answered.
        current = self._slots[call.slot]
        return error.host or (current[0] if current else self._startup[0][0]), error.port

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(address, self._dsn)
        return node

    async def _reload(self) -> None:
        """Ask again which node serves which slot. Concurrent calls share one question. A failure changes nothing."""
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
        # Nodes that did not answer last time are asked last.
        for address in sorted(known, key=self._failing.__contains__):
            try:
                (ranges,) = await self._node(address).exchange([("CLUSTER", "SLOTS")])
            except (*FAILURES, Unsent) as error:
                failure = error.__cause__ if isinstance(error, Unsent) else error
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
