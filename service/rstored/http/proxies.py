"""The proxies in front of the service, and what they say of those who sent a request."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from rstored.addresses import Network, forwarded_address
from rstored.api.replies import Header

__all__ = ["NO_PROXIES", "Proxies"]

_SCHEMES: Final = frozenset({b"http", b"https"})
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

    def origin(self, proxy: str, headers: Iterable[Header], *, is_tls: bool) -> tuple[str, bool]:
        """The address of the client for whom ``proxy`` sent a request with these headers, and whether it used TLS.

        ``is_tls`` is whether the proxy itself did, which counts where it says nothing.
        """
        forwarded: list[bytes] = []
        scheme = b""
        for name, value in headers:
            if name == b"x-forwarded-for":
                forwarded.append(value)
            elif name == b"x-forwarded-proto":
                scheme = value.strip().lower()
        client = self.client_of(proxy, b",".join(forwarded).decode("latin-1")) if forwarded else proxy
        return client, scheme == b"https" if scheme in _SCHEMES else is_tls


NO_PROXIES: Final = Proxies(())
