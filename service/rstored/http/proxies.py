"""The trusted proxies before the service, and what they say about the client of a request."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from rstored.addresses import Network, forwarded_address

_SCHEMES: Final = frozenset({b"http", b"https"})
_ADDRESSES_KEPT: Final = 4096


class Proxies:
    """The addresses of the trusted proxies. ``address in proxies`` takes an address in its canonical form."""

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

        Each proxy appends the address that it saw. So the last address that is not a trusted proxy is the client's. The
        addresses before it are only claims of the client. A proxy that appended no address counts as the client.

        >>> proxies = Proxies([ipaddress.ip_network("10.0.0.0/8")])
        >>> proxies.client_of("10.0.0.1", "1.1.1.1, 192.0.2.7, 10.0.0.2")
        '192.0.2.7'
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

    def origin(self, proxy: str, fields: Mapping[bytes, bytes], *, is_tls: bool) -> tuple[str, bool]:
        """The address of the client for whom ``proxy`` sent a request with these fields, and whether it used TLS.

        ``is_tls`` says whether the proxy itself used TLS. It counts if the proxy says nothing about the client.
        """
        forwarded = fields.get(b"x-forwarded-for")
        client = proxy if forwarded is None else self.client_of(proxy, forwarded.decode("latin-1"))
        # The last proxy appended the last value.
        scheme = fields.get(b"x-forwarded-proto", b"").rpartition(b",")[2].strip().lower()
        return client, scheme == b"https" if scheme in _SCHEMES else is_tls


NO_PROXIES: Final = Proxies(())
