"""The proxies in front of the service, and what they say of those who sent a request."""

from __future__ import annotations

import ipaddress
from collections.abc import Coroutine, Iterable
from functools import lru_cache
from typing import Any, Final

from rstored.addresses import Network, forwarded_address
from rstored.http.exchange import App, Message, Receive, Send

__all__ = ["BehindProxies", "Proxies"]

_SCHEMES: Final = frozenset({"http", "https"})
_ADDRESSES_KEPT: Final = 4096


class Proxies:
    """The addresses of proxies that are believed. It holds the address of each of them, in its canonical form."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = list(networks)
        self._holds = lru_cache(_ADDRESSES_KEPT)(self._look_for)

    def __contains__(self, address: object) -> bool:
        return self._holds(address)

    def _look_for(self, address: object) -> bool:
        try:
            parsed = ipaddress.ip_address(address)  # type: ignore[arg-type]
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client_of(self, proxy: str, forwarded: str) -> str:
        """The address of the client for whom ``proxy`` sent a request with this ``X-Forwarded-For``.

        Each proxy appends whom it saw, so the last address that is no proxy is the client's. What stands before it is
        the client's own claim, and so is nothing. Where a proxy appended no address, it is itself the client.
        """
        client = proxy
        for entry in reversed(forwarded.split(",")):
            address = forwarded_address(entry.strip())
            if address is None:
                break
            client = address
            if client not in self:
                break
        return client


class BehindProxies:
    """An ASGI app that gets requests with the address of the client, and the scheme, that its proxies tell of."""

    def __init__(self, app: App, proxies: Proxies) -> None:
        self._app = app
        self._proxies = proxies

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        client = scope.get("client")
        if client and client[0] in self._proxies:
            fields: dict[bytes, list[bytes]] = {b"x-forwarded-for": [], b"x-forwarded-proto": []}
            for name, value in scope["headers"]:
                if name in fields:
                    fields[name].append(value)
            forwarded, schemes = fields.values()
            if forwarded:
                scope["client"] = (self._proxies.client_of(client[0], b",".join(forwarded).decode("latin-1")), 0)
            scheme = schemes[-1].decode("latin-1").strip().lower() if schemes else ""
            if scheme in _SCHEMES:
                scope["scheme"] = scheme
        return self._app(scope, receive, send)
