"""The front door as an ASGI app, for any server that speaks ASGI. The service's own server does not use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import quote

from rstored.api.front_door import FrontDoor
from rstored.api.replies import CLIENT_GONE, Header, Reply
from rstored.api.requests import UNCOUNTED_BYTES_MAX, ClientGone, Request, joined_fields
from rstored.api.state import ServiceState
from rstored.problems import Problem

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class ASGIApp:
    """Serves requests through ``front_door``. The lifespan opens and closes it, or enter :meth:`running` yourself.

    A server runs each request in a task. A read schedules the end of its snapshot on the event loop, and a task that is
    made later begins after that. So the reads of a request are fresh without ``Backend.renew``.
    """

    def __init__(self, front_door: FrontDoor) -> None:
        self.front_door = front_door

    @property
    def state(self) -> ServiceState:
        """What the running service owns. ``RuntimeError`` if it is not running."""
        return self.front_door.state

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ServiceState]:
        """Open what the service needs, and close it at the end."""
        async with self.front_door.running() as state:
            yield state

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the service does not speak {scope['type']}")
        # A server without a raw path gives the decoded one, in which %2F in a key looks like a slash.
        raw_path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        client = scope.get("client")
        request = Request(
            scope["method"],
            raw_path,
            scope["query_string"],
            joined_fields(scope["headers"]),
            _body(receive),
            client[0] if client else "",
            is_tls=scope.get("scheme") == "https",
        )
        request.task = asyncio.current_task()

        async def write(request: Request, reply: Reply) -> None:
            body = reply.body
            if isinstance(body, bytes):
                if reply.status != CLIENT_GONE:
                    await _send_whole(request, reply, body, send)
                return
            gone = asyncio.create_task(_until_gone(receive))
            try:
                await _start(reply.status, [*request.headers_of(reply), *request.on_all], send)
                for chunk in reply.begun:
                    await _send_part(chunk, send)
                async for chunk in body:
                    if gone.done():
                        raise ClientGone
                    await _send_part(chunk, send)
                await send({"type": "http.response.body", "body": b""})
            finally:
                gone.cancel()

        await self.front_door.serve(request, write)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.running())
            except Problem as problem:
                await send({"type": "lifespan.startup.failed", "message": problem.detail})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _body(receive: Receive) -> Callable[[], Awaitable[tuple[bytes, bool]]]:
    async def receive_part() -> tuple[bytes, bool]:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    return receive_part


async def _start(status: int, headers: list[Header], send: Send) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send_part(body: bytes, send: Send) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send_whole(request: Request, reply: Reply, body: bytes, send: Send) -> None:
    headers = [*request.headers_of(reply), *request.on_all]
    if reply.has_length:
        headers.append((b"content-length", b"%d" % len(body)))
    await _start(reply.status, headers, send)
    if request.method == "HEAD":
        body = b""
    if len(body) > UNCOUNTED_BYTES_MAX:
        # The end is a message of its own, which the server takes when the client has read most of the rest. Until then
        # the answer is in memory, and the request is under way.
        await _send_part(body, send)
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
