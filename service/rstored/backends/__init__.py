"""The backends, and the table in which the scheme of a DSN finds one.

An installed package adds a scheme by an entry point of the group ``rstored.backends``; docs/backends.md says how.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from rstored.backends.abc import Backend
from rstored.problems import Problem

# scheme → "module:class". A module is imported when it is needed, so only its driver must be installed.
BACKENDS: Final[dict[str, str]] = {
    "sqlite": "rstored.backends.sqlite:SQLiteBackend",
    "postgresql": "rstored.backends.postgresql:PostgreSQLBackend",
    "postgres": "rstored.backends.postgresql:PostgreSQLBackend",
    "redis": "rstored.backends.redis:RedisBackend",
    "rediss": "rstored.backends.redis:RedisBackend",
    "redis+cluster": "rstored.backends.redis:RedisBackend",
    "rediss+cluster": "rstored.backends.redis:RedisBackend",
    "valkey": "rstored.backends.redis:RedisBackend",
    "valkeys": "rstored.backends.redis:RedisBackend",
    "valkey+cluster": "rstored.backends.redis:RedisBackend",
    "valkeys+cluster": "rstored.backends.redis:RedisBackend",
}


_GROUP: Final = "rstored.backends"


def backend_class(dsn: str) -> type[Backend]:
    """The backend class for a DSN. Raises :class:`Problem`, which names the known schemes, or what to install."""
    scheme, separator, _ = dsn.partition("://")
    if separator and scheme in BACKENDS:
        backend = EntryPoint(scheme, BACKENDS[scheme], _GROUP)
        remedy = f"install rstore with its extra: rstore[service] brings the driver for {scheme}://"
    else:
        added = {entry.name: entry for entry in entry_points(group=_GROUP)}
        if not separator or scheme not in added:
            known = ", ".join(f"{name}://" for name in (*BACKENDS, *sorted(added)))
            raise Problem("backend-unavailable", f"the DSN must begin with one of {known}")
        backend = added[scheme]
        remedy = f"install what the backend for {scheme}:// needs"
    try:
        loaded: type[Backend] = backend.load()
    except ModuleNotFoundError as error:
        raise Problem("backend-unavailable", f"{remedy} ({error.name} is missing)") from error
    except AttributeError as error:
        reason = f"the entry point for {scheme}:// names {backend.value}, which does not exist"
        raise Problem("backend-unavailable", reason) from error
    return loaded
