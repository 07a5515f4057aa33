"""A Redis DSN says where the servers are and how to connect to them, and has parameters of the store.

The driver would take any of its arguments as a parameter. Some of them break the service (another protocol, decoded
answers), or fail only when they are used. So this module lists the possible parameters, and what each takes.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple, TypeAlias

from rstored.backends.dsn import decoded, wrong
from rstored.problems import Problem

Address: TypeAlias = tuple[str, int]

_PORT: Final = 6379
# user:password, hosts, database and parameters. There is no fragment, so a # is not special.
_PARTS: Final = re.compile(r"(?:([^/?#]*)@)?([^/?#@]*)(?:/([^?#]*))?(?:\?([^#]*))?")
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]*))(?::([0-9]{1,5}))?", re.ASCII)
_DATABASE: Final = re.compile(r"[0-9]{1,6}\Z", re.ASCII)
_NAME: Final = re.compile(r"[!-~]{1,64}\Z")
_TLS_VERSIONS: Final = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
# The driver takes the numbers of the versions.
_TLS_VERSIONS_BY_NUMBER: Final = {str(int(version)): version for version in _TLS_VERSIONS.values()}


class RedisDSN(NamedTuple):
    """A DSN, taken apart.

    ``connection`` has the arguments of the driver without the address. ``own`` has the parameters of the store.
    """

    addresses: list[Address]
    cluster: bool
    tls: bool
    connection: dict[str, Any]
    own: dict[str, str]


def parse_dsn(dsn: str, own: Collection[str]) -> RedisDSN:
    """Take a DSN apart. ``own`` has the names of the store's parameters.

    Commas separate several addresses, which only a cluster has. Raises Problem with one line that says what is wrong
    and shows no password.

    >>> parse_dsn("rediss://me@db:7000/3?ssl_cert_reqs=none", ()).connection
    {'ssl_cert_reqs': 'none', 'ssl_password': '', 'username': 'me', 'db': 3}
    >>> parse_dsn("redis+cluster://[::1]:7000,redis.local", ()).addresses
    [('::1', 7000), ('redis.local', 6379)]
    """
    scheme, _, rest = dsn.partition("://")
    family, _, kind = scheme.partition("+")
    cluster, tls = kind == "cluster", family in ("rediss", "valkeys")
    match = _PARTS.fullmatch(rest)
    if match is None:
        raise _unparsed()
    login, hosts, database, query = match.groups("")
    options, store = _parameters(query, own, tls=tls)
    connection = options | _login(login)
    if database:
        connection["db"] = _database(database)
    if cluster and connection.get("db"):
        raise wrong("names a database, but a cluster has only database 0")
    addresses = [_address(host) for host in hosts.split(",")]
    if len(addresses) > 1 and not cluster:
        raise wrong("names several servers, which only a cluster has: write redis+cluster://host:port,host:port")
    return RedisDSN(addresses, cluster, tls, connection, store)


def _unparsed() -> Problem:
    return wrong(
        "does not parse: write redis://user:password@host:port/0 or redis+cluster://host:port,host:port, with user and "
        "password percent-encoded (# is %23, / is %2F)"
    )


def _login(text: str) -> dict[str, Any]:
    user, _, password = text.partition(":")
    found = {"username": decoded(user, "user"), "password": decoded(password, "password")}
    return {name: value for name, value in found.items() if value}


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text)
    port = int(match[3] or _PORT) if match else 0
    if match is None or not 0 < port < 2**16:
        raise _unparsed()
    return match[1] or decoded(match[2], "host") or "localhost", port


def _parameters(query: str, own: Collection[str], *, tls: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of the driver, and the parameters of the store."""
    found: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        # As in a form, a plus sign is a space.
        name, _, value = part.replace("+", " ").partition("=")
        if name in found:
            raise wrong(f"gives {name} twice")
        if name not in own and name not in PARAMETERS:
            # The name is not shown, because it might be a part of a password.
            raise wrong(f"has a parameter that is none of {', '.join([*own, *PARAMETERS])}")
        found[name] = decoded(value, name)
        if not found[name]:
            raise wrong(f"gives {name} no value")
    options: dict[str, Any] = {}
    for name, value in found.items():
        if name in own:
            continue
        if name.startswith("ssl_") and not tls:
            raise wrong(f"has {name} and no TLS: begin the DSN with rediss:// or rediss+cluster://")
        try:
            options[name] = PARAMETERS[name](value)
        except _Refused as refused:
            raise wrong(f"has a {name} that is not {refused}") from None
    if tls:
        # Without a password, OpenSSL would ask for that of a key on the terminal.
        options.setdefault("ssl_password", "")
    return options, {name: value for name, value in found.items() if name in own}


class _Refused(Exception):
    """A parameter does not take the value. The message says what it takes."""


def _text(value: str) -> str:
    return value


def _database(value: str) -> int:
    if _DATABASE.match(value) is None:
        raise wrong("names a database, but not by its number: write redis://host:port/0")
    return int(value)


def _truth(value: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return known[value.lower()]
    except KeyError:
        raise _Refused("true or false") from None


def _name(value: str) -> str:
    if _NAME.match(value) is None:
        raise _Refused("1 to 64 visible ASCII characters")
    return value


def _file(value: str) -> str:
    if not os.path.isfile(value) or not os.access(value, os.R_OK):
        raise _Refused("a file that can be read")
    return value


def _folder(value: str) -> str:
    if not os.path.isdir(value):
        raise _Refused("a folder")
    return value


def _one_of(*words: str) -> Callable[[str], str]:
    def take(value: str) -> str:
        if value not in words:
            raise _Refused(f"one of {', '.join(words)}")
        return value

    return take


def _tls_version(value: str) -> ssl.TLSVersion:
    try:
        return (_TLS_VERSIONS | _TLS_VERSIONS_BY_NUMBER)[value]
    except KeyError:
        raise _Refused(f"one of {', '.join(_TLS_VERSIONS)}") from None


def _ciphers(value: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(value)
    except (ssl.SSLError, ValueError):
        raise _Refused("a list of ciphers that OpenSSL knows") from None
    return value


def _certificates(value: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=value)
    except (ssl.SSLError, ValueError, TypeError):
        raise _Refused("certificates in PEM") from None
    return value


PARAMETERS: Final[dict[str, Callable[[str], Any]]] = {
    "db": _database,
    "username": _text,
    "password": _text,
    "client_name": _name,
    "socket_keepalive": _truth,
    "ssl_ca_certs": _file,
    "ssl_ca_path": _folder,
    "ssl_ca_data": _certificates,
    "ssl_cert_reqs": _one_of("required", "optional", "none"),
    "ssl_check_hostname": _truth,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": _text,
    "ssl_min_version": _tls_version,
    "ssl_ciphers": _ciphers,
}
"""The possible parameters of the driver, and the function that turns the text of each into an argument."""
