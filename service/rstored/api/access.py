"""Who may do what: bearer tokens into grants, and what each operation needs.

A store is closed if a setting says so, if a service with an admin token ever ran on it, or if a token was ever made in
it; otherwise it is open, and every request is allowed. What the backend said of a token counts for a bounded time, so a
revoked one ends within it, and a busy one costs a hash and a look into a dict.
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

__all__ = ["ANY_READER", "CACHED_MAX", "NOBODY", "OPEN", "PUBLIC", "Authentication", "Grant", "Reach", "Rule", "denied"]

T = TypeVar("T")

_BEARER: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([\x21-\x7e]+)\Z")
_ADMIN_ID: Final = "RSTORED_ADMIN_TOKEN"
# Entries of each of the caches. They are small, and what falls out costs a read of the backend.
CACHED_MAX: Final = 10_000
_MINUTE: Final = 60.0


class Rate:
    """How often something may happen: ``per_second`` times, and as often at once. Holds one number: when it is due."""

    __slots__ = ("_due", "_per_second")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._due = 0.0

    def take(self, now: float) -> None:
        """Count one at the time ``now``. Raises Problem ``rate-limited``."""
        due = max(self._due, now)
        # What is due at most a second from now is the burst.
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
        """Whether the holder may know that there is, or is not, such a namespace."""
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
        """Whether the holder may do what takes this access to a namespace, or to the whole service (None)."""
        if access > self._access:
            return False
        return self.everywhere or (namespace is not None and self.reaches(namespace))


OPEN: Final = Grant("", ("*",), Access.ADMIN)
"""What everybody may do in an open store."""

NOBODY: Final = Grant("", (), Access.METRICS)
"""What a request may do that needs no token: nothing of what tokens allow."""


class Reach(enum.Enum):
    """To what an operation takes access: the namespace of the request, any one namespace, or the whole service."""

    NAMESPACE = enum.auto()
    ANY_NAMESPACE = enum.auto()
    SERVICE = enum.auto()


# Every request compares with it, and a member is looked up more slowly than a name.
_NAMESPACE: Final = Reach.NAMESPACE


class Rule(NamedTuple):
    """What it takes to be let in: this access to all that ``reach`` says, or, unless it ``needs_token``, nothing."""

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
"""For every token but one for metrics."""

PUBLIC: Final = Rule(Access.METRICS, Reach.SERVICE, needs_token=False)


def denied() -> Problem:
    """The one answer to whatever is beyond a grant, be it there or not."""
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
        """``clock`` gives POSIX milliseconds. A store that is ``closed`` stays so, whatever its storage says."""
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
        """Whether a token is needed; asks the backend if what is known is too old."""
        now = time.perf_counter()
        if not self._closed and now >= self._open_until:
            if await self._once(b"", self._tokens.exist):
                self._closed = True
            else:
                self._open_until = now + self._cache_seconds
        return self._closed

    async def check_storage(self) -> None:
        """Raises Problem ``tokens-lost`` if the store is closed and its storage has no record of that.

        The storage then is another one, or was emptied. Nobody is let in, but nothing in it says to keep them out.
        """
        if await self.is_closed() and not await self._once(b"", self._tokens.exist):
            raise tokens_lost()

    def known(self, header: bytes | None, now: float) -> Grant | None:
        """The grant of the header if it is known at the time ``now``."""
        if self._closed:
            known = None if header is None else self._known.get(_digest(header))
            return known.grant if known is not None and now < known.until else None
        return OPEN if now < self._open_until else None

    async def authenticate(self, header: bytes | None, client: str) -> Grant:
        """The grant of the header, sent from the address ``client``.

        Raises Problem ``unauthenticated``, ``rate-limited`` where too many attempts failed, and ``tokens-lost`` or
        ``backend-unavailable``: a token that cannot be verified lets nobody in.
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
        # Only a token that failed counts, and only against itself: a valid one is let in whatever others at its
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
        """What ``ask`` returns; who comes while somebody asks the same waits for that answer."""
        task = self._under_way.get(name)
        if task is None:
            task = asyncio.ensure_future(ask(*arguments))
            self._under_way[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))
        try:
            # One who goes away must not take the answer from the others.
            answer: T = await asyncio.shield(task)
        except Problem as problem:
            # Each caller gets its own: an exception that is raised twice collects both tracebacks.
            raise Problem(problem.code, problem.detail, **problem.members) from None
        return answer

    def _ended(self, name: bytes, task: asyncio.Task[Any]) -> None:
        del self._under_way[name]
        if not task.cancelled():
            # Looked at, or it would be reported as forgotten when all who waited have gone away.
            task.exception()


class _Failures:
    """How many authentications failed in this minute, by address."""

    def __init__(self, per_minute_max: int) -> None:
        self._per_minute_max = per_minute_max
        self._counts: dict[str, int] = {}
        self._end = 0.0

    def take(self, client: str, now: float) -> None:
        """Count one from this address. Raises Problem ``rate-limited`` if there were too many."""
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
        """What the client is counted under."""
        network = _network(client)
        if network not in self._counts and len(self._counts) >= CACHED_MAX:
            # So many addresses are one attack; the count that it shares bounds it as a whole.
            return ""
        return network


def _network(client: str) -> str:
    """What one client may have many addresses of: an IPv6 network; else the address itself."""
    if ":" not in client:
        return client
    try:
        return str(ipaddress.ip_network(f"{client.partition('%')[0]}/64", strict=False))
    except ValueError:
        return client


def _token(header: bytes) -> bytes:
    """The token in an ``Authorization`` header; empty, which none is, if there is none."""
    match = _BEARER.match(header)
    return match[1] if match else b""


def _digest(header: bytes) -> bytes:
    """What a header is known under: its token's digest, however it is spaced."""
    return _hash(_token(header))


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _remember(cache: dict[Any, Any], name: Any, value: Any) -> None:
    """Keep ``value`` at the end of the cache; what was written longest ago makes room."""
    cache.pop(name, None)
    if len(cache) >= CACHED_MAX:
        del cache[next(iter(cache))]
    cache[name] = value
