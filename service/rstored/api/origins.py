"""Pages in a browser: which may ask an open store, and which of other origins may read answers (CORS).

An open store on loopback trusts whoever reaches it, and a browser lets every page reach it. So such a store answers
only to names that nobody else can point to it, and does nothing for a page of another origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from rstored.api.replies import Header
from rstored.problems import Problem
from rstored.settings import Settings

__all__ = ["Origins", "is_loopback"]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Where a browser puts an answer: into a tab of its own, or where a script sees of it what CORS lets it.
_SHOWN: Final = frozenset({b"document", b"empty"})
_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]*)?\Z")
_PREFLIGHT: Final[tuple[Header, ...]] = (
    (
        b"access-control-allow-headers",
        b"accept, authorization, content-type, idempotency-key, if-match, if-none-match, x-request-id",
    ),
    (b"access-control-max-age", b"600"),
)


def is_loopback(host: str) -> bool:
    """Whether the host is an address or name of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Origins:
    """What the settings say of pages. ``guards`` is whether an open store is to be guarded from them."""

    def __init__(self, settings: Settings) -> None:
        # With a proxy in front it is the proxy that knows its names.
        self.guards = is_loopback(settings.host) and not settings.insecure and not settings.trusted_proxies
        self._host = settings.host.lower()
        self._cors: dict[bytes, tuple[Header, ...]] = {
            origin.encode(): (
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-expose-headers", b"ETag, Rstore-Expires, X-Request-Id, Retry-After"),
                (b"vary", b"origin"),
            )
            for origin in settings.cors_origin_list
        }

    def headers(self, fields: Mapping[bytes, bytes]) -> tuple[Header, ...]:
        """The headers that let a page of a configured origin read the answer; none for any other."""
        return self._cors.get(fields.get(b"origin", b""), ())

    def preflight(self, fields: Mapping[bytes, bytes], allow: bytes) -> tuple[Header, ...]:
        """What a browser is told that asks before it sends for a page of a configured origin."""
        if b"access-control-request-method" not in fields or not self.headers(fields):
            return ()
        return ((b"access-control-allow-methods", allow), *_PREFLIGHT)

    def check_open(self, method: str, fields: Mapping[bytes, bytes]) -> None:
        """Raises Problem ``misdirected-request`` or ``cross-origin-request`` for what may be a stranger's page."""
        host = fields.get(b"host", b"localhost")
        if not self._is_ours(host.decode("latin-1").lower()):
            raise Problem(
                "misdirected-request",
                "an open store answers only to localhost, an address of loopback, or the address it listens on",
            )
        origin, site = fields.get(b"origin"), fields.get(b"sec-fetch-site", b"none")
        if method in _SAFE:
            # What is embedded in a page, a picture or a script, tells it whether it is there.
            foreign = site == b"cross-site" and fields.get(b"sec-fetch-dest", b"empty") not in _SHOWN
        elif origin is None:
            foreign = site not in (b"none", b"same-origin")
        else:
            foreign = origin not in (b"http://" + host, b"https://" + host) and origin not in self._cors
        if foreign:
            raise Problem("cross-origin-request", "an open store does nothing for a page of another origin")

    def _is_ours(self, host: str) -> bool:
        # One that was given twice does not match: whoever stands between may have believed the other one.
        match = _HOST.match(host)
        if match is None:
            return False
        name = match[1] or match[2]
        return name in ("localhost", self._host) or name.endswith(".localhost") or is_loopback(name)
