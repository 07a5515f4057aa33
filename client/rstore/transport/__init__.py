"""What sending has in common, blocking or not: where to, under which headers, and when to try again."""

from __future__ import annotations

import contextlib
import os
import random
import re
import ssl
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import httpx2

from rstore.calls import Call, Head, Reader, TryAgain
from rstore.calls.arguments import check_seconds, check_text, invalid, refuse
from rstore.core.errors import PROBLEMS, StoreError, StoreNotAvailableError, StoreProtocolError, StoreRequestError

__all__ = [
    "TOO_SLOW",
    "Attempts",
    "Awaited",
    "Budget",
    "Certificate",
    "Service",
    "awaited_transport",
    "blocking_transport",
    "leave_to_parent",
    "translated",
]

T = TypeVar("T")
Certificate: TypeAlias = str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]]

_DSN: Final = "the dsn is the URL of a running service, like http://127.0.0.1:8000"
_BACKOFF_SECONDS: Final = 0.05
_PAUSE_SECONDS_MAX: Final = 5.0
# Answers that say nothing of a write's attempts before: they come before anybody looks whether it was carried out.
_UNHEARD_STATUSES: Final = frozenset({401, 403, 408, 429})
_OPEN_CODES: Final = frozenset({"backend-unavailable", "backend-corrupt", "internal-error", "deadline-exceeded"})
TOO_SLOW: Final = "the service took longer than an operation may take"
_ANSWER_OVERHEAD_BYTES: Final = 1024
# All that a burst opened are kept, and for less time than services (75 s) and what stands before them (60 s) keep them.
_CONNECTIONS: Final = httpx2.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=50)
# What the system can wait for on a socket: some 24 days.
_TIMEOUT_SECONDS_MAX: Final = 2_000_000
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}\Z")
# The jitter keeps clients apart from each other, those that are forks of one process too.
_jitter: Final = random.SystemRandom()


class _Secret(bytes):
    """A header's value that stands in no ``repr``: a traceback may show every variable."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a store that has a token is not pickled, or the token would lie wherever the pickle does")


class Service:
    """A service's address, and what every request to it carries. Knows no socket."""

    def __init__(
        self, url: str, *, token: str | None, timeout: float, verify: Any, cert: Certificate | None = None
    ) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        if isinstance(token, str) and _TOKEN.match(token):
            self._headers.append((b"authorization", _Secret(b"Bearer " + str.encode(token, "ascii"))))
        wrong = token is not None and not self._headers
        # No traceback shows it among the variables.
        del token
        if wrong:
            raise invalid("the token is not one: it is empty, no str, or has characters that no token has")
        self.url = _base_url(url)
        self._base = str(self.url).rstrip("/")
        if not isinstance(verify, bool | ssl.SSLContext) and not _is_path(verify):
            refuse("verify", "True, False, a file or an ssl.SSLContext", verify)
        self._verify = verify
        if not (
            cert is None
            or _is_path(cert)
            or (isinstance(cert, tuple | list) and list(map(_is_path, cert)) == [True, True])
        ):
            refuse("cert", "a file, or the pair of a file with the certificate and one with its key", cert)
        self._cert = cert
        seconds = check_seconds(timeout, "timeout", zero=False, most=_TIMEOUT_SECONDS_MAX)
        self._extensions = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), float(seconds))}
        self._headers += [
            (b"host", self.url.netloc),
            (b"user-agent", b"rstore-python"),
            # What is compressed could be a bomb, and most of what a store holds is ciphertext anyway.
            (b"accept-encoding", b"identity"),
        ]

    def request(self, call: Call[Any]) -> httpx2.Request:
        """The call as an HTTP request."""
        try:
            return httpx2.Request(
                call.method,
                self._base + call.target,
                headers=[*self._headers, *call.headers],
                content=call.body or None,
                extensions=self._extensions,
            )
        except httpx2.InvalidURL as error:
            raise StoreRequestError(f"the request does not fit into a URL: {error}", code="uri-too-long") from None

    def tls(self) -> ssl.SSLContext | bool:
        """What verifies the service, and proves the client to it.

        Nothing to verify without TLS, and redirects to it are not followed. Raises StoreRequestError for files that
        cannot be read, or are not what they should be.
        """
        if self.url.scheme == "http":
            return False
        verify: ssl.SSLContext | bool
        if isinstance(self._verify, str | os.PathLike):
            with _named("the file of certificates (verify)"):
                verify = ssl.create_default_context(cafile=_path(self._verify))
        else:
            verify = self._verify
        if self._cert is not None:
            verify = httpx2.create_ssl_context(verify, trust_env=False)
            cert, key = (self._cert, None) if isinstance(self._cert, str | os.PathLike) else self._cert
            with _named("the client's certificate and its key (cert)"):
                # Never ask for a password on the terminal: a key that needs one goes into a context of one's own.
                verify.load_cert_chain(_path(cert), None if key is None else _path(key), lambda: "")
        return verify


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, ssl.SSLError):
            reason = "not in PEM form, or they do not belong together"
        raise invalid(f"{what} cannot be used: {reason}") from None


def _is_path(value: object) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and str.__len__(value) > 0)


def _path(value: str | os.PathLike[str]) -> str | bytes:
    """The path as plain text: one that says it is false would not be used at all."""
    path: str | bytes = os.fspath(value)
    return str.__str__(path) if isinstance(path, str) else path


def _base_url(text: str) -> httpx2.URL:
    text = check_text(text, "dsn")
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError):
        raise invalid("the dsn is not a URL; it is that of a running service, like http://127.0.0.1:8000") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise invalid(
            "the dsn is the URL of a running service, like http://127.0.0.1:8000; "
            "the DSN of a database is for the service itself"
        )
    if url.port is not None and not 0 < url.port < 2**16:
        raise invalid("the port in the dsn is a number from 1 to 65535")
    if url.userinfo:
        raise invalid("the dsn holds a user or a password; give the service's token as `token`")
    if url.query or url.fragment:
        raise invalid("the dsn is the URL of a service and has no query and no fragment")
    return url


class Budget:
    """How many bytes of memory the answers to one operation may still take, and until when."""

    __slots__ = ("_end", "_left")

    def __init__(self, size: int, seconds: float) -> None:
        self._left = size
        self._end = time.monotonic() + seconds

    def spend(self, size: int) -> None:
        """Take ``size`` bytes, or give them back if it is negative. Raises StoreProtocolError if that is too much."""
        if size > self._left:
            raise StoreProtocolError("the answer takes more memory than answer_bytes_max allows")
        self._left -= size

    def receive(self, size: int) -> None:
        """Take ``size`` bytes that have come. Raises as :meth:`spend`, and StoreNotAvailableError if it is too late."""
        self.spend(size)
        if time.monotonic() > self._end:
            raise StoreNotAvailableError(TOO_SLOW)

    def seconds_left(self) -> float:
        return max(self._end - time.monotonic(), 0)

    def reader(self, call: Call[T], response: httpx2.Response) -> Reader[T]:
        """What reads this answer to the call."""
        headers = _fields(response)
        # A server that answers a paged listing with empty pages for ever runs out of budget as well.
        self.receive(_ANSWER_OVERHEAD_BYTES)
        if headers.get("content-encoding", "identity") != "identity":
            raise StoreProtocolError("the answer is compressed, which was not asked for", status=response.status_code)
        return call.reader(Head(response.status_code, headers), self.spend)


def _fields(response: httpx2.Response) -> dict[str, str]:
    """The fields of an answer's head by lower-case name. Those of one name are joined, as in RFC 9110, 5.2."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in response.headers.raw:
        name, value = raw_name.lower().decode("latin-1"), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


_inherited: Final[list[object]] = []


def leave_to_parent(connected: object) -> None:
    """Keep what a forked process inherited, and never touch it again.

    The connections belong to the parent process. Closing them in the child would take locks that a thread of the parent
    held during the fork, and would change the state of an event loop that both processes share.
    """
    _inherited.append(connected)


def awaited_transport(tls: ssl.SSLContext | bool) -> httpx2.AsyncHTTPTransport:
    """A transport for AsyncStore. Awaiting can be given up, so it needs no bounds of its own."""
    return httpx2.AsyncHTTPTransport(verify=tls, trust_env=False, limits=_CONNECTIONS)


class Awaited:
    """A transport under one event loop. The loop closes it before it ends, as it does all asynchronous generators."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, *, owned: bool) -> None:
        self.transport = transport
        self._closing = _closing(transport if owned else None)

    async def begin(self) -> Awaited:
        """Let the event loop know of it."""
        await anext(self._closing)
        return self

    async def close(self) -> None:
        """Close the transport if it is owned."""
        await self._closing.aclose()


async def _closing(transport: httpx2.AsyncBaseTransport | None) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        if transport is not None:
            await transport.aclose()


def blocking_transport(tls: ssl.SSLContext | bool, seconds_max: float) -> httpx2.HTTPTransport:
    """A transport that reads from no connection for longer than this after it last wrote to it.

    The HTTP library bounds how long one read takes, but not how many there are: a head that comes byte by byte, or
    one 103 after the other, would keep it reading for ever.
    """
    transport = httpx2.HTTPTransport(verify=tls, trust_env=False, limits=_CONNECTIONS)
    pool: Any = transport._pool  # noqa: SLF001
    pool._network_backend = _BoundedBackend(pool._network_backend, seconds_max)  # noqa: SLF001
    return transport


class _BoundedBackend:
    """The HTTP library's network, whose connections are bounded."""

    def __init__(self, backend: Any, seconds_max: float) -> None:
        self._backend = backend
        self._seconds_max = seconds_max

    def connect_tcp(self, *args: Any, **options: Any) -> _BoundedStream:
        return _BoundedStream(self._backend.connect_tcp(*args, **options), self._seconds_max)


class _BoundedStream:
    """A connection from which nothing is read later than ``seconds_max`` after something was written."""

    def __init__(self, stream: Any, seconds_max: float) -> None:
        self._stream = stream
        self._seconds_max = seconds_max
        self._end = 0.0
        self.close = stream.close
        self.get_extra_info = stream.get_extra_info

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)
        self._end = time.monotonic() + self._seconds_max

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if time.monotonic() > self._end:
            raise StoreNotAvailableError(TOO_SLOW)
        data: bytes = self._stream.read(max_bytes, timeout)
        return data

    def start_tls(self, *args: Any, **options: Any) -> _BoundedStream:
        return _BoundedStream(self._stream.start_tls(*args, **options), self._seconds_max)


class Attempts:
    """Counts how often a call was sent, and decides whether and when it is sent again.

    No attempt begins later than ``seconds_max`` after the first, nor after ``retries`` further ones; the pauses
    between them double and are spread at random. A call that is not ``repeatable`` is sent again only if no attempt
    can have been carried out.
    """

    __slots__ = ("_end", "_number", "_repeatable", "_retries", "_unknown", "_writes")

    def __init__(self, call: Call[Any], retries: int, seconds_max: float) -> None:
        self._repeatable = call.repeatable
        self._writes = not call.repeatable or any(name == b"idempotency-key" for name, _ in call.headers)
        self._number = 1
        self._retries = retries
        self._end = time.monotonic() + seconds_max
        self._unknown = False

    def pause_seconds(self, failure: TryAgain) -> float:
        """How long to wait before the next attempt; raises the failure's error if there is none."""
        pause: float = min(_BACKOFF_SECONDS * 2.0 ** (self._number - 1), _PAUSE_SECONDS_MAX) * _jitter.uniform(0.5, 1.0)
        if failure.after_seconds is not None:
            pause = max(pause, failure.after_seconds)
        unknown = not failure.unsent and _leaves_open(failure.error)
        self._unknown |= unknown
        ended = self._number > self._retries or time.monotonic() + pause > self._end
        if ended or (unknown and not self._repeatable):
            failure.error.outcome_unknown = self._writes and self._unknown
            raise failure.error from failure.__cause__
        self._number += 1
        return pause

    def conclude(self, error: StoreError) -> StoreError:
        """The error that ends the call without another attempt, with what it tells of the outcome."""
        refused = error.status is not None and 400 <= error.status < 500 and error.status not in _UNHEARD_STATUSES
        # A repeat gets the answer of the first attempt. So if it is refused, no attempt before it has written.
        error.outcome_unknown = self._writes and (_leaves_open(error) or (self._unknown and not refused))
        return error


def _leaves_open(error: StoreError) -> bool:
    """Whether a write that was sent may have been carried out, going by this error alone."""
    if error.code in PROBLEMS and PROBLEMS[error.code].status == error.status:
        return error.code in _OPEN_CODES
    if error.status is None or isinstance(error, StoreProtocolError):
        return isinstance(error, StoreNotAvailableError | StoreProtocolError)
    return error.status >= 500


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the HTTP library's exceptions into :class:`TryAgain` or :class:`StoreError`: here and nowhere else."""
    try:
        yield
    except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
        raise StoreRequestError(f"the request cannot be sent: {error}", code="malformed-request") from error
    except httpx2.TimeoutException as error:
        unsent = isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout)
        raise TryAgain(
            StoreNotAvailableError(f"the service did not answer in time ({type(error).__name__})"), unsent=unsent
        ) from error
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        if "WRONG_VERSION_NUMBER" in reason or "wrong version number" in reason:
            reason += "; does it speak plain http://, without TLS?"
        elif isinstance(error, httpx2.RemoteProtocolError) and "disconnected without" in reason:
            reason += "; if it serves TLS, its URL begins with https://, and it may need a client certificate"
        unsent = isinstance(error, httpx2.ConnectError)
        raise TryAgain(StoreNotAvailableError(f"the service does not answer: {reason}"), unsent=unsent) from error
    except httpx2.HTTPError as error:
        raise StoreError(f"the request failed: {error}") from error
