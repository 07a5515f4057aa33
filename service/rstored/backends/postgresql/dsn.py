"""A PostgreSQL DSN says how libpq connects, and which schema has the store."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rstored.backends.dsn import decoded, wrong
from rstored.problems import Problem

_SCHEMA: Final = "rstore"
# The server cuts longer names, so two of them could mean one schema.
_SCHEMA_BYTES_MAX: Final = 63
_KNOWN: Final = frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())
_SECRETS: Final = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
_REASON_LENGTH_MAX: Final = 400


class PostgreSQLDSN(NamedTuple):
    """A DSN, taken apart. ``conninfo`` has libpq's form of names and values. No message shows the ``secrets``."""

    conninfo: str
    schema: str
    secrets: list[str]


def parse_dsn(dsn: str) -> PostgreSQLDSN:
    """Take a DSN apart. Raises Problem with one line that says what is wrong and shows no password.

    >>> parse_dsn("postgresql://db/store?schema=shop&sslmode=require")[:2]
    ('dbname=store host=db sslmode=require', 'shop')
    """
    rest = dsn.partition("://")[2]
    # As in libpq, only : and % are special before the first @, if no slash precedes it.
    slash = rest.find("/")
    login_end = rest.find("@", 0, len(rest) if slash < 0 else slash) + 1
    place, _, query = rest[login_end:].partition("?")
    try:
        found = conninfo_to_dict(f"postgresql://{rest[:login_end]}{place}")
    except (psycopg.Error, ValueError):
        # The driver's message may show the password.
        raise _unparsed() from None
    parameters = _parameters(query)
    schema = parameters.pop("schema", _SCHEMA)
    _check_schema(schema)
    options = {name: str(value) for name, value in found.items()} | parameters
    hosts = options.get("host", options.get("hostaddr", ""))
    _check_addresses(options, hosts)
    if options.get("client_encoding", "utf8").lower().replace("-", "") not in ("utf8", "unicode", "auto"):
        raise wrong("has a client_encoding other than UTF8, in which the service speaks to PostgreSQL")
    if re.fullmatch(r"-?[0-9]{1,9}", options.get("connect_timeout", "0")) is None:
        raise wrong("has a connect_timeout that is not a number of seconds")
    if "options" in options:
        # A limit there would count until the session is given the service's own.
        options["options"] += " -c statement_timeout=0"
    if "," in hosts:
        # Of several servers, the DSN means the one that takes writes.
        options = {"target_session_attrs": "read-write"} | options
    secrets = [options[name] for name in _SECRETS if name in options]
    return PostgreSQLDSN(make_conninfo(**options), schema, secrets)


def reason_of(error: BaseException, secrets: list[str]) -> str:
    """The message of the driver or the server, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text[:_REASON_LENGTH_MAX]


def _unparsed() -> Problem:
    return wrong(
        "does not parse: write postgresql://user:password@host:port/database, with user, password and database "
        "percent-encoded (@ is %40, / is %2F, % is %25)"
    )


def _parameters(query: str) -> dict[str, str]:
    """The parameters. Unlike libpq, this does not require that each = and space in a value is percent-encoded."""
    found: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, separator, text = part.partition("=")
        if name == "ssl":
            # libpq knows this old name in URIs.
            name, text = "sslmode", "require" if text == "true" else text
        if name not in _KNOWN and name != "schema":
            raise wrong("has a parameter that is neither schema nor one of libpq's: check its name")
        if name == "replication":
            raise wrong("asks for replication, which cannot serve a store")
        if name in found:
            raise wrong(f"gives {name} twice")
        found[name] = decoded(text, name)
        if not separator or "\0" in found[name]:
            raise wrong(f"has the parameter {name} without a value, or with NUL in it")
    return found


def _check_schema(name: str) -> None:
    if not name:
        raise wrong("has an empty schema: write ?schema=name, or leave it out")
    if len(name.encode()) > _SCHEMA_BYTES_MAX:
        raise wrong(f"has a schema of more than {_SCHEMA_BYTES_MAX} bytes")
    if name.startswith("pg_") or name == "information_schema":
        raise wrong("has a schema that PostgreSQL keeps for itself: no name begins with pg_")


def _check_addresses(options: dict[str, str], hosts: str) -> None:
    # A host with an @ in it follows an @ of a password. One that begins with @ is a socket.
    if any("@" in host[1:] for host in hosts.split(",")):
        raise _unparsed()
    ports = options.get("port", "").split(",")
    for port in filter(None, ports):
        if re.fullmatch("[0-9]{1,5}", port) is None or not 0 < int(port) < 2**16:
            raise wrong("has a port that is not a number from 1 to 65535")
    if len(ports) not in (1, len(hosts.split(","))):
        raise wrong("has a different number of ports than of hosts")
