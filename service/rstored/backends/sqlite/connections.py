"""Connections to a SQLite file: their settings, and the schema that they find or make."""

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

_APPLICATION_ID: Final = int.from_bytes(b"rsto")
BUSY_SECONDS: Final = 10.0
_BUSY_PAUSE_SECONDS: Final = 0.0002
BEGIN: Final = "BEGIN IMMEDIATE"


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    # A negative size is in KiB. Each of the two connections may use this much memory. More would gain nothing over the
    # cache of the system, and one read of a long series would fill it.
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
        # The first read opens the log.
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
    """Connect for writing. Make sure that the file is one of ours and writable, and bring it to the present schema."""
    connection = connect(path)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        # With this lock, other processes that start now wait. It also shows that the file can be written.
        connection.execute(BEGIN)
        _migrate(connection)
        connection.execute("COMMIT")
        _use_wal(connection)
        hide_from_others(path)
        # How many pages the log has before SQLite copies it into the file. Copying a smaller log costs more than it
        # gains.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")
        # SQLite overwrites deleted content if that costs no further write.
        connection.execute("PRAGMA secure_delete = FAST")
        # From here on, only the beginning of a transaction waits for a lock, and when_free() does that.
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
    """Return if the tables exist as this program made them; otherwise raise :class:`UnfitStorage`."""
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

    SQLite does not wait for some locks at all. For the others it waits longer each time, up to a tenth of a second. So
    it would seldom meet the short moment between two batches of a busy process.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_PAUSE_SECONDS)
