"""IP addresses, each in one form however it was written, so that one client counts as one."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# An address, and a port if the two can be told apart. A zone (RFC 4007) means nothing on another machine.
_FORWARDED: Final = re.compile(r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([0-9.]+))(?::[0-9]{1,5})?\Z|([0-9A-Fa-f:.]+)\Z")
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


@lru_cache(maxsize=4096)
def canonical_address(text: str) -> str:
    """The address in its shortest form, with IPv4-mapped IPv6 addresses as IPv4. ``ValueError`` for any other text.

    >>> canonical_address("2001:DB8:0::1"), canonical_address("::ffff:192.0.2.1")
    ('2001:db8::1', '192.0.2.1')
    """
    address = ipaddress.ip_address(text)
    return str(getattr(address, "ipv4_mapped", None) or address)


def forwarded_address(text: str) -> str | None:
    """The address in an entry of ``X-Forwarded-For``, without its port; None if the entry has no address.

    >>> forwarded_address("[2001:db8::1]:443"), forwarded_address("192.0.2.1:80"), forwarded_address("unknown")
    ('2001:db8::1', '192.0.2.1', None)
    """
    match = _FORWARDED.match(text)
    if match is None:
        return None
    try:
        return canonical_address(match[1] or match[2] or match[3])
    except ValueError:
        return None


def network(text: str) -> Network:
    """The network, or a single address as a network, with IPv4-mapped ones as IPv4. Raises ``ValueError``.

    >>> network("::ffff:10.0.0.0/104"), network("192.0.2.7")
    (IPv4Network('10.0.0.0/8'), IPv4Network('192.0.2.7/32'))
    """
    found = ipaddress.ip_network(text)
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_MAPPED):
        mapped = found.network_address.ipv4_mapped
        return ipaddress.IPv4Network((str(mapped), found.prefixlen - _MAPPED.prefixlen))
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach this address or name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(canonical_address(host)).is_loopback
    except ValueError:
        return False
