"""A SQLite DSN names the file of the store."""

from __future__ import annotations

import os
from pathlib import Path

from rstored.problems import Problem


def database_path(dsn: str) -> Path:
    """The file that a DSN names. Raises :class:`Problem` if it names none.

    ``sqlite:///data/store.db`` and ``sqlite://store.db`` are relative to the working directory. An absolute path has
    four slashes.

    >>> database_path("sqlite:////var/lib/rstore/store.db")
    PosixPath('/var/lib/rstore/store.db')
    >>> database_path("sqlite://store.db")
    PosixPath('store.db')
    """
    rest = dsn.removeprefix("sqlite://")
    name = rest[1:] if rest.startswith("/") else rest
    if not name or name.endswith("/"):
        raise Problem("backend-unavailable", "the DSN names no file: write sqlite:///path/to/file.db")
    if str(Path(name)) == ":memory:":
        raise Problem("backend-unavailable", "a database in memory would forget every write: name a file in the DSN")
    if "?" in name or "\0" in name:
        raise Problem("backend-unavailable", "a SQLite DSN takes no parameters: write sqlite:///path/to/file.db")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise Problem("backend-unavailable", "the name of the file in the DSN is not text") from None
    return Path(name)
