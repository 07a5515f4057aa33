"""Pages in a browser: which may use an open store, and which of other origins may read answers (CORS).

An open store trusts whoever reaches it, and a browser lets every page reach whatever its machine reaches. So an open
store answers only at names that nobody else can point to it, and does nothing for a page of another origin. That does
not depend on the address it listens on, or on what stands in front of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from rstored.api.replies import Header
from rstored.problems import Problem
from rstored.settings import Settings

__all__ = ["Origins", "is_cross_origin", "is_loopback"]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Answers that a page of another site learns nothing from: a browser shows them in a tab of their own, or hands them to
# a script as far as CORS allows.
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


def is_cross_origin(fields: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another origin sent the request. Nothing else says anything."""
    origin = fields.get(b"origin")
    if origin is None:
        return fields.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
    host = fields.get(b"host", b"localhost")
    return origin not in (b"http://" + host, b"https://" + host)


def _shortest(address: str) -> str:
    """An IPv6 address in the form that settings have; browsers send no other, but people type others."""
    try:
        return str(ipaddress.IPv6Address(address))
    except ValueError:
        return address


class Origins:
    """What the settings say of pages: the names of an open store, and the origins whose pages may read answers."""

    def __init__(self, settings: Settings) -> None:
        self._names = {"localhost", "127.0.0.1", "::1", *settings.host_list}
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
        if not self._is_ours(fields.get(b"host", b"localhost").decode("latin-1").lower()):
            raise Problem(
                "misdirected-request",
                "an open store answers only at localhost, addresses of loopback, and the names in RSTORED_HOSTS",
            )
        if method in _SAFE:
            # A page sees whether a picture or a script that it embeds is there. Without CORS it also sees whether what
            # it prefetches is there, and may read no answer.
            foreign = fields.get(b"sec-fetch-site") == b"cross-site" and (
                fields.get(b"sec-fetch-dest", b"empty") not in _SHOWN or fields.get(b"sec-fetch-mode") == b"no-cors"
            )
        else:
            foreign = is_cross_origin(fields)
        if foreign and fields.get(b"origin") not in self._cors:
            raise Problem("cross-origin-request", "an open store does nothing for a page of another origin")

    def _is_ours(self, host: str) -> bool:
        # A Host that was sent twice does not match: whatever stands between may have believed the other one.
        match = _HOST.match(host)
        if match is None:
            return False
        name = match[2] or _shortest(match[1])
        return name in self._names or name.endswith(".localhost") or is_loopback(name)
