"""``AsyncStore``: the caller awaits each operation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self, TypeVar

import httpx2

from rstore.calls import Call, Steps, TryAgain
from rstore.core.errors import StoreError, StoreNotAvailableError
from rstore.store.bare import Home, open_unasked
from rstore.store.operation import Awaited
from rstore.store.operations import Operations
from rstore.transport.attempts import translated
from rstore.transport.budget import TOO_SLOW, Budget
from rstore.transport.connections import LoopTransport, awaited_transport
from rstore.transport.running import carried_out

T = TypeVar("T")


class AsyncStore(Operations[httpx2.AsyncBaseTransport], Awaited):
    """A :class:`Store` whose methods are awaited. It takes the same arguments and has the same methods.

    It has no ``s[k]``, ``k in s`` and ``len(s)``, which cannot be awaited; :meth:`get`, :meth:`has` and :meth:`count`
    stand for them, and ``async for key in store`` goes through the keys. It may be used under several event loops of
    asyncio, and connects under each.

    Args:
        dsn, namespace, key, frozen, sealed_only, token, accept_fernet, trust_pickle: As those of :class:`Store`.
        timeout, retries, deadline, answer_bytes_max, verify, cert: As those of :class:`Store`.
        transport: An asynchronous transport of httpx2 to send with, for example ``httpx2.ASGITransport(app)`` for a
            service in the same process. None: one of the store's own.

    Raises:
        StoreRequestError: As :class:`Store`.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async with AsyncStore(url, "zoo", frozen=False) as zoo:
        ...         await zoo.set("lion", {"age": 7})
        ...         print(await zoo.get("lion"))
        ...         await zoo.discard()
        >>> asyncio.run(main())
        {'age': 7}
    """

    _transport_type = httpx2.AsyncBaseTransport

    async def open(self) -> Self:
        """Connect, and return the store. It creates the namespace unless the store is frozen.

        ``async with`` calls this. Opening a store that is open does nothing.

        Returns:
            The store itself.

        Raises:
            StoreNotAvailableError: The service cannot be reached, or the store is frozen and its namespace does not
                exist.

        Example:
            >>> import asyncio
            >>> async def main():
            ...     zoo = await AsyncStore(url, "zoo", frozen=False).open()
            ...     await zoo.discard()
            ...     await zoo.close()
            >>> asyncio.run(main())
        """
        if self._tls is None:
            open_unasked(self)
            try:
                await self._run(self._opening())
            except BaseException:
                await self.close()
                raise
        return self

    async def close(self) -> None:
        """Close the connections. The store may be opened again, and closing it twice does no harm.

        ``async with`` calls this at its end.

        Example:
            >>> import asyncio
            >>> async def main():
            ...     zoo = await AsyncStore(url, store.namespace).open()
            ...     await zoo.close()
            ...     await zoo.has("lion")
            >>> asyncio.run(main())
            Traceback (most recent call last):
            rstore.StoreError: the store is not open: ...
        """
        home = _here()
        self._tls = None
        self._leave_inherited(home)
        connected = self._connected.pop(home, None)
        # The other event loops close their connections themselves.
        self._connected.clear()
        if connected is not None:
            await connected.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        """All keys in order, as :meth:`keys` returns them."""
        for key in await self.keys():
            yield key

    async def _run(self, steps: Steps[T]) -> T:
        running = carried_out(steps, self._bounds)
        try:
            step = next(running)
            while True:
                if step.pause_seconds:
                    await asyncio.sleep(step.pause_seconds)
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
        """A new transport for this process and event loop."""
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
