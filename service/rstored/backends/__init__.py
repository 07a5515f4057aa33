"""The backends, and the table that a DSN's scheme picks one from."""

from __future__ import annotations

import importlib
from typing import Final

from rstored.backends.abc import Backend
from rstored.problems import Problem

__all__ = ["BACKENDS", "backend_class"]

# scheme → "module:class"; imported only when picked, so a driver that is not used need not be installed.
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


def backend_class(dsn: str) -> type[Backend]:
    """The backend class for a DSN; raises :class:`Problem` that names the schemes there are, or what to install."""
    scheme, separator, _ = dsn.partition("://")
    if not separator or scheme not in BACKENDS:
        known = ", ".join(f"{name}://" for name in BACKENDS)
        raise Problem("backend-unavailable", f"the DSN must begin with one of {known}")
    module_name, _, class_name = BACKENDS[scheme].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'rstore[service]' brings the driver for {scheme}:// ({error.name} is missing)"
        raise Problem("backend-unavailable", remedy) from error
    loaded: type[Backend] = getattr(module, class_name)
    return loaded
