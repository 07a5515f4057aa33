"""``AsyncStore``: operations that are awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TypeVar

import httpx2

from rstore.calls import Call, Steps, TryAgain
from rstore.core.errors import StoreError, StoreNotAvailableError
from rstore.store.base import Home
from rstore.store.operation import Awaited
from rstore.store.operations import Operations
from rstore.transport.attempts import translated
from rstore.transport.budget import TOO_SLOW, Budget
from rstore.transport.connections import LoopTransport, awaited_transport
from rstore.transport.running import Exchange, carried_out

__all__ = ["AsyncStore"]

T = TypeVar("T")


class AsyncStore(Operations[httpx2.AsyncBaseTransport], Awaited):
    """:class:`Store`, awaited: the same arguments and the same methods.

    It may be used under several event loops of asyncio: it connects under each. The dict-like face is left out but for
    ``async for key in store``; ``transport`` is an asynchronous one, for instance ``httpx2.ASGITransport(app)`` to
    reach a service in the same process.
    """

    _transport_type = httpx2.AsyncBaseTransport

    async def open(self) -> AsyncStore:
        """Connect. Creates the namespace unless frozen; raises :class:`StoreNotAvailableError` if that fails."""
        if self._tls is None:
            self._connect()
            try:
                await self._run(self._opening())
            except BaseException:
                await self.close()
                raise
        return self

    async def close(self) -> None:
        """Close the connections. The store may be opened again; closing twice does no harm."""
        home = _here()
        self._tls = None
        self._leave_inherited(home)
        connected = self._connected.pop(home, None)
        # Another event loop closes by itself what is dropped here.
        self._connected.clear()
        if connected is not None:
            await connected.close()

    async def __aenter__(self) -> AsyncStore:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        for key in await self.keys():
            yield key

    async def _run(self, steps: Steps[T]) -> T:
        running = carried_out(steps, self._bounds)
        try:
            step = next(running)
            while True:
                if not isinstance(step, Exchange):
                    await asyncio.sleep(step)
                    step = next(running)
                    continue
                try:
                    answer = await self._exchange(step.call, step.budget)
                except (StoreError, TryAgain) as error:
                    step = running.throw(error)
                else:
                    step = running.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _connection(self) -> LoopTransport:
        """New connections for this process and event loop."""
        home = _here()
        if self._given_transport is None:
            for process, loop in list(self._connected):
                if loop is not None and loop.is_closed():
                    self._connected.pop((process, loop), None)
        transport = self._new_transport(home, awaited_transport)
        connected = await LoopTransport(transport, owned=self._given_transport is None).begin()
        self._connected[home] = connected
        return connected

    async def _exchange(self, call: Call[T], budget: Budget) -> T:
        connected = self._connected.get(_here()) or await self._connection()
        try:
            async with asyncio.timeout(budget.seconds_left()):
                return await self._answer(call, budget, connected.transport)
        except TimeoutError:
            raise StoreNotAvailableError(TOO_SLOW) from None

    async def _answer(self, call: Call[T], budget: Budget, transport: httpx2.AsyncBaseTransport) -> T:
        request = self._service.request(call)
        with translated():
            response = await transport.handle_async_request(request)
            try:
                reader = budget.reader(call, response)
                async for chunk in response.stream:  # type: ignore[union-attr]
                    budget.receive(len(chunk))
                    reader.feed(chunk)
            finally:
                await response.aclose()
        return reader.finish()


def _here() -> Home:
    """This process and the running event loop."""
    try:
        return os.getpid(), asyncio.get_running_loop()
    except RuntimeError:
        raise StoreError("an AsyncStore is awaited under an event loop of asyncio, and none is running here") from None
