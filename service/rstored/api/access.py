"""Who may do what: how a bearer token becomes a grant, and which access each operation needs.

A store is closed if a setting says so, if a service with an admin token ever ran on it, or if a token was ever made in
it. Otherwise it is open, and every request is allowed. A verified token is remembered for a bounded time. So a revoked
token ends within that time, and verifying a busy token takes a hash and a lookup in a dict.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import SecretStr

from rstore.core.globs import compile_glob
from rstored.engine.model import Access
from rstored.engine.tokens import Tokens, tokens_lost
from rstored.limits import Limits
from rstored.problems import Problem

T = TypeVar("T")

_BEARER: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([\x21-\x7e]+)\Z")
_ADMIN_ID: Final = "RSTORED_ADMIN_TOKEN"
# The number of entries in each cache. They are small, and a dropped entry costs one read of the backend.
CACHED_MAX: Final = 10_000
_MINUTE: Final = 60.0


class Rate:
    """How often something may happen: ``per_second`` times, in bursts of as many. It stores when the next is due."""

    __slots__ = ("_due", "_per_second")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._due = 0.0

    def take(self, now: float) -> None:
        """Count one event at the time ``now``. Raises Problem ``rate-limited``."""
        due = max(self._due, now)
        # A burst may be due up to a second from now.
        wait = due - now - 1 + 1 / self._per_second
        if wait > 1e-9:
            detail = f"this token has sent more than {self._per_second} requests within a second"
            raise Problem("rate-limited", detail, limit=self._per_second, retry_after_seconds=int(wait) + 1)
        self._due = due + 1 / self._per_second


class Grant:
    """What the holder of a token may do, in the namespaces that match one of the ``globs``."""

    __slots__ = ("_access", "everywhere", "globs", "rate", "token_id")

    def __init__(self, token_id: str, namespaces: Sequence[str], access: Access, rate: Rate | None = None) -> None:
        self.token_id = token_id
        self.rate = rate
        self.everywhere = "*" in namespaces
        self._access = access
        self.globs = [compile_glob(glob) for glob in namespaces]

    def reaches(self, namespace: str) -> bool:
        """Whether the holder may know whether this namespace exists."""
        if self.everywhere:
            return True
        for glob in self.globs:  # noqa: SIM110 (half the time of any(), and every request asks)
            if glob.matches(namespace):
                return True
        return False

    def permits(self, access: Access) -> bool:
        """Whether the holder has this access to any namespace at all."""
        return access <= self._access

    def allows(self, namespace: str | None, access: Access) -> bool:
        """Whether the holder has this access to a namespace, or to the whole service (None)."""
        if access > self._access:
            return False
        return self.everywhere or (namespace is not None and self.reaches(namespace))


OPEN: Final = Grant("", ("*",), Access.ADMIN)
"""The grant of everybody in an open store."""

NOBODY: Final = Grant("", (), Access.METRICS)
"""The grant of a request that needs no token. It allows nothing that takes a token."""


class Reach(enum.Enum):
    """Where an operation needs access: to the namespace of the request, to any namespace, or to the whole service."""

    NAMESPACE = enum.auto()
    ANY_NAMESPACE = enum.auto()
    SERVICE = enum.auto()


# Every request compares with it, and looking up a member of an enumeration takes longer than a name.
_NAMESPACE: Final = Reach.NAMESPACE


class Rule(NamedTuple):
    """Who may carry out an operation: whoever has this access within ``reach``, or everybody if no token is needed."""

    access: Access
    reach: Reach = Reach.NAMESPACE
    needs_token: bool = True

    def check(self, grant: Grant, namespace: str) -> None:
        """Raises Problem ``access-denied``."""
        access, reach, _ = self
        if reach is _NAMESPACE:
            allowed = grant.allows(namespace, access)
        elif reach is Reach.SERVICE:
            allowed = grant.allows(None, access)
        else:
            allowed = grant.permits(access)
        if not allowed:
            raise denied()


ANY_READER: Final = Rule(Access.READ, Reach.ANY_NAMESPACE)
"""The rule that lets in every token except one for metrics."""

PUBLIC: Final = Rule(Access.METRICS, Reach.SERVICE, needs_token=False)


def denied() -> Problem:
    """The one answer to everything beyond a grant. It does not show whether the thing exists."""
    return Problem("access-denied", "the token does not reach this namespace with this operation")


class _Known(NamedTuple):
    grant: Grant
    until: float


class Authentication:
    """Turns ``Authorization`` headers into grants. Times are those of ``time.perf_counter``."""

    def __init__(
        self,
        tokens: Tokens,
        limits: Limits,
        clock: Callable[[], int],
        *,
        closed: bool = False,
        admin_token: SecretStr | None = None,
        cache_seconds: float = 5,
    ) -> None:
        """``clock`` gives POSIX milliseconds. With ``closed``, the store is closed whatever its storage says."""
        self._tokens = tokens
        self._limits = limits
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._admin = None if admin_token is None else _hash(admin_token.get_secret_value().encode())
        self._closed = closed or admin_token is not None
        self._open_until = 0.0
        self._known: dict[bytes, _Known] = {}
        self._unknown: dict[bytes, float] = {}
        self._rates: dict[str, Rate] = {}
        self._failures = _Failures(limits.failed_authentications_per_minute_max)
        self._under_way: dict[bytes, asyncio.Task[Any]] = {}

    async def is_closed(self) -> bool:
        """Whether a token is needed. It asks the backend if the last answer is too old."""
        now = time.perf_counter()
        if not self._closed and now >= self._open_until:
            if await self._once(b"", self._tokens.exist):
                self._closed = True
            else:
                self._open_until = now + self._cache_seconds
        return self._closed

    async def check_storage(self) -> None:
        """Raises Problem ``tokens-lost`` if the store is closed and its storage has no record of that.

        Then the storage is another one, or was emptied. The service lets nobody in, but the storage itself looks open.
        """
        if await self.is_closed() and not await self._once(b"", self._tokens.exist):
            raise tokens_lost()

    def known(self, header: bytes | None, now: float) -> Grant | None:
        """The grant of the header, if it is in the cache at the time ``now``."""
        if self._closed:
            known = None if header is None else self._known.get(_digest(header))
            return known.grant if known is not None and now < known.until else None
        return OPEN if now < self._open_until else None

    async def authenticate(self, header: bytes | None, client: str) -> Grant:
        """The grant of the header, sent from the address ``client``.

        Raises Problem ``unauthenticated``, ``rate-limited`` if too many attempts failed, and ``tokens-lost`` or
        ``backend-unavailable``, because a token that cannot be verified lets nobody in.
        """
        if not await self.is_closed():
            return OPEN
        if header is None:
            raise Problem("unauthenticated", "this store is closed: send a token as `Authorization: Bearer …`")
        digest = _digest(header)
        now = time.perf_counter()
        if self._unknown.get(digest, now) <= now:
            grant = await self._once(digest, self._verify, _token(header), digest)
            if grant is not None:
                return grant
        # Only failed tokens count, and only against failed tokens. A valid token is let in whatever others at its
        # address send.
        self._failures.take(client, now)
        if not _token(header):
            raise Problem("unauthenticated", "the header has no bearer token: send one as `Authorization: Bearer …`")
        raise Problem("unauthenticated", "the token is unknown: it never existed, has expired or was revoked")

    async def _verify(self, token: bytes, digest: bytes) -> Grant | None:
        now = time.perf_counter()
        until = now + self._cache_seconds
        if self._admin is not None and hmac.compare_digest(digest, self._admin):
            grant = Grant(_ADMIN_ID, ("*",), Access.ADMIN, self._rate(_ADMIN_ID))
        else:
            valid = await self._tokens.verify(token.decode("ascii"))
            if valid is None:
                self._known.pop(digest, None)
                _remember(self._unknown, digest, until)
                return None
            if valid.until_ms is not None:
                until = min(until, now + (valid.until_ms - self._clock()) / 1000)
            grant = Grant(valid.info.id, valid.info.namespaces, valid.info.access, self._rate(valid.info.id))
        _remember(self._known, digest, _Known(grant, until))
        return grant

    def _rate(self, token_id: str) -> Rate | None:
        if not self._limits.requests_per_second_max:
            return None
        if token_id not in self._rates:
            _remember(self._rates, token_id, Rate(self._limits.requests_per_second_max))
        return self._rates[token_id]

    async def _once(self, name: bytes, ask: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """What ``ask`` returns. Callers that ask for the same name meanwhile share the answer."""
        task = self._under_way.get(name)
        if task is None:
            task = asyncio.ensure_future(ask(*arguments))
            self._under_way[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))
        try:
            # A caller that is cancelled must not cancel the question of the others.
            answer: T = await asyncio.shield(task)
        except Problem as problem:
            raise problem.again() from None
        return answer

    def _ended(self, name: bytes, task: asyncio.Task[Any]) -> None:
        del self._under_way[name]
        if not task.cancelled():
            # If all callers are gone, asyncio would otherwise report that nobody looked at the exception.
            task.exception()


class _Failures:
    """How many authentications failed in this minute, by address."""

    def __init__(self, per_minute_max: int) -> None:
        self._per_minute_max = per_minute_max
        self._counts: dict[str, int] = {}
        self._end = 0.0

    def take(self, client: str, now: float) -> None:
        """Count a failure of this address. Raises Problem ``rate-limited`` if there were too many."""
        if now >= self._end:
            self._counts.clear()
            self._end = now + _MINUTE
        name = self._name(client)
        count = self._counts.get(name, 0)
        if count >= self._per_minute_max:
            detail = f"{self._per_minute_max} unknown tokens came from this address within a minute: send a valid one"
            wait = int(self._end - now) + 1
            raise Problem("rate-limited", detail, limit=self._per_minute_max, retry_after_seconds=wait)
        self._counts[name] = count + 1

    def _name(self, client: str) -> str:
        """The name under which the client is counted."""
        network = _network(client)
        if network not in self._counts and len(self._counts) >= CACHED_MAX:
            # This many addresses are one attack. They share one count, which bounds all of them together.
            return ""
        return network


def _network(client: str) -> str:
    """The IPv6 network of an address, since one client may have all its addresses. For IPv4 the address itself."""
    if ":" not in client:
        return client
    try:
        return str(ipaddress.ip_network(f"{client.partition('%')[0]}/64", strict=False))
    except ValueError:
        return client


def _token(header: bytes) -> bytes:
    """The token in an ``Authorization`` header. Empty if there is none; no token is empty."""
    match = _BEARER.match(header)
    return match[1] if match else b""


def _digest(header: bytes) -> bytes:
    """The name of a header in the cache: the digest of its token, however the header is spaced."""
    return _hash(_token(header))


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _remember(cache: dict[Any, Any], name: Any, value: Any) -> None:
    """Keep ``value`` at the end of the cache. If it is full, the oldest entry is dropped."""
    cache.pop(name, None)
    if len(cache) >= CACHED_MAX:
        del cache[next(iter(cache))]
    cache[name] = value
