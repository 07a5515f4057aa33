"""The problems that SQLite's failures mean."""

from __future__ import annotations

import sqlite3
from typing import Final

from rstored.problems import Problem, damaged

_FULL: Final = ("storage-full", "the disk that holds {file} is full: free some space and try again")
# By primary code. One extended code has a meaning of its own: there is no room for the index of the log.
FAILURES: Final[dict[int, tuple[str, str]]] = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,
    sqlite3.SQLITE_CORRUPT: ("backend-corrupt", "{file} is damaged: stop the service and restore a backup"),
    sqlite3.SQLITE_NOTADB: ("backend-corrupt", "{file} is not a SQLite database: restore a backup or name another"),
    sqlite3.SQLITE_READONLY: ("backend-unavailable", "{file} or its folder is read-only: make both writable"),
    sqlite3.SQLITE_PERM: ("backend-unavailable", "{file} may not be opened: give the service's user access to it"),
    sqlite3.SQLITE_CANTOPEN: (
        "backend-unavailable",
        "{file} cannot be opened: it must be a file, in a folder that the user of the service may write to",
    ),
    sqlite3.SQLITE_BUSY: ("backend-unavailable", "another process keeps {file} locked: try again"),
    sqlite3.SQLITE_LOCKED: ("backend-unavailable", "another process keeps {file} locked: try again"),
    sqlite3.SQLITE_IOERR: ("backend-unavailable", "{file} cannot be read or written: check the disk"),
}


CHANGED: Final = (
    "another program or a newer rstored has changed the tables in the database file since it was opened: "
    "restore the file, or restart the service to use the file as it is now"
)


def translated(error: sqlite3.Error, file: str = "the database file") -> Exception:
    """The problem that an error of the driver means, or the error itself if it can only be a mistake of ours."""
    extended = getattr(error, "sqlite_errorcode", 0)
    if extended == sqlite3.SQLITE_ERROR and str(error).startswith(("no such ", "table ")):
        return Problem("backend-unavailable", CHANGED)
    if str(error).startswith("Could not decode to UTF-8"):
        # So says Python's module, and goes on with the text.
        return damaged("the key of a record")
    code, detail = FAILURES.get(extended) or FAILURES.get(extended & 0xFF) or (None, "")
    return error if code is None else Problem(code, detail.format(file=file))
