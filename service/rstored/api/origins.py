"""Pages in a browser: which of them may use an open store, and which of other origins may read answers (CORS).

An open store trusts everybody who reaches it, and a browser lets every page reach what its machine reaches. So an open
store answers only at names that nobody else can point to it, and does nothing for a page of another origin. That does
not depend on the address on which it listens, or on a proxy before it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Final

from rstored.addresses import canonical_address, is_loopback
from rstored.api.replies import Header
from rstored.problems import Problem
from rstored.settings import Settings

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST: Final = re.compile(r"(?:\[([0-9a-f.]*:[0-9a-f:.]*)\]|([a-z0-9._-]+))(?::[0-9]*)?\Z")
# No name in the DNS is longer than 253 bytes. A longer one must not be kept.
_HOST_BYTES_MAX: Final = 300
_PREFLIGHT: Final[tuple[Header, ...]] = (
    (
        b"access-control-allow-headers",
        b"accept, authorization, content-type, idempotency-key, if-match, if-none-match, x-request-id",
    ),
    (b"access-control-max-age", b"600"),
)


def is_cross_origin(fields: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another origin sent the request. Other clients say nothing about pages."""
    origin = fields.get(b"origin")
    if origin is None:
        return fields.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
    host = fields.get(b"host", b"localhost")
    return origin.lower() not in (b"http://" + host.lower(), b"https://" + host.lower())


class Origins:
    """The settings for pages: the names of an open store, and the origins whose pages may read answers."""

    def __init__(self, settings: Settings) -> None:
        self._names = {"localhost", "127.0.0.1", "::1", *settings.host_list}
        # Clients send the same few hosts again and again.
        self._is_ours = functools.lru_cache(maxsize=256)(self._names_us)
        self._cors: dict[bytes, tuple[Header, ...]] = {
            origin.encode(): (
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-expose-headers", b"ETag, Rstore-Expires, X-Request-Id, Retry-After"),
                (b"vary", b"origin"),
            )
            for origin in settings.cors_origin_list
        }

    def headers(self, fields: Mapping[bytes, bytes]) -> tuple[Header, ...]:
        """The headers that let a page of a configured origin read the answer. Other pages get none."""
        return self._cors.get(fields.get(b"origin", b""), ())

    def preflight(self, fields: Mapping[bytes, bytes], allow: bytes) -> tuple[Header, ...]:
        """The headers for a browser that asks before it sends a request for a page of a configured origin."""
        if b"access-control-request-method" not in fields or not self.headers(fields):
            return ()
        return ((b"access-control-allow-methods", allow), *_PREFLIGHT)

    def check_open(self, method: str, fields: Mapping[bytes, bytes]) -> None:
        """Raises Problem ``misdirected-request`` or ``cross-origin-request`` if another page may have sent this."""
        host = fields.get(b"host", b"localhost")
        if len(host) > _HOST_BYTES_MAX or not self._is_ours(host):
            raise Problem(
                "misdirected-request",
                "an open store answers only at localhost, addresses of loopback, and the names in RSTORED_HOSTS",
            )
        if method in _SAFE:
            # A page can find out whether a picture, a script or a prefetched document exists. It can also find out
            # whether a window that it opened shows an answer or downloads it, as for a missing key. Only the request
            # of a script with CORS shows nothing.
            foreign = fields.get(b"sec-fetch-site") == b"cross-site" and (
                fields.get(b"sec-fetch-dest", b"empty") != b"empty" or fields.get(b"sec-fetch-mode") == b"no-cors"
            )
        else:
            foreign = is_cross_origin(fields)
        if foreign and fields.get(b"origin") not in self._cors:
            raise Problem(
                "cross-origin-request",
                "an open store does nothing for a page of another origin; type the address to open it yourself",
            )

    def _names_us(self, field: bytes) -> bool:
        """Whether the Host field names an open store."""
        # A Host that was sent twice does not match, because a proxy may have used the other value.
        match = _HOST.match(field.decode("latin-1").lower())
        if match is None:
            return False
        if match[1]:
            # Browsers send the shortest form, but people type other forms.
            try:
                name = canonical_address(match[1])
            except ValueError:
                return False
        else:
            # A dot at the end says that the name is complete. It is the same name (RFC 3986, 3.2.2).
            name = match[2].removesuffix(".")
        return name in self._names or name.endswith(".localhost") or is_loopback(name)
