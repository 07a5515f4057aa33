"""Connections to a SQLite file: how they are set up, and the schema that they find or make."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from rstored.backends.abc import UnfitStorage
from rstored.backends.migrations import ROOT_OF_STORE, SCHEMA_VERSION, pending
from rstored.backends.sqlite.failures import CHANGED
from rstored.backends.sqlite.files import Files, create, hide_from_others, identity
from rstored.backends.sqlite.statements import DIALECT
from rstored.problems import Problem, of_storage

__all__ = ["BEGIN", "BUSY_SECONDS", "check_schema", "connect", "connect_both", "schema_version", "when_free"]

_APPLICATION_ID: Final = int.from_bytes(b"rsto")
BUSY_SECONDS: Final = 10.0
_BUSY_PAUSE_SECONDS: Final = 0.0002
BEGIN: Final = "BEGIN IMMEDIATE"


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    # KiB, negated. Each of the two connections may come to hold as much; more gains nothing that the system's own
    # cache does not give, and a long series going through would fill it.
    connection.execute("PRAGMA cache_size = -8192")
    return connection


def connect_both(path: Path) -> tuple[Files, sqlite3.Connection, sqlite3.Connection]:
    """The files, the connection for writing, and the one for reading."""
    create(path)
    before = identity(path.stat()) if path.exists() else None
    writing = _connect_for_writing(path)
    try:
        reading = connect(path)
        reading.execute("PRAGMA query_only = ON")
        # A first read opens the log.
        reading.execute("SELECT version FROM schema_version").fetchone()
        files = Files(path)
        if before not in (None, identity(path.stat())):
            raise Problem(
                "backend-unavailable", f"the file {str(path)!r} was replaced while it was opened: start again"
            )
    except BaseException:
        writing.close()
        raise
    return files, writing, reading


def _connect_for_writing(path: Path) -> sqlite3.Connection:
    """Connect for writing, having made sure that the file is ours, is writable and has the present schema."""
    connection = connect(path)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        # The lock keeps other processes that start now waiting, and shows that the file can be written.
        connection.execute(BEGIN)
        _migrate(connection)
        connection.execute("COMMIT")
        _use_wal(connection)
        hide_from_others(path)
        # Pages of the log before it is copied into the file; a smaller log is copied more often than it helps.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")
        # What is deleted is overwritten where that costs no further write.
        connection.execute("PRAGMA secure_delete = FAST")
        # From here on it waits for one lock only, at the beginning of each transaction, in a way of our own.
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = schema_version(connection)
    if version == 0:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO schema_version VALUES (0)")
    for statement in pending(version, DIALECT):
        connection.execute(statement)
    connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION,))


def check_schema(connection: sqlite3.Connection) -> None:
    """Return if the tables are there, as this program made them; otherwise raise :class:`UnfitStorage`."""
    try:
        found = connection.execute(ROOT_OF_STORE).fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        found = None
    if found is None:
        raise UnfitStorage(CHANGED)


def schema_version(connection: sqlite3.Connection) -> int:
    """The version of the schema, 0 in an empty database. Raises :class:`Problem` if it is not ours."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0:
        return 0
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != _APPLICATION_ID:
        raise Problem("backend-unavailable", "the file is the SQLite database of another program: name another file")
    return _number(connection.execute("SELECT version FROM schema_version").fetchone())


@of_storage("the version of the schema")
def _number(row: tuple[Any]) -> int:
    return int(row[0])


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn on WAL mode, which is kept in the file."""
    (mode,) = when_free(connection, "PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise Problem("backend-unavailable", "the file system cannot hold a SQLite WAL database: use a local disk")


def when_free(connection: sqlite3.Connection, statement: str) -> sqlite3.Cursor:
    """Execute a statement as soon as no other process holds the lock that it needs.

    SQLite does not wait for some locks at all, and for the others ever longer, up to a tenth of a second at a time:
    so it would seldom come upon the moment that a busy process leaves between two of its batches.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_PAUSE_SECONDS)
