"""The peer of the key/value benchmark: the least an ASGI app can do, which no service under uvicorn can beat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

VALUE = b'"' + b"x" * 98 + b'"'

_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(VALUE))]


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer GET with a constant, and PUT with 204 once its body has arrived."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    if scope["method"] == "GET":
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": VALUE})
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
