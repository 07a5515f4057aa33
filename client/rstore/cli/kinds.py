"""The kinds of arguments. A command takes no argument that the SDK or the service would refuse.

It refuses a wrong one before it sends anything, with exit code 2 and the name of the argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from rstore.core.durations import InvalidDuration, parse_duration
from rstore.core.errors import StoreRequestError
from rstore.core.names import InvalidName, check_key, check_namespace
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.sealing import Sealer
from rstore.transport.address import Service

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}\Z", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?\Z", re.ASCII)
_SECONDS_MAX: Final = 10**10
_NO_SERVICE: Final = "http://127.0.0.1"


def filled(text: str) -> str:
    """Text that is not empty. Otherwise ``--column "$NAME"`` would mean the default if NAME is not set."""
    if not text:
        raise typer.BadParameter("it is empty")
    return text


def named(text: str) -> str:
    """A key."""
    try:
        return check_key(text)
    except InvalidName as error:
        raise typer.BadParameter(str(error)) from None


def namespace_name(text: str) -> str:
    """The name of a namespace."""
    try:
        return check_namespace(filled(text))
    except InvalidName as error:
        raise typer.BadParameter(str(error)) from None


def span(low: int, high: int = INT64_MAX) -> Callable[[str | int], int]:
    """A parser of integers from ``low`` to ``high``, in decimal digits as in the routes of the service."""

    def parse(text: str | int) -> int:
        # A default is an int already.
        if isinstance(text, str) and not _INTEGER.match(text):
            raise typer.BadParameter("write an integer in decimal digits")
        number = int(text)
        if not low <= number <= high:
            names = {INT64_MIN: "-2**63", INT64_MAX: "2**63-1"}
            raise typer.BadParameter(f"it is from {names.get(low, low)} to {names.get(high, high)}")
        return number

    return parse


def seconds(text: str) -> float:
    """A number of seconds, as the parameter ``ttl`` is."""
    if not _SECONDS.match(text):
        raise typer.BadParameter("write a number of seconds such as 60 or 0.5")
    if not 0 < float(text) <= _SECONDS_MAX:
        raise typer.BadParameter("it is more than 0 seconds, and 10**10 at most")
    return float(text)


def duration(low: int) -> Callable[[str], int]:
    """A parser of spans of time such as 90d, of ``low`` seconds or more. It returns seconds."""

    def parse(text: str) -> int:
        try:
            found = parse_duration(text)
        except InvalidDuration as error:
            raise typer.BadParameter(str(error)) from None
        if not low <= found <= _SECONDS_MAX:
            raise typer.BadParameter(f"it is from {low} to 10**10 seconds")
        return found

    return parse


def address(text: str) -> str:
    """The URL of a service."""
    try:
        _service(filled(text))
    except StoreRequestError:
        reason = "it is the URL of a running service, like http://127.0.0.1:8000, without user, query and fragment"
        raise typer.BadParameter(reason) from None
    return text


def access_token(text: str) -> str:
    """The text of an access token."""
    try:
        _service(token=filled(text))
    except StoreRequestError:
        raise typer.BadParameter("it has characters that no token has") from None
    return text


def sealing_key(text: str) -> str:
    """A key for sealing."""
    try:
        Sealer(filled(text))
    except StoreRequestError:
        reason = "a key is 32 bytes in URL-safe base64, which is 44 characters; `rstore keygen` makes one"
        raise typer.BadParameter(reason) from None
    return text


def authority_file(text: str) -> str:
    """A file of certificates to verify a service with."""
    return _usable(text, verify=text)


def certificate_file(text: str) -> str:
    """A file with a certificate and its key."""
    return _usable(text, cert=text)


def _usable(text: str, **given: str) -> str:
    filled(text)
    (argument,) = given
    try:
        _service("https://127.0.0.1", **given).tls()
    except StoreRequestError as error:
        # The message names the argument of the SDK. Typer names the option.
        raise typer.BadParameter(str(error).replace(f" ({argument})", "")) from None
    return text


def _service(url: str = _NO_SERVICE, *, token: str | None = None, verify: Any = True, cert: Any = None) -> Service:
    return Service(url, token=token, timeout=1, verify=verify, cert=cert)


timestamp: Final = span(INT64_MIN)

KeyArgument = Annotated[str, typer.Argument(parser=named, metavar="KEY", help="The key.")]
KeysArgument = Annotated[list[str], typer.Argument(parser=named, metavar="KEY", help="The keys.")]
StartOption = Annotated[
    int | None, typer.Option(parser=timestamp, metavar="T", help="The first timestamp, inclusive.", show_default=False)
]
EndOption = Annotated[
    int | None, typer.Option(parser=timestamp, metavar="T", help="The last timestamp, inclusive.", show_default=False)
]
FreqOption = Annotated[
    int | None,
    typer.Option(parser=span(1), metavar="STEP", help="The least distance of two timestamps.", show_default=False),
]
