"""The address of a service, and what every request to it carries."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Iterator
from typing import Any, Final, NoReturn, TypeAlias

import httpx2

from rstore.calls import Call
from rstore.calls.arguments import check_seconds, check_text, invalid, refuse
from rstore.core.errors import StoreRequestError

Certificate: TypeAlias = str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]]
# The longest that the system can wait on a socket: some 24 days.
_TIMEOUT_SECONDS_MAX: Final = 2_000_000
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}\Z")


class _Secret(bytes):
    """The value of a header, which no ``repr`` and no ``str`` shows. A traceback may show every variable."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a store that has a token cannot be pickled: the pickle would contain the token")


class Service:
    """The address of a service, and what every request to it carries. It opens no connection."""

    def __init__(
        self, url: str, *, token: str | None, timeout: float, verify: Any, cert: Certificate | None = None
    ) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        if isinstance(token, str) and _TOKEN.match(token):
            self._headers.append((b"authorization", _Secret(b"Bearer " + str.encode(token, "ascii"))))
        wrong = token is not None and not self._headers
        # A traceback may show every variable.
        del token
        if wrong:
            raise invalid("the token is empty, is not a str, or has characters that no token has")
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
            # A compressed answer could be a bomb. And ciphertext, which many stores hold, does not compress.
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
        """The TLS settings that verify the service, and prove the client to it. False without TLS.

        Raises StoreRequestError for files that cannot be read, or do not hold what they should.
        """
        if self.url.scheme == "http":
            return False
        verify: ssl.SSLContext | bool
        if isinstance(self._verify, str | os.PathLike):
            with _named("the file of certificates (verify)", "it holds no certificate in PEM form"):
                verify = ssl.create_default_context(cafile=_path(self._verify))
        else:
            verify = self._verify
        if self._cert is not None:
            verify = httpx2.create_ssl_context(verify, trust_env=False)
            cert, key = (self._cert, None) if isinstance(self._cert, str | os.PathLike) else self._cert
            with _named(
                "the client's certificate and its key (cert)", "they are not in PEM form, or do not belong together"
            ):
                # The empty password keeps OpenSSL from asking on the terminal. For a key that needs a password, the
                # caller makes the context.
                verify.load_cert_chain(_path(cert), None if key is None else _path(key), lambda: "")
        return verify


@contextlib.contextmanager
def _named(what: str, malformed: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, ssl.SSLError):
            reason = malformed
        raise invalid(f"{what} cannot be used: {reason}") from None


def _is_path(value: object) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and str.__len__(value) > 0)


def _path(value: str | os.PathLike[str]) -> str | bytes:
    """The path as plain text. A subclass of ``str`` could claim to be empty, and would then not be used."""
    path: str | bytes = os.fspath(value)
    return str.__str__(path) if isinstance(path, str) else path


def _base_url(text: str) -> httpx2.URL:
    text = check_text(text, "dsn")
    try:
        url = httpx2.URL(text)
        # Python does this when it connects. It raises UnicodeError for an empty label, and for one of more than 63
        # bytes (RFC 1035, 2.3.4).
        url.raw_host.decode("ascii").encode("idna")
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
