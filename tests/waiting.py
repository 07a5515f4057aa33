"""Waiting for a condition instead of a time: a busy machine takes longer, and passes all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SECONDS_MAX = 60.0
"""How long a condition may take to become true. It is reached only when something is broken."""

_CLOSE_WAIT = 0x08
_LAST_ACK = 0x09
_LISTEN = 0x0A


def until(holds: Callable[[], object], seconds_max: float = SECONDS_MAX) -> None:
    """Return as soon as ``holds()`` is true; raise ``AssertionError`` if that takes longer than ``seconds_max``."""
    end = time.monotonic() + seconds_max
    while not holds():
        assert time.monotonic() < end, f"still not true after {seconds_max:g} s: {holds}"
        time.sleep(0.01)


def _sockets(port: int) -> list[tuple[int, int]]:
    """The state and the number of unread bytes of each socket on a local port, as Linux lists them (``proc(5)``)."""
    rows = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()[1:]]
    return [(int(row[3], 16), int(row[4].partition(":")[2], 16)) for row in rows if int(row[1][-4:], 16) == port]


def listens(port: int) -> bool:
    """Whether a server accepts connections on this port."""
    return any(state == _LISTEN for state, _ in _sockets(port))


def has_read_everything(port: int) -> bool:
    """Whether the server on this port has accepted every connection, read every byte, and closed what clients closed.

    A listening socket counts the connections that wait for it as unread bytes. A socket in LAST-ACK counts the client's
    end as one, although the server has closed it: the kernel still sends what the client does not read.
    """
    return not any(state == _CLOSE_WAIT or (unread and state != _LAST_ACK) for state, unread in _sockets(port))
